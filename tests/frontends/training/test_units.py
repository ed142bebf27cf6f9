"""Channels masked while a network is trained, and taken out when they are zero: nothing else changes."""

from __future__ import annotations

from pathlib import Path

import nervure as nv
import numpy as np
import pytest
from nervure import layers as L

SCE = nv.losses.SparseCategoricalCrossentropy(from_logits=True)
RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((64, 3, 8, 8)).astype(np.float32), RNG.integers(0, 4, 64).astype(np.int32)


def residual() -> nv.Network:
    """Batch norms, an addition that ties channels together, a flattening in front of the dense layers."""

    @nv.network
    def net(x: nv.Input((3, 8, 8))):
        x = nv.relu(L.BatchNorm(name="n1")(L.Conv2d(16, 3, padding="same", use_bias=False, name="c1")(x)))
        y = nv.relu(L.BatchNorm(name="n2")(L.Conv2d(12, 3, padding="same", name="c2")(x)))
        x = nv.relu(x + L.Conv2d(16, 1, name="c3")(y))
        x = L.Dense(20, "relu", name="d1")(L.Flatten()(L.MaxPool2d(2)(x)))
        return L.Dense(4, name="d2")(x)

    return net


def trained(net: nv.Network, epochs: int = 4, *callbacks: nv.callbacks.Callback) -> nv.Network:
    net.compile(nv.optimizers.Adam(0.005), SCE)
    net.fit(X, Y, 16, epochs, verbose=0, callbacks=list(callbacks))
    return net


def shapes(net: nv.Network) -> dict[str, tuple[int, ...]]:
    return {n: a.shape for n, a in net.state_dict().items()}


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_zero_channels_can_go_and_nothing_changes(scope: str) -> None:
    net = trained(nv.sparsify(residual(), 0.5, "channels", scope=scope))
    small = nv.shrunk(net)
    np.testing.assert_allclose(small(X), net(X), rtol=1e-5, atol=1e-6)
    found = shapes(small)
    assert list(found) == list(shapes(net))
    tied = {found[n][0] for n in ("c1.weight", "n1.weight", "n1.running_mean", "c3.weight")} | {found["c2.weight"][1]}
    assert tied == {8} or (scope == "global" and len(tied) == 1)
    if scope == "layer":
        assert found["c2.weight"] == (6, 8, 3, 3) and found["d1.weight"] == (8 * 16, 10)
    else:
        kept = sum(found[n][0] for n in ("c1.weight", "c2.bias", "d1.bias"))
        assert kept == pytest.approx(24, abs=1)
    before = small.state_dict()
    after = trained(small, 1).state_dict()
    assert any((after[n] != before[n]).any() for n in before)


def test_channels_go_gradually() -> None:
    callback = nv.callbacks.GradualPruning(0.75, "channels", end=12, frequency=3, skip="d1*")
    net = trained(residual(), 5, callback)
    small = nv.shrunk(net)
    np.testing.assert_allclose(small(X), net(X), rtol=1e-5, atol=1e-6)
    found = shapes(small)
    assert found["c2.weight"] == (3, 16, 3, 3) and found["d1.weight"] == (16 * 16, 20)  # what touches d1 is skipped
    assert callback.sparsity == 0.75


def test_matrices_that_a_file_keeps_turned() -> None:
    onnx = pytest.importorskip("onnx")
    h, rng = onnx.helper, np.random.default_rng(2)
    arrays = {"w": rng.standard_normal((12, 8)), "b": rng.standard_normal(12), "v": rng.standard_normal((4, 12))}
    nodes = [h.make_node("Gemm", ["x", "w", "b"], ["a"], transB=1), h.make_node("Relu", ["a"], ["r"])]
    nodes.append(h.make_node("Gemm", ["r", "v"], ["y"], transB=1))
    ends = [[h.make_tensor_value_info(n, 1, ["N", k])] for n, k in (("x", 8), ("y", 4))]
    held = [onnx.numpy_helper.from_array(a.astype(np.float32), n) for n, a in arrays.items()]
    net = nv.load_network(h.make_model(h.make_graph(nodes, "g", *ends, held), opset_imports=[h.make_opsetid("", 17)]))
    nv.sparsify(net, 0.5, "channels")
    masks = {n: w.mask for n, w in net.named_weights()}
    assert masks["w"].any(1).sum() == masks["b"].sum() == masks["v"].any(0).sum() == 6
    small, x = nv.shrunk(net), rng.standard_normal((5, 8)).astype(np.float32)
    np.testing.assert_allclose(small(x), net(x), rtol=1e-5, atol=1e-6)
    assert sorted(a.size for a in small.state_dict().values()) == [6, 24, 48]


def test_the_shrunk_network_is_compiled_and_saved(tmp_path: Path) -> None:
    net = nv.sparsify(residual(), 0.5, "channels")
    small = nv.shrunk(net)
    nv.save_onnx(small, tmp_path / "small.onnx")
    wide, narrow = nv.compile(net), nv.compile(tmp_path / "small.onnx")
    np.testing.assert_allclose(narrow(X[:1]), wide(X[:1]), rtol=1e-4, atol=1e-5)
    assert narrow.report.source_weight_bytes < 0.3 * wide.report.source_weight_bytes


def test_what_cannot_be_done_is_one_clear_error() -> None:
    with pytest.raises(nv.NervureError, match="no channel of network 'net' is zero"):
        nv.shrunk(residual())
    single = nv.Sequential([L.Dense(4, input_dim=3, name="out")], name="single")
    with pytest.raises(nv.NervureError, match="no channels of network 'single' can go"):
        nv.sparsify(single, 0.5, "channels")
    net = nv.sparsify(residual(), 0.1, "channels")
    trainer = nv.Trainer(nv.compile(net, training=nv.Training(SCE, batch=16)).session)
    with pytest.raises(nv.NervureError, match="are found on a network"):
        trainer.fit(X, Y, epochs=1, verbose=0, callbacks=[nv.callbacks.GradualPruning(0.5, "channels")])
