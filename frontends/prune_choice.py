"""Which candidate it is: the one that meets the target, measured where it is a latency, if it pays at all."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from ..compiler.prune.budget import Target, told
from ..compiler.prune.settings import Settings
from ..errors import NervureError
from .prune_job import Made, already_met
from .prune_layers import Form, form, timed
from .prune_pace import TOLERANCE, Record, Trial, best, search, shape_key, time_alone, time_pair

if TYPE_CHECKING:
    from ..compiler.prune.pruner import Pruned
    from .prune_job import Job

PAYS = 0.97  # a pattern must take less than this part of the dense model's time, or bytes
SHOWN = 6  # layers in an error


def chosen(job: Job, settings: Settings, last: bool) -> tuple[Made, Pruned]:
    """The pruned model that meets the target. ``last``: of several steps, the one that has to."""
    target = settings.target
    if last and target is not None and target.kind == "latency" and (job.times or job.record is not None):
        made, pruned = _by_the_clock(job, settings, target)
    else:
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
        made_form = form(pruned.graph, job.machine)
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
        raise _too_slow(job, nearest, trials, wanted, target)
    if nearest.off(wanted) < -TOLERANCE:
        job.notes.append(
            f"no candidate lies nearer to {wanted:.2f}x of the dense latency than {nearest.ratio:.2f}x: "
            f"{len(trials)} were measured"
        )
    pruned, made = clock.tried[nearest.asked]
    return made or job.made(pruned.graph), pruned


def _too_slow(job: Job, nearest: Trial, trials: list[Trial], wanted: float, target: Target) -> NervureError:
    fastest = min(trials, key=lambda t: t.ratio)
    least = math.ceil(fastest.ratio * 100) / 100
    return NervureError(
        f"a latency of {target.value:g}x cannot be met; the nearest that can is {fastest.ratio:.2f}x"
        if target.relative
        else f"a latency of {told('latency', target.value)} cannot be met; the nearest that can is "
        f"{told('latency', fastest.us)}",
        why=f"the fastest of {len(trials)} candidates that were measured takes {fastest.ratio:.2f}x of the dense "
        f"model's time ({told('latency', fastest.us)}); {wanted:.2f}x was asked for",
        hint=f"{least:.2f}x is the nearest that can be reached; or another structure, or fewer layers kept",
    )


# -- whether it pays ---------------------------------------------------------------------------------------------------


def _must_pay(job: Job, made: Made, target: Target | None) -> None:
    """``NervureError`` with the figures where a pattern brings nothing of what it is meant for: bytes where RAM or file
    were the target, time otherwise."""
    if target is not None and target.kind in ("file", "ram"):
        return  # the target itself says that it is smaller
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
    even = _break_even(job, forms)
    raise NervureError(
        f"{job.settings.structure} does not pay on {job.target}; nothing was written",
        where=_lines(forms[0], forms[1]),
        why=f"{how}: {ratio:.2f}x of the dense model's time{even}",
        hint="a pattern as wide as the machine's vectors (block, 2:4v), channels, a higher sparsity; or force it "
        "(--force)",
    )


def _lines(dense: Form, pruned: Form) -> list[str]:
    """The layers with most time: ``fc1: 12.0 us dense, 14.1 us at density 25%``."""
    rows = [(was, pruned.layers[name]) for name, was in dense.layers.items() if name in pruned.layers]
    rows = [(was, now) for was, now in rows if now.nonzeros < was.nonzeros]
    rows.sort(key=lambda pair: -pair[0].us)
    said = [
        f"{was.name}: {was.us:.1f} us dense, {now.us:.1f} us at density {now.nonzeros / max(1, now.size):.0%} "
        f"({now.kernel or 'no kernel of its own'})"
        for was, now in rows[:SHOWN]
    ]
    return [*said, f"and {len(rows) - SHOWN} more layers"] if len(rows) > SHOWN else said


def _break_even(job: Job, forms: list[Form]) -> str:
    """The density below which a pattern pays, where it is known."""
    return ""
