"""Where a pointwise body reads its inputs, as affine functions of the output's coordinates."""

from __future__ import annotations

from ...ir import Value
from ...ops import OPS, Kind
from ..spec import Region

Leaf = tuple[int, tuple[int, ...], int]  # region input, element strides along the output's axes, offset
# For each coordinate of a value: (output axis, factor) pairs whose sum it is, and what is added to that.
Walk = tuple[tuple[tuple[tuple[int, int], ...], ...], tuple[int, ...]]


def all_leaves(region: Region) -> list[Leaf]:
    """Where the region's inputs are read for one element of its outputs; each place once, however often it is used."""
    rank = region.outputs[0].type.rank
    own: Walk = (tuple(((a, 1),) for a in range(rank)), (0,) * rank)
    stack = [(value, own) for value in reversed(region.body.outputs)]
    seen: set[tuple[Value, Walk]] = set()
    found: dict[Leaf, None] = {}
    while stack:
        value, walk = stack.pop()
        if (value, walk) in seen:
            continue
        seen.add((value, walk))
        if value.node in region.body.inputs:
            found[_leaf(region, value, walk)] = None
        args = [a for a in region.body.args(value.node) if a is not None]
        stack += [(a, _inward(region, value, a, walk)) for a in reversed(args)]
    return list(found)


def _leaf(region: Region, value: Value, walk: Walk) -> Leaf:
    index = region.body.inputs.index(value.node)
    operand, strides, base = region.inputs[index], [0] * region.outputs[0].type.rank, 0
    for stride, dim, pairs, offset in zip(operand.strides, operand.type.dims, *walk, strict=True):
        base += stride * offset if dim > 1 else 0
        for axis, factor in pairs:
            strides[axis] += stride * factor if dim > 1 else 0
    return index, tuple(strides), base


def _inward(region: Region, value: Value, arg: Value, walk: Walk) -> Walk:
    """Where ``arg`` is read when ``value`` is computed at ``walk``."""
    body, (steps, offsets) = region.body, walk
    node = body.node(value)
    if node.op == "transpose":
        back = [node.attrs["perm"].index(a) for a in range(len(steps))]
        steps, offsets = tuple(steps[b] for b in back), tuple(offsets[b] for b in back)
    elif node.op == "slice":
        rows = list(zip(steps, offsets, node.attrs["starts"], node.attrs["steps"], strict=True))
        steps = tuple(tuple((axis, f * step) for axis, f in pairs) for pairs, _, _, step in rows)
        offsets = tuple(offset * step + start for _, offset, start, step in rows)
    shape, out = body.type(arg).dims, node.types[0].dims
    lead = len(out) - len(shape) if node.op != "transpose" else 0
    steps, offsets = steps[lead:], offsets[lead:]
    if node.op == "expand" or OPS[node.op].kind is Kind.ELEMENTWISE:
        kept = [d == w for d, w in zip(shape, out[lead:], strict=True)]
        steps = tuple(p if keep else () for p, keep in zip(steps, kept, strict=True))
        offsets = tuple(o if keep else 0 for o, keep in zip(offsets, kept, strict=True))
    return steps, offsets
