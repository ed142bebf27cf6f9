"""The self-organizing map (Kohonen 1982): a grid of units that spreads over the data, neighbours near neighbours."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..elementwise import exp, less_equal, maximum, square, where
from ..index import take
from ..linalg import cdist
from ..promote import as_tensor
from ..reduce import argmin, mean, topk
from ..reduce import sum as total
from ..shaping import concat, expand_dims, reshape, split
from ..tensor import Tensor
from ..trace import fail
from ..variable import assign
from .base import Layer, features_of, method, whole


class SelfOrganizingMap(Layer):
    """A map of ``rows`` times ``columns`` units: [batch, features] to each unit's distance, [batch, rows * columns].

    ``topology``: ``"rectangular"``, where a unit has 8 neighbours, or ``"hexagonal"``, where odd rows are shifted by
    half a unit to the right and a unit has 6, all at the distance 1. ``neighborhood``: how far from the winner others
    learn, ``"gaussian"`` (``exp(-d² / (2 radius²))``) or ``"bubble"`` (all within the radius), d measured on the grid.
    ``weight`` [rows * columns, features], row by row, is uniform in [-0.05, 0.05] unless given. It learns in a step of
    one's own, by ``learn`` or ``learn_all``; rate and radius are that step's inputs, so that they can have schedules.
    """

    def __init__(
        self,
        rows: int,
        columns: int,
        topology: str = "rectangular",
        neighborhood: str = "gaussian",
        kernel_initializer: Any = "uniform",
    ) -> None:
        self.rows, self.columns = whole(rows, "rows"), whole(columns, "columns")
        if topology not in ("rectangular", "hexagonal"):
            raise fail(f"topology: expected 'rectangular' or 'hexagonal', got {topology!r}")
        if neighborhood not in ("gaussian", "bubble"):
            raise fail(f"neighborhood: expected 'gaussian' or 'bubble', got {neighborhood!r}")
        if self.rows * self.columns < 2:
            raise fail("a map needs at least two units")
        self.topology, self.neighborhood = topology, neighborhood
        self.kernel_initializer = kernel_initializer

    # -- the grid ----------------------------------------------------------------------------------------------------

    @property
    def positions(self) -> np.ndarray:
        """Where the units are on the grid, [units, 2]: x to the right, y downwards; neighbours are 1 apart."""
        row, column = (a.ravel() for a in np.mgrid[0 : self.rows, 0 : self.columns].astype(np.float64))
        if self.topology == "hexagonal":
            column, row = column + row % 2 / 2, row * math.sqrt(3) / 2
        return np.stack([column, row], axis=1)

    @property
    def neighbors(self) -> np.ndarray:
        """Which units are neighbours, bool [units, units]; none is its own."""
        reach = 1.5 if self.topology == "rectangular" else 1.1
        squared = self._between()
        return np.asarray((squared < reach**2) & (squared > 0))

    def _between(self) -> np.ndarray:
        """Squared distances on the grid, [units, units]."""
        at = self.positions
        return np.asarray(((at[:, None] - at[None]) ** 2).sum(axis=2))

    # -- the map -----------------------------------------------------------------------------------------------------

    def build(self, shape: Any) -> None:
        shape = (self.rows * self.columns, features_of(shape))
        self.weight = self.add_weight("weight", shape, self.kernel_initializer)

    def call(self, x: Tensor) -> Tensor:
        return cdist(x, as_tensor(self.weight))

    @method
    def winner(self, x: Tensor) -> Tensor:
        """The unit nearest to each sample, int64 [batch]: ``row * columns + column``."""
        return argmin(cdist(x, as_tensor(self.weight), "sqeuclidean"), axis=1)

    @method
    def learn(self, x: Tensor, rate: Any, radius: Any) -> Tensor:
        """Kohonen's rule: for one sample [batch, features] after another, the nearest unit and its neighbourhood move
        towards it, ``weight += rate neighbourhood (x - weight)``. Returns the nearest units, int64 [batch]. The program
        grows with the batch: 1 is usual."""
        winners = []
        for sample in split(x, len(x)):
            away = sample - self.weight
            winners.append(argmin(total(square(away), axis=1, keepdims=True), axis=0))
            near = self._near(winners[-1], radius)
            assign(self.weight, self.weight + rate * near.T * away)
        return concat(winners)

    @method
    def learn_all(self, x: Tensor, radius: Any) -> Tensor:
        """The batch rule (Kohonen 1993) for all samples [batch, features] at once: every unit becomes the mean of the
        samples, weighted by how near it is to their winners. Returns the nearest units before it, int64 [batch]."""
        winners = self.winner(x)
        near = self._near(winners, radius)
        weights = expand_dims(total(near, axis=0), 1)
        moved = near.T @ x / maximum(weights, 1e-12)
        assign(self.weight, where(weights > 1e-12, moved, as_tensor(self.weight)))
        return winners

    def _near(self, winners: Tensor, radius: Any) -> Tensor:
        """How much each unit learns from each sample, [batch, units]."""
        squared = take(self._between().astype(np.float32), winners, axis=0)
        if self.neighborhood == "bubble":
            return as_tensor(less_equal(squared, radius * radius + 1e-4), "float32")
        return exp(squared / (-2.0 * radius * radius))

    # -- what it is worth --------------------------------------------------------------------------------------------

    @method
    def quantization_error(self, x: Tensor) -> Tensor:
        """The mean distance of samples [batch, features] from their nearest units, a number."""
        return mean(self.call(x).min(axis=1))

    @method
    def topographic_error(self, x: Tensor) -> Tensor:
        """The part of samples [batch, features] whose two nearest units are not neighbours (Kiviluoto 1996)."""
        best = topk(cdist(x, as_tensor(self.weight), "sqeuclidean"), 2, largest=False)[1]
        pairs = best[:, 0] * (self.rows * self.columns) + best[:, 1]
        return 1.0 - mean(take(self.neighbors.astype(np.float32).ravel(), pairs))

    @method
    def u_matrix(self) -> Tensor:
        """Each unit's mean distance from its neighbours, [rows, columns]: ridges lie between clusters (Ultsch and
        Siemon 1990). It comes after a call on samples."""
        beside = self.neighbors.astype(np.float32)
        weight = as_tensor(self.weight)
        apart = total(cdist(weight, weight) * beside, axis=1) / beside.sum(axis=1)
        return reshape(apart, (self.rows, self.columns))


__all__ = ["SelfOrganizingMap"]
