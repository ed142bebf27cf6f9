"""From a network, a loss and an optimizer to the entry points of a training artifact.

``train_step`` is one trace: the network in training mode, the loss, its gradients, the optimizer's update. ``evaluate``
and ``infer`` are traces of the same network that share its params and states.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...compiler.autodiff import split_partly_trained
from ...compiler.ir import Graph
from ...compiler.ops.numeric import numpy_dtype
from ...compiler.pipeline import EntryGraph
from ...compiler.types import TensorType
from ...errors import NervureError
from ..dsl.network import Network
from ..dsl.place import user_place
from ..dsl.promote import as_tensor
from ..dsl.reduce import mean, sum
from ..dsl.spec import BATCH
from ..dsl.tensor import Tensor, Weight
from ..dsl.trace import Held, Trace, leaves
from . import losses, metrics, optimizers, regularizers
from .classification import SparseCategoricalCrossentropy
from .gradient import differentiate, mask_arrays, trainable

Named = Mapping[str, Network] | Sequence[Network]
Stored = list[tuple[Weight, str]]  # weights that an artifact can change, and their names there
RATE, SAMPLE_WEIGHT = "learning_rate", "sample_weight"
_NAMING = "name them: @nv.network(name=...), or give a dictionary"


@dataclass(frozen=True)
class Training:
    """How a network is trained; ``nv.compile(net, training=nv.Training(...))``.

    ``loss``: a name, a ``losses.Loss`` or ``f(y_true, y_pred)``; a list or dictionary of them for several outputs, with
    ``loss_weights``. ``optimizer``: a name or an ``optimizers.Optimizer``. ``metrics``: names or functions, each of one
    number a sample. ``batch``: samples of one step. ``weighted`` adds the input ``sample_weight`` [batch]: the loss is
    then the sum of the samples' losses times their weights, else their mean. ``targets``: types of the targets where
    the loss does not say them, ``{"y": nv.Input(...)}``. ``seed`` starts the generator of dropout and noise.
    ``gradients`` adds the entries ``gradients`` and ``apply`` (data parallelism: what lies between is summed over the
    ranks). ``gradient_norms`` keeps each step's gradients in states ``gradient/<parameter>``, where ``Trainer`` watches
    their norms: one more copy of what is trained, and some per cent of the step of a net of small layers.
    """

    loss: Any
    optimizer: Any = "sgd"
    metrics: Sequence[Any] = ()
    loss_weights: Any = None
    batch: int = 32
    weighted: bool = False
    targets: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    gradients: bool = False
    gradient_norms: bool = False


@dataclass
class _Forward:
    """One trace of network, loss and metrics."""

    trace: Trace
    inputs: list[str]
    targets: list[str]
    loss: Tensor
    reports: dict[str, Tensor]  # losses of outputs and metrics, by name
    classes: dict[str, int]  # number of classes of each target that holds class numbers


def training_entries(
    net: Network, training: Training, dims: Sequence[Mapping[str, int]] = ({},), more: Named = ()
) -> tuple[list[EntryGraph], dict[str, Any]]:
    """The entry points of a network's training artifact, and the facts for its ``meta``. ``dims``: what the dimensions
    of ``infer`` are bound to, once for each plan. ``more``: networks for inference that share its params.
    ``NervureError``: network, loss and targets do not fit."""
    first = _forward(net, training, None, training_mode=True)
    held = _held(first.trace, net)
    optimizer = optimizers.get(training.optimizer)
    step = _train_step(net, training, optimizer, held)
    evaluate = _finish(_forward(net, training, held, training_mode=False))
    split_partly_trained(evaluate.trace.graph)
    entries = [EntryGraph(_infer(net, b, held), "infer", b if len(dims) > 1 else {}) for b in dims]
    entries += [EntryGraph(step.trace.graph, "train_step"), EntryGraph(evaluate.trace.graph, "evaluate")]
    entries += [EntryGraph(_infer(m, _known(m, dims[0]), held), name) for name, m in _by_name(more).items()]
    if training.gradients:
        entries += _two_halves(net, training, optimizer, held)
    return entries, {"training": _facts(training, optimizer, step)}


def _infer(net: Network, dims: Mapping[str, int], held: Mapping[int, Held]) -> Graph:
    graph = net.to_graph(dims, stored=held)
    split_partly_trained(graph)
    return graph


def check(training: Training) -> None:
    """Refuses what can be refused before shapes are known: unknown names of losses, optimizers, metrics."""
    if training.loss is None:
        raise NervureError("a loss is wanted", where=user_place().full, hint='for example loss="mse"')
    for given in leaves(training.loss):
        if given is not None:
            losses.get(given)
    optimizers.get(training.optimizer)
    for given in leaves(training.metrics):
        metrics.get(given)


def _facts(training: Training, optimizer: Any, step: _Forward) -> dict[str, Any]:
    return {
        "inputs": step.inputs,
        "targets": step.targets,
        "weighted": training.weighted,
        "batch": training.batch,
        "loss": "loss",
        "loss_function": _loss_name(training.loss),
        "classes": step.classes,
        "metrics": list(step.reports),
        "learning_rate": first_rate(optimizer.learning_rate),
        "optimizer": optimizer.name,
    }


def _classes(training: Training, targets: Mapping[str, Tensor], predicted: Any) -> dict[str, int]:
    """The number of classes of each target that holds class numbers, so that a label outside is found."""
    found = {}
    outputs = _named(predicted)
    chosen = list(leaves(training.loss))
    for i, (name, tensor) in enumerate(outputs.items()):
        given = chosen[i] if len(chosen) == len(outputs) else chosen[0]
        target = "y" if len(outputs) == 1 else f"y_{name}"
        one = None if given is None else losses.get(given)
        one = one.hard if isinstance(one, losses.Distillation) else one
        if isinstance(one, SparseCategoricalCrossentropy) and target in targets and one.ignore_class is None:
            found[target] = int(tensor.shape[one.axis])
    return found


def first_rate(learning_rate: Any) -> float:
    """A learning rate, or a schedule's at the first step."""
    return float(learning_rate(0) if callable(learning_rate) else learning_rate)


