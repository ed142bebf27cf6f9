"""Scans of recurrent layers and their backward passes: directions, lengths, sizes that fill no vector, tails of the
batch."""

from __future__ import annotations

import numpy as np
import pytest
from harness import cases, check_region, machines, region_of, sample
from nervure.compiler.ops import OPS

SCANS = ("lstm_scan", "gru_scan", "rnn_scan")
GATES = {"lstm": 4, "gru": 3, "rnn": 1}


@pytest.mark.parametrize("name, case", cases(*SCANS, *(f"{n}_grad" for n in SCANS)))
def test_cases(name, case):
    region, arrays = region_of(name, sample(case), case.attrs)
    check_region(region, arrays)


@pytest.mark.parametrize("machine", machines(), ids=lambda m: m.name)
@pytest.mark.parametrize("op", sorted(GATES))
@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("steps, batch, hidden", [(3, 32, 64), (4, 19, 100), (2, 37, 17), (5, 1, 7)])
def test_sizes(op, linear, steps, batch, hidden, machine):
    if linear and op != "gru":
        pytest.skip("an option of the GRU")
    attrs = {"linear_before_reset": True} if linear else {}
    random = np.random.default_rng(hidden)

    def values(*shape):
        return (random.uniform(-1, 1, shape) / hidden**0.5).astype(np.float32)

    gates = GATES[op]
    fed, r = values(1, steps, batch, gates * hidden), values(1, gates * hidden, hidden)
    region, arrays = region_of(f"{op}_scan", [fed, r], attrs, machine=machine)
    check_region(region, arrays)
    gh = values(1, steps, batch, hidden)
    h, *rest = OPS[f"{op}_scan"].reference(fed, r, **OPS[f"{op}_scan"].attrs | attrs)
    if op == "lstm":
        given = [rest[0], rest[1], None, None, None, gh]
    else:
        given = [h, rest[0], rest[1], None, None, gh] if op == "gru" else [h, None, gh]
    region, arrays = region_of(f"{op}_scan_grad", [r, *given], attrs, machine=machine)
    check_region(region, arrays)
