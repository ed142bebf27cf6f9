"""The page of ``nervure quantize --report``, drawn from reports of every kind."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from typing import Any

import pytest
from nervure.frontends.cli.quantize_page import _histogram, _layer, _trials, render
from nervure.frontends.quantize_report import Report, rank


def layer(name: str, db: float | None, causes: dict[str, float] | None = None, **more: Any) -> dict[str, Any]:
    return {"name": name, "op": "conv", "format": "int8", "sqnr_db": db, "causes": causes or {}, **more}


HISTOGRAM = {"low": -1.0, "high": 3.0, "counts": [5, 0, 10, 85]}
LAYERS = (
    layer("a", 31.0, {"range": 0.1, "rounding": 0.9, "bias": 0.0}),
    layer("b", 8.0, {"range": 0.7, "rounding": 0.1, "bias": 0.2}, clip=[-1.0, 2.0], tensor="b", histogram=HISTOGRAM),
    layer("c", None),
    {"name": "d", "op": "softmax", "format": "float", "why": "it has no integer form", "sqnr_db": None, "causes": {}},
)
REPORT = Report(
    model="net", mode="static", target="host", machine="znver4", samples=100, compared=64,
    settings={"activations": "int8", "per_channel": True, "float_patterns": []}, layers=LAYERS,
    outputs=({"name": "y", "sqnr_db": 21.5, "noise": 0.007}, {"name": "z", "sqnr_db": float("inf"), "noise": 0.0}),
    agreement=0.98, accuracy={"metric": "accuracy", "samples": 500, "float": 0.9, "quantized": 0.87, "drop": 0.03,
                              "before_control": 0.87},
    size={"float": {"onnx": 1000, "weights": 900, "library": 1500},
          "quantized": {"onnx": 300, "weights": 250, "library": 800}},
    ram={"float": 4096, "quantized": 1024}, latency={"float": 2.0, "quantized": 0.8, "speedup": 2.5, "rounds": {}},
    control=None, repair=(("--float", "b"),), notes=("a note",), seconds=1.0,
)  # fmt: skip
TRIALS = [
    {"promoted": {}, "sqnr_db": 5.0, "value": 0.5, "drop": 0.4, "holds": False},
    {"promoted": {"b": "float"}, "sqnr_db": 25.0, "value": 0.91, "drop": -0.01, "holds": True},
]
CONTROL = {"max_drop": 0.01, "max_noise": None, "met": True, "promoted": {"b": "float"}, "trials": TRIALS}


def words(page: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", page.partition("</style>")[2]))


def drawings(page: str) -> list[ET.Element]:
    """Every SVG of the page, parsed: what is not well-formed fails here."""
    return [ET.fromstring(text) for text in re.findall(r"<svg.*?</svg>", page, re.S)]


def test_everything_is_on_it() -> None:
    page = render(REPORT, "nervure quantize net.onnx --float b")
    said = words(page)
    for text in (
        "87.00%", "+3.00 points", "21.5 dB", "98.0%", "2.50x", "0.25x", "What may repair it", "net.onnx --float b",
        "mostly range", "clip -1 to 2", "it has no integer form", "a note", "800.0 µs", "300 B (0.30x)", "exact",
    ):  # fmt: skip
        assert text in said, text
    assert len(drawings(page)) == 1 + 3 + 2  # before and after, a bar a quantized layer, two histograms of b
    assert "<script" not in page and "http" not in page.replace("http-equiv", "")


@pytest.mark.parametrize("limit", ["max_drop", "max_noise"])
def test_what_control_did(limit: str) -> None:
    control = {**CONTROL, "max_drop": None, "max_noise": None, limit: 0.01}
    page = render(replace(REPORT, control=control), None)
    assert "b to float" in words(page) and "2 artifacts" in words(page) and "What may repair it" not in words(page)
    drawn = _trials(control)
    assert drawn is not None and [b["holds"] for b in drawn["bars"]] == [False, True]
    first, second = drawn["bars"]
    assert first["y"] < drawn["limit"] <= second["y"], "the budget lies between what breaks it and what does not"
    drawings(page)


def test_a_report_with_little_in_it() -> None:
    little = replace(
        REPORT, layers=(), outputs=(), agreement=None, accuracy=None, latency=None, settings={}, notes=(), repair=()
    )
    assert "Before and after" in words(render(little, None))


def test_bars_are_as_long_as_the_noise() -> None:
    quiet, loud = (_layer(row) for row in LAYERS[:2])
    lengths = [sum(p["w"] for p in r["parts"]) for r in (quiet, loud)]
    assert lengths[0] < lengths[1] and [p["cause"] for p in loud["parts"]] == ["range", "rounding", "bias"]
    assert loud["parts"][0]["w"] == pytest.approx(0.7 * lengths[1]) and loud["cause"] == "range"
    assert _layer(LAYERS[2])["parts"] == []


def test_a_histogram_and_what_the_clip_cuts() -> None:
    drawn = _histogram(LAYERS[1])
    assert drawn is not None and len(drawn["bars"]) == 3
    assert drawn["clip"] == pytest.approx([0.0, 180.0]) and drawn["outside"] == pytest.approx(0.85)
    assert drawn["zero"] == pytest.approx(60.0)
    assert _histogram({"histogram": {"low": 0.0, "high": 1.0, "counts": [0, 0]}}) is None


def test_names_are_text() -> None:
    evil = "<img src=x onerror=alert(1)>\x1b[31m</svg>"
    layers = (layer(evil, 5.0, {"range": 1.0}, clip=[0.0, 1.0], tensor=evil, histogram=HISTOGRAM),)
    control = {**CONTROL, "promoted": {evil: "float"}, "trials": [*TRIALS, {**TRIALS[0], "promoted": {evil: "int16"}}]}
    outputs = ({"name": evil, "sqnr_db": None, "noise": None},)
    page = render(
        replace(REPORT, model=evil, layers=layers, control=control, outputs=outputs, notes=(evil,)), f"x {evil}"
    )
    assert "<img" not in page and "\x1b" not in page and "&lt;img" in page
    drawings(page)


def test_ranking() -> None:
    rows = [
        layer("a", 30.0),
        layer("b", 8.0),
        layer("c", None),
        layer("d", 40.0, damage=0.5),
        layer("e", 5.0, damage=-0.2),
    ]
    assert [r["name"] for r in rank([*rows, LAYERS[3]])] == ["d", "e", "b", "a", "c"]
