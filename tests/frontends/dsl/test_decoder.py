"""Causal attention with rotary positions and a cache: against numpy, cached against uncached, over entry points."""

from __future__ import annotations

import shutil
from typing import Any

import nervure as nv
import numpy as np
import pytest

L = nv.layers
CHARS, WIDTH, HEADS, WINDOW, LENGTH = 17, 16, 2, 8, 24


# -- plain numpy, position by position, with complex numbers for the turns ---------------------------------------------


def turned(x: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """[time, size]: halves as real and imaginary part, times e^(i position rate)."""
    half = x.shape[-1] // 2
    rates = 10000.0 ** (-np.arange(half) / half)
    z = (x[:, :half] + 1j * x[:, half:]) * np.exp(1j * positions[:, None] * rates)
    return np.concatenate([z.real, z.imag], -1)


def attention(w: dict[str, np.ndarray], x: np.ndarray, heads: int, window: int, rotary: bool) -> np.ndarray:
    """One sequence [time, features]."""
    q, k, v = (x @ w[f"{n}.weight"] + w[f"{n}.bias"] for n in ("query", "key", "value"))
    at, size, out = np.arange(len(x)), x.shape[1] // heads, np.zeros(x.shape)
    for h in range(heads):
        part = slice(h * size, (h + 1) * size)
        a, b = (turned(t[:, part], at) if rotary else t[:, part] for t in (q, k))
        for i in at:
            first = max(0, i - window + 1)
            score = b[first : i + 1] @ a[i] / np.sqrt(size)
            weight = np.exp(score - score.max())
            out[i, part] = weight / weight.sum() @ v[first : i + 1, part]
    return np.asarray(out @ w["output.weight"] + w["output.bias"])


def shaken(layer: Any, *inputs: np.ndarray) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    layer(*inputs)
    layer.set_weights([rng.standard_normal(w.shape) * 0.5 for w in layer.weights])
    return layer.state_dict()


X = np.random.default_rng(0).standard_normal((2, 11, 12)).astype(np.float32)


@pytest.mark.parametrize(("window", "rotary"), [(None, True), (4, True), (11, False), (1, True)])
def test_causal_attention_is_its_formula(window, rotary):
    layer = L.CausalSelfAttention(3, window=window, rotary=rotary)
    w = shaken(layer, X)
    want = np.stack([attention(w, x, 3, window or len(x), rotary) for x in X])
    np.testing.assert_allclose(layer(X), want, atol=2e-5)


def norm(x, w, name):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * w[f"{name}.weight"] + w[f"{name}.bias"]


@pytest.mark.parametrize("norm_first", [False, True])
def test_a_decoder_layer_is_its_formula(norm_first):
    layer = L.TransformerDecoderLayer(12, 3, 20, window=5, norm_first=norm_first)
    w = shaken(layer, X)
    own = {k.removeprefix("self_attn."): v for k, v in w.items()}

    def attend(x):
        return np.stack([attention(own, one, 3, 5, True) for one in x])

    def feed(x):
        return np.maximum(x @ w["linear1.weight"] + w["linear1.bias"], 0) @ w["linear2.weight"] + w["linear2.bias"]

    if norm_first:
        x = X + attend(norm(X, w, "norm1"))
        want = x + feed(norm(x, w, "norm2"))
    else:
        x = norm(X + attend(X), w, "norm1")
        want = norm(x + feed(x), w, "norm2")
    np.testing.assert_allclose(layer(X), want, rtol=1e-4, atol=2e-5)


def test_a_decoder_layer_over_an_encoder_s_memory_is_pytorch_s():
    torch = pytest.importorskip("torch")
    theirs = torch.nn.TransformerDecoderLayer(12, 3, 20, 0.0, batch_first=True, norm_first=True)
    ours = L.TransformerDecoderLayer(12, 3, 20, 0.0, norm_first=True, rotary=False)
    memory = np.random.default_rng(3).standard_normal((2, 7, 12)).astype(np.float32)
    ours(X, memory)
    w = {}
    for name, tensor in theirs.state_dict().items():
        array = tensor.numpy() + 0.1 * np.random.default_rng(len(name)).standard_normal(tensor.shape).astype("f")
        tensor.copy_(torch.tensor(array))
        head, _, end = name.rpartition(".")
        swap = {"norm2": "norm3", "norm3": "norm2"}  # ours has the one that is always there second
        if end.startswith("in_proj"):
            for part, piece in zip(("query", "key", "value"), np.split(array, 3), strict=True):
                w[f"{head}.{part}.{end.removeprefix('in_proj_')}"] = piece.T
        else:
            head = swap.get(head, head).replace("out_proj", "output")
            w[f"{head}.{end}"] = array.T
    ours.load_state_dict(w)
    mask = torch.nn.Transformer.generate_square_subsequent_mask(X.shape[1])
    want = theirs(torch.tensor(X), torch.tensor(memory), tgt_mask=mask).detach().numpy()
    np.testing.assert_allclose(ours(X, memory), want, atol=2e-5)


# -- cached and uncached: one set of weights, several entry points -----------------------------------------------------


class Writer:
    """A decoder-only network as a whole text, a token, and five tokens at a time."""

    def __init__(self, batch: int = 1, rotary: bool = True) -> None:
        self.embed = L.Embedding(CHARS, WIDTH, embeddings_initializer="normal")
        self.blocks = [
            L.TransformerDecoderLayer(WIDTH, HEADS, 32, norm_first=True, window=WINDOW, rotary=rotary) for _ in "12"
        ]
        self.norm, self.head = L.LayerNorm(), L.Dense(CHARS)
        self.text, self.step, self.chunk = (
            nv.network(lambda t, s=s: self.logits(t, s), name=name, t=nv.Input(batch_shape=(batch, n), dtype="int32"))
            for name, n, s in (("text", LENGTH, False), ("step", 1, True), ("chunk", 5, True))
        )

    def logits(self, tokens: Any, stateful: bool) -> Any:
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x, stateful=stateful)
        return self.head(self.norm(x))


