"""From a TIR function to an object file of plain C: ``void k(T *a, T *b, ... [, int32_t begin, int32_t end])``.

No TVM symbol stays behind: buffer parameters become typed pointers, the one parallel loop becomes a range that the
caller hands out, and the packed calling convention is never made. Runs in worker processes only.
"""

from __future__ import annotations

import json
import re
import struct
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
        module = tvm.ir.transform.Sequential(_loop_passes(target.kind.name != "c"))(module)
        module = each(module, lambda f: _range_parameters(_check_scratch(f)))
        module = tvm.ir.transform.Sequential([passes.LowerTVMBuiltin(), passes.LowerIntrin()])(module)
        if target.kind.name == "c":
            module = each(module, _printable)
    return module


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


def _loop_passes(vectorize: bool) -> list[Any]:
    return [
        passes.FlattenBuffer(),
        passes.BF16ComputeLegalize(),  # without the two bfloat16 passes LLVM crashes on such code
        passes.NarrowDataType(32),
        passes.VectorizeLoop(vectorize),
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


# -- the `c` target: TVM's C printer rounds float constants to seven digits and adds its own preamble ---------------


_C_NAMES = {"float32": "f32", "float64": "f64", "int32": "i32", "int64": "i64", "uint32": "u32", "uint64": "u64"}
_C_TYPES = {"f32": "float", "f64": "double"} | {
    f"{s}{b}": f"{n}{b}_t" for s, n in (("i", "int"), ("u", "uint")) for b in (32, 64)
}


def _printable(func: Any) -> Any:
    """Constants, reinterpreted bits and absolute values as calls that ``c99`` gives a meaning to."""

    def constant(value: Any, _: Any) -> Any:
        dtype = str(value.ty.dtype)
        if dtype == "float32":
            words = struct.unpack("<i", struct.pack("<f", value.value))
        elif dtype == "float64":
            words = struct.unpack("<ii", struct.pack("<d", value.value))
        else:
            return value
        return tirx.call_pure_extern(dtype, _C_NAMES[dtype] + "_bits", *(tirx.IntImm("int32", w) for w in words))

    def call(value: Any, mutator: Any) -> Any:
        value = mutator.default_mutate(value)
        dtype, op = str(value.ty.dtype), getattr(value.op, "name", "")
        if op == "tirx.reinterpret":
            source = str(value.args[0].ty.dtype)
            return tirx.call_pure_extern(dtype, f"{_C_NAMES[source]}_as_{_C_NAMES[dtype]}", value.args[0])
        if op == "tirx.fabs":
            return _absolute(value.args[0], dtype)
        return value

    body = tvm_ffi.structural_mutate(func.body, ((tirx.FloatImm, constant), (tvm.ir.Call, call)))
    return tirx.PrimFunc(func.params, body, func.ret_type, func.attrs)


def _absolute(x: Any, dtype: str) -> Any:
    """Without libm, which freestanding code lacks: the sign bit is cleared."""
    name, whole, mask = ("f64", "int64", (1 << 63) - 1) if dtype == "float64" else ("f32", "int32", (1 << 31) - 1)
    of, bits = f"i{name[1:]}", tirx.call_pure_extern(whole, f"{name}_as_i{name[1:]}", x)
    return tirx.call_pure_extern(dtype, f"{of}_as_{name}", tirx.bitwise_and(bits, tirx.const(mask, whole)))


def _bit_helpers(source: str) -> str:
    """The functions that read a number's bits as another type, as far as ``source`` calls them."""
    found = sorted(set(re.findall(r"\b([fiu]\d\d)_as_([fiu]\d\d)\(", source)))
    return "".join(
        f"static inline {_C_TYPES[to]} {have}_as_{to}({_C_TYPES[have]} x) {{\n"
        f"  union {{ {_C_TYPES[have]} x; {_C_TYPES[to]} y; }} both;\n  both.x = x;\n  return both.y;\n}}\n"
        for have, to in found
    )


def c99(functions: list[Any]) -> str:
    """The same functions as portable C99 text, with exact hexadecimal float constants and ``restrict`` pointers."""
    target = {"kind": "c"}
    source = generate(lower(functions, target), target).inspect_source("c")
    source = source[source.index("#ifdef __cplusplus") :]
    source = re.sub(r'#ifdef __cplusplus\nextern "C"\n#endif\nTVM_DLL ', "", source)
    source = re.sub(r"^\w+ \w+_(bits|as_\w+)\([^)]*\);\n", "", source, flags=re.MULTILINE)
    source = re.sub(r"\bf(?:32|64)_bits\((-?\d+)(?:, (-?\d+))?\)", lambda m: _float_literal(m[1], m[2]), source)
    source = re.sub(r"(\w+)\* (\w+)(?=[,)])", r"\1 *restrict \2", source)
    return "#include <math.h>\n#include <stdbool.h>\n#include <stdint.h>\n" + _bit_helpers(source) + source


def _float_literal(low: str, high: str | None) -> str:
    if high is None:
        (value,), suffix = struct.unpack("<f", struct.pack("<i", int(low))), "f"
    else:
        (value,), suffix = struct.unpack("<d", struct.pack("<ii", int(low), int(high))), ""
    if value != value:
        return "NAN"
    if value in (float("inf"), float("-inf")):
        return "INFINITY" if value > 0 else "(-INFINITY)"
    return f"({value.hex()}{suffix})" if value < 0 else value.hex() + suffix
