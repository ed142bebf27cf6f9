"""The peers of ``bench_training``: one training step of PyTorch or of ONNX Runtime as a function."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def pytorch_step(request: dict[str, Any]) -> Callable[[], Any]:
    """``kind``: eager or compile, with _nhwc in channels_last."""
    import torch
    import training_theirs as peers
    from training_nets import NETS

    torch.set_num_threads(request["threads"])
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    net = NETS[request["net"]]
    module = net.theirs().train()
    x, y = (torch.from_numpy(a) for a in net.data(request["batch"] or net.batch))
    if request["kind"].endswith("nhwc"):
        module, x = module.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
    target = y.long() if net.classes else y
    criterion, optimizer = peers.criterion(net.classes), peers.optimizer(request["optimizer"], module, fused=True)

    def forward(x: Any, target: Any) -> Any:
        return criterion(module(x), target)

    if request["kind"].startswith("compile"):
        forward = torch.compile(forward)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        forward(x, target).backward()
        optimizer.step()

    step()
    return step


def export(request: dict[str, Any]) -> Callable[[], Any]:
    """Writes PyTorch's network as ONNX, for ONNX Runtime."""
    import numpy as np
    import torch
    from training_nets import NETS

    net = NETS[request["net"]]
    module = net.theirs().train()
    x, y = net.data(request["batch"] or net.batch)
    folder = Path(request["folder"])
    torch.onnx.export(
        module,
        (torch.from_numpy(x),),
        folder / "net.onnx",
        dynamo=False,
        training=torch.onnx.TrainingMode.TRAINING,
        do_constant_folding=False,
        input_names=["x"],
        output_names=["y"],
        opset_version=15,
    )
    np.savez(folder / "data.npz", x=x, y=y.astype(np.int64) if net.classes else y)
    trained = [n for n, p in module.named_parameters() if p.requires_grad]
    (folder / "facts.json").write_text(json.dumps({"trained": trained, "classes": net.classes}))
    return lambda: None


def onnxruntime_step(request: dict[str, Any]) -> Callable[[], Any]:
    """The network that ``export`` wrote."""
    import numpy as np
    import onnx
    import onnxruntime
    from onnxruntime.training import artifacts
    from onnxruntime.training.api import CheckpointState, Module, Optimizer

    folder = Path(request["folder"])
    model, facts = onnx.load(folder / "net.onnx"), json.loads((folder / "facts.json").read_text())
    stored = [i.name for i in model.graph.initializer]
    trained = [n for n in stored if n in facts["trained"] or n.startswith("onnx::")]
    artifacts.generate_artifacts(
        model,
        requires_grad=trained,
        frozen_params=[n for n in stored if n not in trained],
        loss=artifacts.LossType.CrossEntropyLoss if facts["classes"] else artifacts.LossType.MSELoss,
        optimizer=artifacts.OptimType.SGD if request["optimizer"] == "sgd" else artifacts.OptimType.AdamW,
        artifact_directory=folder,
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = request["threads"]
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    state = CheckpointState.load_checkpoint(folder / "checkpoint")
    module = Module(folder / "training_model.onnx", state, None, "cpu", options)
    optimizer = Optimizer(folder / "optimizer_model.onnx", module)
    optimizer.set_learning_rate(1e-3)
    module.train()
    with np.load(folder / "data.npz") as held:
        x, y = held["x"], held["y"]

    def step() -> None:
        module(x, y)
        optimizer.step()
        module.lazy_reset_grad()

    step()
    return step
