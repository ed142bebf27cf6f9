"""What a pruning brought, as plain data: by layer, in bytes, time and accuracy; and whether it brought anything."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .prune_layers import rows, timed
from .prune_pace import time_pair
from .quantize_report import _plain

if TYPE_CHECKING:
    from .prune_job import Job

GAIN = 0.97  # of the dense model's time or bytes: less than that is a gain


@dataclass(frozen=True)
class Report:
    """What a pruning brought. Sizes in bytes, ``latency`` in ms, ``us`` of layers in microseconds.

    ``layers``: a row a layer of the dense model, in its order: ``name``, ``op``, ``weight``, ``shape``, ``kept`` (part
    of its non-zero weights), ``left`` (part of its size), ``density`` (part of that which is not zero), ``macs``,
    ``bytes`` (packed), ``us``, ``kernel`` (``dense`` and ``pruned`` of each; ``pruned`` is None where the layer is
    gone) and ``why`` (why it stayed as it was). ``rest_us``: the steps between layers. ``groups``: ``name``, ``kind``,
    ``units``, ``removed`` and ``layers`` of what was taken out together; ``fixed``: ``where`` nothing could be, and
    ``why``.
    ``budget``: ``kind``, ``target`` (in words), ``dense``, ``wanted`` and ``reached`` in the kind's unit (sparsity:
    the part that stays), ``measured``; None for a pattern that says its own.
    ``totals``: ``dense`` and ``pruned`` of ``macs``, ``params`` (that are not zero), ``ram``, ``onnx``, ``weights``,
    ``library``, ``estimate_us``. ``latency``: of both artifacts in the same run, and their ``ratio``, or None.
    ``accuracy``: ``metric``, ``samples``, ``on`` (which), ``dense``, ``pruned``, ``tuned`` (after fine-tuning, or
    None), ``drop`` of the final model. ``training``: what fine-tuning did. ``trials``: the candidates of a measured
    latency target. ``gained``: what became smaller or faster, by name, in parts of the dense model's.
    """

    model: str
    target: str
    machine: str
    settings: dict[str, Any]
    budget: dict[str, Any] | None
    layers: tuple[dict[str, Any], ...]
    rest_us: dict[str, float]
    timed: bool
    groups: tuple[dict[str, Any], ...]
    fixed: tuple[dict[str, str], ...]
    totals: dict[str, dict[str, float]]
    latency: dict[str, Any] | None
    accuracy: dict[str, Any] | None
    training: dict[str, Any] | None
    trials: tuple[dict[str, Any], ...]
    scan: dict[str, Any] | None
    gained: dict[str, float]
    notes: tuple[str, ...]
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """All fields by name, JSON-able."""
        return {name: _plain(getattr(self, name)) for name in self.__dataclass_fields__}


def make_report(job: Job, latency: bool, started: float) -> Report:
    """The report of a finished pruning; times both artifacts in turns if ``latency`` and they run here."""
    here = latency and job.here
    dense, pruned = job.dense, job.final
    forms = [dense.form, pruned.form]
    feed = job.feed
    if here:
        job.tell("timing layers", 0, 1)
        forms = timed(forms, [dense.model, pruned.model], feed)
    measured = time_pair(dense.model, pruned.model, feed, job.tell) if here else None
    if latency and not here:
        job.notes.append(f"nothing was timed: a model for {job.target} does not run here; times are estimates")
    totals = _totals(job)
    gained = _gained(totals, measured)
    return Report(
        model=job.title,
        target=job.target,
        machine=str(dense.model.artifact.block["machine"]["mcpu"]),
        settings=job.said(),
        budget=job.budget(measured),
        layers=tuple(rows(forms[0], forms[1], job.why)),
        rest_us={"dense": round(forms[0].rest_us, 3), "pruned": round(forms[1].rest_us, 3)},
        timed=here,
        groups=tuple(job.groups()),
        fixed=tuple(job.fixed()),
        totals=totals,
        latency=measured,
        accuracy=job.accuracy(),
        training=job.training,
        trials=tuple(job.trials),
        scan=job.scanned,
        gained=gained,
        notes=tuple([*job.notes, *_plainly(totals, measured, gained, bool(job.settings.kinds))]),
        seconds=time.perf_counter() - started,
    )


def _totals(job: Job) -> dict[str, dict[str, float]]:
    from .onnx import to_model

    found: dict[str, dict[str, float]] = {}
    for name, made in (("dense", job.dense), ("pruned", job.final)):
        report = made.model.report
        found[name] = {
            "macs": made.form.macs,
            "params": made.form.nonzeros,
            "ram": report.arena_bytes,
            "onnx": to_model(made.graph).ByteSize(),
            "weights": report.weights_bytes,
            "library": report.artifact_bytes,
            "estimate_us": round(sum(made.form.estimates), 3),
        }
    return found


def _gained(totals: dict[str, dict[str, float]], latency: dict[str, Any] | None) -> dict[str, float]:
    """What is less than ``GAIN`` of the dense model's; a time only where it was measured."""
    was, now = totals["dense"], totals["pruned"]
    shares = {k: now[k] / was[k] for k in ("ram", "onnx", "weights", "library") if was[k]}
    if latency is not None:
        shares["latency"] = latency["ratio"]
    else:
        shares["estimate_us"] = now["estimate_us"] / (was["estimate_us"] or 1.0)
    return {k: round(v, 4) for k, v in shares.items() if v < GAIN}


def _plainly(
    totals: dict[str, dict[str, float]], latency: dict[str, Any] | None, gained: dict[str, float], structure: bool
) -> list[str]:
    """What a reader might take for granted, and did not happen."""
    said = []
    was, now = totals["dense"], totals["pruned"]
    share = now["params"] / (was["params"] or 1.0)
    if not gained:
        return [f"nothing was gained: {1 - share:.0%} of the weights are gone, and neither bytes nor time are"]
    speed = latency["ratio"] if latency is not None else now["estimate_us"] / (was["estimate_us"] or 1.0)
    if speed >= GAIN:
        word = "takes" if latency is not None else "is estimated to take"
        said.append(f"it is not faster: it {word} {speed:.2f}x of the dense model's time")
    if "library" not in gained:
        said.append(f"the library is not smaller: {now['library'] / was['library']:.2f}x of the dense one's bytes")
    if "onnx" not in gained and share < GAIN and not structure:
        said.append("the ONNX file is as large as before, since it keeps zeros as numbers; the library leaves them out")
    return said
