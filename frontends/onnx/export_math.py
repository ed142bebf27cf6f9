"""Elementwise operators and reductions, written as ONNX."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ...compiler.ops import OPS
from ...compiler.ops.record import Kind
from ...compiler.types import TensorType, is_float
from .exporter import Call, Writer

Rule = Callable[[Writer, Call], object]
RULES: dict[str, Rule] = {}


def writes(*names: str) -> Callable[[Rule], Rule]:
    def register(rule: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, rule))
        return rule

    return register


def plain(op_type: str) -> Rule:
    """An operator with the same inputs and attributes under ONNX's name."""

    def rule(w: Writer, n: Call) -> None:
        attrs = {k: int(v) if isinstance(v, bool) else v for k, v in n.attrs.items()}
        w.emit(op_type, n.inputs, n.outs, **attrs)

    return rule


for _record in OPS.values():
    if _record.kind is Kind.ELEMENTWISE:
        for _onnx in _record.onnx:
            RULES[_record.name] = plain(_onnx)
RULES.update(identity=plain("Identity"), stop_gradient=plain("Identity"), copy=plain("Identity"), pow=plain("Pow"))
RULES.update(minimum=plain("Min"), maximum=plain("Max"))


def through(rule: Rule, work: Mapping[str, str]) -> Rule:
    """Runs a rule in another element type (``work``: own -> the one to compute in) where ONNX Runtime has no kernel."""

    def wrapped(w: Writer, n: Call) -> None:
        own = n.type().dtype
        if own not in work:
            rule(w, n)
            return
        to = work[own]
        pairs = list(zip(n.inputs, n.types, strict=True))
        inputs = [w.cast(name, to) if name and t and t.dtype == own else name for name, t in pairs]
        types = [t.with_dtype(to) if t and t.dtype == own else t for t in n.types]
        outs = [w.fresh(f"{o}/{to}") if t.dtype == own else o for o, t in zip(n.outs, n.out_types, strict=True)]
        rule(w, replace(n, inputs=inputs, types=types, outs=outs))
        for out, name in zip(outs, n.outs, strict=True):
            if out != name:
                w.cast(out, own, [name])

    return wrapped


_NO_DOUBLE = "tan asin acos atan sinh cosh asinh acosh atanh erf softplus gelu elu leaky_relu hard_sigmoid hard_swish"
for _name in _NO_DOUBLE.split():
    RULES[_name] = through(RULES[_name], {"float64": "float32"})
RULES["neg"] = through(RULES["neg"], dict.fromkeys(("uint8", "uint16", "uint32", "uint64"), "int64"))
RULES["pow"] = through(RULES["pow"], dict.fromkeys(("int8", "int16", "uint8", "uint16", "uint32", "uint64"), "int64"))


@writes("straight_through")
def straight_through(w: Writer, n: Call) -> None:
    if n.type() == n.out_types[0]:
        w.emit("Identity", n.inputs[:1], n.outs)
    else:
        w.emit("Expand", [n.inputs[0], w.const(n.out_types[0].dims)], n.outs)


def steps(*operators: str) -> Rule:
    """A chain of unary ONNX operators."""

    def rule(w: Writer, n: Call) -> None:
        x = n.inputs[0]
        for operator in operators[:-1]:
            x = w.emit(operator, [x])
        w.emit(operators[-1], [x], n.outs)

    return rule


RULES["rsqrt"] = steps("Sqrt", "Reciprocal")


@writes("relu")
def relu(w: Writer, n: Call) -> None:
    if is_float(n.type().dtype):
        w.emit("Relu", n.inputs, n.outs)
    else:
        w.emit("Max", [n.inputs[0], w.like(0, n.type())], n.outs)


@writes("where")
def where(w: Writer, n: Call) -> None:
    choice, x, y = n.inputs
    if n.type(1).dtype != "bool":
        w.emit("Where", n.inputs, n.outs)
    else:
        w.emit("Or", [w.emit("And", [choice, x]), w.emit("And", [w.emit("Not", [choice]), y])], n.outs)


@writes("silu")
def silu(w: Writer, n: Call) -> None:
    w.emit("Mul", [n.inputs[0], w.emit("Sigmoid", n.inputs)], n.outs)


@writes("log1p")
def log1p(w: Writer, n: Call) -> None:
    """log(u) x / (u - 1) with u = 1 + x is exact to a few ulp (Kahan); where u rounds to 1 it is x."""
    x, one = n.inputs[0], w.like(1, n.type())
    u = w.emit("Add", [x, one])
    rest = w.emit("Sub", [u, one])
    ratio = w.emit("Div", [w.emit("Mul", [w.emit("Log", [u]), x]), rest])
    finite = w.emit("IsInf", [_ieee(w, x, n.type())])
    value = w.emit("Where", [w.emit("Equal", [rest, w.like(0, n.type())]), x, ratio])
    w.emit("Where", [finite, x, value], n.outs)


@writes("expm1")
def expm1(w: Writer, n: Call) -> None:
    """(u - 1) x / log(u) with u = exp(x) (Kahan); x where u rounds to 1, -1 where u is 0, u where it is infinite."""
    x, t = n.inputs[0], n.type()
    u = w.emit("Exp", [x])
    rest = w.emit("Sub", [u, w.like(1, t)])
    ratio = w.emit("Div", [w.emit("Mul", [rest, x]), w.emit("Log", [u])])
    value = w.emit("Where", [w.emit("Equal", [rest, w.like(0, t)]), x, ratio])
    far = w.emit("Or", [w.emit("Equal", [rest, w.like(-1, t)]), w.emit("IsInf", [_ieee(w, u, t)])])
    w.emit("Where", [far, rest, value], n.outs)


