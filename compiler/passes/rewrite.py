"""The worklist that applies a table of rules to a graph until none of them fits."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ..ir import STORED, Graph, Value, join_origins
from ..ops import OpError
from .pattern import Match, Pattern, find, root_ops, visible

FEW = 32  # users of a tensor that a change looks at again


@dataclass(frozen=True, slots=True)
class Rule:
    """``pattern`` becomes what ``build`` returns (a new or an existing tensor), or stays where that is None.

    ``condition`` is asked before anything is built. With ``closed`` (the usual case) a tensor inside the match that
    something else uses, an output or a binding included, forbids the rewrite: its work would be done twice.
    """

    name: str
    pattern: Pattern
    build: Callable[[Match], Value | None]
    condition: Callable[[Match], bool] | None = None
    closed: bool = True


def rewrite(graph: Graph, rules: Sequence[Rule], fired: Callable[[str], None] | None = None) -> Graph:
    """A copy of ``graph`` to which the rules have been applied; ``fired`` hears the name of each rule that was used.

    A replacement of another type than what it replaces is refused: element type and shape never change.
    """
    work = graph.copy()
    table: dict[str, list[Rule]] = {}
    for rule in rules:
        for op in root_ops(rule.pattern):
            table.setdefault(op, []).append(rule)
    queue = deque(key for key in work.order() if work.node(key).op in table)
    queued = set(queue)
    while queue:
        key = queue.popleft()
        queued.discard(key)
        if key not in work.nx:
            continue
        for rule in table[work.node(key).op]:
            touched = _apply(work, rule, key)
            if touched is not None:
                if fired:
                    fired(rule.name)
                again = [k for k in sorted(touched) if k in work.nx and k not in queued and work.node(k).op in table]
                queue.extend(again)
                queued.update(again)
                break
    return work


def _apply(graph: Graph, rule: Rule, key: int) -> set[int] | None:
    """Tries one rule at one node: None, or the nodes that are worth another look."""
    for match in find(graph, rule.pattern, key):
        if len(match.node.types) != 1 or (rule.closed and not match.closed):
            continue
        if rule.condition is not None and not rule.condition(match):
            continue
        try:
            new = rule.build(match)
        except OpError:  # the replacement does not fit these shapes
            new = None
        if new is not None and graph.type(new) == match.node.types[0]:
            named = {key: (of, graph.node(of).names) for of, key in match.successors.items()}
            touched = substitute(graph, match.out, new, match.origin, fresh=new.node in match.made)
            if touched is not None:
                sweep(graph, match.made)
                for made, (of, names) in named.items():
                    reclaim_name(graph, made, of, names)
                return touched | set(match.made)
        sweep(graph, match.made)
    return None


def substitute(graph: Graph, old: Value, new: Value, origin: Iterable[str], *, fresh: bool) -> set[int] | None:
    """Puts ``new`` in the place of ``old`` and removes what thereby died; None where nothing would change.

    A tensor that an output names keeps its name. Where ``new`` cannot carry it (a stored tensor, or one that is
    itself an output) ``old``'s node becomes the ``identity`` that does. Returns the nodes around the change.
    """
    before, after = graph.node(old), graph.node(new)
    shown = visible(graph, old.node)
    behind = [user for user, _ in graph.users(old)]
    if shown and (after.op in STORED or visible(graph, new.node)):
        if before.op == "identity" and graph.args(old.node) == [new] and not graph.users(old):
            return None
        _become_identity(graph, old, new)
    else:
        if after.op not in STORED:
            graph.set_node(new.node, origin=join_origins([after.origin, tuple(origin)]))
        graph.replace(old, new, keep_name=fresh or shown)
    return sweep(graph, [old.node]) | near_users(graph, behind, 2) | {new.node}


def _become_identity(graph: Graph, old: Value, new: Value) -> None:
    for user, arg in graph.users(old):
        if user != new.node:
            graph.set_arg(user, arg, new)
    if len(graph.node(old).types) > 1:
        graph.replace(old, graph.add("identity", new, names=[graph.tensor_name(old)]))
        return
    for arg in range(len(graph.args(old.node))):
        graph.set_arg(old.node, arg, None)
    graph.set_node(old.node, op="identity", attrs={})
    graph.set_arg(old.node, 0, new)


def sweep(graph: Graph, keys: Iterable[int]) -> set[int]:
    """Removes those of ``keys`` that nothing needs, and what only they needed; returns the users of what remains.

    A tensor with many users has most of them before and after: those are left to the next round.
    """
    stack, kept = list(keys), set()
    while stack:
        key = stack.pop()
        if key not in graph.nx:
            continue
        needed = graph.nx.out_degree(key) or graph.node(key).op == "input" or key in graph.bindings
        if needed or visible(graph, key):
            kept.add(key)
            continue
        stack += list(graph.nx.predecessors(key))
        graph.remove(key)
    few = [key for key in kept if key in graph.nx and graph.nx.out_degree(key) <= FEW]
    return {user for key in few for user in graph.nx.successors(key)}


def reclaim_name(graph: Graph, key: int, gone: int, names: tuple[str, ...]) -> None:
    """Gives the node ``key`` the name of the one that it has replaced, once that is gone."""
    if key in graph.nx and gone not in graph.nx and len(names) == len(graph.node(key).names):
        graph.set_node(key, names=names)


def near_users(graph: Graph, keys: Iterable[int], depth: int) -> set[int]:
    """These operations, and those at most ``depth`` steps behind: patterns that reach back here are rooted there."""
    edge = set(keys)
    found = set(edge)
    for _ in range(depth):
        edge = {user for key in edge if graph.nx.out_degree(key) <= FEW for user in graph.nx.successors(key)} - found
        found |= edge
    return found


def same(a: Graph, b: Graph) -> bool:
    """Whether two graphs of one lineage are equal node by node (records are immutable, so identity is enough)."""
    if a.outputs != b.outputs or a.bindings != b.bindings or len(a) != len(b):
        return False
    if any(key not in b.nx or b.node(key) is not a.node(key) for key in a.nx):
        return False
    edges = {(u, v, d["out"], d["arg"]) for u, v, d in a.nx.edges(data=True)}
    return edges == {(u, v, d["out"], d["arg"]) for u, v, d in b.nx.edges(data=True)}