def _loss_name(loss: Any) -> str:
    if isinstance(loss, Mapping):
        loss = list(loss.values())
    if isinstance(loss, list | tuple):
        return "+".join(losses.get(part).name for part in loss if part is not None)
    return str(losses.get(loss).name)


def _held(trace: Trace, net: Network) -> dict[int, Held]:
    """How the artifact keeps each weight. Nothing to train is the user's mistake."""
    found = trace.held()
    if not any(h.kind == "param" for h in found.values()):
        raise NervureError(
            f"network {net.name!r} has nothing to train",
            why="all of its weights are frozen, or it has none" if net.weights else "it has no weights",
            hint="net.unfreeze('head*') trains the weights of these names",
        )
    return found


def _forward(net: Network, training: Training, held: Mapping[int, Held] | None, training_mode: bool) -> _Forward:
    """Traces network, loss and metrics; the caller goes on in ``trace``."""
    trace = Trace(net.name, net, training=training_mode, stored=held)
    types = net.types(_batched(net, training.batch))
    with trace.active():
        weight = None
        if training.weighted:
            weight = trace.input(SAMPLE_WEIGHT, TensorType("float32", (training.batch,)))
            trace.graph.inputs.clear()  # it goes behind the targets
            trace.sample_mask = weight > 0
        predicted = net.record(trace, types)
        targets = _targets(trace, training, predicted)
        loss, parts = losses.total(training.loss, _like(targets, predicted), predicted, training.loss_weights)
        reports = {} if len(parts) < 2 else {f"{n}_loss": _over(part, weight) for n, part in parts.items()}
        reports |= {n: _over(m, weight) for n, m in _measures(training, targets, predicted).items()}
        value = _over(loss, weight)
        penalty = regularizers.penalties(net, trace) if training_mode else None
        value = value if penalty is None else value + penalty
        if weight is not None:
            trace.graph.inputs.append(weight.value.node)
        classes = _classes(training, targets, predicted)
    return _Forward(trace, list(types), list(targets), value, reports, classes)


def _batched(net: Network, batch: int) -> dict[str, int]:
    named = {d for spec in net.inputs.values() if spec is not None for d in spec.shape if isinstance(d, str)}
    return {BATCH: batch} if BATCH in named else {}


def _over(per_sample: Tensor, weight: Tensor | None) -> Tensor:
    """A value for each sample as one number: the mean, or the weighted sum."""
    return mean(per_sample) if weight is None else sum(per_sample * weight)


