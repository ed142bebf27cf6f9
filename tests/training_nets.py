"""The networks on which training is compared with PyTorch: each one once in the DSL and once in PyTorch, and how the
weights of the one are those of the other. PyTorch is imported only where a network of it is made."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import nervure as nv
import numpy as np
from nervure.frontends.training.step import Training

L = nv.layers


@dataclass(frozen=True)
class Net:
    """One network: ``ours`` makes it in the DSL, ``theirs`` in PyTorch. The input is [batch, *shape]; ``classes`` 0:
    the target is the input and the loss the mean squared error, else cross-entropy of logits. ``frozen``: patterns of
    our weights that are not trained (PyTorch runs the child ``body`` without gradients, in evaluation mode)."""

    name: str
    shape: tuple[int, ...]
    classes: int
    batch: int
    ours: Callable[[], Any]
    theirs: Callable[[], Any]
    frozen: tuple[str, ...] = ()
    images: bool = field(default=False)

    def make(self) -> Any:
        net = self.ours()
        if self.frozen:
            net.ready()
            net.freeze(*self.frozen)
        return net

    def training(self, optimizer: Any = "sgd", batch: int | None = None) -> Training:
        loss = nv.losses.SparseCategoricalCrossentropy(from_logits=True) if self.classes else "mse"
        return Training(loss=loss, optimizer=optimizer, batch=batch or self.batch)

    def data(self, batch: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Something to learn: a fixed picture for each class, under noise."""
        rng = np.random.default_rng(seed)
        classes = self.classes or 10
        means = np.random.default_rng(12345).standard_normal((classes, *self.shape))
        labels = rng.integers(0, classes, batch).astype(np.int32)
        x = (0.5 * means[labels] + rng.standard_normal((batch, *self.shape))).astype(np.float32)
        if self.classes:
            return x, labels
        x = 1 / (1 + np.exp(-x))
        return x, x


def ordered_weights(net: Any) -> list[str]:
    """Names of our weights in the order of ``slots``."""
    net.ready()
    return [name for name, _ in net.named_weights()]


# -- PyTorch's weights in our order and layout -------------------------------------------------------------------------


@dataclass(frozen=True)
class Slot:
    """A tensor of PyTorch's as one of our weights: ``tensor[index]``, ``turned`` (transposed), in our ``shape``."""

    tensor: Any
    index: Any = ...
    turned: bool = False
    shape: tuple[int, ...] | None = None

    def get(self) -> np.ndarray:
        value = self.tensor.detach()[self.index].numpy()
        value = value.T if self.turned else value
        return np.ascontiguousarray(value.reshape(self.shape or value.shape))

    @property
    def trained(self) -> bool:
        return bool(self.tensor.requires_grad)


_GATES = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2)}  # ours i o f c and z r h, PyTorch's i f g o and r z n


def slots(module: Any) -> list[Slot]:
    """PyTorch's weights, in the order of ours."""
    return list(_slots(module))


def _slots(module: Any) -> Iterator[Slot]:
    kind = type(module).__name__
    if kind == "Linear" or kind == "NonDynamicallyQuantizableLinear":
        yield Slot(module.weight, turned=True)
        yield Slot(module.bias)
    elif kind in ("Conv2d", "LayerNorm", "BatchNorm2d"):
        names = ("weight", "bias", "running_mean", "running_var")
        yield from (Slot(getattr(module, n)) for n in names if getattr(module, n, None) is not None)
    elif kind in _GATES:
        yield from _recurrent(module, _GATES[kind])
    elif kind == "MultiheadAttention":
        size = module.embed_dim
        for i in range(3):
            part = slice(i * size, (i + 1) * size)
            yield Slot(module.in_proj_weight, part, turned=True)
            yield Slot(module.in_proj_bias, part)
        yield from _slots(module.out_proj)
    else:
        for child in module.children():
            yield from _slots(child)


