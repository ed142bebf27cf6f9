"""The masked language model: its figures on real text, its gaps, and training beside PyTorch's."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import nervure as nv
import numpy as np
import pytest
from example_runs import Load, numbers, run


@pytest.mark.slow
def test_it_learns_to_fill_gaps(tmp_path: Path) -> None:
    said = run("masked_language_model", tmp_path)
    (right,), (blank,) = numbers(said, r"rightly: ([\d.]+)%"), numbers(said, r"blank: ([\d.]+)%")
    assert right > 45 and right > 2 * blank  # 50.2 and 18.9 were measured
    assert "a C program fills them the same way" in said


def test_lines_are_the_text(load: Load) -> None:
    text = "".join(chr(32 + i % 90) for i in range(64 * 40 + 7))
    train, test = load("masked_language_model").lines(text)
    assert train.shape == (36, 64) and test.shape == (4, 64)
    found = sorted("".join(map(chr, row)) for row in np.concatenate([train, test]))
    assert found == sorted(text[i : i + 64] for i in range(0, 64 * 40, 64))


def test_gaps_are_shown(load: Load) -> None:
    assert load("masked_language_model").readable([97, 127, 10, 98]) == "a_ b"


def torch_encoder(torch: Any, state: dict[str, np.ndarray]) -> tuple[Any, list[Any]]:
    """The network made of PyTorch's own layers, with our weights: a function of tokens, and what it trains."""
    embed, place, head = torch.nn.Embedding(128, 64), torch.nn.Parameter(torch.zeros(64, 64)), torch.nn.Linear(64, 128)
    blocks = [
        torch.nn.TransformerEncoderLayer(64, 4, 256, 0.0, "gelu", batch_first=True, norm_first=True) for _ in "123"
    ]
    norm = torch.nn.LayerNorm(64)
    w = {name: torch.tensor(value.T if value.ndim == 2 else value) for name, value in state.items()}
    with torch.no_grad():
        embed.weight.copy_(w["embedding.weight"].T)
        place.copy_(w["position_embedding.weight"].T)
        for mine, theirs in (("layer_norm", norm), ("dense", head)):
            theirs.weight.copy_(w[f"{mine}.weight"])
            theirs.bias.copy_(w[f"{mine}.bias"])
        for end, block in zip(("", "_1", "_2"), blocks, strict=True):
            own = {n.removeprefix(f"transformer_encoder_layer{end}."): t for n, t in w.items()}
            attention = block.self_attn
            for kind in ("weight", "bias"):
                three = [own[f"self_attn.{part}.{kind}"] for part in ("query", "key", "value")]
                getattr(attention, f"in_proj_{kind}").copy_(torch.cat(three))
                getattr(attention.out_proj, kind).copy_(own[f"self_attn.output.{kind}"])
                for part in ("linear1", "linear2", "norm1", "norm2"):
                    getattr(getattr(block, part), kind).copy_(own[f"{part}.{kind}"])

    def call(tokens: Any) -> Any:
        x = embed(tokens) + place
        for block in blocks:
            x = block(x)
        return head(norm(x))

    parts = [embed, head, norm, *blocks]
    return call, [place, *(p for part in parts for p in part.parameters())]


def with_gaps(example: ModuleType, rows: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    gap = np.random.default_rng(seed).random(rows.shape) < example.GAPS
    return np.where(gap, example.GAP, rows).astype(np.int32), np.where(gap, rows, example.SEEN).astype(np.int32)


@pytest.mark.slow
def test_it_learns_as_in_pytorch(load: Load) -> None:
    """The same net, initial weights, gaps and steps. Ours divides the loss of a line by all of its places, PyTorch's
    by the gaps alone: its sum is divided as ours."""
    torch = pytest.importorskip("torch")
    example = load("masked_language_model")
    net, steps, batch = example.masked_language_model, 60, example.BATCH
    theirs, weights = torch_encoder(torch, net.state_dict())
    train, test = example.lines(nv.datasets.text())

    @nv.network
    def learn(
        tokens: nv.Input((64,), dtype="int32"), y: nv.Input((64,), dtype="int32"), rate: nv.Input(batch_shape=())
    ):
        loss = nv.mean(example.cross_entropy(y, net(tokens)))
        nv.minimize(loss, net, example.adam, rate)
        return {"loss": loss}

    session = nv.compile(net, steps=[learn], dims={"batch": batch}).session
    optimizer = torch.optim.Adam(weights, 0.003)

    def loss_of(tokens: np.ndarray, y: np.ndarray) -> Any:
        scores, wanted = theirs(torch.tensor(tokens)).flatten(0, 1), torch.tensor(y).long().flatten()
        return torch.nn.functional.cross_entropy(scores, wanted, ignore_index=-1, reduction="sum") / y.size

    ours, other = [], []
    for step, rows in enumerate(np.split(train[: steps * batch], steps)):
        tokens, y = with_gaps(example, rows, step)
        feed = {"tokens": tokens, "y": y, "rate": np.float32(0.003)}
        ours.append(float(session.run(None, feed, entry="learn")[0]))
        optimizer.zero_grad()
        loss = loss_of(tokens, y)
        loss.backward()
        optimizer.step()
        other.append(loss.item())
    np.testing.assert_allclose(ours[:10], other[:10], rtol=1e-4)
    np.testing.assert_allclose(ours, other, rtol=0.02)

    tokens, y = with_gaps(example, test[: 10 * batch], 999)
    scores = np.concatenate([session.run(None, {"tokens": t})[0] for t in np.split(tokens, 10)])
    likely = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
    held_out = -np.take_along_axis(likely, np.maximum(y, 0)[..., None], -1)[..., 0][y >= 0].sum() / y.size
    with torch.no_grad():
        wanted = loss_of(tokens, y).item()
    print(f"held-out loss after {steps} steps: {held_out:.4f}, PyTorch {wanted:.4f}")
    assert held_out == pytest.approx(wanted, rel=0.01) and held_out < 0.85 * ours[0]
