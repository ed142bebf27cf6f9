"""Spiking neurons: against a plain numpy reference, against snnTorch where that is installed, and step by step."""

from __future__ import annotations

from typing import Any

import nervure as nv
import numpy as np
import pytest
from nervure import layers

Array = np.ndarray
SHAPE = (3, 12, 5)  # batch, time, neurons
RESETS = [("subtract", True), ("zero", True), ("none", True), ("subtract", False), ("zero", False)]


def currents(seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(0.35, 0.5, SHAPE).astype(np.float32)


def lif(x: Array, beta: Any, threshold: Any = 1.0, how: str = "subtract", delay: bool = True) -> tuple[Array, Array]:
    """Leaky integrate-and-fire neurons, written plainly: spikes and membranes [batch, time, ...]."""
    beta, threshold = np.clip(np.float32(beta), 0, 1), np.float32(threshold)
    mem, spikes, mems = np.zeros_like(x[:, 0]), np.zeros_like(x), np.zeros_like(x)
    for t in range(x.shape[1]):
        over = mem > threshold
        if how == "zero":
            mem = np.where(over, np.float32(0), mem)
        mem = beta * mem + x[:, t]
        if how == "subtract":
            mem = mem - over * threshold
        spikes[:, t] = mem > threshold
        if not delay:
            again = spikes[:, t] - over
            mem = mem - again * (threshold if how == "subtract" else mem if how == "zero" else 0)
        mems[:, t] = mem
    return spikes, mems


def whole(leaky: layers.Leaky) -> nv.Network:
    return nv.network(lambda x: leaky(x, return_mem=True), name="whole", x=nv.Input(SHAPE[1:]))


# -- against numpy ---------------------------------------------------------------------------------------------------


def test_all_steps_are_those_of_the_equations() -> None:
    x, made = currents(), [layers.Leaky(0.9, reset_mechanism=how, reset_delay=delay) for how, delay in RESETS]
    net = nv.network(lambda x: [leaky(x, return_mem=True) for leaky in made], name="net", x=nv.Input(SHAPE[1:]))
    found = nv.compile(net, dims={"batch": 3})(x)
    for (how, delay), spikes, mems in zip(RESETS, found[::2], found[1::2], strict=True):
        wanted, membranes = lif(x, 0.9, 1.0, how, delay)
        np.testing.assert_array_equal(spikes, wanted)
        np.testing.assert_allclose(mems, membranes, atol=1e-6)
        assert 0.1 < spikes.mean() < 0.9


def test_every_neuron_may_have_its_own_leak_and_threshold() -> None:
    beta, threshold = np.linspace(-0.2, 1.4, 5), np.linspace(0.5, 1.5, 5)
    spikes, mems = nv.compile(whole(layers.Leaky(beta, threshold)), dims={"batch": 3})(currents())
    wanted, membranes = lif(currents(), beta, threshold)
    np.testing.assert_array_equal(spikes, wanted)
    np.testing.assert_allclose(mems, membranes, atol=1e-6)


def test_step_by_step_with_a_state_it_spikes_as_on_the_whole_time() -> None:
    """The membrane lives in the artifact; ``reset()`` starts a new sequence."""
    leaky, x = layers.Leaky(0.8, reset_mechanism="zero"), currents(1)
    one = nv.network(lambda x: leaky.step(x), name="one", x=nv.Input((5,)))
    model = nv.compile(one, dims={"batch": 3})
    for _ in range(2):
        stepped = np.stack([model(x[:, t]) for t in range(SHAPE[1])], 1)
        np.testing.assert_array_equal(stepped, lif(x, 0.8, how="zero")[0])
        model.reset()


def test_a_network_of_them_reads_a_stream() -> None:
    first, second = layers.Dense(6), layers.Dense(2)
    a, b = layers.Leaky(0.9), layers.Leaky(0.8, reset_delay=False)
    net = nv.network(lambda x: b(second(a(3 * first(x)))), name="net", x=nv.Input((12, 5)))
    x = np.random.default_rng(5).random((1, 12, 5), np.float32)
    model, wanted = nv.compile(nv.streaming(net, frames=3)), net(x)
    for _ in range(2):
        found = np.concatenate([model(x[:, t : t + 3]) for t in range(0, 12, 3)], axis=1)
        np.testing.assert_array_equal(found, wanted)
        model.reset()
    assert 0 < wanted.mean() < 1


def test_step_by_step_with_the_membrane_in_hand() -> None:
    leaky, x, mem = layers.Leaky(0.7), currents(2), np.zeros((3, 5), np.float32)
    wanted, membranes = lif(x, 0.7)
    for t in range(SHAPE[1]):
        spikes, mem = leaky(x[:, t], mem)
        np.testing.assert_array_equal(spikes, wanted[:, t])
        np.testing.assert_allclose(mem, membranes[:, t], atol=1e-6)


@pytest.mark.parametrize(
    ("surrogate", "slope"),
    [
        (nv.spiking.fast_sigmoid(10.0), lambda v: 1 / (1 + 10 * np.abs(v)) ** 2),
        (nv.spiking.atan(2.0), lambda v: 1 / (1 + (np.pi * v) ** 2)),
    ],
)
def test_gradients_go_through_time_by_the_surrogate(surrogate: Any, slope: Any) -> None:
    """Of a weighted sum of spikes, for the currents, beta and the threshold: backpropagation through time by hand."""
    x, g = currents(3), np.random.default_rng(4).normal(size=SHAPE).astype(np.float32)
    leaky = layers.Leaky(0.9, spike_grad=surrogate, learn_beta=True, learn_threshold=True)

    @nv.network
    def net(x: nv.Input(SHAPE[1:])):
        spikes = leaky(x)
        found = nv.grad(nv.sum(spikes * g), [x, leaky.beta, leaky.threshold])
        return (spikes, *found)

    spikes, at_x, at_beta, at_threshold = nv.compile(net, dims={"batch": 3})(x)
    wanted, mems = lif(x, 0.9)
    np.testing.assert_array_equal(spikes, wanted)
    later, of_x, of_beta, of_threshold = np.zeros((3, 5)), np.zeros(SHAPE), 0.0, 0.0
    for t in reversed(range(SHAPE[1])):
        through = g[:, t] * slope(mems[:, t] - 1.0)
        of_x[:, t] = later = through + 0.9 * later
        of_beta += (later * (mems[:, t - 1] if t else 0)).sum()
        of_threshold -= through.sum() + (later * (wanted[:, t - 1] if t else 0)).sum()
    np.testing.assert_allclose(at_x, of_x, atol=2e-5)
    np.testing.assert_allclose([at_beta, at_threshold], [of_beta, of_threshold], rtol=1e-4)


def test_what_is_learned_is_a_weight() -> None:
    assert {n: w.trained for n, w in _built(layers.Leaky(0.5)).named_weights()} == {"beta": False, "threshold": False}
    learned = _built(layers.Leaky(np.full(5, 0.5), learn_beta=True, learn_threshold=True))
    assert {n: w.trained for n, w in learned.named_weights()} == {"beta": True, "threshold": True}


def _built(leaky: layers.Leaky) -> layers.Leaky:
    leaky(currents())
    return leaky


# -- codes -----------------------------------------------------------------------------------------------------------


def test_a_latency_code_has_each_spike_at_its_time() -> None:
    x = np.array([[0.0, 0.02, 0.24, 0.5, 0.76, 1.0]], np.float32)
    spikes = nv.spiking.latency(x, 5)
    assert spikes.shape == (1, 5, 6) and spikes.dtype == np.float32
    np.testing.assert_array_equal(spikes.sum(axis=1), [[0, 1, 1, 1, 1, 1]])
    np.testing.assert_array_equal(spikes[0, :, 1:].argmax(axis=0), [4, 3, 2, 1, 0])
    net = nv.network(lambda x: nv.spiking.latency(x, 5), name="code", x=nv.Input((6,)))
    np.testing.assert_array_equal(nv.compile(net)(x), spikes)


def test_a_rate_code_spikes_as_often_as_the_number_says() -> None:
    x = np.array([[0.0, 0.1, 0.5, 0.9, 1.0]], np.float32)
    net = nv.network(lambda x: nv.spiking.rate(x, 4000), name="code", x=nv.Input((5,)))
    spikes = nv.compile(net)(x)
    assert spikes.shape == (1, 4000, 5) and set(np.unique(spikes)) == {0.0, 1.0}
    np.testing.assert_allclose(spikes.mean(axis=1), x, atol=0.03)
    assert abs(np.corrcoef(spikes[0, 1:, 2], spikes[0, :-1, 2])[0, 1]) < 0.05  # one step tells nothing of the next


def test_what_is_wrong_is_said() -> None:
    with pytest.raises(nv.NervureError, match="expected one of subtract, zero, none, got 'hard'"):
        layers.Leaky(0.9, reset_mechanism="hard")
    with pytest.raises(nv.NervureError, match=r"expected currents \[batch, time, ...\]") as caught:
        layers.Leaky(0.9)(np.zeros(4, np.float32))
    assert "leaky.step(x)" in str(caught.value.hint)
    with pytest.raises(nv.NervureError, match="whole number of at least 1, got 0"):
        nv.spiking.latency(np.zeros((1, 2)), 0)


# -- against snnTorch -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "delay", "surrogate"), [(*r, "atan") for r in RESETS] + [("subtract", True, "fast_sigmoid")]
)
def test_a_network_spikes_and_learns_as_snntorch_does(how: str, delay: bool, surrogate: str) -> None:
    """Two layers with the same weights: every spike, and the gradients of all weights and of beta."""
    snn, torch = pytest.importorskip("snntorch"), pytest.importorskip("torch")
    x = (np.random.default_rng(0).random((4, 10, 6)) < 0.4).astype(np.float32)
    chosen = getattr(nv.spiking, surrogate)()
    first, second = layers.Dense(8), layers.Dense(3)
    lifs = [layers.Leaky(0.9, spike_grad=chosen, learn_beta=True, reset_mechanism=how, reset_delay=delay)]
    lifs += [layers.Leaky(0.7, 0.8, spike_grad=chosen, reset_mechanism=how, reset_delay=delay)]

    @nv.network
    def net(x: nv.Input((10, 6))):
        hidden = lifs[0](3 * first(x))
        out, mem = lifs[1](second(hidden), return_mem=True)
        weights = [first.weight, second.weight, lifs[0].beta]
        return (hidden, out, *nv.grad(nv.sum(nv.square(out + 0.1 * mem)), weights))

    hidden, out, *grads = nv.compile(net, dims={"batch": 4})(x)
    assert 0.05 < hidden.mean() < 0.95 and out.sum() > 0

    linear = [torch.nn.Linear(6, 8), torch.nn.Linear(8, 3)]
    for theirs, ours in zip(linear, (first, second), strict=True):
        theirs.weight.data, theirs.bias.data = torch.tensor(ours.weight.numpy().T), torch.tensor(ours.bias.numpy())
    step = getattr(snn.surrogate, surrogate)()
    a = snn.Leaky(0.9, spike_grad=step, learn_beta=True, reset_mechanism=how, reset_delay=delay)
    b = snn.Leaky(0.7, threshold=0.8, spike_grad=step, reset_mechanism=how, reset_delay=delay)
    mem_a = mem_b = None
    said: list[list[Any]] = [[], [], []]
    for t in range(10):
        spikes, mem_a = a(3 * linear[0](torch.tensor(x[:, t])), mem_a)
        fired, mem_b = b(linear[1](spikes), mem_b)
        for kept, new in zip(said, (spikes, fired, mem_b), strict=True):
            kept.append(new)
    theirs_hidden, theirs_out, theirs_mem = (torch.stack(part, 1) for part in said)
    (theirs_out + 0.1 * theirs_mem).square().sum().backward()
    np.testing.assert_array_equal(hidden, theirs_hidden.detach().numpy())
    np.testing.assert_array_equal(out, theirs_out.detach().numpy())
    wanted = [linear[0].weight.grad.T, linear[1].weight.grad.T, a.beta.grad]
    for ours, theirs in zip(grads, wanted, strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=2e-4, atol=2e-5)


