"""``nv.explain``: why a network says what it says. Each function makes a network of a network, which is compiled into
the same library as an entry point of its own and runs on the device::

    model = nv.compile(net, entries={"why": nv.explain.integrated_gradients(net)})
    relevance, target, score = model.session.run(None, {"x": picture, "target": [-1]}, entry="why")

Its inputs are those of ``net`` and ``target`` [batch], int32: the class that is asked about, -1 for the predicted one;
with ``target=3`` it is built for class 3 and has no such input (``target=-1``: for what is predicted). Its outputs are
``relevance``, ``target`` (the class that was explained) and ``score``, the number that relevance is about: what the
network gives for the class, before a last softmax or sigmoid (behind it the other classes have a say).

``net`` is any network with one output [batch, classes]: of the DSL or of ``nv.load_network``. The first float input is
explained. Where the result is a map of places, its channel axis has size 1: axis 1, or the last one of pictures
[batch, height, width, colours].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..compiler.autodiff import relevance
from ..compiler.autodiff.gradients import path_between
from ..compiler.ir import Value
from ..compiler.ops import OPS, Kind
from ..compiler.types import is_float
from ..errors import NervureError
from .dsl import random
from .dsl.elementwise import abs as absolute
from .dsl.elementwise import less, where
from .dsl.index import one_hot
from .dsl.inner import layer_output
from .dsl.layers.image import resize
from .dsl.linalg import matmul
from .dsl.network import Network
from .dsl.nn import relu
from .dsl.place import user_place
from .dsl.promote import as_tensor
from .dsl.reduce import argmax, max, mean, min, sum
from .dsl.shaping import broadcast_to, reshape, stack, transpose
from .dsl.spec import Input
from .dsl.tensor import Tensor
from .dsl.trace import current, fail, leaves
from .training.gradient import grad

__all__ = ["grad_cam", "integrated_gradients", "lrp", "occlusion", "saliency", "smooth_grad"]

TARGET = "target"


def saliency(net: Any, target: int | None = None) -> Network:
    """Where a small change would change the score most: the gradient's size, its largest over the channels (Simonyan,
    Vedaldi and Zisserman 2014). A map of places."""

    def explained(asked: _Asked) -> Any:
        score = asked.score(asked.x)
        return _over_channels(absolute(grad(sum(score), asked.x))), score

    return _explanation("saliency", net, target, explained)


def integrated_gradients(
    net: Any, target: int | None = None, *, baseline: Any = 0.0, steps: int = 64, at_once: int = 16
) -> Network:
    """How the score comes about on the straight way from ``baseline`` (a number, or one sample) to the input
    (Sundararajan, Taly and Yan 2017). Relevance has the input's shape and sums to ``score``, which is f(x) less
    f(baseline) here, as exactly as the gradients at the middles of ``steps`` parts of the way make it: compare the two,
    and take more steps where they differ. ``at_once`` of them are one batch: more is faster and takes more memory."""
    middles = ((np.arange(_whole(steps, "steps")) + 0.5) / steps).astype(np.float32)

    def explained(asked: _Asked) -> Any:
        x = asked.x
        start = broadcast_to(as_tensor(baseline, x.dtype), x.shape)
        total: Any = 0.0
        for part in _chunks(steps, at_once):
            along = _repeated(start, len(part)) + _repeated(x - start, len(part)) * _each(middles[part], x)
            total = total + _folded(grad(sum(asked.score(along)), along), len(part))
        return total * (x - start) / steps, asked.score(x) - asked.score(start)

    return _explanation("integrated_gradients", net, target, explained)


def smooth_grad(
    net: Any, target: int | None = None, *, noise: float = 0.15, samples: int = 16, at_once: int = 8
) -> Network:
    """``saliency`` of the mean gradient over ``samples`` noisy copies of the input: without its grain (Smilkov et al.
    2017). ``noise`` is its deviation, in parts of the input's range. A map of places."""

    def explained(asked: _Asked) -> Any:
        x = asked.x
        axes = tuple(range(1, x.ndim))
        sigma = (max(x, axes, keepdims=True) - min(x, axes, keepdims=True)) * noise
        total: Any = 0.0
        for part in _chunks(_whole(samples, "samples"), at_once):
            drawn = random.normal((len(part) * x.shape[0], *x.shape[1:]))
            noisy = _repeated(x, len(part)) + drawn * _repeated(sigma, len(part))
            total = total + _folded(grad(sum(asked.score(noisy)), noisy), len(part))
        return _over_channels(absolute(total / samples)), asked.score(x)

    return _explanation("smooth_grad", net, target, explained)


