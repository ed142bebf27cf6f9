"""Elementwise functions with numpy's names: operators, mathematics, comparison, choice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...compiler.types import is_float, is_integer
from .promote import as_float, as_tensor, dtype_name, result_dtype, same_type
from .tensor import Tensor
from .trace import current, public


def emit(op: str, *args: Tensor | None, **attrs: Any) -> Tensor:
    """One operation of the op table; its first output."""
    return current().emit(op, args, attrs)[0]


def emit_all(op: str, *args: Tensor | None, **attrs: Any) -> tuple[Tensor, ...]:
    """One operation with all its outputs."""
    return current().emit(op, args, attrs)


# What all of them have in common, so that each docstring can be one line of its own.
_OF_TWO = """

    ``a`` and ``b`` are tensors, weights, arrays or numbers of shapes that broadcast together (numpy's rules), cast to
    their common element type; comparisons and logic give bools. ``NervureError`` names the line where they do not fit.
    """
_OF_ONE = """

    ``x`` is a tensor, weight, array or number of any shape, {types}.
    The result has its shape.
    """

# -- functions of two tensors ------------------------------------------------------------------------------------


def _binary(name: str, op: str, doc: str, on_bool: str | None = None) -> Callable[[Any, Any], Tensor]:
    def function(a: Any, b: Any) -> Tensor:
        x, y = same_type(a, b)
        return emit(on_bool if on_bool and x.dtype == "bool" else op, x, y)

    function.__name__, function.__doc__ = name, doc + _OF_TWO
    return public(function)


add = _binary("add", "add", "a + b (of bools: or).", "logical_or")
subtract = _binary("subtract", "sub", "a - b.")
multiply = _binary("multiply", "mul", "a * b (of bools: and).", "logical_and")
minimum = _binary("minimum", "minimum", "The smaller of two, elementwise.", "logical_and")
maximum = _binary("maximum", "maximum", "The larger of two, elementwise.", "logical_or")
mod = _binary("mod", "mod", "The remainder of a / b with the sign of b, as Python's %.")
fmod = _binary("fmod", "fmod", "The remainder of a / b with the sign of a, as in C.")
bitwise_and = _binary("bitwise_and", "bitwise_and", "a & b (of bools: and).", "logical_and")
bitwise_or = _binary("bitwise_or", "bitwise_or", "a | b (of bools: or).", "logical_or")
bitwise_xor = _binary("bitwise_xor", "bitwise_xor", "a ^ b (of bools: either).", "logical_xor")
left_shift = _binary("left_shift", "left_shift", "a << b.")
right_shift = _binary("right_shift", "right_shift", "a >> b.")
equal = _binary("equal", "equal", "a == b, elementwise.")
less = _binary("less", "less", "a < b, elementwise.")
less_equal = _binary("less_equal", "less_equal", "a <= b, elementwise.")
greater = _binary("greater", "greater", "a > b, elementwise.")
greater_equal = _binary("greater_equal", "greater_equal", "a >= b, elementwise.")


@public
def not_equal(a: Any, b: Any) -> Tensor:
    """a != b, elementwise. ``a`` and ``b`` broadcast together; the result is bool."""
    return emit("logical_not", equal(a, b))


@public
def divide(a: Any, b: Any) -> Tensor:
    """a / b; integers are divided as float32. ``a`` and ``b`` broadcast together."""
    dtype = result_dtype(a, b)
    dtype = dtype if is_float(dtype) else "float32"
    return emit("div", as_tensor(a, dtype), as_tensor(b, dtype))


@public
def floor_divide(a: Any, b: Any) -> Tensor:
    """The next integer below a / b, as Python's //. ``a`` and ``b`` broadcast together; integers stay integers."""
    x, y = same_type(a, b)
    if is_float(x.dtype):
        return emit("floor", emit("div", x, y))
    return emit("div", emit("sub", x, emit("mod", x, y)), y)


@public
def power(a: Any, b: Any) -> Tensor:
    """a to the power b, elementwise. ``a`` and ``b`` broadcast together; a square is computed as a product."""
    if isinstance(b, int | float) and b == 2:
        return square(as_tensor(a, result_dtype(a, b)))
    return emit("pow", *same_type(a, b))


def _logical(name: str, doc: str) -> Callable[[Any, Any], Tensor]:
    def function(a: Any, b: Any) -> Tensor:
        return emit(name, truth(a), truth(b))

    function.__name__, function.__doc__ = name, doc + _OF_TWO
    return public(function)


def truth(x: Any) -> Tensor:
    """``x`` as bools: whether it is not 0."""
    tensor = as_tensor(x)
    return tensor if tensor.dtype == "bool" else as_tensor(tensor, "bool")


logical_and = _logical("logical_and", "a and b.")
logical_or = _logical("logical_or", "a or b.")
logical_xor = _logical("logical_xor", "Either a or b.")


@public
def logical_not(x: Any) -> Tensor:
    """Whether x is 0 (of bools: not x). Any shape; the result is bool."""
    return emit("logical_not", truth(x))


@public
def bitwise_not(x: Any) -> Tensor:
    """~x: every bit of an integer turned over (of bools: not). Any shape."""
    tensor = as_tensor(x)
    return emit("logical_not" if tensor.dtype == "bool" else "bitwise_not", tensor)


# -- functions of one tensor -------------------------------------------------------------------------------------


def _unary(name: str, op: str, doc: str, numbers: bool = False) -> Callable[[Any], Tensor]:
    def function(x: Any) -> Tensor:
        return emit(op, as_tensor(x) if numbers else as_float(x))

    types = "of any number type" if numbers else "of a float type; integers and bools become float32"
    function.__name__, function.__doc__ = name, doc + _OF_ONE.format(types=types)
    return public(function)


negative = _unary("negative", "neg", "-x.", numbers=True)
abs = _unary("abs", "abs", "The absolute value.", numbers=True)
sign = _unary("sign", "sign", "-1, 0 or 1.", numbers=True)
sqrt = _unary("sqrt", "sqrt", "The square root.")
rsqrt = _unary("rsqrt", "rsqrt", "1 / sqrt(x).")
reciprocal = _unary("reciprocal", "reciprocal", "1 / x.")
exp = _unary("exp", "exp", "e to the power x.")
expm1 = _unary("expm1", "expm1", "exp(x) - 1, exact near 0.")
log = _unary("log", "log", "The natural logarithm.")
log1p = _unary("log1p", "log1p", "log(1 + x), exact near 0.")
sin = _unary("sin", "sin", "Sine; radians.")
cos = _unary("cos", "cos", "Cosine; radians.")
tan = _unary("tan", "tan", "Tangent; radians.")
arcsin = _unary("arcsin", "asin", "Inverse sine.")
arccos = _unary("arccos", "acos", "Inverse cosine.")
arctan = _unary("arctan", "atan", "Inverse tangent.")
sinh = _unary("sinh", "sinh", "Hyperbolic sine.")
cosh = _unary("cosh", "cosh", "Hyperbolic cosine.")
tanh = _unary("tanh", "tanh", "Hyperbolic tangent.")
arcsinh = _unary("arcsinh", "asinh", "Inverse hyperbolic sine.")
arccosh = _unary("arccosh", "acosh", "Inverse hyperbolic cosine.")
arctanh = _unary("arctanh", "atanh", "Inverse hyperbolic tangent.")
erf = _unary("erf", "erf", "The error function.")
floor = _unary("floor", "floor", "The next integer below, as a float.")
ceil = _unary("ceil", "ceil", "The next integer above, as a float.")
round = _unary("round", "round", "The nearest integer, halves to the even one, as a float.")
isnan = _unary("isnan", "isnan", "Whether x is NaN.")
isinf = _unary("isinf", "isinf", "Whether x is infinite.")


@public
def square(x: Any) -> Tensor:
    """x * x, of any shape and number type."""
    tensor = as_tensor(x)
    return emit("mul", tensor, tensor)


# -- choice and types --------------------------------------------------------------------------------------------


@public
def where(condition: Any, x: Any, y: Any) -> Tensor:
    """x where the condition holds, else y; the three broadcast."""
    return emit("where", truth(condition), *same_type(x, y))


@public
def clip(x: Any, low: Any = None, high: Any = None) -> Tensor:
    """x bounded to [low, high]. None is no bound; bounds may be tensors."""
    if all(b is None or isinstance(b, int | float) for b in (low, high)):
        tensor = as_tensor(x)
        if is_integer(tensor.dtype) and any(isinstance(b, float) for b in (low, high)):
            tensor = as_tensor(tensor, "float32")
        return emit("clip", tensor, low=low, high=high)
    bounded = as_tensor(x) if low is None else maximum(x, low)
    return bounded if high is None else minimum(bounded, high)


@public
def stop_gradient(x: Any) -> Tensor:
    """x, taken as a constant by the training of what is computed from it. Any shape and type."""
    return emit("stop_gradient", as_tensor(x))


@public
def straight_through(value: Any, through: Any) -> Tensor:
    """``value`` exactly, with the gradient of ``through``: a straight-through estimator (Bengio et al. 2013), or any
    gradient of one's own. The two broadcast. A step that is trained as if it were a sigmoid::

        nv.straight_through(nv.cast(x > 0, "float32"), nv.sigmoid(x))

    Where nothing is differentiated, ``through`` costs nothing.
    """
    return emit("straight_through", *same_type(value, through))


@public
def cast(x: Any, dtype: Any) -> Tensor:
    """x in another element type; floats are truncated to integers."""
    return as_tensor(as_tensor(x), dtype_name(dtype))
