"""Rescaling in integers is the float rule, at every sum that can be."""

from __future__ import annotations

import numpy as np
import pytest
from bare_cases import bare_complaints
from nervure.compiler.ir import Graph
from nervure.compiler.kernels.templates._fixed import _within_a_word, fixed, reach
from nervure.compiler.ops.integers import add_multiplier, add_shift, rescale
from nervure.compiler.types import type_of


def by_words(sums: np.ndarray, word: int, offset: int, shift: int, to: str) -> np.ndarray:
    info = np.iinfo(to)
    return np.clip(((sums * word >> 32) + offset) >> shift, info.min, info.max)


@pytest.mark.parametrize("to", ["int8", "uint8"])
@pytest.mark.parametrize("zero_point", [-128, -3, 0, 100])
def test_words_are_the_rule_at_every_sum(to, zero_point):
    zero = zero_point + 128 * (to == "uint8")
    rng = np.random.default_rng(zero + 500)
    multipliers = np.concatenate([rng.uniform(1e-4, 0.1, 30), [0.25, 0.0078125, 1e-9, 0.0, 0.9]]).astype(np.float32)
    least = rng.integers(-90000, -10, len(multipliers))
    most = rng.integers(10, 90000, len(multipliers))
    rule = fixed(multipliers, zero, to, least, most)
    assert rule is not None and (rule.words & 1).sum() < len(multipliers) / 2
    for c, m in enumerate(multipliers):
        sums = np.arange(least[c], most[c] + 1)
        word = int(rule.words.view(np.uint32)[c])
        if word & 1:  # the float's bits
            assert np.array([word >> 1], np.uint32).view(np.float32)[0] == m
        else:
            assert np.array_equal(
                by_words(sums, word, rule.offset, rule.shift, to), rescale(sums, m, zero, None, None, to)
            )


def test_halves_keep_the_float_rule():
    """Halves to even are no straight staircase."""
    rule = fixed(np.array([0.25], np.float32), 0, "int8", np.array([-999]), np.array([999]))
    assert rule is not None and rule.mixed


@pytest.mark.parametrize("m", [-0.1, np.inf, np.nan])
def test_other_multipliers_have_no_words(m):
    assert fixed(np.array([m], np.float32), 0, "int8", np.array([-9]), np.array([9])) is None


def test_reach_is_what_inputs_can_sum_to():
    rng = np.random.default_rng(3)
    w, bias = rng.integers(-128, 128, (4, 1, 3, 3)), rng.integers(-99, 99, 4)
    least, most = reach(w, bias, "uint8", 7)
    for c in range(4):
        up = np.where(w[c] > 0, 255 - 7, -7)
        down = np.where(w[c] > 0, -7, 255 - 7)
        assert most[c] == (w[c] * up).sum() + bias[c] and least[c] == (w[c] * down).sum() + bias[c]


@pytest.mark.parametrize("m", [0.013, 0.31, 0.71, 1.0, 1.93, 17.3])
@pytest.mark.parametrize("zero_point", [-128, 5])
def test_within_a_word(m, zero_point):
    m32 = np.array([m], np.float32)
    found = _within_a_word(m32, zero_point, "int8", np.array([-130]), np.array([125]), (None, None))
    assert found is not None
    word, offset, shift = found
    sums = np.arange(-130, 126)
    got = np.clip((sums * word + offset) >> shift, -128, 127)
    assert np.array_equal(got, rescale(sums, m32, zero_point, None, None, "int8"))
    assert np.abs(sums * word + offset).max() < 1 << 31


@pytest.mark.emulator
def test_pointwise_layers_on_cortex_m4(tmp_path):
    """Additions at the ends of their ranges, requantizing, products."""
    rng = np.random.default_rng(0)
    items = []
    ends = np.array([-128, 127, 0, 5], np.int8)
    a, b = rng.choice(ends, (3, 37)), rng.integers(-128, 128, (3, 37)).astype(np.int8)
    for n, (ratios, zeros, bounds) in enumerate(
        [
            ((0.4, 0.7), (3, -5, 2), (None, None)),
            ((1000.0, 900.0), (-128, 127, -128), (-100, 90)),
            ((0.002, 0.001), (0, 0, 127), (None, 50)),
        ]
    ):
        graph = Graph(f"add_{n}")
        x, y = (graph.input(name, type_of(v)) for name, v in (("x", a), ("y", b)))
        shift = add_shift(max(ratios))
        weights = [graph.const(add_multiplier(r, shift), f"m{r}") for r in ratios]
        names = ("a_zero_point", "b_zero_point", "zero_point")
        attrs = {**dict(zip(names, zeros, strict=True)), "low": bounds[0], "high": bounds[1], "to": "int8"}
        graph.output(graph.add("add_integer", x, y, *weights, shift=shift, **attrs))
        items.append((graph.name, graph, [a, b]))
    for n, (m, to) in enumerate([(0.71, "int8"), (0.5, "uint8"), (3.3, "int8")]):
        graph = Graph(f"again_{n}")
        x = graph.input("x", type_of(b))
        rule = {"x_zero_point": -9, "zero_point": 4, "low": None, "high": 100, "to": to}
        graph.output(graph.add("requantize", x, graph.const(np.array(m, np.float32), "m"), **rule))
        items.append((graph.name, graph, [b]))
    _, wrong = bare_complaints(items, "cortex-m4", tmp_path)
    assert not wrong, "\n".join(wrong)
