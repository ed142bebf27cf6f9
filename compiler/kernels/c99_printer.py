"""Prints the statements of one kernel as C (see ``c99``)."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import tvm
import tvm_ffi
from tvm import tirx
from tvm.ir import PointerType, TensorLoad
from tvm.s_tir import transform as blocks
from tvm.tirx import transform as passes

from . import c99_helpers as helpers
from .c99_expr import C_TYPES, Expressions, unsupported
from .c99_ranges import scalar_dtype
from .c99_survey import flattened, mentions, shuffles, split_dtype, survey
from .c99_text import folded
from .lower import each, pointer_parameters

_WORDS = """
auto break case char const continue default do double else enum extern float for goto if inline int long register
restrict return short signed sizeof static struct switch typedef union unsigned void volatile while class new delete
this template private public protected operator try catch throw bool true false main arena memory inputs outputs memcpy
memset j0 j1 jn y0 y1 yn gamma
"""
RESERVED = frozenset(_WORDS.split())
_STEP = "    "


@dataclass
class Text:
    """One kernel as C. ``params`` are (element type, name, whether it is only read); ``helpers`` the functions that
    ``body`` calls."""

    name: str
    params: list[tuple[str, str, bool]]
    body: list[str]
    noalias: bool = True
    helpers: list[str] = field(default_factory=list)

    def plain(self) -> dict[str, Any]:
        """As JSON values: how it comes back from a worker."""
        return dict(vars(self))


def prepared(function: Any) -> Any:
    """The PrimFunc with flat buffers and plain loops, vectors kept as they are."""
    module = tvm.IRModule({str(function.attrs["global_symbol"]): function})
    target = tvm.target.Target({"kind": "c"})
    bind = passes.BindTarget(target.with_host(target))
    order = [
        passes.FlattenBuffer(),
        passes.BF16ComputeLegalize(),
        passes.NarrowDataType(32),
        passes.StmtSimplify(),
        passes.RemoveNoOp(),
        blocks.RewriteUnsafeSelect(),
        passes.BF16StorageLegalize(),
        passes.LowerIntrin(),
    ]
    with tvm.transform.PassContext(opt_level=3):
        module = each(bind(module), pointer_parameters)
        module = tvm.ir.transform.Sequential(order)(module)
    return next(iter(module.functions.values()))


class Printer(Expressions):
    """Prints one function. ``returns``: it is a helper on scalars, whose last parameter is its result."""

    def __init__(self, function: Any, *, returns: bool = False) -> None:
        super().__init__()
        self.function, self.returns = prepared(function), returns
        self.noalias = bool(function.attrs.get("tirx.noalias", True))
        self.lines: list[str] = []
        self.depth = 1
        self.scopes: list[set[str]] = [set()]
        self.written: set[str] = set()
        self.unused: set[Any] = set()

    def kernel(self) -> Text:
        function = self.function
        params = []
        for p in function.params:
            name = self._fresh(_alone(p.name, [q.name for q in function.params]))
            self.names[p] = name
            params.append((p, name))
        found = survey(function.body)
        self.stores, self.loads = found.stores, found.loads
        if self.returns:
            self.by_value = {name for _, name in params}
            self.result = params[-1][1]
        self.statement(function.body)
        rows = [(self._pointed(p), name, name not in self.written) for p, name in params]
        text = str(function.attrs["global_symbol"])
        words = set(re.findall(r"\w+", "\n".join(self.lines)))
        self.lines += [f"{_STEP}(void){name};" for _, name, _ in rows if name not in words and not self.returns]
        return Text(text, rows, self._tidy(), self.noalias, sorted(self.helpers))

    def _pointed(self, p: Any) -> str:
        kind = p.ty
        element = kind.element_type if isinstance(kind, PointerType) else kind
        return C_TYPES[scalar_dtype(str(element.dtype))]

    def _tidy(self) -> list[str]:
        return [part for line in self.lines for part in folded(line.rstrip())]

    # -- before printing ---------------------------------------------------------------------------------------

    # -- statements --------------------------------------------------------------------------------------------

    def emit(self, line: str) -> None:
        self.lines.append(_STEP * self.depth + line)

    def statement(self, s: Any) -> None:
        kind = type(s).__name__
        method = getattr(self, f"_do_{kind}", None)
        if method is None:
            raise unsupported(f"statement {kind}")
        method(s)

    def _do_SeqStmt(self, s: Any) -> None:
        parts = flattened(s)
        for i, part in enumerate(parts):
            if isinstance(part, tirx.AllocBuffer) and part.buffer not in self.loads:
                self.unused.add(part.buffer)
                continue
            if isinstance(part, tirx.AllocBuffer) and self._late(part, parts[i + 1 :]):
                self.pending.add(part.buffer)
                continue
            self.statement(part)

    def _late(self, alloc: Any, rest: list[Any]) -> bool:
        """Whether a local can be declared by its first store: nothing beside it looks at it before."""
        if not self._is_scalar(alloc.buffer):
            return False
        for part in rest:
            if isinstance(part, tirx.BufferStore) and part.buffer.same_as(alloc.buffer):
                return not mentions(part.value, alloc.buffer)
            if mentions(part, alloc.buffer):
                return False
        return False

    def _do_AllocBuffer(self, s: Any) -> None:
        buffer = s.buffer
        dtype, lanes = split_dtype(str(buffer.dtype))
        size = lanes
        for extent in buffer.shape:
            size *= int(extent)
        name = self.declare(buffer)
        zero = "0.0" if dtype == "float64" else "0.0f" if dtype.startswith("float") else "0"
        self.emit(f"{C_TYPES[self.held(dtype)]} {name}{f' = {zero}' if size == 1 else f'[{size}]'};")

    def _do_DeclBuffer(self, s: Any) -> None:
        self.names[s.buffer] = self.names[s.data]

    def _do_AttrStmt(self, s: Any) -> None:
        self.statement(s.body)

    def _do_Evaluate(self, s: Any) -> None:
        if isinstance(s.value, tirx.IntImm) or "prefetch" in str(s.value):
            return
        self.emit(f"{self.show(s.value)};")

    def _do_BufferStore(self, s: Any) -> None:
        lanes = split_dtype(str(s.value.ty.dtype))[1]
        if s.buffer in self.unused:
            return
        if lanes > 1:
            return self._store_lanes(s, lanes)
        self._store(s, 0)

    def _store(self, s: Any, lane: int | str) -> None:
        buffer = s.buffer
        if buffer in self.pending and self.stores.get(buffer) == 1 and self._alias(s):
            return
        declares = buffer in self.pending
        wide = self._stored(s.value, buffer, lane)
        if declares:
            self.pending.discard(buffer)
            name = self.declare(buffer)
            constant = "const " if self.stores[buffer] == 1 else ""
            if constant:
                self.bounds[buffer] = self.range(s.value)
            self.emit(f"{constant}{C_TYPES[self.held(str(buffer.dtype))]} {name} = {wide};")
            return
        target = self.element(buffer, s.indices[0], lane, write=True)
        if self.returns and target == self.result:
            self.emit(f"return {wide};")
            return
        self.emit(self._update(target, s, wide, lane))

    def _update(self, target: str, s: Any, wide: str, lane: int | str) -> str:
        """``a += b`` where that is what is stored."""
        for kind, sign in ((tirx.Add, "+="), (tirx.Sub, "-=")):
            if type(s.value) is kind and str(s.value.ty.dtype).startswith(("int32", "float32", "float64", "uint32")):
                pairs = [(s.value.a, s.value.b)] + ([(s.value.b, s.value.a)] if kind is tirx.Add else [])
                for own, other in pairs:
                    if self.show(own, lane) == target and self.plain_sum(s.value):
                        return f"{target} {sign} {self.show(other, lane)};"
        return f"{target} = {wide};"

    def _alias(self, s: Any) -> bool:
        """A name for what already has one needs no statement."""
        value = s.value
        if isinstance(value, TensorLoad) and self._is_scalar(value.source):
            same = str(value.ty.dtype) == str(s.buffer.dtype)
            once = self.stores.get(value.source) == 1 or self.names.get(value.source) in self.by_value
            if same and once and value.source in self.names:
                self.pending.discard(s.buffer)
                self.names[s.buffer] = self.names[value.source]
                return True
        return False

    def _store_lanes(self, s: Any, lanes: int) -> None:
        """A vector's lanes one after the other: a loop, or each by itself where they are shuffled."""
        if s.buffer in self.pending:
            self.pending.discard(s.buffer)
            self._do_AllocBuffer(_Alloc(s.buffer))
        if mentions(s.value, s.buffer, but=s.indices[0]):
            return self._through_copy(s, lanes)
        if shuffles(s.value):
            for number in range(lanes):
                self._store(s, number)
            return
        lane = self.push("lane")
        self.emit(f"for (int32_t {lane} = 0; {lane} < {lanes}; {lane}++) {{")
        self.depth += 1
        self._store(s, lane)
        self.pop("}")

    def _through_copy(self, s: Any, lanes: int) -> None:
        """All lanes are computed before the first is stored."""
        dtype = split_dtype(str(s.value.ty.dtype))[0]
        self.emit("{")
        held = self.push("held")
        self.depth += 1
        self.emit(f"{C_TYPES[self.held(dtype)]} {held}[{lanes}];")
        for lane in range(lanes):
            self.emit(f"{held}[{lane}] = {self.show(s.value, lane)};")
        for lane in range(lanes):
            target = self.element(s.buffer, s.indices[0], lane, write=True)
            self.emit(f"{target} = {self.to_memory(f'{held}[{lane}]', s.buffer)};")
        self.pop("}")

    def _do_For(self, s: Any) -> None:
        start, extent = s.min, s.extent
        name = self.push(re.sub(r"_\d+$", "", s.loop_var.name))
        self.names[s.loop_var] = name
        self.bounds[s.loop_var] = self.loop_bounds(start, extent)
        first = self.show(start)
        last = self._end(start, extent) if first != "0" else self.show(extent)
        self.emit(f"for (int32_t {name} = {first}; {name} < {last}; {name}++) {{")
        self.depth += 1
        self.statement(s.body)
        self.pop("}")

    def _end(self, start: Any, extent: Any) -> str:
        """What comes behind a loop's last number."""
        if isinstance(extent, tirx.Sub) and tvm_ffi.structural_equal(extent.b, start):
            return self.show(extent.a)
        return self.show(start + extent)

    def _do_While(self, s: Any) -> None:
        self.push(None)
        self.emit(f"while ({self.show(s.condition)}) {{")
        self.depth += 1
        self.statement(s.body)
        self.pop("}")

    def _do_IfThenElse(self, s: Any) -> None:
        self.push(None)
        self.emit(f"if ({self.show(s.condition)}) {{")
        self.depth += 1
        self.statement(s.then_case)
        if s.else_case is not None:
            self.pop("} else {")
            self.push(None)
            self.depth += 1
            self.statement(s.else_case)
        self.pop("}")

    def _do_Bind(self, s: Any) -> None:
        name = self._fresh(s.var.name)
        self.names[s.var] = name
        self.emit(f"const {C_TYPES[self.held(str(s.var.ty.dtype))]} {name} = {self.show(s.value)};")

    # -- names -------------------------------------------------------------------------------------------------

    def declare(self, buffer: Any) -> str:
        self.names[buffer] = name = self._fresh(buffer.name)
        self.locals.add(name)
        return name

    def push(self, wanted: str | None) -> str:
        """Opens a block; a name of that block."""
        self.scopes.append(set())
        return self._fresh(wanted) if wanted else ""

    def pop(self, line: str) -> None:
        self.scopes.pop()
        self.depth -= 1
        self.emit(line)

    def _fresh(self, wanted: str) -> str:
        """A name that no block around has, as short as can be."""
        base = re.sub(r"(_\d+)+$", "", re.sub(r"\W", "_", wanted)) or "v"
        taken = set().union(*self.scopes)
        name, number = base, 0
        while name in taken or name in RESERVED or name in helpers.NAMES:
            number += 1
            name = f"{base}{'_' if base[-1].isdigit() else ''}{number}"
        self.scopes[-1].add(name)
        return name


def _alone(name: str, names: list[str]) -> str:
    """``x0`` is ``x`` where there is no other x."""
    short = name.rstrip("0123456789")
    return short if short and sum(n.rstrip("0123456789") == short for n in names) == 1 else name


@dataclass
class _Alloc:
    buffer: Any
