"""Patterns as data: what a rewrite rule looks for, and the matcher that finds it.

A pattern describes a tensor by the operation that made it. ``Var`` captures any tensor, ``Const`` a constant one,
``Scalar`` a constant whose elements are all equal, ``Call`` an operation with patterns for its inputs (tried in both
orders where the operator commutes), ``Scaled`` a coefficient times a product however it is bracketed, ``Either``
alternatives. A name that occurs twice is the same tensor (or number) both times.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from typing import Any, NamedTuple

import numpy as np

from ..ir import Graph, Node, Value, join_origins
from ..ops import OPS
from ..ops.numeric import numpy_dtype
from ..types import is_float

EXACT = 1e-6  # relative tolerance of a number that exporters write in full
ROUNDED = 1e-5  # of one that they may have cut, such as sqrt(2) or 0.044715
DEEPEST = 6  # levels of a product that are read


@dataclass(frozen=True, slots=True)
class Var:
    """Any tensor."""

    name: str


@dataclass(frozen=True, slots=True)
class Const:
    """A constant tensor."""

    name: str


@dataclass(frozen=True, slots=True)
class Scalar:
    """A constant whose elements are all equal: to ``value`` if that is given, captured as a float if named."""

    value: float | None = None
    name: str = ""
    rel: float = EXACT


@dataclass(frozen=True, slots=True)
class Call:
    """An operation (``"a|b"``: one of several). ``args`` None: any inputs; an argument None: an absent input.

    ``attrs`` are attributes that must be equal; ``name`` captures the tensor that it makes.
    """

    op: str
    args: tuple[Pattern | None, ...] | None
    attrs: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""


@dataclass(frozen=True, slots=True)
class Scaled:
    """``coefficient`` times the product of ``args``, in any order and bracketing, constants as factors or divisors.

    A number is compared, a name captured (1.0 where no constant is written).
    """

    coefficient: float | str
    args: tuple[Pattern, ...]
    rel: float = ROUNDED


@dataclass(frozen=True, slots=True)
class Either:
    """The first alternative that fits."""

    options: tuple[Pattern, ...]


Pattern = Var | Const | Scalar | Call | Scaled | Either


def call(op: str, *args: Pattern | None, name: str = "", **attrs: Any) -> Call:
    """``Call`` as it reads best in a table of rules."""
    return Call(op, args, attrs, name)


def any_call(op: str, name: str = "", **attrs: Any) -> Call:
    """An operation whatever its inputs are."""
    return Call(op, None, attrs, name)


def scaled(coefficient: float | str, *args: Pattern) -> Scaled:
    return Scaled(coefficient, args)


def either(*options: Pattern) -> Either:
    return Either(options)


def root_ops(pattern: Pattern) -> tuple[str, ...]:
    """The operators that the last operation of a match can have."""
    match pattern:
        case Call(op=op):
            return tuple(op.split("|"))
        case Scaled():
            return ("mul", "div")
        case Either(options=options):
            return tuple(dict.fromkeys(op for option in options for op in root_ops(option)))
    raise ValueError(f"a rule cannot be rooted at {pattern}")


class State(NamedTuple):
    """What a partial match has captured, and the operations that it runs through."""

    bound: Mapping[str, Value | float]
    nodes: frozenset[int]


class Match:
    """A pattern found at ``root``. ``m["x"]`` is a captured tensor, ``m.number("s")`` a captured number."""

    def __init__(self, graph: Graph, root: int, state: State) -> None:
        self.graph, self.root, self.nodes = graph, root, state.nodes
        self._bound = state.bound
        self.made: list[int] = []
        self.successors: dict[int, int] = {}  # a constant -> the first one that is named after it

    def __getitem__(self, name: str) -> Value:
        found = self._bound[name]
        assert isinstance(found, Value)
        return found

    def __contains__(self, name: str) -> bool:
        return name in self._bound

    def number(self, name: str) -> float:
        found = self._bound[name]
        assert isinstance(found, float)
        return found

    def array(self, name: str) -> np.ndarray:
        found = self.graph.constant(self[name])
        assert found is not None
        return found

    @property
    def out(self) -> Value:
        return Value(self.root)

    @property
    def node(self) -> Node:
        return self.graph.node(self.root)

    @property
    def origin(self) -> tuple[str, ...]:
        """The union of the matched operations' origins: what the replacement inherits."""
        return join_origins(self.graph.node(key).origin for key in sorted(self.nodes))

    def shape(self, value: Value) -> tuple[int | str, ...]:
        return self.graph.type(value).shape

    def add(self, op: str, *args: Value | None, **attrs: Any) -> Value:
        """Adds an operation of the replacement."""
        made = self.graph.add(op, *args, origin=self.origin, **attrs)
        self.made.append(made.node)
        return made

    def const(self, array: np.ndarray, like: Value) -> Value:
        """Adds a constant of the replacement, named after the one that it stands for."""
        made = self.graph.const(array, self.graph.tensor_name(like), self.graph.node(like).origin)
        self.made.append(made.node)
        self.successors.setdefault(like.node, made.node)
        return made

    def scalar(self, number: float, like: Value) -> Value:
        """A constant of rank 0 with ``like``'s element type."""
        return self.const(np.asarray(number, dtype=numpy_dtype(self.graph.type(like).dtype)), like)

    @property
    def closed(self) -> bool:
        """Whether nothing outside the match uses a tensor that the match would do away with."""
        graph = self.graph
        for key in self.nodes:
            if key == self.root:
                continue
            if any(user not in self.nodes for user in graph.nx.successors(key)) or visible(graph, key):
                return False
        return True


