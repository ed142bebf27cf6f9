"""``nv.layer_output``: what a layer inside of a network gave."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nervure as nv
import numpy as np
import pytest
from nervure import layers

X = np.random.default_rng(0).normal(size=(1, 6)).astype(np.float32)


@nv.network
def encoder(x: nv.Input((6,))):
    return layers.Dense(5, activation="tanh")(layers.Dense(4, name="narrow")(x))


NET = nv.Sequential([encoder, layers.Dense(2)], name="whole")
NET.build((None, 6))


def inner(net: Any, layer: Any) -> np.ndarray:
    @nv.network
    def peek(x: nv.Input((6,))):
        net(x)
        return nv.layer_output(net, layer)

    return np.asarray(peek(X))


def test_by_name_by_pattern_and_by_itself() -> None:
    weights = NET.state_dict()
    narrow = X @ weights["encoder.narrow.weight"] + weights["encoder.narrow.bias"]
    np.testing.assert_allclose(inner(NET, "encoder.narrow"), narrow, rtol=1e-5)
    np.testing.assert_allclose(inner(NET, "*.narrow"), narrow, rtol=1e-5)
    np.testing.assert_allclose(inner(NET, encoder._children["narrow"]), narrow, rtol=1e-5)
    np.testing.assert_allclose(inner(NET, encoder), encoder(X), rtol=1e-5)
    np.testing.assert_allclose(inner(encoder, "narrow"), narrow, rtol=1e-5)


def test_a_gradient_goes_through_it() -> None:
    @nv.network
    def slope(x: nv.Input((6,))):
        y = NET(x)
        return nv.grad(nv.sum(y), nv.layer_output(NET, encoder))

    np.testing.assert_allclose(slope(X)[0], NET.layers[1].weight.array.sum(1), rtol=1e-5)


def test_tensors_of_a_file(tmp_path: Path) -> None:
    nv.save_onnx(NET.to_graph(), tmp_path / "net.onnx")
    net = nv.load_network(tmp_path / "net.onnx")
    name = next(n for n in net.tensors() if "tanh" in n)
    np.testing.assert_allclose(inner(net, name), encoder(X), rtol=1e-5)


def test_what_is_not_there_is_said() -> None:
    with pytest.raises(nv.NervureError, match=r"narrow"):
        inner(NET, "encoder.narow")
    with pytest.raises(nv.NervureError, match="no such layer"):
        inner(NET, layers.Dense(1))
    with pytest.raises(nv.NervureError, match=r"layers of .whole. fit"):
        inner(NET, "*dense*")

    @nv.network
    def uncalled(x: nv.Input((6,))):
        return nv.layer_output(NET, "encoder")

    with pytest.raises(nv.NervureError, match="was not called"):
        uncalled(X)
