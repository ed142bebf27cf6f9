"""Tensors of bounded length: NonZero and NonMaxSuppression give a fixed number of rows and a count of the valid ones.

``Extents`` remembers, for each such tensor, which axis is bounded and which scalar holds its count, and carries that
through operators that keep the axis. An operator that would mix valid rows with padding is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ...compiler.ir import Value
from .context import Context, OnnxNode, Unsupported

Axes = dict[int, Value]  # axis -> int64 scalar with its number of valid entries


class Extents:
    def __init__(self, context: Context) -> None:
        self.context = context
        self._known: dict[Value, Axes] = {}

    def of(self, value: Value) -> Axes:
        return self._known.get(value, {})

    def set(self, value: Value, axes: Axes) -> None:
        if axes:
            self._known[value] = axes

    def carry(self, call: OnnxNode, values: Sequence[Value]) -> None:
        """Gives the node's outputs the bounded axes of its inputs; ``Unsupported`` where that has no meaning."""
        if call.op_type in SOURCES:
            self._known.update({v: axes for v, axes in SOURCES[call.op_type](self.context, values).items() if axes})
            return
        if not any(v is not None and self.of(v) for v in call.inputs):
            return
        rule = CARRY.get(call.op_type)
        if rule is None:
            raise Unsupported(
                "the length of its input is only known at run time",
                "after NonZero or NonMaxSuppression: Gather, Slice, Transpose, Squeeze, Cast and arithmetic",
            )
        axes = rule(self, call, values[0])
        for value in values:
            self.set(value, axes)


def _elementwise(extents: Extents, call: OnnxNode, out: Value) -> Axes:
    context, axes = extents.context, {}
    rank = context.rank(out)
    for value in call.inputs:
        if value is not None:
            axes.update({axis + rank - context.rank(value): count for axis, count in extents.of(value).items()})
    return axes


def _transpose(extents: Extents, call: OnnxNode, out: Value) -> Axes:
    x = call.input(0)
    perm = call.attr("perm", tuple(reversed(range(extents.context.rank(x)))))
    return {perm.index(axis): count for axis, count in extents.of(x).items()}


def _gather(extents: Extents, call: OnnxNode, out: Value) -> Axes:
    context, (x, indices) = extents.context, (call.input(0), call.input(1))
    axis = context.axis(call.attr("axis", 0), context.rank(x))
    width = context.rank(indices)
    found = {axis + i: count for i, count in extents.of(indices).items()}
    for at, count in extents.of(x).items():
        if at == axis:
            raise Unsupported("it picks from rows whose number is only known at run time")
        found[at if at < axis else at + width - 1] = count
    return found


def _gather_nd(extents: Extents, call: OnnxNode, out: Value) -> Axes:
    if extents.of(call.input(0)):
        raise Unsupported("it picks from rows whose number is only known at run time")
    return dict(extents.of(call.input(1)))


def _same_axes(extents: Extents, call: OnnxNode, out: Value) -> Axes:
    """Axes keep their place (Slice, Split, Concat, Softmax along others ...): the bounded ones must keep their size."""
    context, found = extents.context, {}
    for value in call.inputs:
        if value is None:
            continue
        for axis, count in extents.of(value).items():
            if axis >= context.rank(out) or context.shape(out)[axis] != context.shape(value)[axis]:
                raise Unsupported("it cuts or joins rows whose number is only known at run time")
            found[axis] = count
    return found


def _reshaped(extents: Extents, call: OnnxNode, out: Value) -> Axes:
    """Squeeze, Unsqueeze, Flatten, Reshape: the bounded axis must survive with all before it in the same product."""
    context, x = extents.context, call.input(0)
    before, after = context.shape(x), context.shape(out)
    found: Axes = {}
    for axis, count in extents.of(x).items():
        lead = _product(before[:axis])
        places = [i for i, d in enumerate(after) if d == before[axis] and _product(after[:i]) == lead]
        if not places:
            raise Unsupported("it folds rows whose number is only known at run time into another axis")
        found[places[0]] = count
    return found


def _product(dims: Sequence[int]) -> int:
    total = 1
    for d in dims:
        total *= d
    return total


_ELEMENTWISE = [
    "Abs",
    "Neg",
    "Sqrt",
    "Reciprocal",
    "Exp",
    "Log",
    "Sin",
    "Cos",
    "Tan",
    "Erf",
    "Sigmoid",
    "Relu",
    "Floor",
    "Ceil",
    "Round",
    "Sign",
    "Not",
    "Cast",
    "Identity",
    "Tanh",
    "Add",
    "Sub",
    "Mul",
    "Div",
    "Pow",
    "Min",
    "Max",
    "Mod",
    "And",
    "Or",
    "Xor",
    "Equal",
    "Less",
    "LessOrEqual",
    "Greater",
    "GreaterOrEqual",
    "Where",
    "Clip",
    "LeakyRelu",
    "Gelu",
    "Elu",
    "Softplus",
    "IsNaN",
    "IsInf",
    "BitwiseAnd",
    "BitwiseOr",
    "BitwiseXor",
    "BitwiseNot",
    "CastLike",
    "Dropout",
    "HardSigmoid",
    "HardSwish",
]

CARRY: dict[str, Callable[[Extents, OnnxNode, Value], Axes]] = {
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
    **dict.fromkeys(("Slice", "Split", "Concat", "GatherElements"), _same_axes),
    **dict.fromkeys(("Squeeze", "Unsqueeze", "Flatten", "Reshape"), _reshaped),
    "Transpose": _transpose,
    "Gather": _gather,
    "GatherND": _gather_nd,
}


def _counted(context: Context, axis: int, count: Value) -> Axes:
    return {axis: count} if context.array(count) is None else {}


# Operators whose rules return (padded result, count): the count is kept here and not handed on as an output.
SOURCES: dict[str, Callable[[Context, Sequence[Value]], dict[Value, Axes]]] = {
    "NonZero": lambda context, values: {values[0]: _counted(context, 1, values[1])},
    "NonMaxSuppression": lambda context, values: {values[0]: _counted(context, 0, values[1])},
}
