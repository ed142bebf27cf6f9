"""Rounding of weights that looks at what the layer reads: GPTQ (Frantar et al. 2022, arXiv:2210.17323).

A layer's squared error is ``E^T H E`` for each output, with ``H`` the second moments of its inputs. Rows (inputs) are
rounded one after the other, those with the largest moments first; each one's error is spread over the rows that are not
rounded yet, so that the output changes least. Scales are chosen before (best squared error, weighted by the inputs'
moments), for groups of neighbouring rows: the order of rounding does not move them.

Layers are rounded from the network's inputs to its outputs. What a layer reads then differs from what it read in float:
its weights first move to where its outputs are nearest to those of the float network (Li et al. 2025,
arXiv:2504.02692, treat that within the feedback).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..ir import Graph
from ..ops.windows import output_extents, pad_spatial
from .observe import Feeds, Watcher

DAMPING = 0.01  # of the mean second moment, added to each: H is singular where samples are few
BLOCK = 128  # rows after which errors are spread over the remaining ones
ROWS = 512  # points of a convolution's output, or rows of a product, that count for each sample

Round = Callable[[int, np.ndarray], np.ndarray]


def gptq(weights: np.ndarray, moments: np.ndarray, nearest: Round) -> np.ndarray:
    """Weights ``[rows, columns]`` rounded with error feedback. ``nearest(row, values)`` gives the representable values
    next to ``values`` in that row. Rows that no input ever reached are rounded to the nearest. Zeros stay zeros: what
    was pruned is not brought back, its error is spread like any other (Frantar and Alistarh 2023, arXiv:2301.00774)."""
    order = np.argsort(-np.diag(moments), kind="stable")
    held = np.asarray(weights, np.float64)[order].copy()
    pruned = held == 0
    upper = _factor(np.asarray(moments, np.float64)[np.ix_(order, order)])
    done = np.empty_like(held)
    for first in range(0, len(order), BLOCK):
        last = min(first + BLOCK, len(order))
        errors = np.zeros((last - first, held.shape[1]))
        for i in range(first, last):
            done[i] = np.where(pruned[i], 0.0, nearest(int(order[i]), held[i]))
            errors[i - first] = (held[i] - done[i]) / upper[i, i]
            held[i + 1 : last] -= np.outer(upper[i, i + 1 : last], errors[i - first])
        held[last:] -= upper[first:last, last:].T @ errors
    back = np.empty_like(done)
    back[order] = done
    return back


def _factor(moments: np.ndarray) -> np.ndarray:
    """The upper Cholesky factor of the inverse."""
    size = len(moments)
    dead = np.diag(moments) <= 0
    moments[dead, dead] = 1.0
    lower = np.linalg.cholesky(moments)
    inverse = np.linalg.solve(lower.T, np.linalg.solve(lower, np.eye(size)))
    return np.ascontiguousarray(np.linalg.cholesky((inverse + inverse.T) / 2).T)


def loss(error: np.ndarray, moments: np.ndarray) -> float:
    """What an error of the weights ``[rows, columns]`` does to the layer's outputs, squared and summed."""
    return float(np.einsum("kn,kl,ln->", error, np.asarray(moments, np.float64), error, optimize=True))


# -- what layers read --------------------------------------------------------------------------------------------------


@dataclass
class Moments:
    """What a layer reads in float, ``x``, and behind weights that are rounded already, ``z``; rows in the order
    (channel, taps). ``second`` [groups, rows, rows] is the sum of ``z z^T``, ``cross`` that of ``z (x - z)^T``; ``x``
    and ``z`` [groups, rows] are sums, over ``count`` points."""

    second: np.ndarray
    cross: np.ndarray
    x: np.ndarray
    z: np.ndarray
    count: int

    def add(self, x: np.ndarray, z: np.ndarray) -> None:
        """Points ``[groups, points, rows]`` of both."""
        turned = z.transpose(0, 2, 1)
        self.second += turned @ z
        self.cross += turned @ (x - z)
        self.x += x.sum(axis=1, dtype=np.float64)
        self.z += z.sum(axis=1, dtype=np.float64)
        self.count += z.shape[1]

    def centered(self) -> tuple[np.ndarray, np.ndarray]:
        """``second`` and ``cross`` about the means: what counts where a bias takes up the rest."""
        mean, shift = self.z / self.count, (self.x - self.z) / self.count
        second = self.second - self.count * np.einsum("gk,gl->gkl", mean, mean)
        return second, self.cross - self.count * np.einsum("gk,gl->gkl", mean, shift)


