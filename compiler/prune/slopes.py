"""The slope of the loss for each weight, sample by sample, on a compiled graph.

What arrives at the network's scores is ``prediction - target``: the gradient of the cross entropy behind a softmax or a
sigmoid, and of half the squared error where there is neither (the canonical links of generalised linear models). So no
loss is built, and it is exact.

Without labels the targets are drawn from the network's own predictions: classes by their probabilities, numbers with a
standard normal error. The slopes are then those of the Fisher information (Martens 2014, "New insights and perspectives
on the natural gradient method"). Its own outputs themselves would be no targets: there the slope is zero everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import NervureError
from ..autodiff.gradients import gradients, training_form
from ..ir import Graph, Value
from ..ops.gradient import Sym
from ..quantize.observe import Progress, silent, with_outputs
from ..quantize.samples import Samples, feeds
from ..types import is_float
from .running import running

Labels = Any  # an array, or a mapping of them by output name


@dataclass(frozen=True)
class Head:
    """One result of a network: ``value`` is what it says, ``scores`` what the gradient arrives at (before a last
    softmax or sigmoid); ``link``: softmax, log_softmax, sigmoid or none; ``axis``: of the classes, if it says so."""

    name: str
    value: Value
    scores: Value
    link: str
    axis: int | None


def heads(graph: Graph) -> tuple[Head, ...]:
    """The floating-point results."""
    found = []
    for name, value in zip(graph.output_names, graph.outputs, strict=True):
        if not is_float(graph.type(value).dtype):
            continue
        node = graph.node(value)
        linked = node.op in ("softmax", "log_softmax", "sigmoid")
        scores = graph.args(value.node)[0] if linked else value
        assert scores is not None
        axis = int(node.attrs["axis"]) % graph.type(value).rank if linked and node.op != "sigmoid" else None
        found.append(Head(name, value, scores, node.op if linked else "none", axis))
    return tuple(found)


def slopes(
    graph: Graph,
    names: Sequence[str],
    samples: Samples,
    labels: Labels = None,
    seed: int = 0,
    tell: Progress = silent,
) -> Iterator[list[np.ndarray]]:
    """The gradients of the loss for constants ``names`` of a static graph, one list for each call of it.

    ``samples`` as for calibration; ``labels``: class numbers, or what the output should be, along the first axis.
    ``NervureError`` where they do not fit, where operations have no gradient, and for NaN or infinity.
    """
    calls = feeds(graph, samples)
    ends = heads(graph)
    wanted = _targets(graph, ends, labels, len(calls)) if labels is not None else None
    used = [e for e in ends if wanted is None or e.name in wanted]
    if not used:
        raise NervureError("the network has no output that a loss could be of", hint="a criterion without gradients")
    backward = _backward(graph, used, names)
    said_by = with_outputs(graph, [e.value for e in used])
    with running(said_by, len(calls)) as forward, running(backward, len(calls)) as back:
        for i, call in enumerate(calls):
            rng = np.random.default_rng([seed, i])
            arriving = {}
            for end, said in zip(used, forward(call), strict=True):
                target = None if wanted is None else wanted[end.name][i]
                arriving[_port(end)] = _arriving(end, said.astype(np.float64), target, rng)
            found = back({**call, **arriving})
            _finite(found, names, i)
            yield found
            tell("gradients", i + 1, len(calls))


def _port(end: Head) -> str:
    return f"arriving at {end.name}"


def _backward(graph: Graph, ends: Sequence[Head], names: Sequence[str]) -> Graph:
    """A graph from the inputs and what arrives at each head to the gradients."""
    work = graph.copy()
    work.bindings = {}
    places = {work.tensor_name(Value(k)): Value(k) for k in work.find("const")}
    wrt = [places[name] for name in names]
    loss: Sym | None = None
    for end in ends:
        origin = work.node(end.scores).origin
        scores = Sym(work, end.scores, origin)
        port = Sym(work, work.input(_port(end), scores.type), origin)
        part = (scores * port).sum(range(scores.rank))
        loss = part if loss is None else loss + part
    assert loss is not None
    training_form(work, loss.value, wrt)
    found = gradients(work, loss.value, wrt)
    work.outputs, work.output_names = [], []
    for name, value in zip(names, found, strict=True):
        work.output(value, f"slope of {name}")
    work.prune()
    return work


def _arriving(end: Head, said: np.ndarray, target: np.ndarray | None, rng: np.random.Generator) -> np.ndarray:
    """The gradient of the loss at the head's scores, the mean over the batch."""
    batch = said.shape[0] if said.ndim else 1
    if end.link == "log_softmax":
        said = np.exp(said)
    if target is None:
        found = said - _drawn(end, said, rng) if end.link != "none" else -rng.standard_normal(said.shape)
    elif end.link == "none" and target.dtype.kind == "i":  # classes of bare scores
        axis = _class_axis(end, said.shape, target.shape)
        spread = np.exp(said - said.max(axis=axis, keepdims=True))
        found = spread / spread.sum(axis=axis, keepdims=True) - _one_hot(end, target, said.shape, axis)
    elif target.dtype.kind == "i" and end.link != "sigmoid":
        found = said - _one_hot(end, target, said.shape, _class_axis(end, said.shape, target.shape))
    else:
        found = said - target.reshape(said.shape)
    return np.ascontiguousarray(found / batch, np.float32)


