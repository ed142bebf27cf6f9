"""Every command on tiny models: what it prints, what its JSON holds, how it fails."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nervure.runtime.artifact import read_artifact

ROOT = Path(__file__).parents[3]
HOSTILE = 'a"/><script>alert(1)</script>\x1b[31m*/\n[bold red]}}{{7*7}}\u202e=b'
Nervure = Callable[..., Any]  # the fixture of conftest.py: arguments in, a Call out
MakeModel = Callable[..., Path]
COMMANDS = ("new", "compile", "run", "verify", "bench", "profile", "inspect", "targets", "doctor")


def test_help_of_every_command_has_an_example(nervure: Nervure) -> None:
    listed = nervure("--help").out
    for name in COMMANDS:
        found = nervure(name, "--help")
        assert name in listed and found.code == 0 and f"Example:  nervure {name}" in found.out
    assert nervure("--version").out.startswith("nervure ")
    assert nervure().code == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ("nothing",),
        ("compile",),
        ("compile", "x.onnx", "--bogus"),
        ("compile", "x.onnx"),
        ("compile", "."),
        ("compile", "x.onnx", "--precision", "high"),
        ("run", "x.so"),
        ("inspect", "x.py:net"),
        ("bench", "x.onnx", "--threads", "many"),
        ("verify", "x.onnx", "--target", "pdp11"),
    ],
)
def test_user_errors_are_one_message_and_exit_1(nervure: Nervure, arguments: tuple[str, ...]) -> None:
    found = nervure(*arguments)
    assert found.code == 1 and found.err.startswith("error: ") and found.out == ""
    said = nervure(*arguments, "--json")
    assert said.json["exit_code"] == said.code == 1 and said.json["error"]["what"]


def test_new_writes_a_script_and_says_what_it_needs(nervure: Nervure, tmp_path: Path) -> None:
    said = nervure("new", "words", "--like", "cnn", "--folder", tmp_path, "--json").json
    assert said == {"written": [str(tmp_path / "words.py")], "like": "fashion_cnn", "needs": ["examples"]}
    (tmp_path / "words.py").write_text("mine by now")
    again = nervure("new", "words", "--like", "cnn", "--folder", tmp_path)
    assert again.code == 1 and "is there already" in again.err
    listed = nervure("new", "--list", "--json").json["zoo"]
    assert {"fashion_cnn", "gan"} <= {row["name"] for row in listed} and "fashion_cnn" in nervure("new", "--list").out
    for wrong in (("new",), ("new", "a b"), ("new", "words", "--like", "perpetuum")):
        found = nervure(*wrong)
        assert found.code == 1 and found.err.startswith("error: ")


def test_targets(nervure: Nervure) -> None:
    found = nervure("targets", "--json").json["targets"]
    assert {"host", "aarch64", "rpi4", "armv7"} <= {t["name"] for t in found}
    host = next(t for t in found if t["name"] == "host")
    assert host["available"] and host["vector_bits"] >= 128
    assert "rpi4" in nervure("targets").out


def test_doctor(nervure: Nervure, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NERVURE_CACHE_DIR", str(tmp_path))
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "k").write_bytes(bytes(1000))
    found = nervure("doctor", "--json").json
    assert found["cache"]["folder"] == str(tmp_path) and found["cache"]["bytes"] == 1000
    assert found["can"]["run"] and found["cpu"]["cores"] >= 1
    monkeypatch.setenv("PATH", "")
    missing = nervure("doctor", "--json").json["missing"]
    assert {"qemu-aarch64", "qemu-arm"} <= {m["name"] for m in missing}
    assert all("apt-get install" in m["command"] for m in missing if m["name"].startswith("qemu"))
    assert "apt-get install" in nervure("doctor").out


def test_compile_writes_a_verified_library(nervure: Nervure, tiny: Path, library: Path, tmp_path: Path) -> None:
    found = nervure("compile", tiny, "-o", tmp_path / "out", "--json").json
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["tiny.h", "tiny.so"]
    artifact = read_artifact(found["files"]["library"])
    assert found["sha256"] == artifact.sha256 and found["code_bytes"] == artifact.code_bytes
    assert found["arena_bytes"] >= found["arena_lower_bound_bytes"] > 0
    assert found["weights_bytes"] >= found["source_weight_bytes"] == 60 and found["compile_seconds"] > 0
    check = found["verification"]
    assert check["ok"] is True and check["max_rel_error"] < 1e-5 and len(check["checks"]) == 2
    assert found["artifacts"][0]["target"] == "host"
    text = nervure("compile", tiny, "-o", tmp_path / "named.so")
    assert text.code == 0 and "named.so" in text.out and (tmp_path / "named.h").exists()


def test_nothing_is_left_when_verification_fails(
    nervure: Nervure, tiny: Path, library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nervure.frontends.verify.slice_error", lambda y, ref: 0.5)
    out = tmp_path / "out"
    found = nervure("compile", tiny, "-o", out, "--json")
    assert found.code == 1 and "does not agree" in found.json["error"]["what"] and not out.exists()
    assert nervure("compile", tiny, "-o", out, "--tolerance", "0.6").code == 0
    skipped = nervure("compile", tiny, "-o", tmp_path / "fast", "--no-verify", "--json").json
    assert skipped["verification"]["ok"] is None and skipped["verification"]["why"] == "--no-verify"


def test_compile_refuses_what_cannot_be_written(nervure: Nervure, tiny: Path, library: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "cannot write" in nervure("compile", tiny, "-o", tmp_path / "file").err
    (tmp_path / "out" / "tiny.h").mkdir(parents=True)
    found = nervure("compile", tiny, "-o", tmp_path / "out")
    assert found.code == 1 and not (tmp_path / "out" / "tiny.so").exists()
    assert "cannot name files" in nervure("compile", tiny, "--name", "../x").err
    assert "--max-ram allows 16" in nervure("compile", tiny, "--max-ram", "16", "-o", tmp_path / "o", "--no-cache").err


@pytest.mark.slow
def test_several_bindings_and_targets(nervure: Nervure, make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model(tmp_path / "free.onnx", batch="batch")
    unbound = nervure("compile", model, "-o", tmp_path)
    assert unbound.code == 1 and "batch" in unbound.err
    found = nervure(
        "compile", model, "-o", tmp_path, "--shape", "batch=1,4", "-t", "host", "-t", "aarch64", "--json"
    ).json
    host, arm = found["artifacts"]
    assert [e["inputs"][0]["shape"] for e in host["entries"]] == [[1, 4], [4, 4]]
    assert len(host["verification"]["checks"]) == 4 and host["verification"]["ok"]
    assert arm["verification"]["ok"] in (True, None) and Path(arm["files"]["library"]).parent.name == "aarch64"
    whole = nervure("compile", model, "-o", tmp_path, "--shape", "x=3,4", "--json").json
    assert whole["entries"][0]["inputs"][0]["shape"] == [3, 4]


def test_run_on_arrays(nervure: Nervure, tiny: Path, library: Path, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    x = np.random.default_rng(3).standard_normal((2, 4)).astype(np.float32)
    (expected,) = onnxruntime.InferenceSession(tiny).run(None, {"x": x})
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "x.npz", x=x)
    for given in (f"x={tmp_path / 'x.npy'}", tmp_path / "x.npy", tmp_path / "x.npz"):
        found = nervure("run", library, "-i", given, "-o", tmp_path / "y.npz", "--top", "1", "--json").json
        np.testing.assert_allclose(np.load(tmp_path / "y.npz")["y"], expected, rtol=1e-5)
        np.testing.assert_allclose(found["outputs"][0]["values"], expected, rtol=1e-5)
        assert [t["index"] for t in found["top"]] == expected.argmax(1).tolist()
    (tmp_path / "labels").write_text("ant\nbee\n\x1b[31mcat\n")
    assert re.search(
        r"1\. .*(ant|bee|cat)", nervure("run", library, "-i", tmp_path / "x.npy", "--labels", tmp_path / "labels").out
    )


def test_run_refuses_wrong_inputs(nervure: Nervure, library: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "wide.npy", np.zeros((2, 4)))
    np.save(tmp_path / "object.npy", np.array([{}], object), allow_pickle=True)
    (tmp_path / "broken.npz").write_bytes(b"PK\3\4" + bytes(40))
    (tmp_path / "broken.png").write_bytes(b"\x89PNG")
    cases = {
        "wide.npy": "expected float32",
        "object.npy": "no .npy array",
        "broken.npz": "no .npz",
        "broken.png": "picture cannot be read",
        "none.npy": "cannot read",
        "z=none.npy": "no input 'z'",
        "x.txt": "unknown",
    }
    for name, words in cases.items():
        found = nervure("run", library, "-i", name if "=" in name else tmp_path / name)
        assert found.code == 1 and words in found.err, name
    assert "is not given" in nervure("run", library).err


def test_verify(nervure: Nervure, make_model: MakeModel, tiny: Path, library: Path, tmp_path: Path) -> None:
    found = nervure("verify", tiny, library, "--seeds", "2", "--json")
    assert found.code == 0 and found.json["ok"] is True and 0 <= found.json["max_rel_error"] < 1e-5
    other = make_model(tmp_path / "other.onnx", last="Tanh")
    wrong = nervure("verify", other, library, "--json")
    assert wrong.code == 1 and wrong.json["ok"] is False and wrong.json["max_rel_error"] > 1e-3
    assert "DOES NOT AGREE" in nervure("verify", other, library).out
    assert nervure("verify", tiny, tiny.with_suffix(".h")).code == 1


def test_bench(nervure: Nervure, tiny: Path, library: Path) -> None:
    short = ("--rounds", "2", "--seconds", "0.01")
    found = nervure("bench", tiny, "--against", "onnxruntime", *short, "--json").json
    assert [(r["name"], r["threads"]) for r in found["results"]] == [("nervure", 1), ("onnxruntime", 1)]
    assert all(r["median_ms"] > 0 for r in found["results"])
    assert found["ratios"][0]["name"] == "onnxruntime" and found["ratios"][0]["ratio"] > 0
    assert found["machine"]["name"] and found["peers"].keys() == {"nervure", "onnxruntime"}
    alone = nervure("bench", library, "--mode", "invoke", *short)
    assert alone.code == 0 and "nervure (invoke)" in alone.out
    assert "--reference" in nervure("bench", library, "--against", "onnxruntime").err


def test_profile(nervure: Nervure, library: Path) -> None:
    found = nervure("profile", library, "--runs", "3", "--json").json
    assert found["runs"] == 3 and found["total_ms"] > 0
    assert sum(s["share"] for s in found["steps"]) == pytest.approx(1, abs=1e-6)
    assert [s["ms"] for s in found["steps"]] == sorted((s["ms"] for s in found["steps"]), reverse=True)
    assert "GFLOP/s" in nervure("profile", library, "--top", "1").out


def test_inspect(nervure: Nervure, tiny: Path, library: Path, tmp_path: Path) -> None:
    found = nervure("inspect", tiny, "--json", "--html", tmp_path / "tiny.html").json
    assert found["steps"] and found["operators"]["matmul"] == 1 and found["buffers"]
    assert found["flops"] >= 2 * 2 * 4 * 3
    assert nervure("inspect", library, "--json").json["sha256"] == read_artifact(library).sha256
    assert "matmul" in nervure("inspect", library).out
    assert "matmul(" in nervure("inspect", tiny, "--graph", "canonical").out
    assert "holds no graph" in nervure("inspect", library, "--graph", "fused").err
    page = (tmp_path / "tiny.html").read_text()
    assert "<svg" in page and not re.search(r'(src|href)\s*=\s*["\'](https?:)?//', page)


def test_networks_in_python(nervure: Nervure, tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(
        "from nervure.compiler.ir import Graph\nfrom nervure.compiler.types import TensorType\n"
        "class Net:\n"
        "    name = 'net'\n"
        "    def to_graph(self, bindings=None):\n"
        "        g = Graph('net')\n"
        "        g.output(g.add('relu', g.input('x', TensorType('float32', (2, 3))), names=['y']))\n"
        "        return g\n"
        "net = Net()\n"
    )
    assert nervure("inspect", f"{tmp_path}/nets.py:net", "--json").json["operators"] == {"relu": 1}
    assert "it has: net" in nervure("inspect", f"{tmp_path}/nets.py:other").err
    (tmp_path / "broken.py").write_text("x = 1\nraise ValueError('no')\n")
    found = nervure("inspect", f"{tmp_path}/broken.py:net")
    assert found.code == 1 and "broken.py:2" in found.err and "ValueError: no" in found.err


@pytest.mark.slow
def test_a_network_of_the_dsl_is_verified_for_every_plan(nervure: Nervure, tmp_path: Path) -> None:
    lines = "import nervure as nv\nnet = nv.Sequential([nv.Input((4,)), nv.layers.Dense(16, activation='relu')])\n"
    (tmp_path / "nets.py").write_text(lines)
    found = nervure("compile", f"{tmp_path}/nets.py:net", "-o", tmp_path, "--dim", "batch=1,3", "--json").json
    assert found["verification"]["ok"] is True and len(found["verification"]["checks"]) == 4
    assert [e["inputs"][0]["shape"] for e in found["entries"]] == [[1, 4], [3, 4]]


# -- hostile names ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [HOSTILE, "n" * 10_000, "../../x", "</script><script>alert(3)//"])
def test_hostile_names_are_inert(nervure: Nervure, make_model: MakeModel, tmp_path: Path, name: str) -> None:
    model = make_model(tmp_path / "m.onnx", names=(f"x{name}", f"h{name}", f"y{name}"))
    page = tmp_path / "page.html"
    found = nervure("inspect", model, "--html", page)
    assert found.code == 0 and max(map(len, found.out.splitlines())) < 1000
    html = page.read_text()
    assert html.count("<script") == 2 and "<script>alert" not in html and "\x1b" not in html and "\u202e" not in html
    assert len(html) < 200_000
    data = html.split('id="data">')[1].split("</script>")[0]
    assert "<" not in data and ">" not in data
    as_json = nervure("inspect", model, "--json").json
    assert as_json["inputs"][0]["name"] == f"x{name}"


@pytest.mark.slow
def test_a_hostile_model_compiles_and_runs(nervure: Nervure, make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model(tmp_path / "m.onnx", names=(f"x{HOSTILE}", f"h{HOSTILE}", f"y{HOSTILE}"))
    assert nervure("compile", model, "-o", tmp_path, "--json").json["verification"]["ok"]
    np.save(tmp_path / "x.npy", np.ones((2, 4), np.float32))
    assert nervure("run", tmp_path / "m.so", "-i", tmp_path / "x.npy", "-o", tmp_path / "y.npz").code == 0
    assert np.load(tmp_path / "y.npz").files == ["output0"]
    assert nervure("profile", tmp_path / "m.so").code == 0


# -- as a process ----------------------------------------------------------------------------------------------------


def process(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "nervure", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        cwd=ROOT.parent,
    )


def test_piped_output_is_plain_and_stderr_quiet(tiny: Path, library: Path) -> None:
    found = process("inspect", tiny)
    assert found.returncode == 0 and found.stderr == "" and "\x1b" not in found.stdout


def test_internal_errors_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "bug.py").write_text(
        "class N:\n    def to_graph(self, b=None): raise ZeroDivisionError('\\x1b[31moops')\nnet = N()\n"
    )
    found = process("inspect", tmp_path / "bug.py:net")
    assert found.returncode == 2 and "internal error: ZeroDivisionError" in found.stderr
    assert "Traceback" not in found.stderr and "\x1b" not in found.stderr and "doctor" in found.stderr
    assert "Traceback" in process("inspect", tmp_path / "bug.py:net", NERVURE_DEBUG="1").stderr


def test_a_closed_pipe_is_quiet(tiny: Path) -> None:
    line = '"$0" -m nervure inspect "$1" --json | true'
    found = subprocess.run(["bash", "-c", line, sys.executable, str(tiny)], capture_output=True, text=True)
    assert found.stderr == ""


def test_interrupt_exits_130(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text("import time\nprint('up', flush=True)\ntime.sleep(30)\n")
    running = subprocess.Popen(
        [sys.executable, "-m", "nervure", "inspect", f"{tmp_path}/slow.py:net"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert running.stdout is not None and running.stdout.readline() == "up\n"
    time.sleep(0.1)
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=20)
    assert running.returncode == 130 and "Traceback" not in said


def test_run_works_where_only_numpy_is_installed(library: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((2, 4), np.float32))
    blocked = ["typer", "rich", "jinja2", "onnx", "networkx", "tvm", "onnxruntime", "PIL", "ziglang", "ml_dtypes"]
    start = (
        f"import sys; sys.modules.update(dict.fromkeys({blocked})); from nervure.frontends.cli.main import main; main()"
    )

    def call(*arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-c", start, *map(str, arguments)], capture_output=True, text=True)

    found = call("run", library, "-i", tmp_path / "x.npy", "--top", "1", "-o", tmp_path / "y.npz")
    assert found.returncode == 0 and "y: float32[2, 3]" in found.stdout and found.stderr == ""
    assert call("run", library, "-i", tmp_path / "none.npy").returncode == 1
    missing = call("compile", "x.onnx")
    assert missing.returncode == 2 and "pip install 'nervure[compile]'" in missing.stderr
