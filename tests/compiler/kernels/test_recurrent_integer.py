"""LSTM and GRU on 8-bit steps: kernels equal the references bit for bit."""

from __future__ import annotations

import pytest
from harness import cases, check_region, machines, region_of, sample


@pytest.mark.parametrize("constant", [True, False], ids=["constant", "computed"])
@pytest.mark.parametrize("machine", machines(), ids=lambda m: m.name)
@pytest.mark.parametrize("name, case", cases("lstm_integer", "gru_integer"))
def test_cases(name, case, machine, constant):
    consts = range(7) if constant else ()
    region, arrays = region_of(name, sample(case), case.attrs, consts=consts, machine=machine)
    check_region(region, arrays)
