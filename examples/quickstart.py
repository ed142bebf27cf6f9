"""The main job on a real model: MobileNet compiled for this machine and for 64-bit ARM, both verified against ONNX
Runtime; then a picture is classified.

    python examples/quickstart.py

What comes out: build/quickstart/host/mobilenet.so and build/quickstart/aarch64/mobilenet.so, each with its C header.
"""

from __future__ import annotations

import sys
from pathlib import Path

import nervure as nv
import numpy as np
from nervure.frontends.bench import Peer, bench, ratio
from nervure.frontends.verify import TOLERANCE, random_inputs, verify
from nervure.runtime.artifact import Port

HERE = Path(__file__).parent / "mobilenet"
MODEL = HERE / "mobilenet_v1_025_128.onnx"
OUT = Path("build/quickstart")


def picture(path: Path, port: Port) -> np.ndarray:
    """The picture as the model wants it: 128 x 128 x 3, -1 to 1."""
    from PIL import Image

    _, height, width, _ = port.shape
    pixels = np.asarray(Image.open(path).convert("RGB").resize((width, height), Image.Resampling.BILINEAR))
    return (pixels.astype(np.float32) / 127.5 - 1)[None]


def compiled(target: str) -> nv.Model:
    """The model for a target, with a progress bar on terminals."""
    from nervure.frontends.cli.console import progress

    folder = OUT / target
    folder.mkdir(parents=True, exist_ok=True)
    with progress(f"compiling for {target}") as tell:
        return nv.compile(MODEL, target, name="mobilenet", out=folder / "mobilenet.so", progress=tell)


def agreement(model: nv.Model, inputs: dict[str, np.ndarray]) -> tuple[str, bool]:
    """How well the library agrees with ONNX Runtime on the picture and on three random inputs; ARM runs in QEMU."""
    sets = {"picture": inputs} | {f"seed {s}": random_inputs(model.get_inputs(), s) for s in (1, 2, 3)}
    try:
        worst = max(check.worst for check in verify(model.artifact, MODEL, sets))
    except nv.NervureError as error:  # no emulator, or no ONNX Runtime
        return f"not verified: {error.what} ({error.hint})", True
    good = worst <= TOLERANCE["default"]
    return f"{'agrees with' if good else 'DIFFERS from'} ONNX Runtime, error {worst:.1e}", good


def main() -> int:
    from nervure.frontends.cli.console import progress
    from rich.console import Console
    from rich.table import Table

    screen = Console(width=None if sys.stdout.isatty() else 120)
    models = {target: compiled(target) for target in ("host", "aarch64")}
    host = models["host"]
    port = host.get_inputs()[0]
    inputs = {port.name: picture(HERE / "cat.png", port)}

    labels = (HERE / "labels.txt").read_text().splitlines()
    scores = host(inputs[port.name])[0]
    classes = Table(title="cat.png", title_justify="left")
    classes.add_column("class")
    classes.add_column("probability", justify="right")
    for index in np.argsort(-scores)[:5]:
        classes.add_row(labels[index], f"{scores[index]:.1%}")
    screen.print(classes)

    peers = [Peer("nervure", host.path), Peer("onnxruntime", MODEL)]
    with progress("timing") as tell:
        ours, theirs = bench(peers, inputs, progress=lambda done, total: tell("rounds", done, total))
    faster = f"ONNX Runtime {theirs['median_ms']:.2f} ms, {ratio(theirs, ours):.2f}x"
    times = {"host": f"{ours['median_ms']:.2f} ms ({faster})"}

    table = Table(title="MobileNetV1 0.25, 128 x 128, one thread", title_justify="left")
    for name in ("target", "latency", "arena RAM", "artifact", "verified"):
        table.add_column(name)
    good = True
    for target, model in models.items():
        words, agrees = agreement(model, inputs)
        report, good = model.report, good and agrees
        ram, size = f"{report.arena_bytes / 1024:.0f} KB", f"{report.artifact_bytes / 1024:.0f} KB"
        table.add_row(target, times.get(target, "on the device"), ram, size, words)
    screen.print(table)
    screen.print(f"written: {', '.join(str(m.path) for m in models.values())}", highlight=False)
    return 0 if good else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except nv.NervureError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
