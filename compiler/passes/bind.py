"""Named dimensions become numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...errors import NervureError
from ..ir import STORED, Graph, Node
from ..ops import OpError, infer
from ..types import Dim, TensorType

SHAPE_ATTRS = ("shape", "starts", "stops")  # attributes that may name dimensions


def bind_dimensions(graph: Graph, bindings: Mapping[str, int]) -> Graph:
    """``graph`` with its named dimensions replaced by the numbers in ``bindings`` and all types inferred anew.

    Raises ``NervureError`` for a dimension that is left unbound, a name that the graph does not have, a number below
    one, and where the numbers do not fit the network (the operator and its origin are named).
    """
    places = named_dimensions(graph)
    unknown = sorted(set(bindings) - set(places))
    if unknown:
        has = ", ".join(sorted(places)) or "none"
        raise NervureError(f"no dimension is named {_quoted(unknown)}", why=f"the graph's named dimensions: {has}")
    wrong = sorted(n for n, size in bindings.items() if isinstance(size, bool) or not isinstance(size, int) or size < 1)
    if wrong:
        raise NervureError(f"dimension {wrong[0]!r} must be a whole number from 1 on, got {bindings[wrong[0]]!r}")
    unbound = sorted(set(places) - set(bindings))
    if unbound:
        raise NervureError(
            f"dimension{'s' if len(unbound) > 1 else ''} {_quoted(unbound)} not bound",
            where=[place for name in unbound for place in places[name]],
            why="a program is compiled for fixed shapes",
            hint=f"give each a size, for example {', '.join(f'{name}=1' for name in unbound)}",
        )
    return _substitute(graph, bindings)


def named_dimensions(graph: Graph) -> dict[str, list[str]]:
    """Where each named dimension stands in the signature: ``{"batch": ["input 'x', axis 0"]}``."""
    places: dict[str, list[str]] = {}
    for key in graph.inputs:
        node = graph.node(key)
        for axis, dim in enumerate(node.types[0].shape):
            if isinstance(dim, str):
                places.setdefault(dim, []).append(f"input {node.names[0]!r}, axis {axis}")
    return places


def _quoted(names: list[str]) -> str:
    return ", ".join(repr(n) for n in names)


def _substitute(graph: Graph, bindings: Mapping[str, int]) -> Graph:
    bound = graph.copy()
    for key in bound.order():
        node = bound.node(key)
        if node.op == "input":
            bound.set_node(key, types=(_bound_type(node.types[0], bindings),))
        elif node.op not in STORED:
            attrs = {name: _bound_attr(name, value, bindings) for name, value in node.attrs.items()}
            bound.set_node(key, attrs=attrs, types=_inferred(bound, key, node, attrs, bindings))
    return bound


def _inferred(
    graph: Graph, key: int, node: Node, attrs: Mapping[str, Any], bindings: Mapping[str, int]
) -> tuple[TensorType, ...]:
    args = graph.args(key)
    try:
        return infer(
            node.op, [None if a is None else graph.type(a) for a in args], attrs, [graph.constant(a) for a in args]
        )[0]
    except OpError as error:
        sizes = ", ".join(f"{name}={size}" for name, size in sorted(bindings.items()))
        raise NervureError(
            f"the network does not work with {sizes}", where=node.origin, why=f"{node.op} {node.names[0]!r}: {error}"
        ) from error


def _bound_type(type: TensorType, bindings: Mapping[str, int]) -> TensorType:
    return type.with_shape(_bound(type.shape, bindings))


def _bound_attr(name: str, value: Any, bindings: Mapping[str, int]) -> Any:
    if isinstance(value, Graph):
        return _substitute(value, bindings)
    if name in SHAPE_ATTRS and isinstance(value, tuple):
        return _bound(value, bindings)
    return value


def _bound(shape: tuple[Dim, ...], bindings: Mapping[str, int]) -> tuple[Dim, ...]:
    return tuple(bindings.get(d, d) if isinstance(d, str) else d for d in shape)
