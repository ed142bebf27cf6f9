"""Ranges of activations and weights, from histograms and arrays.

minmax takes what was seen; average a moving average of each sample's extent; percentile leaves a share of the values
outside; mse minimises the mean square of what clipping and rounding change; entropy the Kullback-Leibler divergence of
the quantized distribution from the real one (Migacz, "8-bit inference with TensorRT", 2017). Which serves a network
best is found by ``quantizer`` where the method is auto.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .observe import Extent, Histogram
from .scheme import Scheme, affine, symmetric
from .settings import Settings

_FACTORS = 40  # candidates for each end of a range, evenly spaced
_LEAST = 0.05  # the smallest part of an extent that is tried
_ROUNDS = 3


def activation_range(
    extent: Extent, histogram: Histogram | None, dtype: str, settings: Settings
) -> tuple[float, float]:
    """[low, high] of an activation by the settings' method; ``histogram`` may be None for minmax and average."""
    if settings.method == "minmax" or (histogram is None and settings.method != "average"):
        return extent.low, extent.high
    if settings.method == "average":
        return extent.mean_low, extent.mean_high
    assert histogram is not None
    if histogram.high <= histogram.low:
        return extent.low, extent.high
    if settings.method == "percentile":
        return percentile(histogram, settings.percentile)
    if dtype == "int16":  # its rounding is far below what a histogram resolves
        return extent.low, extent.high
    return search(histogram, dtype, squared_error if settings.method == "mse" else divergence)


def percentile(histogram: Histogram, share: float) -> tuple[float, float]:
    """The range that holds ``share`` percent of the values; at an end where there is only 0, all."""
    edges = np.linspace(histogram.low, histogram.high, len(histogram.counts) + 1)
    below = np.concatenate([[0], np.cumsum(histogram.counts)]) / max(1, histogram.counts.sum())
    ends = [histogram.low < 0, histogram.high > 0]
    rest = (1 - share / 100) / max(1, sum(ends))
    low = float(np.interp(rest, below, edges)) if ends[0] else 0.0
    high = float(np.interp(1 - rest, below, edges)) if ends[1] else 0.0
    return min(low, 0.0), max(high, 0.0)


def search(histogram: Histogram, dtype: str, loss: Callable[[Histogram, Scheme], float]) -> tuple[float, float]:
    """The range within the extent whose scheme has the least loss: one end after the other, each on a grid that gets
    finer."""
    best = (histogram.low, histogram.high)
    least = loss(histogram, affine(*best, dtype))
    step = (1 - _LEAST) / _FACTORS
    factors = [1.0, 1.0]
    for _ in range(_ROUNDS):
        for end in (1, 0):
            if best[end] == 0.0:
                continue
            tried = [factors[end] + step * k for k in range(-_FACTORS, _FACTORS + 1)]
            for factor in sorted({min(1.0, max(_LEAST, f)) for f in tried}, reverse=True):
                ends = [histogram.low * factors[0], histogram.high * factors[1]]
                ends[end] = (histogram.low, histogram.high)[end] * factor
                found = loss(histogram, affine(ends[0], ends[1], dtype))
                if found < least:
                    least, best = found, (ends[0], ends[1])
            whole = (histogram.low, histogram.high)[end]
            factors[end] = best[end] / whole
        step /= 8
    return best


def squared_error(histogram: Histogram, scheme: Scheme) -> float:
    """The mean over the samples of noise over signal, both mean squares."""
    return sum(error_parts(histogram, scheme, histogram.shares))


def error_parts(histogram: Histogram, scheme: Scheme, counts: np.ndarray | None = None) -> tuple[float, float]:
    """Mean squares of what clipping and what rounding change."""
    x, counts = histogram.centers, histogram.counts if counts is None else counts
    total = max(float(counts.sum()), 1e-30)
    low, high = (float(r) for r in scheme.reals)
    inside = np.clip(x, low, high)
    steps = float(scheme.scale)
    rounded = np.rint(inside / steps) * steps - inside
    return float(counts @ (inside - x) ** 2) / total, float(counts @ rounded**2) / total


def divergence(histogram: Histogram, scheme: Scheme) -> float:
    """KL divergence of the quantized distribution from the real one; what is clipped lies in the outermost steps.

    Zeros are exact in every scheme. A relu leaves so many that their bin would be all that counts: it is levelled.
    """
    x, counts = histogram.centers, histogram.counts.astype(np.float64)
    zero = int(np.argmin(np.abs(x)))
    counts[zero] = min(counts[zero], counts[zero - 1 : zero].sum() or counts[zero + 1 : zero + 2].sum())
    low, high = scheme.bounds
    steps = np.clip(np.rint(x / float(scheme.scale)) + scheme.zero_point, low, high).astype(np.int64) - low
    occupied = counts > 0
    mass = np.bincount(steps, counts, high - low + 1)
    bins = np.bincount(steps, occupied & _within(x, scheme), high - low + 1)
    spread = np.divide(mass, bins, out=np.zeros_like(mass), where=bins > 0)[steps] * (occupied & _within(x, scheme))
    p, q = counts / counts.sum(), spread / max(spread.sum(), 1e-30)
    tiny = 1e-9
    some = p > 0
    return float((p[some] * np.log(p[some] / np.maximum(q[some], tiny))).sum())


def _within(x: np.ndarray, scheme: Scheme) -> np.ndarray:
    low, high = (float(r) for r in scheme.reals)
    half = float(scheme.scale) / 2
    return np.asarray((x >= low - half) & (x <= high + half))


def weight_scheme(weight: np.ndarray, axis: int, settings: Settings) -> Scheme:
    """The symmetric scheme of a layer's weights, ``axis`` being their output channels.

    With ``weight_method="mse"`` each channel's reach is that of 60 between 0.4 and 1 of its largest magnitude which
    changes it least.
    """
    rows = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1).astype(np.float32)
    shape = tuple(d if i == axis else 1 for i, d in enumerate(weight.shape))
    if not settings.per_channel:
        rows, shape = rows.reshape(1, -1), ()
    reach = np.abs(rows).max(axis=1, initial=0.0)
    best, least = np.ones(len(rows)), _row_errors(rows, reach, settings.weight_bits)
    factors = np.linspace(0.4, 1.0, 60, endpoint=False)[::-1] if settings.weight_method == "mse" else ()
    for factor in factors:
        some = np.flatnonzero(least > 0)
        if not some.size:
            break
        error = _row_errors(rows[some], reach[some] * factor, settings.weight_bits)
        better = some[error < least[some]]
        best[better], least[better] = factor, error[error < least[some]]
    return symmetric((reach * best).reshape(shape), settings.weight_bits)


def _row_errors(rows: np.ndarray, reach: np.ndarray, bits: int) -> np.ndarray:
    """The sum of squares that quantizing changes in each row; what float32 rounding alone makes counts as 0."""
    scheme = symmetric(reach[:, None], bits)
    low, high = scheme.bounds
    change = np.clip(np.rint(rows / scheme.scale), low, high) * scheme.scale - rows
    errors = np.einsum("ij,ij->i", change, change)
    return np.where(errors <= 1e-12 * np.einsum("ij,ij->i", rows, rows), 0.0, errors)


__all__ = ["activation_range", "error_parts", "percentile", "search", "squared_error", "weight_scheme"]
