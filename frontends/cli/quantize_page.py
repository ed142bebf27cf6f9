"""``quantize --report``: one self-contained page. Geometry is computed here, ``quantize.html.j2`` draws it.

The page has no script and its policy allows none; names from a model are escaped by Jinja.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ...errors import printable
from .console import size
from .page import clean, environment, shorten

NOISE_WIDTH, NOISE_TOP = 220.0, 60.0  # the bar of a layer: as long as its SQNR lies below so many dB
HIST_WIDTH, HIST_HEIGHT = 240.0, 44.0
PAIR_WIDTH = 420.0
TRIAL_HEIGHT, TRIAL_WIDTH = 120.0, 26.0
CAUSES = ("range", "rounding", "bias")
WORST = 6


def render(report: Any, command: str | None) -> str:
    """The page as text. ``command``: what does the same again, or would repair the worst layers."""
    facts = clean(report.as_dict())
    layers = [_layer(row) for row in facts["layers"]]
    ranked = [_layer(clean(row)) for row in report.ranked]
    return (
        environment(db=decibels, number=number)
        .get_template("quantize.html.j2")
        .render(
            f=facts,
            layers=layers,
            worst=[r for r in ranked if r["sqnr_db"] is not None or r["damage"] is not None][:WORST],
            pairs=_pairs(facts),
            trials=_trials(facts["control"]),
            damage={r["name"]: r["damage"] for r in layers},
            tiles=_tiles(facts),
            causes=CAUSES,
            has_causes=any(r["parts"] for r in layers),
            command=None if command is None else printable(command, 4000),
            settings={k: v for k, v in facts["settings"].items() if v not in (None, [], "")},
        )
    )


def decibels(value: float | None) -> str:
    """``23.4 dB``; None is a result without any noise."""
    return "exact" if value is None else f"{value:.1f} dB"


def number(value: float) -> str:
    """Three significant digits."""
    return f"{value:.3g}"


def score(value: float, metric: str) -> str:
    """An accuracy in percent, any other score as a number."""
    return f"{100 * value:.2f}%" if metric == "accuracy" else f"{value:.4g}"


def _tiles(facts: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(figure, what it is, how good: good, fair, bad or nothing)."""
    made: list[tuple[str, str, str]] = []
    accuracy = facts["accuracy"]
    if accuracy:
        drop = accuracy["drop"]
        grade = "good" if drop <= 0.003 else "fair" if drop <= 0.01 else "bad"
        plain, ours = (score(accuracy[k], accuracy["metric"]) for k in ("float", "quantized"))
        made.append((ours, f"{accuracy['metric']}, float {plain}", ""))
        made.append((f"{100 * drop:+.2f} points", "drop", grade))
    worst = min(facts["outputs"], key=lambda o: math.inf if o["sqnr_db"] is None else o["sqnr_db"], default=None)
    if worst is not None:
        db = worst["sqnr_db"]
        grade = "good" if db is None or db >= 20 else "fair" if db >= 12 else "bad"
        made.append((decibels(db), f"SQNR of output {shorten(worst['name'], 20)}", grade))
    if facts["agreement"] is not None:
        made.append((f"{facts['agreement']:.1%}", f"same class as float, {facts['compared']} samples", ""))
    plain, ours = facts["size"]["float"], facts["size"]["quantized"]
    made.append((f"{ours['onnx'] / max(1, plain['onnx']):.2f}x", f"of the ONNX file, {size(ours['onnx'])}", ""))
    ram = facts["ram"]
    made.append((f"{ram['quantized'] / max(1, ram['float']):.2f}x", f"of the arena, {size(ram['quantized'])}", ""))
    if facts["latency"]:
        speed = facts["latency"]["speedup"]
        grade = "good" if speed >= 1.2 else "fair" if speed >= 1 else "bad"
        made.append((f"{speed:.2f}x", "as fast as float", grade))
    return made


