"""What weight-only quantization is held to: 4 bits in groups of 32, tables included, on trained weights.

``python tests/compiler/quantize/test_weight_figures.py [pictures]`` prints the figures of MobileNetV2 and of the
transformer of ``words``.
"""

from __future__ import annotations

import io
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from nervure import targets
from nervure.compiler.ir import Graph
from nervure.compiler.pipeline import EntryGraph, compile_entries
from nervure.compiler.quantize.observe import compiled
from nervure.compiler.quantize.weights import halve_weights, quantize_weights
from nervure.frontends.onnx import load, save

ROOT = Path(__file__).parents[3]
sys.path[:0] = [str(Path(__file__).parent), str(ROOT / "tests")]
import models  # noqa: E402
import words  # noqa: E402

Feeds = Sequence[Mapping[str, np.ndarray]]
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
WIDER = 0.17  # of MobileNetV2's weights: with so many in 8 bits the library stays below 0.2 of float's


def logits(graph: Graph, feeds: Feeds) -> np.ndarray:
    """A row of logits for each sample (and each word of it), of the compiled artifact."""
    with compiled(graph) as run:
        rows = [run(feed)[0] for feed in feeds]
    return np.concatenate([r.reshape(-1, r.shape[-1]) for r in rows]).astype(np.float64)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """The mean over the rows."""
    lengths = np.sqrt(np.square(a).sum(1) * np.square(b).sum(1))
    return float(((a * b).sum(1) / lengths).mean())


def sizes(graph: Graph) -> tuple[int, int]:
    """Bytes of the library and of the ONNX file."""
    with tempfile.TemporaryDirectory() as folder:
        library, file = Path(folder) / "net.so", Path(folder) / "net.onnx"
        compile_entries([EntryGraph(graph)], targets.host(), library)
        save(graph, file)
        return library.stat().st_size, file.stat().st_size


def compare(name: str, graph: Graph, calibration: Feeds, test: Feeds, wider: float = 0.0) -> dict[str, float]:
    """The cosines, and the bytes in parts of float's."""
    expected, whole = logits(graph, test), sizes(graph)
    made = {
        "nearest": quantize_weights(graph, 4, 32, wider=wider),
        "gptq": quantize_weights(graph, 4, 32, "gptq", calibration, wider=wider),
        "float16": halve_weights(graph),
    }
    found = {n: cosine(logits(q, test), expected) for n, q in made.items()}
    for what, kind in (("library", 0), ("file", 1)):
        found[what] = sizes(made["gptq"])[kind] / whole[kind]
    shown = ", ".join(f"{n} {v:.5f}" for n, v in found.items())
    print(f"{name}, {wider:.0%} of the weights in 8 bits: {shown}", flush=True)
    return found


def sentences() -> tuple[Feeds, Feeds]:
    """Pieces of text to calibrate with, and others."""
    return tuple(  # type: ignore[return-value]
        [{"tokens": row[None]} for row in words.windows(count, part, seed)[0]]
        for count, part, seed in ((128, "train", 11), (64, "test", 12))
    )


def pictures(count: int) -> tuple[Feeds, Feeds]:
    """``count`` pictures to calibrate with, and as many others."""
    from PIL import Image

    with np.load(models.SHARED / "data" / "imagenet500_224_jpeg.npz") as held:
        jpeg, offsets = held["jpeg"], held["offsets"]
    feeds = []
    for i in np.random.default_rng(0).permutation(len(offsets) - 1)[: 2 * count]:
        picture = Image.open(io.BytesIO(jpeg[offsets[i] : offsets[i + 1]].tobytes())).convert("RGB")
        x = (np.asarray(picture, np.float32) / 255 - MEAN) / DEVIATION
        feeds.append({"input.5": x.transpose(2, 0, 1)[None].astype(np.float32)})
    return feeds[:count], feeds[count:]


def mobilenet() -> Graph:
    place = models.folder()
    assert place is not None
    return load(place / "mnv2_imagenet_tv.onnx", {}, {})


@pytest.mark.slow
def test_a_transformer_trained_here() -> None:
    graph, loss = words.trained()
    assert loss < 5.0  # it has learned: without, it is log 2048 = 7.6
    found = compare("transformer", graph, *sentences())
    assert found["gptq"] > found["nearest"] >= 0.99
    assert found["library"] <= 0.2 and found["file"] <= 0.2
    assert found["float16"] > 0.99999


@pytest.mark.slow
@pytest.mark.skipif(not (models.SHARED / "data").is_dir(), reason="no ../shared")
def test_mobilenet_v2() -> None:
    pytest.importorskip("PIL")
    found = compare("MobileNetV2", mobilenet(), *pictures(32), wider=WIDER)
    assert found["gptq"] > found["nearest"]
    assert found["gptq"] >= 0.99
    assert found["library"] <= 0.2 and found["file"] <= 0.2


if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    for share in (0.0, WIDER):
        compare("MobileNetV2", mobilenet(), *pictures(count), wider=share)
    compare("transformer", words.trained()[0], *sentences())