def test_the_latency_code_is_snntorchs() -> None:
    torch, spikegen = pytest.importorskip("torch"), pytest.importorskip("snntorch.spikegen")
    x = np.random.default_rng(0).random((5, 40)).astype(np.float32)
    theirs = spikegen.latency(torch.tensor(x), num_steps=9, normalize=True, linear=True, clip=True)
    np.testing.assert_array_equal(nv.spiking.latency(x, 9), theirs.numpy().transpose(1, 0, 2))


# -- event by event ---------------------------------------------------------------------------------------------------


def test_event_by_event_it_is_the_product_with_the_spikes() -> None:
    """One entry adds a spiking input's row of weights and returns nothing, another ends the time step."""
    synapses, leaky = layers.Dense(5, use_bias=False), layers.Leaky(0.9)
    current = nv.Variable(np.zeros((1, 5)), trainable=False, name="current")

    @nv.network
    def whole_time(x: nv.Input((12, 7))):
        return leaky(2 * synapses(x))

    @nv.network
    def event(index: nv.Input(batch_shape=(), dtype="int32")):
        nv.assign(current, current + 2 * synapses.weight[index])

    @nv.network
    def tick():
        spikes = leaky.step(current)
        nv.assign(current, nv.zeros_like(current))
        return spikes

    model = nv.compile(whole_time, entries=[event, tick])
    x = (np.random.default_rng(0).random((1, 12, 7)) < 0.3).astype(np.float32)
    said = []
    for step in x[0]:
        for index in np.flatnonzero(step):
            assert model.session.run(None, {"index": np.int32(index)}, entry="event") == []
        said.append(model.session.run(None, {}, entry="tick")[0][0])
    np.testing.assert_array_equal(said, model(x)[0])
    assert 0.05 < np.mean(said) < 0.95
