"""The reference interpreter: a graph run by the numpy references of the op table.

It is the meaning of a graph: what passes must keep, what kernels are compared against, and how constants are folded.
It is not fast and does not try to be.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence

import numpy as np

from ..errors import NervureError
from .ir import STORED, Graph, Node, Value
from .ops import OPS
from .types import TensorType, type_of

Inputs = Mapping[str, np.ndarray] | Sequence[np.ndarray]
State = MutableMapping[str, np.ndarray]


def interpret(graph: Graph, inputs: Inputs, state: State | None = None) -> list[np.ndarray]:
    """The graph's outputs, in order.

    ``inputs`` go by name or in the order of the signature. ``state`` holds current values of ``param`` and ``state``
    tensors by name (their initial values where it has none); when it is given, the bindings' next values are stored
    into it after the run. Raises ``NervureError`` for inputs that do not fit the signature.
    """
    uses = _count_uses(graph)
    values: dict[Value, np.ndarray] = {}
    for key in graph.order():
        values.update(_evaluate(graph, key, values, inputs, state))
        for value in [*graph.args(key), *graph.values(key)]:
            if value is not None:
                uses[value] -= 1
                if uses[value] == 0:
                    del values[value]
    if state is not None:
        state.update({graph.tensor_name(Value(k)): values[v].copy() for k, v in sorted(graph.bindings.items())})
    return [values[v] for v in graph.outputs]


def interpret_all(graph: Graph, inputs: Inputs, state: State | None = None) -> dict[str, np.ndarray]:
    """Every tensor of the graph by name, stored ones included; ``state`` is read and not changed."""
    values: dict[Value, np.ndarray] = {}
    for key in graph.order():
        values.update(_evaluate(graph, key, values, inputs, state))
    return {graph.tensor_name(value): array for value, array in values.items()}


def evaluate(node: Node, args: Sequence[np.ndarray | None]) -> tuple[np.ndarray, ...]:
    """One operation on arrays, by its reference; ``TypeError`` where the result is not of the declared type."""
    op = OPS[node.op]
    if op.reference is None:
        raise NotImplementedError(f"operator {node.op} has no reference")
    given = list(args)
    if not (op.inputs and op.inputs[-1].endswith("*")):
        given += [None] * (len(op.inputs) - len(given))
    with np.errstate(all="ignore"):
        result = op.reference(*given, **node.attrs)
    arrays = tuple(np.asarray(r) for r in (result if isinstance(result, tuple) else (result,)))
    found = tuple(type_of(a) for a in arrays)
    if found != node.types:
        raise TypeError(f"{node.op} %{node.names[0]}: declared {_shown(node.types)}, computed {_shown(found)}")
    return arrays


def _shown(types: Sequence[TensorType]) -> str:
    return ", ".join(map(str, types))


def _count_uses(graph: Graph) -> dict[Value, int]:
    """Uses of each tensor; one more for its own node, and one for each output and binding (never freed)."""
    uses = {value: 1 for key in graph.nx for value in graph.values(key)}
    for producer, _, data in graph.nx.edges(data=True):
        uses[Value(producer, data["out"])] += 1
    for value in [*graph.outputs, *graph.bindings.values()]:
        uses[value] += 1
    return uses


def _evaluate(
    graph: Graph, key: int, values: Mapping[Value, np.ndarray], inputs: Inputs, state: State | None
) -> dict[Value, np.ndarray]:
    node = graph.node(key)
    if node.op in STORED:
        return {Value(key): _stored(graph, key, inputs, state)}
    results = evaluate(node, [None if a is None else values[a] for a in graph.args(key)])
    return dict(zip(graph.values(key), results, strict=True))


def _stored(graph: Graph, key: int, inputs: Inputs, state: State | None) -> np.ndarray:
    node = graph.node(key)
    name, wanted = node.names[0], node.types[0]
    if node.op == "input":
        array = _input(graph, key, inputs)
    elif node.op != "const" and state is not None and name in state:
        array = np.asarray(state[name])
    else:
        return node.array
    if array.dtype.name != wanted.dtype or array.shape != wanted.shape:
        raise NervureError(
            f"{node.op} {name!r} must be {wanted}, got {array.dtype}{list(array.shape)}", where=node.origin
        )
    return array


def _input(graph: Graph, key: int, inputs: Inputs) -> np.ndarray:
    name = graph.node(key).names[0]
    if isinstance(inputs, Mapping):
        if name not in inputs:
            raise NervureError(f"no value for input {name!r}", why=f"given: {', '.join(sorted(inputs)) or 'nothing'}")
        return np.asarray(inputs[name])
    if len(inputs) != len(graph.inputs):
        raise NervureError(f"{len(graph.inputs)} inputs wanted, {len(inputs)} given")
    return np.asarray(inputs[graph.inputs.index(key)])
