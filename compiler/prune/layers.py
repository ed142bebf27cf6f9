"""The layers of a graph whose weights can be pruned, and the graph in the form in which pruning sees it."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np

from ..ir import Graph, Value
from ..passes.dce import eliminate_dead_code
from ..passes.empties import remove_empties
from ..passes.fold import fold_constants
from ..passes.rewrite import substitute
from ..types import TensorType
from .patterns import from_matrix, to_matrix


@dataclass(frozen=True)
class Layer:
    """A convolution or matmul with constant weights. ``name`` is that of its result; ``weight`` that of the constant,
    which several layers may share. ``positions``: outputs of one channel in one run, so that ``macs`` (multiply-adds
    of a run, zeros not counted) follow from the weights."""

    name: str
    op: str
    node: int
    weight: str
    shape: tuple[int, ...]
    group: int
    positions: int

    @property
    def channels(self) -> int:
        """Rows of the matrix for each tap: the inputs that one output sees."""
        return self.shape[-2] if self.op == "matmul" else self.shape[1]

    @property
    def outputs(self) -> int:
        return self.shape[-1] if self.op == "matmul" else self.shape[0]

    @property
    def depthwise(self) -> bool:
        return self.op == "conv" and self.group > 1 and self.shape[1] == 1

    def macs(self, weights: np.ndarray) -> int:
        """Multiply-adds of a run with non-zero weights."""
        return int(np.count_nonzero(weights)) * self.positions

    def matrix(self, weights: np.ndarray) -> np.ndarray:
        """The weights (or their scores, or a mask) as ``[K, N]``."""
        return to_matrix(weights, self.op)

    def array(self, matrix: np.ndarray) -> np.ndarray:
        """``[K, N]`` as the layer keeps it."""
        return from_matrix(matrix, self.shape, self.op)


def prepare(graph: Graph) -> Graph:
    """The graph as pruning sees it: constants folded, each matrix once; batch norms are still there, so that it can be
    trained on. It can be written as ONNX, and names are kept."""
    work = graph
    for step in (eliminate_dead_code, remove_empties, fold_constants, _share_matrices):
        work = step(work)
    return work


def _share_matrices(graph: Graph) -> Graph:
    """Equal matrices and kernels are one: folding makes several of a weight that layers share. Vectors are left alone:
    biases of zeros and scales of ones are equal by chance, and one vector would tie its layers' channels together."""
    work, firsts = graph.copy(), dict[tuple[TensorType, bytes], int]()
    for key in sorted(work.find("const")):
        node = work.node(key)
        if sum(d > 1 for d in node.array.shape) > 1 and work.uses(Value(key)):
            digest = hashlib.blake2b(np.ascontiguousarray(node.array).data, digest_size=16).digest()
            first = firsts.setdefault((node.types[0], digest), key)
            if first != key:
                substitute(work, Value(key), Value(first), (), fresh=False)
    return eliminate_dead_code(work)


def layers(graph: Graph) -> tuple[Layer, ...]:
    """The layers of a prepared graph, in order: float weights, a matrix or a convolution's."""
    found = (_layer(graph, key) for key in graph if graph.node(key).op in ("conv", "matmul"))
    return tuple(layer for layer in found if layer is not None)


def _layer(graph: Graph, key: int) -> Layer | None:
    node = graph.node(key)
    x, w, *_ = graph.args(key)
    array = graph.constant(w)
    if x is None or w is None or array is None or array.dtype != np.float32 or graph.constant(x) is not None:
        return None
    if node.op == "matmul" and (array.ndim != 2 or graph.type(x).rank < 2):
        return None
    (made,) = node.types
    sizes = [d if isinstance(d, int) else 1 for d in made.shape]  # an open size, the batch's, counts as one
    axis = len(sizes) - 1 if node.op == "matmul" else 1
    positions = math.prod(s for i, s in enumerate(sizes) if i != axis)
    group = int(node.attrs["group"]) if node.op == "conv" else 1
    return Layer(node.names[0], node.op, key, graph.tensor_name(w), array.shape, group, positions)
