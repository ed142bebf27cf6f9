"""The faster one wins: layers that integers do not speed up stay in float, unless size was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..compiler.quantize.pace import Pace, paces, read_record, write_record
from ..errors import NervureError
from .quantize_settings import promoted

if TYPE_CHECKING:
    from .quantize import _Job

WISHES = ("speed", "size")


def layer_paces(job: _Job, record: Path | None) -> tuple[Pace, ...]:
    """Both times of each layer: those of the tuning record if there is one, measured for it if there is none yet, else
    by the cost model. A measurement needs the machine itself."""
    state = job.first.quantized.state
    layers = state.base_sites.layers
    if record is not None and record.exists():
        return read_record(record, job.machine, [m.name for m in layers])
    if record is not None and job.target != "host":
        raise NervureError(
            f"layers cannot be timed for {job.target} here",
            hint="tune on the machine itself (target host) and give the record, or leave it to the cost model",
        )
    job.tell("timing layers", 0, 1)
    found = paces(state.base, state.graph, layers, job.machine, measured=record is not None)
    if record is not None:
        write_record(record, job.machine, found)
    return found


def keep_the_faster(job: _Job, record: Path | None) -> None:
    """Leaves in float what integers do not speed up, and says so in the notes.

    Without measured times it must make the whole faster by the cost model, which knows the conversions between.
    """
    found = layer_paces(job, record)
    job.paces = {p.layer: p for p in found}
    slow = sorted(p.layer for p in found if p.slower)
    if not slow:
        return
    before = job.first
    job.found.clear()
    job.settings, kept = promoted(job.settings, dict.fromkeys(slow, "float")), job.settings
    job.measure({}, before.quantized)
    if record is None and job.cost_of(job.found[()]) >= job.cost_of(before):
        job.settings, job.found[()] = kept, before
        return
    job.first = job.found[()]
    job.notes.append(f"integers do not speed up {_named(slow)} ({_times(found, slow)}); optimize=size takes them too")


def _named(layers: Sequence[str]) -> str:
    shown = ", ".join(layers[:3]) + (f" and {len(layers) - 3} more" if len(layers) > 3 else "")
    return f"{len(layers)} layer{'s' if len(layers) > 1 else ''} ({shown}), which stay in float"


def _times(found: Sequence[Pace], slow: Sequence[str]) -> str:
    """``12.1 us in float, 14.0 in integers``, of those layers together."""
    sums = [sum(getattr(p, form) for p in found if p.layer in slow) for form in ("float_us", "integer_us")]
    return f"{sums[0]:.1f} us in float, {sums[1]:.1f} in integers"


def pace_facts(pace: Pace | None) -> dict[str, Any]:
    """The columns of a report's row."""
    return {} if pace is None else {"float_us": round(pace.float_us, 2), "integer_us": round(pace.integer_us, 2)}
