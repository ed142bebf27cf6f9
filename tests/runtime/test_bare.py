"""Static libraries for machines without an operating system: their C API in the emulator, header, symbols."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import hand_programs as hand
import nervure as nv
import numpy as np
import pytest
from nervure import layers
from nervure.compiler import bare
from nervure.compiler.ir import Graph
from nervure.compiler.library import build_archive, build_library, measure
from nervure.compiler.names import entry_names, prefix
from nervure.compiler.pipeline import EntryGraph, Options, plan_program
from nervure.compiler.program import Entry, Program, Region
from nervure.compiler.types import TensorType
from nervure.errors import MissingTool
from nervure.targets import boards, emulator, firmware, get, toolchain

HERE = Path(__file__).parent
M4 = get("cortex-m4")
CORES = ("cortex-m4", "cortex-m7", "cortex-m33", "cortex-m55")


def needs_emulator() -> pytest.MarkDecorator:
    try:
        emulator.command(M4)
    except MissingTool as error:
        return pytest.mark.skip(reason=str(error))
    return pytest.mark.emulator


EMULATOR = needs_emulator()


def program() -> Program:
    """``trainable`` with two entries that compute with denormals, one of which flushes them."""
    x, y = hand.port("x", "float32", (64,), 0), hand.port("y", "float32", (64,), 256)
    steps = (hand.step("denormal", hand.INPUT, hand.OUTPUT),)
    extra = [
        Entry(name, (x,), (y,), steps, region_bytes=(512,), reads_derived=False, flush_denormals=name == "flushing")
        for name in ("flushing", "keeping")
    ]
    base = hand.trainable()
    return replace(base, entries=(*base.entries, *extra), regions=(Region("arena", 576),))


def archive(made: Program, folder: Path, target: str = "cortex-m4", name: str = "trainable"):
    source = folder / "kernels.c"
    source.write_bytes(hand.KERNELS.read_bytes())
    machine = get(target)
    kernels = toolchain.compile_c(source, folder / "kernels.o", machine, flags=toolchain.BARE_FLAGS)
    return build_archive(made, [kernels], machine, folder / f"lib{name}.a")


def on_linux(made: Program, folder: Path):
    source = folder / "kernels.c"
    source.write_bytes(hand.KERNELS.read_bytes())
    kernels = toolchain.compile_c(source, folder / "host.o", get("host"))
    return nv.load(build_library(made, [kernels], get("host"), folder / "host.so").path)


@EMULATOR
@pytest.mark.parametrize("target", CORES)
def test_the_c_functions(tmp_path, target):
    archive(program(), tmp_path, target)
    host = on_linux(program(), tmp_path)
    host.set_params({"w": hand.WEIGHTS + 3})
    (tmp_path / "linux").write_bytes(host.export_state())
    other = replace(program(), states=())
    renamed = replace(other, params=(replace(other.params[0], name="v"),), states=program().states)
    (tmp_path / "foreign").write_bytes(on_linux(renamed, tmp_path).export_state())
    (tmp_path / "main.c").write_bytes((HERE / "bare.c").read_bytes())
    machine = get(target)
    board = boards.get(machine.board)
    flags = ("-Wall", "-Wextra", "-Werror")
    elf = firmware.link(tmp_path, ["main.c", "libtrainable.a"], machine, board, out="main.elf", flags=flags)
    done = firmware.simulate(elf, machine, timeout=60)
    assert done.said.strip() == "ok" and done.status == 0, done.said
    blob = (tmp_path / "blob").read_bytes()  # what the microcontroller exported is what Linux reads and writes
    host.import_state(blob)
    assert host.export_state() == blob
    np.testing.assert_array_equal(host.params()["w"], hand.WEIGHTS + 1)


HOSTILE = replace(
    hand.trainable(),
    name='*/ #error "x"\n int',
    entries=tuple(
        replace(e, function=f, inputs=tuple(replace(p, name='x"; */\\\n??/') for p in e.inputs))
        for e, f in zip(hand.trainable().entries, ("infer", "infer_input", "refresh"), strict=True)
    ),
    regions=(Region("static", 576),),
)
HEADERS = {
    "trainable": hand.trainable(),
    "regions": hand.two_regions(),
    "batches": hand.batches(),
    "hostile": replace(HOSTILE, regions=(Region("arena", 576), Region("register", 64))),
}
LANGUAGES = ("gcc -std=c99", "gcc -std=c11", "g++ -std=c++98", "g++ -std=c++11", "g++ -std=c++20")


@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")
@pytest.mark.parametrize("kind", HEADERS)
def test_the_header_in_c_and_cpp(tmp_path, kind):
    made = HEADERS[kind]
    for name, data in bare.sources(made, 8).items():
        (tmp_path / name).write_bytes(data)
    names, big = bare.region_names(made), prefix(made).upper()
    checks = [f"{big}_CHECK", *(f"{big}_CHECK_{n.upper()}" for n in names[1:])]
    blocks = "".join(f"static {big}_{n.upper()}(b_{n});\n{c}(b_{n});\n" for n, c in zip(names, checks, strict=True))
    memory = f"static const {prefix(made)}_memory memory = {{{', '.join(f'b_{n}' for n in names)}}};\n"
    user = f'#include "model.h"\n{blocks}{memory}int main(void) {{ return {prefix(made)}_init(&memory); }}\n'
    small = f'#include "model.h"\nstatic unsigned char b[{big}_ARENA_BYTES - 1];\n{big}_CHECK(b);\n'
    small += "int main(void) { return b[0]; }\n"
    for compiler in LANGUAGES:
        suffix = "cpp" if "++" in compiler else "c"
        flags = [*compiler.split(), "-Wall", "-Wextra", "-Werror", "-pedantic", "-c", "-o", "out.o"]
        (tmp_path / f"user.{suffix}").write_text(user)
        (tmp_path / f"small.{suffix}").write_text(small)
        for source in [f"user.{suffix}", *(["model.c"] if suffix == "c" else [])]:
            done = subprocess.run([*flags, source], cwd=tmp_path, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
        assert subprocess.run([*flags, f"small.{suffix}"], cwd=tmp_path, capture_output=True).returncode != 0
        limited = subprocess.run(
            [*flags, f"-D{big}_ARENA_LIMIT=100", f"user.{suffix}"], cwd=tmp_path, capture_output=True
        )
        assert limited.returncode != 0 and b"ARENA_LIMIT allows" in limited.stderr


def test_names_that_fall_together():
    names = entry_names(HOSTILE)
    assert names[0] == "infer" and names[1] != "infer_input"
    text = bare.header(HEADERS["hostile"], 8)
    assert "void *register;" not in text and text.count("int infer") == 0
    assert "??/" not in text and '"; */' not in text


def test_what_integers_stand_for(tmp_path):
    """Scales of quantizers at a model's ends, also behind a change of the shape; whatever its inputs are called."""
    graph = Graph("scaled")
    for name, scale, zero in (("x", 0.25, 3), ("x_scale", 0.5, -7)):
        x = graph.input(name, TensorType("int8", (1, 4)))
        flat = graph.add("reshape", x, shape=(4,))
        made = graph.add(
            "dequantize", flat, constant(graph, scale, np.float32), constant(graph, zero, np.int8), to="float32"
        )
        steps = constant(graph, 2.0, np.float32), constant(graph, 1, np.int8)
        graph.output(graph.add("quantize", graph.add("relu", made), *steps, to="int8"), f"y_{name}")
    program, _ = plan_program([EntryGraph(graph)], M4, Options(name="scaled"))
    text = bare.header(program, 8)
    wanted = {"INPUT_X": ("0.25f", 3), "INPUT_X_SCALE_": ("0.5f", -7), "OUTPUT_Y_X": ("2.0f", 1)}
    for name, (scale, zero) in wanted.items():
        assert f"SCALED_INFER_{name}_SCALE {scale}\n" in text and f"SCALED_INFER_{name}_ZERO ({zero})\n" in text
    macros = re.findall(r"#define (SCALED_INFER\w+)", text)
    assert len(set(macros)) == len(macros)


