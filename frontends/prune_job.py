"""One pruning: what is given, what was made of it, and what there is to say of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..compiler.ir import Graph
from ..compiler.prune import budget
from ..compiler.prune.layers import prepare
from ..compiler.prune.pruner import Pruned
from ..compiler.prune.pruner import prune as prune_graph
from ..compiler.prune.settings import SEEN, Settings
from ..compiler.prune.structure import find_structure
from ..errors import NervureError
from ..targets import get
from . import accuracy as a
from .build import compile
from .calibration import Labelled, spread
from .model import Model
from .prune_data import NONE, Data, check_labels, read_data
from .prune_layers import Form, form
from .prune_settings import Tuning
from .prune_tune import tune
from .quantize import _random, bound_graph, input_types

Tell = Callable[[str, int, int], None]
SCORED = 256  # samples that a criterion looks at


@dataclass(frozen=True)
class Made:
    """A graph, compiled, with its layers."""

    graph: Graph
    form: Form
    model: Model


class Job:
    """See the module's text. ``read`` makes ``dense``, ``run`` makes ``final``."""

    dense: Made
    final: Made

    def __init__(
        self, source: Any, settings: Settings, how: Tuning, target: str, record: Path | None, timed: bool, tell: Any
    ) -> None:
        self.source, self.settings, self.how, self.target, self.record = source, settings, how, target, record
        self.machine, self.timed = get(target), timed
        self.tell: Tell = tell or (lambda stage, done, total: None)
        self.data: Data = NONE
        self.notes: list[str] = []
        self.trials: list[dict[str, Any]] = []
        self.training: dict[str, Any] | None = None
        self.scanned: dict[str, Any] | None = None
        self.scores: dict[str, float] = {}
        self.pruned: list[Pruned] = []
        self._scored: tuple[Made | None, dict[str, np.ndarray]] = None, {}

    @property
    def title(self) -> str:
        """What the model is called in reports."""
        if isinstance(self.source, str | Path):
            return Path(self.source).stem
        return str(getattr(self.source, "name", "") or "model")

    @property
    def times(self) -> bool:
        """Whether times are measured."""
        return self.timed and self.here

    # -- what is given -------------------------------------------------------------------------------------------------

    def read(self, data: Any, test: Any, dims: Any, shapes: Any) -> None:
        """Reads the data and the graph, compiles the dense model and scores it."""
        self._needs(data)
        self.tell("reading", 0, 1)
        types = input_types(self.source, dims or {}, shapes or {})
        self.data = read_data(data, test, types, labels=self.how.epochs > 0)
        samples = self.data.samples or (self.data.test.samples if self.data.test else _random(types))
        self.feed: dict[str, np.ndarray] = samples[0]
        self.graph = prepare(bound_graph(self.source, samples, dims or {}, types))
        self.tell("compiling the dense model", 0, 1)
        self.dense = self.made(self.graph)
        artifact = a.Artifact(self.dense.model)
        self.here = artifact.here
        if self.record is not None and not self.record.exists() and not self.times:
            raise NervureError(
                f"nothing is timed for {self.target} here",
                hint="tune on the machine itself (target host) and give the record, or leave it to the cost model",
            )
        first = artifact.run(None, self.feed)[0]
        for part in (self.data.train, self.data.test):
            check_labels(part, first)
        self.evaluation = a.of_labels(self.data.test) if self.data.test else None
        self._score("dense", self.dense)

    def _needs(self, data: Any) -> None:
        if data is None and self.how.epochs:
            raise NervureError("training on needs data", hint="data='train.npz', with the inputs and y")
        if data is None and self.settings.criterion in SEEN:
            raise NervureError(
                f"criterion {self.settings.criterion!r} looks at samples, and there are none",
                hint="data='train.npz' (an array for each input, and y); or criterion l1 or l2",
            )

    def made(self, graph: Graph) -> Made:
        """The graph, compiled."""
        wish = self.settings.optimize
        model = compile(graph, self.target, name=self.title, optimize=wish)
        return Made(graph, form(graph, self.machine, wish), model)

    def amount(self, graph: Graph, kind: str) -> float:
        """What a graph has of a budget's measure."""
        return budget.measure(graph, self.machine, (kind,), optimize=self.settings.optimize)[kind]

    def _score(self, stage: str, made: Made) -> None:
        if self.evaluation is not None:
            self.tell(f"scoring the {stage} model", 0, 1)
            self.scores[stage] = self.evaluation.score(a.Artifact(made.model))

    # -- pruning -------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Prunes, and trains on where that is wanted."""
        from .prune_choice import chosen

        self._must_ask_for_less()
        self.final = self.dense
        for step, settings in enumerate(self._stages()):
            made, pruned = chosen(self, settings, step == self.how.steps - 1)
            self.pruned.append(pruned)
            self.notes += [n for n in pruned.notes if n not in self.notes]
            self._score("pruned", made)
            self.final = self._trained(made, pruned, step)

    def _must_ask_for_less(self) -> None:
        """``NervureError`` where the dense model meets the target as it is."""
        target = self.settings.target
        if target is None or target.relative or (target.kind == "latency" and self.times):
            return
        dense = self.amount(self.graph, target.kind)
        if target.value >= dense:
            raise already_met(target, dense)

    def scan(self) -> None:
        """Prunes each layer alone, and keeps what becomes of the outputs."""
        from .sensitivity import sensitivity

        held = self.data.test or self.data.samples
        if held is None:
            raise NervureError("a scan of the layers needs data", hint="data='test.npz', with the inputs and y")
        if isinstance(held, Labelled):
            at = spread(len(held.samples), SCORED)
            held = Labelled(held.samples.take(at), [held.y[i] for i in at])
        there = {g.kind for g in find_structure(self.graph, self.settings.kinds).groups}
        if self.settings.kinds and not there:
            return  # nothing can be pruned: what comes next says why
        kinds = [k for k in self.settings.kinds if k in there] or [self.settings.structure]
        scans = [sensitivity(self.graph, held, structure=k, samples=SCORED, progress=self.tell) for k in kinds]
        classes = scans[0].rows[0].agreement is not None
        best = 1.0 if scans[0].dense is None else scans[0].dense
        self.scanned = {
            "metric": scans[0].metric or ("agreement with the dense model" if classes else "1 - noise"),
            "samples": scans[0].samples,
            "dense": best,
            "layers": [
                {
                    "name": name,
                    "sparsities": [p.sparsity for p in found.rows if p.layer == name],
                    "scores": [best - found.damage(p) for p in found.rows if p.layer == name],
                }
                for found in scans
                for name in found.layers
            ],
        }

    def prune(self, settings: Settings) -> Pruned:
        """What the pruner makes of the model as it is now."""
        samples, labels = self._samples()
        settings = replace(settings, target=self._of_now(settings.target))
        of, scored = self._scored  # one model may be pruned to several targets
        known = scored if of is self.final else None
        found = prune_graph(self.final.graph, settings, self.machine, samples, labels, self.tell, scored=known)
        self._scored = self.final, found.scores
        return found

    def _of_now(self, target: budget.Target | None) -> budget.Target | None:
        """A target that is said in parts of the dense model, for the model as it is now."""
        if target is None or not target.relative or self.final is self.dense:
            return target
        if target.kind != "sparsity":
            dense = self.amount(self.graph, target.kind)
            return budget.Target(target.kind, target.value * dense, relative=False)
        return replace(target, value=max(0.0, 1 - (1 - target.value) / self._left())) if self.settings.kinds else target

    def _left(self) -> float:
        """The part of the units, or weights, that is left after the steps so far; zeros stay, and count again."""
        parts = [1 - p.amount for p in self.pruned]
        return math.prod(parts) if self.settings.kinds else parts[-1]

    def _samples(self) -> tuple[list[dict[str, np.ndarray]] | None, np.ndarray | None]:
        if self.settings.criterion not in SEEN or self.data.samples is None:
            return None, None
        at = spread(len(self.data.samples), SCORED)
        held = list(self.data.samples.take(at))
        train = self.data.train
        return held, None if train is None else np.concatenate([train.y[i] for i in at])

    def _stages(self) -> list[Settings]:
        """The settings of each step: every step takes the same part of what the one before left."""
        steps, settings = self.how.steps, self.settings
        if steps == 1:
            return [settings]
        if settings.target is None:
            raise NervureError("several steps need a target", hint="sparsity=0.5, or macs='0.5x'")
        shares = [1 if settings.kinds else i + 1 for i in range(steps)]  # zeros stay, and count again
        parts = [{n: 1 - (1 - p) ** (share / steps) for n, p in settings.parts.items()} for share in shares]
        targets = budget.stages(self._relative(settings.target), steps)
        return [replace(settings, target=t, parts=p) for t, p in zip(targets, parts, strict=True)]

    def _relative(self, target: budget.Target) -> budget.Target:
        if target.relative:
            return target
        dense = self.amount(self.graph, target.kind)
        if target.value >= dense:
            return replace(target, value=1.0, relative=True)
        return replace(target, value=target.value / dense, relative=True)

    def _trained(self, made: Made, pruned: Pruned, step: int) -> Made:
        epochs = self.how.epochs_of(step)
        if not epochs or self.data.train is None:
            return made
        teacher = self.graph if self.how.distill else None
        graph, facts = tune(
            made.graph, pruned.masks, self.data.train, self.how, epochs, self.settings.seed, teacher, self.tell
        )
        self.training = facts if self.training is None else _joined(self.training, facts)
        tuned = self.made(graph)
        self._score("tuned", tuned)
        return tuned

    # -- what there is to say ------------------------------------------------------------------------------------------

    def said(self) -> dict[str, Any]:
        """The settings, as plain data."""
        s, h = self.settings, self.how
        found = {n: getattr(s, n) for n in s.__dataclass_fields__ if n not in ("target", "parts", "keep")}
        found |= {"target": None if s.target is None else str(s.target), "keep": list(s.keep), "layers": dict(s.parts)}
        return found | ({n: getattr(h, n) for n in h.__dataclass_fields__} if h.epochs else {})

    def budget(self, latency: Mapping[str, Any] | None) -> dict[str, Any] | None:
        """What was asked for and what was reached, in the unit of its kind; None for a pattern that says its own."""
        target = self.settings.target
        if target is None:
            return None
        kind, measured = target.kind, target.kind == "latency" and latency is not None
        if latency is not None and measured:
            dense, reached = latency["dense"] * 1e3, latency["pruned"] * 1e3
            reached = latency["ratio"] * dense if target.relative else reached
        elif kind == "sparsity":
            dense, reached = 1.0, float(self._left())
        else:
            dense, reached = (self.amount(m.graph, kind) for m in (self.dense, self.final))
        return {
            "kind": kind,
            "target": str(target),
            "dense": dense,
            "wanted": target.absolute(dense),
            "reached": reached,
            "measured": measured,
        }

    def accuracy(self) -> dict[str, Any] | None:
        """Scores of the dense model, the pruned one before training, and after it."""
        if self.evaluation is None:
            return None
        final = self.scores.get("tuned", self.scores["pruned"])
        return {
            "metric": self.evaluation.metric,
            "samples": self.evaluation.samples,
            "on": self.data.said,
            "dense": self.scores["dense"],
            "pruned": self.scores["pruned"],
            "tuned": self.scores.get("tuned"),
            "drop": self.scores["dense"] - final,
        }

    @property
    def why(self) -> dict[str, str]:
        """Of layers that stayed as they were: the reason, as far as there is one to tell."""
        return {row.layer: row.refused or row.left_out for row in self.pruned[-1].rows if row.refused or row.left_out}

    def groups(self) -> list[dict[str, Any]]:
        """What could be taken out together, and how much of it was."""
        if not self.settings.kinds:
            return []
        gone: dict[str, int] = {}
        for pruned in self.pruned:
            for name, units in pruned.removed.items():
                gone[name] = gone.get(name, 0) + len(units)
        found = find_structure(self.graph, self.settings.kinds).groups
        return [
            {
                "name": g.name,
                "kind": g.kind,
                "units": len(g.units),
                "removed": gone.get(g.name, 0),
                "layers": list(g.layers),
            }
            for g in found
        ]

    def fixed(self) -> list[dict[str, str]]:
        """Where nothing can be taken out, and why."""
        if not self.settings.kinds:
            return []
        return [{"where": f.where, "why": f.why} for f in find_structure(self.graph, self.settings.kinds).fixed]


def already_met(target: budget.Target, dense: float) -> NervureError:
    """The error where there is nothing to do."""
    was, asked = (budget.told(target.kind, v) for v in (dense, target.value))
    return NervureError(
        f"the dense model meets the target already: {target.kind} {was}, asked for is {asked}",
        hint="ask for less, or leave the model as it is",
    )


def _joined(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Two trainings, one after the other."""
    history = {n: [*before["history"].get(n, []), *v] for n, v in after["history"].items()}
    return {
        **after,
        "epochs": before["epochs"] + after["epochs"],
        "seconds": before["seconds"] + after["seconds"],
        "history": history,
    }
