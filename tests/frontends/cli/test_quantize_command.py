"""``nervure quantize``: files, the JSON object, the page, exit codes, and every way in which it refuses."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import nervure as nv
import numpy as np
import onnxruntime as ort
import pytest
from html_pages import Page
from quantize_nets import convnet, labelled_pictures, pictures

ort.set_default_logger_severity(4)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a healthy and a wounded network, calibration data and labelled data."""
    folder = tmp_path_factory.mktemp("quantize")
    for name, wounded in (("net", False), ("wounded", True)):
        net = convnet(wounded)
        nv.save_onnx(net, folder / f"{name}.onnx")
        x, y = labelled_pictures(net, 64, seed=1)
        np.savez(folder / f"{name}_test.npz", x=x, y=y)
    np.savez(folder / "cal.npz", x=pictures(32, seed=4))
    return folder


def test_a_model_is_quantized(nervure, place: Path, tmp_path: Path) -> None:
    out, page = tmp_path / "q.onnx", tmp_path / "q.html"
    files = [
        "-o",
        out,
        "--report",
        page,
        "-c",
        place / "cal.npz",
        "--labelled",
        place / "net_test.npz",
        "--method",
        "mse",
    ]
    done = nervure("quantize", place / "net.onnx", *files, "--json")
    assert done.code == 0, done.err
    found = done.json
    assert found["file"] == str(out) and found["page"] == str(page) and found["model"] == "net"
    assert found["accuracy"]["float"] == 1.0 and abs(found["accuracy"]["drop"]) < 0.1
    assert [r["name"] for r in found["layers"]][:3] == ["conv1", "conv2", "conv3"]
    assert found["latency"]["speedup"] > 0 and found["samples"] == 32
    x = np.load(place / "net_test.npz")["x"][:1]
    assert ort.InferenceSession(out).run(None, {"x": x})[0].shape == (1, 10)

    read = Page(page.read_text())
    words = " ".join(read.words)
    assert read.loads == [] and "script" not in read.tags and read.tags["svg"] >= 4
    assert "conv2" in words and "Before and after" in words and "accuracy" in words and "latency" in words


@pytest.mark.slow
def test_the_table_and_the_command_that_repairs(nervure, place: Path, tmp_path: Path) -> None:
    common = ["-c", place / "cal.npz", "--no-per-channel", "--no-equalize", "--method", "mse", "--no-latency"]
    page = tmp_path / "w.html"
    test = ["--labelled", place / "wounded_test.npz", "--max-drop", "2%", "--promote", "float", "--report", page]
    done = nervure("quantize", place / "wounded.onnx", "-o", tmp_path / "w.onnx", *common, *test)
    assert done.code == 0, done.err
    assert "promoted: conv2 to float" in done.out and "the same again:" in done.out
    command = next(line for line in done.out.splitlines() if "nervure quantize" in line)
    words = shlex.split(command[command.index("nervure quantize") :])
    assert words[-2:] == ["--float", "conv2"] and "--no-per-channel" in words
    assert "Accuracy control" in page.read_text() and "conv2 to float" in page.read_text()

    # what it says, does it: the same bytes without a budget
    words[words.index("-o") + 1] = str(tmp_path / "again.onnx")
    assert nervure(*words[1:], "--no-latency").code == 0
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "w.onnx").read_bytes()


