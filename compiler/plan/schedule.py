"""The order in which the steps run: the one, of a few candidates, whose largest live set is smallest."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import networkx as nx

from ..ir import STORED, Graph, Value
from ..passes.fuse import VIEWS

Waits = Mapping[int, set[int]]

_MOST_STEPS = 60  # of a graph whose best order is searched for
_MOST_SETS = 2000  # of steps done, of one size, that are looked at


def schedule(
    graph: Graph, buffer_of: Callable[[Value], int | None], nbytes: Callable[[int], int], waits: Waits | None = None
) -> list[int]:
    """The nodes that do work, in order. ``buffer_of`` gives a value's buffer, None for one that costs no arena;
    ``waits`` names for a node those that must run before it, beside those whose results it reads."""
    waits = waits or {}
    flow = nx.DiGraph(graph.nx)
    flow.add_edges_from((k, key) for key in sorted(waits) for k in sorted(waits[key]))
    work = [n for n in nx.lexicographical_topological_sort(flow) if graph.node(n).op not in (*STORED, *VIEWS)]
    candidates = [_depth_first(graph, work, waits), work, _greedy(graph, work, waits, buffer_of, nbytes)]
    if graph.bindings:
        candidates.append(_depth_first(graph, work, waits, _depths(graph)))
    peaks = [_peak(graph, c, buffer_of, nbytes) for c in candidates]
    best = candidates[peaks.index(min(peaks))]
    return _exact(graph, best, waits, buffer_of, nbytes, min(peaks)) or best


def _exact(
    graph: Graph,
    work: list[int],
    waits: Waits,
    buffer_of: Callable[[Value], int | None],
    nbytes: Callable[[int], int],
    peak: int,
) -> list[int] | None:
    """The order with the smallest peak, where it is below ``peak`` and the graph is small: dynamic programming over the
    sets of steps that are done, sets of one size after the other (Liberis and Lane 2019, "Neural networks on
    microcontrollers: saving memory at inference via operator reordering"). None where nothing better is found, or
    where there are too many sets."""
    touched = [set().union(*_touched(graph, k, buffer_of)) for k in work]
    least = max((sum(map(nbytes, t)) for t in touched), default=0)
    if len(work) > _MOST_STEPS or least >= peak:
        return None
    number = {k: i for i, k in enumerate(work)}
    before = [sum(1 << number[p] for p in _work_before(graph, k, set(work), waits)) for k in work]
    held = {b: sum(1 << i for i, t in enumerate(touched) if b in t) for t in touched for b in t}
    kept = {b for v in graph.outputs if (b := buffer_of(v)) is not None}
    sets: dict[int, tuple[int, tuple[int, ...]]] = {0: (0, ())}
    for _ in work:
        grown: dict[int, tuple[int, tuple[int, ...]]] = {}
        for done, (most, order) in sets.items():
            alive = {b for b, users in held.items() if users & done and (users & ~done or b in kept)}
            for i in range(len(work)):
                if done >> i & 1 or before[i] & ~done:
                    continue
                now = max(most, sum(nbytes(b) for b in alive | touched[i]))
                known = grown.get(done | 1 << i)
                if now < peak and (known is None or now < known[0]):
                    grown[done | 1 << i] = now, (*order, i)
        if not grown or len(grown) > _MOST_SETS:
            return None
        sets = grown
    ((_, order),) = sets.values()
    return [work[i] for i in order]


def _depths(graph: Graph) -> dict[int, int]:
    """The longest way from any source to each node."""
    found: dict[int, int] = {}
    for key in graph.order():
        found[key] = 1 + max((found[p] for p in graph.nx.predecessors(key)), default=0)
    return found


def _depth_first(graph: Graph, work: list[int], waits: Waits, depth: Mapping[int, int] | None = None) -> list[int]:
    """Each step as late as its first reader allows: what a reader of the graph would write down.

    With ``depth`` (a training step) next values come in the order of their depth, so that a layer's weights are updated
    before the gradient goes on to the layer in front of it, and of a step's inputs the one with the longest way to it
    is made first, what is made from little (recomputed activations) last."""
    wanted, done, result = set(work), set(), []
    next_values = [v.node for _, v in sorted(graph.bindings.items())]
    if depth is not None:
        next_values.sort(key=lambda n: depth[n])
    roots = [v.node for v in graph.outputs] + next_values
    stack: list[tuple[int, bool]] = [(n, False) for n in reversed([*roots, *work])]
    while stack:
        key, ready = stack.pop()
        if key in done:
            continue
        if ready:
            done.add(key)
            if key in wanted:
                result.append(key)
            continue
        stack.append((key, True))
        args = [*sorted(waits.get(key, ())), *(a.node for a in graph.args(key) if a is not None)]
        if depth is not None:
            args.sort(key=lambda n: -depth[n])
        stack += [(a, False) for a in reversed(list(dict.fromkeys(args))) if a not in done]
    return result


def _touched(graph: Graph, key: int, buffer_of: Callable[[Value], int | None]) -> tuple[set[int], set[int]]:
    reads = {b for a in graph.args(key) if a is not None and (b := buffer_of(a)) is not None}
    writes = {b for v in graph.values(key) if (b := buffer_of(v)) is not None}
    return reads, writes


def _lives(
    graph: Graph, order: list[int], buffer_of: Callable[[Value], int | None]
) -> tuple[dict[int, int], dict[int, int]]:
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for t, key in enumerate(order):
        reads, writes = _touched(graph, key, buffer_of)
        for b in reads | writes:
            first.setdefault(b, t)
            last[b] = t
    for value in graph.outputs:
        home = buffer_of(value)
        if home is not None:
            last[home] = len(order)
    return first, last


def _peak(
    graph: Graph, order: list[int], buffer_of: Callable[[Value], int | None], nbytes: Callable[[int], int]
) -> int:
    return max(live_bytes(graph, order, buffer_of, nbytes).values(), default=0)


def live_bytes(
    graph: Graph, order: list[int], buffer_of: Callable[[Value], int | None], nbytes: Callable[[int], int]
) -> dict[int, int]:
    """The bytes of all buffers that are alive while each node of ``order`` runs."""
    first, last = _lives(graph, order, buffer_of)
    change = [0] * (len(order) + 2)
    for b, t in first.items():
        change[t] += nbytes(b)
        change[last[b] + 1] -= nbytes(b)
    now, found = 0, {}
    for t, key in enumerate(order):
        now += change[t]
        found[key] = now
    return found


def _greedy(
    graph: Graph,
    work: list[int],
    also: Waits,
    buffer_of: Callable[[Value], int | None],
    nbytes: Callable[[int], int],
) -> list[int]:
    """List scheduling: of the steps that could run, the one after which the fewest bytes are alive."""
    wanted = set(work)
    touched = {k: _touched(graph, k, buffer_of) for k in work}
    readers: dict[int, int] = {}
    for k in work:
        for b in touched[k][0]:
            readers[b] = readers.get(b, 0) + 1
    for value in graph.outputs:
        home = buffer_of(value)
        if home is not None:
            readers[home] = readers.get(home, 0) + 1
    before = {k: _work_before(graph, k, wanted, also) for k in work}
    waits = {k: len(before[k]) for k in work}
    after: dict[int, list[int]] = {}
    for k in work:
        for p in sorted(before[k]):
            after.setdefault(p, []).append(k)
    place = {k: i for i, k in enumerate(work)}
    ready = [k for k in work if not waits[k]]
    alive: set[int] = set()
    result: list[int] = []
    while ready:

        def growth(k: int, alive: frozenset[int] = frozenset(alive)) -> tuple[int, int]:
            reads, writes = touched[k]
            gained = sum(nbytes(b) for b in writes if b not in alive)
            freed = sum(nbytes(b) for b in reads if readers[b] == 1)
            return gained - freed, place[k]

        key = min(ready, key=growth)
        ready.remove(key)
        result.append(key)
        alive |= touched[key][1]
        for b in touched[key][0]:
            readers[b] -= 1
            if not readers[b]:
                alive.discard(b)
        for k in after.get(key, []):
            waits[k] -= 1
            if not waits[k]:
                ready.append(k)
    return result


def _work_before(graph: Graph, key: int, wanted: set[int], also: Waits) -> set[int]:
    """The working nodes whose results ``key`` reads, through views, and those that it waits for."""
    found: set[int] = set()
    stack = [*also.get(key, ()), *(a.node for a in graph.args(key) if a is not None)]
    while stack:
        n = stack.pop()
        if n in wanted:
            found.add(n)
        else:
            stack += [a.node for a in graph.args(n) if a is not None]
    return found
