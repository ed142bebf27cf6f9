"""Data parallelism: each rank computes its part of the joined batch, gradients are averaged over an MPI communicator.

Any object with mpi4py's interface serves: ``rank``, ``size``, ``allreduce``, ``bcast``, ``Allreduce`` on numpy arrays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import MissingTool, NervureError


class World:
    """The ranks that train together; ``ALONE`` is one without a communicator."""

    def __init__(self, communicator: Any = None) -> None:
        self.communicator = communicator
        self.rank = int(communicator.rank) if communicator is not None else 0
        self.size = int(communicator.size) if communicator is not None else 1

    def total(self, value: Any) -> Any:
        """The sum of a number over the ranks."""
        return value if self.size == 1 else self.communicator.allreduce(value)

    def first(self, value: Any) -> Any:
        """What the first rank has."""
        return value if self.size == 1 else self.communicator.bcast(value, root=0)

    def mean(self, array: np.ndarray) -> None:
        """Replaces a float array by its mean over the ranks, the same bits on each of them."""
        if self.size > 1:
            self.communicator.Allreduce(_in_place(), array)
            array *= array.dtype.type(1 / self.size)


ALONE = World()


def _in_place() -> Any:
    try:
        from mpi4py import MPI
    except ImportError as error:
        raise MissingTool(
            "training on several ranks needs mpi4py and an MPI library", hint="pip install 'nervure[mpi]'"
        ) from error
    return MPI.IN_PLACE


class Flat:
    """Named float32 arrays that lie in one block, so that one message carries them all."""

    def __init__(self, shapes: Mapping[str, Sequence[int]]) -> None:
        counts = {name: int(np.prod(shape, dtype=np.int64)) for name, shape in shapes.items()}
        places, end = {}, 0
        for name, count in counts.items():
            places[name] = end
            end += -(-count // 16) * 16  # a cache line each
        self.block = np.zeros(max(end, 1), np.float32)
        self.arrays = {n: self.block[places[n] : places[n] + counts[n]].reshape(s) for n, s in shapes.items()}


def check_float32(name: str, dtype: str) -> None:
    if dtype != "float32":
        raise NervureError(f"{name} is {dtype}", why="ranks exchange float32 only")
