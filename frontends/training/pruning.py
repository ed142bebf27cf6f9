"""Masks of a network's weights: set by hand, taken from zeros, chosen once, or made sparser while it is trained."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...compiler.ir import Graph, Value
from ...compiler.prune.patterns import Pattern, from_matrix, parse, to_matrix
from ...compiler.prune.structure import ALL_KINDS
from ...errors import NervureError
from ...runtime.pruning import MASK, Gradual, choose
from ..dsl.network import Network
from ..dsl.place import user_place
from ..dsl.spec import BATCH
from ..dsl.tensor import Weight
from ..dsl.trace import Trace
from .units import Groups, Piece, groups_of, unit_masks

THROUGH = ("identity", "cast", "quantize", "dequantize")  # what a weight may go through on its way to its layer


@dataclass(frozen=True)
class Matrix:
    """A weight as pruning sees it, ``[K, N]``: a convolution's tap after tap, a matrix, or one that is kept turned."""

    op: str  # conv, matmul, turned
    shape: tuple[int, ...]
    depthwise: bool = False

    @property
    def channels(self) -> int:
        """Rows of the matrix a tap."""
        return self.shape[0] if self.op == "matmul" else self.shape[1]

    def matrix(self, weights: np.ndarray) -> np.ndarray:
        """A weight, or what is said of it, as a matrix."""
        return weights.T if self.op == "turned" else to_matrix(weights, self.op)

    def array(self, matrix: np.ndarray) -> np.ndarray:
        """The inverse of ``matrix``."""
        return matrix.T if self.op == "turned" else from_matrix(matrix, self.shape, self.op)


def by_shape(shape: tuple[int, ...]) -> Matrix:
    """The matrix of a weight of which only its shape is known."""
    return Matrix("matmul" if len(shape) == 2 else "conv", shape)


def matrices(net: Network) -> dict[str, Matrix]:
    """The weights of a network's convolutions and dense layers, by name."""
    trace = Trace(net.name, net, training=True)
    specs = net.inputs.values()
    sizes = {BATCH: 1} if any(spec is not None and BATCH in spec.shape for spec in specs) else {}
    with trace.active():
        net.record(trace, net.types(sizes))
    values = {id(weight): value for weight, value in trace.weights()}
    found = {}
    for name, weight in net.named_weights():
        use = _use(trace.graph, values[id(weight)], weight.shape) if id(weight) in values else None
        if use is not None:
            found[name] = use
    return found


def _use(graph: Graph, value: Value, shape: tuple[int, ...], turned: bool = False) -> Matrix | None:
    for user, arg in graph.users(value):
        node = graph.node(user)
        if node.op == "conv" and arg == 1 and not turned:
            group = int(node.attrs["group"])
            return Matrix("conv", shape, group > 1 and shape[1] == 1)
        if node.op == "matmul" and arg == 1 and len(shape) == 2:
            return Matrix("turned" if turned else "matmul", shape)
        through = node.op in THROUGH and arg == 0
        if through or (node.op == "transpose" and tuple(node.attrs["perm"]) == (1, 0)):
            found = _use(graph, Value(user), shape, turned != (not through))
            if found is not None:
                return found
    return None


def _chosen(net: Network, skip: Iterable[str]) -> dict[str, Matrix]:
    """What is pruned: matrices and convolutions but depthwise ones, which have little to give."""
    net.ready()
    found = {n: m for n, m in matrices(net).items() if not m.depthwise}
    return {n: m for n, m in found.items() if not any(fnmatch.fnmatchcase(n, p) for p in skip)}


# -- masks -------------------------------------------------------------------------------------------------------------


def masked(net: Network, masks: Mapping[str, Any] | None = None) -> Network:
    """Gives weights of a network masks, by name, and returns it: where a mask is False (or 0) the weight is 0 and stays
    so in training. None takes a mask away. Without ``masks`` those of ``masks_of_zeros``.

    Raises ``NervureError`` for a name that is no weight, and for another shape.
    """
    net.ready()
    weights = dict(net.named_weights())
    given = masks_of_zeros(net) if masks is None else dict(masks)
    unknown = sorted(set(given) - set(weights))
    if unknown:
        raise NervureError(
            f"network {net.name!r} has no weight {unknown[0]!r}",
            where=user_place().full,
            hint=f"there are: {', '.join(list(weights)[:8])}",
        )
    for name, mask in given.items():
        weights[name].mask = mask
    return net