def visible(graph: Graph, key: int) -> bool:
    """Whether an output or a binding names a tensor of this node."""
    return any(v.node == key for v in graph.outputs) or any(v.node == key for v in graph.bindings.values())


def uniform(array: np.ndarray | None) -> float | None:
    """The number that all elements of a constant are, or None."""
    if array is None or array.size == 0 or array.dtype == np.bool_:
        return None
    first = array.flat[0]
    if array.size > 1 and (array.flat[-1] != first or not bool((array == first).all())):
        return None
    return float(first)


def close(a: float, b: float, rel: float) -> bool:
    return a == b or abs(a - b) <= rel * abs(b)


def find(graph: Graph, pattern: Pattern, root: int) -> Iterator[Match]:
    """Every way in which the pattern fits the operation ``root``."""
    for state in _match(graph, pattern, Value(root), State({}, frozenset())):
        yield Match(graph, root, state)


def _bind(state: State, name: str, found: Value | float) -> Iterator[State]:
    if not name:
        yield state
    elif name not in state.bound:
        yield State({**state.bound, name: found}, state.nodes)
    else:
        held = state.bound[name]
        same = close(held, found, EXACT) if isinstance(held, float) and isinstance(found, float) else held == found
        if same:
            yield state


def _match(graph: Graph, pattern: Pattern, value: Value, state: State) -> Iterator[State]:
    match pattern:
        case Var(name=name):
            yield from _bind(state, name, value)
        case Const(name=name):
            if graph.node(value).op == "const":
                yield from _bind(state, name, value)
        case Scalar(value=wanted, name=name, rel=rel):
            number = uniform(graph.constant(value))
            if number is not None and (wanted is None or close(number, wanted, _rel(graph, value, rel))):
                yield from _bind(state, name, number)
        case Call():
            yield from _match_call(graph, pattern, value, state)
        case Scaled():
            yield from _match_scaled(graph, pattern, value, state)
        case Either(options=options):
            for option in options:
                yield from _match(graph, option, value, state)


def _rel(graph: Graph, value: Value, rel: float) -> float:
    """A constant of a short type is no better than its rounding."""
    return {"float16": 1e-3, "bfloat16": 8e-3}.get(graph.type(value).dtype, rel)