def constant(graph: Graph, value: float, dtype: type):
    return graph.const(np.array(value, dtype))


def symbols(path: Path) -> list[tuple[str, str]]:
    said = subprocess.run(["arm-none-eabi-nm", path], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in said.splitlines() if line and not line.endswith(":")]
    return [(row[-2], row[-1]) for row in rows if len(row) >= 2]


NETS = [
    nv.Sequential([layers.Dense(24, activation="sigmoid", input_dim=20), layers.Dense(5, activation="softmax")], name=n)
    for n in ("left", "right")
]


@pytest.mark.skipif(shutil.which("arm-none-eabi-nm") is None, reason="arm-none-eabi-nm is not installed")
def test_no_globals_that_change_and_nothing_from_outside(tmp_path):
    model = nv.compile(NETS[0], "cortex-m4", dims={"batch": 1}, out=tmp_path / "libleft.a")
    found = symbols(model.path)
    assert not {kind for kind, _ in found} & set("bBdDsScC")
    undefined = {name for kind, name in found if kind == "U"} - {name for kind, name in found if kind == "R"}
    assert undefined <= {"memcpy", "memset", "memcmp", "expf", "logf", "fmaf", "sqrtf", "powf"}
    public = {name for kind, name in found if kind == "T"}
    assert public and all(name.startswith("left_") for name in public)


