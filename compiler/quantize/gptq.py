"""Rounding of weights that looks at what the layer reads: GPTQ (Frantar et al. 2022, arXiv:2210.17323).

A layer's squared error is ``E^T H E`` for each output, with ``H`` the second moments of its inputs. Rows (inputs) are
rounded one after the other, those with the largest moments first; each one's error is spread over the rows that are not
rounded yet, so that the output changes least. Scales are chosen before (best squared error, weighted by the inputs'
moments), for groups of neighbouring rows: the order of rounding does not move them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from ..ir import Graph, Value
from ..ops.windows import output_extents, pad_spatial
from .observe import Feeds, Progress, Watcher, silent

DAMPING = 0.01  # of the mean second moment, added to each: H is singular where samples are few
BLOCK = 128  # rows after which errors are spread over the remaining ones
ROWS = 1024  # points of a convolution's output, or rows of a product, that count for each sample
MOST_BYTES = 1 << 29  # of second moments that are held at once

Round = Callable[[int, np.ndarray], np.ndarray]


def gptq(weights: np.ndarray, moments: np.ndarray, nearest: Round) -> np.ndarray:
    """Weights ``[rows, columns]`` rounded with error feedback. ``nearest(row, values)`` gives the representable values
    next to ``values`` in that row. Rows that no input ever reached are rounded to the nearest."""
    order = np.argsort(-np.diag(moments), kind="stable")
    held = np.asarray(weights, np.float64)[order].copy()
    upper = _factor(np.asarray(moments, np.float64)[np.ix_(order, order)])
    done = np.empty_like(held)
    for first in range(0, len(order), BLOCK):
        last = min(first + BLOCK, len(order))
        errors = np.zeros((last - first, held.shape[1]))
        for i in range(first, last):
            done[i] = nearest(int(order[i]), held[i])
            errors[i - first] = (held[i] - done[i]) / upper[i, i]
            held[i + 1 : last] -= np.outer(upper[i, i + 1 : last], errors[i - first])
        held[last:] -= upper[first:last, last:].T @ errors
    back = np.empty_like(done)
    back[order] = done
    return back


def _factor(moments: np.ndarray) -> np.ndarray:
    """The upper Cholesky factor of the damped inverse."""
    size = len(moments)
    dead = np.diag(moments) <= 0
    moments[dead, dead] = 1.0
    moments[np.arange(size), np.arange(size)] += DAMPING * float(np.mean(np.diag(moments)))
    lower = np.linalg.cholesky(moments)
    inverse = np.linalg.solve(lower.T, np.linalg.solve(lower, np.eye(size)))
    return np.ascontiguousarray(np.linalg.cholesky((inverse + inverse.T) / 2).T)


def loss(error: np.ndarray, moments: np.ndarray) -> float:
    """What an error of the weights ``[rows, columns]`` does to the layer's outputs, squared and summed."""
    return float(np.einsum("kn,kl,ln->", error, np.asarray(moments, np.float64), error, optimize=True))


# -- second moments of what layers read --------------------------------------------------------------------------------


def moments_of(
    graph: Graph, layers: Sequence[int], feeds: Feeds, seed: int = 0, progress: Progress = silent
) -> Iterator[tuple[int, np.ndarray]]:
    """For each convolution or product with a matrix: second moments ``[groups, rows, rows]`` of its inputs over the
    samples, rows in the order (channel, taps). Layers that read the same tensor in the same way share them."""
    ways: dict[tuple[object, ...], list[int]] = {}
    for key in layers:
        ways.setdefault(_way(graph, key), []).append(key)
    for part in _parts(graph, list(ways.values())):
        totals: dict[int, np.ndarray] = {}
        readers: dict[str, list[int]] = {}
        for same in part:
            readers.setdefault(graph.tensor_name(_source(graph, same[0])), []).append(same[0])
        _accumulate(graph, readers, feeds, seed, totals, progress)
        for same in part:
            for key in same:
                yield key, totals[same[0]]


def _accumulate(
    graph: Graph,
    readers: Mapping[str, Sequence[int]],
    feeds: Feeds,
    seed: int,
    totals: dict[int, np.ndarray],
    progress: Progress,
) -> None:
    def visit(sample: int, name: str, array: np.ndarray) -> None:
        for key in readers[name]:
            rows = columns_of(graph, key, array, np.random.default_rng((seed, sample, key)))
            added = np.einsum("grk,grl->gkl", rows, rows, optimize=True)
            totals[key] = totals[key] + added if key in totals else added

    with Watcher(graph, sorted(readers)) as watcher:
        watcher.run(feeds, visit, progress, "second moments")


def _source(graph: Graph, key: int) -> Value:
    value = graph.args(key)[0]
    assert value is not None
    return value


def _way(graph: Graph, key: int) -> tuple[object, ...]:
    """What the second moments depend on."""
    node = graph.node(key)
    if node.op == "matmul":
        return ("matmul", _source(graph, key))
    return ("conv", _source(graph, key), _kernel(graph, key), *(str(v) for v in node.attrs.values()))


def _kernel(graph: Graph, key: int) -> tuple[int, ...]:
    w = graph.args(key)[1]
    assert w is not None
    return graph.type(w).dims[2:]


def _size(graph: Graph, key: int) -> int:
    x, node = graph.type(_source(graph, key)), graph.node(key)
    if node.op == "matmul":
        return int(x.dims[-1]) ** 2
    depth = x.dims[1] // node.attrs["group"] * int(np.prod(_kernel(graph, key)))
    return int(node.attrs["group"] * depth**2)


def _parts(graph: Graph, ways: list[list[int]]) -> Iterator[list[list[int]]]:
    """Layers in parts whose moments fit in memory."""
    part: list[list[int]] = []
    held = 0
    for same in ways:
        size = 4 * _size(graph, same[0])
        if part and held + size > MOST_BYTES:
            yield part
            part, held = [], 0
        part.append(same)
        held += size
    if part:
        yield part


def columns_of(graph: Graph, key: int, x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Up to ``ROWS`` rows of what a layer multiplies its weights by: ``[groups, rows, depth]``."""
    node = graph.node(key)
    if node.op == "matmul":
        rows = x.reshape(-1, x.shape[-1])
        chosen = np.sort(rng.permutation(len(rows))[:ROWS])
        return np.asarray(rows[chosen][None], np.float32)
    attrs, kernel = node.attrs, _kernel(graph, key)
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


__all__ = ["columns_of", "gptq", "loss", "moments_of"]
