"""The variational autoencoder: its figures beside PyTorch's for the same net, first weights and batches, and its bound
against the formula in numpy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nervure as nv
import numpy as np
import pytest
from example_runs import DATA, Load, needs_data, numbers, run


def dense(x: np.ndarray, net: nv.Network) -> np.ndarray:
    """The network of dense layers, ReLU between them."""
    net.ready()
    held = [a.astype(np.float64) for a in net.state_dict().values()]
    for i in range(0, len(held), 2):
        x = np.maximum(x, 0) if i else x
        x = x @ held[i] + held[i + 1]
    return x


def nats(x: np.ndarray, logits: np.ndarray, centre: np.ndarray, log_variance: np.ndarray) -> np.ndarray:
    """The bound, written plainly."""
    p = 1 / (1 + np.exp(-logits))
    likelihood = (x * np.log(p) + (1 - x) * np.log(1 - p)).sum(axis=1)
    return likelihood + 0.5 * (1 + log_variance - centre**2 - np.exp(log_variance)).sum(axis=1)


def test_the_bound_is_its_formula(load: Load) -> None:
    """Where clouds are points, what is drawn from them is their centre."""
    example = load("variational_autoencoder")
    x = np.random.default_rng(0).random((3, 784), np.float32)
    example.encoder.ready()
    *_, bias = example.encoder.weights
    bias.assign([0, 0, -40, -40])
    coded = dense(x, example.encoder)
    centre, log_variance = coded[:, :2], coded[:, 2:]
    expected = nats(x, dense(centre, example.decoder), centre, log_variance)
    np.testing.assert_allclose(example.bound(x), expected, rtol=1e-5)
    assert np.abs(centre).max() > 0.1


def test_batches_are_all_pictures_once_an_epoch(load: Load) -> None:
    example = load("variational_autoencoder")
    rates, chosen = zip(*example.batches(3 * 64 + 5, 2), strict=True)
    assert len(chosen) == 6 and all(len(set(np.concatenate(chosen[i : i + 3]).tolist())) == 192 for i in (0, 3))
    assert rates[0] == rates[2] == 2 * rates[3] == example.LEARNING_RATE


@pytest.mark.slow
@needs_data("fashion_mnist.npz")
def test_the_figures(tmp_path: Path) -> None:
    said = run("variational_autoencoder", tmp_path, data=DATA)
    assert numbers(said, r"ROC curve ([\d.]+)")[0] > 0.99
    assert numbers(said, r"held-out shoes: bound (-[\d.]+)")[0] > -204


def trained_by_pytorch(example: Any, shoes: np.ndarray, epochs: int) -> Any:
    """The same encoder and decoder with the same first weights, trained on the same batches, the noise PyTorch's."""
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(1)
    nets = []
    for ours in (example.encoder, example.decoder):
        ours.ready()
        held = [torch.from_numpy(a.copy()) for a in ours.state_dict().values()]
        parts: list[Any] = []
        for weight, bias in zip(held[::2], held[1::2], strict=True):
            linear = torch.nn.Linear(*weight.shape)
            linear.weight.data, linear.bias.data = weight.T.contiguous(), bias
            parts += [torch.nn.ReLU(), linear]
        nets.append(torch.nn.Sequential(*parts[1:]))
    encoder, decoder = nets
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], eps=example.adam.epsilon)
    for rate, chosen in example.batches(len(shoes), epochs):
        optimizer.param_groups[0]["lr"] = rate
        x = torch.from_numpy(shoes[chosen])
        centre, log_variance = encoder(x).chunk(2, 1)
        drawn = decoder(centre + (log_variance / 2).exp() * torch.randn_like(centre))
        loss = torch.nn.functional.binary_cross_entropy_with_logits(drawn, x, reduction="sum")
        loss = loss + 0.5 * (centre**2 + log_variance.exp() - log_variance - 1).sum()
        optimizer.zero_grad()
        (loss / len(x)).backward()
        optimizer.step()
    return encoder, decoder


@pytest.mark.slow
@needs_data("fashion_mnist.npz")
def test_beside_pytorch(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two epochs: bound, reconstruction and area under the curve are alike."""
    torch = pytest.importorskip("torch")
    monkeypatch.setenv("NERVURE_DATA", str(DATA))
    example = load("variational_autoencoder")
    shoes, x, strange, _ = example.shoes_and_all()
    encoder, decoder = trained_by_pytorch(example, shoes, 2)
    example.train(shoes, 2)
    rng, found = np.random.default_rng(0), []
    with torch.no_grad():
        theirs = [(lambda a, net=net: net(torch.from_numpy(a)).numpy()) for net in (encoder, decoder)]
        for encode, decode in ((lambda a: dense(a, example.encoder), lambda a: dense(a, example.decoder)), theirs):
            centre, log_variance = np.split(encode(x), 2, axis=1)
            place = centre + np.exp(log_variance / 2) * rng.standard_normal(centre.shape)
            bounds = nats(x, decode(place.astype(np.float32)).astype(np.float64), centre, log_variance)
            drawn = 1 / (1 + np.exp(-decode(centre.astype(np.float32))))
            error = ((drawn - x)[~strange] ** 2).mean()
            found.append((bounds[~strange].mean(), error, example.area_under_curve(-bounds, strange)))
    for name, ours, peer in zip(("bound", "squared error", "area"), *found, strict=True):
        print(f"{name}: {ours:.4f}, PyTorch {peer:.4f}")
    (bound, error, area), (their_bound, their_error, their_area) = found
    assert abs(bound - their_bound) < 2 and abs(error - their_error) < 0.02 * their_error
    assert abs(area - their_area) < 0.003 and area > 0.98
