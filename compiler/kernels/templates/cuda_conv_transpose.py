"""conv_transpose on a GPU: for each remainder of the output's coordinates modulo the stride, a small convolution of
stride 1 with flipped weights (``_transposed``), whose kernel writes every so manyth point. Each output is gathered, so
that nothing is added in an order that depends on chance. The small convolutions are those of ``cuda_conv``,
``cuda_depthwise`` and ``cuda_conv_simt``, whichever is estimated to take least.
"""

from __future__ import annotations

import math
from itertools import product

from ..spec import Plan, Region, Template
from ._cuda_conv_parts import Part, joined, reachable
from ._tile import fits
from ._transposed import Phase
from .cuda_conv import implicit
from .cuda_conv_simt import direct
from .cuda_depthwise import depthwise

MOST_PHASES = 16


def plan(region: Region) -> list[Plan]:
    """One plan, where there are few phases."""
    if region.machine.gpu is None or not fits(region) or None in (region.operand(0), region.operand(1)):
        return []
    counts = [min(s, n) for s, n in zip(region.attrs["strides"], region.anchor_type.dims[2:], strict=True)]
    if math.prod(counts) > MOST_PHASES or not reachable(region):
        return []
    phases = [Phase(region, r) for r in product(*map(range, counts))]
    return [joined(region, "cuda_conv_transpose", [_cheapest(region, p) for p in phases])]


def _cheapest(region: Region, phase: Phase) -> Part:
    """The kernels of one phase."""
    if phase.depthwise and 0 not in phase.kernel:
        return depthwise(region, phase)
    found = [direct(region, phase), implicit(region, phase)]
    return min((p for p in found if p is not None), key=lambda p: p.cost)


TEMPLATE = Template("cuda_conv_transpose", ("conv_transpose",), plan, {}, device=True)
