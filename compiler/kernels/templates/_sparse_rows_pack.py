"""How ``sparse_rows`` keeps non-zeros: chunk after chunk of outputs, block after block of k, group after group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Cut:
    """``chunk`` outputs a task, ``block`` values of k at once (whole vectors of them, or whole taps), ``together``
    outputs walked side by side."""

    chunk: int
    block: int
    together: int

    @property
    def padded(self) -> int:
        """Rows of sums: outputs of a chunk, and those that fill the last group."""
        return self.chunk + self.together


def pitch_of(widths: Sequence[int], lanes: int) -> int:
    """Elements from one column in scratch to the next: whole vectors, but a tile of few rows lies close."""
    return widths[0] if len(widths) == 1 else len(widths) * lanes


@dataclass(frozen=True)
class Packed:
    """``weights`` and ``index`` (k within its block) group after group, ``[place][output of the group]``; ``heads``
    hold for each group how many places it has and which outputs of the chunk it is; ``starts`` where in ``heads`` and
    ``weights`` the groups of a chunk and block begin, and their number."""

    weights: np.ndarray
    index: np.ndarray
    heads: np.ndarray
    starts: np.ndarray


def pack(matrix: np.ndarray, cut: Cut) -> Packed:
    """The non-zeros of ``[K, N]``. Outputs with as many of them are grouped; the rest of a group's places hold 0."""
    depth, outputs = matrix.shape
    weights, index, heads, starts = [], [], [], []
    places = numbers = 0
    for n in range(0, outputs, cut.chunk):
        for first in range(0, depth, cut.block):
            w, i, h = _pack_part(matrix[first : first + cut.block, n : n + cut.chunk], cut, first > 0)
            starts += [numbers, places, len(h) // (cut.together + 1)]
            places, numbers = places + len(w), numbers + len(h)
            weights.append(w)
            index.append(i)
            heads.append(h)
    small = np.uint8 if cut.block <= 256 else np.uint16
    return Packed(
        np.concatenate(weights),
        np.concatenate(index).astype(small),
        np.concatenate(heads).astype(np.uint16),
        np.asarray(starts, np.int32),
    )


def _pack_part(part: np.ndarray, cut: Cut, later: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights, index and heads of one block. Of a ``later`` block outputs without non-zeros are left out."""
    size = cut.together
    column, row = np.nonzero(part.T)
    counts = np.bincount(column, minlength=part.shape[1])
    order = np.argsort(-counts, kind="stable")
    if later:
        order = order[: np.count_nonzero(counts)]
    groups = -(-len(order) // size)
    members = np.full(groups * size, cut.chunk)  # who fills the last group has a row of sums that nobody reads
    members[: len(order)] = order
    lengths = counts[order[::size]]  # the first of a group has most
    begins = np.concatenate([[0], np.cumsum(lengths * size)])
    place = np.zeros(part.shape[1], np.int64)
    place[order] = np.arange(len(order))
    rank = np.arange(len(column)) - np.concatenate([[0], np.cumsum(counts)])[column]
    at = begins[place[column] // size] + rank * size + place[column] % size
    weights, index = np.zeros(begins[-1], np.float32), np.zeros(begins[-1], np.int64)
    weights[at], index[at] = part[row, column], row
    return weights, index, np.column_stack([lengths, members.reshape(groups, size)]).reshape(-1)


def pad_bias(bias: np.ndarray | None, outputs: int, cut: Cut) -> np.ndarray | None:
    """The bias chunk by chunk, with a place for every row of sums."""
    if bias is None:
        return None
    chunks = -(-outputs // cut.chunk)
    padded = np.zeros((chunks, cut.padded), np.float32)
    for c in range(chunks):
        own = bias.reshape(-1)[c * cut.chunk : (c + 1) * cut.chunk]
        padded[c, : len(own)] = own
    return padded.reshape(-1)
