"""The examples that train: their helpers, a short run of each on stand-in data, and the figures on the real data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nervure as nv
import numpy as np
import pytest
from example_runs import DATA, Load, needs_data, numbers, run

FILES = {
    "quantize_aware": ["quantized.h", "quantized.onnx", "quantized.so"],
    "pruning": ["block.onnx", "channels.onnx", "pruned.h", "pruned.so"],
}


# -- helpers ---------------------------------------------------------------------------------------------------------


def test_log_mel_finds_a_tone_and_equals_the_formula(load: Load) -> None:
    example = load("spoken_digits")
    t = np.arange(8000) / 8000
    sound = np.stack([np.sin(2 * np.pi * 1000 * t), 0.1 * np.random.default_rng(0).standard_normal(8000)])
    found = example.log_mel(sound)
    assert found.shape == (2, 49, 40) and found.dtype == np.float32

    def hz(band: float) -> float:  # O'Shaughnessy's formula, bands at equal distances from 0 to 4000 Hz
        return 700 * (10 ** (band / 41 * np.log10(1 + 4000 / 700)) - 1)

    loudest = found[0].mean(axis=0).argmax()
    assert hz(loudest) < 1000 < hz(loudest + 2)
    frame = sound[1, 7 * 160 : 7 * 160 + 256] * (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(256) / 255))
    for band in (3, 20, 39):
        energy = 0.0
        for k in range(129):
            spectrum = sum(frame * np.exp(-2j * np.pi * k * np.arange(256) / 256))
            centre = np.interp(k * 8000 / 256, [hz(band), hz(band + 1), hz(band + 2)], [0, 1, 0])
            energy += centre * abs(spectrum) ** 2
        assert found[1, 7, band] == pytest.approx(np.log(energy + 1e-3), abs=1e-4)


def test_recordings_held_out_are_a_fifth_of_everything(load: Load) -> None:
    y = np.tile(np.repeat(np.arange(10), 10), 3)
    speaker = np.repeat(["a", "b", "c"], 100)
    test = load("spoken_digits").held_out(y, speaker)
    assert test.sum() == 60
    for who in "abc":
        assert (np.bincount(y[test & (speaker == who)]) == 2).all()
    assert test[:10].tolist() == [True, True, *[False] * 8]


def test_area_under_curve_counts_pairs(load: Load) -> None:
    rng = np.random.default_rng(3)
    scores, positive = rng.integers(0, 9, 60) / 4, rng.random(60) < 0.3
    pairs = [(a > b) + (a == b) / 2 for a in scores[positive] for b in scores[~positive]]
    assert load("anomaly_autoencoder").area_under_curve(scores, positive) == pytest.approx(np.mean(pairs))


# -- short runs, and the figures -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_a_short_run_without_data(name: str, tmp_path: Path) -> None:
    said = run(name, tmp_path, 1)
    assert "a generated stand-in" in said
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(FILES[name])
    assert all(p.stat().st_size > 1000 for p in tmp_path.iterdir())


@pytest.mark.slow
@needs_data("fashion_mnist.npz")
def test_fashion_cnn(tmp_path: Path) -> None:
    said = run("fashion_cnn", tmp_path, data=DATA)
    (accuracy,) = numbers(said, r"fashion_cnn.so: ([\d.]+)% of 10000")
    assert accuracy >= 90.0
    (last,) = numbers(said, r"epoch 5/5 .* val_accuracy: ([\d.]+)")
    assert abs(100 * last - accuracy) < 0.1  # the program is what was trained


@pytest.mark.slow
@needs_data("fashion_mnist.npz")
def test_quantize_aware(tmp_path: Path) -> None:
    """Weights of 4 bits and activations of 8: at most a point below float, and what was trained is what runs."""
    said = run("quantize_aware", tmp_path, 3, data=DATA)
    in_float, _, trained = numbers(said, r"([\d.]+)%(?=, | of the test pictures)")
    assert in_float > 89 and trained >= in_float - 1
    assert "1000 outputs as in training, bit for bit: True" in said


@pytest.mark.slow
@needs_data("spoken_digits_8k.npz")
def test_spoken_digits(tmp_path: Path) -> None:
    said = run("spoken_digits", tmp_path, data=DATA)
    assert "2400 recordings to learn from, 600 held out, 6 speakers" in said
    accuracies = numbers(said, r"([\d.]+)% of the recordings")
    assert len(accuracies) == 2 and min(accuracies) >= 95.0


@pytest.mark.slow
@needs_data("fashion_mnist.npz")
def test_anomaly_autoencoder(tmp_path: Path) -> None:
    said = run("anomaly_autoencoder", tmp_path, 5, data=DATA)
    assert numbers(said, r"ROC curve ([\d.]+)")[0] >= 0.97


@pytest.mark.slow
@needs_data("fashion_mnist.npz")
def test_gan(tmp_path: Path) -> None:
    """Pictures that are like the real ones: on average, in how they differ, and no two alike."""
    from PIL import Image

    run("gan", tmp_path, 1, data=DATA)
    sheet = np.asarray(Image.open(tmp_path / "gan.png").resize((16 * 28, 5 * 28), Image.Resampling.BOX), np.float64)
    made = sheet.reshape(5, 28, 16, 28).transpose(0, 2, 1, 3).reshape(80, 784) / 255
    with np.load(DATA / "fashion_mnist.npz") as file:
        real = file["x_test"].reshape(-1, 784) / 255
    for statistic in (np.mean, np.std):
        likeness = np.corrcoef(statistic(made, axis=0), statistic(real, axis=0))[0, 1]
        print(f"{statistic.__name__}: correlation {likeness:.3f} with real pictures")
        assert likeness > 0.8
    apart = np.linalg.norm(made[:, None] - made[None], axis=2)[np.triu_indices(80, 1)]
    assert apart.min() > 1 and np.median(apart) > 6  # no collapse: real pictures' median is about 12


def same_weights(net: nv.Network, theirs: Any) -> None:
    """Gives PyTorch's network, whose layers come in the same order, the weights of nervure's."""
    import torch

    net.ready()
    held = [t for n, t in theirs.state_dict().items() if not n.endswith("num_batches_tracked")]
    for tensor, array in zip(held, net.state_dict().values(), strict=True):
        tensor.copy_(torch.from_numpy(array.T.copy() if array.ndim == 2 else array.copy()))


@pytest.mark.slow
@needs_data("fashion_mnist.npz")
def test_the_autoencoder_beside_pytorch(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same net, first weights and batches: the same area under the curve, shoes drawn as well."""
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    monkeypatch.setenv("NERVURE_DATA", str(DATA))
    example = load("anomaly_autoencoder")
    shoes, x, strange, _ = example.shoes_and_all()
    shoes = shoes[np.random.default_rng(0).permutation(len(shoes))]
    net, nn = example.network(), torch.nn
    linears = [nn.Linear(*sizes) for sizes in ((784, 128), (128, 16), (16, 128), (128, 784))]
    theirs = nn.Sequential(linears[0], nn.ReLU(), linears[1], linears[2], nn.ReLU(), linears[3], nn.Sigmoid())
    same_weights(net, theirs)

    adam = nv.optimizers.Adam(example.LEARNING_RATE)
    net.compile(optimizer=adam, loss="mse")
    net.fit(shoes, shoes, example.BATCH, epochs=2, shuffle=False, verbose=0)
    optimizer = torch.optim.Adam(theirs.parameters(), example.LEARNING_RATE, eps=adam.epsilon)
    for _ in range(2):
        for batch in torch.from_numpy(shoes).split(example.BATCH):
            optimizer.zero_grad()
            nn.functional.mse_loss(theirs(batch), batch).backward()
            optimizer.step()
    with torch.no_grad():
        drawn = theirs(torch.from_numpy(x)).numpy()
    errors = [((x - d) ** 2).mean(axis=1) for d in (net.predict(x), drawn)]
    ours, peer = (example.area_under_curve(e, strange) for e in errors)
    drawings, of_peer = (e[~strange].mean() for e in errors)
    print(f"area under the curve {ours:.4f}, PyTorch {peer:.4f}; error of shoes {drawings:.5f}, PyTorch {of_peer:.5f}")
    assert ours > 0.95 and abs(ours - peer) < 0.003 and abs(drawings - of_peer) < 0.01 * of_peer


