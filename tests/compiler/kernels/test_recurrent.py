"""LSTM, GRU and plain recurrent layers: directions, lengths, states, sizes that fill no vector."""

from __future__ import annotations

import numpy as np
import pytest
from harness import cases, check_region, machines, region_of, sample

GATES = {"lstm": 4, "gru": 3, "rnn": 1}


def layer(
    op: str, steps: int, batch: int, features: int, hidden: int, directions: int = 1, seed: int = 0
) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    gates = GATES[op]
    shapes = [(steps, batch, features), (directions, gates * hidden, features), (directions, gates * hidden, hidden)]
    shapes.append((directions, 2 * gates * hidden))
    return [(rng.standard_normal(s) / max(s) ** 0.5).astype(np.float32) for s in shapes]


@pytest.mark.parametrize("constant", [True, False], ids=["constant weights", "computed weights"])
@pytest.mark.parametrize("name, case", cases("lstm", "gru", "rnn"))
def test_cases(name, case, constant):
    region, arrays = region_of(name, sample(case), case.attrs, consts=(1, 2) if constant else ())
    check_region(region, arrays)


@pytest.mark.parametrize("machine", machines(), ids=lambda m: m.name)
@pytest.mark.parametrize("op", sorted(GATES))
@pytest.mark.parametrize(
    "steps, batch, features, hidden", [(7, 1, 20, 128), (13, 1, 64, 100), (4, 6, 9, 48), (5, 3, 1, 7)]
)
def test_sizes(op, steps, batch, features, hidden, machine):
    region, arrays = region_of(op, layer(op, steps, batch, features, hidden), {}, consts=(1, 2, 3), machine=machine)
    check_region(region, arrays)


@pytest.mark.parametrize("op", sorted(GATES))
def test_batch_first_memory_and_both_directions(op):
    arrays = layer(op, 9, 4, 12, 40, directions=2)
    given = [*arrays, np.array([9, 1, 4, 7], np.int64)]
    region, values = region_of(
        op,
        given,
        {"direction": "bidirectional"},
        consts=(1, 2),
        order=lambda r: (1, 0, *range(2, r)) if r == 3 else range(r),
    )
    check_region(region, values)