@pytest.fixture(scope="module")
def writer():
    return Writer(batch=2)


@pytest.fixture(scope="module")
def compiled(writer):
    return nv.compile(writer.text, entries=[writer.step, writer.chunk])


TOKENS = np.random.default_rng(2).integers(0, CHARS, (2, LENGTH)).astype(np.int32)


def fed(model, sizes):
    """The logits of TOKENS, given in pieces of 1 or 5."""
    model.reset()
    found, at = [], 0
    for n in sizes:
        entry = "step" if n == 1 else "chunk"
        found += model.session.run(None, {"t": TOKENS[:, at : at + n]}, entry=entry)
        at += n
    return np.concatenate(found, 1)


@pytest.mark.parametrize("sizes", [[1] * LENGTH, [5, 1, 5, 5, 1, 1, 1, 5], [1, 5, 5, 5, 5, 1, 1, 1]])
def test_logits_with_the_cache_are_those_without(compiled, writer, sizes):
    """The text is three times as long as the window."""
    want = compiled(TOKENS)
    np.testing.assert_allclose(want, writer.text(TOKENS), atol=1e-4)
    assert np.abs(want).max() > 0.5
    np.testing.assert_allclose(fed(compiled, sizes), want, atol=1e-5)


def test_the_window_is_a_window(compiled):
    """A token still matters as far back as all layers' windows together reach, and no further."""
    other = TOKENS.copy()
    other[:, 0] = (other[:, 0] + 1) % CHARS
    change = np.abs(compiled(other) - compiled(TOKENS)).max((0, 2))
    reach = 2 * (WINDOW - 1)
    assert (change[: reach + 1] > 1e-6).all() and (change[reach + 1 :] < 1e-6).all()


