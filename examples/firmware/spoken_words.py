"""Words and a network that knows them, for the firmware examples.

The reference int8 model of MLPerf Tiny and 500 real words where they are found (NERVURE_MODELS and NERVURE_DATA, else
../shared); else a small network trained on generated words takes their place: its figures mean nothing.
"""

import os
from pathlib import Path

import nervure as nv
import numpy as np
from nervure import layers

SHARED = Path(__file__).resolve().parents[3] / "shared"
NAMES = ("down", "go", "left", "no", "off", "on", "right", "stop", "up", "yes", "silence", "unknown")
SCALE, ZERO = np.float32(0.5847029), 83  # of the int8 model's input


def words():
    """int8 cepstra [n, 49, 10, 1] and which word each is."""
    path = Path(os.environ.get("NERVURE_DATA", SHARED / "data")) / "kws_500.npz"
    if path.exists():
        data = np.load(path)
        return data["x"][..., None], data["y"].astype(np.int32)
    rng = np.random.default_rng(0)
    y = np.arange(300, dtype=np.int32) % 12
    spoken = 3 * rng.standard_normal((12, 49, 10, 1)) + 4 * rng.standard_normal((12, 1, 10, 1))
    x = (spoken[y] + 4 * rng.standard_normal((300, 49, 10, 1))) / SCALE + ZERO
    return np.clip(np.rint(x), -128, 127).astype(np.int8), y


def cepstra(x):
    """The numbers that the integers stand for."""
    return (x.astype(np.float32) - ZERO) * SCALE


def spotter(folder):
    """An int8 ONNX file, input [1, 49, 10, 1]."""
    path = Path(os.environ.get("NERVURE_MODELS", SHARED / "models")) / "quantized" / "tiny_kws01_int8.onnx"
    if path.exists():
        return path
    x, y = words()
    net = nv.Sequential(
        [
            layers.Permute((3, 1, 2), input_shape=(49, 10, 1)),
            layers.Conv2d(16, (10, 4), strides=2, padding="same", activation="relu"),
            layers.DepthwiseConv2d(3, padding="same", activation="relu"),
            layers.Conv2d(16, 1, activation="relu"),
            layers.GlobalAvgPool2d(),
            layers.Dense(12, activation="softmax"),
        ],
        name="kws",
    )
    net.compile("adam", "sparse_categorical_crossentropy")
    net.fit(cepstra(x), y, batch_size=25, epochs=10, verbose=0)
    nv.quantize(net, cepstra(x[:100]), folder / "kws_int8.onnx")
    return folder / "kws_int8.onnx"


def dims(path):
    """Its unknown dimensions (the batch) as 1."""
    import onnx

    inputs = onnx.load(path, load_external_data=False).graph.input
    return {d.dim_param: 1 for i in inputs for d in i.type.tensor_type.shape.dim if d.dim_param}


def c_array(ctype, name, rows):
    """``rows`` as constants that lie in flash."""
    rows = rows.reshape(len(rows), -1)
    text = ",\n".join("    {" + ", ".join(map(repr, row.tolist())) + "}" for row in rows)
    return f"static const {ctype} {name}[{len(rows)}][{rows.shape[1]}] = {{\n{text},\n}};\n"
