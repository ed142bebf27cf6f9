"""``nervure prune``: files, the JSON object, the table, the page, exit codes, and every way in which it refuses."""

from __future__ import annotations

import re
from pathlib import Path

import nervure as nv
import numpy as np
import onnxruntime as ort
import pytest
from html_pages import Page
from prune_nets import dense, labelled, small

ort.set_default_logger_severity(4)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two networks and labelled data."""
    folder = tmp_path_factory.mktemp("prune")
    net = small()
    nv.save_onnx(net, folder / "net.onnx")
    nv.save_onnx(dense(), folder / "dense.onnx")
    x, y = labelled(net, 60, seed=1)
    np.savez(folder / "data.npz", x=x, y=y)
    return folder


def test_a_model_is_pruned_and_timed(nervure, place: Path, tmp_path: Path) -> None:
    out, page = tmp_path / "small.onnx", tmp_path / "small.html"
    options = ["-o", out, "--report", page, "--target-macs", "0.5x", "--data", place / "data.npz", "--scan", "--json"]
    done = nervure("prune", place / "net.onnx", *options)
    assert done.code == 0, done.err
    found = done.json
    assert found["file"] == str(out) and found["page"] == str(page) and found["model"] == "net"
    assert found["latency"]["ratio"] == pytest.approx(found["latency"]["pruned"] / found["latency"]["dense"], rel=0.5)
    assert found["timed"] and all(r["us"]["dense"] > 0 for r in found["layers"])
    assert found["accuracy"]["dense"] == 1.0 and found["accuracy"]["samples"] == 12
    assert found["totals"]["pruned"]["onnx"] == out.stat().st_size < (place / "net.onnx").stat().st_size
    x = np.load(place / "data.npz")["x"][:1]
    assert np.allclose(ort.InferenceSession(out).run(None, {"x": x})[0], nv.compile(out)(x), atol=1e-4)

    read = Page(page.read_text())
    words = " ".join(read.words)
    assert read.loads == [] and "script" not in read.tags and read.tags["svg"] >= 8
    for text in ("second", "Before and after", "What goes together", "cannot go", "Sensitivity", "every 5th sample"):
        assert text in words, text


def test_the_table_and_the_lines(nervure, place: Path, tmp_path: Path) -> None:
    options = ["--target-params", "60%", "--no-latency", "--keep", "first*", "--criterion", "l2", "--scope", "layer"]
    done = nervure("prune", place / "net.onnx", "-o", tmp_path / "o.onnx", *options)
    assert done.code == 0, done.err
    said = " ".join(done.out.split())
    for text in (
        "layer op kept MACs bytes us (estimated)", "second", "between layers", "latency, estimated", "library",
        "target params 0.6x:", f"written: {tmp_path / 'o.onnx'}",
    ):  # fmt: skip
        assert text in said, text
    assert re.search(r"first conv 100%", said)


@pytest.mark.slow
def test_a_pattern_is_trained_on(nervure, place: Path, tmp_path: Path) -> None:
    options = ["--structure", "unstructured", "--sparsity", "75%", "--layer", "head=50%", "--data", place / "data.npz"]
    more = [
        "--epochs",
        "2",
        "--lr",
        "0.003",
        "--batch-size",
        "16",
        "--distill",
        "--force",
        "--no-latency",
        "--seed",
        "1",
    ]
    done = nervure("prune", place / "net.onnx", "-o", tmp_path / "o.onnx", *options, *more, "--json")
    assert done.code == 0, done.err
    found = done.json
    assert found["training"]["epochs"] == 2 and found["training"]["distilled"]
    assert found["accuracy"]["tuned"] is not None and found["settings"]["layers"] == {"head": 0.5}
    kept = {r["name"]: r["kept"] for r in found["layers"]}
    assert kept["second"] < 0.4 and kept["head"] == pytest.approx(0.5, abs=0.02)


@pytest.mark.slow
def test_a_latency_on_this_machine_is_recorded(nervure, place: Path, tmp_path: Path) -> None:
    """What a second run with the record says and writes is what the first one did."""
    record, found = tmp_path / "tuning.json", []
    for name in ("a", "b"):
        options = ["-o", tmp_path / f"{name}.onnx", "--target-latency", "0.7x", "--tune", record, "--json"]
        done = nervure("prune", place / "net.onnx", *options)
        assert done.code == 0, done.err
        found.append(done.json)
    assert found[0]["trials"] == found[1]["trials"] and found[0]["budget"]["measured"]
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_a_pattern_that_does_not_pay(nervure, place: Path, tmp_path: Path) -> None:
    options = ["-o", tmp_path / "o.onnx", "--structure", "unstructured", "--sparsity", "0.05", "--no-latency"]
    done = nervure("prune", place / "dense.onnx", *options, "--json")
    assert done.code == 1 and "does not pay" in done.json["error"]["what"] and not list(tmp_path.iterdir())
    assert any("us dense" in line for line in done.json["error"]["where"]) and "--force" in done.json["error"]["hint"]
    assert nervure("prune", place / "dense.onnx", *options, "--force").code == 0


def test_names_from_a_model_stay_text(nervure, tmp_path: Path) -> None:
    net = small()
    key = next(k for k in net if net.node(k).names[0] == "second")
    net.set_node(key, names=("<script>alert(1)</script>\x1b[31m",))
    nv.save_onnx(net, tmp_path / "evil.onnx")
    page = tmp_path / "p.html"
    done = nervure(
        "prune",
        tmp_path / "evil.onnx",
        "-o",
        tmp_path / "o.onnx",
        "--sparsity",
        "0.5",
        "--report",
        page,
        "--no-latency",
    )
    assert done.code == 0, done.err
    read = Page(page.read_text())
    assert "script" not in read.tags and "alert(1)" in " ".join(read.words) and "\x1b" not in page.read_text()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["-o", "q.so"], "is an ONNX file"),
        (["-o", "absent/q.onnx"], "no such folder"),
        (["--report", "page.txt"], "HTML page"),
        (["--tune", "record.txt"], "JSON file"),
        (["--data", "absent.npz"], "cannot read the data"),
        (["--data", "broken.npz"], "no .npz file"),
        (["--data", "wide.npz"], "do not fit input 'x'"),
        (["--data", "classes.npz"], "is no class of the 4"),
        (["--test", "bare.npz"], "no array 'y'"),
        (["--epochs", "2"], "needs data"),
        (["--epochs", "2", "--data", "bare.npz"], "no array 'y'"),
        (["--criterion", "l3"], "use one of: l1"),
        (["--criterion", "movement"], "looks at samples"),
        (["--structure", "rows"], "no sparse pattern"),
        (["--structure", "heads"], "nothing to prune"),
        (["--target-macs", "half", "--sparsity", ""], "is no macs"),
        (["--target-macs", "0.5x"], "one target"),
        (["--target-ram", "64", "--sparsity", ""], "nearest that can is"),
        (["--target-latency", "10ns", "--sparsity", ""], "nearest that can is"),
        (["--sparsity", "150%"], "no target"),
        (["--sparsity", ""], "needs a target"),
        (["--keep", "convv*"], "matches nothing"),
        (["--layer", "first"], "no layer and part"),
        (["--layer", "first=much"], "no layer and part"),
        (["--distill"], "only where there is training"),
        (["--target", "moon"], "no target 'moon'"),
        (["--sparse", "1"], "No such option"),
    ],
)
def test_what_is_refused(
    nervure, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with np.load(place / "data.npz") as held:
        x, y = held["x"], held["y"]
    np.savez("wide.npz", x=x[:, :, :5], y=y)
    np.savez("classes.npz", x=x, y=y + 4)
    np.savez("bare.npz", x=x)
    Path("broken.npz").write_text("nothing")
    before = sorted(tmp_path.iterdir())
    given = [] if "-o" in options else ["-o", "q.onnx"]
    given += [] if "--sparsity" in options else ["--sparsity", "0.5"]
    options = [o for i, o in enumerate(options) if o and not (o == "--sparsity" and not options[i + 1])]
    done = nervure("prune", place / "net.onnx", *given, *options, "--no-latency")
    assert done.code == 1 and said in " ".join(done.err.split()), done.err
    assert sorted(tmp_path.iterdir()) == before, "something was left behind"


def test_a_damaged_model(nervure, tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    done = nervure("prune", tmp_path / "bad.onnx", "-o", tmp_path / "q.onnx", "--sparsity", "0.5")
    assert done.code == 1 and not (tmp_path / "q.onnx").exists()


def test_help_says_every_target(nervure) -> None:
    said = re.sub(r"\s+", " ", nervure("prune", "--help").out)
    for option in (
        "--sparsity",
        "--target-macs",
        "--target-params",
        "--target-ram",
        "--target-file",
        "--target-latency",
    ):
        assert option in said, option
