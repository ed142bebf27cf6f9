"""How much each weight matters, by seven criteria. A score is never negative but for ``movement``; high ones stay.

* ``l1``, ``l2``: magnitude, |w| and w^2 (whose root is taken where they are summed for a unit).
* ``bn_scale``: |gamma| of the batch norm behind the layer, for a weight times |w| (Liu et al. 2017, network slimming).
* ``taylor``: the mean of |w dL/dw| over samples: the change of the loss to first order (Molchanov et al. 2019).
* ``movement``: the mean of -w dL/dw: whether training moves the weight away from zero (Sanh et al. 2020).
* ``wanda``: |w| times the l2 norm over all samples of the input channel that it multiplies (Sun et al. 2023).
* ``random``: seeded, the control.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ...errors import NervureError
from ..ir import Graph, Value
from ..quantize.observe import Feeds, Progress, Visit, Watcher, silent, with_outputs
from ..quantize.samples import Samples, feeds
from .running import is_little, running
from .settings import CRITERIA, LEARNED
from .slopes import Labels, slopes
from .weights import Use, Weight, scales, weights

Scores = dict[str, np.ndarray]


def scores(
    graph: Graph,
    criterion: str,
    samples: Samples | None = None,
    gradients: Mapping[str, np.ndarray] | None = None,
    seed: int = 0,
    *,
    labels: Labels = None,
    tell: Progress = silent,
) -> Scores:
    """A score for each weight of a static, prepared graph, float64 in the constant's shape, by its name.

    ``samples`` (as for calibration) are needed by ``wanda``, and by ``taylor`` and ``movement`` unless ``gradients``
    gives the mean gradient of each weight; ``labels`` as in ``slopes``. With ``bn_scale`` the scales themselves are in
    it too. ``NervureError`` for an unknown criterion, missing or unfitting data, and where there is no batch norm.
    """
    if criterion not in CRITERIA:
        raise NervureError(f"there is no criterion {criterion!r}", hint=f"one of: {', '.join(CRITERIA)}")
    held = weights(graph)
    for w in held:
        if not np.isfinite(w.array).all():
            raise NervureError(f"weight {w.name!r} holds NaN or infinity", hint="train or export the model again")
    if criterion == "wanda":
        return _wanda(graph, held, _needed(criterion, samples), tell)
    if criterion in LEARNED:
        if gradients is not None:
            return _given(held, criterion, gradients)
        return _learned(graph, held, criterion, _needed(criterion, samples), labels, seed, tell)
    if criterion == "bn_scale":
        return _bn_scale(graph, held)
    if criterion == "random":
        return {w.name: np.random.default_rng([seed, i]).random(w.array.shape) for i, w in enumerate(held)}
    power = 1 if criterion == "l1" else 2
    return {w.name: np.abs(w.array.astype(np.float64)) ** power for w in held}


def _needed(criterion: str, samples: Samples | None) -> Samples:
    if samples is None:
        raise NervureError(
            f"criterion {criterion} needs samples",
            why="it looks at what the network does with real inputs",
            hint="data (an .npz with the inputs, and y for labels), or criterion l2",
        )
    return samples


# -- gradients ---------------------------------------------------------------------------------------------------------


def _learned(
    graph: Graph,
    held: tuple[Weight, ...],
    criterion: str,
    samples: Samples,
    labels: Labels,
    seed: int,
    tell: Progress,
) -> Scores:
    found = {w.name: np.zeros(w.array.shape) for w in held}
    count = 0
    for arrays in slopes(graph, [w.name for w in held], samples, labels, seed, tell):
        count += 1
        for w, slope in zip(held, arrays, strict=True):
            product = w.array * slope.astype(np.float64)
            found[w.name] += np.abs(product) if criterion == "taylor" else -product
    return {name: total / max(1, count) for name, total in found.items()}


def _given(held: tuple[Weight, ...], criterion: str, gradients: Mapping[str, np.ndarray]) -> Scores:
    found = {}
    for w in held:
        slope = gradients.get(w.name)
        if slope is None or slope.shape != w.array.shape:
            said = "none" if slope is None else f"one of shape {list(slope.shape)}"
            raise NervureError(f"weight {w.name!r} {list(w.array.shape)} has {said} among the gradients")
        product = w.array * slope.astype(np.float64)
        found[w.name] = np.abs(product) if criterion == "taylor" else -product
    return found


# -- batch norms -------------------------------------------------------------------------------------------------------


def _bn_scale(graph: Graph, held: tuple[Weight, ...]) -> Scores:
    norms = scales(graph)
    if not norms:
        raise NervureError(
            "criterion bn_scale needs batch norms behind the layers",
            why="there is none in this graph: it never had any, or its exporter folded them into the weights",
            hint="criterion l2 (a folded scale is part of the weights)",
        )
    constants = {graph.tensor_name(Value(k)): graph.node(k).array for k in graph.find("const")}
    found: Scores = {}
    for w in held:
        size = np.abs(w.array.astype(np.float64))
        if w.name in norms:
            gamma = np.abs(constants[norms[w.name]].astype(np.float64))
            found[norms[w.name]] = gamma
            size = size * _along_outputs(w, gamma)
        found[w.name] = size
    return found


def _along_outputs(w: Weight, gamma: np.ndarray) -> np.ndarray:
    """One number for each output, shaped to be multiplied with the weight."""
    op = w.uses[0].op
    if op == "matmul":
        return gamma if w.uses[0].arg == 1 else gamma[:, None]
    rest = (1,) * (w.array.ndim - 2)
    if op == "conv":
        return gamma.reshape(-1, 1, *rest)
    groups = gamma.size // w.array.shape[1]  # conv_transpose [I, O/g, ...]
    wide = np.repeat(gamma.reshape(groups, -1), w.array.shape[0] // groups, axis=0)
    return wide.reshape(*w.array.shape[:2], *rest)


# -- activations -------------------------------------------------------------------------------------------------------


def _wanda(graph: Graph, held: tuple[Weight, ...], samples: Samples, tell: Progress) -> Scores:
    sums: dict[str, np.ndarray] = {}
    readers: dict[str, list[tuple[Weight, Use]]] = {}
    for w in held:
        for use in w.uses:
            readers.setdefault(_input_name(graph, use), []).append((w, use))

    def visit(_: int, name: str, array: np.ndarray) -> None:
        for w, use in readers[name]:
            part = _squares(graph, w, use, array.astype(np.float64))
            sums[w.name] = sums.get(w.name, 0.0) + part

    _visit(graph, list(readers), feeds(graph, samples), visit, tell)
    return {w.name: np.abs(w.array.astype(np.float64)) * np.sqrt(sums[w.name]) for w in held}


def _visit(graph: Graph, names: list[str], calls: Feeds, visit: Visit, tell: Progress) -> None:
    """Each tensor of each call."""
    places = {graph.tensor_name(v): v for key in graph.order() for v in graph.values(key)}
    watched = with_outputs(graph, [places[name] for name in names])
    if not is_little(watched, len(calls)):
        with Watcher(graph, names) as watcher:  # in parts, where tensors are large
            watcher.run(calls, visit, tell, "activations")
        return
    with running(watched, len(calls)) as run:
        for i, call in enumerate(calls):
            for name, array in zip(names, run(call), strict=True):
                if not np.isfinite(array).all():
                    raise NervureError(f"NaN or infinity in tensor {name!r} for sample {i}", hint="look at this sample")
                visit(i, name, array)


def _input_name(graph: Graph, use: Use) -> str:
    """The tensor that a weight is multiplied with: for recurrent weights what the layer itself gave before."""
    if use.op in ("lstm", "gru", "rnn") and use.arg == 2:
        return graph.tensor_name(Value(use.node))
    other = graph.args(use.node)[1 - use.arg if use.op == "matmul" else 0]
    assert other is not None
    return graph.tensor_name(other)


def _squares(graph: Graph, w: Weight, use: Use, x: np.ndarray) -> np.ndarray:
    """The sum of squares of each input channel, shaped to be multiplied with the weight."""
    if use.op == "matmul":
        axis = x.ndim - 1 if use.arg == 1 else max(0, x.ndim - 2)
        sums = _over_others(x, axis)
        return sums[:, None] if use.arg == 1 else sums
    if use.op in ("lstm", "gru", "rnn"):
        if use.arg == 1:
            return _over_others(x, x.ndim - 1)
        return np.asarray(np.square(x).sum(axis=(0, 2)))[:, None, :]  # y [T,D,B,H] -> [D,1,H]
    sums, rest = _over_others(x, 1), (1,) * (w.array.ndim - 2)
    if use.op == "conv_transpose":
        return sums.reshape(-1, 1, *rest)
    groups = int(graph.node(use.node).attrs["group"])
    wide = np.repeat(sums.reshape(groups, -1), w.array.shape[0] // groups, axis=0)
    return wide.reshape(*wide.shape, *rest)


def _over_others(x: np.ndarray, axis: int) -> np.ndarray:
    return np.square(x).sum(axis=tuple(i for i in range(x.ndim) if i != axis))  # type: ignore[no-any-return]
