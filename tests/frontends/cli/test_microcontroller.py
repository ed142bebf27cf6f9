"""The command line for microcontrollers: what it says, what its JSON holds; how it fails, leaving nothing behind."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from nervure.errors import NervureError
from nervure.frontends.cli.microcontroller import by_layer, check_limits, lines, places, with_one_sample
from nervure.frontends.cli.network import network
from nervure.runtime.artifact import read_artifact
from nervure.targets import emulator, get
from nervure.targets.firmware import Measured
from onnx import TensorProto, helper

Nervure = Callable[..., Any]
MakeModel = Callable[..., Path]
emulated = pytest.mark.skipif(shutil.which("qemu-system-arm") is None, reason="needs qemu-system-arm")


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny classifier for cortex-m4, compiled once."""
    import nervure as nv

    pytest.importorskip("tvm")

    @nv.network
    def small(x: nv.Input((4,))):  # type: ignore[no-untyped-def]
        return nv.softmax(nv.layers.Dense(3)(nv.relu(nv.layers.Dense(8)(x))))

    folder = tmp_path_factory.mktemp("bare")
    nv.save_onnx(small.to_graph(), folder / "small.onnx")
    return nv.compile(small, target="cortex-m4", name="small", out=folder / "libsmall.a").path


@pytest.fixture
def free(make_model: MakeModel, tmp_path: Path) -> Path:
    """A model that leaves its batch open."""
    return make_model(tmp_path / "free.onnx", batch="batch")