def _drawn(end: Head, said: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Targets drawn from what the network says."""
    if end.link == "sigmoid":
        return (rng.random(said.shape) < said).astype(np.float64)
    assert end.axis is not None
    noise = rng.gumbel(size=said.shape)  # the largest of log p + Gumbel noise is drawn with probability p
    best = (np.log(np.maximum(said, 1e-300)) + noise).argmax(axis=end.axis, keepdims=True)
    drawn = np.zeros(said.shape)
    np.put_along_axis(drawn, best, 1.0, axis=end.axis)
    return drawn


def _class_axis(end: Head, shape: tuple[int, ...], given: tuple[int, ...]) -> int:
    """The axis of an output along which classes lie, if labels of shape ``given`` number them."""
    order = [end.axis] if end.axis is not None else [*dict.fromkeys((1, len(shape) - 1))]
    for axis in order:
        if axis is not None and axis < len(shape) and (*shape[:axis], *shape[axis + 1 :]) == given:
            return axis
    raise NervureError(f"labels {list(given)} do not fit output {end.name!r} {list(shape)}", hint=_HINT)


def _one_hot(end: Head, classes: np.ndarray, shape: tuple[int, ...], axis: int) -> np.ndarray:
    if classes.size and not 0 <= classes.min() <= classes.max() < shape[axis]:
        raise NervureError(
            f"a label of class {classes.max() if classes.max() >= shape[axis] else classes.min()}",
            why=f"output {end.name!r} has {shape[axis]} classes, from 0 on",
        )
    hot = np.zeros(shape)
    np.put_along_axis(hot, np.expand_dims(classes, axis), 1.0, axis=axis)
    return hot


_HINT = "class numbers, one for each sample, or what the output should be"


def _targets(graph: Graph, ends: Sequence[Head], labels: Labels, calls: int) -> dict[str, list[np.ndarray]]:
    """For each labelled output the targets of each call, class numbers as int64, else float64."""
    if not isinstance(labels, Mapping):
        if not ends:
            return {}
        labels = {ends[0].name: labels}
    names = [e.name for e in ends]
    unknown = sorted(set(labels) - set(names))
    if unknown:
        raise NervureError(f"labels for {unknown[0]!r}", why=f"the network's outputs are {', '.join(names)}")
    found = {}
    for end in ends:
        if end.name in labels:
            shape = tuple(graph.type(end.value).dims)
            found[end.name] = _calls(end, np.asarray(labels[end.name]), shape, calls)
    return found


def _calls(end: Head, given: np.ndarray, shape: tuple[int, ...], calls: int) -> list[np.ndarray]:
    """One output's labels, cut into calls; ``shape`` is the output's."""
    batch = shape[0] if shape else 1
    if given.dtype.kind not in "iubf" or not given.ndim:
        raise NervureError(f"labels of {given.dtype} for output {end.name!r}", hint=_HINT)
    rows, left = divmod(len(given), batch)
    if rows < calls or (rows > calls and not left and batch == 1):
        raise NervureError(
            f"{len(given)} labels for {calls * batch} samples", hint="one for each sample, in the same order"
        )
    size = int(np.prod(shape))
    each = given[: calls * batch].reshape(calls, batch, *given.shape[1:])
    if given.dtype.kind in "iub" and end.link != "sigmoid" and each[0].size != size:
        wide = each.reshape(calls, batch, *(d for d in given.shape[1:] if d != 1)).astype(np.int64)
        _class_axis(end, shape, wide.shape[1:])
        return list(wide)
    if each[0].size != size:
        raise NervureError(f"labels {list(given.shape)} do not fit output {end.name!r} {list(shape)}", hint=_HINT)
    values = each.reshape(calls, *shape).astype(np.float64)
    if end.link == "none" and len(shape) == 2 and _is_one_hot(values):
        return list(values.argmax(axis=-1))
    return list(values)


def _is_one_hot(values: np.ndarray) -> bool:
    return bool(np.isin(values, (0.0, 1.0)).all() and (values.sum(axis=-1) == 1).all() and values.shape[-1] > 1)


def _finite(found: Sequence[np.ndarray], names: Sequence[str], sample: int) -> None:
    for name, array in zip(names, found, strict=True):
        if not np.isfinite(array).all():
            raise NervureError(
                f"the gradient of {name!r} is NaN or infinite for sample {sample}",
                hint="look at this sample and at the model's results for it; or a criterion without gradients",
            )


__all__ = ["Head", "Labels", "heads", "slopes"]
