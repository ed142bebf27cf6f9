"""Transfer learning: a network that knows ImageNet learns other classes from a few pictures.

    python examples/transfer_learning.py mobilenet_v2.onnx cifar10.npz

The body is an ONNX file, frozen; a new head on features of several depths is trained. The data has ``x_train``,
``y_train``, ``x_test`` and ``y_test``, pictures as bytes [samples, height, width, 3]. Without arguments the MobileNet
of this folder learns to tell drawn figures apart. Written: ``transfer.onnx`` and ``transfer.svg``.
"""

import sys
from pathlib import Path

import nervure as nv
import numpy as np
from nervure import callbacks, layers

PICTURES, EPOCHS, BATCH, PART = 2000, 10, 32, 8
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def figures(count, seed):
    """Squares, crosses and diamonds of any size, place and colour on noise, as bytes; and which of them each is."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 3, count)
    at, size = random.integers(10, 22, (count, 2, 1, 1)), random.integers(4, 10, (count, 1, 1))
    rows, columns = np.mgrid[:32, :32][:, None]
    down, right = np.abs(rows - at[:, 0]), np.abs(columns - at[:, 1])
    square, diamond = np.maximum(down, right) < size, down + right < size
    cross = square & (np.minimum(down, right) < 2)
    shape = np.select([labels[:, None, None] == 0, labels[:, None, None] == 1], [square, cross], diamond)
    noise = random.integers(0, 120, (count, 32, 32, 3))
    return np.where(shape[..., None], random.integers(120, 256, (count, 1, 1, 3)), noise).astype(np.uint8), labels


if len(sys.argv) > 2:
    source, size = sys.argv[1], 160
    data = np.load(sys.argv[2])
    x, y, x_test, y_test = (data[name] for name in ("x_train", "y_train", "x_test", "y_test"))
    chosen = np.sort(np.concatenate([np.flatnonzero(y == c)[: PICTURES // 10] for c in range(10)]))
    x, y = x[chosen], y[chosen]
else:
    source, size = str(Path(__file__).parent / "mobilenet" / "mobilenet_v1_025_128.onnx"), 128
    (x, y), (x_test, y_test) = figures(512, 0), figures(256, 1)
x, x_test = x.astype(np.float32), x_test.astype(np.float32)
classes = int(y.max()) + 1

# The body: the file's network, for pictures of another size, cut where activations of several depths come out.
(name,) = nv.load_network(source).inputs
channels_last = nv.load_network(source).inputs[name].shape[-1] == 3
whole = nv.load_network(source, shapes={name: (None, size, size, 3) if channels_last else (None, 3, size, size)})
activations = list(whole.tensors("Relu6*"))
body = whole.cut([activations[i] for i in (-14, -12, -11, -8, -1)], name="body")
body.freeze()
pools = [layers.AdaptiveAvgPool2d(n) for n in (2, 1, 1, 2, 1)]  # how fine the head looks at each


def features(picture):
    """What the body sees in some pictures, [samples, channels]."""
    large = layers.Resize(size, size, data_format="channels_last")((picture / 255 - MEAN) / STD)
    found = body(large if channels_last else nv.permute(large, (0, 3, 1, 2)))
    return nv.concat([nv.flatten(pool(f), 1) for pool, f in zip(pools, found.values(), strict=True)], 1)


@nv.network(name="transfer")
def net(picture: nv.Input(x.shape[1:])):
    # Nothing of a frozen body is kept for gradients: a few samples at a time need the memory of those few alone.
    parts = [features(picture[i : i + PART]) for i in range(0, picture.shape[0], PART)]
    seen = layers.Dropout(0.5)(layers.BatchNorm()(nv.concat(parts, 0)))
    return layers.Dense(classes, "softmax", kernel_initializer="zeros", name="head")(seen)


net.summary()

# What a training step needs: the head's, beside that of the whole network.
how = nv.Training("sparse_categorical_crossentropy", "adam", ["accuracy"], batch=BATCH)
head = nv.plan(net, training=how)["train_step"]
body.unfreeze()
full = nv.plan(net, training=how)["train_step"]
body.freeze()
print(f"a step needs {head / 1e6:.1f} MB, training all weights {full / 1e6:.1f} MB: {100 * head / full:.1f} %")

rate = nv.schedules.CosineDecay(1e-3, EPOCHS * -(-len(x) // BATCH))
net.compile(nv.optimizers.Adam(rate), "sparse_categorical_crossentropy", ["accuracy"])
net.fit(x, y, BATCH, EPOCHS, callbacks=[callbacks.CurvePlot("transfer.svg", "transfer learning")])
loss, accuracy = net.evaluate(x_test, y_test)
print(f"test accuracy {100 * accuracy:.1f} %")

nv.save_onnx(net, "transfer.onnx")
try:
    import onnxruntime
except ImportError:
    sys.exit("transfer.onnx is written; with onnxruntime installed this example runs it")
session = onnxruntime.InferenceSession("transfer.onnx")
expected = np.concatenate([session.run(None, {"picture": x_test[i : i + 1]})[0] for i in range(64)])
print(f"largest difference to ONNX Runtime: {np.abs(net.predict(x_test[:64]) - expected).max():.1e}")
