"""The graph: operations as nodes, uses of tensors as edges, over ``networkx.MultiDiGraph``.

A node is one operation; an edge is one use of one tensor and carries ``out`` (output index of the producer) and
``arg`` (input index of the user). Stored tensors are nodes too: ``input``, ``const`` (may be folded and packed),
``param`` (mutable, canonical layout) and ``state`` (initial value, lives from call to call, ``reset``). The IR is
functional: ``bindings`` says which output becomes the next value of a ``param`` or ``state``.

Passes are functions ``Graph -> Graph`` that copy once and rewrite their own copy.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import networkx as nx
import numpy as np

from .types import TensorType, type_of

STORED = ("input", "const", "param", "state")


class Value(NamedTuple):
    """A tensor: output ``index`` of node ``node``."""

    node: int
    index: int = 0  # type: ignore[assignment]  # tuple.index is not missed


@dataclass(frozen=True, slots=True)
class Node:
    """One operation. ``names`` are the tensors' names, one for each output type; ``origin`` says where it came from
    (ONNX path, or DSL file and line; several after a rewrite)."""

    op: str
    attrs: Mapping[str, Any]
    types: tuple[TensorType, ...]
    names: tuple[str, ...]
    origin: tuple[str, ...]

    @property
    def array(self) -> np.ndarray:
        """The initial value of a stored tensor."""
        return self.attrs["value"]  # type: ignore[no-any-return]


class GraphError(Exception):
    """A graph that breaks a rule of the IR: a bug of the pass that made it. The message lists every breach."""


class Graph:
    """A network. See the module's text; ``text()`` prints it, ``check()`` says what is wrong with it."""

    def __init__(self, name: str = "model") -> None:
        self.name = name
        self.nx: nx.MultiDiGraph[int] = nx.MultiDiGraph()
        self.inputs: list[int] = []  # nodes, in the order of the signature
        self.outputs: list[Value] = []
        self.output_names: list[str] = []
        self.bindings: dict[int, Value] = {}  # param or state node -> its next value
        self.meta: dict[str, Any] = {}  # facts for reports: source file, opset, ...
        self._next = 0
        self._used: set[str] = set()
        self._suffix: dict[str, int] = {}  # name -> the last number that was tried behind it

    # -- reading -----------------------------------------------------------------------------------------------

    def node(self, at: int | Value) -> Node:
        """The record of a node, or of the node that makes a tensor; ``KeyError`` where there is none."""
        return self.nx.nodes[at.node if isinstance(at, Value) else at]["node"]  # type: ignore[no-any-return]

    def type(self, value: Value) -> TensorType:
        """Element type and shape of a tensor."""
        return self.node(value.node).types[value.index]

    def tensor_name(self, value: Value) -> str:
        """The stable name of a tensor, which checkpoints, exports and reports go by."""
        return self.node(value.node).names[value.index]

    def args(self, node: int) -> list[Value | None]:
        """The inputs of a node in order; None for an absent optional one."""
        found: dict[int, Value] = {}
        for producer, _, data in self.nx.in_edges(node, data=True):
            found[data["arg"]] = Value(producer, data["out"])
        return [found.get(i) for i in range(max(found) + 1)] if found else []

    def users(self, value: Value) -> list[tuple[int, int]]:
        """``(node, input index)`` of each use, sorted. Graph outputs and bindings are not listed."""
        return sorted(
            (user, data["arg"])
            for _, user, data in self.nx.out_edges(value.node, data=True)
            if data["out"] == value.index
        )

    def uses(self, value: Value) -> int:
        """Number of uses, graph outputs and bindings counted."""
        count = sum(1 for _, _, data in self.nx.out_edges(value.node, data=True) if data["out"] == value.index)
        return count + self.outputs.count(value) + list(self.bindings.values()).count(value)

    def values(self, node: int) -> list[Value]:
        """All outputs of a node."""
        return [Value(node, i) for i in range(len(self.node(node).types))]

    def constant(self, value: Value | None) -> np.ndarray | None:
        """The array of a ``const`` tensor, else None."""
        if value is None:
            return None
        node = self.node(value)
        return node.array if node.op == "const" else None

    def order(self) -> list[int]:
        """Nodes in the one deterministic topological order (by node number where there is a choice)."""
        if all(key < user for key, users in self.nx.adjacency() for user in users):
            return sorted(self.nx)  # what the sort would find: most graphs were built in such an order
        return list(nx.lexicographical_topological_sort(self.nx))

    def find(self, op: str) -> list[int]:
        """The nodes of an operator, in topological order."""
        return [n for n in self.order() if self.node(n).op == op]

    def __len__(self) -> int:
        return len(self.nx)

    def __iter__(self) -> Iterator[int]:
        return iter(self.order())

    # -- building ----------------------------------------------------------------------------------------------

    def unique(self, name: str) -> str:
        """``name``, or ``name_1``, ``name_2``, ... if it is taken."""
        if name not in self._used:
            return name
        i = self._suffix.get(name, 1)
        while f"{name}_{i}" in self._used:
            i += 1
        self._suffix[name] = i
        return f"{name}_{i}"

    def insert(self, node: Node, args: Sequence[Value | None] = ()) -> int:
        """Adds a finished node. ``add`` is the usual way: it infers types and completes attributes."""
        key = self._next
        self._next += 1
        self.nx.add_node(key, node=node)
        self._used.update(node.names)
        for i, arg in enumerate(args):
            if arg is not None:
                self.nx.add_edge(arg.node, key, out=arg.index, arg=i)
        return key

    def add(
        self,
        op: str,
        *args: Value | None,
        names: Sequence[str] | None = None,
        origin: Sequence[str] = (),
        **attrs: Any,
    ) -> Value:
        """Adds an operation, types inferred from the op table; returns its first output (``values(v.node)`` gives all).

        ``names`` are wished tensor names (made unique). Without ``origin`` the inputs' origins are joined.
        Raises ``OpError`` when inputs and attributes do not fit.
        """
        from .ops import infer

        types, filled = infer(
            op, [None if a is None else self.type(a) for a in args], attrs, [self.constant(a) for a in args]
        )
        wished = [*(names or ()), *[""] * len(types)]
        given: list[str] = []
        for i in range(len(types)):
            name = self.unique(wished[i] or f"{op}_{self._next}" + (f".{i}" if i else ""))
            self._used.add(name)
            given.append(name)
        where = tuple(origin) or join_origins(self.node(a).origin for a in args if a is not None)
        return Value(self.insert(Node(op, filled, tuple(types), tuple(given), where), args))

    def input(self, name: str, type: TensorType, origin: Sequence[str] = ()) -> Value:
        """Adds an argument of the graph, behind those that it has; its name is made unique."""
        key = self.insert(Node("input", {}, (type,), (self.unique(name),), tuple(origin) or (f"input {name}",)))
        self.inputs.append(key)
        return Value(key)

    def const(self, array: Any, name: str | None = None, origin: Sequence[str] = ()) -> Value:
        """A constant tensor. The array is shared and made read-only."""
        return self._store("const", array, name or "const", origin)

    def param(self, array: Any, name: str, origin: Sequence[str] = ()) -> Value:
        """A mutable tensor whose initial image lies in the artifact."""
        return self._store("param", array, name, origin)

    def state(self, array: Any, name: str, origin: Sequence[str] = ()) -> Value:
        """A tensor that lives from call to call and that ``reset`` sets back to ``array``."""
        return self._store("state", array, name, origin)

    def _store(self, op: str, array: Any, name: str, origin: Sequence[str]) -> Value:
        held = np.asarray(array)
        if held.flags.writeable or not held.flags.c_contiguous or not held.dtype.isnative:
            held = np.array(held, held.dtype.newbyteorder("="), order="C", copy=True)
            held.flags.writeable = False
        unique = self.unique(name)
        node = Node(op, {"value": held}, (type_of(held),), (unique,), tuple(origin) or (f"{op} {unique}",))
        return Value(self.insert(node))

    def output(self, value: Value, name: str | None = None) -> None:
        """Adds a result of the graph, behind those that it has; without ``name`` it is called as the tensor is."""
        self.outputs.append(value)
        self.output_names.append(name or self.tensor_name(value))

    def bind(self, stored: Value, value: Value) -> None:
        """``value`` becomes the next value of a ``param`` or ``state``."""
        self.bindings[stored.node] = value

    # -- rewriting (of a graph that the pass owns) -------------------------------------------------------------

    def copy(self) -> Graph:
        """An independent graph with the same node numbers; arrays and node records are shared."""
        twin = Graph(self.name)
        twin.nx = self.nx.copy()
        twin.inputs, twin.outputs = list(self.inputs), list(self.outputs)
        twin.output_names, twin.bindings, twin.meta = list(self.output_names), dict(self.bindings), dict(self.meta)
        twin._next, twin._used, twin._suffix = self._next, set(self._used), dict(self._suffix)
        return twin

    def set_node(self, key: int, **changes: Any) -> None:
        """Replaces fields of a node's record (records are immutable)."""
        node = replace(self.node(key), **changes)
        self.nx.nodes[key]["node"] = node
        self._used.update(node.names)

    def set_arg(self, node: int, index: int, value: Value | None) -> None:
        """Rewires one input."""
        for producer, _, edge, data in list(self.nx.in_edges(node, keys=True, data=True)):
            if data["arg"] == index:
                self.nx.remove_edge(producer, node, edge)
        if value is not None:
            self.nx.add_edge(value.node, node, out=value.index, arg=index)

    def replace(self, old: Value, new: Value, *, keep_name: bool = True) -> None:
        """Every use of ``old`` (outputs and bindings too) becomes a use of ``new``; its node stays until ``prune``.

        Uses by ``new``'s own node stay, so that an operation can be set behind a tensor; a longer chain that starts at
        ``old`` is wired with ``set_arg``. With ``keep_name`` the new tensor takes the old one's name, so that names
        stay stable through rewrites (never for stored tensors, whose names are their identity).
        """
        if old == new:
            return
        for _, user, edge, data in list(self.nx.out_edges(old.node, keys=True, data=True)):
            if data["out"] == old.index and user != new.node:
                self.nx.remove_edge(old.node, user, edge)
                self.nx.add_edge(new.node, user, out=new.index, arg=data["arg"])
        self.outputs = [new if v == old else v for v in self.outputs]
        self.bindings = {k: new if v == old else v for k, v in self.bindings.items()}
        before, after = self.node(old), self.node(new)
        if keep_name and old.node != new.node and before.op not in STORED and after.op not in STORED:
            kept, given = list(before.names), list(after.names)
            kept[old.index], given[new.index] = given[new.index], kept[old.index]
            self.set_node(old.node, names=tuple(kept))
            self.set_node(new.node, names=tuple(given))

    def remove(self, key: int) -> None:
        """Removes a node that nothing uses; ``GraphError`` if something does."""
        if any(self.uses(value) for value in self.values(key)):
            raise GraphError(f"{self.node(key).op} %{self.node(key).names[0]} is in use and cannot be removed")
        self.nx.remove_node(key)
        self.bindings.pop(key, None)
        if key in self.inputs:
            self.inputs.remove(key)

    def prune(self) -> int:
        """Removes what no output and no binding needs (inputs stay: they are the signature); returns how many."""
        roots = {v.node for v in self.outputs} | {v.node for v in self.bindings.values()} | set(self.bindings)
        live = set(roots)
        stack = list(roots)
        while stack:
            for producer in self.nx.predecessors(stack.pop()):
                if producer not in live:
                    live.add(producer)
                    stack.append(producer)
        live.update(self.inputs)
        dead = [n for n in self.nx if n not in live]
        self.nx.remove_nodes_from(dead)
        return len(dead)

    # -- truth ---------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raises ``GraphError`` with every breach of the IR's rules; returns nothing when all is well."""
        from .check import problems

        found = problems(self)
        if found:
            raise GraphError(f"graph {self.name!r} breaks the IR's rules:\n  " + "\n  ".join(found))

    def text(self) -> str:
        """A readable form, one line a node, stable for the same graph; used in tests and by ``inspect``."""
        from .text import graph_text

        return graph_text(self)


_ORIGINS = 64  # places that a node remembers: without a bound, a chain of merges would keep the square of its length


def join_origins(origins: Iterable[Sequence[str]]) -> tuple[str, ...]:
    """The union of several origins in the order of their first appearance, at most ``_ORIGINS`` of them."""
    return tuple(dict.fromkeys(o for origin in origins for o in origin))[:_ORIGINS]