def _recurrent(module: Any, gates: tuple[int, ...]) -> Iterator[Slot]:
    import torch

    size = module.hidden_size
    rows = torch.cat([torch.arange(g * size, (g + 1) * size) for g in gates])
    yield Slot(module.weight_ih_l0, rows, shape=(1, len(rows), module.input_size))
    yield Slot(module.weight_hh_l0, rows, shape=(1, len(rows), size))
    if module.bias_hh_l0.requires_grad:
        yield _Joined((module.bias_ih_l0, module.bias_hh_l0), rows)
    else:
        yield Slot(module.bias_ih_l0, rows, shape=(1, len(rows)))


class _Joined(Slot):
    """Two biases of PyTorch's in one of ours."""

    def __init__(self, tensors: tuple[Any, Any], index: Any) -> None:
        super().__init__(tensors[0], index)
        object.__setattr__(self, "tensors", tensors)

    def get(self) -> np.ndarray:
        return np.concatenate([t.detach()[self.index].numpy() for t in self.tensors])[None]  # type: ignore[attr-defined]


def weights_of(net: Any, module: Any) -> dict[str, np.ndarray]:
    """PyTorch's weights under our names."""
    return {name: slot.get() for name, slot in zip(ordered_weights(net), slots(module), strict=True)}


def hand_over(net: Any, module: Any, session: Any) -> None:
    """Gives a compiled network the weights that PyTorch's has."""
    values = weights_of(net, module)
    params, states = session.params(), session.states()
    session.set_params({n: v for n, v in values.items() if n in params})
    session.set_states({n: v for n, v in values.items() if n in states})


# -- the networks ------------------------------------------------------------------------------------------------------


def _torch() -> Any:
    import torch

    return torch.nn


def _mlp() -> Any:
    layers = [nv.Input((784,)), L.Dense(256, "relu"), L.Dense(128, "relu"), L.Dense(10)]
    return nv.Sequential(layers, name="mlp")


def _torch_mlp() -> Any:
    n = _torch()
    return n.Sequential(n.Linear(784, 256), n.ReLU(), n.Linear(256, 128), n.ReLU(), n.Linear(128, 10))


def _lenet() -> Any:
    layers = [nv.Input((1, 28, 28)), L.Conv2D(6, 5, padding="same", activation="relu"), L.MaxPool2D(2)]
    layers += [L.Conv2D(16, 5, activation="relu"), L.MaxPool2D(2), L.Flatten()]
    layers += [L.Dense(120, "relu"), L.Dense(84, "relu"), L.Dense(10)]
    return nv.Sequential(layers, name="lenet")


def _torch_lenet() -> Any:
    n = _torch()
    layers = [n.Conv2d(1, 6, 5, padding=2), n.ReLU(), n.MaxPool2d(2), n.Conv2d(6, 16, 5), n.ReLU(), n.MaxPool2d(2)]
    layers += [n.Flatten(), n.Linear(400, 120), n.ReLU(), n.Linear(120, 84), n.ReLU(), n.Linear(84, 10)]
    return n.Sequential(*layers)


STAGES = ((16, 1), (32, 2), (64, 2))


def _resnet8() -> Any:
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


