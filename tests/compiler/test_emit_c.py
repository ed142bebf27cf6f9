"""Portable C: what reviewers read, and what compilers make of it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import emitted  # type: ignore[import-not-found]
import models  # type: ignore[import-not-found]
import nervure as nv
import numpy as np
import pytest
from nervure import layers as L
from nervure import targets
from nervure.compiler import emit
from nervure.compiler.interpret import interpret
from nervure.compiler.ir import Graph
from nervure.compiler.names import identifier
from nervure.compiler.pipeline import EntryGraph, Options, emit_entries
from nervure.compiler.types import TensorType
from nervure.errors import NervureError
from nervure.frontends.source import Source
from nervure.targets import emulator
from nervure.targets.portable import portable
from op_cases import CHUNKS, Item, back, complaint, feeds_of  # type: ignore[import-not-found]

F32 = "float32"
WINDOW = {"strides": (1, 1), "dilations": (1, 1)}


def floats() -> Graph:
    """A convolution with a border, a pool, a dense layer, a softmax."""
    rng, g = np.random.default_rng(0), Graph("floats")
    x = g.input("x", TensorType(F32, (1, 3, 9, 8)))
    w = g.const(rng.normal(0, 0.3, (8, 3, 3, 3)).astype(F32), "w")
    b = g.const(rng.normal(0, 0.3, 8).astype(F32), "b")
    y = g.add("conv", x, w, b, **WINDOW, pads=(1, 1, 1, 1), group=1, origin=("layer/one",))
    y = g.add("reduce_mean", g.add("tanh", y), axes=(2, 3))
    y = g.add("matmul", y, g.const(rng.normal(0, 0.3, (8, 5)).astype(F32), "dense"), origin=("layer/two",))
    g.output(g.add("softmax", y, axis=1), "y")
    return g


def bytes_net() -> Graph:
    """Convolutions of bytes: dense with a border, depthwise with stride and dilation, 1x1, and a sum."""
    rng, g = np.random.default_rng(1), Graph("bytes")
    y = g.input("x", TensorType("int8", (1, 6, 11, 10)))
    shapes = (((8, 6, 3, 3), 1, (1, 1), (1, 1)), ((8, 1, 3, 3), 8, (2, 2), (2, 1)), ((10, 8, 1, 1), 1, (1, 1), (1, 1)))
    for number, (shape, group, strides, dilations) in enumerate(shapes):
        w = g.const(rng.integers(-127, 128, shape).astype(np.int8), f"w{number}")
        b = g.const(rng.integers(-3000, 3000, shape[0]).astype(np.int32), f"b{number}")
        pads = (0,) * 4 if shape[2] == 1 else (1, 1, 1, 1)
        attrs = {"strides": strides, "dilations": dilations, "pads": pads, "group": group}
        y = g.add("conv_integer", y, w, b, zero_point=number - 5, **attrs)
        scale = g.const(rng.uniform(1e-3, 4e-3, (shape[0], 1, 1)).astype(F32), f"m{number}")
        y = g.add("requantize", y, scale, zero_point=number - 4, to="int8")
    g.output(y, "y")
    return g


def written(graph: Graph, folder: Path, target: str = "cortex-m4", name: str = "small") -> Source:
    model = nv.compile(graph, target=target, emit="c", name=name, out=folder / f"{name}.c")
    assert isinstance(model, Source)
    return model


NETS = {"floats": floats, "bytes": bytes_net}


@pytest.mark.parametrize("net", NETS)
def test_it_computes_what_the_library_does(net: str, tmp_path: Path) -> None:
    graph = NETS[net]()
    model = written(graph, tmp_path)
    given = emitted.inputs(model.artifact)
    emitted.agree(model.run(None, given), interpret(graph, list(given.values())))
    emitted.agree(model.run(None, given), nv.compile(graph, out=tmp_path / "host.so").run(None, given))


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("compiler", emitted.COMPILERS)
def test_every_compiler_takes_it_without_a_warning(net: str, compiler: str, tmp_path: Path) -> None:
    artifact = written(NETS[net](), tmp_path).artifact
    emitted.compile_c(artifact, compiler, tmp_path / "net.o")
    emitted.check_header(artifact)


def test_flags_do_not_change_integers(tmp_path: Path) -> None:
    """GNU mode fuses products and sums where the processor can: the rounding must not notice."""
    graph = bytes_net()
    artifact = written(graph, tmp_path).artifact
    given = emitted.inputs(artifact)
    expected = interpret(graph, list(given.values()))
    for number, flags in enumerate((("-std=gnu11", "-O3", "-march=native"), ("-std=c99", "-O0"))):
        folder = tmp_path / str(number)
        folder.mkdir()
        emitted.agree(emitted.loaded(artifact, "gcc", folder, *flags).run(None, given), expected)


def test_the_kernel_is_what_a_person_would_write(tmp_path: Path) -> None:
    graph = Graph("tiny")
    x = graph.input("x", TensorType("int8", (1, 2, 4, 4)))
    w = graph.const(np.arange(-9, 9, dtype=np.int8).reshape(1, 2, 3, 3), "w")
    sums = graph.add("conv_integer", x, w, zero_point=3, **WINDOW, pads=(1, 1, 1, 1), group=1, origin=("net/conv",))
    m = graph.const(np.full((1, 1, 1), 0.25, F32), "m")
    graph.output(graph.add("requantize", sums, m, zero_point=1, to="int8", origin=("net/conv",)), "y")
    text = written(graph, tmp_path).path.read_text()
    kernel = text[text.index("/* conv_integer+requantize: int8[1,2,4,4]") :]
    assert (
        kernel[: kernel.index("\n}\n")]
        == """\
