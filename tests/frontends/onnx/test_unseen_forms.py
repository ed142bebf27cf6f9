"""Forms met in exported models, rebuilt by hand: compiled, and held against ONNX Runtime."""

from __future__ import annotations

from types import SimpleNamespace

import nervure as nv
import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

from onnx import helper  # noqa: E402

RNG = np.random.default_rng(11)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("groups", [2, 3])
def test_channel_shuffle(groups: int, onnx_kit: SimpleNamespace) -> None:
    """ShuffleNet: the parts of one axis change places, and the axis is whole again."""
    nodes = [
        helper.make_node("Reshape", ["x", "split"], ["a"]),
        helper.make_node("Transpose", ["a"], ["b"], perm=[0, 2, 1, 3, 4]),
        helper.make_node("Reshape", ["b", "join"], ["c"]),
        helper.make_node("Conv", ["c", "w"], ["y"]),
    ]
    consts = {
        "split": np.array([1, groups, 12 // groups, 4, 5]),
        "join": np.array([1, 12, 4, 5]),
        "w": normal(8, 12, 1, 1),
    }
    feeds = {"x": normal(1, 12, 4, 5)}
    model = onnx_kit.build(nodes, feeds, consts=consts)
    onnx_kit.agree(model, feeds)
    np.testing.assert_allclose(nv.compile(model)(feeds["x"]), onnx_kit.reference(model, feeds)[0], atol=1e-5)
