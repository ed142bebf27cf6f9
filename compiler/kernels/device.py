"""Kernels of a GPU: what a template writes for a grid of blocks, and how TIR becomes CUDA C++.

A device template's emitter gets a ``DeviceBuilder``: ``grid`` opens the body, in which ``block`` and ``thread``
are indices, ``shared`` is memory of the block and ``barrier`` makes its threads meet. Blocks and threads have one
dimension each. A template for CPUs is run as it is: each thread takes one task of its parallel loop.

Runs in worker processes only. The text is CUDA C++ without a preamble: what it calls stands in
``runtime/c/cuda/device.h``, so that the same text is compiled for a GPU and, with other definitions, for the CPU that
plays one (``targets/emulation``).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import tvm
import tvm_ffi
from tvm import tirx
from tvm.ir import Range, TensorLoad
from tvm.tirx import AllocBuffer, AttrStmt, For, ForKind, IfThenElse
from tvm.tirx import transform as passes

from .lanewise import lanewise
from .lower import each, loop_passes, pointer_parameters
from .tir import Builder, Expr

THREADS = 64  # of a block, where a kernel for CPUs is run task by task
_WORDS = ("new", "delete", "this", "class", "template", "operator", "half")  # of C++
_ALIGN = 16  # bytes of a buffer in shared memory: the widest load


NATIVE = {  # functions of vecmath.py that are CUDA's: 2 ulp or less but erf and pow, 4 (Programming Guide, appendix on
    # mathematical functions). Not sine, cosine and tangent, which keep digits of pi in local memory.
    **{n: f"{n}f" for n in ("exp", "expm1", "log", "log1p", "sinh", "cosh", "tanh", "asinh", "acosh", "atanh")},
    **{n: f"{n}f" for n in ("asin", "acos", "atan", "erf", "fmod", "sqrt", "rsqrt", "floor", "ceil", "trunc")},
    **{"nearbyint": "rintf", "exp_fast": "expf", "_pow_float": "powf", "sigmoid": "nv_sigmoid"},
    "divided": "__fdividef",
}


class DeviceBuilder(Builder):
    """A kernel of ``blocks`` blocks of ``threads`` threads each."""

    scope = "local"
    native = NATIVE
    widens = True

    def __init__(self, name: str, machine: dict[str, Any]) -> None:
        super().__init__(name, machine)
        self.blocks, self.threads = 0, 0
        self.contract = True  # products and sums become one rounding; False where each must be rounded
        self.least_blocks = 0  # resident blocks of a multiprocessor that registers are bounded for; 0: one
        self.shared_bytes = 0

    def arg(self, name: str, dtype: str, size: int) -> Any:
        """As everywhere; a name that C++ keeps for itself becomes another."""
        return super().arg(f"{name}_" if name in _WORDS else name, dtype, size)

    @contextmanager
    def grid(self, blocks: int, threads: int) -> Iterator[tuple[Any, Any]]:
        """The kernel's only statement; gives the indices of block and thread. ``blocks`` are the plan's tasks."""
        assert not self.blocks, "a second grid"
        self.blocks, self.threads, self.tasks = blocks, threads, blocks
        with self.bound("blockIdx.x", blocks) as block, self.bound("threadIdx.x", threads) as thread:
            yield block, thread

    @contextmanager
    def bound(self, name: str, extent: int) -> Iterator[Any]:
        """Statements whose index ``name`` the GPU counts."""
        var = tirx.Var(name.replace(".", "_"), "int32")
        self._blocks.append([])
        yield var
        axis = tirx.IterVar(Range(0, extent), var, tirx.IterVar.ThreadIndex, name)
        self.emit(AttrStmt(axis, "thread_extent", tirx.IntImm("int32", extent), self._close()))

    def shared(self, dtype: str, size: int, name: str = "s") -> Any:
        """An array of the block, not initialised."""
        buffer = tirx.decl_buffer((size,), dtype, name=self._fresh(name), scope="shared")
        self.emit(AllocBuffer(buffer))
        nbytes = size * tvm.DataType(dtype).itemsize
        self.shared_bytes += -(-nbytes // _ALIGN) * _ALIGN
        return buffer

    def barrier(self) -> None:
        """All threads of the block wait for each other; what they wrote is seen. Never inside a condition that is not
        the same for all of them."""
        self.emit(tirx.Evaluate(tirx.call_intrin("int32", "tirx.tvm_storage_sync", "shared")))

    def device(self, function: str, dtype: str, *args: Expr) -> Expr:
        """A call of a function of ``device.h`` as an expression without effect. An argument that is a pair of a buffer
        and an index is a pointer."""
        return tirx.call_pure_extern(dtype, function, *map(_pointer, args))

    def run(self, function: str, *args: Expr) -> None:
        """As ``device``, for its effect: a statement."""
        self.emit(tirx.Evaluate(tirx.call_extern("void", function, *map(_pointer, args))))

    def prefetch(self, buffer: Any, index: Expr, *, write: bool = False, locality: int = 3) -> None:
        """Nothing: other warps run while one waits."""

    def fma(self, a: Expr, b: Expr, c: Expr) -> Expr:
        """a * b + c with one rounding (float32)."""
        return self.device("fmaf", "float32", a, b, c)


def _pointer(arg: Any) -> Any:
    if isinstance(arg, tuple):
        return tirx.call_intrin("handle", "tirx.address_of", tirx.BufferLoad(arg[0], [arg[1]]))
    return arg


def text(builder: Builder, workers: list[int]) -> dict[str, Any]:
    """A finished kernel as data: ``source`` (CUDA C++), ``blocks``, ``threads``, ``shared`` (bytes), ``contract``.

    ``workers``: the arguments that are scratch of one worker, which a GPU has none of.
    """
    assert isinstance(builder, DeviceBuilder)
    assert not workers, "scratch of a worker (templates._cuda_fallback makes slices of it)"
    function = builder.function()
    if not builder.blocks:
        function = _task_by_task(function, builder)
    machine = {k: builder.machine["llvm"][k] for k in ("kind", "arch")}
    target = tvm.target.Target(machine)
    with tvm.transform.PassContext(opt_level=3):
        module = tvm.IRModule({builder.name: function.with_attr("calling_conv", 2)})
        module = each(module, lambda f: _nan_kept(lanewise(f)))
        module = passes.BindTarget(target)(module)
        module = each(module, pointer_parameters)
        module = tvm.ir.transform.Sequential(loop_passes())(module)
        module = each(module, _exact_constants)
        module = passes.LowerIntrin()(module)
    source = tvm.get_global_func("target.build.cuda")(module, target).inspect_source()
    return {
        "source": _bounded(_shared_pointers(_without_preamble(source), builder), builder),
        "blocks": builder.blocks,
        "threads": builder.threads,
        "shared": builder.shared_bytes,
        "contract": builder.contract,
    }


def _task_by_task(func: Any, k: DeviceBuilder) -> Any:
    """A CPU's kernel on the GPU: a thread for each task of its parallel loop; where threads have scratch of their own
    there are as many as slices of it, and each takes every so many-th task."""
    tasks = k.tasks or 1
    count = min(tasks, k.slices["threads"]) if k.slices else tasks
    k.threads = max(1, min(THREADS, -(-count // k.machine["gpu"]["multiprocessors"])))
    k.blocks = -(-count // k.threads)
    with k.block() as made, k.bound("blockIdx.x", k.blocks) as block, k.bound("threadIdx.x", k.threads) as thread:
        first = block * k.threads + thread

        def rewrite(loop: Any, mutator: Any) -> Any:
            loop = mutator.default_mutate(loop)
            if loop.kind != ForKind.PARALLEL:
                return loop
            turn = tirx.Var("turn", "int32")
            turns = -(-tasks // count)
            task = first + turn * count if turns > 1 else first
            body = For(loop.loop_var, task, 1, ForKind.SERIAL, loop.body)  # for that one value
            if turns == 1:
                return body
            body = IfThenElse(task < tasks, body, None) if tasks % count else body
            return For(turn, 0, turns, ForKind.SERIAL, body)

        body = tvm_ffi.structural_mutate(_with_slices(func, k, first), ((For, rewrite),))
        k.emit(IfThenElse(first < count, body, None) if count % k.threads else body)
    k.contract = not any("int8" in str(p.dtype) for p in func.params)
    return tirx.PrimFunc(func.params, made(), func.ret_type, func.attrs)


def _with_slices(func: Any, k: DeviceBuilder, thread: Any) -> Any:
    """The body with each thread's scratch where its slice lies."""
    if not k.slices:
        return func.body
    own = [func.params[i] for i in k.slices["args"]]

    def moved(buffer: Any, indices: Any) -> Any:
        if not any(buffer.same_as(b) for b in own):
            return None
        size = k.slices["bytes"] // tvm.DataType(buffer.dtype).itemsize  # type: ignore[index]
        return [indices[0] + thread * size]

    def load(value: Any, mutator: Any) -> Any:
        value = mutator.default_mutate(value)
        place = moved(value.source, value.indices)
        return value if place is None else tirx.BufferLoad(value.source, place)

    def store(value: Any, mutator: Any) -> Any:
        value = mutator.default_mutate(value)
        place = moved(value.buffer, value.indices)
        return value if place is None else tirx.BufferStore(value.buffer, value.value, place)

    return tvm_ffi.structural_mutate(func.body, ((TensorLoad, load), (tirx.BufferStore, store)))


