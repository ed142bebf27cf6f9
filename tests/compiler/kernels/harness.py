"""Runs a region's kernels in this process and compares them with the op table's references.

``region_of`` builds a region around one operator, ``run_region`` plans it, makes its kernels, links and calls them,
tasks split unevenly over several "workers" with scratch of their own, every buffer between guard bytes.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from nervure import targets
from nervure.compiler.interpret import interpret
from nervure.compiler.ir import Graph, Value
from nervure.compiler.kernels import worker
from nervure.compiler.kernels.lower import write_object
from nervure.compiler.kernels.spec import Arg, Draft, Operand, Plan, Region
from nervure.compiler.kernels.templates import plans
from nervure.compiler.ops import OPS
from nervure.compiler.types import TensorType, type_of
from nervure.targets.machine import Machine

GUARD = 64  # guard bytes on each side of a buffer
_FILL = 0xA5
_folder = tempfile.TemporaryDirectory()
_loaded: dict[tuple[str, str], Any] = {}

Epilogue = Callable[[Graph, Value], Value | Sequence[Value]]


@cache
def machines() -> tuple[Machine, ...]:
    """The machine at hand, and a narrower one of the same family where it has one."""
    host = targets.host()
    narrow = targets.get("x86-64-v3") if host.family == "x86" and host.lanes > 8 else None
    return (host,) if narrow is None else (host, narrow)


def dense(shape: Sequence[int], order: Sequence[int] | None = None, pad: int = 0) -> tuple[int, ...]:
    """Element strides of a tensor whose axes lie in memory in ``order``, outermost first (default: row-major); the
    innermost axis is followed by ``pad`` unused elements (a slice of a wider buffer)."""
    strides, step = [1] * len(shape), 1
    for i, axis in enumerate(reversed(list(order) if order is not None else list(range(len(shape))))):
        strides[axis] = step
        step *= max(1, shape[axis]) + (pad if i == 0 else 0)
    return tuple(strides)


def channels_last(rank: int) -> tuple[int, ...]:
    """The memory order N, spatial..., C."""
    return (0, *range(2, rank), 1)


def region_of(
    op: str,
    arrays: Sequence[np.ndarray | None],
    attrs: Mapping[str, Any],
    *,
    order: Callable[[int], Sequence[int]] | None = None,
    output_order: Callable[[int], Sequence[int]] | None = None,
    pad: int = 0,
    consts: Sequence[int] = (),
    prologue: Epilogue | None = None,
    epilogue: Epilogue | None = None,
    machine: Machine | None = None,
    **options: Any,
) -> tuple[Region, list[np.ndarray]]:
    """A region of one anchor ``op`` and the arrays of its inputs.

    ``order(rank)`` gives the memory order of every input (and output, unless ``output_order``) of that rank. Inputs
    numbered in ``consts`` are constants. ``prologue(graph, x)`` works on input 0, ``epilogue(graph, y)`` on the
    anchor's first output; they may add inputs by ``extra_input``.
    """
    body = Graph("body")
    body.meta["extra"] = []
    values = [None if a is None else body.input(f"x{i}", type_of(a)) for i, a in enumerate(arrays)]
    given = [a for a in arrays if a is not None]
    numbers = [i for i, a in enumerate(arrays) if a is not None]
    if prologue is not None:
        values[0] = prologue(body, values[0])  # type: ignore[arg-type,assignment]
    anchor = body.add(op, *values, **attrs)
    results: list[Value] = body.values(anchor.node)
    if epilogue is not None:
        found = epilogue(body, anchor)
        results = [found] if isinstance(found, Value) else list(found)
    for value in results:
        body.output(value)
    given += body.meta["extra"]

    def operand(type: TensorType, chosen: Callable[[int], Sequence[int]] | None, const: Any = None) -> Operand:
        wished = chosen(type.rank) if chosen is not None else None
        return Operand(type, dense(type.dims, wished, pad if type.rank else 0), const)

    inputs = []
    for i, array in enumerate(given):
        constant = i < len(numbers) and numbers[i] in consts
        inputs.append(operand(type_of(array), None if constant else order, array if constant else None))
        if constant:
            inputs[-1] = Operand(type_of(array), dense(array.shape), array)
    outputs = tuple(operand(body.type(v), output_order or order) for v in results)
    return Region(body, tuple(inputs), outputs, machine or machines()[0], **options), given


def extra_input(graph: Graph, array: np.ndarray) -> Value:
    """Another input of the region, for an epilogue: a residual, a vector of biases, ..."""
    graph.meta["extra"].append(array)
    return graph.input(f"extra{len(graph.meta['extra'])}", type_of(array))


def run_region(
    region: Region,
    arrays: Sequence[np.ndarray],
    *,
    template: str | None = None,
    plan: Plan | None = None,
    pieces: int = 3,
) -> list[np.ndarray]:
    """The region's outputs, by its cheapest plan (of that ``template``), or by ``plan``.

    Fails on a write outside a buffer, on a kernel whose tasks are not those of its plan, and where there is no plan.
    """
    if plan is None:
        found = [p for p in plans(region) if template in (None, p.template)]
        assert found, f"no plan for {region.op}"
        plan = found[0]
    inputs = [_Buffer.of(a, o) for a, o in zip(arrays, region.inputs, strict=True)]
    outputs = [_Buffer(o.span * o.type.itemsize) for o in region.outputs]
    consts = [_Buffer.of(c, Operand(type_of(c), dense(c.shape))) for c in plan.consts]
    shared = _Buffer(plan.shared_bytes)
    workers = [_Buffer(plan.worker_bytes) for _ in range(pieces)]
    before = [b.payload() for b in (*inputs, *consts)]

    def pointer(arg: Arg, worker_index: int) -> ctypes.c_void_p:
        pools = {"in": inputs, "out": outputs, "const": consts}
        if arg.kind in pools:
            return ctypes.c_void_p(pools[arg.kind][arg.index].address)
        base = shared if arg.kind == "shared" else workers[worker_index]
        return ctypes.c_void_p(base.address + arg.offset)

    if region.machine.gpu is not None:
        _on_gpu(
            region, plan, {"in": inputs, "out": outputs, "const": consts, "shared": [shared], "worker": workers[:1]}
        )
    for draft in plan.phases if region.machine.gpu is None else ():
        function = load(draft, region.machine)
        if draft.tasks is None:
            function(*(pointer(a, 0) for a in draft.args))
            continue
        cuts = [draft.tasks * i // pieces for i in range(pieces + 1)]
        for i in reversed(range(pieces)):  # in another order than a single worker would
            if cuts[i] < cuts[i + 1]:
                function(*(pointer(a, i) for a in draft.args), cuts[i], cuts[i + 1])
    for buffer in (*inputs, *outputs, *consts, shared, *workers):
        buffer.check()
    assert [b.payload() for b in (*inputs, *consts)] == before, "an input or constant was written to"
    return [b.array(o) for b, o in zip(outputs, region.outputs, strict=True)]


def load(draft: Draft, machine: Machine) -> Any:
    """The kernel as a ctypes function."""
    key = (draft.spec.name, machine.name)
    if key not in _loaded:
        row = machine.record()
        template, config = json.loads(draft.spec.canonical)  # as it reaches a worker
        function, tasks = worker.build(template, config, draft.spec.name, row)
        assert tasks == draft.tasks, f"the kernel has {tasks} tasks, its plan says {draft.tasks}"
        stem = Path(_folder.name) / f"{len(_loaded)}"
        write_object([function], row["llvm"], stem.with_suffix(".o"))
        linker = [sys.executable, "-m", "ziglang", "ld.lld", "-shared"]
        subprocess.run([*linker, stem.with_suffix(".o"), "-o", stem.with_suffix(".so")], check=True)
        ctypes.CDLL("libm.so.6", mode=ctypes.RTLD_GLOBAL)
        found = getattr(ctypes.CDLL(str(stem.with_suffix(".so"))), draft.spec.name)
        found.restype = None
        _loaded[key] = found
    return _loaded[key]


def _on_gpu(region: Region, plan: Plan, pools: dict[str, list[_Buffer]]) -> None:
    import gpu_harness

    first, buffers = {}, []
    for kind, pool in pools.items():
        first[kind] = len(buffers)
        buffers += pool

    def place(arg: Arg) -> tuple[int, int]:
        index = arg.index if arg.kind in ("in", "out", "const") else 0
        return first[arg.kind] + index, arg.offset if arg.kind in ("shared", "worker") else 0

    places = [[place(a) for a in draft.args] for draft in plan.phases]
    gpu_harness.run(plan.phases, region.machine, buffers, places, range(first["out"], first["const"]))


def check_region(
    region: Region,
    arrays: Sequence[np.ndarray],
    *,
    template: str | None = None,
    rtol: float = 1e-4,
    atol: float = 1e-5,
) -> None:
    """Every plan of the region (of that ``template``) against the references of the op table."""
    wanted = interpret(region.body, list(arrays))
    found = [p for p in plans(region) if template in (None, p.template)]
    assert found, f"no plan for {region.op}"
    for plan in found:
        for have, want in zip(run_region(region, arrays, plan=plan), wanted, strict=True):
            assert_close(have, want, rtol, atol, plan.detail)


def assert_close(have: np.ndarray, want: np.ndarray, rtol: float, atol: float, what: str = "") -> None:
    """Equal types and shapes; floats within tolerance (half floats within theirs), all else exactly."""
    assert have.dtype == want.dtype and have.shape == want.shape, what
    if have.dtype.kind == "f" or have.dtype.name == "bfloat16":
        loose = {"float16": 2e-3, "bfloat16": 2e-2}.get(have.dtype.name, 0.0)
        wide = [a.astype(np.float64) for a in (have, want)]
        np.testing.assert_allclose(*wide, rtol=max(rtol, loose), atol=max(atol, loose), err_msg=what)
    else:
        np.testing.assert_array_equal(have, want, err_msg=what)


def sample(case: Any, seed: int = 0) -> list[np.ndarray | None]:
    """The arrays of a ``Case``."""
    from nervure.compiler.ops.sampling import sample_inputs

    return list(sample_inputs(case, seed))


def cases(*names: str) -> list[Any]:
    """``pytest.param(op, case)`` for every sample case of the operators."""
    import pytest

    rows = [(name, i, case) for name in names for i, case in enumerate(OPS[name].cases())]  # type: ignore[misc]
    return [pytest.param(name, case, id=f"{name}-{i}") for name, i, case in rows]


class _Buffer:
    """Bytes at a 64-byte aligned address with guards on both sides."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.raw = np.full(size + 2 * GUARD + 64, _FILL, np.uint8)
        self.start = GUARD + (-(self.raw.ctypes.data + GUARD)) % 64
        self.address = self.raw.ctypes.data + self.start

    @classmethod
    def of(cls, array: np.ndarray, operand: Operand) -> _Buffer:
        buffer = cls(operand.span * operand.type.itemsize)
        buffer.view(operand)[...] = array
        return buffer

    def view(self, operand: Operand) -> np.ndarray:
        data = self.raw[self.start : self.start + self.size]
        dtype = _numpy(operand.type.dtype)
        steps = tuple(s * dtype.itemsize for s in operand.strides)
        return (
            np.ndarray(operand.type.dims, dtype, buffer=data, strides=steps)
            if self.size
            else np.empty(operand.type.dims, dtype)
        )

    def array(self, operand: Operand) -> np.ndarray:
        return np.array(self.view(operand))

    def payload(self) -> bytes:
        return self.raw[self.start : self.start + self.size].tobytes()

    def check(self) -> None:
        guards = (self.raw[: self.start], self.raw[self.start + self.size :])
        assert all((g == _FILL).all() for g in guards), "a kernel wrote outside its buffer"


def _numpy(name: str) -> np.dtype[Any]:
    if name == "bfloat16":
        import ml_dtypes  # noqa: F401  (gives numpy the name)
    return np.dtype(name)
