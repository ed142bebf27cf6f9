"""The networks of ``training_nets`` in PyTorch, and their weights as ours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from training_nets import STAGES, inverted_blocks

OPTIMIZERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "sgd": (torch.optim.SGD, {"lr": 0.01}),
    "momentum": (torch.optim.SGD, {"lr": 0.01, "momentum": 0.9}),
    "nesterov": (torch.optim.SGD, {"lr": 0.01, "momentum": 0.9, "nesterov": True}),
    "adam": (torch.optim.Adam, {"lr": 1e-3}),
    "adamw": (torch.optim.AdamW, {"lr": 1e-3, "weight_decay": 0.01}),
    "rmsprop": (torch.optim.RMSprop, {"lr": 1e-4}),
    "adagrad": (torch.optim.Adagrad, {"lr": 1e-3}),
}


def optimizer(name: str, module: nn.Module, fused: bool = False) -> Any:
    """The optimizer of a network's weights; ``fused``: in one kernel, where PyTorch has that."""
    kind, options = OPTIMIZERS[name]
    trained = [p for p in module.parameters() if p.requires_grad]
    if fused:
        try:
            return kind(trained, fused=True, **options)
        except (RuntimeError, TypeError):
            pass
    return kind(trained, **options)


def criterion(classes: int) -> nn.Module:
    return nn.CrossEntropyLoss() if classes else nn.MSELoss()


def mlp() -> Any:
    return nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10))


def lenet() -> Any:
    layers = [nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)]
    layers += [nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
    layers += [nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)]
    return nn.Sequential(*layers)


def resnet8() -> Any:
    def conv(inputs: int, channels: int, stride: int = 1) -> Any:
        return nn.Sequential(nn.Conv2d(inputs, channels, 3, stride, 1, bias=False), nn.BatchNorm2d(channels))

    class Block(nn.Module):
        def __init__(self, inputs: int, channels: int, stride: int) -> None:
            super().__init__()
            self.first, self.second = conv(inputs, channels, stride), conv(channels, channels)
            self.short = nn.Conv2d(inputs, channels, 1, stride) if stride > 1 else nn.Identity()

        def forward(self, x: Any) -> Any:
            return (self.short(x) + self.second(self.first(x).relu())).relu()

    class ResNet8(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = conv(3, 16)
            inputs = (16, *(c for c, _ in STAGES))
            self.blocks = nn.Sequential(*(Block(i, c, s) for i, (c, s) in zip(inputs, STAGES, strict=False)))
            self.head = nn.Linear(64, 10)

        def forward(self, x: Any) -> Any:
            return self.head(self.blocks(self.stem(x).relu()).mean((2, 3)))

    return ResNet8()


def dscnn() -> Any:
    layers = [nn.Conv2d(1, 64, (10, 4), 2, (5, 1), bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    for _ in range(4):
        layers += [nn.Conv2d(64, 64, 3, 1, 1, groups=64, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
        layers += [nn.Conv2d(64, 64, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 12))


class Last(nn.Module):
    """A recurrent layer and a dense one on its last output."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer, self.head = layer, nn.Linear(layer.hidden_size, 10)

    def forward(self, x: Any) -> Any:
        return self.head(self.layer(x)[0][:, -1])


def lstm() -> Any:
    layer = nn.LSTM(128, 128, batch_first=True)
    layer.bias_hh_l0.requires_grad_(False).zero_()  # one bias, as Keras's
    return Last(layer)


def gru() -> Any:
    return Last(nn.GRU(128, 128, batch_first=True))


def transformer() -> Any:
    class Transformer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.Sequential(
                *(nn.TransformerEncoderLayer(128, 4, 512, dropout=0.0, batch_first=True) for _ in range(4))
            )
            self.head = nn.Linear(128, 10)

        def forward(self, x: Any) -> Any:
            return self.head(self.blocks(x).mean(1))

    return Transformer()


def autoencoder() -> Any:
    layers = [nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 32), nn.ReLU(), nn.Linear(32, 128), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(128, 784), nn.Sigmoid())


def mobilenet_head() -> Any:
    def conv(inputs: int, channels: int, size: int, stride: int = 1, groups: int = 1, act: bool = True) -> list[Any]:
        layer = nn.Conv2d(inputs, channels, size, stride, size // 2, groups=groups, bias=False)
        return [layer, nn.BatchNorm2d(channels)] + ([nn.ReLU6()] if act else [])

    class Inverted(nn.Module):
        def __init__(self, inputs: int, expansion: int, channels: int, stride: int) -> None:
            super().__init__()
            wide = inputs * expansion
            layers = conv(inputs, wide, 1) if expansion > 1 else []
            layers += conv(wide, wide, 3, stride, wide) + conv(wide, channels, 1, act=False)
            self.layers, self.residual = nn.Sequential(*layers), stride == 1 and inputs == channels

        def forward(self, x: Any) -> Any:
            return x + self.layers(x) if self.residual else self.layers(x)

    class MobileNetHead(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            blocks = [Inverted(*block) for block in inverted_blocks()]
            self.body = nn.Sequential(*conv(3, 32, 3, 2), *blocks, *conv(320, 1280, 1))
            self.head = nn.Linear(1280, 10)
            self.body.eval().requires_grad_(False)

        def train(self, mode: bool = True) -> Any:
            self.head.train(mode)
            return self

        def forward(self, x: Any) -> Any:
            with torch.no_grad():
                features = self.body(x).mean((2, 3))
            return self.head(features)

    return MobileNetHead()


# -- their weights in our order and layout -----------------------------------------------------------------------------

_GATES = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2)}  # ours i o f c and z r h, PyTorch's i f g o and r z n


def weights(module: nn.Module) -> Iterator[np.ndarray]:
    """PyTorch's weights as arrays that look like ours, in our order. Copies: training writes in place."""
    kind = type(module).__name__
    if isinstance(module, nn.Linear):
        yield _array(module.weight).T.copy()
        yield _array(module.bias)
    elif kind in ("Conv2d", "LayerNorm", "BatchNorm2d"):
        found = (getattr(module, n, None) for n in ("weight", "bias", "running_mean", "running_var"))
        yield from (_array(tensor) for tensor in found if tensor is not None)
    elif isinstance(module, nn.LSTM | nn.GRU):
        yield from _recurrent(module, _GATES[kind])
    elif isinstance(module, nn.MultiheadAttention):
        for weight, bias in zip(module.in_proj_weight.chunk(3), module.in_proj_bias.chunk(3), strict=True):
            yield _array(weight).T.copy()
            yield _array(bias)
        yield from weights(module.out_proj)
    else:
        for child in module.children():
            yield from weights(child)


def _recurrent(module: Any, gates: Sequence[int]) -> Iterator[np.ndarray]:
    order = np.concatenate([np.arange(module.hidden_size) + g * module.hidden_size for g in gates])
    yield _array(module.weight_ih_l0)[None, order]
    yield _array(module.weight_hh_l0)[None, order]
    biases = [b for b in (module.bias_ih_l0, module.bias_hh_l0) if b.requires_grad]
    yield np.concatenate([_array(b)[order] for b in biases])[None]


def _array(tensor: torch.Tensor) -> np.ndarray:
    return np.array(tensor.detach().numpy(), order="C")
