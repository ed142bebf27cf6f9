"""How long a kernel takes on a GPU, estimated from what its description tells: one rule for all device templates.

A roofline with occupancy: multiply-adds at the rate of the blocks that the fullest multiprocessor gets, bytes at the
bandwidth that the threads in flight can ask for, and never less than the longest chain of dependent work. Sources:
CUDA C++ Programming Guide (resources of a multiprocessor); Volkov, "Understanding Latency Hiding on GPUs" (2016) for
bytes in flight. These are estimates: they order plans, and were not measured.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ....targets.gpu import Gpu, Matrix

LATENCY = 600e-9  # seconds from a load of memory to its use
NEAR = 0.4  # of it, where the second-level cache answers
ROUND = 250  # cycles of one turn of a loop of copies, barrier and products that wait for each other
HIDING = 8  # warps of a multiprocessor that keep its units busy
REGISTER_STEP, SHARED_RESERVED = 256, 1024  # registers of a warp, shared bytes of a block: how they are given out


@dataclass(frozen=True)
class Load:
    """All that a kernel does, over all its blocks. Bytes, multiply-adds and so on are totals.

    ``rate`` are multiply-adds of a multiprocessor a cycle (0: those of float32); ``special`` are exponentials and
    their like; ``plain`` other instructions of a thread, which count a multiply-add's time each. ``far`` bytes come
    from or go to memory, ``near`` ones are asked of the second-level cache (those of ``far`` not counted).
    ``in_flight``: bytes that a thread has asked for before it waits. ``chain``: cycles of a block that no
    parallelism shortens.
    """

    blocks: int
    threads: int
    registers: int = 40
    shared: int = 0
    macs: float = 0.0
    rate: float = 0.0
    special: float = 0.0
    plain: float = 0.0
    far: float = 0.0
    near: float = 0.0
    in_flight: float = 16.0
    chain: float = 0.0


def fits(gpu: Gpu, threads: int, registers: int, shared: int) -> bool:
    """Whether such a block can run at all."""
    return threads <= gpu.threads and shared <= gpu.shared and resident(gpu, threads, registers, shared) > 0


def resident(gpu: Gpu, threads: int, registers: int, shared: int) -> int:
    """Blocks that a multiprocessor holds at once (0: none)."""
    warps = -(-threads // gpu.warp)
    per_warp = -(-registers * gpu.warp // REGISTER_STEP) * REGISTER_STEP
    by_shared = gpu.shared_all // (shared + SHARED_RESERVED) if shared else gpu.blocks
    return min(gpu.blocks, gpu.resident // (warps * gpu.warp), gpu.registers // (per_warp * warps), by_shared)


def rate(gpu: Gpu, matrix: Matrix | None) -> float:
    """Multiply-adds of a multiprocessor a cycle, by that instruction or by float32's."""
    return gpu.fma if matrix is None else matrix.per_cycle


def nanoseconds(gpu: Gpu, load: Load) -> float:
    """The estimated time of a kernel in a graph, the launch counted."""
    return gpu.launch * 1e9 + busy(gpu, load) * 1e9


def busy(gpu: Gpu, load: Load) -> float:
    """Seconds of a kernel without its launch."""
    held = max(1, resident(gpu, load.threads, load.registers, load.shared))
    waves = -(-load.blocks // (gpu.multiprocessors * held))
    fullest = -(-load.blocks // gpu.multiprocessors)  # blocks of the multiprocessor that gets the most
    warps = min(held, fullest) * -(-load.threads // gpu.warp)
    hidden = min(1.0, 0.3 + 0.7 * warps / HIDING)
    cycles = load.macs / (load.rate or gpu.fma) + load.plain / gpu.fma + load.special / gpu.special
    compute = max(fullest * cycles / load.blocks / hidden, waves * load.chain) / gpu.clock
    running = min(load.blocks, gpu.multiprocessors * held) * load.threads
    asked = running * load.in_flight
    reach = min(1.0, 2 * load.blocks / gpu.multiprocessors)  # half of the multiprocessors can take all the bandwidth
    far = load.far / min(gpu.bandwidth * reach, asked / LATENCY)
    near = load.near / min(gpu.bandwidth * gpu.l2_bandwidth * reach, asked / (LATENCY * NEAR))
    # products and copies overlap, but for the first and the last of a block
    return max(compute, far + near) + 0.1 * min(compute, far + near) + LATENCY


def streamed(gpu: Gpu, nbytes: float, again: float) -> tuple[float, float]:
    """What ``again`` reads of the same ``nbytes`` ask of memory and of the second-level cache: ``(far, near)``."""
    if nbytes <= gpu.l2 / 2:
        return nbytes, nbytes * max(0.0, again - 1)
    kept = 0.75  # blocks that run at once read the same parts at about the same time
    return nbytes * (1 + (again - 1) * (1 - kept)), nbytes * max(0.0, again - 1) * kept


def fraction_of_peak(gpu: Gpu, load: Load) -> float:
    """Multiply-adds done over those that all multiprocessors could do in the estimated time: an estimate."""
    peak = gpu.multiprocessors * (load.rate or gpu.fma) * gpu.clock
    return load.macs / peak / busy(gpu, load) if load.macs else 0.0


def spread(gpu: Gpu, items: int, threads: int = 256) -> int:
    """Threads of a block so that ``items`` pieces of work reach all multiprocessors: 64 to ``threads``."""
    wished = items / (2 * gpu.multiprocessors)
    return max(64, min(threads, 1 << max(6, math.ceil(math.log2(max(1.0, wished))))))
