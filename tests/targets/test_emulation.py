"""The GPU that the CPU plays: its instructions against numpy, its rules against kernels that break them."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import cuda_small
import ml_dtypes
import numpy as np
import pytest
from nervure.compiler.interpret import interpret
from nervure.compiler.pipeline import EntryGraph, compile_entries
from nervure.errors import MissingTool
from nervure.targets import emulation, emulator, get, toolchain

RNG = np.random.default_rng(7)
LANES = np.arange(32)
ROW, AT = LANES // 4, LANES % 4


@cache
def engine() -> Any:
    library = ctypes.CDLL(str(emulation.driver()))
    library.emu_start.restype, library.emu_message.restype = ctypes.c_void_p, ctypes.c_char_p
    return library


@pytest.fixture(autouse=True)
def in_order() -> Iterator[None]:
    yield
    engine().emu_order(0)


def kernels(folder: Path, **bodies: str) -> dict[str, Any]:
    """Functions ``f(blocks, threads, shared, arrays...)`` of the bodies, whose arguments are called a, b, c, d; they
    give what stopped the kernel, or ''."""
    texts = []
    for name, body in bodies.items():
        types = body.splitlines()[0].removeprefix("//").split()
        given = ", ".join(f"{t}* __restrict__ {'abcd'[i]}" for i, t in enumerate(types))
        texts.append((name, f'extern "C" __global__ void __launch_bounds__(1024) {name}({given}) {{\n{body}\n}}\n'))
    path = folder / "kernels.so"
    path.write_bytes(emulation.compile_kernels(texts))
    library = ctypes.CDLL(str(path))
    ctypes.c_void_p.in_dll(library, "emu_machine").value = engine().emu_start()

    def function(name: str) -> Any:
        def run(blocks: int, threads: int, shared: int, *arrays: np.ndarray) -> str:
            pointers = [ctypes.c_void_p(a.ctypes.data) for a in arrays]
            given = (ctypes.c_void_p * len(pointers))(*map(ctypes.addressof, pointers))
            status = getattr(library, f"{name}_launch")(given, blocks, threads, shared)
            return engine().emu_message().decode() if status else ""

        return run

    return {name: function(name) for name in bodies}


# -- tensor cores ----------------------------------------------------------------------------------------------------

MMA = """// {t} {t} {d}
int l = threadIdx.x;
{d} r[4];
for (int i = 0; i < 4; i++) r[i] = c[(l / 4 + i / 2 * 8) * 8 + l % 4 * 2 + i % 2];
nv_mma_{name}(r, (uint32_t *)a + 4 * l, (uint32_t *)b + 2 * l);
for (int i = 0; i < 4; i++) c[(l / 4 + i / 2 * 8) * 8 + l % 4 * 2 + i % 2] = r[i];"""
KINDS: dict[str, tuple[str, Any, Any, str]] = {
    "f16": ("half", np.float16, np.float16, "float"),
    "bf16": ("nv_bfloat16", ml_dtypes.bfloat16, ml_dtypes.bfloat16, "float"),
    "tf32": ("float", np.float32, np.float32, "float"),
    "s8": ("int8_t", np.int8, np.int8, "int"),
    "u8s8": ("int8_t", np.uint8, np.int8, "int"),
}


def numbers(dtype: Any, *shape: int) -> np.ndarray:
    if np.dtype(dtype).kind in "iu":
        bounds = np.iinfo(dtype)
        return RNG.integers(bounds.min, bounds.max, shape, dtype, endpoint=True)
    return RNG.standard_normal(shape).astype(dtype)


def fragments(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What the lanes hold of ``a[16, k]`` and ``b[k, 8]``: PTX ISA, figures of mma.m16n8k*."""
    each = 4 // a.itemsize
    columns = (AT * each)[:, None] + np.arange(each)
    parts = [a[(ROW + r % 2 * 8)[:, None], columns + r // 2 * 4 * each] for r in range(4)]
    other = [b[columns + r * 4 * each, ROW[:, None]] for r in range(2)]
    return np.ascontiguousarray(np.stack(parts, 1)), np.ascontiguousarray(np.stack(other, 1))


def test_matrix_products(tmp_path: Path) -> None:
    made = kernels(tmp_path, **{f"k{n}": MMA.format(name=n, t=t, d=d) for n, (t, _, _, d) in KINDS.items()})
    for name, (_, left, right, sums) in KINDS.items():
        k = 32 // np.dtype(left).itemsize
        a, b = numbers(left, 16, k), numbers(right, k, 8)
        kind = np.float32 if sums == "float" else np.int32
        c = numbers(np.int8, 16, 8).astype(kind)
        if name == "tf32":  # the low bits count for nothing
            cut = [(v.view(np.uint32) & 0xFFFFE000).view(np.float32) for v in (a, b)]
        wanted = c + np.matmul(*(v.astype(np.float64) for v in (cut if name == "tf32" else (a, b))))
        assert made[f"k{name}"](1, 32, 0, *fragments(a, b), c) == ""
        np.testing.assert_allclose(c, wanted, rtol=1e-5, atol=1e-5 if sums == "float" else 0, err_msg=name)


def test_matrices_from_shared_memory(tmp_path: Path) -> None:
    body = """// uint16_t uint16_t
uint16_t *s = (uint16_t *)nv_shared;
for (int i = 0; i < 8; i++) s[8 * threadIdx.x + i] = a[8 * threadIdx.x + i];
__syncthreads();
uint32_t r[4];
{call}
for (int i = 0; i < {count}; i++) ((uint32_t *)b)[threadIdx.x * {count} + i] = r[i];"""
    rows = "s + 8 * threadIdx.x"
    calls = {"four": ("nv_ldmatrix4", 4), "two": ("nv_ldmatrix2", 2), "turned": ("nv_ldmatrix4_transposed", 4)}
    made = kernels(tmp_path, **{k: body.format(call=f"{f}(r, {rows});", count=n) for k, (f, n) in calls.items()})
    a = RNG.integers(0, 1 << 16, (4, 8, 8), np.uint16)
    for name, (_, count) in calls.items():
        b = np.zeros((32, count, 2), np.uint16)
        assert made[name](1, 32, 512, a, b) == ""
        source = a.transpose(0, 2, 1) if name == "turned" else a
        wanted = np.stack([source[i][ROW[:, None], AT[:, None] * 2 + [0, 1]] for i in range(count)], 1)
        np.testing.assert_array_equal(b, wanted, err_msg=name)


# -- what waits ------------------------------------------------------------------------------------------------------

COPY = """// float float
float *s = (float *)nv_shared;
int l = threadIdx.x;
nv_copy16(s + 4 * l, a + 4 * l, l != 3);
nv_copies_close();
nv_copy4(s + 128 + l, a + l, 1);
nv_copies_close();
{wait}
__syncthreads();
for (int i = 0; i < 4; i++) b[4 * l + i] = s[4 * (31 - l) + i];
b[128 + l] = s[128 + (31 - l)];"""


def test_copies_are_seen_when_waited_for(tmp_path: Path) -> None:
    waits = {"all": "nv_copies_wait0();", "first": "nv_copies_wait1();", "none": ""}
    made = kernels(tmp_path, **{k: COPY.format(wait=w) for k, w in waits.items()})
    a = RNG.standard_normal(128).astype(np.float32)
    long = a.reshape(32, 4).copy()
    long[3] = 0  # not valid
    for name in waits:
        b = np.zeros(160, np.float32)
        assert made[name](1, 32, 640, a, b) == ""
        seen = [np.array_equal(b[:128], long[::-1].ravel()), np.array_equal(b[128:], a[31::-1])]
        assert seen == {"all": [True, True], "first": [True, False], "none": [False, False]}[name]
        if name == "none":
            assert np.isnan(b).all()


def test_warps_exchange(tmp_path: Path) -> None:
    body = """// float int double
int l = threadIdx.x;
a[l] = nv_shuffle_xor(a[l], 5) + nv_shuffle(a[l], 7);
b[l] = __shfl_down_sync(0xffffffffu, b[l], 3) + __shfl_up_sync(0xffffffffu, b[l], 1);
c[l] = nv_shuffle_xor_double(c[l], 16);"""
    a, b, c = (np.arange(64).astype(t) for t in (np.float32, np.int32, np.float64))
    wanted = a[np.arange(64) ^ 5] + a[np.arange(64) // 32 * 32 + 7]
    down = np.arange(64) + np.where(np.arange(64) % 32 < 29, 3, 0)
    up = np.arange(64) - np.where(np.arange(64) % 32 > 0, 1, 0)
    assert kernels(tmp_path, k=body)["k"](1, 64, 0, a, b, c) == ""
    np.testing.assert_array_equal(a, wanted)
    np.testing.assert_array_equal(b, down + up)
    np.testing.assert_array_equal(c, np.arange(64) ^ 16)


BREAKS = {
    "lanes": ("if (threadIdx.x < 16) nv_shuffle_xor(a[0], 1);", "waits for lanes of its warp that never come"),
    "mixed": (
        "if (threadIdx.x % 2) nv_shuffle_xor(a[0], 1); else nv_warp_barrier();",
        "wait for different things",
    ),
    "after": ("nv_shared[64 + threadIdx.x] = 1;", "a write after the 64 bytes of shared memory"),
    "before": ("((char *)nv_shared)[-1 - (int)threadIdx.x] = 1;", "a write before shared memory"),
    "wide": ("*(float4 *)(a + 1) = *(float4 *)a;", "not a multiple"),
    "narrow": ("*(int *)((char *)a + 2) = 1;", "not a multiple"),
    "rows": ("uint32_t r[4]; nv_ldmatrix4(r, nv_shared + 8 * threadIdx.x);", "is not 16 bytes of shared memory"),
    "copy": ("nv_copy16(a, a, 1);", "a copy to outside shared memory"),
}


def test_what_a_gpu_stops_at(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    made = kernels(tmp_path, **{name: f"// float\n{body}" for name, (body, _) in BREAKS.items()})
    a = np.zeros(64, np.float32)
    for name, (_, why) in BREAKS.items():
        said = made[name](3, 32, 64, a)
        assert why in said and said.startswith(f"{name}, block 0"), (name, said)
        assert said in capfd.readouterr().err
    assert made["lanes"](1, 16, 64, a) == ""  # all lanes that there are


def test_ended_threads_have_arrived(tmp_path: Path) -> None:
    body = "// int\nif (threadIdx.x >= 40) return;\n__syncthreads();\n__syncthreads();\na[threadIdx.x] = 1;"
    a = np.zeros(96, np.int32)
    assert kernels(tmp_path, k=body)["k"](1, 96, 0, a) == ""
    assert a.sum() == 40


RACES = {
    "written": ("__syncthreads();", "s[threadIdx.x] = a[threadIdx.x]; {wait} a[threadIdx.x] = s[63 - threadIdx.x];"),
    "warp": ("nv_warp_barrier();", "s[threadIdx.x] = a[threadIdx.x]; {wait} a[threadIdx.x] = s[threadIdx.x ^ 1];"),
    "again": (
        "__syncthreads();",
        "float sum = 0; for (int i = 1; i < 4; i++) {{ s[threadIdx.x] = a[threadIdx.x] * i; __syncthreads(); "
        "sum += s[(threadIdx.x + 1) % 64]; {wait} }} a[threadIdx.x] = sum;",
    ),
    "blocks": ("if (blockIdx.x == 0)", "{wait} a[threadIdx.x] = a[threadIdx.x] * 2.0f + blockIdx.x;"),
}


def test_a_missing_barrier_shows(tmp_path: Path) -> None:
    """Two orders of threads give two results where something is missing, and only there."""
    start = "// float\nfloat *s = (float *)nv_shared;\n"
    bodies = {f"{name}_right": start + body.format(wait=wait) for name, (wait, body) in RACES.items()}
    bodies |= {f"{name}_wrong": start + body.format(wait="") for name, (_, body) in RACES.items()}
    for name, run in kernels(tmp_path, **bodies).items():
        results = []
        for order in (0, 1):
            engine().emu_order(order)
            results.append(np.arange(64).astype(np.float32))
            assert run(2 if name.startswith("blocks") else 1, 64, 256, results[-1]) == ""
        assert np.array_equal(*results) is name.endswith("right"), name


# -- numbers of 16 bits ----------------------------------------------------------------------------------------------


def test_conversions(tmp_path: Path) -> None:
    """Every half number to float and back; floats, doubles and integers to the nearest half."""
    body = """// {t} float {t} double
long long i = blockIdx.x * 256 + threadIdx.x;
b[i] = (float)a[i];
a[i] = {t}((float)a[i] * 1.0f);
c[i] = {t}((float)d[i]);
c[65536 + i] = {t}(d[i]);
c[131072 + i] = {t}((int)i * 31 - 1000000);"""
    names = {"half": np.dtype(np.float16), "nv_bfloat16": np.dtype(ml_dtypes.bfloat16)}
    made = kernels(tmp_path, **{f"k{n}": body.format(t=n) for n in names})
    for name, dtype in names.items():
        every = np.arange(65536).astype(np.uint16).view(dtype)
        a, b, c = every.copy(), np.zeros(65536, np.float32), np.zeros(3 * 65536, dtype)
        with np.errstate(invalid="ignore"):
            wide = every.astype(np.float64)
        d = np.where(np.isfinite(wide), wide, 1.5) * RNG.choice([1, 1 + 2.0**-9, 1 + 2.0**-12, 1 + 2.0**-20], 65536)
        assert made[f"k{name}"](256, 256, 0, a, b, c, d) == ""
        np.testing.assert_array_equal(b, every.astype(np.float32))
        same = np.isnan(b)
        np.testing.assert_array_equal(a.view(np.uint16)[~same], every.view(np.uint16)[~same])
        with np.errstate(over="ignore"):
            np.testing.assert_array_equal(c[:65536], d.astype(np.float32).astype(dtype))
            if dtype == np.float16:  # numpy goes from double at once
                np.testing.assert_array_equal(c[65536:131072], d.astype(dtype))
            whole = np.arange(65536) * 31 - 1000000
            np.testing.assert_array_equal(c[131072:], whole.astype(np.float32).astype(dtype))


def test_vectors_as_tvm_prints_them(tmp_path: Path) -> None:
    body = """// float half int8_t
float4 v = *(float4 *)(a + 4 * threadIdx.x), w = make_float4(1.0f, 2.0f, 3.0f, 4.0f), r;
r.x = max(v.x, w.x); r.y = v.y * w.y; r.z = expf(v.z); r.w = rsqrtf(fabsf(v.w));
*(float4 *)(a + 4 * threadIdx.x) = r;
uint2 h = *(uint2 *)(b + 4 * threadIdx.x), g;
((half2*)(&(g.x)))->x = (((half2*)(&(h.x)))->x + ((half2*)(&(h.y)))->y);
((half2*)(&(g.x)))->y = hexp(((half2*)(&(h.x)))->y);
((half2*)(&(g.y)))->x = max(((half2*)(&(h.y)))->x, nv_float16_from_bits((uint)15872));
((half2*)(&(g.y)))->y = ((half)(bool(((half2*)(&(h.y)))->x < ((half2*)(&(h.y)))->y) ? 1.0f : 0.0f));
*(uint2 *)(b + 4 * threadIdx.x) = g;
char4 q = *(char4 *)(c + 4 * threadIdx.x);
*(char4 *)(c + 4 * threadIdx.x) = make_char4(q.w, (signed char)(q.x * q.y), __dp4a(0x01010101, *(int *)&q, 0), q.z);"""
    a = RNG.uniform(0.5, 2, (32, 4)).astype(np.float32)
    b, c = RNG.standard_normal((32, 4)).astype(np.float16), RNG.integers(-8, 8, (32, 4)).astype(np.int8)
    e = [np.maximum(a[:, 0], 1), a[:, 1] * 2, np.exp(a[:, 2]), 1 / np.sqrt(a[:, 3])]
    f = [b[:, 0] + b[:, 3], np.exp(b[:, 1].astype(np.float32)), np.maximum(b[:, 2], np.float16(1.5)), b[:, 2] < b[:, 3]]
    g = [c[:, 3].copy(), c[:, 0] * c[:, 1], c.sum(1), c[:, 2].copy()]
    assert kernels(tmp_path, k=body)["k"](1, 32, 0, a, b, c) == ""
    np.testing.assert_allclose(a, np.stack(e, 1), rtol=1e-6)
    np.testing.assert_array_equal(b, np.stack([v.astype(np.float16) for v in f], 1))
    np.testing.assert_array_equal(c, np.stack([v.astype(np.int8) for v in g], 1))


# -- memory ----------------------------------------------------------------------------------------------------------


def test_a_write_behind_a_block_is_counted(capfd: pytest.CaptureFixture[str]) -> None:
    code = ctypes.CDLL(str(emulation.driver()))
    code.emulated_get.restype = ctypes.c_longlong
    numbers_of = ("overruns", "blocks", "bytes")
    before = [code.emulated_get(name.encode()) for name in numbers_of]
    context, at = ctypes.c_void_p(), ctypes.c_uint64()
    assert code.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0) == 0 and code.cuCtxPushCurrent_v2(context) == 0
    for beyond in (0, 1):
        assert code.cuMemAlloc_v2(ctypes.byref(at), ctypes.c_size_t(100)) == 0
        fresh = np.ctypeslib.as_array((ctypes.c_uint8 * 100).from_address(at.value))
        assert (fresh == 0xC5).all()
        assert code.cuMemsetD8_v2(at, 0, ctypes.c_size_t(100 + beyond)) == 0
        assert code.cuMemFree_v2(at) == 0
        assert code.emulated_get(b"overruns") == before[0] + beyond
    assert code.cuCtxPopCurrent_v2(ctypes.byref(context)) == 0 and code.cuDevicePrimaryCtxRelease_v2(0) == 0
    assert "a write 0 bytes behind a block of 100" in capfd.readouterr().err
    assert [code.emulated_get(name.encode()) for name in numbers_of[1:]] == before[1:]


def test_more_shared_memory_is_asked_for_first() -> None:
    code, held = ctypes.CDLL(str(emulation.driver())), [ctypes.c_void_p() for _ in range(3)]
    context, module, function = held
    assert code.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0) == 0 and code.cuCtxPushCurrent_v2(context) == 0
    assert code.cuModuleLoadData(ctypes.byref(module), emulation.compile_kernels([("k", BODY)])) == 0
    assert code.cuModuleGetFunction(ctypes.byref(function), module, b"other") == 500
    assert code.cuModuleGetFunction(ctypes.byref(function), module, b"k") == 0
    a = np.ones(256, np.float32)
    at = ctypes.c_uint64(a.ctypes.data)
    given = (ctypes.c_void_p * 1)(ctypes.addressof(at))

    def launch(shared: int) -> int:
        return int(code.cuLaunchKernel(function, 2, 1, 1, 128, 1, 1, shared, None, given, None))

    assert launch(48 << 10) == 0 and launch((48 << 10) + 1) == 1
    assert code.cuFuncSetAttribute(function, 8, 228 << 10) == 1
    assert code.cuFuncSetAttribute(function, 8, 100 << 10) == 0 and launch(100 << 10) == 0
    assert code.cuCtxSynchronize() == 0 and (a == 4).all()
    assert code.cuModuleUnload(module) == 0
    assert code.cuCtxPopCurrent_v2(ctypes.byref(context)) == 0 and code.cuDevicePrimaryCtxRelease_v2(0) == 0


# -- hosts -----------------------------------------------------------------------------------------------------------

HOST = """#include <dlfcn.h>
#include <stdio.h>
int main(int count, char **given) {
    void *driver = dlopen(given[1], RTLD_NOW), *image = dlopen(given[2], RTLD_NOW | RTLD_LOCAL);
    if (!driver || !image) return fprintf(stderr, "%s\\n", dlerror()), 1;
    *(void **)dlsym(image, "emu_machine") = ((void *(*)(void))dlsym(driver, "emu_start"))();
    static float a[256];
    for (int i = 0; i < 256; i++) a[i] = i;
    void *at = a, *arguments[] = {&at};
    int (*run)(void **, unsigned, unsigned, unsigned) = dlsym(image, "k_launch");
    if (run(arguments, 2, 128, 512)) return 2;
    for (int i = 0; i < 256; i++)
        if (a[i] != (i / 128 * 128 + (127 - i % 128)) + (i ^ 1)) return 3;
    return 0;
}
"""
BODY = """extern "C" __global__ void __launch_bounds__(128) k(float* __restrict__ a) {
    float *s = (float *)nv_shared, mine = a[blockIdx.x * 128 + threadIdx.x];
    s[threadIdx.x] = mine;
    __syncthreads();
    a[blockIdx.x * 128 + threadIdx.x] = s[127 - threadIdx.x] + nv_shuffle_xor(mine, 1);
}
"""


@pytest.mark.parametrize("name", ["cuda-sm80", pytest.param("cuda-sm87", marks=pytest.mark.slow)])
def test_hosts(tmp_path: Path, name: str) -> None:
    """Threads switch on each kind of host; that of a Jetson is played, too."""
    machine = get(name)
    host = get("aarch64" if machine.family == "arm" else "x86-64-v3")
    try:
        before = emulator.command(host)
    except MissingTool as error:
        pytest.skip(str(error))
    (tmp_path / "host.c").write_text(HOST)
    program = toolchain.link_program(tmp_path, ["host.c"], host, out="host", flags=("-ldl",))
    (tmp_path / "image.so").write_bytes(emulation.compile_kernels([("k", BODY)], machine.zig_target))
    driver = emulation.driver(machine.zig_target)
    done = subprocess.run([*before, str(program), str(driver), "./image.so"], cwd=tmp_path, env=dict(os.environ))
    assert done.returncode == 0


def test_functions_of_both_devices() -> None:
    """What a kernel may call on a GPU is there on the played one."""
    real = (toolchain.RUNTIME / "cuda" / "device.h").read_text()
    names = set(re.findall(r"^(?:template <[^>]*> )?NV [\w *]*?\b(nv_\w+)\(", real, re.M))
    played = (emulation.HERE / "device.h").read_text()
    missing = {name for name in names if not re.search(rf"\b{name}\b", played)}
    assert len(names) > 20 and {name for name in missing if not name.endswith("_by")} == set()


@pytest.mark.slow
def test_an_artifact_for_a_jetson_runs_on_its_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything of it but the GPU is what a Jetson would run: the host's code is that of a 64-bit ARM."""
    machine, host, graph = emulation.emulated(get("cuda-sm87")), get("aarch64"), cuda_small.pictures()
    try:
        emulator.command(host)
    except MissingTool as error:
        pytest.skip(str(error))
    x = np.random.default_rng(1).standard_normal((2, 3, 17, 17)).astype(np.float32)
    (wanted,) = interpret(graph, [x])
    library = tmp_path / "pictures.so"
    artifact = compile_entries([EntryGraph(graph)], machine, library)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(emulation.driver(machine.zig_target).parent))
    prefix = artifact.block["prefix"]
    (data,) = emulator.run(library, host, prefix=prefix, entry=0, inputs=[x.tobytes()], output_bytes=[wanted.nbytes])
    np.testing.assert_allclose(np.frombuffer(data, np.float32).reshape(wanted.shape), wanted, atol=1e-3)
