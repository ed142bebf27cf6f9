"""``prune --report``: one self-contained page. Geometry is computed here, ``prune.html.j2`` draws it.

The page has no script and its policy allows none; names from a model are escaped by Jinja.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from .console import count, size
from .page import clean, environment
from .quantize_page import score

KEPT_WIDTH, TIME_WIDTH, PAIR_WIDTH = 110.0, 190.0, 420.0
TRIAL_WIDTH, TRIAL_HEIGHT = 46.0, 120.0
CURVE_WIDTH, CURVE_HEIGHT = 560.0, 150.0
SCAN_WIDTH, SCAN_HEIGHT = 820.0, 260.0
GOOD, FAIR = 0.9, 0.97  # of the dense model's
COLOURS = 8  # of the sensitivity picture: its worst layers are named


def render(report: Any) -> str:
    """The page as text."""
    facts = clean(report.as_dict())
    most = max((r["us"][k] or 0.0 for r in facts["layers"] for k in ("dense", "pruned")), default=0.0) or 1.0
    return (
        environment(us=_us)
        .get_template("prune.html.j2")
        .render(
            f=facts,
            tiles=_tiles(facts),
            pairs=_pairs(facts),
            layers=[_layer(row, most) for row in facts["layers"]],
            trials=_trials(facts),
            curve=_curve(facts["training"]),
            scan=_scan(facts["scan"]),
            groups=[g | {"w": KEPT_WIDTH * (1 - g["removed"] / max(1, g["units"]))} for g in facts["groups"]],
            settings={k: v for k, v in facts["settings"].items() if v not in (None, [], {}, "", False)},
        )
    )


def _us(value: float) -> str:
    return f"{value / 1000:.2f} ms" if value >= 10_000 else f"{value:.1f} µs" if value >= 1 else f"{value:.2f} µs"


def _grade(ratio: float) -> str:
    return "good" if ratio < GOOD else "fair" if ratio < FAIR else "bad"


def _tiles(facts: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(figure, what it is, how good: good, fair, bad or nothing)."""
    was, now = facts["totals"]["dense"], facts["totals"]["pruned"]
    made: list[tuple[str, str, str]] = []
    t = facts["latency"]
    ratio = t["ratio"] if t else now["estimate_us"] / (was["estimate_us"] or 1.0)
    words = f"of the latency, {_us(1e3 * t['pruned'])} measured" if t else "of the latency, estimated"
    made.append((f"{ratio:.2f}x", words, _grade(ratio)))
    for key, word in (("library", "of the library"), ("macs", "of the multiply-adds"), ("params", "of the parameters")):
        ratio = now[key] / (was[key] or 1.0)
        value = count(now[key]) if key in ("macs", "params") else size(now[key])
        made.append((f"{ratio:.2f}x", f"{word}, {value}", _grade(ratio) if key == "library" else ""))
    ratio = now["ram"] / (was["ram"] or 1.0)
    made.append((f"{ratio:.2f}x", f"of the RAM, {size(now['ram'])}", ""))
    a = facts["accuracy"]
    if a:
        last = a["pruned"] if a["tuned"] is None else a["tuned"]
        made.append((score(last, a["metric"]), f"{a['metric']}, dense {score(a['dense'], a['metric'])}", ""))
        grade = "good" if a["drop"] <= 0.003 else "fair" if a["drop"] <= 0.01 else "bad"
        made.append((f"{100 * a['drop']:+.2f} points", "drop", grade))
    return made


