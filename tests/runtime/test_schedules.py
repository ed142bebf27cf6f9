"""Learning-rate schedules, against PyTorch's where it is installed and against figures from their definitions."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import nervure as nv
import pytest
from nervure.errors import NervureError
from nervure.runtime import schedules as s

EXAMPLES: list[s.Schedule] = [
    s.Constant(0.1),
    s.StepDecay(0.1, 3, 0.5),
    s.ExponentialDecay(0.1, 4, 0.5),
    s.InverseTimeDecay(0.1, 4, 0.5, staircase=True),
    s.CosineDecay(0.0, 10, 0.1, warmup_target=0.2, warmup_steps=4),
    s.CosineDecayRestarts(0.1, 5, 2.0, 0.9, 0.05),
    s.PolynomialDecay(0.1, 10, 0.01, 2.0, cycle=True),
    s.PiecewiseConstant([2, 5], [0.3, 0.2, 0.1]),
    s.Warmup(s.CosineDecay(0.1, 20), 5, 0.1),
    s.OneCycle(0.5, 20),
]


@pytest.mark.parametrize("schedule", EXAMPLES, ids=lambda v: type(v).__name__)
def test_from_plain_data_and_back(schedule: s.Schedule) -> None:
    again = s.from_config(json.loads(json.dumps(schedule.config())))
    assert again == schedule
    assert [again(i) for i in range(40)] == [schedule(i) for i in range(40)]
    assert all(isinstance(again(i), float) and math.isfinite(again(i)) for i in range(100))


def test_figures() -> None:
    assert s.StepDecay(1.0, 3, 0.5)(5) == 0.5
    assert s.ExponentialDecay(1.0, 4, 0.5)(2) == pytest.approx(0.5**0.5)
    assert s.ExponentialDecay(1.0, 4, 0.5, staircase=True)(7) == 0.5
    assert s.InverseTimeDecay(1.0, 4, 0.5)(8) == 0.5
    warm = s.CosineDecay(0.1, 10, warmup_target=0.5, warmup_steps=4)
    assert [warm(i) for i in (0, 2, 4, 9, 14, 99)] == pytest.approx([0.1, 0.3, 0.5, 0.25, 0, 0])
    restarts = s.CosineDecayRestarts(1.0, 4, 2.0, 0.5)
    assert [restarts(i) for i in (0, 2, 4, 8, 12)] == pytest.approx([1, 0.5, 0.5, 0.25, 0.25])
    poly = s.PolynomialDecay(1.0, 10, 0.0, 2.0)
    assert [poly(i) for i in (0, 5, 10, 20)] == [1, 0.25, 0, 0]
    assert [s.PolynomialDecay(1.0, 10, 0.0, cycle=True)(i) for i in (10, 15)] == [0, 0.25]
    assert [s.PiecewiseConstant([2, 5], [3, 2, 1])(i) for i in (0, 2, 3, 5, 6)] == [3, 3, 2, 2, 1]
    assert [s.Warmup(0.4, 4)(i) for i in range(6)] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.4])
    assert s.Warmup(s.StepDecay(1.0, 2, 0.5), 3)(5) == 0.5
    cycle = s.OneCycle(1.0, 11, 4 / 11, 10, 100, "linear")
    assert [cycle(i) for i in (0, 3, 10, 50)] == pytest.approx([0.1, 1.0, 0.001, 0.001])
    assert nv.schedules.OneCycleLR is s.OneCycle


def _torch_rates(make: Callable[[Any, Any], Any], rate: float, count: int) -> list[float]:
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=rate)
    scheduler = make(torch.optim.lr_scheduler, optimizer)
    found = []
    for _ in range(count):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


PAIRS: dict[str, tuple[Callable[[Any, Any], Any], s.Schedule]] = {
    "StepLR": (lambda m, o: m.StepLR(o, 3, 0.3), s.StepLR(0.2, 3, 0.3)),
    "MultiStepLR": (lambda m, o: m.MultiStepLR(o, [3, 7], 0.3), s.MultiStepLR(0.2, [3, 7], 0.3)),
    "ExponentialLR": (lambda m, o: m.ExponentialLR(o, 0.9), s.ExponentialLR(0.2, 0.9)),
    "CosineAnnealingLR": (lambda m, o: m.CosineAnnealingLR(o, 30, 0.01), s.CosineAnnealingLR(0.2, 30, 0.01)),
    "PolynomialLR": (lambda m, o: m.PolynomialLR(o, 20, 2.0), s.PolynomialLR(0.2, 20, 2.0)),
    "OneCycleLR": (lambda m, o: m.OneCycleLR(o, 0.2, total_steps=30), s.OneCycleLR(0.2, 30)),
}


@pytest.mark.parametrize("name", sorted(PAIRS))
def test_as_in_pytorch(name: str) -> None:
    make, ours = PAIRS[name]
    assert [ours(i) for i in range(30)] == pytest.approx(_torch_rates(make, 0.2, 30), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(
    "make",
    [
        lambda: s.Constant(-1.0),
        lambda: s.StepDecay(0.1, 0),
        lambda: s.CosineDecay(float("nan"), 10),
        lambda: s.PiecewiseConstant([1, 2], [0.1]),
        lambda: s.OneCycle(0.1, 10, anneal="square"),
        lambda: s.CosineDecayRestarts(0.1, 10, t_mul=0.5),
        lambda: s.from_config({"class_name": "Sawtooth"}),
        lambda: s.from_config({"class_name": "Constant", "rate": 1}),
    ],
)
def test_mistakes(make: Callable[[], Any]) -> None:
    with pytest.raises(NervureError):
        make()


def test_get() -> None:
    assert s.get(0.1) == s.Constant(0.1)
    assert s.get(EXAMPLES[1]) is EXAMPLES[1]
    assert [s.get(e.config()) for e in EXAMPLES] == EXAMPLES
