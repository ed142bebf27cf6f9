"""From a TIR function to an object file of plain C: ``void k(T *a, T *b, ... [, int32_t begin, int32_t end])``.

No TVM symbol stays behind: buffer parameters become typed pointers, the one parallel loop becomes a range that the
caller hands out, and the packed calling convention is never made. Runs in worker processes only.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import tvm
import tvm_ffi
from tvm import tirx
from tvm.ir import PointerType, PrimType
from tvm.s_tir import transform as blocks
from tvm.tirx import AllocBuffer, DeclBuffer, For, ForKind, SeqStmt
from tvm.tirx import transform as passes

_STACK_LIMIT = 16 << 10


_OPTIONS = {  # of LLVM, where a function's attribute is False
    "tirx.noalias": "-enable-tbaa:bool=0",  # TVM says of every two buffers that they do not overlap
    "nervure.pointers": "-disable-lsr:bool=1",
    "nervure.counters": "-disable-arm-loloops:bool=1",
}


class LoweringError(Exception):
    """A template broke the kernel rules (a second parallel loop, scratch it did not ask for)."""


def lower(functions: list[Any], llvm: dict[str, Any]) -> Any:
    """The IRModule ready for code generation. ``llvm`` is the machine's TVM target (a dict)."""
    target = tvm.target.Target(llvm)
    module = tvm.IRModule({str(f.attrs["global_symbol"]): f for f in functions})
    with tvm.transform.PassContext(opt_level=3):
        module = passes.BindTarget(target.with_host(target))(module)
        module = each(module, pointer_parameters)
        module = tvm.ir.transform.Sequential(loop_passes())(module)
        module = each(module, lambda f: _range_parameters(_check_scratch(f)))
        module = tvm.ir.transform.Sequential([passes.LowerTVMBuiltin(), passes.LowerIntrin()])(module)
    return each(module, _fenced)


def generate(module: Any, llvm: dict[str, Any]) -> Any:
    """TVM's compiled module; ``write_to_file`` and ``inspect_source`` are its useful methods."""
    target = tvm.target.Target(llvm)
    return tvm.get_global_func("target.build." + target.kind.name)(module, target)


def write_object(functions: list[Any], llvm: dict[str, Any], path: Path) -> None:
    """Compiles to ``path`` (.o, .s or .ll by its suffix)."""
    options = [o for name, o in _OPTIONS.items() if any(not f.attrs.get(name, True) for f in functions)]
    if options:
        llvm = {**llvm, "cl-opt": [*llvm.get("cl-opt", ()), *options]}
    generate(lower(functions, llvm), llvm).write_to_file(str(path), path.suffix[1:])


def write_text(function: Any, path: Path) -> None:
    """Writes a kernel as C (``c99.Text``) with the helper functions that it calls, as JSON, to ``path``; what C
    cannot say as ``unsupported``."""
    from . import c99, c99_expr

    try:
        text = c99.kernel(function)
        found = text.plain() | {"texts": c99.with_helpers(text.helpers)}
    except c99_expr.UnsupportedC as error:
        found = {"unsupported": str(error)}
    path.write_text(json.dumps(found))


def each(module: Any, change: Any) -> Any:
    return tvm.IRModule({var.name_hint: change(f) for var, f in module.functions.items()})


def loop_passes() -> list[Any]:
    return [
        passes.FlattenBuffer(),
        passes.BF16ComputeLegalize(),  # without the two bfloat16 passes LLVM crashes on such code
        passes.NarrowDataType(32),
        passes.VectorizeLoop(True),
        passes.UnrollLoop(),
        passes.StmtSimplify(),
        passes.RemoveNoOp(),
        blocks.RewriteUnsafeSelect(),
        passes.VerifyMemory(),
        passes.BF16StorageLegalize(),
    ]


def pointer_parameters(func: Any) -> Any:
    """Buffer-typed parameters become typed pointers, which is what code generation accepts."""
    params, declared = [], []
    for p in func.params:
        if tirx.buffer.is_buffer_var(p):
            pointer = tirx.Var(p.name, PointerType(PrimType(str(p.dtype))))
            params.append(pointer)
            declared.append(DeclBuffer(p, data=pointer))
        else:
            params.append(p)
    rest = list(func.body.seq) if isinstance(func.body, SeqStmt) else [func.body]
    return tirx.PrimFunc(params, SeqStmt(declared + rest) if declared else func.body, func.ret_type, func.attrs)


def _check_scratch(func: Any) -> Any:
    """Allocations stay on the stack; a large one is a template's mistake (it must be an argument)."""

    def visit(statement: Any) -> None:
        size = tvm.DataType(statement.buffer.dtype)
        nbytes = (size.bits * size.lanes + 7) // 8
        for extent in statement.buffer.shape:
            nbytes *= int(extent)
        if nbytes > _STACK_LIMIT:
            raise LoweringError(f"{statement.buffer.name} takes {nbytes} bytes of stack; ask for a worker argument")

    tvm_ffi.structural_walk(func.body, ((AllocBuffer, visit),))
    return func


def _fenced(func: Any) -> Any:
    """Where vectors are multiplied by a negative power of two, integers that become floats are kept apart from what
    follows: LLVM's selection for Helium makes one conversion from fixed point of the two, and may put its number of
    bits, an immediate, in a register."""
    halves: list[float] = []

    def constant(value: Any) -> None:
        if isinstance(value.value, tirx.FloatImm):
            mantissa, exponent = math.frexp(value.value.value)
            halves.extend([mantissa] if mantissa == 0.5 and exponent <= 0 else [])

    def cast(value: Any, mutator: Any) -> Any:
        value = mutator.default_mutate(value)
        dtype, source = str(value.ty.dtype), str(value.value.ty.dtype)
        if not dtype.startswith("float32x") or not source.startswith(("int", "uint")):
            return value
        return tirx.call_llvm_pure_intrin(dtype, "llvm.arithmetic.fence", value)

    tvm_ffi.structural_walk(func.body, ((tirx.Broadcast, constant),))
    if not halves:
        return func
    return tirx.PrimFunc(
        func.params, tvm_ffi.structural_mutate(func.body, ((tirx.Cast, cast),)), func.ret_type, func.attrs
    )


def _range_parameters(func: Any) -> Any:
    """The one parallel loop runs over ``[begin, end)``, two parameters that the runtime fills in."""
    begin, end = tirx.Var("begin", "int32"), tirx.Var("end", "int32")
    found: list[int] = []

    def rewrite(statement: Any) -> Any:
        if isinstance(statement, tirx.AttrStmt):
            return tirx.AttrStmt(statement.node, statement.attr_key, statement.value, rewrite(statement.body))
        if isinstance(statement, SeqStmt):
            work = [s for s in statement.seq if not isinstance(s, DeclBuffer | AllocBuffer)]
            if len(work) == 1:
                return SeqStmt([rewrite(s) if s.same_as(work[0]) else s for s in statement.seq])
        if isinstance(statement, For) and statement.kind == ForKind.PARALLEL:
            found.append(int(statement.extent))
            return For(statement.loop_var, begin, end - begin, ForKind.SERIAL, statement.body)
        return statement

    body = rewrite(func.body)
    left: list[Any] = []
    tvm_ffi.structural_walk(body, ((For, lambda s: left.append(s) if s.kind == ForKind.PARALLEL else None),))
    if left:
        raise LoweringError("a parallel loop must be the outermost and only statement of its kernel")
    return tirx.PrimFunc([*func.params, begin, end], body, func.ret_type, func.attrs) if found else func