def _nan_kept(func: Any) -> Any:
    """Maxima and minima of float32 in which NaN wins, as it does on CPUs: CUDA's own drop it."""

    def kept(name: str) -> Any:
        def rewrite(value: Any, mutator: Any) -> Any:
            value = mutator.default_mutate(value)
            if str(value.ty.dtype) != "float32":
                return value
            return tirx.call_pure_extern("float32", name, value.a, value.b)

        return rewrite

    rules = ((tirx.Max, kept("nv_max")), (tirx.Min, kept("nv_min")))
    return tirx.PrimFunc(func.params, tvm_ffi.structural_mutate(func.body, rules), func.ret_type, func.attrs)


def _exact_constants(func: Any) -> Any:
    """Floating-point constants by their bits: printed in decimals they would be others."""

    def bits(value: Any, mutator: Any) -> Any:
        dtype = str(value.ty.dtype)
        form = {"float16": ("<e", "<H"), "float32": ("<f", "<I"), "float64": ("<d", "<Q")}.get(dtype)
        if form is None:
            return value
        number = struct.unpack(form[1], _packed(form[0], value.value))[0]
        wide = "uint64" if dtype == "float64" else "uint32"
        return tirx.call_pure_extern(dtype, f"nv_{dtype}_from_bits", tirx.const(number, wide))

    body = tvm_ffi.structural_mutate(func.body, ((tirx.FloatImm, bits),))
    return tirx.PrimFunc(func.params, body, func.ret_type, func.attrs)


