"""Weights only: integers of 4 or 8 bits in groups, or floats of 16 bits; activations and arithmetic stay float32.

What a group is: so many neighbours along the axis that is summed over (channels of a convolution, rows of a matrix),
or, in a table, along a row. A convolution with fewer channels than a group has one scale for each filter, or for each
tap of it from ``groups.FEW`` channels on. Depthwise filters have 8 bits and a scale each: they are few weights, and
short sums.

Scales have the least squared error, and are numbers that float16 holds (they are stored as such). Rounding is to the
nearest, or GPTQ's (``gptq``) where there are samples.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from ...errors import NervureError
from ..ir import Graph, Value
from ..ops.numeric import numpy_dtype
from .groups import Weight, weights_of
from .learning import Learning, Made, Row, nearest
from .observe import Progress, silent
from .quantizer import prepare
from .samples import Samples, feeds
from .settings import matching

METHODS = ("nearest", "gptq")
BITS = (4, 8)
HALVES = ("float16", "bfloat16")


def quantize_weights(
    graph: Graph,
    bits: int = 4,
    group: int = 32,
    method: str = "nearest",
    samples: Samples | None = None,
    *,
    depthwise_bits: int = 8,
    wider: float = 0.0,
    float_patterns: Iterable[str] = (),
    seed: int = 0,
    progress: Progress | None = None,
) -> Graph:
    """A copy of a static float graph, in canonical form, whose weights are integers with scales for groups.

    ``group``: neighbours that share a scale. ``method="gptq"`` needs ``samples`` (see ``samples.feeds``). ``wider``
    (0 to 1): the share of all weights that may have 8 bits; the smallest tensors get them, where they cost least: a
    layer's error relative to its output hardly depends on its size.
    ``float_patterns``: weights that stay as they are (patterns of their names). ``NervureError`` for an unknown method
    or number of bits, a pattern that matches nothing, and for weights that are not finite. What became of each weight
    stands in the graph's ``meta["weights"]`` as ``Row``s.
    """
    _check(bits, depthwise_bits, group, method, samples, wider)
    work = prepare(graph)
    every = weights_of(work)
    kept = matching(float_patterns, (w.name for w in every), "float pattern")
    chosen = [w for w in every if w.name not in kept]
    arrays = {w.node: _finite(work, w) for w in chosen}
    rows: dict[int, Row] = {}
    made: dict[int, Made] = {}
    many = _bits(chosen, arrays, bits, depthwise_bits, wider)
    learned = [w for w in chosen if method == "gptq" and w.layers and not w.table and not w.depthwise]
    for w in chosen:
        if w not in learned:
            made[w.node], rows[w.node] = nearest(w, arrays[w.node], many[w.node], group)
    if learned:
        assert samples is not None
        job = Learning(work, made, feeds(work, samples), seed)
        rows.update(job.run(learned, arrays, many, group, progress or silent))
    for w in chosen:
        _insert(work, w, *made[w.node])
    work.meta["weights"] = tuple(rows[w.node] for w in chosen)
    return work


def _bits(
    chosen: Sequence[Weight], arrays: Mapping[int, np.ndarray], bits: int, depthwise_bits: int, wider: float
) -> dict[int, int]:
    """How many bits each weight has, by its node."""
    found = {w.node: depthwise_bits if w.depthwise else bits for w in chosen}
    room = wider * sum(arrays[w.node].size for w in chosen)
    for w in sorted(chosen, key=lambda w: (arrays[w.node].size, w.node)):
        if w.depthwise or bits == max(BITS):
            continue
        room -= arrays[w.node].size
        if room < 0:
            break
        found[w.node] = max(BITS)
    return found


def _check(bits: int, depthwise_bits: int, group: int, method: str, samples: Samples | None, wider: float) -> None:
    if not 0 <= wider <= 1:
        raise NervureError(f"a share of {wider} of the weights", hint="wider is a number from 0 to 1")
    for number in (bits, depthwise_bits):
        if number not in BITS:
            raise NervureError(f"weights of {number} bits", hint="4 and 8 bits are supported")
    if group < 2 or group % 2:
        raise NervureError(f"groups of {group} weights", hint="an even number; 32, 64 and 128 are usual")
    if method not in METHODS:
        raise NervureError(f"rounding method {method!r} is unknown", hint=f"use one of: {', '.join(METHODS)}")
    if method == "gptq" and samples is None:
        raise NervureError("GPTQ needs calibration samples", hint="give samples, or use method='nearest'")


def _finite(graph: Graph, w: Weight) -> np.ndarray:
    array = graph.node(w.node).array
    if not np.isfinite(array).all():
        raise NervureError(
            f"the weights {w.name!r} hold NaN or infinity",
            where=graph.node(w.node).origin,
            hint="no scale follows from that: look at how the model was trained or exported",
        )
    return np.asarray(array)


def _insert(graph: Graph, w: Weight, codes: np.ndarray, scale: np.ndarray, block: tuple[int, int] | None) -> None:
    node = graph.node(w.node)
    stored = graph.const(codes, graph.unique(f"{w.name}.codes"), node.origin)
    scales = graph.const(scale, graph.unique(f"{w.name}.scale"), node.origin)
    real = graph.add(
        "dequantize", stored, scales, names=[graph.unique(f"{w.name}.real")], origin=node.origin, block=block
    )
    graph.replace(Value(w.node), real)
    graph.remove(w.node)


def halve_weights(graph: Graph, dtype: str = "float16", *, float_patterns: Iterable[str] = ()) -> Graph:
    """A copy of a static float graph, in canonical form, whose weights are stored as ``float16`` or ``bfloat16`` and
    widened where they are used. Weights that the type does not hold (float16 ends at 65504) stay as they are."""
    if dtype not in HALVES:
        raise NervureError(f"weights of type {dtype!r}", hint=f"use one of: {', '.join(HALVES)}")
    work = prepare(graph)
    every = weights_of(work)
    kept = matching(float_patterns, (w.name for w in every), "float pattern")
    for w in every:
        node, array = work.node(w.node), _finite(work, w)
        with np.errstate(over="ignore"):
            narrow = array.astype(numpy_dtype(dtype))
        if w.name in kept or not np.isfinite(narrow.astype(np.float32)).all():
            continue
        stored = work.const(narrow, work.unique(f"{w.name}.half"), node.origin)
        names = [work.unique(f"{w.name}.real")]
        real = work.add("cast", stored, names=names, origin=node.origin, to="float32")
        work.replace(Value(w.node), real)
        work.remove(w.node)
    return work


__all__ = ["Row", "Weight", "halve_weights", "quantize_weights", "weights_of"]