def occlusion(
    net: Any,
    target: int | None = None,
    *,
    patch: int | Sequence[int] | None = None,
    stride: int | Sequence[int] | None = None,
    fill: float = 0.0,
) -> Network:
    """How much the score falls when a patch of the input is covered by ``fill`` (Zeiler and Fergus 2014). A map of
    places: for each the mean over the patches that cover it. ``patch``: its size along each axis of places, a quarter
    of the input's unless given; ``stride``: from patch to patch, half a patch unless given. A row of patches is one
    batch."""

    def explained(asked: _Asked) -> Any:
        x, axes = asked.x, _places(asked.x)
        sizes = _for_each(patch, [-(-x.shape[a] // 4) for a in axes], "patch")
        strides = _for_each(stride, [-(-size // 2) for size in sizes], "stride")
        covers = [_covers(x.shape[a], *row) for a, *row in zip(axes, sizes, strides, strict=True)]
        rows, columns = covers if len(axes) == 2 else (np.ones((1, 1), bool), covers[0])
        many, batch = len(columns), x.shape[0]
        copies = _repeated(x, many)
        striped = where(_along(np.repeat(columns, batch, axis=0), axes[-1], x), fill, copies)
        score, drops = asked.score(x), []
        for row in rows:
            covered = where(_along(row[None], axes[0], x), striped, copies) if len(axes) == 2 else striped
            drops.append(score - reshape(asked.score(covered), (many, batch)))
        fallen = transpose(stack(drops), (2, 0, 1))  # [batch, rows of patches, columns of patches]
        seen = matmul(matmul(_mean_over(rows).T, fallen), _mean_over(columns))
        return reshape(seen, [d if i in (0, *axes) else 1 for i, d in enumerate(x.shape)]), score

    return _explanation("occlusion", net, target, explained)


def grad_cam(net: Any, target: int | None = None, *, layer: Any = None) -> Network:
    """Which places of an inner layer speak for the class: its channels, weighted by their mean gradients, as far as
    their sum is positive (Selvaraju et al. 2017). A map of places, resized to the input's. ``layer`` (see
    ``nv.layer_output``) gives [batch, channels, places...]; the last such tensor of the network unless given."""

    def explained(asked: _Asked) -> Any:
        x, axes = asked.x, _places(asked.x)
        score = asked.score(x)
        inner = _last_map(x, score) if layer is None else layer_output(net, layer)
        if not isinstance(inner, Tensor) or inner.ndim != 4:
            raise fail("Grad-CAM needs a layer that gives [batch, channels, height, width]", hint="layer=")
        weights = mean(grad(sum(score), inner), (2, 3), keepdims=True)
        found = resize(relu(sum(inner * weights, 1, keepdims=True)), tuple(x.shape[a] for a in axes), "bilinear", False)
        return reshape(found, [d if i in (0, *axes) else 1 for i, d in enumerate(x.shape)]), score

    return _explanation("grad_cam", net, target, explained)


def lrp(net: Any, target: int | None = None) -> Network:
    """Layer-wise relevance propagation (Bach et al. 2015): the score, handed down layer by layer in proportion to what
    each input contributed, by z+ in convolutions and the epsilon rule in dense layers (``compiler/autodiff/relevance``
    has the rules). Relevance has the input's shape and sums to ``score``. ``NervureError`` names operators without a
    rule: recurrent layers, attention, layer norms."""

    def explained(asked: _Asked) -> Any:
        trace = current()
        scores = asked.scores(asked.x)
        started = scores * asked.one_hot()
        found = relevance(trace.graph, *(trace.resolve(t.value) for t in (scores, started, asked.x)))
        return Tensor(trace, found), sum(started, 1)

    return _explanation("lrp", net, target, explained)


# -- what they have in common ------------------------------------------------------------------------------------------


class _Asked:
    """A network inside of the trace of its explanation, and the class that is asked about."""

    def __init__(self, net: Any, inputs: Mapping[str, Tensor], target: Any) -> None:
        self.net, self.inputs = net, dict(inputs)
        self.name = next((n for n, t in inputs.items() if is_float(t.dtype) and t.ndim > 1), "")
        if not self.name:
            raise fail(f"network {net.name!r} has no float input [batch, ...] that could be explained")
        self.x, self.target = self.inputs[self.name], target

    def scores(self, x: Tensor) -> Tensor:
        """The scores [n, classes] of ``x``, of as many batches as it holds."""
        times = x.shape[0] // self.x.shape[0]
        given = {n: _repeated(t, times) for n, t in self.inputs.items() if n != self.name}
        found = list(leaves(self.net(**{**given, self.name: x})))
        if len(found) != 1 or found[0].ndim not in (1, 2):
            raise fail(
                f"network {self.net.name!r} does not give one tensor [batch, classes]",
                why=f"it gives {', '.join(str(t) for t in found)}",
                hint="explain a network that gives what you ask about: one output, a number for each class",
            )
        scores = _unscaled(found[0])
        return reshape(scores, (x.shape[0], -1)) if scores.ndim == 1 else scores

    def one_hot(self) -> Tensor:
        """[batch, classes]: 1 at the class that is asked about."""
        scores = self.scores(self.x)
        predicted = as_tensor(argmax(scores, 1), "int32")
        asked = as_tensor(np.int32(-1) if self.target is None else self.target, "int32")
        self.asked = where(less(asked, 0), predicted, broadcast_to(asked, predicted.shape))
        return one_hot(self.asked, scores.shape[1])

    def score(self, x: Tensor) -> Tensor:
        """The score [n] of the class that is asked about."""
        if not hasattr(self, "chosen"):
            self.chosen = self.one_hot()
        return sum(self.scores(x) * _repeated(self.chosen, x.shape[0] // self.x.shape[0]), 1)


def _explanation(kind: str, net: Any, target: int | None, explained: Callable[[_Asked], Any]) -> Network:
    """The network of an explanation. ``explained`` gives its relevance and score."""
    if not hasattr(net, "to_graph") or not hasattr(net, "inputs"):
        hint = "net = nv.load_network('model.onnx') makes one of a file"
        raise NervureError(f"nv.explain.{kind} needs a network, got {net!r}", where=user_place().full, hint=hint)

    def function(**inputs: Any) -> dict[str, Tensor]:
        asked = _Asked(net, {n: t for n, t in inputs.items() if n in net.inputs}, inputs.get(name, target))
        found, score = explained(asked)
        return {"relevance": found, "target": asked.asked, "score": score}

    specs: dict[str, Any] = net._specs()
    name = TARGET if TARGET not in specs else f"{kind}_{TARGET}"
    if target is None:
        specs[name] = Input(dtype="int32", batch_shape=next(iter(specs.values())).shape[:1])
    made = Network(function, kind, specs, net.seed)
    made.__doc__ = f"{kind} of {net.name}"
    return made


def _unscaled(scores: Tensor) -> Tensor:
    """What a last softmax or sigmoid was given, else the scores themselves."""
    graph = current().graph
    value, shape = current().resolve(scores.value), scores.shape
    while graph.node(value).op in ("reshape", "identity", "cast", "softmax", "log_softmax", "sigmoid"):
        (before,) = (a for a in graph.args(value.node) if a is not None)
        if graph.node(value).op.endswith(("softmax", "sigmoid")):
            return reshape(Tensor(current(), before), shape)
        value = before
    return scores


def _last_map(x: Tensor, score: Tensor) -> Tensor:
    """The last tensor [batch, channels, height, width] on the way that a layer made of more than one place."""
    trace = current()
    graph = trace.graph
    way = path_between(graph, trace.resolve(score.value), [trace.resolve(x.value)])
    for key in reversed([k for k in graph.order() if k in way]):
        node = graph.node(key)
        made = node.op == "conv" or OPS[node.op].kind is Kind.ELEMENTWISE
        if made and node.types[0].rank == 4 and np.prod(node.types[0].dims[2:]) > 1:
            return Tensor(trace, Value(key))
    raise fail("Grad-CAM found no convolution whose result has places", hint="name the layer: layer=")


def _channels(x: Tensor) -> int | None:
    """The axis of colours or channels of an input, None where it has none."""
    if x.ndim < 4:
        return None
    return x.ndim - 1 if x.shape[-1] <= 4 < x.shape[1] else 1


def _places(x: Tensor) -> tuple[int, ...]:
    """The one or two other axes."""
    found = tuple(i for i in range(1, x.ndim) if i != _channels(x))
    if len(found) > 2:
        raise fail(f"an input of {x.ndim} axes has no places along one or two of them")
    return found


def _over_channels(x: Tensor) -> Tensor:
    """The largest over the channels, where there are some."""
    axis = _channels(x)
    return x if axis is None else max(x, axis, keepdims=True)


def _whole(value: Any, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise NervureError(f"{what}: expected a whole number from 1 on, got {value!r}", where=user_place().full)
    return value


def _for_each(given: int | Sequence[int] | None, usual: list[int], what: str) -> list[int]:
    """One number for each axis of places."""
    found = usual if given is None else [given] * len(usual) if isinstance(given, int) else list(given)
    if len(found) != len(usual):
        raise fail(f"{what}: expected one number or {len(usual)}, got {given!r}")
    return [_whole(value, what) for value in found]


def _covers(size: int, patch: int, stride: int) -> np.ndarray:
    """Which places each patch covers along an axis: bool [patches, size]. The last one ends where the axis does."""
    last = size - (patch if patch < size else size)
    starts = [*range(0, last, stride), last]
    return np.array([(np.arange(size) >= s) & (np.arange(size) < s + patch) for s in starts])


def _mean_over(covers: np.ndarray) -> np.ndarray:
    """float32 [patches, size]: for each place the patches that cover it, summing to 1."""
    return np.asarray(covers / covers.sum(0), np.float32)


def _along(rows: np.ndarray, axis: int, x: Tensor) -> Tensor:
    """[n, size] as [n, 1, ..., size, ..., 1], to be broadcast beside ``x``."""
    return as_tensor(rows.reshape(len(rows), *(x.shape[axis] if i == axis else 1 for i in range(1, x.ndim))))


def _chunks(count: int, size: int) -> Iterator[range]:
    """``range(count)`` in parts of at most ``size``."""
    _whole(size, "at_once")
    return (range(start, start + size if start + size < count else count) for start in range(0, count, size))


def _repeated(x: Tensor, times: int) -> Tensor:
    """``x`` so many times, one batch behind the other."""
    if times == 1:
        return x
    return reshape(broadcast_to(x, (times, *x.shape)), (times * x.shape[0], *x.shape[1:]))


def _folded(x: Tensor, times: int) -> Tensor:
    """The sum of so many batches that lie one behind the other."""
    return sum(reshape(x, (times, x.shape[0] // times, *x.shape[1:])), 0)


def _each(numbers: np.ndarray, x: Tensor) -> np.ndarray:
    """A number for each of so many batches of ``x``, to be broadcast beside them."""
    return np.repeat(numbers, x.shape[0]).reshape(-1, *[1] * (x.ndim - 1))
