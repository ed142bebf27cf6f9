"""Recurrent layers on a GPU: weights that stay on the chip and weights that are read at every step, rows of a batch
that end inside a block, both directions, sequences that end early."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from cuda_images import counted, needs_compiler
from harness import cases, check_region, region_of, sample
from nervure.compiler.kernels.templates import cuda_recurrent, plans
from nervure.compiler.ops import OPS
from nervure.targets import get

MACHINE = get("cuda-sm80")
FEW = replace(MACHINE, name="cuda-few", gpu=replace(MACHINE.gpu, multiprocessors=2))  # several rows a block
GATES = {"lstm": 4, "gru": 3, "rnn": 1}


def build(op, steps, batch, features, hidden, *, both=False, machine=MACHINE, dtype="float32", lengths=None, **attrs):
    rng, gates, directions = np.random.default_rng(0), GATES[op], 2 if both else 1

    def weights(*shape):
        return (rng.standard_normal(shape) / np.sqrt(hidden)).astype(dtype)

    arrays = [
        *(rng.standard_normal((steps, batch, features)).astype(dtype), weights(directions, gates * hidden, features)),
        *(weights(directions, gates * hidden, hidden), weights(directions, 2 * gates * hidden)),
        None if lengths is None else np.array(lengths, np.int32),
        weights(directions, batch, hidden),
    ]
    attrs |= {"direction": "bidirectional" if both else "forward", "activations": None, "clip": None}
    attrs |= {"lstm": {"input_forget": False}, "gru": {"linear_before_reset": False}}.get(op, {}) | attrs
    return region_of(op, arrays, attrs, consts=(1, 2, 3), machine=machine)


def check(region, arrays, held):
    (plan,) = plans(region)
    assert plan.template == "cuda_recurrent" and plan.phases[1].spec.config["fits"] == held
    check_region(region, arrays)


@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize("hidden", [16, 33])
def test_held(op, hidden):
    check(*build(op, 4, 2, 5, hidden, both=True), True)


@pytest.mark.parametrize("op", GATES)
def test_read_anew(op, monkeypatch):
    monkeypatch.setattr(cuda_recurrent, "_WRITTEN", 0)
    check(*build(op, 3, 3, 7, 36, machine=FEW), False)


def test_rows_of_a_block_and_lengths():
    check(*build("lstm", 5, 7, 3, 12, machine=FEW, lengths=[5, 0, 2, 1, 5, 4, 3]), True)
    check(*build("gru", 5, 5, 40, 12, machine=FEW, lengths=[5, 0, 2, 1, 4], linear_before_reset=True), True)


def test_half_floats():
    check(*build("lstm", 3, 1, 6, 16, dtype="float16"), True)


def test_float64_is_not_served():
    region, arrays = build("rnn", 2, 1, 3, 4, dtype="float64")
    assert plans(region)[0].template == "recurrent"
    check_region(region, arrays)


@pytest.mark.parametrize(("op", "case"), cases("lstm_integer", "gru_integer")[::4])
def test_integers(op, case):
    region, arrays = region_of(op, sample(case), case.attrs, machine=MACHINE)
    assert [p.template for p in plans(region)] == ["cuda_recurrent_integer"]
    check_region(region, arrays)


@needs_compiler
@pytest.mark.parametrize("op", ["lstm_integer", "gru_integer"])
def test_integers_have_no_local_memory(op):
    case = next(iter(OPS[op].cases()))
    arrays = sample(case)
    given = range(1, sum(a is not None for a in arrays))  # weights that are not constants are packed by a CPU's kernel
    counted(region_of(op, arrays, case.attrs, consts=given, machine=MACHINE)[0], "cuda_recurrent_integer")


@needs_compiler
@pytest.mark.parametrize(("op", "hidden"), [("lstm", 128), ("gru", 96), ("lstm", 512)])
def test_no_local_memory(op, hidden):
    region, _ = build(op, 4, 1, 28, hidden)
    counted(region, "cuda_recurrent")
