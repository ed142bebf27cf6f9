"""The language model: its figures on real text, the C program that writes, and training beside PyTorch's."""

from __future__ import annotations

import math
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import nervure as nv
import numpy as np
import pytest
from example_runs import EXAMPLES, Load, numbers, run

PROMPT = "The function "


@pytest.mark.slow
def test_it_learns_to_write(tmp_path: Path) -> None:
    said = run("language_model", tmp_path)
    (bits,) = numbers(said, r"held-out text: ([\d.]+) bits")
    assert bits < 1.95  # 1.77 was measured; letters by their frequency alone take 4.6
    (apart,) = numbers(said, r"the same scores to ([\d.e+-]+)")
    assert apart < 1e-4
    assert "the C program's equals Python's" in said


def test_windows_are_the_text(load: Load) -> None:
    text = "".join(chr(32 + i % 90) for i in range(65 * 40 + 7))
    train, test = load("language_model").windows(text)
    assert train.shape == (36, 65) and test.shape == (4, 65)
    found = sorted("".join(map(chr, row)) for row in np.concatenate([train, test]))
    assert found == sorted(text[i : i + 65] for i in range(0, 65 * 40, 65))


# -- writing, from Python and from C, with a network that has learned nothing and is sure of nothing -------------------


def compiled(example: ModuleType, folder: Path, target: str = "host") -> Path:
    model = nv.compile(example.language_model, target, entries=[example.step])
    return model.save(folder / "language_model.so")


def said(library: Path, *arguments: object) -> str:
    command = nv.build_c(EXAMPLES / "c" / "generate.c", library)
    done = subprocess.run([*command, *map(str, arguments)], capture_output=True, check=True)
    return done.stdout.decode("ascii")


def written(example: ModuleType, program: Any, count: int, choose: Callable[[np.ndarray], int]) -> str:
    """The text, each time from the scores of all that stands there so far, without a cache; the window is a text's."""
    text = [ord(c) for c in PROMPT]
    for _ in range(count):
        row = np.zeros((1, example.LENGTH), np.int32)
        row[0, : len(text)] = text
        text.append(choose(program(row)[0, len(text) - 1]))
    return "".join(map(chr, text))


@pytest.mark.slow
def test_python_and_c_write_what_the_scores_say(load: Load, tmp_path: Path) -> None:
    example = load("language_model")
    library = compiled(example, tmp_path)
    program = nv.load(library)
    count = example.LENGTH - len(PROMPT)
    likeliest = written(example, program, count, lambda scores: int(scores.argmax()))
    assert example.write(program, PROMPT, count) == likeliest
    assert said(library, PROMPT, count) == likeliest + "\n"

    state = 7 * 2 + 1

    def drawn(scores: np.ndarray) -> int:  # xorshift64* and the distribution's inverse, plainly
        nonlocal state
        for shift in (12, -25, 27):
            state ^= state >> shift if shift > 0 else state << -shift & 2**64 - 1
        chance = (state * 2685821657736338717 % 2**64 >> 11) / 2**53
        weights = [math.exp(s / 0.8) for s in scores.tolist()]
        sums = np.cumsum(weights)
        return int(np.searchsorted(sums, chance * sums[-1], side="right"))

    assert said(library, PROMPT, count, 0.8, 7) == written(example, program, count, drawn) + "\n"
    far = example.write(program, PROMPT, 4 * example.LENGTH)  # beyond the window
    assert said(library, PROMPT, 4 * example.LENGTH) == far + "\n" and len(set(far[len(PROMPT) :])) > 1
    with pytest.raises(subprocess.CalledProcessError):
        said(library, PROMPT)


@pytest.mark.slow
@pytest.mark.emulator
def test_it_writes_the_same_on_a_raspberry_pi(load: Load, tmp_path: Path) -> None:
    if shutil.which("qemu-aarch64") is None:
        pytest.skip("no qemu-aarch64")
    example = load("language_model")
    (tmp_path / "here").mkdir()
    program = nv.load(compiled(example, tmp_path / "here"))
    text = example.write(program, PROMPT, 100)
    assert said(compiled(example, tmp_path, "rpi4"), PROMPT, 100) == text + "\n"


