"""Where a pointwise body reads its inputs, as affine functions of the output's coordinates."""

from __future__ import annotations

from ...ir import Value
from ...ops import OPS, Kind
from ..spec import Region

Leaf = tuple[int, tuple[int, ...], int]  # region input, element strides along the output's axes, offset


def leaves(region: Region, value: Value, steps: list[list[tuple[int, int]]], offsets: list[int]) -> list[Leaf]:
    """Where each region input is read for ``value``. Coordinate ``a`` of the value is ``offsets[a]`` plus the sum of
    ``factor * output coordinate`` over the pairs in ``steps[a]``."""
    body = region.body
    node = body.node(value)
    if value.node in body.inputs:
        index = body.inputs.index(value.node)
        operand, found, base = region.inputs[index], [0] * region.outputs[0].type.rank, 0
        for stride, dim, pairs, offset in zip(operand.strides, operand.type.dims, steps, offsets, strict=True):
            base += stride * offset if dim > 1 else 0
            for axis, factor in pairs:
                found[axis] += stride * factor if dim > 1 else 0
        return [(index, tuple(found), base)]
    result = []
    for arg in body.args(value.node):
        if arg is None:
            continue
        inner, shifted = steps, offsets
        if node.op == "transpose":
            back = [node.attrs["perm"].index(a) for a in range(len(steps))]
            inner, shifted = [steps[b] for b in back], [offsets[b] for b in back]
        elif node.op == "slice":
            rows = list(zip(steps, offsets, node.attrs["starts"], node.attrs["steps"], strict=True))
            inner = [[(axis, f * step) for axis, f in pairs] for pairs, _, _, step in rows]
            shifted = [offset * step + start for _, offset, start, step in rows]
        shape, out = body.type(arg).dims, node.types[0].dims
        lead = len(out) - len(shape) if node.op != "transpose" else 0
        wide = out if node.op == "expand" or OPS[node.op].kind is Kind.ELEMENTWISE else None
        inner, shifted = inner[lead:], shifted[lead:]
        if wide is not None:
            kept = [d == w for d, w in zip(shape, wide[lead:], strict=True)]
            inner = [p if keep else [] for p, keep in zip(inner, kept, strict=True)]
            shifted = [o if keep else 0 for o, keep in zip(shifted, kept, strict=True)]
        result += leaves(region, arg, inner, shifted)
    return result


def all_leaves(region: Region) -> list[Leaf]:
    rank = region.outputs[0].type.rank
    return [
        leaf
        for value in region.body.outputs
        for leaf in leaves(region, value, [[(a, 1)] for a in range(rank)], [0] * rank)
    ]
