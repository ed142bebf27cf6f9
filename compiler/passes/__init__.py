"""The passes: pure functions ``Graph -> Graph`` that copy once and rewrite their own copy by worklist.

``canonicalize`` runs them in the order of ``PASSES``, again and again until nothing changes. What it leaves is the one
form that the later stages (fusion, layout, kernels) expect: see each pass for its numbered rules.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..ir import STORED, Graph, Value
from .batchnorm import fold_batch_norm
from .composites import recognize_composites
from .cse import eliminate_common_subexpressions
from .dce import eliminate_dead_code
from .empties import remove_empties
from .fold import fold_constants, fold_weights
from .integers import lower_integers
from .movement import source_of
from .simplify import simplify
from .weights import lower_weights

Pass = Callable[[Graph], Graph]

# Integers before everything that could move into their weights; then constants, because everything asks for them; the
# merging of equal tensors before what counts uses; composites before affine folding, which would take the constants
# away that they are recognised by.
PASSES: tuple[Pass, ...] = (
    eliminate_dead_code,
    remove_empties,
    lower_integers,
    fold_constants,
    eliminate_common_subexpressions,
    simplify,
    recognize_composites,
    fold_batch_norm,
)

ROUNDS = 12  # a round without change ends the loop long before: this is a bound, not a setting


def canonicalize(graph: Graph, check: bool = False) -> Graph:
    """``graph`` in canonical form; the argument stays as it is.

    With ``check`` the IR's rules are checked after every pass (``GraphError`` names the pass in its notes). Afterwards
    outputs are distinct tensors that operations compute: where one is a stored tensor or named twice, an ``identity``
    carries the name.
    """
    work = _settle(_settle(graph, PASSES, check), (lower_weights, fold_weights, *PASSES[1:]), check)
    work = separate_outputs(work)
    if check:
        _check(work, separate_outputs)
    return work


def _settle(graph: Graph, passes: Sequence[Pass], check: bool) -> Graph:
    """The passes again and again until nothing changes."""
    from .rewrite import same

    work = graph
    for _ in range(ROUNDS):
        before = work
        for step in passes:
            work = step(work)
            if check:
                _check(work, step)
        if same(before, work):
            break
    return work


def _check(graph: Graph, step: Pass) -> None:
    try:
        graph.check()
    except Exception as error:
        error.add_note(f"after the pass {step.__name__}")
        raise


def separate_outputs(graph: Graph) -> Graph:
    """A copy in which no output is a stored tensor or another output's tensor: an ``identity`` stands between."""
    work = graph.copy()
    taken: set[Value] = set()
    for i, value in enumerate(work.outputs):
        if value in taken or work.node(value).op in STORED:
            value = work.add("identity", source_of(work, value), names=[work.output_names[i]])
            work.outputs[i] = value
        taken.add(value)
    return work


__all__ = ["PASSES", "ROUNDS", "Pass", "canonicalize", "separate_outputs"]
