"""Which candidate it is: the one that meets the target, measured where it is a latency, if it pays at all."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from ..compiler.prune.breakeven import break_even, measured_break_even
from ..compiler.prune.budget import Target, told
from ..compiler.prune.layers import layers
from ..compiler.prune.patterns import parse
from ..compiler.prune.settings import Settings
from ..errors import NervureError
from .prune_job import Made, already_met
from .prune_layers import Form, form, timed
from .prune_pace import TOLERANCE, Record, Trial, best, search, shape_key, time_alone, time_pair

if TYPE_CHECKING:
    from ..compiler.prune.pruner import Pruned
    from .prune_job import Job

PAYS = 0.97  # a pattern must take less than this part of the dense model's time, or bytes
SHOWN, TRIED = 6, 3  # layers in an error, and of these those whose break-even density is looked for


def chosen(job: Job, settings: Settings, last: bool) -> tuple[Made, Pruned]:
    """The pruned model that meets the target. ``last``: of several steps, the one that has to."""
    target = settings.target
    if last and target is not None and target.kind == "latency" and (job.times or job.record is not None):
        return _by_the_clock(job, settings, target)
    pruned = job.prune(settings)
    made = job.made(pruned.graph)
    if last and not settings.kinds and not settings.force:
        _must_pay(job, made, target)
    return made, pruned


# -- a latency that is measured ----------------------------------------------------------------------------------------


class _Clock:
    """Makes candidates by the cost model and times them, or finds their times in the record."""

    def __init__(self, job: Job, settings: Settings) -> None:
        self.job, self.settings = job, settings
        self.record = Record(job.record, job.machine, job.dense.form)
        self.dense_us = sum(job.dense.form.estimates)
        self.tried: dict[float, tuple[Pruned, Made | None]] = {}
        self.refused: NervureError | None = None

    def attempt(self, asked: float) -> Trial | None:
        """See ``search``; a candidate that the pruner cannot make is None."""
        job = self.job
        job.tell(f"candidate {len(self.tried) + 1}", 0, 1)
        wish = Target("latency", asked * self.dense_us, relative=False)
        try:
            pruned = job.prune(replace(self.settings, target=wish))
        except NervureError as error:
            self.refused = error
            return None
        made_form = form(pruned.graph, job.machine, job.settings.optimize)
        key = shape_key(made_form)
        found = self.record.find(key, asked)
        made = None
        if found is None:
            if not job.times:
                raise NervureError(
                    "the tuning record does not have this candidate, and nothing is timed here",
                    where=str(job.record),
                    hint="measure again on the machine itself: --tune",
                )
            made = job.made(pruned.graph)
            found = self.record.add(key, time_pair(job.dense.model, made.model, job.feed, job.tell), asked)
        self.tried[asked] = pruned, made
        return found


def _by_the_clock(job: Job, settings: Settings, target: Target) -> tuple[Made, Pruned]:
    clock = _Clock(job, settings)
    wanted = target.value
    if not target.relative:
        dense = clock.record.dense_us(lambda: time_alone(job.dense.model, job.feed))
        wanted = target.value / dense
        if wanted >= 1:
            raise already_met(target, dense)
    trials = search(wanted, clock.attempt)
    job.trials = [{"asked": t.asked, "ratio": t.ratio, "us": t.us, "dense_us": t.dense_us} for t in trials]
    if not trials:
        assert clock.refused is not None
        raise clock.refused
    clock.record.write()
    nearest = best(trials, wanted)
    if nearest.off(wanted) > TOLERANCE:
        raise _too_slow(trials, wanted, target)
    if nearest.off(wanted) < -TOLERANCE:
        job.notes.append(
            f"no candidate lies nearer to {wanted:.2f}x of the dense latency than {nearest.ratio:.2f}x: "
            f"{len(trials)} were measured"
        )
    pruned, made = clock.tried[nearest.asked]
    return made or job.made(pruned.graph), pruned


def _too_slow(trials: list[Trial], wanted: float, target: Target) -> NervureError:
    fastest = min(trials, key=lambda t: t.ratio)
    least = math.ceil(fastest.ratio * 100) / 100
    asked, nearest = told("latency", target.value), told("latency", fastest.us)
    if target.relative:
        asked, nearest = f"{target.value:g}x", f"{fastest.ratio:.2f}x"
    return NervureError(
        f"a latency of {asked} cannot be met; the nearest that can is {nearest}",
        why=f"the fastest of {len(trials)} candidates that were measured takes {fastest.ratio:.2f}x of the dense "
        f"model's time ({told('latency', fastest.us)}); {wanted:.2f}x was asked for",
        hint=f"{least:.2f}x is the nearest that can be reached; or another structure, or fewer layers kept",
    )


# -- whether it pays ---------------------------------------------------------------------------------------------------


def _must_pay(job: Job, made: Made, target: Target | None) -> None:
    """``NervureError`` with the figures where a pattern brings no time, though bytes were not what it is for."""
    if job.settings.optimize == "size" or (target is not None and target.kind in ("file", "ram", "params")):
        return
    forms = [job.dense.form, made.form]
    if job.times:
        job.tell("timing", 0, 1)
        ratio = time_pair(job.dense.model, made.model, job.feed, job.tell)["ratio"]
        forms = timed(forms, [job.dense.model, made.model], job.feed)
        how = "measured"
    else:
        was, now = (sum(f.estimates) for f in forms)
        ratio, how = now / (was or 1.0), "estimated"
    if ratio < PAYS:
        return
    raise NervureError(
        f"{job.settings.structure} does not pay on {job.target}; nothing was written",
        where=_lines(job, forms[0], forms[1]),
        why=f"{how}: {ratio:.2f}x of the dense model's time",
        hint="a pattern as wide as the machine's vectors (block, 2:4v), channels, a higher sparsity; or force it "
        "(--force)",
    )


def _lines(job: Job, dense: Form, pruned: Form) -> list[str]:
    """The layers with most time: ``fc1: 12.0 us dense, 14.1 us with 25% of the weights; it pays with 8% or fewer``."""
    rows = [(was, pruned.layers[name]) for name, was in dense.layers.items() if name in pruned.layers]
    rows = [(was, now) for was, now in rows if now.nonzeros < was.nonzeros]
    rows.sort(key=lambda pair: -pair[0].us)
    job.tell("looking for the break-even density", 0, 1)
    evens = _evens(job, [was.name for was, _ in rows[:TRIED]])
    said = [
        f"{was.name}: {was.us:.3g} us dense, {now.us:.3g} us with {now.nonzeros / max(1, was.nonzeros):.0%} of the "
        f"weights{evens.get(was.name, '')}"
        for was, now in rows[:SHOWN]
    ]
    return [*said, f"and {len(rows) - SHOWN} more layers"] if len(rows) > SHOWN else said


def _evens(job: Job, names: list[str]) -> dict[str, str]:
    """By layer, how few of its weights may be left for the pattern to pay: measured, where times can be had."""
    pattern = parse(job.settings.structure, job.machine)
    found = {}
    for layer in (m for m in layers(job.graph) if m.name in names):
        if job.times:
            even = measured_break_even(layer, job.graph, pattern).break_even
        else:
            even = break_even(layer, job.machine, pattern, job.graph)
        found[layer.name] = f"; it pays with {even:.0%} or fewer" if even else "; it never pays here"
    return found
