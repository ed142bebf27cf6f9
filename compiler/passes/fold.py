"""Constant folding through the references of the op table.

1. An operation whose inputs are all constants is replaced by its value, if the operator is pure, has a reference and
   its estimated work is small.
2. A value above ``LIMIT`` bytes is only stored if it takes no more than the constants that it makes useless.
3. Broadcasts (expand, tile, iota) above ``SMALL`` bytes are not stored: reading an index is cheaper than reading
   memory. They are still looked through: what is computed from them is folded under rules 1 and 2.
"""

from __future__ import annotations

import numpy as np

from ..interpret import evaluate
from ..ir import STORED, Graph, Value, join_origins
from ..ops import OPS, Call
from .pattern import visible
from .rewrite import reclaim_name, substitute, sweep
from .weights import stored_narrow

LIMIT = 1 << 20  # bytes of one folded constant
SMALL = 4 << 10  # bytes of a folded broadcast
WORK = 2e8  # operations of one folded call
BROADCASTS = ("expand", "tile", "iota")


def fold_constants(graph: Graph) -> Graph:
    """A copy of ``graph`` in which what can be computed now is a constant; narrow weights stay narrow."""
    return _fold(graph, weights=False)


def fold_weights(graph: Graph) -> Graph:
    """As ``fold_constants``, narrow weights that are used as floats included."""
    return _fold(graph, weights=True)


def _fold(graph: Graph, weights: bool) -> Graph:
    work = graph.copy()
    folding = _Folding(work, weights)
    for key in work.order():
        folding.visit(key)
    stored = [key for key in reversed(work.order()) if key in folding.known and folding.worth_storing(key)]
    names = {key: work.node(key).names for key in sorted(stored)}
    made = {key: folding.store(key) for key in names}
    sweep(work, sorted(folding.known))
    for key, constants in made.items():
        for constant in constants:
            reclaim_name(work, constant, key, names[key])
    return work


class _Folding:
    """Values of constant operations, computed in topological order and held only while the pass runs."""

    def __init__(self, graph: Graph, weights: bool) -> None:
        self.graph, self.weights = graph, weights
        self.known: dict[int, tuple[np.ndarray, ...]] = {}

    def visit(self, key: int) -> None:
        """Computes a node's value if all its inputs are known and the rules allow it."""
        graph, node = self.graph, self.graph.node(key)
        if node.op in STORED or node.op == "identity" or (not self.weights and stored_narrow(graph, key)):
            return
        op, args = OPS[node.op], graph.args(key)
        arrays = [None if a is None else self._array(a) for a in args]
        if any(a is not None and found is None for a, found in zip(args, arrays, strict=True)):
            return
        if not op.pure or op.reference is None or not all(t.static for t in node.types):
            return
        nbytes = sum(t.nbytes for t in node.types)
        if nbytes > max(LIMIT, sum(a.nbytes for a in arrays if a is not None)):
            return
        types = tuple(None if a is None else graph.type(a) for a in args)
        if op.cost is not None and op.cost(Call(types, node.attrs, tuple(arrays))).flops > WORK:
            return
        self.known[key] = evaluate(node, arrays)

    def _array(self, value: Value) -> np.ndarray | None:
        if value.node in self.known:
            return self.known[value.node][value.index]
        return self.graph.constant(value)

    def worth_storing(self, key: int) -> bool:
        """Whether something that is not itself folded needs the value, and rules 2 and 3 allow to store it.

        A node that they forbid to store leaves ``known``: it stays an operation and needs its inputs. So users must be
        asked before producers.
        """
        graph, node = self.graph, self.graph.node(key)
        if all(user in self.known for user in graph.nx.successors(key)) and not visible(graph, key):
            return False
        nbytes = sum(a.nbytes for a in self.known[key])
        if (node.op in BROADCASTS and nbytes > SMALL) or (nbytes > LIMIT and nbytes > self._freed(key)):
            self.known.pop(key)
            return False
        return True

    def _freed(self, key: int) -> int:
        """Bytes of the constants that only this node uses, directly or through other folded nodes."""
        graph, total, stack, seen = self.graph, 0, [key], {key}
        while stack:
            user = stack.pop()
            for arg in {a.node for a in graph.args(user) if a is not None} - seen:
                if any(other != user for other in graph.nx.successors(arg)) or visible(graph, arg):
                    continue
                seen.add(arg)
                if arg in self.known:
                    stack.append(arg)
                elif graph.node(arg).op == "const":
                    total += graph.node(arg).types[0].nbytes
        return total

    def store(self, key: int) -> list[int]:
        """Puts constants in the place of a node; returns them."""
        graph, node = self.graph, self.graph.node(key)
        sources = [node.origin, *(graph.node(a).origin for a in graph.args(key) if a is not None)]
        made = []
        for value, array in zip(graph.values(key), self.known[key], strict=True):
            if graph.uses(value):
                constant = graph.const(array, node.names[value.index], join_origins(sources))
                made.append(constant.node)
                substitute(graph, value, constant, (), fresh=True)
        return made
