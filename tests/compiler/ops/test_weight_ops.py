"""Weights that are stored narrow: references against index arithmetic written out, and what the type rules refuse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from nervure.compiler.ops import OpError, infer, weights
from nervure.compiler.ops.blocks import blocks_shape, spread
from nervure.compiler.ops.record import Op, fill_attrs
from nervure.compiler.ops.sampling import f32, sample_inputs, t

Array = np.ndarray


def _real(w: Array, scale: Array | None, zero: Array | None, block: Any) -> Array:
    """Each weight by itself."""
    if scale is None:
        return w.astype(np.float64)
    found = np.empty(w.shape)
    for at in np.ndindex(*w.shape):
        own = [i // block[1] if block is not None and axis == block[0] else i for axis, i in enumerate(at)]

        def held(factor: Array, own: list[int] = own) -> float:
            tail = own[len(own) - factor.ndim :]
            return float(factor[tuple(0 if d == 1 else i for i, d in zip(tail, factor.shape, strict=True))])

        found[at] = (int(w[at]) - (0 if zero is None else held(zero))) * held(scale)
    return found


def _expected(op: Op, arrays: tuple[Array | None, ...], attrs: dict[str, Any]) -> Array:
    given = (*arrays, None, None, None)
    if op.name == "gather_narrow":
        w, rows, scale, zero = given[:4]
        assert w is not None and rows is not None
        return np.take(_real(w, scale, zero, attrs["block"]), rows, attrs["axis"])
    x, w, bias, scale, zero = given[:5]
    assert x is not None and w is not None
    real = _real(w, scale, zero, attrs["block"]).astype(np.float32)
    if op.name == "matmul_narrow":
        y = x.astype(np.float64) @ real
        return y if bias is None else y + bias
    window = {k: v for k, v in attrs.items() if k != "block"}
    _, filled = infer("conv", [f32(*x.shape), f32(*w.shape)], window)
    from nervure.compiler.ops import OPS

    reference = OPS["conv"].reference
    assert reference is not None
    return np.asarray(reference(x, real, bias, **filled))


@pytest.mark.parametrize("op", weights.OPS, ids=lambda op: op.name)
def test_reference_is_what_the_definition_says(op: Op) -> None:
    assert op.cases is not None and op.reference is not None
    for number, case in enumerate(op.cases()):
        arrays = sample_inputs(case, number)
        attrs = fill_attrs(op, case.attrs)
        np.testing.assert_allclose(
            op.reference(*arrays, **attrs), _expected(op, arrays, attrs), 1e-5, 1e-5, err_msg=f"{op.name} {number}"
        )


def test_the_last_block_may_be_short() -> None:
    scale = np.array([[1.0, 2.0, 3.0]])
    assert blocks_shape((2, 7), (1, 3)) == (2, 3)
    assert spread(scale, (2, 7), (1, 3)).tolist() == [[1, 1, 1, 2, 2, 2, 3]]


@pytest.mark.parametrize(
    ("types", "block"),
    [
        ((f32(2, 8), t("int8", 8, 4), None), None),  # no scale
        ((f32(2, 8), t("float16", 8, 4), None, f32(1, 4)), None),  # a scale of floats
        ((f32(2, 8), t("int8", 8, 4), None, f32(3, 4)), (0, 4)),  # three scales for two blocks
        ((f32(2, 8), t("int8", 8, 4), None, f32(2, 4)), (2, 4)),  # no such axis
        ((f32(2, 8), t("int8", 8, 4), None, f32(2, 4)), (0, 0)),
        ((f32(2, 8), t("int16", 8, 4), None, f32()), None),
        ((f32(2, 8), t("int8", 8, 4), None, f32(), t("uint8")), None),
        ((t("float16", 2, 8), t("int8", 8, 4), None, f32()), None),
    ],
)
def test_what_does_not_fit_is_refused(types: Any, block: Any) -> None:
    with pytest.raises(OpError):
        infer("matmul_narrow", types, {"block": block})
