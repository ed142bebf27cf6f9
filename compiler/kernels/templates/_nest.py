"""Loop nests over affine index spaces, shared by templates.

A nest is planned on the compiler's side as plain data: axes that every tensor walks as one are merged, they are ordered
by the output's memory, the innermost is the vector axis, the outermost ones are the tasks. ``walk`` writes the loops.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

Data = dict[str, Any]
TASK_ELEMENTS = 8192  # simple element operations that make a task worth handing out


def merged(extents: Sequence[int], strides: Sequence[Sequence[int]], solo: Collection[int] = ()) -> list[list[int]]:
    """Groups of axes, outer to inner in the memory of ``strides[0]``, each of which every tensor walks as one axis.
    Axes of extent 1 are left out; those in ``solo`` stay alone (their coordinate itself matters)."""
    order = sorted(range(len(extents)), key=lambda a: (-abs(strides[0][a]), a))
    groups: list[list[int]] = []
    for axis in order:
        if extents[axis] == 1:
            continue
        last = groups[-1][-1] if groups else axis
        joins = last != axis and axis not in solo and last not in solo
        if joins and all(s[last] == s[axis] * extents[axis] for s in strides):
            groups[-1].append(axis)
        else:
            groups.append([axis])
    return groups


def nest(
    extents: Sequence[int],
    strides: Sequence[Sequence[int]],
    lanes: int,
    *,
    solo: Collection[int] = (),
    scalar: Collection[int] = (),
    work: float = 1.0,
    parallel: bool = True,
    overlap: bool = True,
) -> Data:
    """The nest over ``extents``; ``strides`` holds the element strides of every tensor along these axes, the output's
    first. An innermost axis in ``scalar`` is walked element by element. ``work`` is the cost of an element against a
    copied one: it decides how many tasks pay."""
    groups = merged(extents, strides, {*solo, *scalar})
    sizes = [math.prod(extents[a] for a in g) for g in groups]
    if groups and groups[-1][-1] in scalar:
        lanes = 1
    outer, tasks, chunk = 0, 1, 0
    enough = max(lanes, TASK_ELEMENTS / work)
    if parallel and len(groups) == 1 and sizes[0] >= 2 * enough:
        chunk = -(-sizes[0] // min(64, int(sizes[0] / enough)))
        chunk += -chunk % lanes
        tasks = -(-sizes[0] // chunk)
    elif parallel and math.prod(sizes) >= 2 * enough:
        while outer < len(groups) - 1 and tasks < 64 and math.prod(sizes[outer:]) >= 2 * enough:
            tasks *= sizes[outer]
            outer += 1
    return {
        "rank": len(extents),
        "groups": groups,
        "sizes": sizes,
        "lanes": lanes,
        "outer": outer,
        "tasks": tasks,
        "chunk": chunk,
        "overlap": overlap,
    }


def pieces(extent: int, lanes: int) -> list[tuple[int, int]]:
    """How the rest of a row (``extent`` below ``lanes``) is covered: ``(start, lanes)``, widest first."""
    found, at = [], 0
    while at < extent:
        width = min(lanes, 1 << ((extent - at).bit_length() - 1))
        found.append((at, width))
        at += width
    return found


def walk(k: Any, plan: Data, task: Any, body: Callable[[list[Any], int], None]) -> None:
    """Calls ``body(coordinates, lanes)`` inside the loops. ``task`` is the task's number (anything if there is one)."""
    chosen: list[Any] = []
    rest = task
    for i in range(plan["outer"]):
        inner = math.prod(plan["sizes"][i + 1 : plan["outer"]])
        chosen.append(rest // inner if inner > 1 else rest)
        rest = rest % inner if inner > 1 else 0
    _descend(k, plan, chosen, task, body)


def _descend(k: Any, plan: Data, chosen: list[Any], task: Any, body: Callable[[list[Any], int], None]) -> None:
    if not plan["groups"]:
        body([(0, 0)] * plan["rank"], 1)
    elif len(chosen) < len(plan["groups"]) - 1:
        with k.loop(plan["sizes"][len(chosen)]) as i:
            _descend(k, plan, [*chosen, i], task, body)
    else:
        _row(k, plan, chosen, task, body)


def _row(k: Any, plan: Data, chosen: list[Any], task: Any, body: Callable[[list[Any], int], None]) -> None:
    size, lanes, chunk = plan["sizes"][-1], plan["lanes"], plan["chunk"]

    def at(base: Any, width: int) -> None:
        coords: list[Any] = [(0, 0)] * plan["rank"]
        for group, index in zip(plan["groups"], [*chosen, None], strict=True):
            # a merged group's last axis carries the flat index: addresses are affine, so that is enough
            coords[group[-1]] = (base, 1 if width > 1 else 0) if index is None else (index, 0)
        body(coords, width)

    full = size // lanes
    if chunk:
        start, vectors = task * chunk, chunk // lanes
        whole = full - (plan["tasks"] - 1) * vectors  # vectors of the last task
        count = vectors if whole == vectors else _least(full - task * vectors, vectors)
        with k.loop(count) as i:
            at(start + i * lanes, lanes)
        with k.when(_equal(task, plan["tasks"] - 1)):
            _rest(full * lanes, plan, at)
        return
    if full:
        with k.loop(full) as i:
            at(i * lanes, lanes)
    _rest(full * lanes, plan, at)


def _least(a: Any, b: int) -> Any:
    from ..tir import minimum

    return minimum(a, b)


def _equal(a: Any, b: int) -> Any:
    from tvm import tirx

    return tirx.EQ(a, b)


def _rest(start: int, plan: Data, at: Callable[[Any, int], None]) -> None:
    """The end of a row. Where it is long enough, a last vector overlaps the one before (same task, same values)."""
    size, lanes = plan["sizes"][-1], plan["lanes"]
    if plan["overlap"] and size >= lanes > 1 and size - start > 1:
        at(size - lanes, lanes)
        return
    for offset, width in pieces(size - start, lanes):
        at(start + offset, width)