@pytest.mark.skipif(shutil.which("arm-none-eabi-nm") is None, reason="arm-none-eabi-nm is not installed")
def test_a_model_that_is_called_as_kernels_are(tmp_path):
    net = nv.Sequential([layers.Dense(3, input_dim=4)], name="k")
    model = nv.compile(net, "cortex-m4", dims={"batch": 1}, out=tmp_path / "libk.a")
    public = {name for kind, name in symbols(model.path) if kind == "T"}
    assert public == {"k_init", "k_status_text", "k_infer", "k_infer_input", "k_infer_output"}
    again = nv.compile(net, "cortex-m4", dims={"batch": 1}, out=tmp_path / "libagain.a", cache=False)
    assert again.path.read_bytes() == model.path.read_bytes()


@EMULATOR
def test_two_models_in_one_program(tmp_path):
    x = np.random.default_rng(0).standard_normal((1, 20)).astype(np.float32)
    wanted = []
    for net in NETS:
        nv.compile(net, "cortex-m4", dims={"batch": 1}, out=tmp_path / f"lib{net.name}.a")
        wanted.append(nv.compile(net, dims={"batch": 1})(x))
    main = '#include "left.h"\n#include "right.h"\n#include "semihosting.h"\n'
    main += f"static const float x[20] = {{{', '.join(map(repr, x[0].tolist()))}}};\n"
    body = ""
    for name in ("left", "right"):
        main += f"static {name.upper()}_ARENA({name}_arena);\nstatic const {name}_memory {name} = {{{name}_arena}};\n"
        body += f"if ({name}_init(&{name}) || {name}_infer(&{name}, in, NULL)) return 1;\n"
        body += f'nervure_write_file("{name}", {name}_infer_output(&{name}, 0), 20);\n'
    (tmp_path / "main.c").write_text(f"{main}int main(void) {{ const void *in[] = {{x}};\n{body}return 0; }}\n")
    sources = ["main.c", "libleft.a", "libright.a"]
    elf = firmware.link(tmp_path, sources, M4, boards.get(M4.board), out="main.elf")
    assert firmware.simulate(elf, M4, timeout=60).status == 0
    for net, y in zip(NETS, wanted, strict=True):
        np.testing.assert_allclose(np.fromfile(tmp_path / net.name, np.float32), y[0], atol=1e-6)
    assert not np.allclose(wanted[0], wanted[1])


