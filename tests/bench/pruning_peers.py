"""What torch-pruning makes of the networks of ``bench_pruning``: run by it with a Python that has both.

    python pruning_peers.py '{"net": ..., "weights": NPZ, "out": ONNX, "importance": ..., "macs": 0.5, ...}'

The same trained weights, the same batches, the same number of epochs and the same learning rates as ours; dependency
graph, importance and pruner are torch-pruning's. It answers ``@`` and JSON on standard output.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
from pruning_nets import INVERTED, NETS, Batches, Data  # noqa: E402


def _unit(inputs: int, channels: int, size: int = 1, stride: int = 1, act: bool = True, groups: int = 1) -> nn.Module:
    layer = nn.Conv2d(inputs, channels, size, stride, size // 2, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(channels), *([nn.ReLU()] if act else []))


class Inverted(nn.Module):
    """An inverted residual."""

    def __init__(self, inputs: int, expansion: int, channels: int, stride: int) -> None:
        super().__init__()
        wide = expansion * inputs
        self.body = nn.Sequential(
            _unit(inputs, wide), _unit(wide, wide, 3, stride, groups=wide), _unit(wide, channels, act=False)
        )
        self.residual = stride == 1 and inputs == channels

    def forward(self, x: Any) -> Any:
        """[n, inputs, h, w] -> [n, channels, h / stride, w / stride]"""
        return x + self.body(x) if self.residual else self.body(x)


def mobilenet() -> Any:
    parts = [_unit(1, 16, 3), _unit(16, 16, 3, 2, groups=16), _unit(16, 24, act=False)]
    inputs = 24
    for expansion, channels, stride in INVERTED:
        parts.append(Inverted(inputs, expansion, channels, stride))
        inputs = channels
    return nn.Sequential(*parts, _unit(inputs, 192), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(192, 10))


def dscnn() -> Any:
    parts: list[nn.Module] = [nn.Conv2d(1, 64, (10, 4), 2, (5, 1), bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    for _ in range(4):
        parts += [_unit(64, 64, 3, groups=64), _unit(64, 64)]
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def resnet8() -> Any:
    from training_theirs import resnet8 as make  # type: ignore[import-not-found]

    return make()


MAKERS = {"resnet8": resnet8, "mobilenet": mobilenet, "dscnn": dscnn}


def tensors(module: nn.Module) -> Iterator[tuple[torch.Tensor, bool]]:
    """Weights in our order, and whether ours are transposed."""
    if isinstance(module, nn.Conv2d | nn.BatchNorm2d | nn.Linear):
        names = ("weight", "bias", "running_mean", "running_var")
        for name, tensor in ((n, getattr(module, n, None)) for n in names):
            if tensor is not None:
                yield tensor, isinstance(module, nn.Linear) and name == "weight"
    for child in module.children():
        yield from tensors(child)


def load(module: nn.Module, path: str) -> None:
    """Our trained weights into a network."""
    with np.load(path) as held, torch.no_grad():
        for (tensor, transposed), name in zip(tensors(module), held.files, strict=True):
            array = torch.from_numpy(held[name])
            tensor.copy_(array.T if transposed else array)


def learn(
    module: nn.Module, batches: Batches, epochs: int, rate: float, teacher: Any, soft: Mapping[str, float]
) -> None:
    """Adam, the rate falls as a cosine over all steps; with a teacher its softened answers count too."""
    optimizer = torch.optim.Adam(module.parameters(), rate)
    total, step = epochs * len(batches), 0
    module.train()
    for epoch in range(epochs):
        batches.set_epoch(epoch)
        for x, y in batches:
            for group in optimizer.param_groups:
                group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * step / total))
            pixels = torch.from_numpy(x)
            optimizer.zero_grad(set_to_none=True)
            _loss(module(pixels), torch.from_numpy(y).long(), teacher and teacher(pixels), soft).backward()
            optimizer.step()
            step += 1


def _loss(found: Any, y: Any, wanted: Any, soft: Mapping[str, float]) -> Any:
    loss = nn.functional.cross_entropy(found, y)
    if wanted is None:
        return loss
    warm, share = soft["temperature"], soft["share"]
    pair = ((a / warm).log_softmax(1) for a in (found, wanted.detach()))
    far = nn.functional.kl_div(*pair, reduction="batchmean", log_target=True) * warm**2
    return (1 - share) * loss + share * far


def prune(module: nn.Module, data: Data, request: Mapping[str, Any]) -> tuple[float, float]:
    """MACs before and after. Channels go in small steps until the target is met, as torch-pruning's examples do."""
    import torch_pruning as tp

    one = torch.from_numpy(data.test[:1])
    importance = {
        "magnitude": lambda: tp.importance.GroupMagnitudeImportance(p=2),
        "bn_scale": tp.importance.BNScaleImportance,
        "taylor": tp.importance.GroupTaylorImportance,
    }[request["importance"]]()
    steps = 20 if request["importance"] == "taylor" else 100
    pruner = tp.pruner.BasePruner(
        module,
        one,
        importance=importance,
        global_pruning=request["global"],
        pruning_ratio=0.9,
        max_pruning_ratio=0.9,
        iterative_steps=steps,
        ignored_layers=[m for m in module.modules() if isinstance(m, nn.Linear)],
        round_to=request["round_to"] or None,
    )
    before, _ = tp.utils.count_ops_and_params(module, one)
    after = before
    for _ in range(steps):
        if request["importance"] == "taylor":
            _gradients(module, data)
        pruner.step()
        after, _ = tp.utils.count_ops_and_params(module, one)
        if after <= request["macs"] * before:
            break
    module.zero_grad()
    return float(before), float(after)


def _gradients(module: nn.Module, data: Data, samples: int = 512) -> None:
    module.zero_grad()
    found = module(torch.from_numpy(data.ready(data.x[:samples])))
    nn.functional.cross_entropy(found, torch.from_numpy(data.y[:samples]).long()).backward()


def export(module: nn.Module, data: Data, out: str) -> None:
    torch.onnx.export(
        module.eval(),
        (torch.from_numpy(data.test[:1]),),
        out,
        dynamo=False,
        input_names=["x"],
        output_names=["y"],
        opset_version=17,
        dynamic_axes={"x": {0: "batch"}, "y": {0: "batch"}},
    )


def main() -> None:
    """One request: a network pruned, tuned and written."""
    request = json.loads(sys.argv[1])
    torch.set_num_threads(request["threads"])
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    net = NETS[request["net"]]
    data = net.data()
    if request["samples"]:
        data = data.few(request["samples"], len(data.x_test))
    module, teacher = MAKERS[net.name]().eval(), None
    load(module, request["weights"])
    if request["share"]:
        teacher = MAKERS[net.name]().eval()
        load(teacher, request["weights"])
    started = time.perf_counter()
    before, after = prune(module, data, request)
    pruned = time.perf_counter()
    learn(module, net.batches(data, request["first"]), request["epochs"], request["rate"], teacher, request)
    done = time.perf_counter()
    export(module, data, request["out"])
    facts = {"prune_s": pruned - started, "tune_s": done - pruned, "macs": after / before}
    facts["shapes"] = [list(m.weight.shape) for m in module.modules() if isinstance(m, nn.Conv2d)]
    print("@" + json.dumps(facts), flush=True)


if __name__ == "__main__":
    main()
