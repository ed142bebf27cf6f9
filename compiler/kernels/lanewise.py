"""Vectors of TIR, lane by lane: how work that is written for vectors becomes that of one thread of a GPU.

A thread has no vector arithmetic, but it loads and stores up to 16 bytes at once. So registers and sums are taken
apart, and neighbours in memory are moved by ``nv_load`` and ``nv_store`` (``runtime/c/cuda/device.h``), which see for
themselves whether the address allows that. Runs in worker processes only.
"""

from __future__ import annotations

from typing import Any

import tvm_ffi
from tvm import tirx
from tvm.ir import Call, TensorLoad
from tvm.tirx import AllocBuffer, BufferLoad, BufferStore, Evaluate, SeqStmt

from .tir import lanes_of


def lanewise(func: Any) -> Any:
    """The function with scalars only."""
    names = iter(range(1 << 30))

    def store(statement: Any) -> Any:
        return _Taken(names).apart(statement)

    body = tvm_ffi.structural_mutate(func.body, ((BufferStore, lambda s, mutator: store(s)),))
    return tirx.PrimFunc(func.params, body, func.ret_type, func.attrs)


class _Taken:
    """One store, taken apart: statements that go before it (loads of vectors), and a store for each lane."""

    def __init__(self, names: Any) -> None:
        self.names = names
        self.before: list[Any] = []
        self.loaded: list[tuple[Any, Any, int, Any]] = []  # buffer, first index, lanes, where they are

    def apart(self, statement: Any) -> Any:
        buffer, index, value = statement.buffer, statement.indices[0], statement.value
        lanes = max(lanes_of(value), lanes_of(index))
        places = [self.lane(index, i) for i in range(lanes)]
        parts = [self.lane(value, i) for i in range(lanes)]
        if lanes == 1:
            stores = [BufferStore(buffer, parts[0], places)]
        elif buffer.scope() == "local" and not _mixes(value):
            stores = [BufferStore(buffer, v, [p]) for v, p in zip(parts, places, strict=True)]
        else:
            held = self._array(buffer.dtype, lanes)
            stores = [BufferStore(held, v, [i]) for i, v in enumerate(parts)]
            if buffer.scope() != "local" and isinstance(index, tirx.Ramp) and int(index.stride) == 1:
                stores.append(_moved("nv_store", (buffer, places[0]), (held, 0), lanes))
            else:
                stores += [BufferStore(buffer, BufferLoad(held, [i]), [p]) for i, p in enumerate(places)]
        statements = [*self.before, *stores]
        return statements[0] if len(statements) == 1 else SeqStmt(statements)

    def _array(self, dtype: Any, lanes: int) -> Any:
        buffer = tirx.decl_buffer((lanes,), dtype, name=f"lanes_{next(self.names)}", scope="local")
        self.before.append(AllocBuffer(buffer))
        return buffer

    def lane(self, expr: Any, i: int) -> Any:
        """Lane ``i`` of an expression (of a scalar: itself)."""
        if isinstance(expr, tirx.Broadcast):
            return self.lane(expr.value, 0)
        if isinstance(expr, tirx.Ramp):
            return expr.base + expr.stride * i
        if isinstance(expr, tirx.Shuffle):
            return self._shuffled(expr, i)
        if isinstance(expr, TensorLoad):
            return self._load(expr, i)
        if isinstance(expr, Call):
            return self._call(expr, i)
        if isinstance(expr, tirx.Cast):
            return tirx.Cast(_scalar(expr), self.lane(expr.value, i))
        if isinstance(expr, tirx.Select):
            return tirx.Select(*(self.lane(e, i) for e in (expr.condition, expr.true_value, expr.false_value)))
        if hasattr(expr, "b"):
            return type(expr)(self.lane(expr.a, i), self.lane(expr.b, i))
        return type(expr)(self.lane(expr.a, i)) if hasattr(expr, "a") else expr

    def _shuffled(self, expr: Any, i: int) -> Any:
        at = int(expr.indices[i])
        for vector in expr.vectors:
            if at < lanes_of(vector):
                return self.lane(vector, at)
            at -= lanes_of(vector)
        raise AssertionError("a shuffle of lanes that are not there")

    def _call(self, expr: Any, i: int) -> Any:
        if lanes_of(expr) == 1 and all(not hasattr(a.ty, "dtype") or lanes_of(a) == 1 for a in expr.args):
            return expr
        return Call(expr.op, [self.lane(a, i) for a in expr.args], expr.attrs, expr.ty_args, ret_ty=_scalar(expr))

    def _load(self, expr: Any, i: int) -> Any:
        buffer, index = expr.source, expr.indices[0]
        if lanes_of(index) == 1:
            return expr
        straight = isinstance(index, tirx.Ramp) and int(index.stride) == 1 if _known(index) else False
        if buffer.scope() == "local" or not straight:
            return BufferLoad(buffer, [self.lane(index, i)])
        lanes = lanes_of(index)
        for other, first, width, held in self.loaded:
            if other.same_as(buffer) and width == lanes and first.same_as(index.base):
                return BufferLoad(held, [i])
        held = self._array(buffer.dtype, lanes)
        self.before.append(_moved("nv_load", (held, 0), (buffer, index.base), lanes))
        self.loaded.append((buffer, index.base, lanes, held))
        return BufferLoad(held, [i])


def _known(index: Any) -> bool:
    return isinstance(index, tirx.Ramp) and isinstance(index.stride, tirx.IntImm)


def _mixes(expr: Any) -> bool:
    """Whether a lane may depend on other lanes of what is stored to."""
    found: list[Any] = []
    tvm_ffi.structural_walk(expr, ((tirx.Shuffle, found.append),))
    return bool(found)


def _scalar(expr: Any) -> str:
    return str(expr.ty.dtype).split("x")[0]


def _moved(function: str, to: tuple[Any, Any], source: tuple[Any, Any], lanes: int) -> Any:
    """``lanes`` elements from one place to another."""
    pointers = [tirx.call_intrin("handle", "tirx.address_of", BufferLoad(b, [i])) for b, i in (to, source)]
    return Evaluate(tirx.call_extern("void", function, *pointers, tirx.const(lanes, "int32")))