def in_float64(path: Path) -> Path:
    """y = exp(double(x) w), x: [1, 4]: two operations that no M4 computes."""
    weights = onnx.numpy_helper.from_array(np.ones((4, 3)), "w")
    nodes = [
        helper.make_node("Cast", ["x"], ["wide"], name="widen", to=TensorProto.DOUBLE),
        helper.make_node("MatMul", ["wide", "w"], ["h"], name="product"),
        helper.make_node("Exp", ["h"], ["y"], name="power"),
    ]
    graph = helper.make_graph(
        nodes,
        "wide",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("y", TensorProto.DOUBLE, [1, 3])],
        [weights],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def without(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    """This machine, as if a program were not installed."""
    which = shutil.which
    monkeypatch.setattr(emulator.shutil, "which", lambda name, **k: None if name == program else which(name, **k))


# -- targets and places ----------------------------------------------------------------------------------------------


def test_targets_lists_cores_and_boards(nervure: Nervure) -> None:
    found = nervure("targets", "--json").json
    cores = {t["name"]: t for t in found["targets"] if t["system"] == "bare"}
    assert set(cores) == {"cortex-m4", "cortex-m7", "cortex-m33", "cortex-m55"}
    board = next(b for b in found["boards"] if b["name"] == "nucleo-l4r5zi")
    assert board["core"] == "cortex-m4" and {m["bytes"] for m in board["memory"]} == {2 << 20, 640 << 10}
    text = nervure("targets").out
    assert text.index("Linux") < text.index("Microcontrollers") < text.index("Boards") < text.index("nucleo-l4r5zi")
    shown = nervure("targets", "nucleo-h743zi")
    assert "0x24000000" in shown.out and "axi_sram" in shown.out and "RM0433" in shown.out
    assert nervure("targets", "nucleo-h743zi", "--json").json["board"]["stack_bytes"] == 8192
    assert "did you mean 'nucleo-h743zi'" in nervure("targets", "nucleo-h743").err
    one = nervure("targets", "cortex-m55", "--json").json
    assert [t["name"] for t in one["targets"]] == ["cortex-m55"]
    assert {b["name"] for b in one["boards"]} == {"mps3-an547", "stm32n6570-dk"}
    assert "Boards" not in nervure("targets", "rpi4").out


def test_boards_and_targets_together() -> None:
    def labels(*args: Any) -> list[str]:
        return [p.label for p in places(*args)]

    assert labels(None, None) == ["host"]
    assert labels(None, ["nucleo-l4r5zi"]) == labels(["cortex-m4"], ["nucleo-l4r5zi"]) == ["nucleo-l4r5zi"]
    assert labels(["host", "cortex-m4"], ["nucleo-l4r5zi"]) == ["nucleo-l4r5zi", "host"]
    assert labels(None, ["nrf52840-dk", "nrf5340-dk"]) == ["nrf52840-dk", "nrf5340-dk"]


def test_another_core_than_the_boards(nervure: Nervure, tiny: Path, tmp_path: Path) -> None:
    found = nervure("compile", tiny, "-t", "cortex-m7", "--board", "nucleo-l4r5zi", "-o", tmp_path / "out")
    assert found.code == 1 and "nucleo-l4r5zi has a cortex-m4, not a cortex-m7" in found.err
    assert "--target cortex-m4" in found.err and not (tmp_path / "out").exists()


def test_an_open_batch_is_one(free: Path) -> None:
    bound, words = with_one_sample(network(str(free)))
    assert bound.bindings() == [{"batch": 1}] and "batch=1" in words
    given = network(str(free), ["batch=3"])
    assert with_one_sample(given) == (given, "")


# -- compile ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.emulator
@emulated
def test_compile_for_a_board(nervure: Nervure, free: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    found = nervure("compile", free, "--board", "nucleo-l4r5zi", "-o", out, "--package", "cmake", "--json")
    assert sorted(p.name for p in out.iterdir()) == ["cmake", "free.h", "libfree.a"]
    assert "batch=1" in found.err
    facts = found.json
    ram, flash = facts["footprint"]["ram"], facts["footprint"]["flash"]
    assert facts["target"] == "cortex-m4" and facts["board"] == "nucleo-l4r5zi"
    assert ram["bytes"] == ram["arena_bytes"] + ram["stack_bytes"] and 0 < ram["stack_bytes"] < 2048
    assert ram["arena_bytes"] == sum(ram["regions"].values()) >= 4 * (4 + 3) and ram["limit_bytes"] == 640 << 10
    assert flash["bytes"] == flash["code_bytes"] + flash["constant_bytes"] + flash["weight_bytes"]
    assert flash["weight_bytes"] >= 60 and flash["limit_bytes"] == 2 << 20
    assert facts["footprint"]["peak_layer"]["bytes"] <= ram["arena_bytes"] and facts["footprint"]["instructions"] > 12
    assert facts["verification"]["ok"] is True and facts["entries"][0]["inputs"][0]["shape"] == [1, 4]
    assert (out / "cmake" / "free" / "freeConfig.cmake").exists()
    text = nervure("compile", free, "--board", "nucleo-l4r5zi", "-o", out).out
    for words in ("of 640.0 KB", "of 2.0 MB", "largest live layer", "not cycles", "against ONNX Runtime"):
        assert words in text


def test_portable_c(nervure: Nervure, tiny: Path, tmp_path: Path) -> None:
    found = nervure("compile", tiny, "--emit", "c", "-o", tmp_path, "--package", "arduino", "--json").json
    assert (tmp_path / "tiny.c").exists() and (tmp_path / "tiny.h").exists()
    assert (tmp_path / "arduino" / "tiny" / "src" / "tiny.c").read_bytes() == (tmp_path / "tiny.c").read_bytes()
    assert found["verification"]["ok"] is True and found["footprint"]["flash"]["code_bytes"] is None
    assert "the C compiler decides" in nervure("compile", tiny, "--emit", "c", "-o", tmp_path / "named.c").out
    assert (tmp_path / "named.c").exists() and '"named.h"' in (tmp_path / "named.c").read_text()


@pytest.mark.parametrize(
    "arguments, said",
    [
        (("-t", "cortex-m4", "-o", "OUT/x.so"), "what is compiled for cortex-m4 is a static library"),
        (("-o", "OUT/x.a"), "what is compiled for host is a shared library"),
        (("--emit", "c", "-o", "OUT/x.so"), "is C"),
        (("-t", "cortex-m4", "-t", "cortex-m7", "-o", "OUT/x.a"), "one file for several targets"),
        (("--package", "cmake", "-o", "OUT"), "a package for cmake holds a static library or C"),
        (("--board", "nucleo", "-o", "OUT"), "there is no board 'nucleo'"),
        (("--emit", "rust", "-o", "OUT"), "rust"),
    ],
)
def test_refusals_leave_nothing(
    nervure: Nervure, tiny: Path, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    out = tmp_path / "out"
    found = nervure("compile", tiny, *(a.replace("OUT", str(out)) for a in arguments))
    assert found.code == 1 and said in found.err and not out.exists()


def test_a_board_file_with_overlapping_memories(nervure: Nervure, tiny: Path, tmp_path: Path) -> None:
    board = tmp_path / "mine.toml"
    rows = [("flash", "flash", 0, "64K"), ("a", "ram", 0x20000000, "64K"), ("b", "ram", 0x20008000, "64K")]
    text = 'title = "mine"\ncore = "cortex-m4"\n'
    for name, kind, origin, size in rows:
        text += f'[[memory]]\nname = "{name}"\nkind = "{kind}"\norigin = {origin}\nsize = "{size}"\n'
    board.write_text(text)
    found = nervure("compile", tiny, "--board", board, "-o", tmp_path / "out")
    assert found.code == 1 and "both have 0x20008000 to 0x2000ffff, 32768 bytes" in found.err
    assert str(board) in found.err and not (tmp_path / "out").exists()


def test_float64_on_a_core_without_it(nervure: Nervure, tmp_path: Path) -> None:
    model = in_float64(tmp_path / "wide.onnx")
    found = nervure("compile", model, "-t", "cortex-m4", "-o", tmp_path / "out", "--json")
    error = found.json["error"]
    assert found.code == 1 and error["what"] == "cortex-m4 does not compute in float64, 3 places do"
    assert [any(name in place for place in error["where"]) for name in ("widen", "product", "power")] == [True] * 3
    assert "float32" in error["hint"] and "cortex-m7" in error["hint"] and not (tmp_path / "out").exists()


def test_a_model_that_cannot_fit(nervure: Nervure, make_model: MakeModel, tmp_path: Path) -> None:
    board = tmp_path / "small.toml"
    board.write_text(
        'title = "small"\ncore = "cortex-m4"\nstack = 16\n'
        '[[memory]]\nname = "flash"\nkind = "flash"\norigin = 0\nsize = "64K"\n'
        '[[memory]]\nname = "ram"\nkind = "ram"\norigin = 0x20000000\nsize = 1024\n'
    )
    wide = make_model(tmp_path / "wide.onnx", batch=1, classes=2000)
    found = nervure("compile", wide, "--board", board, "-o", tmp_path / "out", "--json")
    error = found.json["error"]
    assert found.code == 1 and "needs 8016 bytes" in error["what"] and "1008" in error["what"]  # less 16 of stack
    assert "largest live layer" in error["why"] and "int8" in error["hint"]
    assert not (tmp_path / "out").exists()


def test_without_the_emulator(
    nervure: Nervure, tiny: Path, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without(monkeypatch, "qemu-system-arm")
    found = nervure("compile", tiny, "-t", "cortex-m4", "-o", tmp_path / "out", "--json")
    facts = found.json
    assert found.code == 0 and facts["verification"]["ok"] is None and facts["footprint"]["ram"]["stack_bytes"] is None
    assert "qemu-system-arm" in facts["verification"]["hint"]
    for command in (("verify", tiny, "-t", "cortex-m4"), ("run", archive, "-i", "x.npy"), ("profile", archive)):
        np.save(tmp_path / "x.npy", np.zeros((1, 4), np.float32))
        refused = nervure(*(str(tmp_path / a) if a == "x.npy" else a for a in command))
        assert refused.code == 2 and "apt-get install qemu-system-arm" in refused.err


def test_without_the_toolchain(nervure: Nervure, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nervure.targets import toolchain

    monkeypatch.setattr(toolchain, "find_spec", lambda name: None)
    toolchain.zig.cache_clear()
    try:
        found = nervure("compile", tiny, "-t", "cortex-m4", "-o", tmp_path / "out", "--no-cache")
    finally:
        monkeypatch.undo()
        toolchain.zig.cache_clear()
    assert found.code == 2 and "ziglang is not installed" in found.err and "pip install" in found.err
    assert not (tmp_path / "out").exists()


# -- run, verify, profile, inspect -----------------------------------------------------------------------------------


@pytest.mark.emulator
@emulated
def test_run_and_verify_in_the_emulator(nervure: Nervure, archive: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(4, dtype=np.float32)[None])
    found = nervure("run", archive, "-i", tmp_path / "x.npy", "--count", "--top", "1", "--json").json
    assert found["seconds"] is None and found["emulator"]["target"] == "cortex-m4"
    assert found["emulator"]["instructions"] > 56 and found["outputs"][0]["shape"] == [1, 3]
    assert abs(sum(found["outputs"][0]["values"][0]) - 1) < 1e-6
    assert "(not cycles)" in nervure("run", archive, "-i", tmp_path / "x.npy", "--count").out
    assert "there is no input" in nervure("run", archive).err
    model = archive.with_name("small.onnx")
    for pair in ((archive, model), (model, archive)):
        agreed = nervure("verify", *pair, "--seeds", "1", "--json").json
        assert agreed["ok"] is True and agreed["target"] == "cortex-m4" and agreed["max_rel_error"] < 1e-5
    assert "was compiled for cortex-m4, not for cortex-m7" in nervure("run", archive, "-t", "cortex-m7").err


@pytest.mark.emulator
@emulated
def test_profile_counts_instructions(nervure: Nervure, archive: Path) -> None:
    found = nervure("profile", archive, "--json").json
    counted = [s["instructions"] for s in found["steps"]]
    assert found["unit"] == "instructions" and counted == sorted(counted, reverse=True) and min(counted) > 0
    assert sum(counted) + found["outside_layers"] == found["total_instructions"]
    assert nervure("profile", archive, "--json").json == found
    text = nervure("profile", archive, "--top", "1").out
    assert "instructions are no cycles" in text and "more steps not shown" in text
    refused = nervure("bench", archive)
    assert refused.code == 1 and "nervure profile" in refused.err


def test_instructions_by_call_of_a_kernel(archive: Path) -> None:
    artifact = read_artifact(archive)
    kernels = [k for s in artifact.entries[0].steps for k in s["kernels"]]
    functions = dict.fromkeys(kernels, 60) | {"small_infer": 40}
    seen = Measured((), 0, (), functions, tuple((k, 10 + i) for i, k in enumerate(kernels)))
    rows = by_layer(artifact, seen)
    assert {r["step"]: r["instructions"] for r in rows} == {i: 10 + i for i in range(len(rows))}
    assert len(rows) == len(kernels)
    unordered = by_layer(artifact, replace(seen, calls=seen.calls[1:]))  # then a shared kernel is split evenly
    assert sum(r["instructions"] for r in unordered) == 60 * len(set(kernels))
    assert sum(r["share"] for r in unordered) == pytest.approx(60 * len(set(kernels)) / sum(functions.values()))


def test_inspect_draws_liveness(nervure: Nervure, archive: Path, free: Path, tmp_path: Path) -> None:
    found = nervure("inspect", archive, "--html", tmp_path / "page.html", "--json").json
    assert found["footprint"]["flash"]["weight_bytes"] >= 4 * (4 * 8 + 8 * 3)
    assert len(found["live"]) == len(found["steps"]) and max(r["bytes"] for r in found["live"]) <= found["arena_bytes"]
    assert "Liveness" in (tmp_path / "page.html").read_text()
    assert "most is alive at step" in nervure("inspect", archive).out
    planned = nervure("inspect", free, "-t", "cortex-m4", "--json").json
    assert planned["target"] == "cortex-m4" and planned["inputs"][0]["shape"] == [1, 4] and planned["live"]


def test_more_than_the_board_has() -> None:
    def row(flash: int, regions: dict[str, int], stack: int | None) -> dict[str, Any]:
        memory = [("flash", "flash", 4096), ("dtcm", "ram", 1024), ("sram", "ram", 2048)]
        parts = {"code_bytes": 1, "constant_bytes": 2, "weight_bytes": flash - 3}
        return {
            "board": {"name": "b", "memory": [{"name": n, "kind": k, "bytes": s} for n, k, s in memory]},
            "ram": {"regions": regions, "stack_bytes": stack},
            "flash": {"bytes": flash, "limit_bytes": 4096, **parts},
        }

    check_limits(row(4096, {"arena": 2048, "dtcm": 512}, 512), "net")
    check_limits(row(4096, {"arena": 2048, "dtcm": 1024}, None), "net")
    with pytest.raises(NervureError, match="net needs 4097 bytes of flash, b has 4096"):
        check_limits(row(4097, {"arena": 8}, 8), "net")
    with pytest.raises(NervureError, match=r"net needs 1025 bytes of dtcm.*\n.*512 for tensors, 513 of stack"):
        check_limits(row(9, {"arena": 8, "dtcm": 512}, 513), "net")
    check_limits({"board": None, "ram": {}, "flash": {}}, "net")


def test_bars_and_unmeasured_figures() -> None:
    row = {
        "ram": {"bytes": 512, "regions": {"arena": 512, "dtcm": 0}, "kept_bytes": 128, "stack_bytes": None},
        "flash": {"bytes": 4096, "code_bytes": None, "constant_bytes": None, "weight_bytes": 4096, "limit_bytes": 2048},
        "peak_layer": None,
        "instructions": None,
        "why_not_measured": "no emulator",
    }
    said = "\n".join(lines(row))
    assert "128 B of it stay" in said and "dtcm" not in said and said.count("no emulator") == 2
    assert f"[{'#' * 24}] 200.0%" in said
    assert get("cortex-m4").system == "bare"