def masks_of_zeros(net: Network) -> dict[str, np.ndarray]:
    """Masks that keep the zeros of a pruned network (or file) as they are: of each matrix or kernel that has some."""
    net.ready()
    weights = dict(net.named_weights())
    arrays = {n: weights[n].array for n in matrices(net)}
    return {n: a != 0 for n, a in arrays.items() if (a == 0).any()}


def sparsify(
    net: Network,
    sparsity: float | None = None,
    structure: str = "unstructured",
    *,
    criterion: str = "magnitude",
    scope: str = "layer",
    skip: str | Sequence[str] = (),
    target: str = "host",
) -> Network:
    """Masks the weights of least magnitude at once: one shot, to be followed by ``fit``; a few of them with a ``fit``
    after each are iterative pruning. What is masked already stays so.

    ``structure``: a pattern (``unstructured``, ``block``, ``2:4``, ... for ``target``), or ``channels``, ``heads``,
    ``units``, ``groups``, ``blocks``: then ``sparsity`` is the part of these, all weights of one go together, and
    ``nv.shrunk(net)`` takes them out. ``criterion``: ``magnitude`` or ``l2``. ``scope``: ``sparsity`` of every layer,
    or ``global``: of all together. ``skip``: patterns of names.
    """
    if criterion not in ("magnitude", "l2"):
        raise NervureError(f"criterion is {criterion!r}", hint="magnitude or l2; nv.prune has those that need data")
    skip = (skip,) if isinstance(skip, str) else tuple(skip)
    net.ready()
    kinds = structure in ALL_KINDS
    pattern = Pattern() if kinds else pattern_of(structure, target)
    part = pattern.sparsity if sparsity is None else sparsity
    if part is None:
        raise NervureError(f"{structure} needs a sparsity", where=user_place().full, hint="nv.sparsify(net, 0.9)")
    weights = dict(net.named_weights())
    groups = _kept_groups(net, structure, skip) if kinds else {}
    views = {} if kinds else _chosen(net, skip)
    power = 2 if criterion == "l2" else 1
    names = sorted(_weights_of(groups)) if kinds else list(views)
    scores = {n: np.abs(weights[n].array.astype(np.float64)) ** power for n in names}
    found = unit_masks(groups, scores, part, scope) if kinds else choose(scores, views, pattern, part, scope)
    for name, mask in found.items():
        held = weights[name].mask
        weights[name].mask = mask if held is None else mask & held
    return net


def _kept_groups(net: Network, kind: str, skip: Sequence[str]) -> dict[str, tuple[tuple[Piece, ...], ...]]:
    """The groups of a kind whose own names, and whose weights' names, are not skipped."""
    found = groups_of(net, kind)
    for name in list(found):
        touched = {name, *_weights_of({name: found[name]})}
        if any(fnmatch.fnmatchcase(n, p) for n in touched for p in skip):
            del found[name]
    return found


def _weights_of(groups: Groups) -> set[str]:
    return {piece.weight for units in groups.values() for unit in units for piece in unit}


def pattern_of(structure: str, target: str = "host") -> Pattern:
    """A pattern by name, for a target's vectors."""
    from ...targets import get

    return parse(structure, get(target))


# -- a session's masks -------------------------------------------------------------------------------------------------


def masks_of(weights: Mapping[str, Weight], names: Iterable[str]) -> dict[str, np.ndarray]:
    """Of a network's weights, the masks that a session has params for."""
    found = {n: weights[n.removesuffix(MASK)] for n in names if n.endswith(MASK) and n.removesuffix(MASK) in weights}
    return {n: w.mask[w.part] for n, w in found.items() if w.mask is not None}