def _targets(trace: Trace, training: Training, predicted: Any) -> dict[str, Tensor]:
    """The inputs that hold the targets: ``y`` for one output, ``y_<output>`` for several."""
    given = dict(training.targets)
    if given:
        return {n: trace.input(n, _bound(spec, training.batch)) for n, spec in given.items()}
    outputs = _named(predicted)
    chosen = training.loss
    if isinstance(chosen, str) or not isinstance(chosen, Mapping | list | tuple):
        one = losses.get(chosen)
        if one.outputs > 1:
            kind = one.target(next(iter(outputs.values())).type)
            return {} if kind is None else {"y": trace.input("y", kind)}
        each: dict[str, Any] = dict.fromkeys(outputs, one)
    else:
        each = dict(chosen) if isinstance(chosen, Mapping) else dict(zip(outputs, chosen, strict=False))
    found = {}
    for name, tensor in outputs.items():
        if each.get(name) is None:
            continue
        kind = losses.get(each[name]).target(tensor.type)
        if kind is not None:
            label = "y" if len(outputs) == 1 else f"y_{name}"
            found[label] = trace.input(label, kind)
    return found


def _bound(spec: Any, batch: int) -> TensorType:
    return spec if isinstance(spec, TensorType) else spec.bound({BATCH: batch})


def _named(predicted: Any) -> dict[str, Tensor]:
    if isinstance(predicted, Tensor):
        return {"output": predicted}
    if isinstance(predicted, Mapping):
        return dict(predicted)
    return {f"output_{i}": p for i, p in enumerate(leaves(predicted))}


def _like(targets: Mapping[str, Tensor], predicted: Any) -> Any:
    """The targets in the form of the predictions: a tensor, or a dictionary by output."""
    if not targets:
        return None
    if list(targets) == ["y"]:
        return targets["y"]
    short = {n.removeprefix("y_"): t for n, t in targets.items()}
    return short if isinstance(predicted, Mapping) else [short.get(n) for n in _named(predicted)]


def _measures(training: Training, targets: Mapping[str, Tensor], predicted: Any) -> dict[str, Tensor]:
    """The metrics, for each output that has a target."""
    outputs = _named(predicted)
    found: dict[str, Tensor] = {}
    for given in [training.metrics] if isinstance(training.metrics, str) else training.metrics:
        for name, tensor in outputs.items():
            target = targets.get("y" if len(outputs) == 1 else f"y_{name}")
            if target is None:
                continue
            metric = metrics.get(given)
            label = given if isinstance(given, str) else metric.name
            found[label if len(outputs) == 1 else f"{name}_{label}"] = metric(target, tensor)
    return found


def _finish(forward: _Forward) -> _Forward:
    """Writes down the outputs: the loss, then the reports."""
    trace = forward.trace
    for name, tensor in {"loss": forward.loss, **forward.reports}.items():
        trace.graph.output(trace.resolve(tensor.value), name)
    trace.graph.prune()
    return forward


def _seed(trace: Trace, seed: int) -> None:
    """The generator's first state."""
    for key in trace.graph.find("state"):
        node = trace.graph.node(key)
        if node.names[0] == "generator":
            value = np.array([seed & 0xFFFFFFFF, 0], np.uint32)
            value.flags.writeable = False
            trace.graph.set_node(key, attrs={"value": value})


def _train_step(net: Network, training: Training, optimizer: Any, held: Mapping[int, Held]) -> _Forward:
    forward = _forward(net, training, held, training_mode=True)
    trace = forward.trace
    with trace.active():
        params = _params(net, trace)
        rate = trace.input(RATE, TensorType("float32", ()))
        grads = differentiate(trace, forward.loss, [t for _, t in params])
        optimizer.apply(trace, params, grads, rate, mask_arrays(trace, trainable(net)))
        if training.gradient_norms:
            _keep_gradients(trace, params, grads)
    _seed(trace, training.seed)
    return _finish(forward)


def _keep_gradients(trace: Trace, params: Sequence[tuple[str, Tensor]], grads: Sequence[Tensor]) -> None:
    """Gradients as states. Those are written where they are computed: a norm inside of the step would part each
    gradient from its parameter's update, which is the epilogue of its kernel."""
    for (name, _), g in zip(params, grads, strict=True):
        held = trace.state(f"gradient/{name}", np.zeros(g.type.dims, numpy_dtype(g.dtype)))
        trace.bind(held, g)


def _params(net: Network, trace: Trace) -> list[tuple[str, Tensor]]:
    """The trained weights that the trace used, by name."""
    used = {id(w) for w, _ in trace.weights()}
    tensors = [trace.param(w) for w in trainable(net) if id(w) in used]
    return [(trace.graph.tensor_name(t.value), t) for t in tensors]


