"""A training artifact written out by hand: softmax regression with momentum, a running mean and a counter as states."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from nervure import targets
from nervure.compiler.ir import Graph, Value
from nervure.compiler.pipeline import EntryGraph, compile_entries
from nervure.compiler.types import TensorType

F32 = "float32"
FEATURES, CLASSES, MOMENTUM = 12, 4, 0.9
RNG = np.random.default_rng(7)
WEIGHT = (0.1 * RNG.standard_normal((FEATURES, CLASSES))).astype(F32)
BIAS = np.zeros(CLASSES, F32)


class Builder:
    """Graphs over the same params and states."""

    def __init__(self, name: str, batch: int, weighted: bool) -> None:
        self.g, self.batch, self.weighted = Graph(name), batch, weighted
        self.x = self.g.input("x", TensorType(F32, (batch, FEATURES)))
        self.w, self.b = self.g.param(WEIGHT, "dense.weight"), self.g.param(BIAS, "dense.bias")

    def op(self, name: str, *args: Value, **attrs: Any) -> Value:
        return self.g.add(name, *args, **attrs)

    def number(self, value: float) -> Value:
        return self.g.const(np.float32(value), "number")

    def logits(self) -> Value:
        return self.op("add", self.op("matmul", self.x, self.w), self.b)

    def losses(self) -> list[Value]:
        """Loss and accuracy as outputs; the gradients of weight and bias."""
        y = self.g.input("y", TensorType("int32", (self.batch,)))
        each = self.g.const(np.full(self.batch, 1 / self.batch, F32), "each")
        weights = self.g.input("sample_weight", TensorType(F32, (self.batch,))) if self.weighted else each
        logits = self.logits()
        hot = self.op("one_hot", y, self.g.const(np.array([0, 1], F32), "values"), depth=CLASSES, axis=-1)
        picked = self.op("mul", self.op("log_softmax", logits, axis=1), hot)
        nats = self.op("neg", self.op("reduce_sum", picked, axes=(1,)))
        loss = self.op("reduce_sum", self.op("mul", nats, weights), axes=(0,))
        best = self.op("cast", self.op("argmax", logits, axis=1), to="int32")
        right = self.op("cast", self.op("equal", best, y), to="float32")
        accuracy = self.op("reduce_sum", self.op("mul", right, weights), axes=(0,))
        self.g.output(loss, "loss")
        self.g.output(accuracy, "accuracy")
        error = self.op("mul", self.op("sub", self.op("softmax", logits, axis=1), hot), self.column(weights))
        turned = self.op("transpose", self.x, perm=(1, 0))
        return [self.op("matmul", turned, error), self.op("reduce_sum", error, axes=(0,))]

    def column(self, value: Value) -> Value:
        return self.op("reshape", value, shape=(self.batch, 1))

    def statistics(self) -> None:
        running = self.g.state(np.zeros(FEATURES, F32), "norm.running_mean")
        mean = self.op("reduce_mean", self.x, axes=(0,))
        parts = [self.op("mul", v, self.number(f)) for v, f in ((running, 0.9), (mean, 0.1))]
        self.g.bind(running, self.op("add", *parts))
        generator = self.g.state(np.array([3, 0], np.uint32), "generator")
        self.g.bind(generator, self.op("add", generator, self.g.const(np.array([0, 1], np.uint32), "one")))

    def update(self, grads: list[Value]) -> None:
        rate = self.g.input("learning_rate", TensorType(F32, ()))
        for name, w, grad in zip(("dense.weight", "dense.bias"), (self.w, self.b), grads, strict=True):
            shape = self.g.type(w).dims
            velocity = self.g.state(np.zeros(shape, F32), f"optimizer/{name}/momentum")
            moved = self.op("add", self.op("mul", velocity, self.number(MOMENTUM)), grad)
            self.g.bind(velocity, moved)
            self.g.bind(w, self.op("sub", w, self.op("mul", moved, rate)))


def entries(batch: int, weighted: bool) -> list[EntryGraph]:
    infer = Builder("infer", batch, weighted)
    infer.g.output(infer.op("softmax", infer.logits(), axis=1), "probabilities")
    step = Builder("train_step", batch, weighted)
    step.update(step.losses())
    step.statistics()
    evaluate = Builder("evaluate", batch, weighted)
    evaluate.losses()
    apart = Builder("gradients", batch, weighted)
    grads = apart.losses()
    for name, grad in zip(("dense.weight", "dense.bias"), grads, strict=True):
        apart.g.output(grad, f"gradient/{name}")
    apart.statistics()
    apply = Builder("apply", batch, weighted)
    apply.g = Graph("apply")
    apply.w, apply.b = apply.g.param(WEIGHT, "dense.weight"), apply.g.param(BIAS, "dense.bias")
    given = [
        apply.g.input(f"gradient/{n}", TensorType(F32, a.shape))
        for n, a in (("dense.weight", WEIGHT), ("dense.bias", BIAS))
    ]
    apply.update(given)
    builders = {"infer": infer, "train_step": step, "evaluate": evaluate, "gradients": apart, "apply": apply}
    return [EntryGraph(b.g, name) for name, b in builders.items()]


def compile_training(out: Path, batch: int = 8, weighted: bool = True) -> Path:
    """The library at ``out``."""
    facts = {
        "inputs": ["x"],
        "targets": ["y"],
        "weighted": weighted,
        "batch": batch,
        "loss": "loss",
        "metrics": ["accuracy"],
        "learning_rate": 0.1,
        "optimizer": "SGD",
        "classes": CLASSES,
    }
    compile_entries(entries(batch, weighted), targets.get("host"), out, meta={"training": facts})
    return out


def samples(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Points around one centre for each class, and their labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, count).astype(np.int32)
    centres = np.random.default_rng(99).standard_normal((CLASSES, FEATURES))
    return (centres[labels] + 0.8 * rng.standard_normal((count, FEATURES))).astype(F32), labels


class Oracle:
    """The same training in numpy and float64."""

    def __init__(self) -> None:
        self.w, self.b = WEIGHT.astype(np.float64), BIAS.astype(np.float64)
        self.vw, self.vb = np.zeros_like(self.w), np.zeros_like(self.b)

    def forward(self, x: np.ndarray) -> np.ndarray:
        logits = x @ self.w + self.b
        raised = np.exp(logits - logits.max(1, keepdims=True))
        return raised / raised.sum(1, keepdims=True)

    def measure(self, x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
        p = self.forward(x)
        nats = -np.log(p[np.arange(len(y)), y])
        return float((weights * nats).sum()), float((weights * (p.argmax(1) == y)).sum())

    def step(self, x: np.ndarray, y: np.ndarray, weights: np.ndarray, rate: float) -> tuple[float, float]:
        """``weights`` sum to one."""
        found = self.measure(x, y, weights)
        error = (self.forward(x) - np.eye(CLASSES)[y]) * weights[:, None]
        self.vw, self.vb = MOMENTUM * self.vw + x.T @ error, MOMENTUM * self.vb + error.sum(0)
        self.w, self.b = self.w - rate * self.vw, self.b - rate * self.vb
        return found
