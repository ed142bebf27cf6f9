"""What post-training quantization costs in accuracy, in one table, beside ONNX Runtime's quantizer and NNCF.

    python tests/bench/bench_accuracy.py [--only mnv2 ic kws depthwise] [--draws 5] [--peers PYTHON] [--json OUT]

Everything is computed by artifacts compiled for this machine. ``mnv2``: MobileNetV2 on ImageNet pictures, draws of 100
calibration pictures, the others for the score; PYTHON has onnxruntime, openvino and nncf. ``ic``, ``kws``: the
reference models of MLPerf Tiny. ``depthwise``: a net trained here. Models and data are those of ``../shared``.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from nervure.compiler.ir import Graph
from nervure.compiler.quantize.observe import compiled
from nervure.compiler.quantize.quantizer import quantize
from nervure.compiler.quantize.settings import Settings
from nervure.frontends.onnx import load, save

sys.path.insert(0, str(Path(__file__).parents[1]))
import models  # type: ignore[import-not-found]

MEAN, STD = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)
CALIBRATION = 100
PER_TENSOR = Settings(per_channel=False)


def outputs(graph: Graph, x: np.ndarray) -> np.ndarray:
    """The first output for each sample, by the compiled graph."""
    name = graph.node(graph.inputs[0]).names[0]
    with compiled(graph) as run:
        return np.concatenate([run({name: part[None]})[0].copy() for part in x])


def divergence(exact: np.ndarray, found: np.ndarray, logits: bool) -> float:
    """The mean KL divergence of distributions from the exact ones."""
    p, q = (_log_softmax(a) if logits else np.log(np.maximum(a.astype(np.float64), 1e-12)) for a in (exact, found))
    return float((np.exp(p) * (p - q)).sum(axis=1).mean())


def _log_softmax(x: np.ndarray) -> np.ndarray:
    wide = x.astype(np.float64) - x.max(axis=1, keepdims=True)
    return np.asarray(wide - np.log(np.exp(wide).sum(axis=1, keepdims=True)))


def mcnemar(right: np.ndarray, other: np.ndarray) -> float:
    """Two-sided exact p of two classifiers being equally often right."""
    lost, won = int((right & ~other).sum()), int((other & ~right).sum())
    n = lost + won
    tail = sum(math.comb(n, k) for k in range(min(lost, won) + 1)) / 2**n
    return min(1.0, 2 * tail)


def row(name: str, exact: np.ndarray, found: np.ndarray, y: np.ndarray, logits: bool, draw: int = 0) -> dict[str, Any]:
    """One line of the table."""
    right, other = (a.argmax(axis=1) == y for a in (exact, found))
    return {
        "name": name,
        "draw": draw,
        "float": 100 * float(right.mean()),
        "int8": 100 * float(other.mean()),
        "drop": 100 * float(right.mean() - other.mean()),
        "p": mcnemar(right, other),
        "kl": divergence(exact, found, logits),
        "agree": 100 * float((exact.argmax(axis=1) == found.argmax(axis=1)).mean()),
    }


def show(rows: list[dict[str, Any]]) -> None:
    """Prints lines of the table."""
    for r in rows:
        print(
            f"{r['name']:34} {r['draw']:>4} {r['float']:7.2f} {r['int8']:7.2f} {r['drop']:6.2f} {r['p']:6.3f} "
            f"{r['kl']:9.5f} {r['agree']:7.2f}",
            flush=True,
        )


def draws(total: int, count: int, score: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Fixed draws of calibration samples, each with the samples that are scored: none of its own."""
    found = []
    for seed in range(count):
        order = np.random.default_rng(seed).permutation(total)
        found.append((order[:CALIBRATION], np.sort(order[CALIBRATION:])[:score]))
    return found


def ours(graph: Graph, x: np.ndarray, cal: np.ndarray, score: np.ndarray, settings: Settings) -> np.ndarray:
    """Our outputs for the scored samples."""
    name = graph.node(graph.inputs[0]).names[0]
    return outputs(quantize(graph, {name: x[cal]}, settings, measure=False).graph, x[score])


def mnv2(args: argparse.Namespace) -> list[dict[str, Any]]:
    """MobileNetV2, ImageNet."""
    from PIL import Image

    with np.load(models.SHARED / "data" / "imagenet500_224_jpeg.npz") as held:
        jpeg, at, y = held["jpeg"], held["offsets"], held["y"]
    pictures = [Image.open(io.BytesIO(jpeg[a:b].tobytes())).convert("RGB") for a, b in pairwise(at)]
    x = np.stack([((np.asarray(p, np.float32) / 255 - MEAN) / STD).transpose(2, 0, 1) for p in pictures])
    path, _ = models.model("mnv2_imagenet_tv")
    graph = load(path)
    exact = outputs(graph, x)
    splits = draws(len(x), args.draws, args.score)
    rows = []
    for i, (cal, score) in enumerate(splits):
        rows.append(row("mnv2 nervure", exact[score], ours(graph, x, cal, score, Settings()), y[score], True, i))
        show(rows[-1:])
    for kind in ("onnxruntime", "nncf") if args.peers else ():
        for variant, i, found in _peer(args.peers, kind, path, x, splits):
            score = splits[i][1]
            rows.append(row(f"mnv2 {variant}", exact[score], found, y[score], True, i))
            show(rows[-1:])
    return rows + means(rows)


