"""Training a pruned network on: what was pruned stays zero, the dense model may teach."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..compiler.ir import Graph
from ..errors import NervureError
from ..runtime.observer import Callback, Logs
from .calibration import Labelled
from .prune_data import arrays
from .prune_settings import Tuning

END = 0.01  # of the learning rate, where the cosine ends
SOME = 0.9  # a weight of which less is not zero was sparse before, and stays so


class _Bar(Callback):
    """Tells the progress bar how far the training is."""

    def __init__(self, tell: Callable[[str, int, int], None], epochs: int) -> None:
        self.tell, self.epochs, self.at = tell, epochs, 0

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        self.at = epoch

    def on_train_batch_end(self, batch: int, logs: Logs = None) -> None:
        steps = int(self.params.get("steps") or 0)
        self.tell(f"training, epoch {self.at + 1} of {self.epochs}", batch + 1, steps)


def tune(
    graph: Graph,
    masks: Mapping[str, np.ndarray],
    data: Labelled,
    how: Tuning,
    epochs: int,
    seed: int,
    teacher: Graph | None,
    tell: Callable[[str, int, int], None],
) -> tuple[Graph, dict[str, Any]]:
    """The graph with trained weights, and what the training did. ``masks``: by weight name, what stays zero (False)."""
    from .. import schedules
    from . import training as t
    from .cli.learning import guess_loss
    from .onnx import load_network, to_model
    from .training.pruning import masked, masks_of_zeros

    started = time.perf_counter()
    net = load_network(to_model(graph).SerializeToString(), name=graph.name)
    zeros = {n: m for n, m in masks_of_zeros(net).items() if m.mean() < SOME}
    masked(net, {**zeros, **masks})
    x, y = arrays(data)
    loss, why, metrics = guess_loss(net, y)
    steps = epochs * -(-len(y) // min(how.batch_size, len(y)))
    rate = schedules.CosineDecay(how.learning_rate, decay_steps=steps, alpha=END)
    net.compile(t.optimizers.Adam(rate), loss if teacher is None else _taught(loss, teacher), metrics, seed=seed)
    given = x if len(x) > 1 else next(iter(x.values()))
    history = net.fit(given, y, how.batch_size, epochs=epochs, verbose=0, callbacks=[_Bar(tell, epochs)])
    found = {n: list(map(float, v)) for n, v in history.history.items()}
    if not all(np.isfinite(v).all() for v in found.values()):
        raise NervureError(
            "the training diverged", why="the loss is not finite", hint="a smaller learning rate; check the data"
        )
    facts = {
        "epochs": epochs,
        "samples": len(y),
        "batch_size": how.batch_size,
        "learning_rate": how.learning_rate,
        "loss": loss.name,
        "loss_why": why,
        "distilled": teacher is not None,
        "history": found,
        "seconds": time.perf_counter() - started,
    }
    return with_weights(graph, net), facts


def _taught(loss: Any, teacher: Graph) -> Any:
    """The loss with the dense model as a teacher of classes."""
    from . import training as t
    from .onnx import to_model

    if "crossentropy" not in loss.name:
        raise NervureError(
            "the dense model teaches classes, and y holds none",
            why=f"the loss is {loss.name}",
            hint="leave out distill; or y as class numbers",
        )
    return t.losses.Distillation(to_model(teacher).SerializeToString(), loss)


def with_weights(graph: Graph, net: Any) -> Graph:
    """The graph with the weights of a network that was made of it."""
    made = graph.copy()
    trained = {name: weight.array for name, weight in net.named_weights()}
    for key in made.find("const"):
        node = made.node(key)
        name = node.names[0]
        if name in trained and trained[name].shape == node.array.shape:
            value = np.array(trained[name], node.array.dtype, order="C")
            value.flags.writeable = False
            made.set_node(key, attrs={**node.attrs, "value": value})
    return made