def _torch_resnet8() -> Any:
    n = _torch()

    def conv(inputs: int, channels: int, stride: int = 1) -> Any:
        return n.Sequential(n.Conv2d(inputs, channels, 3, stride, 1, bias=False), n.BatchNorm2d(channels))

    class Block(n.Module):
        def __init__(self, inputs: int, channels: int, stride: int) -> None:
            super().__init__()
            self.first, self.second = conv(inputs, channels, stride), conv(channels, channels)
            self.short = n.Conv2d(inputs, channels, 1, stride) if stride > 1 else n.Identity()

        def forward(self, x: Any) -> Any:
            return (self.short(x) + self.second(self.first(x).relu())).relu()

    class ResNet8(n.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = conv(3, 16)
            inputs = (16, *(c for c, _ in STAGES))
            self.blocks = n.Sequential(*(Block(i, c, s) for i, (c, s) in zip(inputs, STAGES, strict=False)))
            self.head = n.Linear(64, 10)

        def forward(self, x: Any) -> Any:
            return self.head(self.blocks(self.stem(x).relu()).mean((2, 3)))

    return ResNet8()


def _dscnn() -> Any:
    layers = [nv.Input((1, 49, 10)), L.Conv2D(64, (10, 4), strides=2, padding=(5, 1), use_bias=False)]
    layers += [L.BatchNorm(), L.ReLU()]
    for _ in range(4):
        layers += [L.DepthwiseConv2D(3, padding="same", use_bias=False), L.BatchNorm(), L.ReLU()]
        layers += [L.Conv2D(64, 1, use_bias=False), L.BatchNorm(), L.ReLU()]
    return nv.Sequential([*layers, L.GlobalAveragePooling2D(), L.Dense(12)], name="dscnn")


def _torch_dscnn() -> Any:
    n = _torch()
    layers = [n.Conv2d(1, 64, (10, 4), 2, (5, 1), bias=False), n.BatchNorm2d(64), n.ReLU()]
    for _ in range(4):
        layers += [n.Conv2d(64, 64, 3, 1, 1, groups=64, bias=False), n.BatchNorm2d(64), n.ReLU()]
        layers += [n.Conv2d(64, 64, 1, bias=False), n.BatchNorm2d(64), n.ReLU()]
    return n.Sequential(*layers, n.AdaptiveAvgPool2d(1), n.Flatten(), n.Linear(64, 12))


def _recurrent_net(layer: Any, name: str) -> Callable[[], Any]:
    return lambda: nv.Sequential([nv.Input((50, 128)), layer(128), L.Dense(10)], name=name)


def _torch_recurrent(kind: str) -> Callable[[], Any]:
    def make() -> Any:
        n = _torch()

        class Last(n.Module):
            def __init__(self) -> None:
                super().__init__()
                self.layer, self.head = getattr(n, kind)(128, 128, batch_first=True), n.Linear(128, 10)
                if kind == "LSTM":  # Keras's has one bias
                    self.layer.bias_hh_l0.requires_grad = False
                    self.layer.bias_hh_l0.zero_()

            def forward(self, x: Any) -> Any:
                return self.head(self.layer(x)[0][:, -1])

        return Last()

    return make


def _transformer() -> Any:
    @nv.network
    def transformer(x: nv.Input((64, 128))) -> Any:
        for _ in range(4):
            x = L.TransformerEncoderLayer(128, 4, 512, dropout=0.0)(x)
        return L.Dense(10)(nv.mean(x, 1))

    return transformer


def _torch_transformer() -> Any:
    n = _torch()

    class Transformer(n.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = n.Sequential(
                *(n.TransformerEncoderLayer(128, 4, 512, dropout=0.0, batch_first=True) for _ in range(4))
            )
            self.head = n.Linear(128, 10)

        def forward(self, x: Any) -> Any:
            return self.head(self.blocks(x).mean(1))

    return Transformer()


def _autoencoder() -> Any:
    layers = [nv.Input((784,)), L.Dense(128, "relu"), L.Dense(32, "relu"), L.Dense(128, "relu")]
    return nv.Sequential([*layers, L.Dense(784, "sigmoid")], name="autoencoder")


def _torch_autoencoder() -> Any:
    n = _torch()
    layers = [n.Linear(784, 128), n.ReLU(), n.Linear(128, 32), n.ReLU(), n.Linear(32, 128), n.ReLU()]
    return n.Sequential(*layers, n.Linear(128, 784), n.Sigmoid())


INVERTED = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def _blocks() -> Iterator[tuple[int, int, int, int]]:
    """Inputs, expansion, channels and stride of MobileNetV2's blocks."""
    inputs = 32
    for expansion, channels, count, stride in INVERTED:
        for i in range(count):
            yield inputs, expansion, channels, stride if i == 0 else 1
            inputs = channels


def _mobilenet_head() -> Any:
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
        for inputs, expansion, channels, stride in _blocks():
            y = conv(x, inputs * expansion, 1) if expansion > 1 else x
            y = conv(conv(y, 0, 3, stride), channels, 1, act=False)
            x = x + y if stride == 1 and inputs == channels else y
        return nv.mean(conv(x, 1280, 1), (2, 3))

    head = L.Dense(10)

    @nv.network
    def mobilenet_head(x: nv.Input((3, 224, 224))) -> Any:
        return head(body(x))

    return mobilenet_head


def _torch_mobilenet_head() -> Any:
    n = _torch()
    import torch

    def conv(inputs: int, channels: int, size: int, stride: int = 1, groups: int = 1, act: bool = True) -> list[Any]:
        layer = n.Conv2d(inputs, channels, size, stride, size // 2, groups=groups, bias=False)
        return [layer, n.BatchNorm2d(channels)] + ([n.ReLU6()] if act else [])

    class Inverted(n.Module):
        def __init__(self, inputs: int, expansion: int, channels: int, stride: int) -> None:
            super().__init__()
            wide = inputs * expansion
            layers = conv(inputs, wide, 1) if expansion > 1 else []
            layers += conv(wide, wide, 3, stride, wide) + conv(wide, channels, 1, act=False)
            self.layers, self.residual = n.Sequential(*layers), stride == 1 and inputs == channels

        def forward(self, x: Any) -> Any:
            return x + self.layers(x) if self.residual else self.layers(x)

    class MobileNetHead(n.Module):
        def __init__(self) -> None:
            super().__init__()
            blocks = [Inverted(*block) for block in _blocks()]
            self.body = n.Sequential(*conv(3, 32, 3, 2), *blocks, *conv(320, 1280, 1))
            self.head = n.Linear(1280, 10)
            self.body.eval().requires_grad_(False)

        def train(self, mode: bool = True) -> Any:
            self.head.train(mode)
            return self

        def forward(self, x: Any) -> Any:
            with torch.no_grad():
                features = self.body(x).mean((2, 3))
            return self.head(features)

    return MobileNetHead()


_ALL = (
    Net("mlp", (784,), 10, 32, _mlp, _torch_mlp),
    Net("lenet", (1, 28, 28), 10, 32, _lenet, _torch_lenet, images=True),
    Net("resnet8", (3, 32, 32), 10, 32, _resnet8, _torch_resnet8, images=True),
    Net("dscnn", (1, 49, 10), 12, 32, _dscnn, _torch_dscnn, images=True),
    Net("lstm", (50, 128), 10, 32, _recurrent_net(L.LSTM, "lstm"), _torch_recurrent("LSTM")),
    Net("gru", (50, 128), 10, 32, _recurrent_net(L.GRU, "gru"), _torch_recurrent("GRU")),
    Net("transformer", (64, 128), 10, 16, _transformer, _torch_transformer),
    Net("autoencoder", (784,), 0, 32, _autoencoder, _torch_autoencoder),
    Net("mobilenet_head", (3, 224, 224), 10, 1, _mobilenet_head, _torch_mobilenet_head, ("body*",), images=True),
)
NETS: Mapping[str, Net] = {net.name: net for net in _ALL}


# -- optimizers --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rule:
    """An optimizer as ours and as PyTorch's."""

    name: str
    ours: Callable[[], Any]
    theirs: tuple[str, dict[str, Any]]

    def torch(self, parameters: Any, **options: Any) -> Any:
        import torch

        kind, own = self.theirs
        return getattr(torch.optim, kind)(parameters, **own, **options)


_O = nv.optimizers
_RULES = (
    Rule("sgd", lambda: _O.SGD(0.01), ("SGD", {"lr": 0.01})),
    Rule("momentum", lambda: _O.SGD(0.01, 0.9), ("SGD", {"lr": 0.01, "momentum": 0.9})),
    Rule("nesterov", lambda: _O.SGD(0.01, 0.9, True), ("SGD", {"lr": 0.01, "momentum": 0.9, "nesterov": True})),
    Rule("adam", lambda: _O.Adam(1e-3), ("Adam", {"lr": 1e-3})),
    Rule("adamw", lambda: _O.AdamW(1e-3), ("AdamW", {"lr": 1e-3, "weight_decay": 0.01})),
    Rule("rmsprop", lambda: _O.RMSprop(1e-3), ("RMSprop", {"lr": 1e-3})),
    Rule("adagrad", lambda: _O.Adagrad(1e-2), ("Adagrad", {"lr": 1e-2})),
)
RULES: Mapping[str, Rule] = {rule.name: rule for rule in _RULES}


def geometric_mean(values: list[float]) -> float:
    return math.exp(sum(math.log(v) for v in values) / len(values)) if values else math.nan
