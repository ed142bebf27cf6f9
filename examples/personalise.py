"""A keyword spotter learns its user's microphone on the device: its last layers are trained by a C program.

    python examples/personalise.py [--target rpi4] [--epochs 8]

The spotter was trained with good microphones. Another one colours the sound, which adds a constant to each cepstral
coefficient: the recognition suffers. The body stays as it is; what follows it is trained on 300 words of the user.
Model and words are those of MLPerf Tiny where they are found (NERVURE_MODELS and NERVURE_DATA, else ../shared), else a
small network is trained on a generated stand-in first. Programs for another machine run in its emulator.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import nervure as nv
import numpy as np
from nervure import layers, targets
from nervure.targets import emulator, toolchain

HERE = Path(__file__).resolve().parent
SHARED = HERE.parents[1] / "shared"


def spotter(x, y):
    """A network that knows the words, and the names of the weights of its last layers."""
    path = Path(os.environ.get("NERVURE_MODELS", SHARED / "models")) / "tiny_kws01.onnx"
    if path.exists():
        body = nv.load_network(path)
        return body, list(body.state_dict())[-4:]
    body = nv.Sequential(
        [
            layers.Permute((3, 1, 2), input_shape=(49, 10, 1)),
            layers.Conv2d(16, (10, 4), strides=2, padding="same", activation="relu"),
            layers.DepthwiseConv2d(3, padding="same", activation="relu"),
            layers.Conv2d(16, 1, activation="relu"),
            layers.GlobalAvgPool2d(),
            layers.Dense(12, activation="softmax"),
        ],
        name="spotter",
    )
    body.compile("adam", "sparse_categorical_crossentropy")
    body.fit(x, y, batch_size=25, epochs=10, verbose=0)
    return body, list(body.state_dict())[-4:]


def write_samples(path, x, y):
    rows = np.empty(len(y), [("x", np.float32, (490,)), ("y", np.int32)])
    rows["x"], rows["y"] = x.reshape(-1, 490), y
    path.write_bytes(rows.tobytes())


def prepare(folder, target="host"):
    """Model, samples and program in ``folder``; the model and what to type to run the program."""
    x, y = nv.datasets.keywords()
    body, last = spotter(x, y)
    body.freeze()
    body.unfreeze(*last)

    @nv.network
    def kws(x: nv.Input((49, 10, 1))):
        return body(x)

    training = nv.Training(
        "sparse_categorical_crossentropy", nv.optimizers.SGD(0.02, momentum=0.9), ["accuracy"], batch=10, weighted=True
    )
    model = nv.compile(kws, target, training=training, out=folder / "kws.so")
    order = np.random.default_rng(1).permutation(len(y))
    microphone = np.array([-15, 7, -4, 3.5, 2, -3, 1.5, -1, 1, 0.5], np.float32).reshape(10, 1)
    for name, part in (("train", order[:300]), ("test", order[300:])):
        write_samples(folder / f"{name}.bin", x[part] + microphone, y[part])
    (folder / "personalise.c").write_bytes((HERE / "c" / "personalise.c").read_bytes())
    machine = targets.get(target)
    flags = ("-Wall", "-Wextra", "-Werror", "-I.", "-Wl,-rpath,.", "-lpthread")
    program = toolchain.link_program(folder, ["personalise.c", "kws.so"], machine, out="personalise", flags=flags)
    return model, [*emulator.command(machine), str(program.resolve()), "train.bin", "test.bin"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", default="host")
    parser.add_argument("--epochs", default="8")
    parser.add_argument("--folder", type=Path, default=Path("build"))
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    model, command = prepare(given.folder, given.target)
    print(model)
    for name in ("params.0", "params.1"):
        (given.folder / name).unlink(missing_ok=True)
    half = str(int(given.epochs) // 2)
    for epochs in (half, given.epochs):  # the second run goes on where the first ended
        print(f"\n$ personalise train.bin test.bin . {epochs}", flush=True)
        subprocess.run([*command, ".", epochs], cwd=given.folder, check=True)


if __name__ == "__main__":
    sys.exit(main())
