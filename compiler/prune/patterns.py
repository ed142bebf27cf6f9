"""Sparse patterns: which weights of a layer become zero together.

A layer's weights are seen as a matrix ``[K, N]``: a row for each product of a sum (input channels within a tap of the
kernel, tap after tap), a column for each output. Columns are what a vector register holds, rows are what a sum walks
over. So a pattern that spans the lanes of a register (``block``, ``2:4x16``) leaves out whole instructions; for one
that does not (``unstructured``, ``2:4``) rows of data are put in the lanes, or inputs are shuffled to them.

A pattern is zeros in the weights and nothing else: no file format, no operator. The kernels find it by looking.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import numpy as np

from ...errors import NervureError
from ...targets.machine import Machine

NAMES = ("unstructured", "block", "n:m")


@dataclass(frozen=True)
class Pattern:
    """Weights in cells of ``rows`` x ``columns`` live and die together.

    With ``group`` (the M of N:M) just ``keep`` (the N) cells of every ``group`` neighbours along the rows are kept,
    wherever they are; else any number of cells anywhere. Cells and groups never cross from one tap to the next; those
    at an edge may be smaller, and a smaller group keeps as many in proportion, rounded up.
    """

    rows: int = 1
    columns: int = 1
    keep: int = 0
    group: int = 0

    def __post_init__(self) -> None:
        if min(self.rows, self.columns) < 1 or not 0 <= self.keep <= self.group:
            raise NervureError(f"there is no pattern {self}", hint="block:4x16, 2:4, 2:4x16 or unstructured")

    @property
    def sparsity(self) -> float | None:
        """The part of the weights that is zero, where the pattern itself says it."""
        return 1 - self.keep / self.group if self.group else None

    def __str__(self) -> str:
        if self.group:
            cells = f"x{self.columns}" if self.columns > 1 else ""
            return f"{self.keep}:{self.group}{cells}"
        return "unstructured" if self.rows == self.columns == 1 else f"block:{self.rows}x{self.columns}"

    # -- cells ---------------------------------------------------------------------------------------------------------

    def pool(self, scores: np.ndarray, channels: int) -> np.ndarray:
        """The mean score of each cell: ``[taps, cells along a tap, cells along the columns]``, from scores ``[K, N]``
        with ``channels`` rows a tap."""
        filled = self._padded(scores.astype(np.float64), channels)
        counted = self._padded(np.ones(scores.shape), channels)
        return filled.sum(axis=(2, 4)) / counted.sum(axis=(2, 4))  # type: ignore[no-any-return]

    def spread(self, cells: np.ndarray, shape: tuple[int, int], channels: int) -> np.ndarray:
        """Something said of each cell (as ``pool`` numbers them), said of each weight: ``[K, N]``."""
        wide = np.repeat(np.repeat(cells, self.rows, 1), self.columns, 2)
        return wide[:, :channels, : shape[1]].reshape(shape)

    def sizes(self, shape: tuple[int, int], channels: int) -> np.ndarray:
        """The number of weights in each cell."""
        return self._padded(np.ones(shape), channels).sum(axis=(2, 4)).astype(np.int64)  # type: ignore[no-any-return]

    def _padded(self, matrix: np.ndarray, channels: int) -> np.ndarray:
        """``[taps, cells, rows, cells, columns]``, zeros where a cell hangs over the edge."""
        taps, n = matrix.shape[0] // channels, matrix.shape[1]
        down, across = -(-channels // self.rows), -(-n // self.columns)
        full = np.zeros((taps, down * self.rows, across * self.columns), matrix.dtype)
        full[:, :channels, :n] = matrix.reshape(taps, channels, n)
        return full.reshape(taps, down, self.rows, across, self.columns)

    # -- choosing ------------------------------------------------------------------------------------------------------

    def mask(self, scores: np.ndarray, channels: int, sparsity: float | None = None) -> np.ndarray:
        """Which weights stay (bool ``[K, N]``): the cells of highest score, within each group for N:M (``sparsity`` is
        then the pattern's own), else in the whole matrix. Of equal scores the first stays."""
        cells = self.pool(scores, channels)
        if self.group:
            return self.spread(self._best_of_groups(cells), scores.shape, channels)
        if sparsity is None or not 0 <= sparsity < 1:
            raise NervureError(f"sparsity {sparsity} is no part of 1", hint="for example 0.75")
        sizes = self.sizes(scores.shape, channels).ravel()
        order = np.argsort(-cells.ravel(), kind="stable")
        count = int(np.searchsorted(np.cumsum(sizes[order]), (1 - sparsity) * scores.size - 1e-9)) + 1
        kept = np.zeros(cells.size, bool)
        kept[order[:count]] = True
        return self.spread(kept.reshape(cells.shape), scores.shape, channels)

    def _best_of_groups(self, cells: np.ndarray) -> np.ndarray:
        kept = np.zeros(cells.shape, bool)
        for start in range(0, cells.shape[1], self.group):
            part = cells[:, start : start + self.group]
            count = -(-self.keep * part.shape[1] // self.group)
            best = np.argsort(-part, axis=1, kind="stable")[:, :count]
            np.put_along_axis(kept[:, start : start + self.group], best, True, axis=1)
        return kept

    def fits(self, weights: np.ndarray, channels: int) -> bool:
        """Whether weights ``[K, N]`` have this pattern: no group keeps more cells than it may."""
        alive = self.pool(weights != 0, channels) > 0
        if not self.group:
            return True
        groups = range(0, alive.shape[1], self.group)
        parts = [alive[:, g : g + self.group] for g in groups]
        return all((p.sum(axis=1) <= -(-self.keep * p.shape[1] // self.group)).all() for p in parts)


UNSTRUCTURED = Pattern()


def parse(text: str, machine: Machine, dtype: str = "float32") -> Pattern:
    """``unstructured``, ``block`` (as wide as a vector of the machine), ``block:4x16``, ``2:4`` (for each output by
    itself), ``2:4x16`` (shared by 16 outputs) or ``2:4v`` (shared by a vector of outputs)."""
    wide = vector_block(machine, dtype)
    if text in ("unstructured", "block"):
        return UNSTRUCTURED if text == "unstructured" else wide
    if found := re.fullmatch(r"block:(\d+)x(\d+)", text):
        return Pattern(int(found[1]), int(found[2]))
    if found := re.fullmatch(r"(\d+):(\d+)(v|x(\d+))?", text):
        columns = 1 if not found[3] else wide.columns if found[3] == "v" else int(found[4])
        return Pattern(1, columns, int(found[1]), int(found[2]))
    raise NervureError(
        f"there is no sparse pattern {text!r}", hint="unstructured, block, block:4x16, 2:4, 2:4v or 2:4x16"
    )


def vector_block(machine: Machine, dtype: str = "float32") -> Pattern:
    """The smallest block that fills a vector of sums: a row of outputs, for bytes four products deep, because a dot
    product takes four at once."""
    return replace(UNSTRUCTURED, rows=4 if dtype in ("int8", "uint8") else 1, columns=machine.lanes)


def to_matrix(weights: np.ndarray, op: str) -> np.ndarray:
    """A layer's weights as ``[K, N]``: a matmul's as they are, a convolution's ``[O, I, *kernel]`` tap after tap."""
    if op == "matmul":
        return weights
    return np.moveaxis(weights, (0, 1), (-1, -2)).reshape(-1, weights.shape[0])


def from_matrix(matrix: np.ndarray, shape: tuple[int, ...], op: str) -> np.ndarray:
    """The inverse of ``to_matrix``."""
    if op == "matmul":
        return matrix
    return np.ascontiguousarray(np.moveaxis(matrix.reshape(*shape[2:], shape[1], shape[0]), (-1, -2), (0, 1)))