def _two_halves(net: Network, training: Training, optimizer: Any, held: Mapping[int, Held]) -> list[EntryGraph]:
    """``gradients``: the step up to the gradients, which are outputs; ``apply``: the update from given gradients."""
    forward = _forward(net, training, held, training_mode=True)
    trace = forward.trace
    with trace.active():
        params = _params(net, trace)
        grads = differentiate(trace, forward.loss, [t for _, t in params])
    masks = mask_arrays(trace, trainable(net))
    forward.reports |= {f"gradient/{name}": grad for (name, _), grad in zip(params, grads, strict=True)}
    _finish(forward)
    _seed(trace, training.seed)
    update = Trace(net.name, net, training=True, stored=held)
    with update.active():
        named = {name: trace.graph.node(t.value) for name, t in params}
        stored = [(n, Tensor(update, update.graph.param(node.array, n, node.origin))) for n, node in named.items()]
        given = [update.input(f"gradient/{n}", node.types[0]) for n, node in named.items()]
        rate = update.input(RATE, TensorType("float32", ()))
        optimizer.apply(update, stored, given, rate, masks)
    return [EntryGraph(trace.graph, "gradients"), EntryGraph(update.graph, "apply")]


def step_entries(
    steps: Named, nets: Sequence[Network], dims: Mapping[str, int], entries: Named = ()
) -> tuple[list[EntryGraph], Stored]:
    """Entry points of a user's own, and the weights that they change: ``steps`` are networks in training mode whose
    functions call ``nv.minimize`` or ``nv.assign`` (a GAN has two); ``nets`` (``infer``) and ``entries`` are networks
    as they are at inference. All share the params and states of the networks that they call."""
    trained, plain = _by_name(steps), {"infer": nets[0]} if len(nets) == 1 else _by_name(nets)
    more = _by_name(entries)
    twice = sorted(plain.keys() & (trained.keys() | more.keys()) | (trained.keys() & more.keys()))
    if twice:
        raise NervureError(f"two entry points are named {twice[0]!r}", where=user_place().full, hint=_NAMING)
    plain |= more
    held: dict[int, Held] = {}
    weights: dict[int, Weight] = {}
    for step in [*trained.values(), *trained.values()]:  # a second time, when it is known what any of them trains
        _merge(held, weights, _own_step(step, dims, None))
    for net in plain.values():
        _merge(held, weights, net.traced(_known(net, dims)))
    made = [EntryGraph(_pruned(_own_step(step, dims, held)), name) for name, step in trained.items()]
    made += [EntryGraph(_infer(net, _known(net, dims), held), name) for name, net in plain.items()]
    return made, [(weights[key], h.name) for key, h in held.items() if h.kind != "const"]


def _by_name(nets: Named) -> dict[str, Network]:
    found: dict[str, Network] = {}
    for name, net in nets.items() if isinstance(nets, Mapping) else [(net.name, net) for net in nets]:
        if name == "refresh":
            why = "the library runs the entry point of that name by itself, where params have changed"
            raise NervureError("no entry point can be named 'refresh'", where=user_place().full, why=why, hint=_NAMING)
        if found.setdefault(name, net) is not net:
            raise NervureError(f"two entry points are named {name!r}", where=user_place().full, hint=_NAMING)
    return found


def _merge(held: dict[int, Held], weights: dict[int, Weight], trace: Trace) -> None:
    """Adds what a trace says of its weights: one that any of them changes is no constant."""
    weights |= {id(weight): weight for weight, _ in trace.weights()}
    taken = {h.name for h in held.values()}
    for key, found in trace.held().items():
        if key not in held:
            name = f"{trace.graph.name}.{found.name}" if found.name in taken else found.name
            held[key] = found._replace(name=name)
        elif held[key].kind == "const":
            held[key] = found._replace(name=held[key].name)


def _known(net: Network, dims: Mapping[str, int]) -> dict[str, int]:
    named = {d for spec in net.inputs.values() if spec is not None for d in spec.shape if isinstance(d, str)}
    return {n: d for n, d in dims.items() if n in named}


def _own_step(step: Network, dims: Mapping[str, int], held: Mapping[int, Held] | None) -> Trace:
    trace = Trace(step.name, step, training=True, stored=held)
    with trace.active():
        result = step.record(trace, step.types(_known(step, dims)))
        for name, tensor in _named(result).items():
            trace.graph.output(trace.resolve(as_tensor(tensor).value), name)
    return trace


def _pruned(trace: Trace) -> Graph:
    trace.graph.prune()
    return trace.graph