def moments_of(
    plain: Watcher, rounded: Watcher, layers: Sequence[int], feeds: Feeds, seed: int = 0
) -> dict[int, Moments]:
    """For each convolution or product with a matrix, what it reads over the samples. Both watchers are of the same
    network and watch these layers' inputs."""
    graph = plain.graph
    found: dict[int, Moments] = {}
    for sample, feed in enumerate(feeds):
        seen: dict[str, np.ndarray] = {}
        plain.run([feed], lambda _, name, array: seen.update({name: array}))  # noqa: B023
        behind: dict[str, np.ndarray] = {}
        rounded.run([feed], lambda _, name, array: behind.update({name: array}))  # noqa: B023
        for key in layers:
            name = input_of(graph, key)
            x, z = (columns_of(graph, key, a[name], np.random.default_rng((seed, sample, key))) for a in (seen, behind))
            if key not in found:
                groups, _, depth = z.shape
                square, row = (groups, depth, depth), (groups, depth)
                found[key] = Moments(np.zeros(square), np.zeros(square), np.zeros(row), np.zeros(row), 0)
            found[key].add(x, z)
    return found


def input_of(graph: Graph, key: int) -> str:
    """The name of what a layer reads."""
    value = graph.args(key)[0]
    assert value is not None
    return graph.tensor_name(value)


def damped(second: np.ndarray, count: int) -> np.ndarray:
    """Second moments of ``count`` points with a part of their mean added to each: little where points are many beside
    the rows, much where so few points say nothing about most directions."""
    size = len(second)
    part = DAMPING + size / (2 * max(1, count))
    return np.asarray(second + max(part * float(np.mean(np.diag(second))), 1e-12) * np.eye(size))


def toward(weights: np.ndarray, second: np.ndarray, cross: np.ndarray, count: int) -> np.ndarray:
    """The weights ``[rows, columns]`` whose outputs on ``z`` are nearest to those of ``weights`` on ``x``: what layers
    before have lost is made good where it can be (damped least squares)."""
    return np.asarray(weights + np.linalg.solve(damped(second, count), cross @ weights))


def columns_of(graph: Graph, key: int, x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Up to ``ROWS`` rows of what a layer multiplies its weights by: ``[groups, rows, depth]``."""
    node = graph.node(key)
    if node.op == "matmul":
        rows = x.reshape(-1, x.shape[-1])
        chosen = np.sort(rng.permutation(len(rows))[:ROWS])
        return np.asarray(rows[chosen][None], np.float32)
    w = graph.args(key)[1]
    assert w is not None
    attrs, kernel = node.attrs, graph.type(w).dims[2:]
    outputs = output_extents(x.shape[2:], kernel, attrs["strides"], attrs["pads"], attrs["dilations"])
    padded = pad_spatial(x, attrs["pads"], 0)
    count = x.shape[0] * int(np.prod(outputs))
    at = np.unravel_index(np.sort(rng.permutation(count)[:ROWS]), (x.shape[0], *outputs))
    taps = []
    for tap in np.ndindex(*kernel):
        spatial = tuple(
            p * s + t * d for p, s, t, d in zip(at[1:], attrs["strides"], tap, attrs["dilations"], strict=True)
        )
        taps.append(np.moveaxis(padded, 1, -1)[(at[0], *spatial)])  # [rows, channels]
    rows = np.stack(taps, axis=-1)
    group = attrs["group"]
    split = rows.reshape(len(rows), group, -1)
    return np.ascontiguousarray(split.transpose(1, 0, 2)).astype(np.float32)


__all__ = ["Moments", "columns_of", "damped", "gptq", "input_of", "loss", "moments_of", "toward"]
