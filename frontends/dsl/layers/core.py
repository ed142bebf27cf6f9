"""Dense, embedding, and layers that move or join tensors. Arguments and defaults are Keras's unless said otherwise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from .. import nn
from .. import shaping as s
from ..elementwise import add, emit, maximum, minimum, multiply, subtract
from ..promote import as_tensor, dtype_name
from ..tensor import Tensor
from ..trace import fail
from .base import Layer, activated, whole


class Dense(Layer):
    """``activation(x @ weight + bias)`` over the last axis.

    ``weight`` is [inputs, units] (Keras; PyTorch's Linear holds the transpose), Glorot-uniform; ``bias`` [units], 0.
    """

    ALIASES: ClassVar = {"bias": "use_bias", "out_features": "units"}

    def __init__(
        self,
        units: int,
        activation: Any = None,
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
    ) -> None:
        self.units = whole(units, "units")
        self.activation = nn.activation(activation)
        self.use_bias = use_bias
        self.kernel_initializer, self.bias_initializer = kernel_initializer, bias_initializer

    def build(self, shape: Any) -> None:
        if not shape:
            raise fail("expected an input with at least one axis, got a single number")
        self.weight = self.add_weight("weight", (shape[-1], self.units), self.kernel_initializer)
        self.bias = self.add_weight("bias", (self.units,), self.bias_initializer) if self.use_bias else None

    def call(self, x: Tensor) -> Tensor:
        if not x.ndim or x.shape[-1] != self.weight.shape[0]:
            raise fail(f"expected {self.weight.shape[0]} features on the last axis, got {list(x.shape)}")
        y = emit("matmul", x, as_tensor(self.weight, x.dtype))
        if self.bias is not None:
            y = emit("add", y, as_tensor(self.bias, x.dtype))
        return activated(self.activation, y)


class Embedding(Layer):
    """Rows of ``weight`` [input_dim, output_dim] by integer index; uniform in [-0.05, 0.05] (Keras)."""

    ALIASES: ClassVar = {
        "num_embeddings": "input_dim",
        "embedding_dim": "output_dim",
        "embeddings_regularizer": "kernel_regularizer",
    }
    input_dtype = "int32"

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        embeddings_initializer: Any = "uniform",
        input_length: int | None = None,
    ) -> None:
        self.input_dim, self.output_dim = whole(input_dim, "input_dim"), whole(output_dim, "output_dim")
        self.embeddings_initializer = embeddings_initializer
        if input_length is not None:
            self._configure({"input_shape": (input_length,)})

    def build(self, shape: Any) -> None:
        self.dtype = self.dtype or "float32"
        self.weight = self.add_weight("weight", (self.input_dim, self.output_dim), self.embeddings_initializer)

    def call(self, x: Tensor) -> Tensor:
        if not x.dtype.startswith(("int", "uint")):
            raise fail(f"expected integer indices, got {x.dtype}", hint='give the input dtype="int32"')
        index = x if x.dtype in ("int32", "int64") else as_tensor(x, "int64")
        return emit("gather", as_tensor(self.weight), index, axis=0)


class Identity(Layer):
    """x itself, of any shape: a name for a place in a network."""

    def call(self, x: Tensor) -> Tensor:
        return x


class Flatten(Layer):
    """All axes but the batch as one (Keras and PyTorch)."""

    ALIASES: ClassVar = {"start_dim": "start"}

    def __init__(self, start: int = 1) -> None:
        self.start = start

    def call(self, x: Tensor) -> Tensor:
        return s.flatten(x, self.start) if x.ndim > 1 else s.expand_dims(x, -1)


class Reshape(Layer):
    """The axes behind the batch under another shape (Keras); one size may be -1."""

    def __init__(self, *target_shape: Any) -> None:
        self.target_shape = s.sizes(target_shape)

    def call(self, x: Tensor) -> Tensor:
        return s.reshape(x, (x.shape[0], *self.target_shape))


class Permute(Layer):
    """The axes behind the batch in another order, counted from 1 (Keras)."""

    def __init__(self, *dims: Any) -> None:
        self.dims = s.sizes(dims)

    def call(self, x: Tensor) -> Tensor:
        if sorted(self.dims) != list(range(1, x.ndim)):
            raise fail(f"dims: expected an order of the axes 1 to {x.ndim - 1}, got {self.dims}")
        return s.transpose(x, (0, *self.dims))


class RepeatVector(Layer):
    """[batch, features] as [batch, n, features] (Keras)."""

    def __init__(self, n: int) -> None:
        self.n = whole(n, "n")

    def call(self, x: Tensor) -> Tensor:
        return s.repeat(s.expand_dims(x, 1), self.n, 1)


class Rescaling(Layer):
    """``x * scale + offset``, of any element type, as float32 (Keras)."""

    def __init__(self, scale: float, offset: float = 0.0) -> None:
        self.scale, self.offset = scale, offset

    def call(self, x: Tensor) -> Tensor:
        return as_tensor(x, "float32") * self.scale + self.offset


class Cast(Layer):
    """x in another element type ``dtype``; floats are truncated to integers. Any shape."""

    def __init__(self, dtype: Any) -> None:
        self.to = dtype_name(dtype)

    def call(self, x: Tensor) -> Tensor:
        return as_tensor(x, self.to)


class Lambda(Layer):
    """Any function over symbolic tensors as a layer."""

    def __init__(self, function: Callable[..., Any]) -> None:
        if not callable(function):
            raise fail(f"expected a function, got {function!r}")
        self.function = function
        title = getattr(function, "__name__", "lambda")
        if self.name is None and title.isidentifier():
            self.name = title

    def call(self, *inputs: Any, **options: Any) -> Any:
        return self.function(*inputs, **options)


# -- joining -----------------------------------------------------------------------------------------------------------


class Merge(Layer):
    """Joins tensors given as one list (Keras) or one by one; the base of ``Add``, ``Multiply``, ..."""

    def join(self, a: Any, b: Any) -> Tensor:
        """Two tensors into one."""
        raise NotImplementedError

    def call(self, *xs: Any) -> Tensor:
        tensors = list(xs[0]) if len(xs) == 1 and isinstance(xs[0], list | tuple) else list(xs)
        if len(tensors) < 2:
            raise fail(f"expected at least two tensors, got {len(tensors)}", hint="call it on a list: Add()([a, b])")
        return self.finish(tensors)

    def finish(self, tensors: Sequence[Any]) -> Tensor:
        result = tensors[0]
        for tensor in tensors[1:]:
            result = self.join(result, tensor)
        return as_tensor(result)


class Add(Merge):
    """The sum of tensors that broadcast together."""

    def join(self, a: Any, b: Any) -> Tensor:
        return add(a, b)


class Subtract(Merge):
    """The first tensor less the second; the two broadcast together."""

    def join(self, a: Any, b: Any) -> Tensor:
        return subtract(a, b)


class Multiply(Merge):
    """The product of tensors that broadcast together."""

    def join(self, a: Any, b: Any) -> Tensor:
        return multiply(a, b)


class Maximum(Merge):
    """The largest of tensors that broadcast together, elementwise."""

    def join(self, a: Any, b: Any) -> Tensor:
        return maximum(a, b)


class Minimum(Merge):
    """The smallest of tensors that broadcast together, elementwise."""

    def join(self, a: Any, b: Any) -> Tensor:
        return minimum(a, b)


class Average(Add):
    """The mean of tensors that broadcast together, elementwise."""

    def finish(self, tensors: Sequence[Any]) -> Tensor:
        return super().finish(tensors) / len(tensors)


class Concat(Merge):
    """Tensors one after another along ``axis``, the last unless given (Keras; channels are axis 1 here)."""

    ALIASES: ClassVar = {"dim": "axis"}

    def __init__(self, axis: int = -1) -> None:
        self.axis = axis

    def finish(self, tensors: Sequence[Any]) -> Tensor:
        return s.concat(list(tensors), self.axis)


class Dot(Layer):
    """The product of two [batch, features] tensors, one number for each sample, or of matrices (Keras, axes=-1)."""

    def __init__(self, axes: int = -1, normalize: bool = False) -> None:
        if axes not in (-1, 1):
            raise fail(f"axes: expected 1 or -1, got {axes!r}")
        self.normalize = normalize

    def call(self, *xs: Any) -> Tensor:
        a, b = xs[0] if len(xs) == 1 else xs
        if a.ndim != 2 or b.ndim != 2:
            raise fail(f"expected two tensors [batch, features], got {list(a.shape)} and {list(b.shape)}")
        if self.normalize:
            a, b = nn.normalize(a), nn.normalize(b)
        product = multiply(a, b)
        return emit("reduce_sum", product, axes=(1,), keepdims=True)


__all__ = [
    "Add",
    "Average",
    "Cast",
    "Concat",
    "Dense",
    "Dot",
    "Embedding",
    "Flatten",
    "Identity",
    "Lambda",
    "Maximum",
    "Merge",
    "Minimum",
    "Multiply",
    "Permute",
    "RepeatVector",
    "Rescaling",
    "Reshape",
    "Subtract",
]
