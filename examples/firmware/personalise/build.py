"""A keyword spotter learns its user's microphone on a bare Cortex-M: builds the firmware and runs it in the emulator.

    python examples/firmware/personalise/build.py [--epochs 10] [--resets 0] [--seed 1] [--folder build/personalise]

The int8 network without its last layer is one library, the last layer (float, trained) another one: both lie in one
program. Parameters are kept in two slots of an emulated flash. With --resets the board resets itself at that many
random moments, and goes on each time.
"""

import argparse
import sys
from pathlib import Path

import nervure as nv
import numpy as np
import onnx
from nervure import layers, targets
from nervure.targets import boards, firmware, toolchain
from onnx import numpy_helper

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
import spoken_words as example  # noqa: E402

MICROPHONE = np.array([-15, 7, -4, 3.5, 2, -3, 1.5, -1, 1, 0.5], np.float32).reshape(10, 1)  # colours the sound


def cut(path, folder):
    """The network up to its last layer as a file, that layer's weight [inputs, 12] and bias."""
    model = onnx.load(path)
    made = {o: n for n in model.graph.node for o in n.output}
    held = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}

    def value(name):
        if name in held:
            return held[name].astype(np.float32)
        x, scale, zero = (held[n].astype(np.float32) for n in made[name].input)
        axis = next((a.i for a in made[name].attribute if a.name == "axis"), 1) if scale.ndim else 0
        shape = [-1 if scale.ndim and i == axis % x.ndim else 1 for i in range(x.ndim)]
        return (x - zero.reshape(shape)) * scale.reshape(shape) if x.ndim else (x - zero) * scale

    last = [n for n in model.graph.node if n.op_type in ("MatMul", "Gemm")][-1]
    weight = value(last.input[1])
    weight = weight.T if any(a.name == "transB" and a.i for a in last.attribute) else weight
    added = [i for n in model.graph.node if n.op_type == "Add" and last.output[0] in n.input for i in n.input]
    bias = value(last.input[2] if len(last.input) > 2 else next(i for i in added if i != last.output[0]))
    features = onnx.helper.make_tensor_value_info(last.input[0], onnx.TensorProto.FLOAT, [1, len(weight)])
    del model.graph.output[:]
    model.graph.output.append(features)
    onnx.save(model, folder / "body.onnx")
    return folder / "body.onnx", weight, bias


def samples_h(model, count):
    """Words as that microphone hears them: half of them to train with, half to see what it has helped."""
    x, y = example.words()
    chosen = np.random.default_rng(1).permutation(len(y))[:count]
    heard = np.clip(np.rint(x[chosen] + MICROPHONE / example.SCALE), -128, 127).astype(np.int8)
    given = heard if model.get_inputs()[0].dtype == "int8" else example.cepstra(heard)
    ctype = {"int8": "int8_t", "float32": "float"}[str(given.dtype)]
    labels = ", ".join(map(str, y[chosen]))
    return f"enum {{ WORDS = {count} }};\nstatic const uint8_t truth[WORDS] = {{{labels}}};\n" + example.c_array(
        ctype, "words", given
    )


def build(folder, epochs=10, resets=0, seed=1, count=120, target="cortex-m4"):
    """Both libraries and the program, folder/personalise.elf."""
    folder.mkdir(parents=True, exist_ok=True)
    path, weight, bias = cut(example.spotter(folder), folder)
    body = nv.compile(path, target, dims=example.dims(path), name="body", out=folder / "libbody.a")
    net = nv.Sequential([layers.Dense(12, activation="softmax", input_dim=len(weight))], name="head")
    net.set_weights([weight, bias])
    optimizer = nv.optimizers.SGD(0.01, momentum=0.9)
    training = nv.Training("sparse_categorical_crossentropy", optimizer, ["accuracy"], batch=10, weighted=True)
    head = nv.compile(net, target, training=training, out=folder / "libhead.a")
    (folder / "samples.h").write_text(samples_h(body, count))
    for source in (HERE / "main.c", toolchain.RUNTIME / "bare" / "slots.c", toolchain.RUNTIME / "bare" / "slots.h"):
        (folder / source.name).write_bytes(source.read_bytes())
    settings = (f"-DEPOCHS={epochs}", f"-DRESETS={resets}", f"-DSEED={seed}u", "-Wall", "-Wextra", "-Werror")
    sources = ["main.c", "slots.c", "libbody.a", "libhead.a"]
    machine = targets.get(target)
    board = boards.get(machine.board)
    return (body, head), firmware.link(folder, sources, machine, board, out="personalise.elf", flags=settings)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--resets", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=Path("build/personalise"))
    given = parser.parse_args()
    models, program = build(given.folder, given.epochs, given.resets, given.seed)
    print(*models, sep="\n")
    done = firmware.simulate(program, targets.get("cortex-m4"), icount=True)
    print(done.said, end="")
    return done.status


if __name__ == "__main__":
    sys.exit(main())
