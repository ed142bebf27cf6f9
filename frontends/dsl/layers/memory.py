"""Memories of past samples, as states of the artifact."""

from __future__ import annotations

from typing import Any

from ..elementwise import cast, maximum, minimum, where
from ..index import put, take
from ..promote import as_tensor
from ..random import uniform
from ..shaping import arange
from ..spec import Input
from ..tensor import Tensor
from ..trace import fail
from ..variable import assign
from .base import Layer, method, whole


class Reservoir(Layer):
    """A fair sample of all rows that it was ever given (Vitter 1985, algorithm R): each is in it with the same chance,
    however many come. It is the buffer of experience replay.

    ``rows``: an ``nv.Input`` for each thing that a row has, ``[nv.Input((784,), "uint8"), nv.Input((), "int32")]`` for
    pictures and labels. Called on a batch of each, it remembers what chance chooses and returns how many rows it has
    seen, int32 []. Chances are exact up to 16 million rows. It takes ``capacity`` + 1 rows of memory.
    """

    def __init__(self, capacity: int, rows: Any) -> None:
        self.capacity = whole(capacity, "capacity")
        self.rows = [rows] if isinstance(rows, Input) else list(rows)
        if not self.rows or not all(isinstance(row, Input) for row in self.rows):
            raise fail("rows: expected an nv.Input for each thing that a row has", hint="[nv.Input((784,), 'uint8')]")

    def build(self, shape: Any) -> None:
        self.seen = self.add_weight("seen", (), "zeros", trainable=False, dtype="int32")
        self.kept = [  # one row more than is remembered: what is not chosen goes there
            self.add_weight(f"row_{i}", (self.capacity + 1, *row.shape[1:]), "zeros", trainable=False, dtype=row.dtype)
            for i, row in enumerate(self.rows)
        ]

    def call(self, *batch: Tensor) -> Tensor:
        if len(batch) != len(self.rows):
            raise fail(f"expected {len(self.rows)} tensors, one for each thing of a row, got {len(batch)}")
        count = batch[0].shape[0]
        for held, given in zip(self.kept, batch, strict=True):
            if given.dtype != held.dtype or given.shape != (count, *held.shape[1:]):
                raise fail(f"expected {held.dtype}[{count}, ...] of rows {list(held.shape[1:])}, got {given.type}")
        number = self.seen + arange(count, dtype="int32")
        drawn = cast(uniform((count,)) * as_tensor(number + 1, "float32"), "int32")
        place = minimum(where(number < self.capacity, number, drawn), self.capacity)
        for held, given in zip(self.kept, batch, strict=True):
            assign(held, put(held, place, given))
        return assign(self.seen, self.seen + count)

    def sample(self, count: int) -> tuple[Tensor, ...]:
        """``count`` of the remembered rows, drawn with replacement, as a batch of each; zeros before there are any."""
        return self._sample(count=whole(count, "count"))

    @method
    def _sample(self, count: int) -> tuple[Tensor, ...]:
        held = as_tensor(maximum(minimum(self.seen, self.capacity), 1), "float32")
        drawn = cast(uniform((count,)) * held, "int32")
        return tuple(take(kept, drawn, axis=0) for kept in self.kept)


__all__ = ["Reservoir"]
