"""The networks of ``bench_cuda.py`` in PyTorch, with seeded random weights: what is measured and what is exported.

MobileNetV2 (Sandler et al., 2018), ResNet-50 (He et al., 2015, stride in the 3x3), ViT-tiny (Touvron et al., 2021: 192
wide, 12 layers, 3 heads, patches of 16) and an encoder of BERT-base's shape (Devlin et al., 2018: 768 wide, 12 layers,
12 heads) on embedded tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

TOKENS = 128


def _unit(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1, act: Any = None) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), *([act] if act is not None else []))


class _Inverted(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, factor: int) -> None:
        super().__init__()
        wide = inputs * factor
        parts = [_unit(inputs, wide, 1, act=nn.ReLU6())] if factor > 1 else []
        parts += [_unit(wide, wide, 3, stride, wide, nn.ReLU6()), _unit(wide, outputs, 1)]
        self.body, self.kept = nn.Sequential(*parts), stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x) if self.kept else self.body(x)


def mobilenet_v2() -> nn.Module:
    rows = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    parts: list[nn.Module] = [_unit(3, 32, 3, 2, act=nn.ReLU6())]
    width = 32
    for factor, outputs, count, stride in rows:
        for i in range(count):
            parts.append(_Inverted(width, outputs, stride if i == 0 else 1, factor))
            width = outputs
    parts += [_unit(width, 1280, 1, act=nn.ReLU6()), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, 1000)]
    return nn.Sequential(*parts)


class _Bottleneck(nn.Module):
    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        relu = nn.ReLU()
        self.body = nn.Sequential(
            _unit(inputs, width, 1, act=relu), _unit(width, width, 3, stride, act=relu), _unit(width, 4 * width, 1)
        )
        same = stride == 1 and inputs == 4 * width
        self.side = nn.Identity() if same else _unit(inputs, 4 * width, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.side(x) + self.body(x))


def resnet50() -> nn.Module:
    parts: list[nn.Module] = [_unit(3, 64, 7, 2, act=nn.ReLU()), nn.MaxPool2d(3, 2, 1)]
    inputs = 64
    for stage, count in enumerate((3, 4, 6, 3)):
        for i in range(count):
            parts.append(_Bottleneck(inputs, 64 << stage, 2 if i == 0 and stage else 1))
            inputs = 256 << stage
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2048, 1000))


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.project, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, width = x.shape
        parts = self.project(x).reshape(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(parts[0], parts[1], parts[2])
        return self.out(mixed.transpose(1, 2).reshape(batch, tokens, width))


class _Layer(nn.Module):
    """``first``: normalisation before each part (ViT), else after it (BERT)."""

    def __init__(self, width: int, heads: int, first: bool) -> None:
        super().__init__()
        self.first, self.attention = first, _Attention(width, heads)
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.feed = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for norm, part in zip(self.norms, (self.attention, self.feed), strict=True):
            x = x + part(norm(x)) if self.first else norm(x + part(x))
        return x


class _Vit(nn.Module):
    def __init__(self, width: int = 192, depth: int = 12, heads: int = 3, size: int = 224, patch: int = 16) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.places = nn.Parameter(torch.randn(1, (size // patch) ** 2 + 1, width) * 0.02)
        self.layers = nn.Sequential(*(_Layer(width, heads, True) for _ in range(depth)), nn.LayerNorm(width))
        self.head = nn.Linear(width, 1000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.places
        return self.head(self.layers(x)[:, 0])


def bert_base() -> nn.Module:
    return nn.Sequential(*(_Layer(768, 12, False) for _ in range(12)))


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {  # and the shape of one sample
    "mobilenet_v2": (mobilenet_v2, (3, 224, 224)),
    "resnet50": (resnet50, (3, 224, 224)),
    "vit_tiny": (_Vit, (3, 224, 224)),
    "bert_base": (bert_base, (TOKENS, 768)),
}


def make(name: str, batch: int) -> tuple[nn.Module, torch.Tensor]:
    """The network in evaluation mode and an input."""
    torch.manual_seed(0)
    build, shape = NETS[name]
    return build().eval(), torch.randn(batch, *shape)


class _Tiny(nn.Sequential):
    """For walking through the bench, not for a figure."""

    def __init__(self) -> None:
        super().__init__(_unit(3, 8, 3, 2, act=nn.ReLU()), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))


NETS["tiny"] = (_Tiny, (3, 16, 16))


def export(name: str, batch: int, path: str, half: bool = False) -> None:
    """Writes the network as ONNX, of that batch; ``half``: in float16."""
    net, x = make(name, batch)
    if half:
        net, x = net.half(), x.half()
    torch.onnx.export(net, (x,), path, input_names=["x"], output_names=["y"], dynamo=False, opset_version=17)
