"""Losses with their gradients, and updates of optimizers, compiled: against the reference interpreter."""

from __future__ import annotations

import re
from pathlib import Path

import nervure as nv
import numpy as np
import pytest
from nervure import targets
from nervure.compiler.autodiff import gradients, training_form
from nervure.compiler.interpret import interpret
from nervure.compiler.ir import Graph
from nervure.compiler.pipeline import EntryGraph, Options, compile_entries
from nervure.compiler.types import TensorType
from nervure.frontends.dsl.tensor import Tensor
from nervure.frontends.dsl.trace import Trace
from nervure.runtime.session import load

pytestmark = pytest.mark.slow
RNG = np.random.default_rng(11)
BATCH, CLASSES = 12, 7


def _losses() -> dict[str, tuple[Graph, list[np.ndarray]]]:
    """Every named loss of compiled shapes, on raw outputs and behind the activation that it looks behind."""
    last = {"categorical_crossentropy": nv.softmax, "sparse_categorical_crossentropy": nv.softmax}
    last |= {"kl_divergence": nv.softmax, "binary_crossentropy": nv.sigmoid, "poisson": nv.exp}
    made = {}
    for name in sorted({nv.losses.get(n).name for n in nv.losses.NAMES}):
        loss = nv.losses.get(name)
        for form, before in {"": None, "_last": last.get(name)}.items():
            if form and before is None:
                continue
            positive = before is None and name in (*last, "mean_squared_logarithmic_error")
            low, high = (0.05, 0.95) if positive else (-2.0, 2.0)
            count = loss.outputs
            feeds = [RNG.uniform(low, high, (BATCH, CLASSES)).astype(np.float32) for _ in range(count)]
            with Trace(name).active() as trace:
                inputs = [trace.input(f"p{i}", TensorType("float32", x.shape)) for i, x in enumerate(feeds)]
                kind = loss.target(inputs[0].type)
                t = None if kind is None else trace.input("y", kind)
                outputs = [x if before is None else before(x) for x in inputs]
                value = loss(t, outputs if count > 1 else outputs[0])
                trace.graph.output(value.value, "loss")
                total = nv.mean(value)
                replaced = training_form(trace.graph, total.value, [x.value for x in inputs])
                assert not replaced
                for i, grad in enumerate(gradients(trace.graph, total.value, [x.value for x in inputs])):
                    trace.graph.output(grad, f"grad{i}")
            if kind is not None:
                labels = kind.dtype == "int32"
                y = RNG.integers(0, CLASSES, kind.dims) if labels else RNG.uniform(0.1, 0.9, kind.dims)
                if len(kind.dims) == 1 and not labels:
                    y = RNG.integers(0, 2, kind.dims)
                feeds.append(y.astype(kind.dtype))
            trace.graph.prune()
            made[name + form] = (trace.graph, feeds)
    return made


def test_losses_and_their_gradients(tmp_path: Path) -> None:
    made = _losses()
    entries = [EntryGraph(graph, name) for name, (graph, _) in made.items()]
    compile_entries(entries, targets.get("host"), tmp_path / "losses.so", Options(check=True))
    session = load(tmp_path / "losses.so")
    for name, (graph, feeds) in made.items():
        names = [graph.node(n).names[0] for n in graph.inputs]
        got = session.run(None, dict(zip(names, feeds, strict=True)), entry=name)
        for y, ref in zip(got, interpret(graph, feeds), strict=True):
            assert np.isfinite(ref).all() and np.abs(ref).max() > 1e-4, name
            np.testing.assert_allclose(y, ref, rtol=1e-4, atol=3e-6 * np.abs(ref).max(), err_msg=name)


O = nv.optimizers  # noqa: E741
UPDATES = {
    "sgd": O.SGD(0.1),
    "nesterov": O.SGD(0.1, momentum=0.9, nesterov=True, weight_decay=0.1, clipvalue=0.5),
    "adam": O.Adam(0.1),
    "amsgrad": O.Adam(0.1, amsgrad=True, weight_decay=0.1, global_clipnorm=1.0),
    "adamw": O.AdamW(0.1, ema_momentum=0.9, exclude_from_weight_decay="bias"),
    "accumulated": O.Adam(0.1, accumulate=2, ema_momentum=0.9, clipnorm=1.0),
    "rmsprop": O.RMSprop(0.1, centered=True, momentum=0.9),
    "adagrad": O.Adagrad(0.1),
    "adadelta": O.Adadelta(1.0),
    "lion": O.Lion(0.1, weight_decay=0.1),
}
PARAMS = {"dense.weight": RNG.normal(0, 1, (9, 21)).astype(np.float32), "dense.bias": np.zeros(21, np.float32)}


def _update(optimizer: O.Optimizer) -> Graph:
    """One update where the weight's gradient is a product, so that the update becomes its epilogue."""
    with Trace("update").active() as trace:
        stored = [(name, Tensor(trace, trace.graph.param(w, name))) for name, w in PARAMS.items()]
        x = trace.input("x", TensorType("float32", (BATCH, 9)))
        g = trace.input("g", TensorType("float32", (BATCH, 21)))
        grads = [nv.transpose(x) @ g, nv.sum(g, 0)]
        trace.graph.output(nv.mean(g).value, "loss")
        optimizer.apply(trace, stored, grads, trace.input("learning_rate", TensorType("float32", ())))
    trace.graph.check()
    return trace.graph


def test_updates_of_optimizers(tmp_path: Path) -> None:
    graphs = {name: _update(optimizer) for name, optimizer in UPDATES.items()}
    entries = [EntryGraph(graph, name) for name, graph in graphs.items()]
    compile_entries(entries, targets.get("host"), tmp_path / "updates.so", Options(check=True))
    session = load(tmp_path / "updates.so")
    for name, graph in graphs.items():
        session.restore()
        session.reset()
        state: dict[str, np.ndarray] = {}
        for i in range(5):
            x, g = (RNG.normal(0, 0.3, (BATCH, size)).astype(np.float32) for size in (9, 21))
            rate = np.float32(0.1 / (i + 1))
            interpret(graph, [x, g, rate], state)
            session.run(None, {"x": x, "g": g, "learning_rate": rate}, entry=name)
            found = {**session.params(), **session.states()}
            assert set(state) <= set(found)
            for key, want in state.items():
                if name != "lion" or not re.match("dense", key):  # a sign turns where rounding does
                    np.testing.assert_allclose(found[key], want, rtol=2e-4, atol=2e-5, err_msg=f"{name} {key}")