def _match_call(graph: Graph, pattern: Call, value: Value, state: State) -> Iterator[State]:
    node = graph.node(value)
    if node.op not in pattern.op.split("|") or value.index != 0:
        return
    if any(node.attrs.get(name) != wanted for name, wanted in pattern.attrs.items()):
        return
    state = State(state.bound, state.nodes | {value.node})
    if pattern.args is None:
        yield from _bind(state, pattern.name, value)
        return
    args = graph.args(value.node)
    if len(args) > len(pattern.args):
        return
    args += [None] * (len(pattern.args) - len(args))
    orders = [args]
    if len(args) == 2 and OPS[node.op].commutative and args[0] != args[1]:
        orders.append(args[::-1])
    for order in orders:
        for inner in _match_all(graph, pattern.args, order, state):
            yield from _bind(inner, pattern.name, value)


def _match_all(
    graph: Graph, patterns: Sequence[Pattern | None], values: Sequence[Value | None], state: State
) -> Iterator[State]:
    if not patterns:
        yield state
        return
    pattern, value = patterns[0], values[0]
    if pattern is None or value is None:
        if pattern is None and value is None:
            yield from _match_all(graph, patterns[1:], values[1:], state)
        return
    for inner in _match(graph, pattern, value, state):
        yield from _match_all(graph, patterns[1:], values[1:], inner)


class Product(NamedTuple):
    """A tensor read as ``coefficient`` times ``leaves``, through the operations ``nodes``."""

    coefficient: float
    leaves: tuple[Value, ...]
    nodes: frozenset[int]


def product(graph: Graph, value: Value, *, whole: bool, depth: int = 0) -> Product:
    """Reads a tree of mul, neg and division by constants. Not ``whole``: only constant factors are taken apart."""
    node = graph.node(value)
    number = uniform(graph.constant(value))
    if number is not None and depth:
        return Product(number, (), frozenset())
    if node.op in ("mul", "div", "neg") and is_float(node.types[0].dtype) and _inside(graph, value, depth):
        args = [a for a in graph.args(value.node) if a is not None]
        constants = [uniform(graph.constant(a)) for a in args]
        here = frozenset({value.node})
        if node.op == "neg" or (node.op == "div" and constants[1]):
            divisor = -1.0 if node.op == "neg" else constants[1] or 1.0
            inner = product(graph, args[0], whole=whole, depth=depth + 1)
            return Product(inner.coefficient / divisor, inner.leaves, inner.nodes | here)
        if node.op == "mul" and (whole or any(c is not None for c in constants)):
            a, b = (product(graph, arg, whole=whole, depth=depth + 1) for arg in args)
            return Product(a.coefficient * b.coefficient, a.leaves + b.leaves, a.nodes | b.nodes | here)
    return Product(1.0, (value,), frozenset())


def _inside(graph: Graph, value: Value, depth: int) -> bool:
    """Whether a factor may be taken apart: the product itself, or one that only the product uses."""
    return depth == 0 or (depth < DEEPEST and graph.nx.out_degree(value.node) == 1 and not visible(graph, value.node))


def _match_scaled(graph: Graph, pattern: Scaled, value: Value, state: State) -> Iterator[State]:
    readings = dict.fromkeys(product(graph, value, whole=whole) for whole in (True, False))
    readings[Product(1.0, (value,), frozenset())] = None  # nothing taken apart: its factors may have other users
    for coefficient, leaves, nodes in readings:
        if len(leaves) != len(pattern.args):
            continue
        start = State(state.bound, state.nodes | nodes)
        if isinstance(pattern.coefficient, str):
            starts = list(_bind(start, pattern.coefficient, coefficient))
        else:
            starts = [start] if close(coefficient, pattern.coefficient, _rel(graph, value, pattern.rel)) else []
        for begun in starts:
            for order in dict.fromkeys(permutations(leaves)):
                yield from _match_all(graph, pattern.args, order, begun)


__all__ = [
    "EXACT",
    "ROUNDED",
    "Call",
    "Const",
    "Either",
    "Match",
    "Pattern",
    "Product",
    "Scalar",
    "Scaled",
    "Var",
    "any_call",
    "call",
    "close",
    "either",
    "find",
    "product",
    "root_ops",
    "scaled",
    "uniform",
    "visible",
]
