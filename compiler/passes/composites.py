"""Recognition of the composite forms that exporters write out.

The rules lie in ``norms`` (layer, RMS and group norm), ``activations`` (gelu, silu, softmax, ...) and ``attend``
(attention). A form is only recognised where nothing else uses its intermediate tensors. They are written for graphs
that ``simplify`` has been over: a constant divisor may be a factor, the square a product, a pair of bounds a clip.
"""

from __future__ import annotations

from ..ir import Graph
from . import activations, attend, norms
from .rewrite import Rule, rewrite

RULES: tuple[Rule, ...] = (*norms.RULES, *activations.RULES, *attend.RULES)


def recognize_composites(graph: Graph) -> Graph:
    """A copy of ``graph`` in which composite forms are single operations."""
    return rewrite(graph, RULES)