def _packed(form: str, value: float) -> bytes:
    try:
        return struct.pack(form, value)
    except OverflowError:
        return struct.pack(form, float("inf") if value > 0 else float("-inf"))


def _without_preamble(source: str) -> str:
    return source[source.rindex('extern "C" __global__') :]


def _bounded(source: str, k: DeviceBuilder) -> str:
    """Says how many blocks a multiprocessor must hold. Where that is not said, the compiler (CUDA 13) has been seen to
    keep registers few, for more blocks than one, and to spill the rest."""
    return source.replace(
        f"__launch_bounds__({k.threads})", f"__launch_bounds__({k.threads}, {k.least_blocks or 1})", 1
    )


def _shared_pointers(source: str, k: DeviceBuilder) -> str:
    """Arrays of a block become pieces of the memory that a launch asks for: more than 48 KB can be had."""
    at = 0

    def piece(found: re.Match[str]) -> str:
        nonlocal at
        dtype, name, size = found["dtype"], found["name"], int(found["size"])
        begin = at
        at += -(-size * _SIZES[dtype] // _ALIGN) * _ALIGN
        return f"{dtype}* {name} = ({dtype}*)(nv_shared + {begin});"

    pattern = r"__shared__ (?:alignas\(\d+\) |__align__\(\d+\) )?(?P<dtype>[\w ]+?) (?P<name>\w+)\[(?P<size>\d+)\];"
    source = re.sub(pattern, piece, source)
    assert at == k.shared_bytes, f"{at} bytes of shared memory found, {k.shared_bytes} asked for"
    return source


_SIZES = {
    **{"uchar": 1, "ushort": 2, "float": 4, "half": 2, "nv_bfloat16": 2, "__nv_bfloat16": 2, "double": 8},
    **{"signed char": 1, "char": 1, "unsigned char": 1, "int8_t": 1, "uint8_t": 1, "short": 2, "unsigned short": 2},
    **{"int": 4, "unsigned int": 4, "uint": 4, "int64_t": 8, "uint64_t": 8, "long long": 8, "unsigned long long": 8},
    **{"int16_t": 2, "uint16_t": 2, "int32_t": 4, "uint32_t": 4},
}