def test_a_token_is_written_in_place(compiled):
    """No kernel of the step moves as much as a cache holds but the attention that reads it."""
    entry = compiled.artifact.entry("step")
    kernels = [k for s in entry.steps for k in s["kernels"]]
    assert sum("scatter_write" in k for k in kernels) == 4 and not any("copy" in k for k in kernels)
    cache = WINDOW * 2 * WIDTH * 4
    assert entry.arena_bytes() < 2 * cache
    assert max(s["bytes"] for s in entry.steps if s["op"] == "scatter_nd") < cache / 2


def test_a_cache_is_no_weight(compiled, writer):
    fed(compiled, [1] * 3)
    states = compiled.session.states()
    caches = [v for k, v in states.items() if k.endswith((".keys", ".values"))]
    assert len(caches) == 4 and all(c.shape == (WINDOW, 2, WIDTH) and np.abs(c).max() > 0 for c in caches)
    assert [int(v) for k, v in states.items() if k.endswith(".position")] == [3, 3]
    assert set(writer.step.state_dict()) == set(writer.text.state_dict())
    assert writer.step.count_params() == writer.text.count_params()
    compiled.reset()
    assert all(not v.any() for v in compiled.session.states().values())


def test_one_artifact_trains_and_writes():
    writer = Writer(rotary=False)
    cross_entropy = nv.losses.SparseCategoricalCrossentropy(from_logits=True)

    @nv.network
    def learn(t: nv.Input(batch_shape=(4, WINDOW), dtype="int32"), y: nv.Input(batch_shape=(4, WINDOW), dtype="int32")):
        loss = nv.mean(cross_entropy(y, writer.logits(t, False)))
        nv.minimize(loss, [writer.embed, *writer.blocks, writer.norm, writer.head], "adam", 0.01)
        return loss

    model = nv.compile(writer.text, steps=[learn], entries=[writer.step])
    text = np.arange(4 * (WINDOW + 1)).reshape(4, -1) % 5  # 0 1 2 3 4 0 1 ...
    feed = {"t": text[:, :-1].astype(np.int32), "y": text[:, 1:].astype(np.int32)}
    losses = [float(model.session.run(None, feed, entry="learn")[0]) for _ in range(120)]
    assert losses[-1] < 0.05 < 1 < losses[0]
    written = [0]
    for _ in range(3 * WINDOW):
        logits = model.session.run(None, {"t": np.array([[written[-1]]], np.int32)}, entry="step")[0]
        written.append(int(logits.argmax()))
    assert written == [i % 5 for i in range(3 * WINDOW + 1)]
    model.pull()
    assert not any(name.endswith(("keys", "values", "position")) for name in writer.text.state_dict())
    again = nv.compile(writer.step)  # a cache that was filled is no first value of the next one
    assert int(again(np.zeros((1, 1), np.int32)).argmax()) == 1


def test_positions_far_out_are_exact(compiled):
    """From position two million on: turns are kept modulo one turn, so keys and queries still fit."""
    compiled.reset()
    states = compiled.session.states()
    far = {k: v + np.int32(2_000_000) for k, v in states.items() if k.endswith("position")}
    compiled.session.set_states(states | far)
    found = [compiled.session.run(None, {"t": TOKENS[:, i : i + 1]}, entry="step")[0] for i in range(LENGTH)]
    late = slice(2 * WINDOW, None)  # by then the zeros that were taken for earlier keys are out of every window
    np.testing.assert_allclose(np.concatenate(found, 1)[:, late], compiled(TOKENS)[:, late], atol=1e-4)


