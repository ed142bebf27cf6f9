"""A compiled network as data: what runs, in which order, on which bytes.

A ``Program`` holds one or more entry points over one block of constants, parameters and states. An ``Entry`` is a list
of steps (one fused operation each); a step is a list of phases; a phase is one kernel called over ``[begin, end)`` of
its tasks by all workers, who meet before the next one if either is ranged. Everything an argument can point at is a
``Ref``. The same Program is rendered as a Linux library, as firmware C or as a CUDA graph; nothing names a target.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .types import TensorType

ALIGN = 64  # bytes; every offset that the planner hands out, unless the machine has its own alignment


def aligned(nbytes: int, align: int = ALIGN) -> int:
    """The next multiple of ``align``."""
    return (nbytes + align - 1) // align * align


@dataclass(frozen=True, slots=True)
class Ref:
    """A byte address: ``base`` plus ``offset``.

    Bases: ``const`` (read-only block), ``param``, ``state`` (blocks of the context), ``derived`` (block of the context
    that ``refresh`` writes), ``input`` and ``output`` (of the entry; ``index`` says which; the caller's buffer, or its
    slot in the arena if the caller gave none), ``region`` (``index`` into ``Program.regions``; 0 is the arena),
    ``worker`` (this worker's own scratch: for the calling thread at ``Phase.scratch``). A caller's buffer is aligned to
    its elements only, all else to the machine's ``align``.
    """

    base: str
    offset: int = 0
    index: int = 0


@dataclass(frozen=True, slots=True)
class Phase:
    """One kernel over ``tasks`` tasks. The C function is ``void kernel(<pointer, ...> [, int32 begin, int32 end])``;
    ``ranged`` says whether it has the last two. A phase that is not ranged runs once, on one worker."""

    kernel: str
    args: tuple[Ref, ...]
    tasks: int = 1
    ranged: bool = False
    scratch: Ref = Ref("region")  # where ``worker`` lies for the calling thread; each further thread has its own


@dataclass(frozen=True, slots=True)
class Step:
    """One fused operation, the unit of reports and of profiles."""

    name: str  # the main output tensor's name
    op: str  # e.g. "conv+add+relu"
    phases: tuple[Phase, ...]
    origin: tuple[str, ...] = ()
    flops: float = 0.0
    bytes_moved: float = 0.0  # logical bytes read and written
    weight_bytes: int = 0
    detail: str = ""  # template and tile, for reports
    estimate: float = 0.0  # nanoseconds on one core, by the template's model
    about: dict[str, Any] = field(default_factory=dict, compare=False)  # what it is in a C programmer's words (titles)


@dataclass(frozen=True, slots=True)
class Port:
    """An input or output of an entry. ``slot`` is its place in the arena, used when the caller gives no buffer.

    ``count`` is the index of the output that says how many rows of a statically bounded output are valid (along
    ``count_axis``), or None.

    ``scale``, of integers that a quantizer made or reads: scale and zero point, ``value = scale * (integer - zero)``.
    """

    name: str
    type: TensorType
    slot: Ref
    count: int | None = None
    count_axis: int = 0
    scale: tuple[float, int] | None = None


@dataclass(frozen=True, slots=True)
class Stored:
    """A ``param`` or ``state`` in its block, with its initial image."""

    name: str
    type: TensorType
    offset: int
    value: np.ndarray


@dataclass(frozen=True, slots=True)
class Buffer:
    """One planned buffer, for reports: bytes at ``offset`` of a region, alive for steps ``first`` to ``last``.

    A tensor, or the scratch of the step that makes the tensor of that name.
    """

    name: str
    region: int
    offset: int
    nbytes: int
    first: int
    last: int
    scratch: bool = False


@dataclass(frozen=True)
class Entry:
    """An entry point: ``infer``, ``train_step``, ``refresh``, ... ``bindings`` names the symbolic dimensions it was
    compiled for (``{"batch": 8}``); entries of one ``function`` differ in them. ``updates_params`` makes derived copies
    stale; ``reads_derived`` asks for fresh ones (``refresh`` itself is never asked). ``flush_denormals`` while it runs:
    a training step's decaying gradients and moments would run into them, which is many times slower."""

    function: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    steps: tuple[Step, ...]
    worker_bytes: int = 0  # scratch of each thread beside the calling one
    bindings: dict[str, int] = field(default_factory=dict)
    region_bytes: tuple[int, ...] = ()  # what this entry needs of each region
    lower_bound: int = 0  # largest live set in logical bytes, inputs and outputs included
    buffers: tuple[Buffer, ...] = ()
    updates_params: bool = False
    reads_derived: bool = True
    flush_denormals: bool = False

    @property
    def name(self) -> str:
        """A C identifier: ``infer`` or ``infer_batch8``."""
        return "_".join([self.function, *(f"{k}{v}" for k, v in sorted(self.bindings.items()))])


@dataclass(frozen=True, slots=True)
class Region:
    """A named memory: the arena, or a fast memory beside it. ``nbytes`` is the most that any entry needs."""

    name: str
    nbytes: int


@dataclass(frozen=True)
class Program:
    """See the module's text. ``const`` is the block of packed weights; ``refresh`` (an entry) rebuilds derived copies
    of params and is called by the runtime after creation, import and training steps, before ``infer``."""

    name: str
    entries: tuple[Entry, ...]
    const: bytes = b""
    params: tuple[Stored, ...] = ()
    states: tuple[Stored, ...] = ()
    regions: tuple[Region, ...] = (Region("arena", 0),)
    derived_bytes: int = 0
    meta: dict[str, Any] = field(default_factory=dict)  # free facts for the artifact's block: source, opset, versions

    def kernels(self) -> list[str]:
        """Symbols of all kernels, sorted."""
        return sorted({p.kernel for e in self.entries for s in e.steps for p in s.phases})

    def arena_bytes(self, entry: Entry, threads: int = 1) -> int:
        """Everything a run of ``entry`` needs with that many workers: all regions (input and output slots lie in them)
        and the workers' scratch."""
        return sum(entry.region_bytes) + max(threads - 1, 0) * entry.worker_bytes
