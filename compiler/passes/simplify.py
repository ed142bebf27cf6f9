"""Algebraic simplification: the tables of ``movement``, ``algebra`` and ``windows``, applied by one worklist.

Each table is a list of rules (name, pattern, condition, build), numbered in its module's text. No rule changes a
tensor's type, and none computes anything twice. Results stay equal up to rounding: a rule that reassociates constants
rounds them once more or once less; everything else is exact.
"""

from __future__ import annotations

from ..ir import Graph
from . import algebra, movement, windows
from .rewrite import Rule, rewrite

RULES: tuple[Rule, ...] = (*movement.RULES, *algebra.RULES, *windows.RULES)


def simplify(graph: Graph) -> Graph:
    """A copy of ``graph`` without what algebra can do away with."""
    return rewrite(graph, RULES)
