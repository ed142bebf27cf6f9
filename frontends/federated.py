"""Federated learning (``nv.federated``): devices train one network on data that never leave them.

A ``Client`` is a device: it gets the weights, trains on its own data and sends back what it has then. ``Averaging`` is
what the server does with that (FedAvg, McMahan et al. 2017): it checks each update before it is averaged, leaves out
those that it cannot trust, and goes on with the others. Clipping and noise make it DP-FedAvg (McMahan et al. 2018).
Weights travel as safetensors, which hold numbers and nothing that could run.

This needs numpy and safetensors alone. ``Strategy``, ``client_app`` and ``LocalGrid`` make Flower's parts of them (the
package flwr, ``pip install 'nervure[federated]'``), for a fleet of devices or for all of them in one process.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import MissingTool, NervureError, missing_package
from ..runtime.trainer import Trainer

Weights = Mapping[str, np.ndarray]
log = logging.getLogger("nervure.federated")
_FLOWER = ("LocalGrid", "Strategy", "client_app")
_ROUND_STATES = ("optimizer/", "ema/")  # a client's round starts without those of its last one

__all__ = ["Averaging", "Client", "Refused", "Round", "Update", "epsilon", "pack", "unpack"]


def __getattr__(name: str) -> Any:
    if name not in _FLOWER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from . import flower
    except ModuleNotFoundError as error:
        raise missing_package(f"nv.federated.{name}", error) from error
    return getattr(flower, name)


class Refused(NervureError):
    """An update that is not averaged; the message says why."""


def pack(weights: Weights) -> bytes:
    """Arrays by name as safetensors."""
    return bytes(_codec().save({name: np.asarray(array, order="C") for name, array in weights.items()}))


def unpack(blob: bytes) -> dict[str, np.ndarray]:
    """What ``pack`` has packed; ``Refused`` for anything else."""
    try:
        found: dict[str, np.ndarray] = _codec().load(bytes(blob))
    except MissingTool:
        raise
    except Exception as error:  # whatever a hostile blob makes the reader say
        raise Refused("no safetensors", why=str(error)) from error
    return found


def _codec() -> Any:
    try:
        import safetensors.numpy as codec
    except ModuleNotFoundError as error:
        raise missing_package("nv.federated", error) from error
    return codec


class Client:
    """A device with a training library and data of its own.

    ``trainer``: around a session of its own (``session.clone()`` makes one for each of several clients in a process);
    ``epochs``: passes over its data in a round. The order of the samples follows from the trainer's seed.
    """

    def __init__(self, trainer: Trainer, x: Any, y: Any, *, epochs: int = 1) -> None:
        self.trainer, self.x, self.y, self.epochs = trainer, x, y, epochs
        self.rounds = 0  # that it has trained in
        states = trainer.session.states()
        self._fresh = {name: array for name, array in states.items() if name.startswith(_ROUND_STATES)}

    def update(self, blob: bytes) -> tuple[bytes, int, dict[str, float]]:
        """Trains from the given weights: its own weights then, the number of its samples, and how it went (the last
        epoch's loss and metrics)."""
        self.trainer.set_weights(unpack(blob))
        self.trainer.session.set_states(self._fresh)
        first = self.rounds * self.epochs
        history = self.trainer.fit(self.x, self.y, initial_epoch=first, epochs=first + self.epochs, verbose=0)
        self.rounds += 1
        went = {name: float(values[-1]) for name, values in history.history.items()}
        return pack(self.trainer.weights()), len(self.y), went


@dataclass(frozen=True)
class Update:
    """What a client sent: its weights as safetensors, and how many samples it says that it has."""

    client: Any
    blob: bytes
    samples: int = 1


@dataclass(frozen=True)
class Round:
    """What became of a round: who was averaged, who was refused and why, how far each update went (its norm, before
    clipping)."""

    number: int
    accepted: tuple[Any, ...] = ()
    refused: Mapping[Any, str] = field(default_factory=dict)
    norms: Mapping[Any, float] = field(default_factory=dict)


class Averaging:
    """The server's side: ``weights`` [by name] are the means of what clients send, weighted by their samples.

    An update is refused that is longer than ``max_bytes`` (by default 4 KiB more than the weights need), is no
    safetensors, has other names, shapes or element types, holds what is not finite, lies farther than ``max_norm`` from
    the weights, says a number of samples below 1, or comes twice. It counts as at most ``max_samples`` samples. What is
    refused is logged, the others are averaged; fewer than ``least`` of them change nothing.

    ``clip`` shortens each update to that norm. ``noise`` (with ``clip``) adds normal noise of the standard deviation
    ``noise * clip / clients`` to the mean, in which all then count alike: whether any one client took part is hidden to
    the degree that ``epsilon(noise, rounds)`` says. The noise follows from ``seed``, so that runs can be repeated; for
    privacy it must be None (the system's entropy). Only floats are averaged.
    """

    def __init__(
        self,
        weights: Weights,
        *,
        max_bytes: int | None = None,
        max_norm: float = math.inf,
        max_samples: int | None = None,
        clip: float | None = None,
        noise: float = 0.0,
        least: int = 1,
        seed: int | None = 0,
    ) -> None:
        if noise and clip is None:
            raise NervureError("noise needs clip", why="how much hides a client depends on how far it can reach")
        for name, value in {"max_norm": max_norm, "clip": clip, "noise": noise}.items():
            if value is not None and not value >= 0:
                raise NervureError(f"{name} is {value}", hint="give a number from 0")
        self.weights = {name: np.array(array) for name, array in weights.items()}
        for name, array in self.weights.items():
            if array.dtype.kind not in "fiub":
                raise NervureError(f"{name!r} is {array.dtype}", hint="weights are numpy's floats, integers or bools")
        self.max_bytes = len(pack(self.weights)) + 4096 if max_bytes is None else max_bytes
        self.max_norm, self.max_samples, self.clip, self.noise, self.least = max_norm, max_samples, clip, noise, least
        self.rounds: list[Round] = []
        self._random = np.random.default_rng(seed)

    def check(self, update: Update) -> dict[str, np.ndarray]:
        """How far an update goes, float64 by name; ``Refused`` where it cannot be trusted."""
        if len(update.blob) > self.max_bytes:
            raise Refused(f"{len(update.blob)} bytes, more than {self.max_bytes}")
        if type(update.samples) is not int or not 1 <= update.samples < 1 << 53:
            raise Refused(f"{str(update.samples)[:40]} samples")
        found = unpack(update.blob)
        other = sorted(found.keys() ^ self.weights.keys())
        if other:
            raise Refused(f"{other[0]!r} is {'not one of the weights' if other[0] in found else 'missing'}")
        moved = {}
        for name, held in self.weights.items():
            array = found[name]
            if (array.dtype, array.shape) != (held.dtype, held.shape):
                kinds = [f"{a.dtype}{list(a.shape)}" for a in (array, held)]
                raise Refused(f"{name!r} is {kinds[0]}, not {kinds[1]}")
            if not np.issubdtype(held.dtype, np.floating):
                continue
            if not np.isfinite(array).all():
                raise Refused(f"{name!r} is not finite")
            moved[name] = array.astype(np.float64) - held
        length = norm(moved)
        if not length <= self.max_norm or not math.isfinite(length):
            raise Refused(f"its norm is {length:.3g}, more than {self.max_norm:g}")
        return moved

    def aggregate(self, updates: Iterable[Update]) -> Round:
        """Makes the next weights of a round's updates. The order in which they come changes nothing."""
        number, taken, refused = len(self.rounds) + 1, {}, {}
        for update in updates:
            try:
                if update.client in taken:
                    raise Refused("a second update in this round")
                taken[update.client] = self.check(update), update.samples
            except Refused as error:
                reason = " ".join(str(error).split())
                refused[update.client] = reason
                log.warning("round %d: the update of client %s is refused: %s", number, update.client, reason)
        ordered = sorted(taken, key=str)
        if len(ordered) >= max(self.least, 1):
            self._move([taken[client] for client in ordered])
        done = Round(number, tuple(ordered), refused, {c: norm(taken[c][0]) for c in ordered})
        self.rounds.append(done)
        return done

    def _move(self, taken: list[tuple[dict[str, np.ndarray], int]]) -> None:
        shares = np.array([1 if self.noise else min(n, self.max_samples or n) for _, n in taken], np.float64)
        shares /= shares.sum()
        if self.clip is not None:
            shares *= [min(1.0, self.clip / max(norm(moved), 1e-12)) for moved, _ in taken]
        for name in taken[0][0]:
            step = sum(share * moved[name] for share, (moved, _) in zip(shares, taken, strict=True))
            if self.noise:
                step = step + self._random.normal(0, self.noise * (self.clip or 0) / len(taken), np.shape(step))
            self.weights[name] = (self.weights[name] + step).astype(self.weights[name].dtype)

    def epsilon(self, delta: float = 1e-5) -> float:
        """What the rounds so far have cost in privacy: see ``nv.federated.epsilon``."""
        return epsilon(self.noise, len(self.rounds), delta)


def norm(arrays: Weights) -> float:
    """The length of all arrays together, as one vector."""
    return math.sqrt(sum(float(np.vdot(array, array)) for array in arrays.values()))


def epsilon(noise: float, rounds: int, delta: float = 1e-5) -> float:
    """An upper bound of epsilon, in the (epsilon, delta)-differential privacy of whether one client took part, after
    rounds that all took part in: the Gaussian mechanism costs ``rho = 1 / (2 noise^2)`` of zero-concentrated privacy a
    round, and ``epsilon = rho + 2 sqrt(rho log(1 / delta))`` (Bun and Steinke 2016). Infinite without noise.
    """
    if not 0 < delta < 1:
        raise NervureError(f"delta is {delta}", hint="a small probability, such as 1e-5")
    if not noise:
        return math.inf if rounds else 0.0
    rho = rounds / (2 * noise**2)
    return rho + 2 * math.sqrt(rho * math.log(1 / delta))