def _layer(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the table with its bar and its histogram."""
    db = row["sqnr_db"]
    length = 0.0 if db is None else NOISE_WIDTH * min(1.0, max(0.02, (NOISE_TOP - db) / NOISE_TOP))
    parts, x = [], 0.0
    shares = row["causes"] or ({"noise": 1.0} if db is not None else {})
    total = sum(shares.values()) or 1.0
    for name in [n for n in (*CAUSES, "noise") if shares.get(n)]:
        width = length * shares[name] / total
        parts.append({"cause": name, "x": x, "w": width, "share": shares[name] / total})
        x += width
    return {
        **{k: row.get(k) for k in ("name", "op", "format", "why", "tensor", "clip", "range", "weights", "was")},
        "damage": None if row.get("damage") is None else max(0.0, row["damage"]),
        "sqnr_db": db,
        "parts": parts,
        "grade": "" if db is None else "good" if db >= 20 else "fair" if db >= 10 else "bad",
        "cause": cause(row),
        "histogram": _histogram(row),
    }


def cause(row: Mapping[str, Any]) -> str:
    """What most of a layer's own noise comes from; rounding is that of weights or of activations."""
    if not row["causes"]:
        return ""
    name = max(CAUSES, key=lambda k: row["causes"].get(k, 0.0))
    parts = row.get("parts") or {}
    if name != "rounding" or "weights" not in parts:
        return name
    return f"rounding of {max(('weights', 'activations'), key=lambda k: parts[k])}"


def _histogram(row: Mapping[str, Any]) -> dict[str, Any] | None:
    """Bars (height by the logarithm of the count) and the places of the clip; None where there is no histogram."""
    held = row.get("histogram")
    if not held or not any(held["counts"]):
        return None
    low, high, counts = held["low"], held["high"], held["counts"]
    clip = row.get("clip") or [low, high]
    left, right = min(low, clip[0]), max(high, clip[1])
    scale = HIST_WIDTH / (right - left)
    bar = (high - low) / len(counts)
    top = math.log1p(max(counts))
    bars = [
        {"x": (low + i * bar - left) * scale, "h": HIST_HEIGHT * math.log1p(c) / top} for i, c in enumerate(counts) if c
    ]
    outside = sum(c for i, c in enumerate(counts) if not clip[0] <= low + (i + 0.5) * bar <= clip[1])
    return {
        "bars": bars,
        "w": max(0.6, bar * scale - 0.4),
        "clip": [(c - left) * scale for c in clip],
        "zero": -left * scale if left < 0 < right else None,
        "low": left,
        "high": right,
        "outside": outside / sum(counts),
    }


def _pairs(facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Before and after, each pair on its own scale."""
    plain, ours = facts["size"]["float"], facts["size"]["quantized"]
    rows: list[tuple[str, float, float, str, str]] = [
        (kind, plain[key], ours[key], size(plain[key]), size(ours[key]))
        for kind, key in (("ONNX file", "onnx"), ("weights", "weights"), ("library", "library"))
    ]
    ram = facts["ram"]
    rows.append(("RAM (arena)", ram["float"], ram["quantized"], size(ram["float"]), size(ram["quantized"])))
    if facts["latency"]:
        t = facts["latency"]
        rows.append(("latency", t["float"], t["quantized"], _ms(t["float"]), _ms(t["quantized"])))
    accuracy = facts["accuracy"]
    if accuracy and accuracy["float"] > 0 and accuracy["quantized"] >= 0:
        values = accuracy["float"], accuracy["quantized"]
        rows.append((accuracy["metric"], *values, *(score(v, accuracy["metric"]) for v in values)))
    return [
        {
            "name": name,
            "float": {"w": PAIR_WIDTH * a / (max(a, b) or 1), "text": said_a},
            "quantized": {"w": PAIR_WIDTH * b / (max(a, b) or 1), "text": said_b},
            "ratio": b / a if a else None,
        }
        for name, a, b, said_a, said_b in rows
    ]


def _ms(value: float) -> str:
    return f"{value * 1e3:.1f} µs" if value < 1 else f"{value:.2f} ms"


def _trials(control: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What accuracy control tried, in order: bars of the drop, or of the noise, with the budget as a line."""
    if not control or len(control["trials"]) < 2:
        return None
    by_drop = control["max_drop"] is not None
    limit = control["max_drop"] if by_drop else control["max_noise"]
    values = [t["drop"] if by_drop else _noise(t["sqnr_db"]) for t in control["trials"]]
    top = max([v for v in values if v is not None] + [limit, 1e-9])
    low = min([v for v in values if v is not None] + [0.0])
    scale = TRIAL_HEIGHT / (top - low)
    bars = [
        {
            "x": i * TRIAL_WIDTH,
            "y": (top - max(v, 0.0)) * scale,
            "h": max(1.0, abs(v) * scale),
            "holds": t["holds"],
            "text": _trial(t, v, by_drop),
        }
        for i, (t, v) in enumerate(zip(control["trials"], values, strict=True))
        if v is not None
    ]
    return {
        "bars": bars,
        "width": max(240.0, len(values) * TRIAL_WIDTH),
        "limit": (top - limit) * scale,
        "zero": top * scale,
        "what": "drop" if by_drop else "noise",
        "limit_text": f"budget {100 * limit:.3g}%",
        "count": len(values),
    }


def _noise(db: float | None) -> float:
    return 0.0 if db is None else float(10 ** (-db / 10))


def _trial(trial: Mapping[str, Any], value: float, by_drop: bool) -> str:
    promoted: Sequence[str] = [f"{shorten(n, 40)} to {k}" for n, k in trial["promoted"].items()]
    said = ", ".join(promoted[:4]) + (f" and {len(promoted) - 4} more" if len(promoted) > 4 else "")
    return f"{said or 'nothing promoted'}: {'drop' if by_drop else 'noise'} {100 * value:.3g}%"
