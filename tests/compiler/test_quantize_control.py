"""Accuracy control by itself: a network is a table of how much noise each layer makes in each number format."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nervure.compiler.quantize.control import Budget, Outcome, Promotion, Score, control, decibels

FLOAT_COST = 10.0


class Table:
    """``noise[layer]`` in int8; in int16 ``kept`` of it stays (what the weights cause); float is silent."""

    def __init__(self, noise: dict[str, float], kept: dict[str, float] | None = None, int16_cost: float = 5) -> None:
        self.noise, self.kept, self.int16_cost, self.asked = noise, kept or {}, int16_cost, 0

    def __call__(self, promoted: Promotion) -> Score:
        self.asked += 1
        left = {n: v * {"float": 0.0, "int16": self.kept.get(n, 0.0)}[promoted[n]] if n in promoted else v
                for n, v in self.noise.items()}  # fmt: skip
        return Score(sum(left.values()), 1 - sum(left.values()))

    def cost(self, promoted: Promotion) -> float:
        return sum({"float": FLOAT_COST, "int16": self.int16_cost}[k] for k in promoted.values())

    def run(self, budget: Budget, **options: object) -> Outcome:
        return control(sorted(self.noise), self, budget, 1.0, cost=self.cost, **options)  # type: ignore[arg-type]


def test_nothing_is_promoted_where_the_budget_holds() -> None:
    found = Table({"a": 0.001, "b": 0.001}).run(Budget(noise=0.01))
    assert found.met and found.promoted == {} and len(found.trials) == 1


def test_the_worst_layer_and_only_that() -> None:
    found = Table({"a": 0.001, "b": 0.5, "c": 0.002}).run(Budget(drop=0.01), to="float")
    assert found.met and found.promoted == {"b": "float"} and max(found.damage, key=found.damage.__getitem__) == "b"
    assert found.damage["b"] == pytest.approx(0.5 / 0.503) and found.score.value == pytest.approx(0.997)


def test_16_bits_where_they_are_enough_and_not_slower() -> None:
    assert Table({"a": 0.001, "b": 0.5}).run(Budget(noise=0.01)).promoted == {"b": "int16"}
    assert Table({"a": 0.001, "b": 0.5}, {"b": 0.9}).run(Budget(noise=0.01)).promoted == {"b": "float"}
    assert Table({"a": 0.001, "b": 0.5}, int16_cost=50).run(Budget(noise=0.01)).promoted == {"b": "float"}
    mixed = Table({"a": 0.3, "b": 0.5, "c": 0.001}, {"a": 0.05}).run(Budget(noise=0.01))
    assert mixed.promoted == {"a": "float", "b": "int16"}


def test_a_budget_that_cannot_be_met_says_what_it_would_take() -> None:
    found = Table({"a": 0.3, "b": 0.5, "c": 0.001}, {"a": 0.9, "b": 0.9}).run(Budget(noise=0.01), to="int16")
    assert not found.met and found.needed == {"a": "float", "b": "float"}
    never = control(["a"], lambda promoted: Score(0.5, math.nan), Budget(drop=0.1), 1.0)
    assert not never.met and never.needed is None


def test_no_measurement_is_made_twice_and_few_are_made() -> None:
    table = Table({f"layer {i:03}": 1e-4 for i in range(100)})
    found = table.run(Budget(noise=5e-3), to="float", exact=8)
    assert found.met and len(found.promoted) == 50 and table.asked == len(found.trials) <= 8 + 2 + 2 * 7


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.floats(1e-6, 1))
def test_what_is_promoted_holds_and_one_less_does_not(noise: list[float], allowed: float) -> None:
    table = Table({f"{i:02}": v for i, v in enumerate(noise)})
    found = table.run(Budget(noise=allowed), to="float")
    assert found.met and table(found.promoted).noise <= allowed
    if found.promoted:
        weakest = min(found.promoted, key=lambda n: table.noise[n])
        assert table({n: "float" for n in found.promoted if n != weakest}).noise > allowed


def test_a_rough_measure_is_enough_for_the_order() -> None:
    table, asked = Table({"a": 0.001, "b": 0.5, "c": 0.2}), []

    def rough(promoted: Promotion) -> float:
        asked.append(dict(promoted))
        return table(promoted).noise * 1.1

    found = table.run(Budget(noise=0.01), to="float", rough=rough)
    assert found.promoted == {"b": "float", "c": "float"} and found.damage["b"] == pytest.approx(0.5 / 0.701)
    assert asked == [{}, {"a": "float"}, {"b": "float"}, {"c": "float"}] and len(found.trials) == 3


def test_decibels() -> None:
    assert decibels(0.01) == pytest.approx(20) and decibels(0) == math.inf
