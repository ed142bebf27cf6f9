"""Tensors without elements: nothing computes them, and nothing needs a kernel that could.

1. A use of a tensor of no elements is a use of an empty constant; constant folding then finds what follows from it
   (the sum of nothing is 0).
2. A concat leaves out its empty parts.
3. A scatter with no updates is its data.
"""

from __future__ import annotations

import numpy as np

from ..ir import STORED, Graph, Value
from ..ops.numeric import numpy_dtype
from ..types import TensorType


def remove_empties(graph: Graph) -> Graph:
    """A copy of ``graph`` in which no operation makes or reads an empty tensor that is not a constant."""
    work = graph.copy()
    for key in work.order():
        if key not in work.nx:
            continue
        node = work.node(key)
        if node.op == "concat":
            _drop_empty_parts(work, key)
        elif node.op in ("scatter_elements", "scatter_nd"):
            data, indices = work.args(key)[:2]
            if data is not None and indices is not None and _empty(work.type(indices)):
                work.replace(Value(key), data, keep_name=False)
        if node.op == "const" or node.op in STORED[2:] or (node.op == "input" and not work.nx.out_degree(key)):
            continue
        for value in work.values(key):
            type_ = work.type(value)
            if _empty(type_) and work.uses(value):
                nothing = np.zeros(type_.dims, numpy_dtype(type_.dtype))
                work.replace(value, work.const(nothing, work.tensor_name(value), node.origin), keep_name=False)
    work.prune()
    return work


def _empty(type_: TensorType) -> bool:
    return type_.static and type_.size == 0


def _drop_empty_parts(graph: Graph, key: int) -> None:
    node = graph.node(key)
    args = [a for a in graph.args(key) if a is not None]
    kept = [a for a in args if not _empty(graph.type(a))]
    if 0 < len(kept) < len(args):
        short = graph.add("concat", *kept, origin=node.origin, **node.attrs)
        graph.replace(Value(key), short)