def test_drawn_characters_have_the_probabilities_of_their_scores(load: Load) -> None:
    """``write`` over a program whose scores never change."""
    probability = np.full(128, 1e-9)
    probability[[97, 98, 99]] = 0.6, 0.3, 0.1

    class Same:
        outputs = (np.log(probability)[None, None],)

        def binding(self, inputs: object, entry: str) -> Any:
            return self

        def reset(self) -> None: ...

        def __call__(self) -> None: ...

    write = load("language_model").write
    assert write(Same(), "x", 3) == "xaaa"
    for temperature, wanted in ((1.0, (0.6, 0.3, 0.1)), (0.5, (0.783, 0.196, 0.022))):  # squares, for 1 / 2
        text = write(Same(), "", 5000, temperature)
        np.testing.assert_allclose([text.count(c) / 5000 for c in "abc"], wanted, atol=0.025)


# -- the same net, initial weights and batches in PyTorch ------------------------------------------------------------


def torch_decoder(torch: Any, state: dict[str, np.ndarray], example: ModuleType) -> tuple[Any, list[Any]]:
    """The network written in PyTorch, over copies of our weights: a function of tokens, and what it trains."""
    w = {name: torch.tensor(value, requires_grad=True) for name, value in state.items()}
    f, heads, half = torch.nn.functional, 4, example.WIDTH // 8
    rates = 10000.0 ** (-torch.arange(half) / half)
    angle = torch.arange(example.LENGTH)[:, None] * rates

    def linear(x: Any, name: str) -> Any:
        return x @ w[f"{name}.weight"] + w[f"{name}.bias"]

    def norm(x: Any, name: str) -> Any:
        return f.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], 1e-5)

    def turned(x: Any) -> Any:
        a, b = x[..., :half], x[..., half:]
        return torch.cat([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], -1)

    def call(tokens: Any) -> Any:
        x = w["embedding.weight"][tokens]
        for block in ("transformer_decoder_layer" + end for end in ("", "_1", "_2")):
            y = norm(x, f"{block}.norm1")
            q, k, v = (
                linear(y, f"{block}.self_attn.{n}").unflatten(-1, (heads, -1)).transpose(1, 2)
                for n in ("query", "key", "value")
            )
            y = f.scaled_dot_product_attention(turned(q), turned(k), v, is_causal=True).transpose(1, 2).flatten(2)
            x = x + linear(y, f"{block}.self_attn.output")
            x = x + linear(f.gelu(linear(norm(x, f"{block}.norm2"), f"{block}.linear1")), f"{block}.linear2")
        return linear(norm(x, "layer_norm"), "dense")

    return call, list(w.values())


@pytest.mark.slow
def test_it_learns_as_in_pytorch(load: Load) -> None:
    torch = pytest.importorskip("torch")
    example = load("language_model")
    net, steps, batch = example.language_model, 60, example.BATCH
    theirs, weights = torch_decoder(torch, net.state_dict(), example)
    train, test = example.windows(nv.datasets.text())

    net.compile(nv.optimizers.Adam(0.004), nv.losses.SparseCategoricalCrossentropy(from_logits=True))
    optimizer = torch.optim.Adam(weights, 0.004)

    def loss_of(rows: np.ndarray) -> Any:
        tokens = torch.tensor(rows).long()
        return torch.nn.functional.cross_entropy(theirs(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())

    ours, other = [], []
    for rows in np.split(train[: steps * batch], steps):
        ours.append(net.train_on_batch(rows[:, :-1], rows[:, 1:])["loss"])
        optimizer.zero_grad()
        loss = loss_of(rows)
        loss.backward()
        optimizer.step()
        other.append(loss.item())
    np.testing.assert_allclose(ours[:10], other[:10], rtol=1e-4)
    np.testing.assert_allclose(ours, other, rtol=0.02)
    held_out = net.evaluate(test[:320, :-1], test[:320, 1:], batch)
    with torch.no_grad():
        wanted = loss_of(test[:320]).item()
    print(f"held-out loss after {steps} steps: {held_out:.4f}, PyTorch {wanted:.4f}")
    assert held_out == pytest.approx(wanted, rel=0.01) and held_out < 0.8 * ours[0]
