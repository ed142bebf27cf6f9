"""Layers of graph networks. Names, arguments and results are PyTorch Geometric's (Fey and Lenssen 2019), but that the
number of features that come in is read off the input.

``conv(x, edge_index)`` takes nodes x [nodes, features] and edges [2, edges]: from ``edge_index[0]`` to
``edge_index[1]``, so that an edge without direction stands there once each way (``nv.graphs.from_networkx`` sees to
it). The edges are an array, then they are part of the network; or they are a tensor, such as an input: then the graph
is another one at every call, an edge from -1 to -1 is none, and graphs of fewer edges fit (``nv.graphs.padded``). Work
and memory grow with the number of edges: no matrix of nodes by nodes is made.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from ..elementwise import rsqrt, where
from ..index import _indices, put, take
from ..nn import leaky_relu, normalize
from ..promote import as_float, as_tensor
from ..reduce import mean
from ..reduce import sum as total
from ..segments import segment_max, segment_mean, segment_softmax, segment_sum
from ..shaping import arange, concat, expand_dims, reshape
from ..tensor import Tensor
from ..trace import fail
from .base import Layer, expect_rank, whole
from .core import Dense
from .dropout import dropped, fraction

_AGGREGATIONS = {"mean": segment_mean, "sum": segment_sum, "add": segment_sum, "max": segment_max}


class Edges:
    """The edges of a graph: whole numbers ``source`` and ``target`` [edges], and weights [edges] or None.

    Those that are known are given their loops as numpy arrays, which the compiler folds. Those that are data may hold
    -1 for no edge: the node of that number is one more, behind the others, and is left out again.
    """

    def __init__(self, x: Tensor, edge_index: Any, weight: Any = None) -> None:
        self.nodes: int = x.shape[0]
        given = as_tensor(edge_index)
        if given.ndim != 2 or given.shape[0] != 2 or not given.dtype.startswith(("int", "uint")):
            raise fail(f"edge_index: expected whole numbers [2, edges], got {given.type}")
        array = given.trace.graph.constant(given.value)
        self.known = array is not None
        index: Any = _indices(given) if array is None else array
        if self.known and index.size and not 0 <= index.min() <= index.max() < self.nodes:
            named = index.max() if index.min() >= 0 else index.min()
            raise fail(f"edge_index names node {named}, there are {self.nodes}")
        self.source, self.target = index[0], index[1]
        self.weight = None if weight is None else as_tensor(weight, x.dtype)
        if self.weight is not None and self.weight.shape != (index.shape[1],):
            raise fail(f"edge_weight: expected [{index.shape[1]}], got {list(self.weight.shape)}")
        self.dtype = x.dtype

    @property
    def rows(self) -> int:
        """Segments: the nodes, and the one behind them that edges of -1 belong to."""
        return self.nodes if self.known else self.nodes + 1

    def with_loops(self, weight: float = 1.0) -> Edges:
        """A loop at every node. It weighs what the loop that is there does, else ``weight``."""
        ids: Any = np.arange(self.nodes) if self.known else arange(self.nodes, dtype=self.source.dtype)
        loop, own, others = self.source == self.target, self.weight, self.weight
        if self.known:
            kept, loops = np.flatnonzero(~loop), np.flatnonzero(loop)
            at = self.source[loops]
            if self.weight is not None:
                own, others = take(self.weight, loops, 0), take(self.weight, kept, 0)
            self.source, self.target = (np.concatenate([end[kept], ids]) for end in (self.source, self.target))
        else:
            at = where(loop, self.source, -1)
            self.source, self.target = (concat([where(loop, -1, e), ids]) for e in (self.source, self.target))
        if others is not None:
            start = as_tensor(np.full(self.rows, weight), self.dtype)
            self.weight = concat([others, put(start, at, own)[: self.nodes]])
        return self

    def gathered(self, messages: Tensor, how: Any) -> Tensor:
        """What arrives at every node of messages [edges, ...]."""
        found: Tensor = how(messages, self.target, self.rows)
        return found if self.known else found[: self.nodes]


class GCNConv(Layer):
    """Graph convolution (Kipf and Welling 2017): D^-1/2 (A + I) D^-1/2 X W + b, for the weights A of the edges (loops
    that are there keep theirs) and their sums D at each target.

    ``weight`` [features, out_channels] (Glorot-uniform), ``bias`` (0). ``improved``: loops weigh 2. Without
    ``normalize`` it is A X W + b. Nodes [nodes, features] make [nodes, out_channels].
    """

    ALIASES: ClassVar = {"units": "out_channels", "use_bias": "bias"}

    def __init__(
        self,
        out_channels: int,
        *,
        improved: bool = False,
        add_self_loops: bool | None = None,
        normalize: bool = True,
        bias: bool = True,
    ) -> None:
        self.out_channels, self.improved, self.normalize = whole(out_channels, "out_channels"), improved, normalize
        self.add_self_loops = normalize if add_self_loops is None else add_self_loops
        self.use_bias = bias

    def build(self, shape: Any) -> None:
        self.weight = self.add_weight("weight", (shape[-1], self.out_channels))
        self.bias = self.add_weight("bias", (self.out_channels,), "zeros") if self.use_bias else None

    def call(self, x: Tensor, edge_index: Any, edge_weight: Any = None) -> Tensor:
        expect_rank(x, 2, "nodes, features")
        x = as_float(x)
        edges = Edges(x, edge_index, edge_weight)
        if self.add_self_loops:
            if self.improved and edges.weight is None:
                edges.weight = as_tensor(np.ones(edges.source.shape), x.dtype)
            edges.with_loops(2.0 if self.improved else 1.0)
        messages = take(x @ as_tensor(self.weight, x.dtype), edges.source, 0)
        norm = self._norm(edges) if self.normalize else edges.weight
        if norm is not None:
            messages = messages * expand_dims(norm, 1)
        y = edges.gathered(messages, segment_sum)
        return y if self.bias is None else y + as_tensor(self.bias, x.dtype)

    def _norm(self, edges: Edges) -> Tensor:
        """What each edge counts."""
        weight = as_tensor(np.ones(edges.source.shape), edges.dtype) if edges.weight is None else edges.weight
        degree = segment_sum(weight, edges.target, edges.rows)
        root = where(degree > 0, rsqrt(where(degree > 0, degree, 1.0)), 0.0)
        return take(root, edges.source, 0) * weight * take(root, edges.target, 0)


class SAGEConv(Layer):
    """GraphSAGE (Hamilton, Ying and Leskovec 2017): W1 of what the neighbours send, ``aggr`` ("mean", "sum" or "max")
    of it, plus W2 of the node itself.

    Children ``lin_l`` (with the bias) for the neighbours and, with ``root_weight``, ``lin_r`` for the node.
    ``normalize`` scales each node to length 1. Nodes [nodes, features] make [nodes, out_channels]. Nothing in it
    depends on the graph: what is trained on one works on others.
    """

    ALIASES: ClassVar = {"units": "out_channels", "use_bias": "bias"}

    def __init__(
        self,
        out_channels: int,
        *,
        aggr: str = "mean",
        normalize: bool = False,
        root_weight: bool = True,
        bias: bool = True,
    ) -> None:
        if aggr not in _AGGREGATIONS:
            raise fail(f"aggr: expected one of {', '.join(_AGGREGATIONS)}, got {aggr!r}")
        self.aggr, self.normalize = aggr, normalize
        self.lin_l = Dense(whole(out_channels, "out_channels"), use_bias=bias)
        self.lin_r = Dense(out_channels, use_bias=False) if root_weight else None

    def call(self, x: Tensor, edge_index: Any) -> Tensor:
        expect_rank(x, 2, "nodes, features")
        x = as_float(x)
        edges = Edges(x, edge_index)
        y = self.lin_l(edges.gathered(take(x, edges.source, 0), _AGGREGATIONS[self.aggr]))
        if self.lin_r is not None:
            y = y + self.lin_r(x)
        return normalize(y) if self.normalize else y


class GATConv(Layer):
    """Graph attention (Velickovic et al. 2018): of W x each node takes the mean of its neighbours and itself, weighted
    by the softmax of leaky_relu(a_src . W x_source + a_dst . W x_target), in ``heads`` ways.

    Child ``lin`` W; ``att_src``, ``att_dst`` [heads, out_channels]; ``bias``. Heads stand one behind the other, or
    with ``concat=False`` their mean is taken: [nodes, features] makes [nodes, heads * out_channels] or
    [nodes, out_channels]. ``dropout`` drops edges' weights while it is trained.
    """

    ALIASES: ClassVar = {"units": "out_channels", "use_bias": "bias"}

    def __init__(
        self,
        out_channels: int,
        heads: int = 1,
        *,
        concat: bool = True,
        negative_slope: float = 0.2,
        dropout: float = 0.0,
        add_self_loops: bool = True,
        bias: bool = True,
    ) -> None:
        self.out_channels, self.heads = whole(out_channels, "out_channels"), whole(heads, "heads")
        self.concat, self.negative_slope, self.dropout = concat, negative_slope, fraction(dropout)
        self.add_self_loops, self.use_bias = add_self_loops, bias
        self.lin = Dense(self.heads * self.out_channels, use_bias=False)

    def build(self, shape: Any) -> None:
        sides = ((self.heads, self.out_channels), self.heads * self.out_channels if self.concat else self.out_channels)
        self.att_src, self.att_dst = self.add_weight("att_src", sides[0]), self.add_weight("att_dst", sides[0])
        self.bias = self.add_weight("bias", (sides[1],), "zeros") if self.use_bias else None

    def call(self, x: Tensor, edge_index: Any) -> Tensor:
        expect_rank(x, 2, "nodes, features")
        x = as_float(x)
        edges = Edges(x, edge_index)
        if self.add_self_loops:
            edges.with_loops()
        h = reshape(self.lin(x), (x.shape[0], self.heads, self.out_channels))
        sent, met = (total(h * as_tensor(a, x.dtype), -1) for a in (self.att_src, self.att_dst))
        scores = leaky_relu(take(sent, edges.source, 0) + take(met, edges.target, 0), self.negative_slope)
        weights = dropped(segment_softmax(scores, edges.target, edges.rows), self.dropout)
        y = edges.gathered(take(h, edges.source, 0) * expand_dims(weights, 2), segment_sum)
        y = reshape(y, (x.shape[0], -1)) if self.concat else mean(y, axis=1)
        return y if self.bias is None else y + as_tensor(self.bias, x.dtype)


__all__ = ["GATConv", "GCNConv", "SAGEConv"]
