"""The reference int8 models beside LiteRT, which runs the .tflite files that they were converted from.

``NERVURE_LITERT`` names a Python that has ai-edge-litert, where this one has not. The artifact runs, not a simulation.
"""

from __future__ import annotations

import importlib.util
import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nervure as nv
import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

sys.path.insert(0, str(Path(__file__).parents[2]))
import models  # noqa: E402

PYTHON = os.environ.get("NERVURE_LITERT") or (sys.executable if importlib.util.find_spec("ai_edge_litert") else None)
PEER = """
import sys
import numpy as np
from ai_edge_litert.interpreter import Interpreter
path, given, out = sys.argv[1:]
net = Interpreter(model_path=path, num_threads=1)
net.allocate_tensors()
(x,), (y,) = net.get_input_details(), net.get_output_details()
results = []
for row in np.load(given):
    net.set_tensor(x["index"], row)
    net.invoke()
    results.append(net.get_tensor(y["index"]))
np.save(out, np.stack(results))
"""
Data = tuple[np.ndarray, np.ndarray | None]  # inputs [n, 1, ...], labels


def _data(name: str) -> dict[str, np.ndarray]:
    with np.load(models.SHARED / "data" / f"{name}.npz") as held:
        return {k: held[k] for k in held.files}


def keywords() -> Data:
    held = _data("kws_500")
    return held["x"].reshape(-1, 1, 49, 10, 1).astype(np.int8), held["y"]


def pictures() -> Data:
    held = _data("cifar10_subset")
    return (held["x_test"].astype(np.int16) - 128).astype(np.int8)[:, None], held["y_test"]


def noise(dtype: str, count: int, *shape: int) -> Callable[[], Data]:
    def make() -> Data:
        info = np.iinfo(dtype)
        random = np.random.default_rng(0)
        return random.integers(info.min, info.max, (count, 1, *shape), dtype, endpoint=True), None

    return make


def imagenet() -> Data:
    """A hundred pictures, normalized, in the steps of the model's input."""
    image = pytest.importorskip("PIL.Image")
    held, found = _data("imagenet500_224_jpeg"), []
    for i in range(0, 500, 5):
        jpeg = held["jpeg"][held["offsets"][i] : held["offsets"][i + 1]].tobytes()
        real = np.asarray(image.open(io.BytesIO(jpeg)).convert("RGB"), np.float32) / 255
        real = (real - np.float32([0.485, 0.456, 0.406])) / np.float32([0.229, 0.224, 0.225])
        found.append(np.clip(np.rint(real / 0.018631115555763245) - 14, -128, 127).astype(np.int8).transpose(2, 0, 1))
    return np.stack(found)[:, None], held["y"][::5]


CASES: dict[str, Callable[[], Data]] = {
    "tiny_ad01_int8": noise("int8", 500, 640),
    "tiny_ic01_int8": pictures,
    "tiny_kws01_int8": keywords,
    "tiny_vww01_int8": noise("int8", 100, 96, 96, 3),
    "coral_mobilenet_v1_0.25_128_quant": noise("uint8", 50, 128, 128, 3),
    "tvqat_mobilenet_v2_nchw_quant": imagenet,
}
STEPS = 1  # that an output may be apart (seen: none)


def ours(path: Path, rows: np.ndarray, folder: Path) -> np.ndarray:
    port = onnx.load(path).graph.input[0]
    shape = [d.dim_value or 1 for d in port.type.tensor_type.shape.dim]
    model = nv.compile(path, shapes={port.name: shape}, out=folder / "model.so")
    return np.stack([model.session.run(None, {port.name: row.reshape(shape)})[0] for row in rows])


def theirs(path: Path, rows: np.ndarray, folder: Path) -> np.ndarray:
    assert PYTHON is not None
    np.save(folder / "given.npy", rows)
    command = [PYTHON, "-c", PEER, str(path), str(folder / "given.npy"), str(folder / "found.npy")]
    subprocess.run(command, check=True, capture_output=True)
    return np.load(folder / "found.npy")  # type: ignore[no-any-return]


@pytest.mark.slow
@pytest.mark.skipif(PYTHON is None, reason="no ai-edge-litert here (NERVURE_LITERT can name a Python that has it)")
@pytest.mark.parametrize("name", CASES)
def test_outputs_are_within_a_step_of_litert(name: str, tmp_path: Path) -> None:
    path = models.SHARED / "models" / "quantized" / f"{name}.onnx"
    if not path.exists():
        pytest.skip("the shared models are not on this machine")
    rows, labels = CASES[name]()
    found, wanted = ours(path, rows, tmp_path), theirs(path.with_suffix(".tflite"), rows, tmp_path)
    apart = np.abs(found.astype(int).reshape(len(rows), -1) - wanted.astype(int).reshape(len(rows), -1))
    same = np.mean(found.reshape(len(rows), -1).argmax(1) == wanted.reshape(len(rows), -1).argmax(1))
    told = f"{name}: {len(rows)} inputs, {100 * (apart == 0).mean():.2f} % of the outputs equal, the others at most "
    told += f"{apart.max()} steps apart; the same first in {100 * same:.1f} %"
    if labels is not None:
        scores = [np.mean(v.reshape(len(rows), -1).argmax(1) == labels) for v in (found, wanted)]
        told += "; top-1 {:.2%}, LiteRT's {:.2%}".format(*scores)
    print(told)
    assert apart.max() <= STEPS
    if labels is not None:
        assert abs(scores[0] - scores[1]) <= 0.001
