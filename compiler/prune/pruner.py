"""A graph, a target, and what goes to meet it.

Units of a structure are taken out; weights of a pattern become zero. The weights are scored (``criteria``), put in one
order (``units``, ``cells``), and the place in that order is searched at which the graph meets the target (``reach``),
as the compiler's own plan of it says (``budget``). A pattern that does not pay in a layer is taken back there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from ...targets.machine import Machine
from ..ir import Graph
from ..quantize.observe import Progress, silent
from ..quantize.samples import Samples
from .budget import Measure
from .criteria import Scores, scores
from .job import Job, Pruned, constant, sizes_of
from .patterned import Patterned
from .patterns import parse
from .settings import Settings
from .slopes import Labels
from .structured import Structured


def prune(
    graph: Graph,
    settings: Settings,
    machine: Machine,
    samples: Samples | None = None,
    labels: Labels = None,
    tell: Progress = silent,
    *,
    measure: Measure | None = None,
    gradients: Mapping[str, np.ndarray] | None = None,
    scored: Scores | None = None,
    sizes: Mapping[str, int] | None = None,
) -> Pruned:
    """Prunes a graph to ``settings.target`` for ``machine``.

    ``samples`` and ``labels`` serve the criteria that look at data (``criteria.scores``); ``gradients`` instead of
    them, or ``scored``, an earlier result's ``scores``, where one graph is pruned to several targets. ``measure`` tells
    the latency of a static graph in microseconds; without it the cost model does. Open sizes are those of the samples
    or of ``sizes``, else one, for the criteria and the measures; in the result they are open.

    ``NervureError``: nothing can be pruned, the target cannot be met (it names the nearest), data do not fit, names
    match nothing, or the pattern pays in no layer.
    """
    job = Job(graph, settings, machine, samples, sizes, tell, measure)
    if settings.kinds:
        work: Structured | Patterned = Structured(job)
    else:
        work = Patterned(job, parse(settings.structure, machine))
    work.check()
    if scored is None:
        scored = scores(job.fixed, settings.criterion, samples, gradients, settings.seed, labels=labels, tell=tell)
    return replace(work.run(scored), scores=scored)


__all__ = ["Pruned", "constant", "prune", "sizes_of"]
