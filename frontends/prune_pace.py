"""A latency target met by measuring: candidates are compiled and timed in turns with the dense model.

The cost model says which candidate is worth a try, the stopwatch how far off it was; the next candidate is asked for
with that in mind. Everything that was measured goes into a tuning record, plain JSON, which is an input like any other:
with it the same choice is made again without a measurement.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..compiler.quantize.pace import machine_facts
from ..errors import NervureError
from ..targets import Machine
from ..targets.files import write_atomic
from .bench import Peer, bench, ratio
from .model import Model
from .prune_layers import Form

FORMAT = 1
KIND = "nervure pruning record"
ATTEMPTS = 6  # candidates that are compiled and timed at most
CLOSE = 0.03  # a candidate this near to the wish ends the search
STRIDE = 0.4  # a candidate is asked for no less than so much of the smallest so far
EDGE = 1.05  # times the smallest that can be: nearer is not searched for
TOLERANCE = 0.10  # and this far from it the target is missed
ROUNDS, ROUND_SECONDS = 9, 0.1


@dataclass(frozen=True)
class Trial:
    """One candidate: what the cost model was ``asked`` for (parts of the dense latency), and what was measured (the
    same, and microseconds of both)."""

    asked: float
    ratio: float
    us: float
    dense_us: float

    def off(self, wanted: float) -> float:
        """How far it is from the wish, in parts of it."""
        return self.ratio / wanted - 1


def time_pair(
    dense: Model, pruned: Model, feed: Mapping[str, np.ndarray], tell: Callable[[str, int, int], None]
) -> dict[str, Any]:
    """Both artifacts, each in a process of its own, pinned, rounds in turns: medians in ms and their ratio."""
    peers = [Peer("nervure", m.path, mode="invoke") for m in (dense, pruned)]
    was, now = bench(
        peers, feed, rounds=ROUNDS, seconds=ROUND_SECONDS, progress=lambda done, total: tell("timing", done, total)
    )
    return {
        "dense": was["median_ms"],
        "pruned": now["median_ms"],
        "ratio": 1 / ratio(was, now),
        "rounds": {"dense": was["rounds_ms"], "pruned": now["rounds_ms"]},
    }


def time_alone(model: Model, feed: Mapping[str, np.ndarray]) -> float:
    """Microseconds of one artifact, the median of rounds."""
    (found,) = bench([Peer("nervure", model.path, mode="invoke")], feed, rounds=ROUNDS, seconds=ROUND_SECONDS)
    return float(found["median_ms"]) * 1e3


# -- the search --------------------------------------------------------------------------------------------------------


def search(wanted: float, attempt: Callable[[float], Trial | None]) -> list[Trial]:
    """Asks for candidates until one takes ``wanted`` parts of the dense latency, or ``ATTEMPTS`` were measured.

    ``attempt(asked)`` makes the candidate that takes ``asked`` parts by the cost model and measures it; None where
    there is none that small. The trials in order; the nearest to the wish is ``best(trials, wanted)``.
    """
    found: list[Trial] = []
    floor, asked, refused = 0.0, wanted, 0
    while len(found) < ATTEMPTS and refused < ATTEMPTS:
        trial = attempt(asked)
        if trial is None:
            floor, refused = max(floor, asked), refused + 1
        else:
            found.append(trial)
            if abs(trial.off(wanted)) <= CLOSE:
                break
        asked = _next(wanted, found, floor)
        if asked <= floor or any(abs(asked / t.asked - 1) < 2e-3 for t in found):
            break
    return found


def best(trials: Sequence[Trial], wanted: float) -> Trial:
    """The nearest to the wish; of two equally near the faster."""
    return min(trials, key=lambda t: (round(abs(math.log(t.ratio / wanted)), 3), t.ratio))


def _next(wanted: float, found: Sequence[Trial], floor: float) -> float:
    """What to ask the cost model for: on the line between two measurements around the wish, of which the dense model is
    one (it is 1 of itself), or through it, where nothing was small enough yet. ``floor`` was too little; at or below it
    means that there is nothing left to try."""
    under = max((t for t in found if t.ratio <= wanted), key=lambda t: t.asked, default=None)
    low = 0.0 if under is None else under.asked
    over = min((t for t in found if t.ratio > wanted and low < t.asked), key=lambda t: t.asked, default=None)
    a1, r1 = (1.0, 1.0) if over is None else (over.asked, over.ratio)
    if under is not None:
        guess = low + (a1 - low) * (wanted - under.ratio) / (r1 - under.ratio)
    elif over is not None:
        slope = (1 - r1) / (1 - a1) if r1 < 1 else 0.0  # of what is saved, by the stopwatch and by the cost model
        guess = max(1 - (1 - wanted) / slope if slope else 0.0, STRIDE * a1)
    else:
        guess = 0.0
    if guess <= floor:
        lowest = min((t.asked for t in found), default=1.0)
        guess = math.sqrt(floor * lowest) if lowest > EDGE * floor else floor
    return min(0.995, guess)


# -- the tuning record -------------------------------------------------------------------------------------------------


def shape_key(form: Form) -> str:
    """What a measurement is of: the layers, their shapes, and how many of their weights are not zero."""
    facts = [[m.name, m.op, list(m.shape), m.nonzeros] for m in form.layers.values()]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


class Record:
    """Measured latencies of one network on one machine: by ``shape_key``, ``ratio`` to the dense model's, ``us`` and
    ``dense_us``. ``path`` None keeps them in memory alone."""

    def __init__(self, path: Path | None, machine: Machine, dense: Form) -> None:
        self.path, self.machine = path, machine
        self.network = shape_key(dense)
        self.rows: dict[str, dict[str, float]] = {}
        if path is not None and path.exists():
            self.rows = _read(path, machine, self.network)

    def find(self, key: str, asked: float) -> Trial | None:
        row = self.rows.get(key)
        return None if row is None else Trial(asked, row["ratio"], row["us"], row["dense_us"])

    def add(self, key: str, timed: Mapping[str, Any], asked: float) -> Trial:
        """Takes up a measurement of ``time_pair``; figures are rounded first, so that a record that was written says
        exactly what was decided by."""
        row = {
            "ratio": round(timed["ratio"], 4),
            "us": round(timed["pruned"] * 1e3, 3),
            "dense_us": round(timed["dense"] * 1e3, 3),
        }
        self.rows[key] = row
        return Trial(asked, row["ratio"], row["us"], row["dense_us"])

    def dense_us(self, measure: Callable[[], float]) -> float:
        """The dense model's microseconds, measured if the record does not have them."""
        if self.network not in self.rows:
            us = round(measure(), 3)
            self.rows[self.network] = {"ratio": 1.0, "us": us, "dense_us": us}
        return self.rows[self.network]["us"]

    def write(self) -> None:
        if self.path is None:
            return
        held = {
            "format": FORMAT,
            "kind": KIND,
            "machine": machine_facts(self.machine),
            "network": self.network,
            "measured": self.rows,
        }
        write_atomic(self.path, (json.dumps(held, indent=1, sort_keys=True) + "\n").encode())


def _read(path: Path, machine: Machine, network: str) -> dict[str, dict[str, float]]:
    """The measurements in a record; ``NervureError`` where it is none, of another machine or of another network."""
    try:
        held = json.loads(path.read_text())
        rows = {
            str(key): {name: float(row[name]) for name in ("ratio", "us", "dense_us")}
            for key, row in sorted(held["measured"].items())
        }
        figures = [v for row in rows.values() for v in row.values()]
        if held["format"] != FORMAT or held["kind"] != KIND or not all(np.isfinite(v) and v > 0 for v in figures):
            raise ValueError("it is of another kind or format")
        where, whose = held["machine"], held["network"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise NervureError(
            "the tuning record cannot be read", where=str(path), why=str(error), hint="measure again: --tune"
        ) from None
    if where != machine_facts(machine):
        raise NervureError(
            "the tuning record is of another machine",
            where=str(path),
            why=f"it was measured on {where}; this is {machine_facts(machine)}",
            hint="measure again on this machine: --tune",
        )
    if whose != network:
        raise NervureError(
            "the tuning record is of another network",
            where=str(path),
            why="its layers have other names, shapes or zeros",
            hint="measure again: --tune",
        )
    return rows
