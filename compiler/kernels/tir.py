"""The builder through which templates write kernels: statements appended in order, loops as ``with`` blocks.

Direct TIR, no schedules: what a template writes is what LLVM gets. Buffers are flat; indices count elements; a vector
register is a buffer of its lanes that LLVM keeps in a register. This and ``lower.py`` are the only files that import
TVM, and they are loaded in worker processes only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import tvm
from tvm import tirx
from tvm.ir import StringImm
from tvm.tirx import (
    AllocBuffer,
    AttrStmt,
    Broadcast,
    BufferLoad,
    BufferStore,
    For,
    ForKind,
    IfThenElse,
    PrimFunc,
    Ramp,
    SeqStmt,
    Var,
)

Expr = Any  # a tirx.PrimExpr, or a Python number where one is accepted

_KINDS = {
    "serial": ForKind.SERIAL,
    "parallel": ForKind.PARALLEL,
    "unrolled": ForKind.UNROLLED,
    "vectorized": ForKind.VECTORIZED,
}
_ON_STACK = {"disable_lower_builtin": tirx.IntImm("bool", 1)}


def dtype_of(expr: Expr) -> str:
    """Element type of an expression, without lanes: ``float32``."""
    return str(expr.ty.dtype).split("x")[0]


def lanes_of(expr: Expr) -> int:
    text = str(expr.ty.dtype)
    return int(text.split("x")[1]) if "x" in text else 1


def as_dtype(dtype: str, lanes: int = 1) -> str:
    return dtype if lanes == 1 else f"{dtype}x{lanes}"


def constant(value: float | int | bool, dtype: str, lanes: int = 1) -> Expr:
    """A typed constant in every lane."""
    if dtype == "bool":
        scalar = tirx.const(bool(value), "bool")
    elif dtype.startswith(("float", "bfloat")):
        scalar = tirx.const(float(value), dtype)
    else:
        scalar = tirx.const(int(value), dtype)
    return scalar if lanes == 1 else Broadcast(scalar, lanes)


def like(value: float | int | bool, expr: Expr) -> Expr:
    """A constant of ``expr``'s type and lanes."""
    return constant(value, dtype_of(expr), lanes_of(expr))


def splat(expr: Expr, lanes: int) -> Expr:
    return expr if lanes == 1 or lanes_of(expr) == lanes else Broadcast(expr, lanes)


class Register:
    """A scalar or vector that is assigned several times (an accumulator); lives in a machine register."""

    def __init__(self, builder: Builder, dtype: str, lanes: int, name: str) -> None:
        self.lanes, self.dtype = lanes, dtype
        self.buffer = tirx.decl_buffer((lanes,), dtype, name=name, data_alignment=64, scope=builder.scope)
        self._builder = builder
        builder.emit(AllocBuffer(self.buffer, _ON_STACK))

    def get(self) -> Expr:
        return BufferLoad(self.buffer, [Ramp(0, 1, self.lanes) if self.lanes > 1 else 0])

    def set(self, value: Expr) -> None:
        self._builder.emit(BufferStore(self.buffer, value, [Ramp(0, 1, self.lanes) if self.lanes > 1 else 0]))

    def add_product(self, a: Expr, b: Expr) -> None:
        """``self += a * b``, an FMA where the machine has one: LLVM contracts the sum, except for 32-bit ARM."""
        k = self._builder
        if "vfpv4" in k.machine.get("features", ()) and self.dtype == "float32":
            suffix = f"v{self.lanes}f32" if self.lanes > 1 else "f32"
            self.set(k.call(f"llvm.fma.{suffix}", as_dtype(self.dtype, self.lanes), a, b, self.get()))
            return
        self.set(a * b + self.get())


