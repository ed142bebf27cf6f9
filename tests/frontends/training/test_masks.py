"""Masks: zeros of weights stay zero, whatever trains, loads or quantizes them; without a mask nothing changes."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nervure as nv
import numpy as np
import pytest
from nervure import layers as L
from nervure.compiler.passes import canonicalize
from nervure.frontends.training.pruning import matrices

SCE = nv.losses.SparseCategoricalCrossentropy(from_logits=True)
O = nv.optimizers  # noqa: E741
BATCH = 16
RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((48, 6)).astype(np.float32), RNG.integers(0, 3, 48).astype(np.int32)

OPTIMIZERS: dict[str, Callable[[], Any]] = {
    "sgd": lambda: O.SGD(0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adamw": lambda: O.AdamW(0.01, ema_momentum=0.9, global_clipnorm=1.0),
    "rmsprop": lambda: O.RMSprop(0.01, momentum=0.5, clipvalue=0.1),
    "accumulating": lambda: O.Adam(0.01, accumulate=2, ema_momentum=0.5),
}


def made() -> nv.Sequential:
    return nv.Sequential([L.Dense(16, "tanh", input_dim=6, name="body"), L.Dense(3, name="head")], name="net")


def masks(share: float = 0.6, seed: int = 1) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = {"body.weight": (6, 16), "body.bias": (16,), "head.weight": (16, 3)}
    return {n: rng.random(s) > share for n, s in shapes.items()}


def open_() -> nv.Network:
    """With masks that keep everything."""
    return nv.masked(made(), {n: np.ones(m.shape) for n, m in masks().items()})


def check_zeros(arrays: Any, kept: dict[str, np.ndarray]) -> None:
    for name, mask in kept.items():
        assert not arrays[name][~mask].any(), name
        assert arrays[name][mask].any(), name


def trained(net: nv.Network, optimizer: Any, epochs: int = 3, **options: Any) -> nv.Network:
    net.compile(optimizer, SCE)
    net.fit(X, Y, BATCH, epochs, verbose=0, **options)
    return net


def test_a_weight_obeys_its_mask_at_once_and_when_assigned() -> None:
    net, kept = made(), masks()
    assert nv.masked(net, kept) is net
    assert not net.state_dict()["body.weight"][~kept["body.weight"]].any()
    dense = {n: np.ones_like(a) for n, a in net.state_dict().items()}
    net.load_state_dict(dense)
    check_zeros(net.state_dict(), kept)
    nv.masked(net, {"body.weight": None})
    net.load_state_dict(dense)
    assert net.state_dict()["body.weight"].all()
    with pytest.raises(nv.NervureError, match=r"mask of shape \[3\] does not fit weight"):
        nv.masked(net, {"body.weight": [1, 0, 1]})
    with pytest.raises(nv.NervureError, match=r"no weight 'bode\.weight'"):
        nv.masked(net, {"bode.weight": [1]})


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_no_optimizer_revives_a_zero(name: str) -> None:
    kept = masks()
    net = trained(nv.masked(made(), kept), OPTIMIZERS[name]())
    check_zeros(net.state_dict(), kept)
    moments = [a for n, a in net._fitting._last.session.states().items() if n.startswith("optimizer/body.weight/")]
    assert any(m[~kept["body.weight"]].any() for m in moments)  # what would revive it
    if name in ("adamw", "accumulating"):
        check_zeros(net.averaged_weights(), kept)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_masks_that_keep_everything_change_no_bit(name: str) -> None:
    plain = trained(made(), OPTIMIZERS[name]())
    held = trained(open_(), OPTIMIZERS[name]())
    for key, array in plain.state_dict().items():
        np.testing.assert_array_equal(held.state_dict()[key], array, err_msg=key)


def test_a_mask_gives_what_masked_arithmetic_gives() -> None:
    """Plain gradient descent: a masked weight is one without a gradient."""
    kept = masks()
    net = trained(nv.masked(made(), kept), "sgd", 1, shuffle=False)
    free = nv.masked(made(), kept)
    nv.masked(free, dict.fromkeys(kept))
    free.compile("sgd", SCE)
    for at in range(0, len(X), BATCH):
        free.train_on_batch(X[at : at + BATCH], Y[at : at + BATCH])
        free.load_state_dict({n: a * kept.get(n, True) for n, a in free.state_dict().items()})
    for name, array in free.state_dict().items():
        np.testing.assert_allclose(net.state_dict()[name], array, rtol=1e-5, atol=1e-7, err_msg=name)


def test_a_network_without_masks_is_compiled_to_the_same_bytes(tmp_path: Path) -> None:
    training = nv.Training(SCE, "adam", batch=BATCH)
    net, other = made(), made()
    nv.masked(other, {"head.weight": np.ones((16, 3))})
    held = nv.compile(other, training=training, out=tmp_path / "masked.so")
    assert [p.name for p in held.artifact.params if p.name.endswith(".mask")] == ["head.weight.mask"]
    nv.masked(other, {"head.weight": None})
    paths = [
        nv.compile(n, training=training, out=tmp_path / f"{i}.so", cache=False).path for i, n in enumerate((net, other))
    ]
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_a_mask_is_part_of_the_kernel_that_updates_its_weight() -> None:
    training = nv.Training(SCE, O.AdamW(0.01), batch=BATCH)
    plain, held = (nv.compile(n, training=training).artifact.entry("train_step") for n in (made(), open_()))
    assert [s["op"] for s in plain.steps] == [s["op"].removesuffix("+where") for s in held.steps]
    assert sum(s["op"].endswith("+where") for s in held.steps) == 3
    assert plain.arena_bytes() == held.arena_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlp", "lenet"])
def test_masks_cost_little_time(name: str) -> None:
    """Steps with and without masks of all matrices and kernels, in turns."""
    from training_nets import NETS

    spec, runs = NETS[name], []
    for masked in (False, True):
        net = spec.ours()
        if masked:
            weights = dict(net.named_weights())
            nv.masked(net, {n: np.ones(weights[n].shape) for n in matrices(net)})
        step = nv.Trainer(nv.compile(net, training=spec.training("adamw")).session).bound()
        for array, given in zip(step.feed.arrays.values(), spec.data(spec.batch), strict=False):
            array[...] = given
        step.rate[...] = 1e-4
        runs.append(step.run)
    times: list[list[float]] = [[], []]
    for turn in range(400):
        for which in (0, 1) if turn % 2 else (1, 0):
            start = time.perf_counter()
            runs[which]()
            times[which].append(time.perf_counter() - start)
    ratio = float(np.median(np.array(times[1]) / np.array(times[0])))
    print(f"{name}: {1e6 * min(times[0]):.0f} us, with masks {1e6 * min(times[1]):.0f} us, median ratio {ratio:.3f}")
    assert ratio < 1.15


def test_the_host_changes_masks_while_the_program_stays(tmp_path: Path) -> None:
    net = open_()
    trainer = nv.Trainer(nv.compile(net, training=nv.Training(SCE, O.Adam(0.01), batch=BATCH)).session)
    trainer.fit(X, Y, epochs=1, verbose=0)
    kept = masks()
    trainer.set_weights({f"{n}.mask": m for n, m in kept.items()})
    check_zeros(trainer.weights(), kept)  # before any step
    trainer.fit(X, Y, epochs=1, verbose=0)
    check_zeros(trainer.weights(), kept)
    dense = {n: np.ones_like(a) for n, a in trainer.weights().items() if not n.endswith(".mask")}
    trainer.save_weights(tmp_path / "pruned.safetensors")
    trainer.set_weights(dense)
    check_zeros(trainer.weights(), kept)
    blob = trainer.session.export_state()
    fresh = nv.Trainer(nv.load(trainer.artifact.path))
    fresh.load_weights(tmp_path / "pruned.safetensors")
    check_zeros(fresh.weights(), kept)
    fresh.session.import_state(blob)
    fresh.fit(X, Y, epochs=1, verbose=0)
    check_zeros(fresh.weights(), kept)


def test_gradients_and_apply_as_two_halves_keep_zeros() -> None:
    kept = masks()
    training = nv.Training(SCE, O.SGD(0.1, momentum=0.9), batch=BATCH, gradients=True)
    session = nv.compile(nv.masked(made(), kept), training=training).session
    feeds, rate = {"input": X[:BATCH], "y": Y[:BATCH]}, np.float32(0.1)
    for _ in range(3):
        names = [p.name for p in session.get_outputs("gradients")]
        grads = dict(zip(names, session.run(None, feeds, entry="gradients"), strict=True))
        assert grads["gradient/body.weight"][~kept["body.weight"]].any()
        wanted = {p.name: grads[p.name] for p in session.get_inputs("apply") if p.name in grads}
        session.run(None, {**wanted, "learning_rate": rate}, entry="apply")
    check_zeros(session.params(), kept)


def test_a_resumed_training_has_the_masks_and_the_same_bits(tmp_path: Path) -> None:
    kept = masks()
    whole = trained(nv.masked(made(), kept), O.Adam(0.01), 4)
    trained(nv.masked(made(), kept), O.Adam(0.01), 2, checkpoint=tmp_path)
    again = open_()  # the checkpoint knows better
    trained(again, O.Adam(0.01), 4, checkpoint=tmp_path, resume=True)
    for name, array in whole.state_dict().items():
        np.testing.assert_array_equal(again.state_dict()[name], array, err_msg=name)
    assert np.array_equal(dict(again.named_weights())["body.weight"].mask, kept["body.weight"])


def test_weights_that_are_trained_in_part_are_masked_in_part() -> None:
    kept = {"body.weight": masks()["body.weight"]}
    net = nv.masked(made(), kept)
    net.freeze()
    net.unfreeze("body", channels=range(4, 10))
    before = net.state_dict()
    trained(net, O.SGD(0.1, momentum=0.9))
    after = net.state_dict()
    check_zeros(after, kept)
    assert (after["body.weight"] != before["body.weight"])[:, 4:10][kept["body.weight"][:, 4:10]].all()
    assert np.array_equal(
        np.delete(after["body.weight"], np.r_[4:10], 1), np.delete(before["body.weight"], np.r_[4:10], 1)
    )


def test_steps_of_ones_own_keep_zeros() -> None:
    kept = masks()
    net = nv.masked(made(), kept)

    @nv.network
    def step(x: nv.Input((6,)), y: nv.Input((), dtype="int32")):
        loss = nv.mean(SCE(y, net(x)))
        nv.minimize(loss, net, O.SGD(0.1, momentum=0.9))
        return {"loss": loss}

    session = nv.compile(net, steps=[step], dims={"batch": BATCH}).session
    for _ in range(3):
        session.run(None, {"x": X[:BATCH], "y": Y[:BATCH]}, entry="step")
    params = session.params()
    name = next(n for n in params if n.endswith("body.weight"))
    check_zeros({"body.weight": params[name]}, {"body.weight": kept["body.weight"]})


# -- files and integers ------------------------------------------------------------------------------------------------


def convolutional() -> nv.Sequential:
    layers = [nv.Input((3, 8, 8)), L.Conv2d(8, 3, padding="same", use_bias=False, name="a"), L.BatchNorm(), L.ReLU()]
    layers += [L.DepthwiseConv2d(3, name="d"), L.Conv2d(12, 1, name="b"), L.ReLU(), L.GlobalAvgPool2d()]
    return nv.Sequential([*layers, L.Dense(16, "relu", name="c"), L.Dense(4, name="e")], name="conv")


PICTURES, LABELS = RNG.standard_normal((48, 3, 8, 8)).astype(np.float32), RNG.integers(0, 4, 48).astype(np.int32)


def taught(net: nv.Network) -> nv.Network:
    net.compile(O.Adam(0.01), SCE)
    net.fit(PICTURES, LABELS, BATCH, 2, verbose=0)
    return net


def zeros_of(net: nv.Network) -> dict[str, np.ndarray]:
    return {n: w.array == 0 for n, w in net.named_weights() if w.mask is not None}


def test_sparsify_chooses_the_smallest_and_leaves_depthwise_kernels() -> None:
    net = nv.sparsify(convolutional(), 0.75)
    found = {n: w.mask for n, w in net.named_weights() if w.mask is not None}
    assert sorted(found) == ["a.weight", "b.weight", "c.weight", "e.weight"]
    for name, mask in found.items():
        assert abs(mask.mean() - 0.25) < 0.01, name
    before = convolutional()
    before.ready()
    array, mask = before.state_dict()["c.weight"], found["c.weight"]
    assert np.abs(array[mask]).min() >= np.abs(array[~mask]).max()
    together = nv.sparsify(convolutional(), 0.75, scope="global", skip="e.*")
    share = {n: w.mask.mean() for n, w in together.named_weights() if w.mask is not None}
    sizes = {n: w.size for n, w in together.named_weights() if n in share}
    assert "e.weight" not in share and max(share.values()) - min(share.values()) > 0.05
    assert abs(sum(share[n] * sizes[n] for n in share) / sum(sizes.values()) - 0.25) < 0.01
    nv.sparsify(net, 0.5)  # what is masked stays so
    assert all(np.array_equal(w.mask, found[n]) for n, w in net.named_weights() if n in found)


def test_patterns_lie_along_the_sums_however_the_file_keeps_its_matrices() -> None:
    onnx = pytest.importorskip("onnx")
    h, rng = onnx.helper, np.random.default_rng(2)
    arrays = {"w": rng.standard_normal((16, 8)), "v": rng.standard_normal((16, 4))}
    nodes = [h.make_node("Gemm", ["x", "w"], ["a"], transB=1), h.make_node("MatMul", ["a", "v"], ["y"])]
    ends = [[h.make_tensor_value_info(n, 1, ["N", k])] for n, k in (("x", 8), ("y", 4))]
    held = [onnx.numpy_helper.from_array(a.astype(np.float32), n) for n, a in arrays.items()]
    net = nv.load_network(h.make_model(h.make_graph(nodes, "g", *ends, held), opset_imports=[h.make_opsetid("", 17)]))
    assert {n: m.op for n, m in matrices(net).items()} == {"w": "turned", "v": "matmul"}
    nv.sparsify(net, structure="2:4")
    kept = {n: w.mask for n, w in net.named_weights()}
    assert (kept["w"].reshape(16, 2, 4).sum(2) == 2).all() and (kept["v"].reshape(4, 4, 4).sum(1) == 2).all()
    small = nv.quantize_aware(net, rng.standard_normal((32, 8)).astype(np.float32))
    carried = [w.mask for _, w in small.named_weights() if w.mask is not None]
    assert len(carried) == 2 and np.array_equal(carried[0], kept["w"].T) and np.array_equal(carried[1], kept["v"])


def test_a_pruned_file_is_trained_on_with_its_zeros(tmp_path: Path) -> None:
    net = taught(nv.sparsify(convolutional(), 0.7))
    kept = zeros_of(net)
    nv.save_onnx(net, tmp_path / "pruned.onnx")
    again = nv.masked(nv.load_network(tmp_path / "pruned.onnx"))
    assert sorted(zeros_of(again)) == sorted(kept)
    taught(again)
    for name, zeros in zeros_of(again).items():
        assert np.array_equal(zeros, kept[name]), name


@pytest.mark.parametrize("bits", [8, 4])
def test_pruned_then_quantized_zeros_are_zeros_of_the_integers(bits: int, tmp_path: Path) -> None:
    net = taught(nv.sparsify(convolutional(), 0.75))
    kept = {n: m for n, m in zeros_of(net).items()}
    small = nv.quantize_aware(net, PICTURES, samples=32, weight_bits=bits)
    assert sorted(zeros_of(small)) == sorted(kept)
    taught(small)
    small.export(tmp_path / "small.onnx")
    for graph in (small.to_graph(), nv.load_onnx(tmp_path / "small.onnx")):
        lowered = canonicalize(graph)
        held = {lowered.node(k).names[0]: lowered.node(k).array for k in lowered.find("const")}
        for name, zeros in kept.items():
            (integers,) = (a for n, a in held.items() if n.startswith(name) and a.dtype == np.int8)
            assert not integers[zeros].any() and integers[~zeros].any(), name
    np.testing.assert_array_equal(nv.compile(small)(PICTURES[:1]), nv.compile(tmp_path / "small.onnx")(PICTURES[:1]))
