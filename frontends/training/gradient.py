"""``nv.grad`` and ``nv.minimize``: differentiation inside a traced step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...compiler.autodiff import gradients, split_partly_trained, training_form
from ...errors import NervureError
from ..dsl.place import user_place
from ..dsl.promote import as_tensor
from ..dsl.tensor import Tensor, Weight
from ..dsl.trace import Trace, current, fail


def grad(loss: Tensor, wrt: Any) -> Any:
    """The gradient of ``loss`` (a number: shape []) for a tensor or weight, or a list of them for a list.

    Written inside a network or step; the operations are recorded like any others, so that gradients of gradients work
    where the operators on the way have them. Raises ``NervureError`` where none goes through an operator.
    """
    single = isinstance(wrt, Tensor | Weight)
    tensors = [as_tensor(w) for w in ([wrt] if single else wrt)]
    found = differentiate(current(), as_tensor(loss), tensors)
    return found[0] if single else found


def differentiate(trace: Trace, loss: Tensor, wrt: Sequence[Tensor]) -> list[Tensor]:
    """``grad`` for tensors of ``trace``."""
    if loss.shape != ():
        raise fail(f"a loss must be one number, got the shape {list(loss.shape)}", hint="nv.mean(loss)")
    graph = trace.graph
    trace.replaced.update(split_partly_trained(graph))
    start, ends = trace.resolve(loss.value), [trace.resolve(t.value) for t in wrt]
    trace.replaced.update(training_form(graph, start, ends))
    start = trace.resolve(start)
    return [Tensor(trace, v) for v in gradients(graph, start, ends)]


def minimize(loss: Tensor, weights: Any, optimizer: Any, learning_rate: Any = None) -> None:
    """One step of ``optimizer`` (an object or a name, see ``nv.optimizers``) down the gradient of ``loss``.

    ``weights``: a network, layer or list of weights; those that are frozen or not trainable stay as they are.
    ``learning_rate``: a tensor, such as an input of the step; a number, or None for the optimizer's own.
    """
    from . import optimizers

    trace = current()
    chosen = optimizers.get(optimizer)
    held = trainable(weights)
    if not held:
        raise NervureError("there is nothing to train", where=user_place().full, hint="all weights are frozen")
    tensors = [trace.param(w) for w in held]
    grads = differentiate(trace, as_tensor(loss), tensors)
    named = [(trace.graph.tensor_name(t.value), t) for t in tensors]
    own = chosen.learning_rate(0) if callable(chosen.learning_rate) else chosen.learning_rate
    rate = as_tensor(own if learning_rate is None else learning_rate, "float32")
    trace.scope = trace.graph.unique(trace.frames[0].name)  # steps of one artifact keep their moments apart
    chosen.apply(trace, named, grads, rate, mask_arrays(trace, held))
    trace.scope = ""


def mask_arrays(trace: Trace, weights: Sequence[Weight]) -> dict[str, np.ndarray]:
    """The masks of those weights that have one, by the names of the params in a trace; of a weight that is trained in
    part, that part's."""
    used = {id(w) for w, _ in trace.weights()}
    masked = [w for w in weights if w.mask is not None and id(w) in used]
    return {trace.graph.tensor_name(trace.param(w).value): w.mask[w.part] for w in masked if w.mask is not None}


def trainable(weights: Any) -> list[Weight]:
    """The weights of a block or a list (of weights and blocks) that a step may change, each once."""
    if isinstance(weights, Weight):
        weights = [weights]
    if hasattr(weights, "named_weights"):
        weights = [w for _, w in weights.named_weights()]
    found: dict[int, Weight] = {}
    for item in weights:
        for weight in [item] if isinstance(item, Weight) else trainable(item):
            if weight.trained:
                found[id(weight)] = weight
    return list(found.values())
