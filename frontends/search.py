"""``nv.search``: the architecture of a network, found by trying (Zoph and Le 2017), for a machine and its memory.

A space is an ordinary network in which ``nv.choice`` stands in place of numbers and layers. Optuna proposes candidates
(TPE: Bergstra et al. 2011, Ozaki et al. 2020; NSGA-II: Deb et al. 2002). What a candidate costs on the target is
planned first: one that does not fit is never trained. The others are trained shortly, and stopped early where another
one was better at that age and costs no more.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import MissingTool, NervureError
from ..runtime.observer import Callback
from ..targets import boards
from .build import get_target
from .dsl.choice import answered
from .dsl.network import Network
from .search_costs import COSTS, Costs, planned
from .search_results import Candidate, Found

SAMPLERS = ("tpe", "nsga2")
MARGIN = 0.05  # of the score, by which a candidate must be behind to be stopped
PATIENCE = 20  # proposals in a row that were tried before: the space is exhausted


def search(
    space: Any,
    train: tuple[Any, Any] | None = None,
    validation: tuple[Any, Any] | None = None,
    *,
    score: Callable[[Network], float] | None = None,
    target: str | None = None,
    board: str | None = None,
    limits: Mapping[str, float] | None = None,
    objectives: Sequence[str] = ("accuracy", "flash", "latency"),
    int8: bool | None = None,
    trials: int = 30,
    epochs: int = 10,
    batch_size: int = 32,
    loss: Any = "sparse_categorical_crossentropy",
    optimizer: Any = "adam",
    sampler: Any = "tpe",
    stop: bool = True,
    study: str | Path | None = None,
    seed: int = 0,
    progress: Callable[[Candidate], None] | None = None,
) -> Found:
    """Tries ``trials`` architectures of a space.

    ``space``: a network whose function calls ``nv.choice``, or a function that builds a network and calls it.
    ``train`` and ``validation``: (x, y); each candidate is trained on the first for ``epochs`` and judged by its
    accuracy on the second, which is therefore no measure of the winner: keep a third set. ``score(net)`` trains and
    judges in your own way instead. ``target`` or ``board`` is what costs are planned for, ``limits`` bound them:
    ``{"ram": 65536, "flash": ..., "latency": ...}`` (a board's memory bounds them anyway). ``int8``: as ``nv.quantize``
    makes it, which is the default on microcontrollers. ``objectives``: accuracy and costs that count. ``sampler``:
    ``"tpe"``, ``"nsga2"`` or one of Optuna's. ``stop``: whether hopeless trainings are cut short. ``study``: a file in
    which every trial is written down; a search that was interrupted goes on from it. ``progress`` is told each
    candidate.

    The first candidate is the network as it stands outside of a search: of every choice the first option. The same
    arguments give the same result. ``NervureError``: Optuna is missing, unknown objectives or limits.
    """
    machine = get_target(target, board)
    bounds = {**_board_limits(board), **(limits or {})}
    unknown = [o for o in objectives if o not in ("accuracy", *COSTS)] + [n for n in bounds if n not in COSTS]
    if unknown or "accuracy" not in objectives:
        hint = f"objectives are accuracy and some of {', '.join(COSTS)}; these have limits"
        raise NervureError(f"nv.search does not know {unknown[0]!r}" if unknown else "accuracy must count", hint=hint)
    if score is None and (train is None or validation is None):
        raise NervureError("nv.search needs data", hint="train=(x, y) and validation=(x, y), or score=")
    fit = {"batch_size": batch_size, "epochs": epochs, "verbose": 0, "validation_data": validation}
    judge = functools.partial(_trained, train, fit, {"loss": loss, "optimizer": optimizer, "seed": seed})
    if score is not None:
        judge = functools.partial(_scored, score)
    quantized = machine.system == "bare" if int8 is None else int8
    held = _study(objectives, sampler, study, trials, seed)
    job = _Job(space, lambda net: planned(net.to_graph(), machine, quantized), judge, tuple(objectives), bounds, stop)
    for trial in held.trials:
        job.again(trial)
    if not held.trials:
        held.enqueue_trial(_as_written(space))
    repeated = 0
    while len(job.candidates) < trials and repeated < PATIENCE:
        trial = held.ask()
        found, new = job.attempt(trial)
        held.tell(trial, [found.value(o) if found.costs else _worst(o) for o in objectives])
        repeated = 0 if new else repeated + 1
        if new and progress is not None:
            progress(found)
    return Found(tuple(job.candidates), tuple(objectives), bounds, held)


# -- candidates --------------------------------------------------------------------------------------------------------


@dataclass
class _Job:
    """A search at work."""

    space: Any
    cost: Callable[[Network], Costs]
    judge: Any
    objectives: tuple[str, ...]
    limits: dict[str, float]
    stop: bool
    candidates: list[Candidate] = field(default_factory=list)
    known: dict[tuple[tuple[str, int], ...], Candidate] = field(default_factory=dict)

    def attempt(self, trial: Any) -> tuple[Candidate, bool]:
        """Builds, plans and trains what a trial proposes, and says whether it is new: what was tried is known."""
        choices = _Choices(
            lambda name, order: trial.suggest_int(name, 0, len(order) - 1),
            lambda name, order: trial.suggest_categorical(name, order),
        )
        net = built(self.space, choices)
        costs, refused = None, ""
        try:
            costs = self.cost(net)
        except NervureError as error:
            refused = error.what
        new = choices.key not in self.known
        if new:
            self._keep(choices, self._tried(trial.number, choices, net, costs, refused))
        _note(trial, self.known[choices.key], self.limits)
        return self.known[choices.key], new

    def _tried(self, number: int, choices: _Choices, net: Network, costs: Costs | None, refused: str) -> Candidate:
        """A candidate, trained if it fits."""
        over = {} if costs is None else {n: part for n, part in costs.excess(self.limits).items() if part > 0}
        if over:
            name = max(over, key=lambda n: over[n])
            refused = f"{name} {getattr(costs, name):,.0f}, the limit is {self.limits[name]:,.0f}"
        if costs is None or refused:
            return self._candidate(number, choices, net, costs, (), refused)
        watch = _Watch(costs, self.candidates if self.stop else (), self.objectives)
        return self._candidate(number, choices, net, costs, self.judge(net, watch), "", watch.stopped)

    def _candidate(self, number: int, choices: _Choices, *rest: Any) -> Candidate:
        return Candidate(number, choices.labels, functools.partial(built, self.space, choices), *rest)

    def again(self, trial: Any) -> None:
        """Takes up a candidate of an earlier run of the same study; its network is not trained."""
        facts = trial.user_attrs.get("candidate", {})
        if facts.get("number") != trial.number:  # it was interrupted, or tried before
            return
        choices = _Choices(lambda name, _: trial.params[name], lambda name, _: trial.params[name])
        net = built(self.space, choices)
        with contextlib.suppress(NervureError):
            net.inspect()
        costs = Costs(**facts["costs"]) if facts["costs"] else None
        rest = tuple(facts["history"]), facts["refused"], facts["stopped"]
        self._keep(choices, self._candidate(trial.number, choices, net, costs, *rest))

    def _keep(self, choices: _Choices, made: Candidate) -> None:
        self.known[choices.key] = made
        self.candidates.append(made)


def _note(trial: Any, made: Candidate, limits: Mapping[str, float]) -> None:
    """Writes a candidate down in the study, with what constraints the sampler is to learn."""
    costs = None if made.costs is None else {name: getattr(made.costs, name) for name in COSTS}
    facts = {"number": made.number, "costs": costs, "history": list(made.history)}
    trial.set_user_attr("candidate", {**facts, "refused": made.refused, "stopped": made.stopped})
    excess = dict.fromkeys(limits, 1.0) if made.costs is None else made.costs.excess(limits)
    trial.set_user_attr("excess", list(excess.values()))
    for name, part in excess.items() if hasattr(trial, "set_constraint") else ():
        trial.set_constraint(name, part)


class _Choices:
    """The answers of one candidate: asked for once by name, then always the same. ``ordered`` and ``unordered`` answer
    for numbers, which are asked about in their order, and for everything else."""

    def __init__(self, ordered: Callable[..., Any], unordered: Callable[..., Any]) -> None:
        self.ordered, self.unordered = ordered, unordered
        self.indices: dict[str, int] = {}
        self.answers: dict[str, int] = {}  # as they were given
        self.labels: dict[str, Any] = {}

    @property
    def key(self) -> tuple[tuple[str, int], ...]:
        """The same for the same answers."""
        return tuple(sorted(self.indices.items()))

    def __call__(self, name: str, options: Sequence[Any]) -> int:
        if name not in self.indices:
            order = list(range(len(options)))
            ask = self.unordered
            if all(isinstance(o, int | float) and not isinstance(o, bool) for o in options):
                order.sort(key=lambda i: options[i])
                ask = self.ordered
            self.answers[name] = int(ask(name, order))
            self.indices[name] = order[self.answers[name]]
        index = self.indices[name]
        if index >= len(options):
            raise NervureError(f"nv.choice({name!r}) has {len(options)} options here and had more before")
        self.labels[name] = _label(options, index)
        return index


def _as_written(space: Any) -> dict[str, int]:
    """The answers that give the network as it stands outside of a search."""
    choices = _Choices(lambda _, order: order.index(0), lambda _, order: 0)
    with contextlib.suppress(NervureError):
        built(space, choices).to_graph()
    return choices.answers


def _label(options: Sequence[Any], index: int) -> Any:
    """An option in a table."""
    if isinstance(options[index], int | float | str | tuple):
        return options[index]
    names = [getattr(o, "kind", None) or getattr(o, "__name__", type(o).__name__) for o in options]
    return names[index] if names.count(names[index]) == 1 else f"{names[index]} #{index}"


def built(space: Any, answers: Callable[[str, Sequence[Any]], int], seed: int | None = None) -> Network:
    """The network of a space in which ``answers`` decides, whenever it is traced; its weights start from ``seed``,
    the space's own unless given. ``NervureError``: no network."""
    if isinstance(space, Network) and type(space) is Network:
        net = Network(space.function, space.name, space.inputs, space.seed)
        net.options, net.named = set(space.options), space.named
    elif callable(space) and not isinstance(space, Network):
        with answered(answers):
            net = space()
    else:
        net = space
    if not isinstance(net, Network) or net is space:
        hint = "an @nv.network function that calls nv.choice, or a function that returns a network"
        raise NervureError(f"{space!r} is no space to search", hint=hint)
    net.seed = net.seed if seed is None else seed
    function = net.function

    @functools.wraps(function)
    def decided(*args: Any, **kwargs: Any) -> Any:
        with answered(answers):
            return function(*args, **kwargs)

    net.function = decided
    return net


# -- training ----------------------------------------------------------------------------------------------------------


def _trained(train: Any, fit: dict[str, Any], how: dict[str, Any], net: Network, watch: _Watch) -> tuple[float, ...]:
    """Trains a candidate; its accuracy on the validation data after each epoch."""
    net.compile(**how, metrics=["accuracy"])
    options = {**fit, "callbacks": [watch]}
    net.fit(*train, **options)
    return tuple(watch.history)


def _scored(score: Callable[[Network], float], net: Network, watch: _Watch) -> tuple[float, ...]:
    return (float(score(net)),)


class _Watch(Callback):
    """Stops a training where another candidate was better at that age by ``MARGIN``, and costs no more."""

    def __init__(self, costs: Costs, others: Sequence[Candidate], objectives: Sequence[str]) -> None:
        names = [o for o in objectives if o != "accuracy"]
        lighter = [c for c in others if c.costs and all(c.value(n) <= getattr(costs, n) for n in names)]
        self.rivals, self.stopped = lighter, False
        self.history: list[float] = []

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self.history.append(float((logs or {})["val_accuracy"]))
        last = epoch + 1 == self.params["epochs"]
        at = [c.history[epoch] for c in self.rivals if len(c.history) > epoch]
        if epoch and not last and at and max(at) > self.history[-1] + MARGIN:
            self.stopped = self.trainer.stop_training = True


# -- Optuna ------------------------------------------------------------------------------------------------------------


def _study(objectives: Sequence[str], sampler: Any, path: str | Path | None, trials: int, seed: int) -> Any:
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise MissingTool(
            "nv.search needs optuna, which is not installed", hint="pip install 'nervure[search]'"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if isinstance(sampler, str) and sampler not in SAMPLERS:
        raise NervureError(f"sampler {sampler!r} is unknown", hint=f"use one of: {', '.join(SAMPLERS)}")

    known: dict[str, Any] = {"seed": seed}
    if not hasattr(optuna.trial.Trial, "set_constraint"):  # before Optuna 5
        known["constraints_func"] = lambda trial: trial.user_attrs.get("excess", ())
    if sampler == "tpe":  # the first ones are drawn at random
        sampler = optuna.samplers.TPESampler(n_startup_trials=min(10, 1 + trials // 3), **known)
    elif sampler == "nsga2":
        sampler = optuna.samplers.NSGAIISampler(population_size=12, **known)
    storage = None
    if path is not None:
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        storage = JournalStorage(JournalFileBackend(str(path)))
    directions: Any = ["maximize" if o == "accuracy" else "minimize" for o in objectives]
    return optuna.create_study(
        study_name="nervure", storage=storage, sampler=sampler, directions=directions, load_if_exists=True
    )


def _worst(objective: str) -> float:
    return 0.0 if objective == "accuracy" else 1e18


def _board_limits(board: str | None) -> dict[str, float]:
    """What a board's memory leaves to a network."""
    if board is None:
        return {}
    place = boards.get(board)
    return {"ram": float(place.size("ram") - place.stack), "flash": float(place.size("flash"))}
