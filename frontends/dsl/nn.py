"""Functions that networks are made of: activations, softmax, attention, normalisation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import elementwise as e
from .elementwise import emit
from .promote import as_float, as_tensor
from .reduce import axes_of, sum
from .tensor import Tensor
from .trace import fail, public


def _activation(name: str, doc: str) -> Callable[[Any], Tensor]:
    def function(x: Any) -> Tensor:
        return emit(name, as_float(x))

    function.__name__, function.__doc__ = name, f"{doc} Any shape; integers become float32."
    return public(function)


sigmoid = _activation("sigmoid", "1 / (1 + exp(-x)).")
silu = _activation("silu", "x sigmoid(x), also called swish.")
swish = silu
softplus = _activation("softplus", "log(1 + exp(x)).")
hard_swish = _activation("hard_swish", "x clip(x / 6 + 1/2, 0, 1) (Howard et al. 2019).")
tanh = e.tanh


@public
def relu(x: Any) -> Tensor:
    """max(x, 0), of any shape and number type."""
    return emit("relu", as_tensor(x))


@public
def relu6(x: Any) -> Tensor:
    """x bounded to [0, 6] (Howard et al. 2017). Any shape; integers become float32."""
    return e.clip(as_float(x), 0.0, 6.0)


@public
def leaky_relu(x: Any, negative_slope: float = 0.01) -> Tensor:
    """x above 0, ``negative_slope`` x below (PyTorch's default; Keras's is 0.2)."""
    return emit("leaky_relu", as_float(x), alpha=float(negative_slope))


@public
def elu(x: Any, alpha: float = 1.0) -> Tensor:
    """x above 0, alpha (exp(x) - 1) below (Clevert et al. 2016). Any shape."""
    return emit("elu", as_float(x), alpha=float(alpha))


@public
def selu(x: Any) -> Tensor:
    """ELU scaled so that activations normalise themselves (Klambauer et al. 2017)."""
    return elu(x, 1.6732632423543772) * 1.0507009873554805


@public
def gelu(x: Any, approximate: Any = False) -> Tensor:
    """x times the normal distribution function of x; ``approximate=True`` or ``"tanh"`` by tanh."""
    return emit("gelu", as_float(x), approximate="tanh" if approximate in (True, "tanh") else "none")


@public
def hard_sigmoid(x: Any) -> Tensor:
    """clip(x / 6 + 1/2, 0, 1), as in PyTorch and Keras 3."""
    return emit("hard_sigmoid", as_float(x), alpha=1.0 / 6.0, beta=0.5)


@public
def hard_tanh(x: Any) -> Tensor:
    """x bounded to [-1, 1]. Any shape; integers become float32."""
    return e.clip(as_float(x), -1.0, 1.0)


@public
def softsign(x: Any) -> Tensor:
    """x / (1 + |x|). Any shape; integers become float32."""
    tensor = as_float(x)
    return tensor / (e.abs(tensor) + 1.0)


@public
def mish(x: Any) -> Tensor:
    """x tanh(softplus(x)) (Misra 2020). Any shape; integers become float32."""
    tensor = as_float(x)
    return tensor * e.tanh(softplus(tensor))


@public
def log_sigmoid(x: Any) -> Tensor:
    """log(sigmoid(x)), without overflow. Any shape; integers become float32."""
    return -softplus(-as_float(x))


def _along(op: str, doc: str) -> Callable[..., Tensor]:
    def function(x: Any, axis: int = -1) -> Tensor:
        tensor = as_float(x)
        return emit(op, tensor, axis=axes_of(axis, tensor.ndim)[0])

    function.__name__, function.__doc__ = op, doc
    return public(function)


softmax = _along("softmax", "exp(x) over its sum along an axis.")
log_softmax = _along("log_softmax", "log(softmax(x)) along an axis.")


@public
def attention(q: Any, k: Any, v: Any, mask: Any = None, *, scale: float | None = None, causal: bool = False) -> Tensor:
    """softmax(scale q kT + mask) v for q [..., S, E], k [..., T, E], v [..., T, Ev] (Vaswani et al. 2017).

    ``scale`` is 1/sqrt(E) unless given. A bool mask keeps where it is True; a float mask is added to the scores.
    """
    query, key, value = as_float(q), as_float(k), as_float(v)
    if isinstance(query.shape[-1], str):
        raise fail("attention: the last axis of q has no number yet")
    kept = None if mask is None else as_tensor(mask)
    if kept is not None and kept.dtype != "bool":
        kept = as_tensor(kept, query.dtype)
    factor = query.shape[-1] ** -0.5 if scale is None else float(scale)
    return emit("attention", query, key, value, kept, scale=factor, causal=bool(causal))


def _or_ones(x: Tensor, weight: Any) -> Tensor | None:
    return None if weight is None else as_tensor(weight, x.dtype)


@public
def layer_norm(x: Any, weight: Any = None, bias: Any = None, *, axis: int = -1, eps: float = 1e-5) -> Tensor:
    """x with mean 0 and variance 1 over all axes from ``axis`` on, scaled and shifted (Ba et al. 2016)."""
    tensor = as_float(x)
    (at,) = axes_of(axis, tensor.ndim)
    return emit("layer_norm", tensor, _or_ones(tensor, weight), _or_ones(tensor, bias), axis=at, epsilon=float(eps))


@public
def rms_norm(x: Any, weight: Any = None, *, axis: int = -1, eps: float = 1e-6) -> Tensor:
    """x over its root mean square over all axes from ``axis`` on, scaled (Zhang and Sennrich 2019)."""
    tensor = as_float(x)
    (at,) = axes_of(axis, tensor.ndim)
    return emit("rms_norm", tensor, _or_ones(tensor, weight), axis=at, epsilon=float(eps))


@public
def normalize(x: Any, axis: int = -1, eps: float = 1e-12) -> Tensor:
    """x over its Euclidean length along an axis, as ``torch.nn.functional.normalize``."""
    tensor = as_float(x)
    length = e.sqrt(sum(e.square(tensor), axis, keepdims=True))
    return tensor / e.maximum(length, eps)


@public
def squash(x: Any, axis: int = -1) -> Tensor:
    """x as long as l² / (1 + l²), where l is its length along an axis: short vectors shrink to almost 0, long ones to
    almost 1 (Sabour et al. 2017). The gradient of a vector that is 0 is 0."""
    tensor = as_float(x)
    squares = sum(e.square(tensor), axis, keepdims=True)
    return tensor * (e.sqrt(e.maximum(squares, 1e-24)) / (squares + 1.0))


ACTIVATIONS: dict[str, Callable[[Any], Tensor]] = {
    "relu": relu,
    "relu6": relu6,
    "leaky_relu": leaky_relu,
    "elu": elu,
    "selu": selu,
    "gelu": gelu,
    "sigmoid": sigmoid,
    "hard_sigmoid": hard_sigmoid,
    "tanh": tanh,
    "hard_tanh": hard_tanh,
    "silu": silu,
    "swish": silu,
    "hard_swish": hard_swish,
    "hard_silu": hard_swish,
    "softmax": softmax,
    "log_softmax": log_softmax,
    "softplus": softplus,
    "softsign": softsign,
    "mish": mish,
    "exp": e.exp,
    "exponential": e.exp,
    "linear": as_tensor,
    "identity": as_tensor,
}


def activation(given: Any) -> Callable[[Any], Any] | None:
    """The function of ``activation=``: a name, a function or layer, or None; ``NervureError`` for anything else."""
    if given is None or callable(given):
        return given  # type: ignore[no-any-return]
    name = given.lower() if isinstance(given, str) else None
    if name not in ACTIVATIONS:
        raise fail(
            f"activation {given!r} is unknown", hint=f"use a function or one of: {', '.join(sorted(ACTIVATIONS))}"
        )
    return ACTIVATIONS[name]
