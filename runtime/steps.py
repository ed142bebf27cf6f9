"""Entry points that take batches, bound to their buffers: one call runs a step and gives its loss and metrics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import NervureError
from .arrays import host_dtype
from .artifact import Artifact, Port
from .data import Feed, Signature
from .parallel import Flat, World, check_float32
from .session import Session

RATE, WEIGHTS = "learning_rate", "sample_weight"


def training_facts(artifact: Artifact) -> dict[str, Any]:
    """What the artifact says about its training; ``NervureError`` where it has none."""
    facts = artifact.meta.get("training")
    if not isinstance(facts, dict):
        raise NervureError(
            "this model was compiled for inference only",
            where=str(artifact.path),
            hint="compile it with training=..., or net.compile(loss=..., optimizer=...)",
        )
    return facts


def signature(artifact: Artifact, facts: dict[str, Any]) -> Signature:
    """The batch that ``train_step`` (else ``evaluate``) takes."""
    entry = next((artifact.entry(e.name) for e in artifact.entries if e.function in ("train_step", "evaluate")), None)
    if entry is None:
        raise NervureError("the model has no entry point to train", where=str(artifact.path))
    ports = {p.name: p for p in entry.inputs}
    lacking = [n for n in (*facts["inputs"], *facts["targets"]) if n not in ports]
    if lacking:
        raise NervureError("the model's description is broken", where=str(artifact.path), why=f"no input {lacking[0]}")
    targets = tuple(ports[n] for n in facts["targets"])
    classes = facts.get("classes") or {}
    if isinstance(classes, int):
        classes = {p.name: classes for p in targets}
    whole = {p.name for p in targets if np.dtype(p.dtype).kind in "iu"}
    return Signature(
        inputs=tuple(ports[n] for n in facts["inputs"]),
        targets=targets,
        batch=int(facts["batch"]),
        weighted=bool(facts["weighted"]),
        classes={n: int(c) for n, c in classes.items() if n in whole},
    )


class Step:
    """``train_step`` or ``evaluate`` with its buffers. ``names``: the loss, then the metrics, as ``run`` gives them."""

    def __init__(self, session: Session, entry: str, facts: dict[str, Any], taken: Signature, world: World) -> None:
        self.names = [str(facts["loss"]), *map(str, facts["metrics"])]
        self.feed = Feed(taken, world)
        self.rate = np.zeros((), np.float32)
        self._world = world
        self._apply = None
        known = {e.function for e in session.artifact.entries}
        exchange: Flat | None = None
        if entry == "train_step" and world.size > 1:
            exchange = _gradients(session.artifact, self.names, known)
            entry = "gradients"
        elif entry not in known:
            raise NervureError(f"the model has no entry point {entry!r}", where=str(session.artifact.path))
        self._values = exchange or Flat({n: () for n in self.names})
        ports = session.get_inputs(entry)
        self._run = session.binding(self._inputs(ports), self._values.arrays, entry=entry)
        if exchange is not None:
            ports = session.get_inputs("apply")
            self._apply = session.binding(
                {p.name: exchange.arrays.get(p.name, self.rate) for p in ports}, entry="apply"
            )
        self._results = [self._values.arrays[n] for n in self.names]

    def _inputs(self, ports: Sequence[Port]) -> dict[str, np.ndarray]:
        there: dict[str, np.ndarray] = {**self.feed.arrays, RATE: self.rate}
        if self.feed.weights is not None:
            there[WEIGHTS] = self.feed.weights
        return {p.name: there[p.name] for p in ports if p.name in there}

    def run(self) -> list[float]:
        """Runs on what lies in the buffers: the loss and the metrics of the batch (of all ranks)."""
        self._run()
        if self._world.size > 1:
            self._world.mean(self._values.block)
            if self._apply is not None:
                self._apply()
        return [r.item() for r in self._results]


def _gradients(artifact: Artifact, names: Sequence[str], known: set[str]) -> Flat:
    """Loss, metrics and all gradients in one block."""
    if not {"gradients", "apply"} <= known:
        raise NervureError(
            "this model cannot be trained on several ranks",
            where=str(artifact.path),
            why="its gradients stay inside of the step",
            hint="compile it for data parallelism: entry points gradients and apply",
        )
    ports = {p.name: p for p in artifact.entry("gradients").outputs}
    needed = [*names, *(p.name for p in artifact.entry("apply").inputs if p.name != RATE)]
    for name in needed:
        check_float32(name, ports[name].dtype)
    return Flat({name: ports[name].shape for name in needed})


class Predictor:
    """``infer`` for any number of samples: the compiled batch sizes in turn, the last one padded."""

    def __init__(self, session: Session) -> None:
        artifact = session.artifact
        entries = [e for e in artifact.entries if e.function == "infer"]
        if not entries:
            raise NervureError("the model has no entry point 'infer'", where=str(artifact.path))
        self._session = session
        self._entries = sorted(entries, key=lambda e: e.inputs[0].shape[0] if e.inputs[0].shape else 0)
        self._ready: dict[str, tuple[Feed, Any]] = {}
        self.inputs = self._entries[-1].inputs
        batch = {p.shape[:1] for e in self._entries[-1:] for p in (*e.inputs, *e.outputs)}
        if len(batch) != 1 or batch == {()}:
            raise NervureError(
                "inputs and outputs of the model do not all count samples along their first axis",
                where=str(artifact.path),
                hint="use session.run",
            )
        self.outputs = self._entries[-1].outputs

    def run(self, found: dict[str, np.ndarray]) -> list[np.ndarray]:
        """The outputs for checked columns."""
        samples = len(next(iter(found.values())))
        results = [np.empty((samples, *p.shape[1:]), host_dtype(p.dtype)) for p in self.outputs]
        at = 0
        while at < samples:
            left = samples - at
            entry = next((e for e in self._entries if e.inputs[0].shape[0] >= left), self._entries[-1])
            feed, call = self._bound(entry)
            part = min(entry.inputs[0].shape[0], left)
            for name, array in found.items():
                buffer = feed.arrays[name]
                buffer[:part] = array[at : at + part]
                if part < len(buffer):
                    buffer[part:] = buffer[0]
            call()
            for result, output in zip(results, call.outputs, strict=True):
                result[at : at + part] = output[:part]
            at += part
        return results

    def _bound(self, entry: Any) -> tuple[Feed, Any]:
        if entry.name not in self._ready:
            feed = Feed(Signature(entry.inputs, (), entry.inputs[0].shape[0], False))
            self._ready[entry.name] = feed, self._session.binding(feed.arrays, entry=entry.name)
        return self._ready[entry.name]
