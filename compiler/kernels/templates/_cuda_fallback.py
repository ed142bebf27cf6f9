"""Plans for CPUs as a GPU runs them, where no template of its own answers: a thread takes task after task.

What a worker would have for itself, each thread has: the scratch becomes part of the step's, a slice for each thread.
"""

from __future__ import annotations

from dataclasses import replace

from ..spec import Arg, Draft, KernelSpec, Plan

_ALIGN = 256
_THREADS = 4096  # that have scratch of their own, at most
_SCRATCH = 8 << 20  # bytes that all of them have, at most (one slice is always there)


def by_threads(plan: Plan) -> Plan:
    """The plan without scratch of workers. Kernels that had some are told of it as ``thread_scratch``: the
    arguments (numbers), the bytes of a slice, and how many threads there are."""
    if not plan.worker_bytes:
        return plan
    slice_bytes = _aligned(plan.worker_bytes)
    base = _aligned(plan.shared_bytes)
    most = max(1, min(_THREADS, _SCRATCH // slice_bytes))
    phases = [_sliced(d, base, slice_bytes, most) for d in plan.phases]
    threads = max(
        (d.spec.config["thread_scratch"]["threads"] for d in phases if "thread_scratch" in d.spec.config), default=0
    )
    return replace(plan, phases=tuple(phases), shared_bytes=base + threads * slice_bytes, worker_bytes=0)


def _sliced(draft: Draft, base: int, slice_bytes: int, most: int) -> Draft:
    own = [i for i, a in enumerate(draft.args) if a.kind == "worker"]
    if not own:
        return draft
    slices = {"args": own, "bytes": slice_bytes, "threads": min(most, draft.tasks or 1)}
    args = tuple(Arg("shared", 0, base + a.offset) if a.kind == "worker" else a for a in draft.args)
    return replace(
        draft, spec=KernelSpec(draft.spec.template, {**draft.spec.config, "thread_scratch": slices}), args=args
    )


def _aligned(nbytes: int) -> int:
    return -(-nbytes // _ALIGN) * _ALIGN
