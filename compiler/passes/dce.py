"""Dead code elimination.

1. What no output and no binding needs is removed; inputs stay, because they are the signature.
"""

from __future__ import annotations

from ..ir import Graph


def eliminate_dead_code(graph: Graph) -> Graph:
    """A copy of ``graph`` without the operations whose results nothing uses."""
    work = graph.copy()
    work.prune()
    return work
