"""The gradients of quantization: LSQ's formula, finite differences of the smooth surrogate, PyTorch's learnable
fake quantization."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import nervure as nv
import numpy as np
import pytest
from nervure.frontends.dsl.elementwise import emit

F32 = np.float32


@dataclass(frozen=True)
class Sample:
    """One quantizer with data of which a part is clipped on each side."""

    name: str
    shape: tuple[int, ...]
    scale: np.ndarray
    zero: int
    to: str
    low: int
    high: int

    def data(self) -> tuple[np.ndarray, np.ndarray]:
        """x, and the gradient that arrives."""
        rng = np.random.default_rng(5)
        reach = 1.3 * (self.high - self.low) / 2 + 1
        x = (rng.uniform(-1, 1, self.shape) * reach + (self.low + self.high) / 2 - self.zero) * self.scale
        return x.astype(F32), rng.standard_normal(self.shape).astype(F32)


EACH = np.array([0.11, 0.013, 0.7], F32).reshape(3, 1, 1)
SAMPLES = (
    Sample("activation", (4, 50), np.array(0.037, F32), 5, "int8", -128, 127),
    Sample("unsigned", (4, 50), np.array(0.037, F32), 100, "uint8", 0, 255),
    Sample("4 bits", (4, 50), np.array(0.21, F32), 0, "int8", -8, 7),
    Sample("2 bits", (4, 50), np.array(0.5, F32), 0, "int8", -2, 1),
    Sample("each channel", (3, 5, 9), EACH, 0, "int8", -8, 7),
)
every = pytest.mark.parametrize("sample", SAMPLES, ids=lambda s: s.name)


def ours(sample: Sample, x: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The rounded tensor, and the gradients of x and of the scale."""
    own, arriving = sample.data()
    x = own if x is None else x
    zero = np.asarray(sample.zero, sample.to)

    def step(x: Any, s: Any) -> Any:
        bounds = {"to": sample.to, "low": sample.low, "high": sample.high}
        q = emit("quantize", x, s, nv.constant(zero, sample.to), **bounds)
        y = emit("dequantize", q, s, nv.constant(zero, sample.to), to="float32")
        return (y, *nv.grad(nv.sum(y * arriving), [x, s]))

    shapes = {"x": nv.Input(batch_shape=x.shape), "s": nv.Input(batch_shape=sample.scale.shape)}
    y, dx, ds = nv.network(step, **shapes)(x, sample.scale)
    return y, dx, ds


def surrogate(sample: Sample, x: np.ndarray, s: np.ndarray, rounding: np.ndarray) -> np.ndarray:
    """float64: (clip(x / s) + rounding) s, where the rounding error stays as it is when x and s move."""
    return s * (np.clip(x / s, sample.low - sample.zero, sample.high - sample.zero) + rounding)


@every
def test_the_formula_of_lsq(sample: Sample) -> None:
    """Esser et al. 2020, equations 3 and 5: round(x/s) - x/s inside, the bound outside; x gets 1 inside, else 0."""
    x, arriving = sample.data()
    low, high = sample.low - sample.zero, sample.high - sample.zero
    steps = np.rint(x / sample.scale)
    inside = (x / sample.scale > low) & (x / sample.scale < high)
    assert 0.05 < inside.mean() < 0.95
    each = arriving * np.where(inside, steps - x.astype(float) / sample.scale, np.clip(steps, low, high))
    axes = tuple(i for i, d in enumerate(sample.scale.shape) if d == 1) if sample.scale.ndim else None
    y, dx, ds = ours(sample)
    np.testing.assert_array_equal(y, (np.clip(steps, low, high) * sample.scale).astype(F32))
    np.testing.assert_allclose(dx, np.where(inside, arriving, 0), rtol=1e-6)
    wanted = each.sum(axis=axes, keepdims=sample.scale.ndim > 0)
    np.testing.assert_allclose(ds, wanted, atol=1e-5 * np.abs(each).sum())


@every
def test_finite_differences_of_the_surrogate(sample: Sample) -> None:
    x, arriving = (v.astype(np.float64) for v in sample.data())
    s = sample.scale.astype(np.float64)
    held = np.clip(x / s, sample.low - sample.zero, sample.high - sample.zero)
    rounding = np.rint(held) - held

    def moved(dx: float, ds: float) -> np.ndarray:
        return arriving * surrogate(sample, x + dx * s, s * (1 + ds), rounding)

    _, dx, ds = ours(sample)
    h = 1e-5
    slope = (moved(h, 0) - moved(-h, 0)) / (2 * h) / s
    np.testing.assert_allclose(dx, slope, rtol=1e-4, atol=1e-6)
    each = (moved(0, h) - moved(0, -h)) / (2 * h) / s
    axes = tuple(i for i, d in enumerate(s.shape) if d == 1) if s.ndim else None
    np.testing.assert_allclose(ds, each.sum(axis=axes, keepdims=s.ndim > 0), atol=1e-4 * np.abs(each).sum())


@every
def test_pytorchs_learnable_fake_quantization(sample: Sample) -> None:
    """What is rounded to a bound counts as clipped in PyTorch, in LSQ what lies beyond it: such elements are left out
    of the scale's."""
    torch = pytest.importorskip("torch")
    x, arriving = sample.data()
    x[np.isin(np.rint(x / sample.scale) + sample.zero, (sample.low, sample.high))] = 0
    held = torch.tensor(x, requires_grad=True)
    scale = torch.tensor(sample.scale.reshape(-1), requires_grad=True)
    zero = torch.full(scale.shape, float(sample.zero))
    if sample.scale.size == 1:
        made = torch._fake_quantize_learnable_per_tensor_affine(held, scale, zero, sample.low, sample.high, 1.0)
    else:
        made = torch._fake_quantize_learnable_per_channel_affine(held, scale, zero, 0, sample.low, sample.high, 1.0)
    (made * torch.tensor(arriving)).sum().backward()
    y, dx, ds = ours(sample, x)
    np.testing.assert_allclose(y, made.detach().numpy(), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(dx, held.grad.numpy(), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(ds.reshape(-1), scale.grad.numpy(), rtol=1e-4, atol=1e-4 * np.abs(arriving).max())