def means(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The mean of each name's lines."""
    found = []
    for name in dict.fromkeys(r["name"] for r in rows):
        some = [r for r in rows if r["name"] == name]
        found.append({k: float(np.mean([r[k] for r in some])) for k in some[0] if k not in ("name", "draw")})
        found[-1] |= {"name": f"{name}, mean", "draw": len(some)}
    show(found)
    return found


def _peer(python: str, kind: str, path: Path, x: np.ndarray, splits: Any) -> list[tuple[str, int, np.ndarray]]:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        np.save(place / "x.npy", x)
        np.savez(place / "splits.npz", **{f"{w}{i}": s[k] for i, s in enumerate(splits) for k, w in enumerate(_PARTS)})
        script = Path(__file__).parent / "accuracy_peers.py"
        names = [str(place / n) for n in ("x.npy", "splits.npz", "out.npz")]
        subprocess.run([python, str(script), kind, str(path), *names], check=True, capture_output=True, cwd=folder)
        with np.load(place / "out.npz") as held:
            return [(*_key(k), held[k]) for k in held.files]


_PARTS = ("cal", "score")


def _key(name: str) -> tuple[str, int]:
    variant, _, draw = name.rpartition("/")
    return variant, int(draw)


def tiny(name: str, model: str, x: np.ndarray, y: np.ndarray, cal: np.ndarray) -> list[dict[str, Any]]:
    """One of MLPerf Tiny's models, with softmax at its end: per channel and per tensor."""
    graph = load(models.model(model)[0])
    return compare(name, graph, x, y, cal)


def compare(name: str, graph: Graph, x: np.ndarray, y: np.ndarray, cal: np.ndarray) -> list[dict[str, Any]]:
    """Per-channel and per-tensor weights on the same samples."""
    exact = outputs(graph, x)
    port = graph.node(graph.inputs[0]).names[0]
    rows = []
    for settings, label in ((Settings(), "per channel"), (PER_TENSOR, "per tensor")):
        made = quantize(graph, {port: cal}, settings, measure=False)
        rows.append(row(f"{name}, {label} ({made.method})", exact, outputs(made.graph, x), y, False))
    show(rows)
    return rows


def cifar() -> tuple[np.ndarray, ...]:
    """Pictures of the subset: train and test, [n, 32, 32, 3] of 0 to 255, and labels."""
    with np.load(models.SHARED / "data" / "cifar10_subset.npz") as held:
        train, test = (held[f"x_{part}"].astype(np.float32) for part in ("train", "test"))
        return train, held["y_train"].reshape(-1), test, held["y_test"].reshape(-1)


def ic(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Image classification, CIFAR-10."""
    train, _, test, y = cifar()
    return tiny("tiny_ic01", "tiny_ic01", test[: args.score * 5], y[: args.score * 5], train[:CALIBRATION])


def kws(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Keyword spotting; calibrated on 100 of the 500, scored on the others."""
    with np.load(models.SHARED / "data" / "kws_500.npz") as held:
        x, y = (held["x"].astype(np.float32) - 83) * np.float32(0.5847029), held["y"]
    cal, score = draws(len(x), 1, 400)[0]
    return tiny("tiny_kws01", "tiny_kws01", x[score][..., None], y[score], x[cal][..., None])


def depthwise_net(train: np.ndarray, y: np.ndarray, epochs: int) -> Graph:
    """A small net of depthwise and pointwise convolutions (unbounded relu), trained by our own runtime."""
    import nervure as nv
    from nervure import layers as L

    parts: list[Any] = [nv.Input((3, 32, 32)), L.Conv2d(24, 3, padding="same", use_bias=False), L.BatchNorm(), L.ReLU()]
    for channels, stride in ((32, 1), (64, 2), (64, 1), (96, 2), (96, 1)):
        parts += [L.DepthwiseConv2d(3, strides=stride, padding=1, use_bias=False), L.BatchNorm(), L.ReLU()]
        parts += [L.Conv2d(channels, 1, use_bias=False), L.BatchNorm(), L.ReLU()]
    net = nv.Sequential([*parts, L.GlobalAveragePooling2D(), L.Dense(10, activation="softmax")], name="depthwise")
    rate = nv.schedules.CosineDecay(0.004, decay_steps=epochs * -(-len(train) // 64))
    net.compile(nv.optimizers.Adam(rate), "sparse_categorical_crossentropy", metrics=["accuracy"])
    net.fit(train, y, 64, epochs, verbose=0)
    with tempfile.TemporaryDirectory() as folder:
        save(net, Path(folder) / "net.onnx")
        return load(Path(folder) / "net.onnx")


def depthwise(args: argparse.Namespace) -> list[dict[str, Any]]:
    """A net trained here on CIFAR-10."""
    train, labels, test, y = cifar()
    train, test = (((p / 255 - 0.5) / 0.25).transpose(0, 3, 1, 2).astype(np.float32).copy() for p in (train, test))
    graph = depthwise_net(train, labels.astype(np.int32), args.epochs)
    return compare("depthwise", graph, test[: args.score * 5], y[: args.score * 5], train[:CALIBRATION])


WORK = {"ic": ic, "kws": kws, "depthwise": depthwise, "mnv2": mnv2}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--only", nargs="+", choices=sorted(WORK), default=list(WORK))
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--score", type=int, default=400, help="pictures of each draw that are scored")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--peers", metavar="PYTHON")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    print(f"{'network':34} {'draw':>4} {'float %':>7} {'int8 %':>7} {'drop':>6} {'p':>6} {'KL':>9} {'agree %':>7}")
    started, rows = time.perf_counter(), []
    for name in args.only:
        rows += WORK[name](args)
    print(f"{time.perf_counter() - started:.0f} s")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