def take_masks(weights: Mapping[str, Weight], held: Mapping[str, np.ndarray]) -> None:
    """A session's masks back into the network."""
    for name, array in held.items():
        weight = weights.get(name.removesuffix(MASK)) if name.endswith(MASK) else None
        if weight is not None and weight.mask is not None:
            whole = weight.mask.copy()
            whole[weight.part] = array
            if not np.array_equal(whole, weight.mask):
                weight.mask = whole


# -- gradually ---------------------------------------------------------------------------------------------------------


class GradualPruning(Gradual):
    """Prunes while ``fit`` trains: every ``frequency`` steps the sparsity rises along a cubic curve, fast at first
    (Zhu and Gupta 2017), and the network learns to do without::

        net.fit(x, y, epochs=4, callbacks=[nv.callbacks.GradualPruning(final_sparsity=0.9)])

    ``structure``: ``unstructured``, ``block``, ``block:4x16``, ``2:4`` (from 4:4 by way of 3:4), ... for the vectors of
    ``target``; or ``channels``, ``heads``, ``units``, ``groups``, ``blocks``, which ``nv.shrunk(net)`` takes out.
    ``begin``, ``end`` and ``frequency`` count what ``unit`` says, ``steps`` or ``epochs`` (parts of one too), from the
    start of ``fit``; by default the second half of the training is left for recovery. ``scope``: every layer gets the
    sparsity, or ``global``: all together. ``skip``: patterns of weights that stay dense.

    ``criterion``: ``magnitude``, ``l2`` or ``movement`` (Sanh et al. 2020), which keeps what has moved away from zero
    since the training began. Gradients stay inside of the step, so movement is read off the weights: the sum over the
    steps of weight times change, which for small steps is half the growth of its square, whatever the optimizer. A
    weight once masked does not come back.

    ``history`` has ``sparsity`` of each epoch. A checkpoint has the masks, the schedule and where it stands.
    """

    def __init__(
        self,
        final_sparsity: float | None = None,
        structure: str = "unstructured",
        begin: float = 0,
        end: float | None = None,
        frequency: float | None = None,
        *,
        unit: str = "steps",
        initial_sparsity: float = 0.0,
        criterion: str = "magnitude",
        scope: str = "layer",
        skip: str | Sequence[str] = (),
        target: str = "host",
    ) -> None:
        super().__init__(
            Pattern() if structure in ALL_KINDS else pattern_of(structure, target),
            final_sparsity,
            begin,
            end,
            frequency,
            unit=unit,
            initial_sparsity=initial_sparsity,
            criterion=criterion,
            scope=scope,
            skip=skip,
        )
        self.structure = structure
        self._views: dict[str, Matrix] = {}
        self._groups: Groups = {}

    def prepare(self, network: Any) -> None:
        """Gives the weights that will be pruned masks, so that the step is compiled with them."""
        network.ready()
        weights = dict(network.named_weights())
        if self.structure in ALL_KINDS:
            self._groups = _kept_groups(network, self.structure, self.skip)
            chosen = sorted(_weights_of(self._groups))
        else:
            self._views = _chosen(network, self.skip)
            chosen = list(self._views)
        for name in chosen:
            if weights[name].mask is None and weights[name].trained:
                weights[name].mask = np.ones(weights[name].shape, bool)

    def on_train_begin(self, logs: Any = None) -> None:
        if self.structure in ALL_KINDS and not self._groups:
            raise NervureError(f"{self.structure} are found on a network", hint="net.fit(..., callbacks=[...])")
        super().on_train_begin(logs)

    def prunes(self, name: str, rank: int) -> bool:
        if self.structure in ALL_KINDS:
            return name in _weights_of(self._groups)
        return name in self._views if self._views else rank > 1

    def chosen(self, scores: Mapping[str, np.ndarray], pattern: Any, sparsity: float) -> dict[str, np.ndarray]:
        if self.structure in ALL_KINDS:
            return unit_masks(self._groups, scores, sparsity, self.scope)
        return super().chosen(scores, pattern, sparsity)

    def view(self, name: str, shape: tuple[int, ...]) -> Matrix:
        known = self._views.get(name)
        return by_shape(shape) if known is None else Matrix(known.op, shape)


__all__ = ["GradualPruning", "masked", "masks_of_zeros", "sparsify"]
