"""Layer-wise relevance propagation (Bach et al. 2015): how much of an output each element of an input accounts for.

Relevance starts at an output and is handed down, operation by operation, in proportion to what each input contributed;
nothing is lost and nothing added on the way, so that the parts of the input sum to what the output was given. ``RULES``
says how each operator hands it down; an elementwise operator with one input that matters passes it on as it is.

- Convolutions, pooling and sums of branches: z+ (Montavon et al. 2017), in proportion to the positive contributions.
  Where there are none, all that were read share alike.
- Matrix products, and convolutions of a single place, which are the same: the epsilon rule, in proportion to the signed
  contributions; the bias's part and the epsilon's are shared alike (Bach et al. 2015, equation 60).
- A gate and what it lets through (Arras et al. 2017): all to what is let through.
- Operators that move or choose elements: relevance goes where a gradient would go.

Batch norms, factors and addends behind a linear operator count as part of it: a negative factor turns the signs of its
contributions. The new operations are added to the graph that holds the network, as gradients are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import NervureError
from ..ir import STORED, Graph, Value
from ..ops import OPS, Kind
from ..ops.gradient import Call, Gradient, Sym
from .gradients import call_of, path_between

EPSILON = 1e-6  # of a denominator, in parts of the largest one of its sample
TINY = 1e-9  # what every element that is read adds to its contribution in z+
_MOVED = "reshape transpose slice expand concat pad tile copy gather gather_elements max_pool reduce_max reduce_min"
_SUMS = "avg_pool reduce_mean reduce_sum resize"
_AFFINE = ("add", "sub", "mul", "batch_norm")
_GATES = ("sigmoid", "hard_sigmoid", "softmax", "clip", "tanh")
_POSITIVE = ("relu", "sigmoid", "hard_sigmoid", "softmax", "softplus", "abs", "exp")
_KEEP_SIGN = (
    "reshape",
    "transpose",
    "slice",
    "concat",
    "max_pool",
    "avg_pool",
    "reduce_mean",
    "reduce_sum",
    "identity",
)


def relevance(graph: Graph, output: Value, seed: Value, wrt: Value) -> Value:
    """What each element of ``wrt`` accounts for of ``seed``, the relevance that ``output`` starts with (its shape). The
    operations are added to ``graph``. ``NervureError`` names the operations on the way that have no rule."""
    way = _Way(graph, path_between(graph, output, [wrt]))
    way.check()
    held = {output: Sym(graph, seed, graph.node(output).origin)}
    for key in reversed([key for key in graph.order() if key in way.nodes]):
        for value in graph.values(key):
            if value in held and graph.node(key).op not in STORED and value != wrt:
                for arg, part in zip(graph.args(key), way.hand_down(key, held[value]), strict=False):
                    if arg is not None and part is not None:
                        held[arg] = held[arg] + part if arg in held else part
    return held[wrt].value if wrt in held else Sym(graph, wrt, graph.node(wrt).origin).zeros().value


Parts = Sequence[Sym | None]  # of an operation's inputs


@dataclass
class _Way:
    """The operations between an input and an output."""

    graph: Graph
    nodes: set[int]

    def check(self) -> None:
        lacking = [k for k in self.graph.order() if k in self.nodes and not self._known(k)]
        if lacking:
            ops = sorted({self.graph.node(k).op for k in lacking})
            raise NervureError(
                f"no relevance goes through {', '.join(ops)}",
                where=[o for k in lacking for o in self.graph.node(k).origin[:1]][:5],
                hint="integrated gradients sum to the output too, through anything that has a gradient",
            )

    def _known(self, key: int) -> bool:
        op = self.graph.node(key).op
        if op in ("matmul", "conv"):
            return self.live(key) == [0]
        return op in STORED or op in RULES or (OPS[op].kind is Kind.ELEMENTWISE and len(self.live(key)) == 1)

    def live(self, key: int) -> list[int]:
        """Which inputs of an operation depend on the input in question."""
        return [i for i, a in enumerate(self.graph.args(key)) if a is not None and a.node in self.nodes]

    def hand_down(self, key: int, r: Sym) -> Parts:
        """The inputs' parts of the relevance of the only output that has some."""
        rule = RULES.get(self.graph.node(key).op, _through)
        return rule(self, key, call_of(self.graph, key, [r]), r)

    def behind(self, key: int, channel_axis: int) -> tuple[Sym | None, Sym]:
        """What is done to a linear operation's output before anything else reads it: the factor of each channel (None:
        1), and the result."""
        graph, last = self.graph, Value(key)
        factor: Sym | None = None
        while graph.uses(last) == 1 and graph.users(last):
            user, at = graph.users(last)[0]
            node = graph.node(user)
            if (
                node.op not in _AFFINE
                or user not in self.nodes
                or self.live(user) != [at]
                or (node.op, at) == ("sub", 1)
            ):
                break
            found = _factor(call_of(graph, user, ()), node.op, at)
            if found is not None and found.type.size not in (1, graph.type(last).dims[channel_axis]):
                break
            if found is not None:
                factor = found if factor is None else factor * found
            last = Value(user)
        return factor, Sym(graph, last, graph.node(last).origin)

    def nonnegative(self, value: Value) -> bool:
        """Whether a tensor is known to have no negative element."""
        node = self.graph.node(value)
        if node.op == "clip":
            return node.attrs["low"] is not None and node.attrs["low"] >= 0
        args = [a for a in self.graph.args(value.node) if a is not None]
        return node.op in _POSITIVE or (node.op in _KEEP_SIGN and all(self.nonnegative(a) for a in args))


