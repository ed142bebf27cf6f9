"""Walks an ONNX graph in order and lowers node by node; collects everything that is not supported."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx
from onnx import AttributeProto

from ...compiler.ir import Graph, Value
from ...compiler.ops import OpError
from ...errors import NervureError, printable
from . import bounded, functions, reader
from .context import MAX_UNROLLED, Context, OnnxNode, Unsupported
from .rules import HINTS, RULES
from .tensors import ExternalData, declared, sparse_to_array, to_array

POISON = Value(-1)  # stands for the result of a node that is not supported
MAX_DEPTH = 40
_MISFITS = (OpError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError, NotImplementedError)


@dataclass
class Scope:
    """One graph, loop body or function call: its names, and where they end, those of the graph around it."""

    path: str
    opsets: Mapping[str, int]
    parent: Scope | None = None
    keep_names: bool = False
    attrs: Mapping[str, AttributeProto] = field(default_factory=dict)  # of the call, in a function's body
    env: dict[str, Value | None] = field(default_factory=dict)
    depth: int = 0

    def find(self, name: str) -> Value | None:
        scope: Scope | None = self
        while scope is not None:
            if name in scope.env:
                return scope.env[name]
            scope = scope.parent
        raise NervureError(f"nothing produces tensor {printable(name, 80)!r}", where=self.path)

    def knows(self, name: str) -> bool:
        return name in self.env or (self.parent is not None and self.parent.knows(name))

    def inside(self, path: str, **changes: Any) -> Scope:
        """A scope for a body of a node of this one."""
        if self.depth >= MAX_DEPTH:
            raise NervureError("bodies and functions are nested too deeply", where=path[:400])
        return Scope(
            path, changes.pop("opsets", self.opsets), changes.pop("parent", self), depth=self.depth + 1, **changes
        )


class Walker:
    """Lowers a model's graphs into ``context.graph``."""

    def __init__(self, context: Context, model: onnx.ModelProto, external: ExternalData) -> None:
        self.context = context
        self.external = external
        self.functions = {(f.domain, f.name, f.overload): f for f in model.functions}
        self.problems: dict[tuple[str, str, str | None], list[str]] = {}  # (operator, why, hint) -> places
        self.extents = bounded.Extents(context)
        self.uses = _count_uses(model.graph)
        self.spent = 0  # nodes made by unrolling and by expanding functions
        self._named: set[Value] = set()

    # -- graphs ------------------------------------------------------------------------------------------------------

    def run(self, graph: onnx.GraphProto, scope: Scope) -> list[Value]:
        """Lowers a graph whose inputs are in ``scope``; its outputs."""
        for tensor in graph.initializer:
            scope.env[tensor.name] = self.store(tensor, tensor.name, scope)
        for sparse in graph.sparse_initializer:
            where = f"{scope.path}/{sparse.values.name} (initializer)"
            array = sparse_to_array(sparse, where, self.external)
            scope.env[sparse.values.name] = self._const(array, sparse.values.name, scope, where)
        self.run_nodes(graph.node, scope)
        results = []
        for output in graph.output:
            value = scope.find(output.name)
            if value is None:
                raise NervureError(f"nothing produces output {printable(output.name, 80)!r}", where=scope.path)
            results.append(value)
        return results

    def run_nodes(self, nodes: Sequence[onnx.NodeProto], scope: Scope) -> None:
        for index, node in enumerate(reader.in_order(nodes, scope.knows, scope.path)):
            self.lower(node, index, scope)

    def store(self, tensor: onnx.TensorProto, name: str, scope: Scope) -> Value:
        """A stored tensor of the file as a constant of the graph."""
        where = f"{scope.path}/{name} (initializer)"
        value = self._const(to_array(tensor, where, self.external), name, scope, where)
        self.context.stored_as[value] = declared(tensor)
        return value

    def _const(self, array: Any, name: str, scope: Scope, where: str) -> Value:
        graph = self.context.graph
        value = graph.const(array, self.context.fresh(f"{scope.path}/{name}"), (where,))
        if scope.keep_names:
            graph.set_node(value.node, names=(name,))
            self._named.add(value)
        self._note_uses(name, value)
        return value

    def _note_uses(self, name: str, value: Value) -> None:
        if self.uses[name] > 1:
            self.context.shared.add(value)

    def spend(self, nodes: int, where: str) -> None:
        """Counts nodes that unrolling makes, before it makes them."""
        self.spent += max(1, nodes)
        if self.spent > MAX_UNROLLED:
            raise NervureError(
                f"unrolling needs more than {MAX_UNROLLED} nodes",
                where=where,
                why="loops are unrolled when the model is imported",
                hint="export the model with a shorter sequence, or with an RNN, LSTM or GRU node for its recurrence",
            )

    # -- nodes -------------------------------------------------------------------------------------------------------

    def lower(self, node: onnx.NodeProto, index: int, scope: Scope) -> None:
        path = f"{scope.path}/{node.name or f'{node.op_type}:#{index}'} ({node.op_type})"
        domain = "" if node.domain == "ai.onnx" else node.domain
        inputs = [scope.find(name) if name else None for name in node.input]
        if POISON in inputs:
            self._survey(node, path, scope)
            scope.env.update(dict.fromkeys((o for o in node.output if o), POISON))
            return
        attrs = {a.name: _attribute(a) for a in _resolved(node, scope)}
        call = OnnxNode(
            node.op_type, domain, scope.opsets.get(domain, 1), inputs, list(node.output), attrs, path, scope, node
        )
        call.sources = list(node.input)
        context, before = self.context, len(self.context.graph)
        saved = context.origin, context.hint
        context.origin = (path,)
        context.hint = next((o for o in node.output if o), node.op_type)
        if not scope.keep_names:
            context.hint = f"{scope.path}/{context.hint}"
        try:
            results = self._values(call)
        finally:
            context.origin, context.hint = saved
        self._assign(call, results, before, scope)

    def _values(self, call: OnnxNode) -> list[Value]:
        """The node's outputs; poison where it is not supported."""
        try:
            own = call.domain == "nervure"  # functions that our exporter writes around an operation of the table
            local = None if own else functions.local(self.functions, call)
            rule = RULES.get((call.domain, call.op_type)) if local is None else None
            if rule is None:
                body = local or functions.standard(self, call)
                if body is None:
                    raise Unsupported("there is no rule for it", _nearest(call))
                return functions.expand(self, body, call)
            found = rule(self if rule.control else self.context, call)
            values = [found] if isinstance(found, Value) else list(found)
            if any(call.wants(i) for i in range(len(values), len(call.outputs))):
                raise Unsupported(f"output {len(values)} is not available")
            if not rule.control:
                self.extents.carry(call, values)
            return values
        except Unsupported as problem:
            self.add_problem(call.op_type, call.domain, problem.why, problem.hint, call.path)
            return [POISON] * len(call.outputs)
        except _MISFITS as error:
            raise NervureError(
                f"{printable(call.op_type, 60)} cannot be imported: its inputs and attributes do not fit",
                where=call.path,
                why=f"{type(error).__name__}: {error}",
            ) from error

    def _assign(self, call: OnnxNode, values: Sequence[Value], before: int, scope: Scope) -> None:
        graph = self.context.graph
        for name, value in zip(call.outputs, values, strict=False):
            if not name:
                continue
            scope.env[name] = value
            self._note_uses(name, value)
            if value.node < before or value in self._named or value == POISON:
                continue
            given = list(graph.node(value).names)
            given[value.index] = name if scope.keep_names else self.context.fresh(f"{scope.path}/{name}")
            graph.set_node(value.node, names=tuple(given))
            if scope.keep_names:
                self._named.add(value)

    # -- what is not supported ---------------------------------------------------------------------------------------

    def add_problem(self, op: str, domain: str, why: str, hint: str | None, path: str) -> None:
        label = f"{domain}.{op}" if domain else op
        self.problems.setdefault((label, why, hint), []).append(path)

    def _survey(self, node: onnx.NodeProto, path: str, scope: Scope) -> None:
        """Notes operators without a rule behind a node that is not supported, so that one run finds them all."""
        domain = "" if node.domain == "ai.onnx" else node.domain
        call = OnnxNode(node.op_type, domain, scope.opsets.get(domain, 1), [], [], {}, path)
        known = (domain, node.op_type) in RULES or functions.local(self.functions, call) is not None
        if not known and not functions.has_standard(call):
            self.add_problem(node.op_type, domain, "there is no rule for it", _nearest(call), path)
        for attribute in node.attribute:
            for inner in attribute.g.node if attribute.HasField("g") else ():
                self._survey(inner, f"{path}/{inner.name or inner.op_type} ({inner.op_type})", scope)

    def report(self) -> None:
        """Raises the one error that names everything that is not supported."""
        if not self.problems:
            return
        lines = []
        for (op, why, hint), places in sorted(self.problems.items(), key=lambda item: (item[0][0], item[0][1])):
            shown = ", ".join(printable(p, 120) for p in places[:4])
            more = f" and {len(places) - 4} more" if len(places) > 4 else ""
            lines.append(f"{printable(op, 80)}: {printable(why)}; {len(places)} node(s): {shown}{more}")
            if hint:
                lines.append(f"  nearest supported form: {printable(hint)}")
        operators = sorted({printable(op, 80) for op, _, _ in self.problems})
        raise NervureError(
            f"{len(operators)} operator(s) of this model are not supported: {', '.join(operators)[:2000]}",
            why="\n    ".join(["", *lines])[1:],
            hint="replace these nodes in the exporter, or cut the model before them",
        )

    def add_counts(self) -> None:
        """Outputs of bounded length get their number of valid entries as one more output."""
        graph: Graph = self.context.graph
        counts: dict[int, tuple[int, int]] = {}
        for index, value in enumerate(list(graph.outputs)):
            for axis, count in sorted(self.extents.of(value).items()):
                graph.output(count, self.context.fresh(f"{graph.output_names[index]}_count"))
                counts[index] = (len(graph.outputs) - 1, axis)
        if counts:
            graph.meta["counts"] = counts


