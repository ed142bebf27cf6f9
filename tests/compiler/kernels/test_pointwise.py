"""The pointwise template on every elementwise operator's sample cases."""

from __future__ import annotations

import pytest
from harness import cases, check_region, region_of, sample
from nervure.compiler.ops import OPS, Kind

ELEMENTWISE = sorted(n for n, op in OPS.items() if op.kind is Kind.ELEMENTWISE and op.reference is not None)


@pytest.mark.parametrize("name, case", cases(*ELEMENTWISE))
def test_cases(name, case):
    region, arrays = region_of(name, sample(case), case.attrs)
    check_region(region, arrays)