# -- rules: the parts of each input, from the call and the relevance of its output -------------------------------------


def _through(way: _Way, key: int, c: Call, r: Sym) -> Parts:
    """All of it to the one input that matters."""
    parts: list[Sym | None] = [None] * len(c.xs)
    at = way.live(key)[0]
    parts[at] = r.sum_to(c.input(at).shape)
    return parts


def _moved(way: _Way, key: int, c: Call, r: Sym) -> Parts:
    """Where a gradient goes."""
    parts = _gradient(way.graph.node(key).op)(c)
    return [part if i in way.live(key) else None for i, part in enumerate(parts)]


def _sum(way: _Way, key: int, c: Call, r: Sym) -> Parts:
    """z+ of a sum or mean: its weights are positive and alike."""
    op = way.graph.node(key).op
    x = (c.x if way.nonnegative(c.x.value) else c.x.op("relu")) + TINY
    y = x.op(op, *c.xs[1:], **c.attrs)
    return [x * _first(_gradient(op)(Call((x, *c.xs[1:]), (y,), (r / y,), c.attrs)))]


def _branches(way: _Way, key: int, c: Call, r: Sym) -> Parts:
    """z+ of a sum of two tensors."""
    if len(way.live(key)) == 1:
        return _through(way, key, c, r)
    signs = (1, -1 if way.graph.node(key).op == "sub" else 1)
    a, b = (((x * s).op("relu") + TINY).expand(r.shape) for x, s in zip(c.xs, signs, strict=True) if x is not None)
    s = r / (a + b)
    return [(part * s).sum_to(c.input(i).shape) for i, part in enumerate((a, b))]


def _gated(way: _Way, key: int, c: Call, r: Sym) -> Parts:
    """A product: all to what a gate lets through; to both alike where none of them is a gate."""
    live = way.live(key)
    if len(live) == 1:
        return _through(way, key, c, r)
    gates = [i for i in live if way.graph.node(c.input(i).value).op in _GATES]
    kept = [i for i in live if i not in gates] if len(gates) == 1 else live
    return [(r * (1 / len(kept))).sum_to(c.input(i).shape) if i in kept else None for i in live]


def _matmul(way: _Way, key: int, c: Call, r: Sym) -> Parts:
    factor, whole = way.behind(key, -1)
    w = c.input(1)
    s, rest = _epsilon(c.y if factor is None else c.y * factor, whole, r)
    back = (s if factor is None else s * factor) @ w.swap()
    shared = rest.sum([rest.rank - 1], keepdims=True) * (1 / c.x.shape[-1])
    return [(c.x * back + shared).sum_to(c.x.shape)]


