"""Transfer learning (Yosinski et al. 2014): what knows ImageNet learns CIFAR-10 from few pictures.

    python examples/transfer_learning.py [epochs] [model.onnx pictures.npz]

The body is an ONNX file, here a small MobileNet. First it is frozen, and a new head on features of several depths is
trained: a step needs 7 % of the memory that training everything needs. Then its last layers are unfrozen and move on at
a smaller rate. Of CIFAR-10's test pictures 66.0 % are named by the new head, 67.4 % in the end. What comes out:
transfer_learning.png; transfer.onnx, which other tools run too; transfer_learning.so and its C header. An npz has
``x_train``, ``y_train``, ``x_test`` and ``y_test``, pictures as bytes [samples, 32, 32, 3].
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import nervure as nv
import numpy as np
from nervure import layers
from nervure.datasets import CIFAR10, cifar10

MOBILENET = Path(nv.__file__).parent / "examples" / "mobilenet" / "mobilenet_v1_025_128.onnx"
PICTURES, BATCH, PART = 2000, 32, 8  # to learn from; of one step; that the frozen body sees at a time
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def body_of(source, size):
    """The file's network for pictures of that size, cut where activations of several depths come out."""
    (name,) = nv.load_network(source).inputs
    last = nv.load_network(source).inputs[name].shape[-1] == 3
    whole = nv.load_network(source, shapes={name: (None, size, size, 3) if last else (None, 3, size, size)})
    activations = list(whole.tensors("Relu6*"))
    return whole.cut([activations[i] for i in (-14, -12, -11, -8, -1)], name="body"), last


def network(source, size, classes):
    """The body, and the whole: its features, pooled more or less finely, under a new head."""
    body, channels_last = body_of(source, size)
    pools = [layers.AdaptiveAvgPool2d(n) for n in (2, 1, 1, 2, 1)]

    def features(picture):
        large = layers.Resize(size, size, data_format="channels_last")((picture / 255 - MEAN) / STD)
        found = body(large if channels_last else nv.permute(large, (0, 3, 1, 2)))
        return nv.concat([nv.flatten(pool(f), 1) for pool, f in zip(pools, found.values(), strict=True)], 1)

    @nv.network(name="transfer")
    def net(picture: nv.Input((32, 32, 3))):
        # Nothing of a frozen body is kept for gradients: a few samples at a time need the memory of those few alone.
        parts = [features(picture[i : i + PART]) for i in range(0, picture.shape[0], PART)]
        seen = layers.Dropout(0.5)(layers.BatchNorm()(nv.concat(parts, 0)))
        return layers.Dense(classes, "softmax", kernel_initializer="zeros", name="head")(seen)

    return body, net


def pictures(path):
    """As many of each class to learn from, and those of the test: [n, 32, 32, 3] in 0..255."""
    if path is None:
        (x, y), (x_test, y_test) = ((255 * x.transpose(0, 2, 3, 1), y) for x, y in cifar10())
    else:
        x, y, x_test, y_test = (np.load(path)[name] for name in ("x_train", "y_train", "x_test", "y_test"))
    each = PICTURES // (int(y.max()) + 1)
    chosen = np.sort(np.concatenate([np.flatnonzero(y == c)[:each] for c in range(y.max() + 1)]))
    mixed = np.random.default_rng(0).permutation(len(y_test))
    return x[chosen].astype(np.float32), y[chosen], x_test[mixed].astype(np.float32), y_test[mixed]


def step_memory(net):
    """Bytes that one training step needs."""
    return nv.plan(net, training=nv.Training("sparse_categorical_crossentropy", batch=BATCH))["train_step"]


def draw(curves, epochs, shown, answers, labels):
    """Accuracy by epoch, and what is said of some pictures."""
    figure = plt.figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.2))
    axes = left.subplots()
    axes.plot(range(1, len(curves) + 1), 100 * np.array(curves), marker="o")
    axes.axvspan(epochs + 0.5, len(curves) + 0.5, alpha=0.15)
    axes.set(xlabel="epoch (shaded: last layers move too)", ylabel="500 test pictures named (%)")
    for axis, picture, answer, label in zip(right.subplots(4, 6).flat, shown, answers, labels, strict=False):
        axis.imshow(picture / 255)
        axis.set_title(CIFAR10[answer], fontsize=9, color="black" if answer == label else "tab:red")
        axis.axis("off")
    figure.savefig("transfer_learning.png", dpi=100)


def main(epochs=10, source=MOBILENET, path=None):
    x, y, x_test, y_test = pictures(path)
    body, net = network(str(source), 128 if source == MOBILENET else 160, int(y.max()) + 1)
    net.inspect()
    full = step_memory(net)
    body.freeze()
    head = step_memory(net)
    print(f"a step needs {head / 1e6:.1f} MB, training all weights {full / 1e6:.1f} MB: {100 * head / full:.1f} %")

    curves = []
    for stage, count, first in (("frozen body", epochs, 1e-3), ("last layers too", -(-epochs // 2), 3e-4)):
        rate = nv.schedules.CosineDecay(first, count * -(-len(x) // BATCH))
        net.compile(nv.optimizers.Adam(rate), "sparse_categorical_crossentropy", ["accuracy"])
        history = net.fit(x, y, BATCH, count, validation_data=(x_test[:500], y_test[:500]))
        curves += history.history["val_accuracy"]
        print(f"{stage}: test accuracy {100 * net.evaluate(x_test, y_test)[1]:.1f} %")
        body.unfreeze(*[name for name, _ in body.named_weights()][-8:])  # of the last four convolutions ...
        x, y = np.concatenate([x, x[:, :, ::-1]]), np.concatenate([y, y])  # ... which need more pictures: mirrored ones

    nv.save_onnx(net, "transfer.onnx")
    library = nv.compile(net, name="transfer_learning").save("transfer_learning.so")
    program = nv.load(library)
    answers = np.concatenate([program.run(None, {"picture": x[None]})[0] for x in x_test[:64]])
    draw(curves, epochs, x_test, answers.argmax(axis=1), y_test)
    np.testing.assert_allclose(nv.run_in_c(library, x_test[:64]), answers, atol=1e-4)
    print(f"{library}: 64 answers in C are those in Python")
    try:
        import onnxruntime
    except ImportError:
        sys.exit("transfer.onnx is written; with onnxruntime installed this example runs it")
    session = onnxruntime.InferenceSession("transfer.onnx")
    theirs = np.concatenate([session.run(None, {"picture": x[None]})[0] for x in x_test[:64]])
    print(f"largest difference to ONNX Runtime: {np.abs(answers - theirs).max():.1e}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]), *sys.argv[2:4])