def test_names_from_a_model_stay_text(nervure, tmp_path: Path) -> None:
    net = convnet()
    key = next(k for k in net if net.node(k).names[0] == "conv2")
    evil = "<script>alert(1)</script>\x1b[31m"
    net.set_node(key, names=(evil,))
    nv.save_onnx(net, tmp_path / "evil.onnx")
    np.savez(tmp_path / "c.npz", x=pictures(4))
    page = tmp_path / "p.html"
    done = nervure(
        "quantize", tmp_path / "evil.onnx", "-o", tmp_path / "q.onnx", "-c", tmp_path / "c.npz", "--report", page,
        "--no-latency",
    )  # fmt: skip
    assert done.code == 0, done.err
    read = Page(page.read_text())
    assert "script" not in read.tags and "alert(1)" in " ".join(read.words) and "\x1b" not in page.read_text()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["-o", "q.so"], "is an ONNX file"),
        (["-o", "absent/q.onnx"], "no such folder"),
        (["--report", "page.txt"], "HTML page"),
        (["-c", "absent.npz"], "cannot read the data"),
        (["-c", "broken.npz"], "no .npz file"),
        (["-c", "nan.npz"], "hold NaN"),
        (["-c", "wide.npz"], "do not fit input 'x'"),
        (["-c", "empty.npz"], "no samples"),
        (["--float", "convv1"], "matches nothing"),
        (["--int16", "nothing*"], "matches nothing"),
        (["--activations", "int4"], "use one of: int8"),
        (["--max-drop", "1%"], "needs something to measure"),
        (["--max-sqnr-loss", "a lot"], "no part of a whole"),
        (["--labelled", "cal.npz"], "no array 'y'"),
        (["--evaluate", "no_such_module:f"], "cannot import"),
        (["--weights", "int4"], "weights is 'int4'"),
        (["--group", "64"], "group does nothing"),
        (["--mode", "weights", "--gptq", "-c", ""], "GPTQ needs"),
        (["--percentile", "101"], "from 50 to 100"),
    ],
)
def test_what_is_refused(
    nervure, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    x = pictures(4)
    np.savez("cal.npz", x=x)
    np.savez("nan.npz", x=np.where(x > 2, np.nan, x))
    np.savez("wide.npz", x=x[:, :, :5])
    np.savez("empty.npz", x=x[:0])
    Path("broken.npz").write_text("nothing")
    before = sorted(tmp_path.iterdir())
    given = [] if "-c" in options else ["-c", "cal.npz"]
    given += [] if "-o" in options else ["-o", "q.onnx"]
    options = [o for i, o in enumerate(options) if o and not (o == "-c" and not options[i + 1])]
    done = nervure("quantize", place / "net.onnx", *given, *options, "--no-latency")
    assert done.code == 1 and said in " ".join(done.err.split()), done.err
    assert sorted(tmp_path.iterdir()) == before, "something was left behind"


@pytest.mark.slow
def test_a_budget_out_of_reach(nervure, place: Path, tmp_path: Path) -> None:
    options = [
        "-c",
        place / "cal.npz",
        "--no-per-channel",
        "--no-equalize",
        "--no-latency",
        "--promote",
        "int16",
        "--samples",
        "8",
    ]
    out = tmp_path / "q.onnx"
    done = nervure("quantize", place / "wounded.onnx", "-o", out, *options, "--max-sqnr-loss", "15dB", "--json")
    assert done.code == 1 and not out.exists()
    assert done.json["error"]["what"].startswith("the budget cannot be met")
    assert "--float conv2" in done.json["error"]["hint"]


@pytest.mark.parametrize(
    ("options", "formats", "least"),
    [
        (["--mode", "weights"], {"int4"}, -10),
        (["--mode", "weights", "--weights", "int8", "--group", "64"], {"int8"}, 15),
        (["--mode", "weights", "--weights", "float16"], {"float16"}, 40),
        (["--mode", "dynamic"], {"int8", "float"}, 15),
    ],
)
def test_modes_without_samples(
    nervure, place: Path, tmp_path: Path, options: list[str], formats: set[str], least: float
) -> None:
    out = tmp_path / "q.onnx"
    done = nervure("quantize", place / "net.onnx", "-o", out, *options, "--no-latency", "--json")
    assert done.code == 0, done.err
    assert {r["format"] for r in done.json["layers"]} == formats and done.json["samples"] == 0
    assert done.json["outputs"][0]["sqnr_db"] > least and "random inputs" in done.json["notes"][0]
    x = np.load(place / "cal.npz")["x"][:1]
    theirs, ours = ort.InferenceSession(out).run(None, {"x": x})[0], nv.compile(out)(x)
    assert np.square(theirs - ours).sum() < 1e-2 * np.square(ours).sum()


def test_help_lists_every_setting(nervure) -> None:
    from dataclasses import fields

    from nervure.compiler.quantize.settings import Settings

    said = re.sub(r"\s+", " ", nervure("quantize", "--help").out)
    for field in fields(Settings):
        assert f"--{field.name.replace('_', '-').removesuffix('-patterns')[:14]}" in said, field.name