/* conv_integer+requantize: int8[1,2,4,4] -> int8[1,1,4,4] */
NOINLINE static void conv_3x3_4x4x1(const int8_t *restrict x, const int8_t *restrict w, int8_t *restrict y)
{
    for (int32_t oy = 0; oy < 4; oy++) {
        for (int32_t ox = 0; ox < 4; ox++) {
            const int32_t ky_first = max_i32(0, 1 - oy);
            const int32_t ky_end = min_i32(3, 5 - oy);
            const int32_t kx_first = max_i32(0, 1 - ox);
            const int32_t kx_end = min_i32(3, 5 - ox);
            int32_t acc = 0;
            for (int32_t ky = ky_first; ky < ky_end; ky++) {
                for (int32_t kx = kx_first; kx < kx_end; kx++) {
                    for (int32_t ic = 0; ic < 2; ic++) {
                        acc += (x[ic * 16 + oy * 4 + ky * 4 + ox + kx - 5] - 3) * w[ky * 6 + kx * 2 + ic];
                    }
                }
            }
            y[oy * 4 + ox] = (int8_t)rescale(acc, 0.25f, 1, -128, 127);
        }
    }"""
    )
    assert "    /* 1. conv_integer+requantize: int8[1,2,4,4] -> int8[1,1,4,4]\n     * 288 MACs;" in text
    assert "\n     * from net/conv */\n" in text
    assert "    -9, 0, -8, 1, -7, 2, -6, 3, -5, 4, -4, 5, -3, 6, -2, 7, -1, 8\n" in text


@pytest.mark.parametrize("net", NETS)
def test_it_needs_nothing_and_keeps_nothing(net: str, tmp_path: Path) -> None:
    artifact = written(NETS[net](), tmp_path).artifact
    for path in (artifact.path, artifact.path.with_suffix(".h")):
        includes = set(re.findall(r"#include (\S+)", path.read_text()))
        assert includes <= {"<stdint.h>", "<string.h>", "<math.h>", '"small.h"'}
    emitted.compile_c(artifact, "gcc", tmp_path / "net.o", "-O1", "-fno-stack-protector")
    listed = subprocess.run(["nm", "net.o"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in listed.splitlines()]
    assert not [r for r in rows if r[-2] in "bBdDC"], "variables of its own"
    assert {r[-1] for r in rows if r[-2] == "U"} <= {"memcpy", "memset", "memcmp", "sqrtf"}
    assert {r[-1] for r in rows if r[-2] == "T"} >= {"small_init", "small_infer"}


def test_the_same_network_gives_the_same_bytes(tmp_path: Path) -> None:
    first = written(floats(), tmp_path).path.read_bytes()
    assert written(floats(), tmp_path).path.read_bytes() == first


@pytest.mark.parametrize("target", ["x86-64-v3", "rpi4", "cortex-m55"])
def test_every_target_can_be_written_as_c(target: str, tmp_path: Path) -> None:
    graph = bytes_net()
    model = written(graph, tmp_path, target)
    given = emitted.inputs(model.artifact)
    emitted.agree(model.run(None, given), interpret(graph, list(given.values())))
    assert f"planned for {target}" in model.path.read_text()


def test_training_is_written_as_c_too(tmp_path: Path) -> None:
    net = nv.Sequential([L.Dense(8, "tanh", input_dim=5, name="hidden"), L.Dense(3, name="out")], name="trained")
    training = nv.Training(nv.losses.SparseCategoricalCrossentropy(from_logits=True), "adam", batch=4)
    there = nv.compile(net, target="cortex-m4", training=training, emit="c", out=tmp_path / "trained.c")
    here = nv.compile(net, training=training)
    emitted.compile_c(there.artifact, "gcc", tmp_path / "trained.o")
    rng, losses = np.random.default_rng(2), []
    x, y = rng.standard_normal((4, 5)).astype(F32), np.array([0, 1, 2, 1], np.int32)
    feeds = {p.name: {"input": x, "y": y}.get(p.name) for p in there.artifact.entry("train_step").inputs}
    feeds = {n: (np.asarray(0.05, F32) if v is None else v) for n, v in feeds.items()}
    for _ in range(20):
        got = there.session.run(None, feeds, entry="train_step")
        emitted.agree(got, here.session.run(None, feeds, entry="train_step"))
        losses.append(float(got[0]))
    assert losses[-1] < 0.7 * losses[0]


def test_hostile_names_stay_in_comments(tmp_path: Path) -> None:
    graph = Graph("net")
    x = graph.input("*/ int evil; /*", TensorType(F32, (4,)))
    graph.output(graph.add("tanh", x, origin=('*/\\\n#error "?"',)), "int")
    model = written(graph, tmp_path)
    emitted.compile_c(model.artifact, "gcc", tmp_path / "net.o")
    emitted.check_header(model.artifact)


def test_a_source_is_saved_under_its_own_name(tmp_path: Path) -> None:
    model = written(floats(), tmp_path)
    place = tmp_path / "there"
    place.mkdir()
    model.save(place / "small.c")
    assert (place / "small.h").read_text() == model.header.read_text()
    with pytest.raises(NervureError, match=r"should be called small\.c"):
        model.save(place / "other.c")


def test_what_cannot_be_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(NervureError, match="emit 'cpp' is unknown"):
        nv.compile(floats(), emit="cpp")
    with pytest.raises(NervureError, match=r"C source in .*net\.so"):
        nv.compile(floats(), emit="c", out=tmp_path / "net.so")
    with pytest.raises(NervureError, match="the C file would be called"):
        nv.compile(floats(), emit="c", out=tmp_path / "a b.c")


def test_operators_without_a_form_in_c_are_named_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nervure.compiler import pipeline

    def nothing(drafts: object, machine: object, folder: Path, progress: object) -> list[Path]:
        files = [folder / f"{d.spec.name}.json" for d in drafts]  # type: ignore[attr-defined]
        for file in files:
            file.write_text('{"unsupported": "matrix registers have no form in C99"}')
        return files

    monkeypatch.setattr(pipeline, "compile_kernels", nothing)
    with pytest.raises(NervureError, match=r"cannot be written as C99: conv\+tanh.*softmax") as caught:
        written(floats(), tmp_path)
    assert "matrix registers" in str(caught.value) and "layer/one" in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_labels_are_short_and_without_what_all_share() -> None:
    found = emit.labels(["net/block_1/relu;net/x", "net/block_2/relu", "net/out"])
    assert list(found.values()) == ["block_1_relu", "block_2_relu", "out"]
    assert all(len(v) <= 28 for v in emit.labels(["a" * 80, "b/" * 60 + "c"]).values())


def test_a_portable_machine_keeps_its_memory_and_nothing_else() -> None:
    machine = targets.get("cortex-m55")
    seen = portable(machine)
    assert (seen.lanes, seen.instructions, seen.system, seen.align) == (1, (), "bare", machine.align)
    assert seen.board == machine.board and "cortex-m55" in seen.name


# -- the op table ----------------------------------------------------------------------------------------------------


def complaints(items: list[Item], folder: Path) -> list[str]:
    entries = [EntryGraph(graph, name) for name, graph, _ in items]
    artifact = emit_entries(entries, targets.get("cortex-m4"), folder / "ops.c", Options(name="ops", check=True))
    built, found = emitted.loaded(artifact, "gcc", folder, "-std=c99", "-O1"), []
    for name, graph, feeds in items:
        expected = interpret(graph, feeds)
        got = built.run(None, feeds_of(graph, feeds), entry=name)
        found.append(complaint(name, [back(y, r) for y, r in zip(got, expected, strict=True)], expected))
    return [c for c in found if c]


SAMPLE = [item for chunk in CHUNKS for item in chunk.values[0]][::61]


@pytest.mark.parametrize("part", range(0, len(SAMPLE), 4))
def test_a_sample_of_the_op_table(part: int, tmp_path: Path) -> None:
    assert not complaints(SAMPLE[part : part + 4], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("items", CHUNKS)
def test_the_op_table(items: list[Item], tmp_path: Path) -> None:
    found = complaints(items, tmp_path)
    assert not found, "\n".join(found)


# -- models ----------------------------------------------------------------------------------------------------------

MOST = 4_300_000  # bytes of a model file with under 4 MB of weights
QUANTIZED = models.SHARED / "models" / "quantized"
INT8 = sorted(p.stem for p in QUANTIZED.glob("*.onnx"))
SMALL = ("lenet", "tiny_kws01", "tiny_ic01", "tiny_kws01_int8", "tiny_ic01_int8", "tiny_ad01_int8", "tiny_vww01_int8")


def model_file(name: str) -> Path:
    path = QUANTIZED / f"{name}.onnx" if name in INT8 else models.model(name)[0]
    if path.stat().st_size > MOST:
        pytest.skip("more than 4 MB of weights")
    return path


def model_as_c(name: str, folder: Path, target: str) -> tuple[Source, dict[str, np.ndarray], list[np.ndarray]]:
    """The model as C, an input, and what the library for this machine makes of it."""
    from bare_figures import free_dims

    path = model_file(name)
    dims, called = free_dims(path), identifier(path.stem)
    there = nv.compile(path, target=target, dims=dims, emit="c", name=called, out=folder / f"{called}.c")
    given = emitted.inputs(there.artifact)
    return there, given, nv.compile(path, dims=dims).run(None, given)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["cortex-m4", "x86-64-v3"])
@pytest.mark.parametrize("name", [*models.names(), *INT8])
@pytest.mark.sampled(4)
def test_models(name: str, target: str, tmp_path: Path) -> None:
    model, given, expected = model_as_c(name, tmp_path, target)
    emitted.check_header(model.artifact)
    emitted.compile_c(model.artifact, "arm", tmp_path / "arm.o")
    for compiler in ("gcc", "clang"):
        emitted.agree(emitted.loaded(model.artifact, compiler, tmp_path).run(None, given), expected)


@pytest.mark.slow
@pytest.mark.emulator
@pytest.mark.parametrize("name", [*models.names(), *INT8])
def test_models_on_cortex_m4(name: str, tmp_path: Path) -> None:
    """Built by arm-none-eabi-gcc with newlib, run by QEMU's mps2-an386: 4 MB of flash, 4 MB of RAM."""
    machine = targets.get("cortex-m4")
    try:
        emulator.command(machine)
    except NervureError as missing:
        pytest.skip(str(missing))
    model, given, expected = model_as_c(name, tmp_path, "cortex-m4")
    if model.report.weights_bytes > 3 << 20 or model.report.context_bytes > 3 << 20:
        pytest.skip("too large for the board")
    if sum(s["flops"] for s in model.report.layers) > 4e8:
        pytest.skip("would take minutes")
    got, _, _ = emitted.in_emulator(model.artifact, machine, given, tmp_path)
    emitted.agree(got, expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ad", "kws"])
def test_models_quantized_here(name: str, tmp_path: Path) -> None:
    import bare_figures

    if not QUANTIZED.is_dir():
        pytest.skip("no ../shared")
    path, out = models.model(f"tiny_{name}01")[0], tmp_path / f"{name}.onnx"
    nv.quantize(path, bare_figures.samples(name), out, samples=64, optimize="size", latency=False, outputs=True)
    model = nv.compile(out, target="cortex-m4", emit="c", name=f"{name}_here", out=tmp_path / f"{name}_here.c")
    given = emitted.inputs(model.artifact)
    expected = nv.compile(out).run(None, given)
    for compiler in ("gcc", "clang"):
        got = emitted.loaded(model.artifact, compiler, tmp_path).run(None, given)
        for y, wanted in zip(got, expected, strict=True):
            np.testing.assert_array_equal(y, wanted)
    emitted.compile_c(model.artifact, "arm", tmp_path / "arm.o")


MAIN = """\
#include <stdio.h>
#include "%(name)s.h"
static %(big)s_ARENA(arena);
int main(void)
{
    static const %(name)s_memory memory = {arena};
    if (%(name)s_init(&memory) != 0) return 1;
    if (fread(%(name)s_infer_input(&memory, 0), 1, %(given)d, stdin) != %(given)d) return 2;
    if (%(name)s_infer(&memory, NULL, NULL) != 0) return 3;
    if (fwrite(%(name)s_infer_output(&memory, 0), 1, %(made)d, stdout) != %(made)d) return 4;
    return 0;
}
"""


def sanitized(model: Source, given: dict[str, np.ndarray], expected: list[np.ndarray], folder: Path) -> None:
    name = model.artifact.prefix
    (x,), wanted = given.values(), expected[0]
    parts = {"name": name, "big": name.upper(), "given": x.nbytes, "made": wanted.nbytes}
    (folder / "main.c").write_text(MAIN % parts)
    checks = ("-O0", "-g", "-fsanitize=undefined,address", "-fno-sanitize-recover=all")
    command = [*emitted.compiler("gcc"), *emitted.STRICT, *checks, "main.c", model.path.name, "-lm", "-o", "main"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    ran = subprocess.run([str(folder / "main")], input=x.tobytes(), capture_output=True)
    assert ran.returncode == 0, ran.stderr.decode(errors="replace")[:2000]
    emitted.agree([np.frombuffer(ran.stdout, wanted.dtype).reshape(wanted.shape)], [wanted])


@pytest.mark.parametrize("net", NETS)
def test_sanitizers_find_nothing(net: str, tmp_path: Path) -> None:
    graph = NETS[net]()
    model = written(graph, tmp_path)
    given = emitted.inputs(model.artifact)
    sanitized(model, given, interpret(graph, list(given.values())), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_sanitizers_find_nothing_in_models(name: str, tmp_path: Path) -> None:
    if not QUANTIZED.is_dir():
        pytest.skip("no ../shared")
    sanitized(*model_as_c(name, tmp_path, "cortex-m4"), tmp_path)
