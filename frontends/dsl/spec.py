"""``nv.Input``: what a network's parameter is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...compiler.types import Dim, TensorType
from ...errors import NervureError
from .place import user_place
from .promote import dtype_name

BATCH = "batch"  # the dimension that is 1 unless it is bound


class Input:
    """The shape and element type of a network's input.

    ``shape`` is that of one sample, as in Keras: ``nv.Input((784,))`` is a tensor ``[batch, 784]``, and
    ``nv.Input(("time", 40))`` is ``[batch, time, 40]`` with two named dimensions. A shape that starts with
    ``"batch"`` is the whole shape: ``nv.Input(("batch", 784))``. So is ``batch_shape``, whatever it starts with, as
    PyTorch's users write it: ``nv.Input(batch_shape=(1, 3, 224, 224))``. ``batch_size`` fixes the batch. ``None`` is
    a dimension named by its axis (``dim1``; ``batch`` on axis 0). ``nv.Input(())`` is one number for each sample.

    ``dtype``: numpy's name, float32 unless given. ``name``: the input's name, that of the parameter unless given.
    """

    def __init__(
        self,
        shape: Sequence[Any] | int | None = None,
        dtype: Any = "float32",
        *,
        batch_size: int | None = None,
        batch_shape: Sequence[Any] | None = None,
        name: str | None = None,
    ) -> None:
        if (shape is None) == (batch_shape is None):
            raise NervureError("nv.Input needs either shape or batch_shape", where=user_place().full)
        sample = [shape] if isinstance(shape, int | str) else list(shape or ())
        if batch_shape is not None:
            whole = list(batch_shape)
        elif sample and sample[0] == BATCH:
            whole = sample
        else:
            whole = [batch_size if batch_size is not None else BATCH, *sample]
        self.type = TensorType(dtype_name(dtype), tuple(_dim(d, i) for i, d in enumerate(whole)))
        self.name = name

    @property
    def shape(self) -> tuple[Dim, ...]:
        """All axes, the batch included."""
        return self.type.shape

    @property
    def dtype(self) -> str:
        return self.type.dtype

    def bound(self, bindings: Mapping[str, int]) -> TensorType:
        """The type with named dimensions replaced by numbers, where they have one."""
        return self.type.with_shape(tuple(bindings.get(d, d) if isinstance(d, str) else d for d in self.type.shape))

    def __repr__(self) -> str:
        return f"nv.Input(batch_shape={self.shape}, dtype={self.dtype!r})"


def _dim(dim: Any, axis: int) -> Dim:
    if dim is None:
        return BATCH if axis == 0 else f"dim{axis}"
    if isinstance(dim, str) and dim:
        return dim
    if hasattr(dim, "__index__") and not isinstance(dim, bool) and dim >= 0:
        return int(dim)
    raise NervureError(f"nv.Input: a dimension is a size or a name, got {dim!r}", where=user_place().full)
