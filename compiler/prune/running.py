"""A graph as a function: compiled where there is much to do, interpreted where compiling would take longer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np

from ..interpret import interpret
from ..ir import Graph, Value
from ..ops import OPS, Call
from ..quantize.observe import compiled

LITTLE = 2e8  # operations that numpy does in less time than a compiler needs to start

Run = Callable[[Mapping[str, np.ndarray]], list[np.ndarray]]


@contextmanager
def running(graph: Graph, calls: int) -> Iterator[Run]:
    """``graph`` (static) as a function from inputs by name to its outputs in order, to be called so often."""
    if is_little(graph, calls):
        names = [graph.tensor_name(Value(k)) for k in graph.inputs]
        yield lambda feed: list(interpret(graph, [feed[n] for n in names]))
    else:
        with compiled(graph) as run:
            yield run


def is_little(graph: Graph, calls: int) -> bool:
    """Whether so many calls are little work, as the operators' records estimate it."""
    total = 0.0
    for key in graph.order():
        node, rule = graph.node(key), OPS[graph.node(key).op].cost
        if rule is not None:
            total += rule(Call(tuple(None if a is None else graph.type(a) for a in graph.args(key)), node.attrs)).flops
    return total * calls <= LITTLE


__all__ = ["LITTLE", "Run", "is_little", "running"]