@pytest.mark.slow
def test_the_steps_of_the_gan_beside_pytorch(load: Load) -> None:
    """The same nets, first weights, pictures and noise: the same losses, and the same pictures after the last step."""
    torch = pytest.importorskip("torch")
    gan, nn, real = load("gan"), torch.nn, torch.from_numpy(2 * nv.datasets.fashion_mnist()[0][0] - 1)
    gan.discriminator.get_layer("dropout").rate = 0.0  # other random numbers
    up = nn.Upsample(scale_factor=2)
    first = [nn.Linear(64, 48 * 49, bias=False), nn.BatchNorm1d(48 * 49), nn.ReLU(), nn.Unflatten(1, (48, 7, 7)), up]
    second = [nn.Conv2d(48, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(), up]
    make = nn.Sequential(*first, *second, nn.Conv2d(32, 1, 5, padding=2), nn.Tanh())
    halves = [nn.ZeroPad2d((1, 2, 1, 2)), nn.Conv2d(1, 24, 5, 2), nn.LeakyReLU(0.2)]  # "same" pads more at the end
    quarters = [nn.ZeroPad2d((1, 2, 1, 2)), nn.Conv2d(24, 48, 5, 2), nn.LeakyReLU(0.2)]
    judge = nn.Sequential(*halves, *quarters, nn.Flatten(), nn.Linear(48 * 49, 1))
    same_weights(gan.generator, make)
    same_weights(gan.discriminator, judge)
    steps = [gan.train_discriminator, gan.train_generator]
    model = nv.compile(gan.generator, steps=steps, dims={"batch": gan.BATCH})

    def adam(net: Any) -> Any:
        return torch.optim.Adam(net.parameters(), 0.001, betas=(gan.adam.beta_1, 0.999), eps=gan.adam.epsilon)

    loss, of_judge, of_make = nn.functional.binary_cross_entropy_with_logits, adam(judge), adam(make)
    rng, rate = np.random.default_rng(0), np.float32(0.001)
    for step in range(3):  # then rounding shows, in PyTorch too: 0.007 between float32 and float64
        x = real[gan.BATCH * step :][: gan.BATCH]
        noise = rng.standard_normal((gan.BATCH, gan.NOISE), dtype=np.float32)
        feeds, z = {"noise": noise, "rate": rate}, torch.from_numpy(noise)
        ours = model.session.run(None, feeds | {"real": x.numpy()}, entry="train_discriminator")
        ours += model.session.run(None, feeds, entry="train_generator")

        score, made = judge(x), judge(make(z).detach())
        theirs = [(loss(score, torch.full_like(score, 0.9)) + loss(made, torch.zeros_like(made))) / 2]
        of_judge.zero_grad()
        theirs[0].backward()
        of_judge.step()
        made = judge(make(z))
        theirs.append(loss(made, torch.ones_like(made)))
        of_make.zero_grad()
        theirs[1].backward()
        of_make.step()
        found = [float(t.detach()) for t in theirs]
        np.testing.assert_allclose([float(a) for a in ours], found, rtol=1e-4)
    with torch.no_grad():
        np.testing.assert_allclose(model(noise), make.eval()(z).numpy(), atol=0.02)