class Builder:
    """One kernel under construction. ``machine`` is the machine's kernel row (a dict), for emitters that need it."""

    scope = "global"  # where registers and arrays live, in TVM's words
    native: Mapping[str, str] = {}  # functions of float32 scalars (of vecmath.py) that the machine's compiler has
    widens = False  # an evaluator holds float16 and bfloat16 as float32

    def __init__(self, name: str, machine: dict[str, Any]) -> None:
        self.name, self.machine = name, machine
        self.lanes: int = machine["lanes"]
        self._params: list[Any] = []
        self._blocks: list[list[Any]] = [[]]
        self._names = 0
        self.tasks: int | None = None
        # C that is read: functions are called, not written out at each place
        self.calls = machine.get("llvm", {}).get("kind") == "c"
        self.slices: dict[str, Any] | None = None  # scratch of threads (templates._cuda_fallback)
        self.helpers: dict[str, str] = {}  # functions in LLVM IR that the kernel calls, by name
        self.pointers = True  # False: addresses stay one base and constants, they get no pointers of their own
        self.counters = True  # False: no loop is counted in LR (32-bit ARM), which may hold a sum then
        self.noalias = True  # False for a kernel that may write over what it has read (Plan.overlaps)
        self.wide: dict[int, Any] = {}  # vectors that were packed, by identity, and what they were before

    # -- memory ------------------------------------------------------------------------------------------------

    def arg(self, name: str, dtype: str, size: int) -> Any:
        """The next pointer argument, of ``size`` elements (bool is passed as uint8 0 or 1)."""
        buffer = tirx.decl_buffer((max(1, size),), "uint8" if dtype == "bool" else dtype, name=name)
        self._params.append(buffer)
        return buffer

    def array(self, dtype: str, size: int, name: str = "t") -> Any:
        """A small array on the stack (at most 16 KB); larger scratch is asked for as a ``worker`` argument."""
        buffer = tirx.decl_buffer((size,), dtype, name=self._fresh(name), data_alignment=64, scope=self.scope)
        self.emit(AllocBuffer(buffer, _ON_STACK))
        return buffer

    def register(self, dtype: str = "float32", lanes: int | None = None, name: str = "r") -> Register:
        """A new register of ``lanes`` lanes (the machine's float32 lanes unless given); not initialised."""
        return Register(self, dtype, self.lanes if lanes is None else lanes, self._fresh(name))

    def load(self, buffer: Any, index: Expr, lanes: int = 1, stride: int = 1) -> Expr:
        """``lanes`` elements from ``index`` on, ``stride`` apart; stride 0 splats one element."""
        if lanes == 1:
            return BufferLoad(buffer, [index])
        if stride == 0:
            return Broadcast(BufferLoad(buffer, [index]), lanes)
        return BufferLoad(buffer, [Ramp(index, stride, lanes)])

    def store(self, buffer: Any, index: Expr, value: Expr, stride: int = 1) -> None:
        """Stores the lanes of ``value`` from element ``index`` on, ``stride`` apart."""
        lanes = lanes_of(value)
        self.emit(BufferStore(buffer, value, [index if lanes == 1 else Ramp(index, stride, lanes)]))

    def prefetch(self, buffer: Any, index: Expr, *, write: bool = False, locality: int = 3) -> None:
        """Asks for the cache line of an element; ``locality`` 3 keeps it in all caches, 0 in none."""
        address = tirx.call_intrin("handle", "tirx.address_of", BufferLoad(buffer, [index]))
        args = [address, *(tirx.const(v, "int32") for v in (int(write), locality, 1))]
        self.emit(tirx.Evaluate(tirx.call_llvm_intrin("void", "llvm.prefetch.p0", *args)))

    # -- control -----------------------------------------------------------------------------------------------

    def emit(self, statement: Any) -> None:
        """Appends a finished statement to the block that is open."""
        self._blocks[-1].append(statement)

    @contextmanager
    def loop(self, extent: Expr, kind: str = "serial", name: str = "i") -> Iterator[Expr]:
        """Counts from 0. A loop of extent 1 (that is not parallel) becomes no loop: the index is the number 0."""
        if isinstance(extent, int) and extent == 1 and kind != "parallel":
            yield 0
            return
        var = Var(self._fresh(name), "int32")
        self._blocks.append([])
        yield var
        body = self._close()
        if kind == "parallel":
            self.tasks = int(extent)
        self.emit(For(var, 0, extent, _KINDS[kind], body))

    @contextmanager
    def loop_from(self, first: Expr, end: Expr, name: str = "i") -> Iterator[Expr]:
        """Counts from ``first`` to ``end`` (which does not come). No loop where both are known to be one apart."""
        if isinstance(first, int) and isinstance(end, int) and end - first == 1:
            yield first
            return
        var = Var(self._fresh(name), "int32")
        self._blocks.append([])
        yield var
        self.emit(For(var, first, end - first, ForKind.SERIAL, self._close()))

    @contextmanager
    def block(self) -> Iterator[Any]:
        """Statements apart: what it yields gives them, once they are all there."""
        self._blocks.append([])
        found: list[Any] = []
        yield lambda: found[0]
        found.append(self._close())

    @contextmanager
    def strides(self, extent: int, step: Expr, name: str = "i") -> Iterator[Expr]:
        """Counts from 0 by ``step``, which is not known before the kernel runs, so that LLVM does not unroll."""
        step, at = self.bind(step, "step"), self.register("int32", 1, name)
        at.set(constant(0, "int32"))
        self._blocks.append([])
        yield at.get()
        at.set(at.get() + step)
        self.emit(tirx.While(at.get() < extent, self._close()))

    def parallel(self, tasks: int, name: str = "task") -> Any:
        """The loop whose range the runtime hands out to its workers: outermost, the kernel's only statement."""
        return self.loop(tasks, "parallel", name)

    @contextmanager
    def when(self, condition: Expr) -> Iterator[None]:
        """Statements under a condition; a condition known now (a Python bool) costs nothing."""
        self._blocks.append([])
        yield
        body = self._close()
        if isinstance(condition, bool):
            if condition:
                self.emit(body)
        else:
            self.emit(IfThenElse(condition, body, None))

    def bind(self, value: Expr, name: str = "v") -> Expr:
        """Computes ``value`` here once; returns the variable that holds it."""
        if isinstance(value, int | float):
            return value
        lanes = lanes_of(value)
        held = self.register(dtype_of(value), lanes, name)
        held.set(value)
        return held.get()

    # -- expressions -------------------------------------------------------------------------------------------

    def call(self, name: str, dtype: str, *args: Expr) -> Expr:
        """A pure LLVM intrinsic by name, e.g. ``llvm.fma.v16f32``."""
        return tirx.call_llvm_pure_intrin(dtype, name, *args)

    def helper(self, name: str, text: str, *args: Expr) -> Expr:
        """Calls a function that ``text`` defines in LLVM IR (with machine code inside, mostly), which returns an int32
        and may read and write memory. It is inlined. An argument that is a pair of a buffer and an index is a pointer.
        """
        self.helpers[name] = text
        given = [
            tirx.call_intrin("handle", "tirx.address_of", BufferLoad(a[0], [a[1]])) if isinstance(a, tuple) else a
            for a in args
        ]
        return self.bind(tirx.call_extern("int32", name, *given))

    def instruction(self, row: Any, **operands: Expr) -> Expr:
        """Applies one instruction row of a target (``targets.machine.Instruction``) to its named operands."""
        held: dict[str, Expr] = dict(operands)
        for step in row.body:
            args = [
                reinterpreted(held[a] if isinstance(a, str) else _spread(a, kind), kind)
                for a, kind in zip(step.args, step.arg_dtypes, strict=True)
            ]
            if step.function == "add":
                held[step.out] = args[0] + args[1]
            elif step.function == "concat":
                held[step.out] = joined(args)
            elif step.function == "bitcast":
                held[step.out] = reinterpreted(args[0], step.dtype)
            else:
                held[step.out] = self.call(step.function, step.dtype, *args)
        return held[row.body[-1].out]

    def row(self, kind: str, lanes: int | None = None) -> Any:
        """The machine's first instruction row of that kind (and of ``lanes`` lanes), or None."""
        from ...targets import instruction

        for name, own, width, _ in self.machine.get("instructions", ()):
            if own == kind and lanes in (None, width):
                return instruction(name)
        return None

    def fold(self, parts: Sequence[Expr], combine: Any) -> Expr:
        """Combines in a fixed tree, so that the result does not depend on anything but the number of parts."""
        work = list(parts)
        while len(work) > 1:
            work = [combine(*work[i : i + 2]) if i + 1 < len(work) else work[i] for i in range(0, len(work), 2)]
        return work[0]

    def across(self, vector: Expr, combine: Any) -> Expr:
        """Reduces the lanes of a vector to a scalar by halving."""
        lanes = lanes_of(vector)
        while lanes > 1:
            held = self.bind(vector, "fold")
            half = lanes // 2
            low = tirx.Shuffle([held], [tirx.IntImm("int32", i) for i in range(half)])
            high = tirx.Shuffle([held], [tirx.IntImm("int32", half + i) for i in range(half)])
            vector, lanes = combine(low, high), half
        return vector

    # -- result ------------------------------------------------------------------------------------------------

    def function(self) -> Any:
        """The finished PrimFunc."""
        assert len(self._blocks) == 1, "an open loop"
        attrs = {"global_symbol": self.name, "tirx.noalias": self.noalias}
        attrs |= {"nervure.pointers": self.pointers, "nervure.counters": self.counters}
        body = _sequence(self._blocks[0])
        if self.helpers:
            text = "\n".join(self.helpers[name] for name in sorted(self.helpers))
            body = AttrStmt(tirx.const(0, "int32"), "pragma_import_llvm", StringImm(text), body)
        func = PrimFunc(self._params, body)
        for key, value in attrs.items():
            func = func.with_attr(key, value)
        return func

    def _close(self) -> Any:
        return _sequence(self._blocks.pop())

    def _fresh(self, name: str) -> str:
        self._names += 1
        return f"{name}_{self._names}"


