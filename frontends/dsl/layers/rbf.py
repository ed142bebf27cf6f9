"""Radial basis functions (Broomhead and Lowe 1988; Moody and Darken 1989), k-means for their centres, and a linear
read-out that is solved sample by sample."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..elementwise import exp, maximum, sqrt, square, where
from ..index import one_hot
from ..linalg import cdist
from ..promote import as_tensor
from ..reduce import argmin, mean, topk
from ..reduce import sum as total
from ..shaping import concat, expand_dims, ones, split
from ..tensor import Tensor
from ..trace import fail
from ..variable import assign
from .base import Layer, features_of, method, whole


class RBF(Layer):
    """Gaussian radial basis functions: [batch, features] to ``exp(-|x - centre|² / (2 width²))``, [batch, units].

    ``centers`` [units, features] are normal (standard deviation 0.05) unless given, ``widths`` [units] are ``width``.
    Both are weights, which gradients train; or they are set by the data, unsupervised, in a step of one's own:
    ``kmeans`` moves the centres, ``spread`` sets the widths. All distances come from one matrix product.
    """

    def __init__(self, units: int, width: float = 1.0, centers_initializer: Any = "normal") -> None:
        self.units, self.width = whole(units, "units"), float(width)
        if not self.width > 0:
            raise fail(f"width: expected a number above 0, got {width!r}")
        self.centers_initializer = centers_initializer

    def build(self, shape: Any) -> None:
        features = features_of(shape)
        self.centers = self.add_weight("centers", (self.units, features), self.centers_initializer)
        self.widths = self.add_weight("widths", (self.units,), self.width)

    def call(self, x: Tensor) -> Tensor:
        return exp(cdist(x, as_tensor(self.centers), "sqeuclidean") / (-2.0 * square(as_tensor(self.widths))))

    @method
    def kmeans(self, x: Tensor) -> Tensor:
        """One of Lloyd's iterations (1957): every centre becomes the mean of those samples [batch, features] that are
        nearest to it; one without samples stays. Returns the mean squared distance to the nearest centre before it."""
        centers = as_tensor(self.centers)
        squared = cdist(x, centers, "sqeuclidean")
        nearest = one_hot(argmin(squared, axis=1), self.units)
        count = expand_dims(total(nearest, axis=0), 1)
        assign(self.centers, where(count > 0, nearest.T @ x / maximum(count, 1.0), centers))
        return mean(squared.min(axis=1))

    @method
    def spread(self, *, neighbors: int = 2, scale: Any = 1.0) -> Tensor:
        """Every width becomes ``scale`` times the root of the mean squared distance to the ``neighbors`` nearest other
        centres (Moody and Darken 1989). Returns the widths [units]. It comes after a call on samples."""
        near = whole(neighbors, "neighbors") + 1
        if near > self.units:
            raise fail(f"{self.units} centres have {self.units - 1} neighbours, not {neighbors}")
        centers = as_tensor(self.centers)
        squared = topk(cdist(centers, centers, "sqeuclidean"), near, largest=False)[0][:, 1:]
        return assign(self.widths, sqrt(mean(squared, axis=1)) * scale)


class LeastSquares(Layer):
    """A linear read-out that is solved, not descended: ``[x, 1] @ weight``, [batch, features] to [batch, units].

    ``learn`` takes samples in one by one (recursive least squares: Gauss 1821, Plackett 1950); after any number of them
    ``weight`` [features + 1, units], its last row the bias, is that of ridge regression on all of them, with the
    penalty ``ridge`` on the bias too. ``covariance`` [features + 1, features + 1] is the state that it needs for it,
    and no matrix is inverted. ``weight`` is 0 at first; gradients can train it as well.
    """

    def __init__(self, units: int, ridge: float = 1.0) -> None:
        self.units, self.ridge = whole(units, "units"), float(ridge)
        if not self.ridge > 0:
            raise fail(f"ridge: expected a number above 0, got {ridge!r}")

    def build(self, shape: Any) -> None:
        size = features_of(shape) + 1
        self.weight = self.add_weight("weight", (size, self.units), "zeros")
        self.covariance = self.add_weight("covariance", (size, size), np.eye(size) / self.ridge, trainable=False)

    def call(self, x: Tensor) -> Tensor:
        return self._with_one(x) @ as_tensor(self.weight)

    @method
    def learn(self, x: Tensor, y: Tensor) -> Tensor:
        """Takes samples [batch, features] with their targets [batch, units] in, one after another; returns what was
        said of each, [batch, units], just before. The program grows with the batch: 1 is usual."""
        said = []
        for row, target in zip(split(self._with_one(x), len(x)), split(y, len(x)), strict=True):
            moved = row @ as_tensor(self.covariance)  # [1, size]
            gain = moved / (1.0 + total(moved * row))
            said.append(row @ as_tensor(self.weight))
            assign(self.weight, self.weight + gain.T @ (target - said[-1]))
            assign(self.covariance, self.covariance - gain.T @ moved)
        return concat(said)

    def _with_one(self, x: Tensor) -> Tensor:
        return concat([x, ones((x.shape[0], 1), x.dtype)], axis=1)


__all__ = ["RBF", "LeastSquares"]
