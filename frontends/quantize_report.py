"""What a quantization cost, as plain data: by layer, at the outputs, in accuracy, bytes and time."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ..compiler.quantize.control import Budget, Outcome, decibels
from .accuracy import agreement, noise
from .quantize_pace import pace_facts

if TYPE_CHECKING:
    from .model import Model
    from .quantize import Measured, _Job

ROUNDS, ROUND_SECONDS = 7, 0.1
POOR, WORST = 20.0, 5  # dB below which a layer is suggested for repair; how many of them


@dataclass(frozen=True)
class Report:
    """What a quantization cost. All sizes in bytes, times in ms, SQNR (signal to quantization noise) in dB.

    ``layers``: a row a layer, in the network's order: ``name``, ``op``, ``format`` (``int8``, ``int16``, ``float``),
    ``why`` (for float), ``sqnr_db`` (of what the quantized network holds there), ``causes`` (shares of the noise that
    it makes by itself, by ``range``, ``rounding`` and ``bias``), ``parts`` (the same in parts of its signal's power),
    ``clip``, ``range``, ``histogram``, ``damage`` (part of the outputs' noise that goes when it alone is restored,
    where that was measured). ``outputs``: ``name`` and ``sqnr_db`` of the artifact's outputs beside the float
    artifact's; ``agreement``: how often the largest class is the same. ``accuracy``: ``metric``, ``samples``,
    ``float``, ``quantized``, ``drop``. ``size``, ``ram``, ``latency``: ``float`` and ``quantized`` of each.
    ``control``: what accuracy control did. ``repair``: ``(option, pattern)`` pairs that would repair the worst layers.
    """

    model: str
    mode: str
    target: str
    machine: str
    samples: int
    compared: int
    settings: dict[str, Any]
    layers: tuple[dict[str, Any], ...]
    outputs: tuple[dict[str, Any], ...]
    agreement: float | None
    accuracy: dict[str, Any] | None
    size: dict[str, dict[str, int]]
    ram: dict[str, int]
    latency: dict[str, Any] | None
    control: dict[str, Any] | None
    repair: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """All fields by name, JSON-able (infinite SQNR, of a result without noise, is None)."""
        return {name: _plain(getattr(self, name)) for name in self.__dataclass_fields__}

    @property
    def ranked(self) -> list[dict[str, Any]]:
        """The quantized layers, the most damaging first: by measured damage, then by SQNR."""
        return rank(self.layers)


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


def rank(layers: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of quantized layers, the most damaging first; where nothing is known of one, it comes last."""
    held = [dict(row) for row in layers if row["format"] != "float"]

    def key(row: Mapping[str, Any]) -> tuple[float, float]:
        damage = round(max(0.0, row.get("damage", 0.0)), 2)  # finer differences are within the measure's own noise
        return -damage, math.inf if row["sqnr_db"] is None else row["sqnr_db"]

    return sorted(held, key=key)


def make_report(
    job: _Job, found: Measured, budget: Budget | None, outcome: Outcome | None, latency: bool, started: float
) -> Report:
    """The report of a finished quantization; times both artifacts if ``latency``."""
    made = found.quantized
    layers = [dict(row) for row in made.rows]
    first = {row["name"]: row for row in job.first.quantized.rows}
    for row in layers:
        row.update(pace_facts(job.paces.get(row["name"])))
        if "float_us" in row and row["format"] == "float" and outcome is None:
            row["why"] = f"integers do not speed it up ({row['integer_us']} us, float {row['float_us']})"
        if outcome is not None and row["name"] in outcome.damage:
            row["damage"] = outcome.damage[row["name"]]
        if outcome is not None and row["name"] in outcome.promoted and row["name"] in first:
            row["was"] = {k: first[row["name"]].get(k) for k in ("format", "sqnr_db", "causes")}
            row["why"] = "accuracy control promoted it"
    names = [p.name for p in found.model.get_outputs()]
    each = noise(found.outputs, job.wanted)
    rows = [{"name": n, "sqnr_db": decibels(v), "noise": v} for n, v in zip(names, each, strict=True)]
    timed = _latency(job, found.model) if latency else None
    if latency and timed is None:
        job.notes.append(f"nothing was timed: a model for {job.target} does not run here")
    return Report(
        model=job.title,
        mode=job.mode,
        target=job.target,
        machine=str(job.plain.artifact.block["machine"]["mcpu"]),
        samples=len(job.samples) if job.given else 0,
        compared=len(job.compared),
        settings=asdict(job.settings),
        layers=tuple(layers),
        outputs=tuple(rows),
        agreement=agreement(found.outputs, job.wanted),
        accuracy=_accuracy(job, found),
        size=_sizes(job, found),
        ram={"float": job.plain.report.arena_bytes, "quantized": found.model.report.arena_bytes},
        latency=timed,
        control=_control(job, budget, outcome),
        repair=_repair(layers, outcome),
        notes=tuple([*job.notes, *made.notes]),
        seconds=time.perf_counter() - started,
    )


def _accuracy(job: _Job, found: Measured) -> dict[str, Any] | None:
    if job.evaluation is None or job.reference is None or found.score.value is None:
        return None
    return {
        "metric": job.evaluation.metric,
        "samples": job.evaluation.samples,
        "float": job.reference,
        "quantized": found.score.value,
        "drop": job.reference - found.score.value,
        "before_control": job.first.score.value,
    }


def _sizes(job: _Job, found: Measured) -> dict[str, dict[str, int]]:
    from .onnx import to_model

    pairs = {"float": (job.graph, job.plain), "quantized": (found.quantized.graph, found.model)}
    return {
        kind: {
            "onnx": to_model(graph).ByteSize(),
            "weights": model.report.weights_bytes,
            "library": model.report.artifact_bytes,
        }
        for kind, (graph, model) in pairs.items()
    }


def _latency(job: _Job, model: Model) -> dict[str, Any] | None:
    """Both artifacts, each in its own process, rounds interleaved; None where they cannot run here."""
    from .accuracy import Artifact
    from .bench import Peer, bench, ratio

    if not Artifact(model).here:
        return None
    peers = [Peer("nervure", m.path, mode="invoke") for m in (job.plain, model)]
    feed = job.compared[0]

    def tell(done: int, total: int) -> None:
        job.tell("timing", done, total)

    plain, ours = bench(peers, feed, rounds=ROUNDS, seconds=ROUND_SECONDS, progress=tell)
    return {
        "float": plain["median_ms"],
        "quantized": ours["median_ms"],
        "speedup": ratio(plain, ours),
        "rounds": {"float": plain["rounds_ms"], "quantized": ours["rounds_ms"]},
    }


def _control(job: _Job, budget: Budget | None, outcome: Outcome | None) -> dict[str, Any] | None:
    if budget is None or outcome is None:
        return None
    return {
        "max_drop": budget.drop,
        "max_noise": budget.noise,
        "met": outcome.met,
        "promoted": dict(sorted(outcome.promoted.items())),
        "trials": [
            {
                "promoted": trial.promoted,
                "sqnr_db": trial.score.sqnr,
                "value": trial.score.value,
                "drop": None
                if trial.score.value is None or job.reference is None
                else job.reference - trial.score.value,
                "holds": trial.holds,
            }
            for trial in outcome.trials
        ],
    }


def _repair(layers: Sequence[Mapping[str, Any]], outcome: Outcome | None) -> tuple[tuple[str, str], ...]:
    """Options for what control did, or would most likely have to do."""
    if outcome is not None and outcome.promoted:
        return tuple((f"--{kind}", name) for name, kind in sorted(outcome.promoted.items()))
    if outcome is not None:
        return ()
    poor = [row for row in rank(layers) if row["sqnr_db"] is not None and row["sqnr_db"] < POOR]
    return tuple(("--float", str(row["name"])) for row in poor[:WORST])