def test_what_does_not_fit_is_said():
    def refused(layer, match, steps=3, **options):
        with pytest.raises(nv.NervureError, match=match):
            nv.network(lambda x: layer(x, **options), name="net", x=nv.Input(batch_shape=(1, steps, 6))).to_graph()

    refused(L.CausalSelfAttention(2), "even number of features a head, got 3")
    refused(L.CausalSelfAttention(1), "with window=None", stateful=True)
    refused(L.CausalSelfAttention(1, window=2), "3 positions at once with window=2", stateful=True)
    refused(L.TransformerDecoderLayer(8, 2), "expected 8 features")
    with pytest.raises(nv.NervureError, match="window: expected a whole number"):
        L.CausalSelfAttention(1, window=0)


@pytest.mark.slow
def test_on_a_gpu_that_this_machine_plays(writer):
    gpu = nv.compile(writer.text, target="cuda-sm80-emulated", entries=[writer.step, writer.chunk])
    np.testing.assert_allclose(fed(gpu, [5, 1, 5, 5, 1, 1, 1, 5]), writer.text(TOKENS), atol=1e-4)
    kernels = [k for s in gpu.artifact.entry("step").steps for k in s["kernels"]]
    assert sum("scatter_write" in k for k in kernels) == 4 and not any("copy" in k for k in kernels)


@pytest.mark.slow
@pytest.mark.emulator
def test_on_another_machine(tmp_path, writer, compiled):
    """64-bit ARM, in the emulator: a C program that feeds token by token."""
    if shutil.which("qemu-aarch64") is None:
        pytest.skip("no qemu-aarch64")
    other = nv.compile(writer.text, target="aarch64", entries=[writer.step], out=tmp_path / "writer.so")
    rows = np.ascontiguousarray(TOKENS.T[..., None])  # a call takes [2, 1]
    cached = nv.run_in_c(other.path, rows.reshape(-1, 1), entry="step").reshape(LENGTH, 2, CHARS).transpose(1, 0, 2)
    whole = nv.run_in_c(other.path, TOKENS)
    np.testing.assert_allclose(cached, whole, atol=1e-5)
    np.testing.assert_allclose(whole, compiled(TOKENS), atol=1e-4)


# -- what transformers show and see --------------------------------------------------------------------------------


def test_attention_scores_are_those_that_the_output_is_made_of():
    layer = L.MultiHeadAttention(3)
    w = shaken(layer, X)
    y, scores = layer(X, return_attention_scores=True)
    np.testing.assert_allclose(y, layer(X), atol=2e-5)
    q, k = (
        ((X @ w[f"{n}.weight"] + w[f"{n}.bias"]).reshape(2, 11, 3, 4).transpose(0, 2, 1, 3)) for n in ("query", "key")
    )
    want = np.exp(q @ k.transpose(0, 1, 3, 2) / 2)
    np.testing.assert_allclose(scores, want / want.sum(-1, keepdims=True), atol=1e-5)
    encoder = L.TransformerEncoderLayer(12, 3, 16)
    out, looks = encoder(X, return_attention_scores=True)
    np.testing.assert_allclose(out, encoder(X), atol=1e-5)
    np.testing.assert_allclose(looks.sum(-1), 1, atol=1e-5)


def test_patches_are_squares_row_by_row():
    layer = L.PatchEmbedding(3, 5, class_token=True)
    picture = np.random.default_rng(4).standard_normal((2, 2, 7, 10)).astype(np.float32)
    w = shaken(layer, picture)
    found = layer(picture)
    assert found.shape == (2, 1 + 2 * 3, 5)
    np.testing.assert_allclose(found[:, 0], np.broadcast_to(w["class_token"][0], (2, 5)), atol=1e-6)
    for i, (row, column) in enumerate((r, c) for r in (0, 3) for c in (0, 3, 6)):
        square = picture[:, :, row : row + 3, column : column + 3].reshape(2, -1)
        want = square @ w["projection.weight"].reshape(5, -1).T + w["projection.bias"]
        np.testing.assert_allclose(found[:, 1 + i], want, atol=1e-5)
    assert L.PatchEmbedding(3, 5)(picture).shape == (2, 6, 5)