def _conv(way: _Way, key: int, c: Call, r: Sym) -> Parts:
    """z+, or the epsilon rule where the kernel covers all that there is: one place, nothing around it."""
    factor, whole = way.behind(key, 1)
    w, attrs, spatial = c.input(1), c.attrs, c.x.shape[2:]
    dense = set(r.shape[2:]) == {1} and w.shape[2:] == spatial and not any(attrs["pads"])
    if dense:
        bias = c.optional(2)
        y = c.y if bias is None else c.y - bias.reshape((w.shape[0], *[1] * len(spatial)))
        s, rest = _epsilon(y if factor is None else y * factor, whole, r)
        back = _conv_back(c.x, w, s if factor is None else s * factor, attrs)
        count = w.type.size // w.shape[0]
        return [c.x * back + _alike(c.x, w, rest * (1 / count), attrs)]
    if factor is not None:  # only its sign matters: what is positive behind it
        w = w * factor.op("sign").reshape([factor.type.size, *[1] * (w.rank - 1)])
    halves = [(c.x.op("relu"), w.op("relu"))]
    if way.nonnegative(c.x.value):
        halves = [(c.x, w.op("relu"))]
    else:
        halves.append(((-c.x).op("relu"), (-w).op("relu")))
    total = _alike_count(c.x, w, attrs) * TINY
    for x, half in halves:
        total = x.op("conv", half, **attrs) + total
    s = r / total
    found = _alike(c.x, w, s * TINY, attrs)
    for x, half in halves:
        found = found + x * _conv_back(x, half, s, attrs)
    return [found]


RULES: dict[str, Callable[[_Way, int, Call, Sym], Parts]] = {
    **dict.fromkeys(_MOVED.split(), _moved),
    **dict.fromkeys(_SUMS.split(), _sum),
    "add": _branches,
    "sub": _branches,
    "mul": _gated,
    "matmul": _matmul,
    "conv": _conv,
    "batch_norm": _through,
}


# -- their arithmetic --------------------------------------------------------------------------------------------------


def _first(parts: Parts) -> Sym:
    found = parts[0]
    assert found is not None
    return found


def _factor(c: Call, op: str, at: int) -> Sym | None:
    """What an operation multiplies its input ``at`` by, so that it can be broadcast; None: 1."""
    if op == "mul":
        return c.input(1 - at)
    if op != "batch_norm":
        return None
    factor: Sym = c.input(1) * (c.input(4) + c.attrs["epsilon"]).op("rsqrt")
    return factor.reshape((factor.shape[0], *[1] * (c.x.rank - 2)))


def _epsilon(linear: Sym, whole: Sym, r: Sym) -> tuple[Sym, Sym]:
    """The epsilon rule: relevance over outputs, and what of it belongs to bias and epsilon. ``linear``: the sums of the
    contributions; ``whole``: with all addends."""
    axes = range(1, whole.rank)
    epsilon = whole.op("abs").op("reduce_max", axes=tuple(axes), keepdims=True) * EPSILON + TINY
    stable = whole + (whole < 0).where(-epsilon, epsilon)
    s = r / stable
    return s, s * (stable - linear)


def _conv_back(x: Sym, w: Sym, g: Sym, attrs: Mapping[str, Any]) -> Sym:
    """The transpose of a convolution of ``x`` by ``w``, on ``g``."""
    y = x.op("conv", w, **attrs)
    return _first(_gradient("conv")(Call((x, w), (y,), (g,), attrs)))


def _gradient(op: str) -> Gradient:
    rule = OPS[op].gradient
    assert rule is not None
    return rule


def _alike(x: Sym, w: Sym, g: Sym, attrs: Mapping[str, Any]) -> Sym:
    """``g`` at every place that a convolution reads for it: its transpose with a kernel of ones."""
    held = dict(attrs)
    group, (batch, channels, *spatial) = held.pop("group"), x.shape
    flat = (
        g.reshape((batch, group, g.shape[1] // group, *g.shape[2:])).sum([2]).reshape((batch * group, 1, *g.shape[2:]))
    )
    ones = w.constant(np.ones((1, 1, *w.shape[2:])))
    back = _conv_back(x.constant(0).expand((batch * group, 1, *spatial)), ones, flat, {**held, "group": 1})
    wide = back.reshape((batch, group, 1, *spatial)).expand((batch, group, channels // group, *spatial))
    return wide.reshape(x.shape)


def _alike_count(x: Sym, w: Sym, attrs: Mapping[str, Any]) -> Sym:
    """How many elements a convolution reads for each place, [1, 1, spatial...]."""
    held = {**dict(attrs), "group": 1}
    ones = x.constant(1).expand((1, 1, *x.shape[2:]))
    return ones.op("conv", w.constant(np.ones((1, 1, *w.shape[2:]))), **held) * w.shape[1]