def _ieee(w: Writer, x: str, t: TensorType) -> str:
    return x if t.dtype in ("float32", "float64") else w.cast(x, "float32")


@writes("clip")
def clip(w: Writer, n: Call) -> None:
    t, limits = n.type(), (n.attrs["low"], n.attrs["high"])
    bounds = ["" if limit is None else w.const(_within(limit, t), t.dtype) for limit in limits]
    w.emit("Clip" if any(bounds) else "Identity", [n.inputs[0], *bounds], n.outs)


def _within(number: Any, t: TensorType) -> Any:
    """A bound that the element type can hold."""
    if is_float(t.dtype) or t.dtype == "bool":
        return number
    limits = np.iinfo(t.dtype)
    return int(min(max(math.ceil(number) if math.isfinite(number) else number, limits.min), limits.max))


@writes("isinf")
def isinf(w: Writer, n: Call) -> None:
    x = _ieee(w, n.inputs[0], n.type())
    w.emit("IsInf", [x], n.outs, detect_positive=int(n.attrs["positive"]), detect_negative=int(n.attrs["negative"]))


@writes("cast")
def cast(w: Writer, n: Call) -> None:
    w.cast(n.inputs[0], n.attrs["to"], n.outs)


@writes("mod")
def mod(w: Writer, n: Call) -> None:
    if not is_float(n.type().dtype):
        w.emit("Mod", n.inputs, n.outs)
        return
    a, b = n.inputs  # fmod has the sign of a: add b where the signs differ
    rest = w.emit("Mod", [a, b], fmod=1)
    zero = w.like(0, n.type())
    differs = w.emit("Xor", [w.emit("Less", [rest, zero]), w.emit("Less", [b, zero])])
    moved = w.emit("And", [differs, w.emit("Not", [w.emit("Equal", [rest, zero])])])
    w.emit("Where", [moved, w.emit("Add", [rest, b]), rest], n.outs)


@writes("fmod")
def fmod(w: Writer, n: Call) -> None:
    w.emit("Mod", n.inputs, n.outs, fmod=1)


@writes("left_shift", "right_shift")
def shift(w: Writer, n: Call) -> None:
    """ONNX shifts unsigned integers only (until opset 28): others go by powers of two."""
    left, dtype = n.op == "left_shift", n.type().dtype
    if dtype.startswith("u"):
        w.emit("BitShift", n.inputs, n.outs, direction="LEFT" if left else "RIGHT")
        return
    wide = [w.cast(v, "int64") for v in n.inputs]
    power = w.emit("Pow", [w.const(2), wide[1]])
    if left:
        result = w.emit("Mul", [wide[0], power])
    else:
        result = w.emit("Div", [w.emit("Sub", [wide[0], w.emit("Mod", [wide[0], power])]), power])
    w.cast(result, dtype, n.outs)


# -- reductions --------------------------------------------------------------------------------------------------------


def reduction(op_type: str) -> Rule:
    def rule(w: Writer, n: Call) -> None:
        keep = int(n.attrs["keepdims"])
        if not n.attrs["axes"]:
            w.emit("Identity", n.inputs, n.outs)
        else:
            w.emit(op_type, [n.inputs[0], w.const(n.attrs["axes"])], n.outs, keepdims=keep)

    return rule


for _kind in ("sum", "mean", "max", "min", "prod"):
    RULES[f"reduce_{_kind}"] = reduction(f"Reduce{_kind.capitalize()}")


@writes("reduce_mean")
def mean(w: Writer, n: Call) -> None:
    """Over all of a picture's places it is GlobalAveragePool, which ONNX Runtime has an integer kernel for."""
    x, places = n.type(), sorted(n.attrs["axes"]) == list(range(2, n.type().rank))
    if places and n.attrs["keepdims"] and x.rank in (3, 4, 5) and x.dtype == "float32":
        w.emit("GlobalAveragePool", n.inputs, n.outs)
    else:
        reduction("ReduceMean")(w, n)


@writes("argmax", "argmin")
def arg_extremum(w: Writer, n: Call) -> None:
    w.emit(
        "ArgMax" if n.op == "argmax" else "ArgMin",
        n.inputs,
        n.outs,
        axis=n.attrs["axis"],
        keepdims=int(n.attrs["keepdims"]),
        select_last_index=int(n.attrs["select_last"]),
    )


@writes("cumsum")
def cumsum(w: Writer, n: Call) -> None:
    flags = {k: int(n.attrs[k]) for k in ("exclusive", "reverse")}
    w.emit("CumSum", [n.inputs[0], w.const(n.attrs["axis"])], n.outs, **flags)


@writes("cumprod")
def cumprod(w: Writer, n: Call) -> None:
    """Doubling steps: after step s an element is the product of the s elements up to it (CumProd came in opset 26)."""
    t, axis = n.type(), n.attrs["axis"] % n.type().rank
    size = t.dims[axis]
    one, at = w.like(1, t), w.const([axis])

    def moved(x: str, by: int) -> str:
        """Shifted along the axis by ``by`` (towards the end, or the start in reverse), ones shifted in."""
        if n.attrs["reverse"]:
            cut, pads = (by, size), [0, by]
        else:
            cut, pads = (0, size - by), [by, 0]
        kept = w.emit("Slice", [x, w.const([cut[0]]), w.const([cut[1]]), at])
        return w.emit("Pad", [kept, w.const(pads), one, at])

    x = moved(n.inputs[0], 1) if n.attrs["exclusive"] and size else n.inputs[0]
    by = 1
    while by < size:
        x = w.emit("Mul", [x, moved(x, by)])
        by *= 2
    w.emit("Identity", [x], n.outs)
