"""The denoising autoencoder: how much noise it takes out, and that PyTorch's same net takes out as much."""

from __future__ import annotations

from pathlib import Path

import nervure as nv
import numpy as np
import pytest
from example_runs import DATA, Load, needs_data, numbers, run


def test_decibels_of_noise(load: Load) -> None:
    example = load("denoising_autoencoder")
    x = np.zeros((40, 1, 28, 28), np.float32)
    for level in (0.1, 0.4):
        assert example.decibels(example.noisy(x, level), x) == pytest.approx(-20 * np.log10(level), abs=0.1)
    assert (example.noisy(x) == example.noisy(x)).all()


@pytest.mark.slow
@needs_data("fashion_mnist.npz")
def test_noise_is_taken_out(tmp_path: Path) -> None:
    said = run("denoising_autoencoder", tmp_path, 2, data=DATA)
    before, after = numbers(said, r"([\d.]+) dB (?:with noise|cleaned)")
    assert before == pytest.approx(8.0, abs=0.1) and after > 18.5


@pytest.mark.slow
@needs_data("fashion_mnist.npz")
def test_beside_pytorch(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same net, first weights and 400 batches, other noise: pictures come out as clean."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    torch.set_num_threads(1)
    monkeypatch.setenv("NERVURE_DATA", str(DATA))
    example, nn = load("denoising_autoencoder"), torch.nn
    (x, _), (test, _) = nv.datasets.fashion_mnist()
    x, test = x[np.random.default_rng(0).permutation(len(x))[: 400 * example.BATCH]], test[::5]
    net = example.network()
    net.ready()
    down = [nn.Conv2d(1, 24, 5, 2, 2), nn.ReLU(), nn.Conv2d(24, 32, 3, 2, 1), nn.ReLU()]
    up = [nn.ConvTranspose2d(32, 24, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(24, 1, 4, 2, 1), nn.Sigmoid()]
    theirs = nn.Sequential(*down, *up)
    for parameter, array in zip(theirs.parameters(), net.state_dict().values(), strict=True):
        parameter.data.copy_(torch.from_numpy(array.copy()))

    adam = nv.optimizers.Adam(example.LEARNING_RATE)
    net.compile(optimizer=adam, loss="mse")
    net.fit(x, x, example.BATCH, epochs=1, shuffle=False, verbose=0)
    optimizer = torch.optim.Adam(theirs.parameters(), example.LEARNING_RATE, eps=adam.epsilon)
    for batch in torch.from_numpy(x).split(example.BATCH):
        optimizer.zero_grad()
        nn.functional.mse_loss(theirs(batch + example.NOISE * torch.randn_like(batch)), batch).backward()
        optimizer.step()
    with torch.no_grad():
        cleaned = theirs(torch.from_numpy(example.noisy(test))).numpy()
    ours, peer = (example.decibels(found, test) for found in (net.predict(example.noisy(test)), cleaned))
    print(
        f"cleaned: {ours:.2f} dB, PyTorch {peer:.2f} dB; with noise {example.decibels(example.noisy(test), test):.2f}"
    )
    assert ours > 15 and abs(ours - peer) < 0.4