def reinterpreted(expr: Expr, dtype: str) -> Expr:
    """The same bits as another type."""
    return expr if str(expr.ty.dtype) == dtype else tirx.reinterpret(dtype, expr)


def joined(parts: Sequence[Expr]) -> Expr:
    """Vectors side by side as one."""
    if len(parts) == 1:
        return parts[0]
    lanes = sum(lanes_of(p) for p in parts)
    return tirx.Shuffle(list(parts), [tirx.IntImm("int32", i) for i in range(lanes)])


def chosen(vectors: Sequence[Expr], lanes: Sequence[int]) -> Expr:
    """A vector of the given lanes of the vectors side by side."""
    return tirx.Shuffle(list(vectors), [tirx.IntImm("int32", i) for i in lanes])


def _spread(value: int, dtype: str) -> Expr:
    element, _, lanes = dtype.partition("x")
    return constant(value, element, int(lanes or 1))


def _sequence(statements: list[Any]) -> Any:
    flat = [s for s in statements if s is not None]
    if not flat:
        return tirx.Evaluate(tirx.const(0, "int32"))
    return flat[0] if len(flat) == 1 else SeqStmt(flat)


minimum, maximum, select = tirx.Min, tirx.Max, tirx.Select
reinterpret = tirx.reinterpret
shift_left, shift_right = tvm.tirx.shift_left, tvm.tirx.shift_right
