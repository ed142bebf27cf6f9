"""What a graphics processor is like, as data: what templates, the cost model and the image compiler ask about."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Matrix:
    """A tensor-core instruction of one warp: ``d[m, n] += a[m, k] * b[k, n]``.

    ``function`` names the device function of ``runtime/c/cuda/device.h`` that holds it; a lane's registers of 32 bits
    are ``a``, ``b`` and ``d`` many. ``inputs`` and ``sums`` are element types (``tfloat32``: float32 whose low 13 bits
    count for nothing); ``per_cycle`` are multiply-adds that one multiprocessor does in a clock cycle.
    """

    function: str
    inputs: str
    sums: str
    m: int
    n: int
    k: int
    a: int
    b: int
    d: int
    per_cycle: float


@dataclass(frozen=True, slots=True)
class Gpu:
    """One architecture, after Nvidia's "CUDA C++ Programming Guide", table of compute capabilities, and the data
    sheets of the named ``board``, which the cost model has in mind. Bytes, cycles, bytes a second.

    ``images``: compute capabilities (80 for 8.0) that machine code is made for; ``ptx``: one that PTX is made for,
    which drivers translate for what comes later. ``shared`` is what a block may have, ``shared_static`` what it has
    without asking, ``shared_all`` what the blocks of a multiprocessor have together.
    """

    images: tuple[int, ...]
    ptx: int | None
    board: str
    multiprocessors: int
    clock: float
    fma: int  # float32 multiply-adds of a multiprocessor a cycle
    special: int  # exp, reciprocal and so on, likewise
    matrices: tuple[Matrix, ...]
    shared: int
    shared_all: int
    bandwidth: float
    l2: int
    resident: int = 2048  # threads of a multiprocessor
    blocks: int = 32  # of a multiprocessor
    shared_static: int = 48 << 10
    registers: int = 65536  # of a multiprocessor
    registers_most: int = 255  # of a thread
    threads: int = 1024  # of a block
    warp: int = 32
    l2_bandwidth: float = 3.0  # times the memory's
    launch: float = 1.5e-6  # seconds from one kernel of a graph to the next

    def matrix(self, inputs: str) -> Matrix | None:
        """The tensor-core instruction for that type of factors, or None."""
        return next((m for m in self.matrices if m.inputs == inputs), None)

    def runs_on(self, architecture: int) -> bool:
        """Whether a device of that compute capability runs the code: machine code goes on within a major number
        (CUDA C++ Programming Guide, "Binary Compatibility"), PTX on whatever is newer."""
        same = any(n // 10 == architecture // 10 and n <= architecture for n in self.images)
        return same or (self.ptx is not None and self.ptx <= architecture)

    def record(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self) | {"images": list(self.images), "matrices": [asdict(m) for m in self.matrices]}
