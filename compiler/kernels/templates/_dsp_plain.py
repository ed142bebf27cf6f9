"""The kernel of ``_dsp`` for points that are one run of words each, one a constant step behind the other: 1x1
convolutions and products of matrices. Its shape is data at the head of the weights, so that layers share it."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import _dsp_asm

HEAD = ("weights", "tiles", "last", "step", "to", "depth", "row")  # int32 each


def head(words: int, shape: dict[str, int]) -> np.ndarray:
    """For ``words`` words of weights: ``tiles``, the ``last`` point, ``step`` and ``to``, the bytes between points of
    the input and of the output, ``depth`` and the bytes of the constant ``row``."""
    return np.array([len(HEAD) + words, *(shape[name] for name in HEAD[1:])], np.int32)


def emit(k: Any, config: dict[str, Any]) -> None:
    """Arguments: the input, weights, a constant row if any, the output, scratch."""
    from ..tir import minimum

    points, to = config["points"], config["steps"]["to"]
    k.noalias, k.pointers = not config["overlaps"], False
    a, w = k.arg("a", config["dtype"], 1), k.arg("w", "int32", 1)
    row = k.arg("row", to, 1) if config["row"] else None
    y, scratch = k.arg("y", to, 1), k.arg("scratch", "int32", 1)
    shape = {name: k.bind(k.load(w, i), name) for i, name in enumerate(HEAD)}
    depth, direct = shape["depth"], config["direct"]
    kept = k.bind(depth // 2 * points, "kept") if not direct else 0
    for i, address in enumerate(((w, shape["weights"]), (a if direct else scratch, 0))):
        k.helper(*_dsp_asm.keep(), (scratch, kept + points + i), address)
    with k.loop(shape["tiles"], name="tile") as t:
        places = [k.bind(minimum(t * points + p, shape["last"]), "at") for p in range(points)]
        for p, at in enumerate(places if not direct else ()):
            start = k.bind(at * shape["step"], "from")
            k.helper(
                *_dsp_asm.widen(config["dtype"], points, config["round"]), (a, start), (scratch, p), (a, start + depth)
            )
        if config["offset"]:
            k.helper(*_dsp_asm.input_sums(points), (scratch, 0), (scratch, kept + points + 2), (scratch, kept))
        for p, at in enumerate(places):  # where the output lies over the input, all of the tile has been read
            result = (y, k.bind(at * shape["to"], "to"))
            k.helper(*_dsp_asm.keep(), (scratch, kept + p), result)
            if row is not None:
                k.helper(*_dsp_asm.copy(), (row, 0), result, (row, shape["row"]))
        kinds = {name: config[name] for name in _dsp_asm.KINDS}
        tile = _dsp_asm.tile((points, config["pairs"], config["round"]), config["steps"], **kinds, direct=direct)
        ends = ((a, depth), (scratch, kept)) if direct else ((scratch, kept),)
        k.helper(*tile, (a if direct else scratch, 0), (w, len(HEAD)), *ends)