def _count_uses(graph: onnx.GraphProto) -> Counter[str]:
    """How often each name is used, in bodies too."""
    uses = Counter(name for node in graph.node for name in node.input)
    uses.update(output.name for output in graph.output)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                uses.update(_count_uses(attribute.g))
    return uses


def _nearest(call: OnnxNode) -> str | None:
    hint = HINTS.get(call.op_type)
    if hint is None:
        near = difflib.get_close_matches(call.op_type, sorted({op for _, op in RULES}), n=1, cutoff=0.75)
        hint = near[0] if near and near[0] != call.op_type else None
    return hint


def _resolved(node: onnx.NodeProto, scope: Scope) -> list[AttributeProto]:
    """The node's attributes; in a function's body, those that refer to the call's are looked up there."""
    found = []
    for attribute in node.attribute:
        if not attribute.ref_attr_name:
            found.append(attribute)
        elif attribute.ref_attr_name in scope.attrs:
            given = AttributeProto()
            given.CopyFrom(scope.attrs[attribute.ref_attr_name])
            given.name = attribute.name
            found.append(given)
    return found


def _attribute(a: AttributeProto) -> Any:
    """An attribute as a plain value; tensors and graphs stay protos."""
    kinds = AttributeProto
    simple = {
        kinds.FLOAT: "f",
        kinds.INT: "i",
        kinds.TENSOR: "t",
        kinds.GRAPH: "g",
        kinds.SPARSE_TENSOR: "sparse_tensor",
    }
    if a.type in simple:
        return getattr(a, simple[a.type])
    if a.type == kinds.STRING:
        return a.s.decode("utf-8", "replace")
    if a.type == kinds.STRINGS:
        return tuple(s.decode("utf-8", "replace") for s in a.strings)
    if a.type in (kinds.FLOATS, kinds.INTS):
        return tuple(a.floats if a.type == kinds.FLOATS else a.ints)
    if a.type in (kinds.TENSORS, kinds.GRAPHS):
        return list(a.tensors if a.type == kinds.TENSORS else a.graphs)
    raise NervureError(f"attribute {printable(a.name, 80)!r} has no type that is known")


__all__ = ["POISON", "Scope", "Walker"]
