"""The networks of ``training_nets`` in the DSL."""

from __future__ import annotations

from typing import Any

import nervure as nv
from nervure.frontends.training.step import Training
from training_nets import STAGES, Net, inverted_blocks

L, opt = nv.layers, nv.optimizers

OPTIMIZERS = {
    "sgd": lambda: opt.SGD(0.01),
    "momentum": lambda: opt.SGD(0.01, 0.9),
    "nesterov": lambda: opt.SGD(0.01, 0.9, True),
    "adam": lambda: opt.Adam(1e-3),
    "adamw": lambda: opt.AdamW(1e-3),
    "rmsprop": lambda: opt.RMSprop(1e-4),
    "adagrad": lambda: opt.Adagrad(1e-3),
}


def training(net: Net, optimizer: str, batch: int) -> Training:
    loss = nv.losses.SparseCategoricalCrossentropy(from_logits=True) if net.classes else "mse"
    return Training(loss=loss, optimizer=OPTIMIZERS[optimizer](), batch=batch)


def mlp() -> Any:
    layers = [nv.Input((784,)), L.Dense(256, "relu"), L.Dense(128, "relu"), L.Dense(10)]
    return nv.Sequential(layers, name="mlp")


def lenet() -> Any:
    layers = [nv.Input((1, 28, 28)), L.Conv2D(6, 5, padding="same", activation="relu"), L.MaxPool2D(2)]
    layers += [L.Conv2D(16, 5, activation="relu"), L.MaxPool2D(2), L.Flatten()]
    layers += [L.Dense(120, "relu"), L.Dense(84, "relu"), L.Dense(10)]
    return nv.Sequential(layers, name="lenet")


def resnet8() -> Any:
    def conv(x: Any, channels: int, stride: int = 1) -> Any:
        return L.BatchNorm()(L.Conv2D(channels, 3, strides=stride, padding=1, use_bias=False)(x))

    @nv.network
    def resnet8(x: nv.Input((3, 32, 32))) -> Any:
        x = nv.relu(conv(x, 16))
        for channels, stride in STAGES:
            y = conv(nv.relu(conv(x, channels, stride)), channels)
            if stride > 1:
                x = L.Conv2D(channels, 1, strides=stride)(x)
            x = nv.relu(x + y)
        return L.Dense(10)(nv.mean(x, (2, 3)))

    return resnet8


def dscnn() -> Any:
    layers = [nv.Input((1, 49, 10)), L.Conv2D(64, (10, 4), strides=2, padding=(5, 1), use_bias=False)]
    layers += [L.BatchNorm(), L.ReLU()]
    for _ in range(4):
        layers += [L.DepthwiseConv2D(3, padding="same", use_bias=False), L.BatchNorm(), L.ReLU()]
        layers += [L.Conv2D(64, 1, use_bias=False), L.BatchNorm(), L.ReLU()]
    return nv.Sequential([*layers, L.GlobalAveragePooling2D(), L.Dense(12)], name="dscnn")


def lstm() -> Any:
    return nv.Sequential([nv.Input((50, 128)), L.LSTM(128), L.Dense(10)], name="lstm")


def gru() -> Any:
    return nv.Sequential([nv.Input((50, 128)), L.GRU(128), L.Dense(10)], name="gru")


def transformer() -> Any:
    @nv.network
    def transformer(x: nv.Input((64, 128))) -> Any:
        for _ in range(4):
            x = L.TransformerEncoderLayer(128, 4, 512, dropout=0.0)(x)
        return L.Dense(10)(nv.mean(x, 1))

    return transformer


def autoencoder() -> Any:
    layers = [nv.Input((784,)), L.Dense(128, "relu"), L.Dense(32, "relu"), L.Dense(128, "relu")]
    return nv.Sequential([*layers, L.Dense(784, "sigmoid")], name="autoencoder")


def mobilenet_head() -> Any:
    def conv(x: Any, channels: int, size: int, stride: int = 1, act: bool = True) -> Any:
        depthwise = size == 3 and channels == 0
        if depthwise:
            y = L.DepthwiseConv2D(3, strides=stride, padding=1, use_bias=False)(x)
        else:
            y = L.Conv2D(channels, size, strides=stride, padding=size // 2, use_bias=False)(x)
        y = L.BatchNorm()(y)
        return nv.minimum(nv.relu(y), 6.0) if act else y

    @nv.network
    def body(x: nv.Input((3, 224, 224))) -> Any:
        x = conv(x, 32, 3, 2)
        for inputs, expansion, channels, stride in inverted_blocks():
            y = conv(x, inputs * expansion, 1) if expansion > 1 else x
            y = conv(conv(y, 0, 3, stride), channels, 1, act=False)
            x = x + y if stride == 1 and inputs == channels else y
        return nv.mean(conv(x, 1280, 1), (2, 3))

    head = L.Dense(10)

    @nv.network
    def mobilenet_head(x: nv.Input((3, 224, 224))) -> Any:
        return head(body(x))

    return mobilenet_head