def _pairs(facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Before and after, each pair on its own scale."""
    was, now = facts["totals"]["dense"], facts["totals"]["pruned"]
    rows: list[tuple[str, float, float, str, str]] = []
    t = facts["latency"]
    if t:
        rows.append(("latency", t["dense"], t["dense"] * t["ratio"], _us(1e3 * t["dense"]), _us(1e3 * t["pruned"])))
    else:
        rows.append(
            ("estimate", was["estimate_us"], now["estimate_us"], _us(was["estimate_us"]), _us(now["estimate_us"]))
        )
    for name, key, word in (
        ("library", "library", size), ("weights in it", "weights", size), ("ONNX file", "onnx", size),
        ("RAM (arena)", "ram", size), ("multiply-adds", "macs", count), ("parameters", "params", count),
    ):  # fmt: skip
        rows.append((name, was[key], now[key], word(was[key]), word(now[key])))
    return [
        {
            "name": name,
            "dense": {"w": PAIR_WIDTH * x / (max(x, y) or 1), "text": said},
            "pruned": {"w": PAIR_WIDTH * y / (max(x, y) or 1), "text": told},
            "ratio": y / x if x else None,
        }
        for name, x, y, said, told in rows
    ]


def _layer(row: Mapping[str, Any], most: float) -> dict[str, Any]:
    """A row of the table with its bars: all of what is left, and of that the part that is not zero."""
    kept, left, us = row["kept"], row["left"], row["us"]
    faster = None if us["pruned"] is None or not us["dense"] else us["pruned"] / us["dense"]
    gone = us["pruned"] is None
    return {
        **row,
        "left_w": KEPT_WIDTH * left,
        "alive_w": KEPT_WIDTH * left * (row["density"] or 0.0),
        "dense_w": max(1.0, TIME_WIDTH * us["dense"] / most) if us["dense"] else 0.0,
        "pruned_w": max(1.0, TIME_WIDTH * us["pruned"] / most) if us["pruned"] else 0.0,
        "ratio": faster,
        "grade": "" if faster is None or kept >= 1 else _grade(faster),
        "gone": gone,
    }


def _trials(facts: Mapping[str, Any]) -> dict[str, Any] | None:
    """The candidates of a measured latency target, in order, with the target as a line."""
    rows, budget = facts["trials"], facts["budget"]
    if not rows or not budget:
        return None
    limit = budget["wanted"] / budget["dense"]
    scale = TRIAL_HEIGHT / max(1.0, *(r["ratio"] for r in rows))
    bars = [
        {
            "x": i * TRIAL_WIDTH,
            "h": r["ratio"] * scale,
            "text": f"asked for {r['asked']:.3f}x by the cost model, measured {r['ratio']:.3f}x ({_us(r['us'])})",
            "label": f"{r['ratio']:.2f}x",
            "holds": abs(r["ratio"] / limit - 1) <= 0.1,
        }
        for i, r in enumerate(rows)
    ]
    return {"bars": bars, "width": max(200.0, len(bars) * TRIAL_WIDTH), "limit": TRIAL_HEIGHT - limit * scale,
            "limit_text": f"target {limit:.2f}x", "height": TRIAL_HEIGHT}  # fmt: skip


def _curve(training: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The training's loss, epoch by epoch."""
    losses = [v for v in (training or {}).get("history", {}).get("loss", []) if v is not None]
    if len(losses) < 2:
        return None
    low, high = min(losses), max(losses)
    spread = (high - low) or 1.0
    step = CURVE_WIDTH / (len(losses) - 1)
    points = " ".join(f"{i * step:.1f},{CURVE_HEIGHT * (1 - (v - low) / spread) + 8:.1f}" for i, v in enumerate(losses))
    return {"points": points, "low": f"{low:.4g}", "high": f"{high:.4g}", "epochs": len(losses)}


def _scan(scan: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The score of each layer over its own sparsity: lines, the most sensitive named."""
    if not scan or not scan["layers"]:
        return None
    rows: Sequence[Mapping[str, Any]] = scan["layers"]
    values = [v for r in rows for v in r["scores"] if v is not None and math.isfinite(v)]
    low, high = min([*values, scan["dense"]]), max([*values, scan["dense"]])
    spread = (high - low) or 1.0
    steps = sorted({s for r in rows for s in r["sparsities"]})
    right = steps[-1] or 1.0

    def y(value: float) -> float:
        return float(8 + SCAN_HEIGHT * (1 - (value - low) / spread))

    ranked = sorted(rows, key=lambda r: min((v for v in r["scores"] if v is not None), default=high))
    lines = [
        {
            "name": r["name"],
            "points": " ".join(
                f"{SCAN_WIDTH * s / right:.1f},{y(v):.1f}"
                for s, v in zip([0.0, *r["sparsities"]], [scan["dense"], *r["scores"]], strict=True)
                if v is not None
            ),
            "colour": i if i < COLOURS else None,
            "least": min((v for v in r["scores"] if v is not None), default=None),
        }
        for i, r in enumerate(ranked)
    ]
    return {
        "lines": lines,
        "named": lines[:COLOURS],
        "dense": y(scan["dense"]),
        "low": score(low, scan["metric"]),
        "high": score(high, scan["metric"]),
        "metric": scan["metric"],
        "ticks": [{"x": SCAN_WIDTH * s / right, "text": f"{s:.0%}"} for s in [i * right / 5 for i in range(6)]],
        "height": SCAN_HEIGHT + 8,
        "width": SCAN_WIDTH,
    }
