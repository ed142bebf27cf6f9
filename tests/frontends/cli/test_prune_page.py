"""The page of ``nervure prune --report``, drawn from reports of every kind."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from typing import Any

import pytest
from nervure.frontends.cli.prune_page import KEPT_WIDTH, TRIAL_HEIGHT, _layer, _scan, _trials, render
from nervure.frontends.prune_report import Report


def layer(name: str, shapes: tuple[Any, Any], nonzeros: tuple[int, int], us: tuple[float, Any], **more: Any) -> Any:
    size, now = 1, 1
    for d in shapes[0]:
        size *= d
    for d in shapes[1] or (0,):
        now *= d
    gone = shapes[1] is None
    return {
        "name": name, "op": "conv", "weight": f"{name}.w", "shape": {"dense": list(shapes[0]), "pruned": shapes[1]},
        "kept": nonzeros[1] / nonzeros[0], "left": 0.0 if gone else now / size,
        "density": None if gone else nonzeros[1] / now,
        "macs": {"dense": nonzeros[0] * 64, "pruned": None if gone else nonzeros[1] * 64},
        "bytes": {"dense": 4 * size, "pruned": None if gone else 4 * now}, "us": {"dense": us[0], "pruned": us[1]},
        "kernel": {"dense": "direct", "pruned": None if gone else "sparse rows"}, "why": "", **more,
    }  # fmt: skip


LAYERS = (
    layer("stem", ((16, 3, 3, 3), [16, 3, 3, 3]), (432, 432), (12.0, 12.1), why="it feeds the output (y)"),
    layer("body", ((32, 16, 3, 3), [16, 16, 3, 3]), (4608, 2304), (40.0, 21.0)),
    layer("sparse", ((64, 64, 1, 1), [64, 64, 1, 1]), (4096, 1024), (30.0, 33.0)),
    layer("lost", ((8, 8, 1, 1), None), (64, 0), (3.0, None)),
)
TOTALS = {
    "dense": {"macs": 588800, "params": 9200, "ram": 8192, "onnx": 40000, "weights": 36800, "library": 60000,
              "estimate_us": 90.0},
    "pruned": {"macs": 240640, "params": 3760, "ram": 4096, "onnx": 30000, "weights": 15000, "library": 33000,
               "estimate_us": 55.0},
}  # fmt: skip
TRIALS = (
    {"asked": 0.6, "ratio": 0.75, "us": 67.0, "dense_us": 89.0},
    {"asked": 0.48, "ratio": 0.61, "us": 54.0, "dense_us": 89.0},
)
SCAN = {
    "metric": "accuracy", "dense": 0.9, "samples": 200,
    "layers": [{"name": "stem", "sparsities": [0.25, 0.5, 0.75], "scores": [0.88, 0.6, 0.2]},
               {"name": "body", "sparsities": [0.22, 0.5, 0.78], "scores": [0.9, 0.89, 0.85]}],
}  # fmt: skip
REPORT = Report(
    model="net", target="host", machine="znver4",
    settings={"structure": "channels", "criterion": "l1", "keep": [], "layers": {"body": 0.5}, "seed": 3},
    budget={"kind": "latency", "target": "latency 0.6x", "dense": 89.0, "wanted": 53.4, "reached": 54.3,
            "measured": True},
    layers=LAYERS, rest_us={"dense": 4.0, "pruned": 4.1}, timed=True,
    groups=({"name": "body", "kind": "channels", "units": 32, "removed": 16, "layers": ["body", "sparse"]},),
    fixed=({"where": "stem", "why": "its outputs are the network's (y)"},), totals=TOTALS,
    latency={"dense": 0.089, "pruned": 0.0543, "ratio": 0.61, "rounds": {}},
    accuracy={"metric": "accuracy", "samples": 200, "on": "every 5th sample of data.npz (200 of 1000), held out",
              "dense": 0.91, "pruned": 0.7, "tuned": 0.902, "drop": 0.008},
    training={"epochs": 3, "samples": 800, "batch_size": 32, "learning_rate": 0.001, "loss": "crossentropy",
              "loss_why": "y holds classes", "distilled": True, "history": {"loss": [0.9, 0.5, 0.4]}, "seconds": 2.0},
    trials=TRIALS, scan=SCAN, gained={"latency": 0.61, "library": 0.55}, notes=("a note",), seconds=9.0,
)  # fmt: skip


def words(page: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", page.partition("</style>")[2]))


def drawings(page: str) -> list[ET.Element]:
    """Every SVG of the page, parsed: what is not well-formed fails here."""
    return [ET.fromstring(text) for text in re.findall(r"<svg.*?</svg>", page, re.S)]


def test_everything_is_on_it() -> None:
    page = render(REPORT)
    said = words(page)
    for text in (
        "0.61x", "54.3 µs measured", "0.55x", "90.20%", "dense 91.00%", "+0.80 points", "latency 0.6x", "0.610x",
        "every 5th sample of data.npz", "3 epochs on 800 samples", "taught by the dense model", "a note", "stem",
        "32 x 16 x 3 x 3", "16 x 16 x 3 x 3", "to nothing", "1.10x", "16 of 32", "its outputs are the network",
        "body: 0.5",
        "Sensitivity", "between layers", "target 0.60x", "32.2 KB (0.55x)",
    ):  # fmt: skip
        assert text in said, text
    assert "Nothing was gained" not in said
    # before and after, the loss, the candidates, two bars a layer, the sensitivity, a bar of the group
    assert len(drawings(page)) == 1 + 1 + 1 + 2 * len(LAYERS) + 1 + 1
    assert "<script" not in page and "http" not in page.replace("http-equiv", "")


def test_a_report_with_little_in_it() -> None:
    little = replace(
        REPORT, budget=None, layers=(), groups=(), fixed=(), latency=None, accuracy=None, training=None, trials=(),
        scan=None, gained={}, notes=(), timed=False,
    )  # fmt: skip
    said = words(render(little))
    assert "Nothing was gained" in said and "of the latency, estimated" in said and "time (estimated)" in said
    assert "Sensitivity" not in said and "What goes together" not in said


def test_bars_tell_what_is_left() -> None:
    stem, body, sparse, lost = (_layer(row, 40.0) for row in LAYERS)
    assert (stem["left_w"], stem["alive_w"]) == (KEPT_WIDTH, KEPT_WIDTH) and stem["grade"] == ""
    assert body["left_w"] == body["alive_w"] == pytest.approx(KEPT_WIDTH / 2) and body["grade"] == "good"
    assert (
        sparse["left_w"] == KEPT_WIDTH
        and sparse["alive_w"] == pytest.approx(KEPT_WIDTH / 4)
        and sparse["grade"] == "bad"
    )
    assert lost["left_w"] == lost["alive_w"] == lost["pruned_w"] == 0 and lost["gone"]
    assert body["dense_w"] > sparse["dense_w"] > stem["dense_w"] > lost["dense_w"] > 0


def test_candidates_beside_the_target() -> None:
    drawn = _trials(REPORT.as_dict())
    assert drawn is not None and [b["holds"] for b in drawn["bars"]] == [False, True]
    first, second = drawn["bars"]
    assert TRIAL_HEIGHT - first["h"] < drawn["limit"] and second["h"] == pytest.approx(0.61 * TRIAL_HEIGHT)
    assert _trials({**REPORT.as_dict(), "trials": []}) is None


def test_the_most_sensitive_layer_comes_first() -> None:
    drawn = _scan(SCAN)
    assert drawn is not None and [line["name"] for line in drawn["lines"]] == ["stem", "body"]
    assert drawn["lines"][0]["points"].count(",") == 4, "the dense model is the first point"
    assert _scan(None) is None and _scan({**SCAN, "layers": []}) is None


def test_names_are_text() -> None:
    evil = "<img src=x onerror=alert(1)>\x1b[31m</svg>"
    row = {**LAYERS[1], "name": evil, "why": evil, "kernel": {"dense": evil, "pruned": evil}}
    scan = {**SCAN, "layers": [{"name": evil, "sparsities": [0.25, 0.5, 0.75], "scores": [0.8, 0.7, 0.6]}]}
    groups = ({"name": evil, "kind": "channels", "units": 2, "removed": 1, "layers": [evil]},)
    page = render(
        replace(REPORT, model=evil, layers=(row,), scan=scan, groups=groups, fixed=({"where": evil, "why": evil},),
                notes=(evil,), settings={"structure": evil, "layers": {evil: 0.5}})
    )  # fmt: skip
    assert "<img" not in page and "\x1b" not in page and "&lt;img" in page
    drawings(page)