@EMULATOR
def test_a_model_is_called_in_the_emulator(tmp_path):
    model, here = (nv.compile(NETS[0], t, dims={"batch": 1}) for t in ("cortex-m4", "host"))
    assert model.path.name == "libleft.a"
    x = np.random.default_rng(1).standard_normal((1, 20)).astype(np.float32)
    name = model.get_inputs()[0].name
    np.testing.assert_allclose(model(x), here(x), atol=1e-6)
    np.testing.assert_allclose(model.run(None, {name: x})[0], here(x), atol=1e-6)
    saved = nv.compile(NETS[0], "cortex-m4", dims={"batch": 1}).save(tmp_path / "libother.a")
    assert saved.read_bytes() == model.path.read_bytes() and (tmp_path / "other.h").exists()
    flash = model.artifact.bare["flash"]
    assert model.report.code_bytes == flash["code"] + flash["constants"] < 8 << 10
    assert flash["weights"] >= 4 * (20 * 24 + 24 * 5)
    for wrong, words in ((lambda: model(x[:, :3]), "expected float32"), (lambda: model.bind(x), "emulator")):
        with pytest.raises(nv.NervureError, match=words):
            wrong()


# -- programs that go wrong -------------------------------------------------------------------------------------------


def linked(folder: Path, main: str) -> Path:
    (folder / "main.c").write_text(f'#include "semihosting.h"\n{main}\n')
    return firmware.link(folder, ["main.c"], M4, boards.get(M4.board), out="main.elf")


@EMULATOR
def test_a_fault_names_the_function(tmp_path):
    reads = "__attribute__((noinline)) int culprit(volatile int *at) { return *at; }\n"
    done = firmware.simulate(
        linked(tmp_path, f"{reads}int main(void) {{ return culprit((int *)0x90000000) + 1; }}"), M4
    )
    assert done.status == 99
    assert "in culprit, called from main" in done.said and "CFSR 0x00008200" in done.said
    assert "address 0x90000000" in done.said


@EMULATOR
def test_a_program_that_hangs(tmp_path):
    elf = linked(tmp_path, 'int main(void) { nervure_print("so far\\n"); for (;;) __asm volatile(""); }')
    with pytest.raises(nv.NervureError, match="took longer than 1 s") as error:
        firmware.simulate(elf, M4, timeout=1)
    assert "so far" in str(error.value)


def test_a_program_that_does_not_fit(tmp_path):
    with pytest.raises(nv.NervureError, match="too large for mps2-an386") as error:
        linked(tmp_path, "const char large[5 << 20] = {1}; int main(int n, char **v) { (void)v; return large[n]; }")
    assert "flash has 4,194,304 bytes" in str(error.value) and "too few" in str(error.value)
    with pytest.raises(nv.NervureError, match="too large") as error:
        linked(tmp_path, "char large[(4 << 20) - 4096]; int main(int n, char **v) { (void)v; return large[n]++; }")
    assert "left for the stack" in str(error.value)


@EMULATOR
def test_regions_lie_in_the_boards_memories(tmp_path):
    """The product in the DTCM of the M55's board, the arena in its larger RAM; same results as on Linux."""
    made = hand.two_regions()
    made = replace(
        made,
        regions=(made.regions[0], Region("dtcm", 448)),
        entries=(replace(made.entries[0], steps=made.entries[0].steps),),
    )
    artifact = archive(made, tmp_path, "cortex-m55", "regions")
    x = np.random.default_rng(0).standard_normal(64).astype(np.float32)
    found = measure(artifact, get("cortex-m55"), [x.tobytes()], [4])
    wanted = np.float32(0.1) * (x * hand.WEIGHTS).sum()
    np.testing.assert_allclose(np.frombuffer(found.outputs[0], np.float32), [wanted], rtol=1e-5, atol=1e-6)
    assert found.touched[1] > 0 and 0 < found.stack < 1024
    sections = firmware._sections(boards.get("mps3-an547"), ["arena", "dtcm"])
    assert sections == {"arena": ".bss.in_sram", "dtcm": ".bss.in_dtcm"}


def test_a_missing_emulator_says_what_to_install(monkeypatch):
    monkeypatch.setattr(emulator.shutil, "which", lambda name: None)
    with pytest.raises(MissingTool, match="apt-get install qemu-system-arm"):
        emulator.command(M4)
