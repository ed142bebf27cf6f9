"""Whole models: what the importer makes of them computes what ONNX Runtime computes."""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

SHARED = Path(__file__).resolve().parents[4] / "shared" / "models"
SLOW = {"resnet18", "resnet50", "unet_16_256", "vit_tiny", "mnv2_imagenet_tv", "mobilenet_v2", "bert_mini_128"}


def _names() -> list:
    found = sorted({p.stem for p in [*SHARED.glob("*.onnx"), *SHARED.glob("skeletons/*.onnx")]})
    return [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in found]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shared models with their weights filled in."""
    folder = tmp_path_factory.mktemp("models")
    spec = importlib.util.spec_from_file_location("materialize", SHARED / "materialize.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    import shutil

    import onnx

    for source in sorted([*SHARED.glob("*.onnx"), *SHARED.glob("skeletons/*.onnx")]):
        inputs = SHARED / "inputs" / f"{source.stem}.npz"
        if source.parent.name == "skeletons":
            model = module.fill(onnx.load(source))
            onnx.save(model, folder / source.name)
            if not inputs.exists():
                np.savez(folder / f"{source.stem}.npz", **module.random_inputs(model))
        else:
            shutil.copy(source, folder / source.name)
        if inputs.exists():
            shutil.copy(inputs, folder / inputs.name)
    return folder


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared models are not on this machine")
@pytest.mark.parametrize("name", _names())
def test_shared_model_agrees(name: str, models: Path, onnx_kit: SimpleNamespace) -> None:
    import onnx

    feeds = dict(np.load(models / f"{name}.npz"))
    onnx_kit.agree(onnx.load(models / f"{name}.onnx"), feeds)


@pytest.mark.skipif(not (SHARED / "quantized").is_dir(), reason="the shared models are not on this machine")
@pytest.mark.parametrize("name", ["tiny_ad01_int8", "tiny_ic01_int8", "tiny_kws01_int8"])
def test_quantized_model_agrees_to_the_bit(name: str, onnx_kit: SimpleNamespace) -> None:
    import onnx
    from nervure.frontends.onnx import load

    model = onnx.load(SHARED / "quantized" / f"{name}.onnx")
    (batch,) = {d.dim_param for i in model.graph.input for d in i.type.tensor_type.shape.dim if d.dim_param}
    graph = load(model, {batch: 1})
    rng = np.random.default_rng(0)
    feeds = {}
    for key in graph.inputs:
        t = graph.node(key).types[0]
        whole = t.dtype == "int8"
        feeds[graph.node(key).names[0]] = (
            rng.integers(-128, 128, t.dims).astype(np.int8) if whole else rng.standard_normal(t.dims).astype(np.float32)
        )
    onnx_kit.agree(model, feeds, bindings={batch: 1})


def _mobile_block(kit: SimpleNamespace) -> tuple:
    """An inverted residual with squeeze-and-excitation, written as exporters write it: shapes computed at run time."""
    rng = np.random.default_rng(1)

    def weight(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    consts = {
        "w1": weight(24, 8, 1, 1),
        "w2": weight(24, 1, 3, 3),
        "w3": weight(24, 24, 1, 1),
        "w4": weight(8, 24, 1, 1),
    }
    consts |= {k: weight(24) for k in ("scale", "bias", "mean")} | {"var": np.full(24, 0.5, np.float32)}
    consts |= {
        "zero": np.array([0]),
        "minus": np.array([-1]),
        "low": np.float32(0),
        "high": np.float32(6),
        "at": np.array(0),
    }
    consts |= {"w5": weight(10, 8 * 16)}
    node = kit.node
    nodes = [
        node("Conv", ["x", "w1"], ["a"], name="expand"),
        node("BatchNormalization", ["a", "scale", "bias", "mean", "var"], ["b"]),
        node("Clip", ["b", "low", "high"], ["c"]),
        node("Conv", ["c", "w2"], ["d"], group=24, pads=[1, 1, 1, 1], name="depthwise"),
        node("HardSwish", ["d"], ["e"]),
        node("GlobalAveragePool", ["e"], ["f"]),
        node("Conv", ["f", "w3"], ["g"]),
        node("HardSigmoid", ["g"], ["h"], alpha=1 / 6),
        node("Mul", ["e", "h"], ["i"]),
        node("Conv", ["i", "w4"], ["j"], name="project"),
        node("Add", ["j", "x"], ["k"]),
        node("AveragePool", ["k"], ["l"], kernel_shape=[2, 2], strides=[2, 2]),
        node("Shape", ["l"], ["m"]),
        node("Gather", ["m", "at"], ["n"]),
        node("Unsqueeze", ["n", "zero"], ["o"]),
        node("Concat", ["o", "minus"], ["p"], axis=0),
        node("Reshape", ["l", "p"], ["q"]),
        node("Gemm", ["q", "w5"], ["r"], transB=1),
        node("Softmax", ["r"], ["y"]),
    ]
    feeds = {"x": rng.standard_normal((2, 8, 8, 8)).astype(np.float32)}
    return kit.build(nodes, feeds, consts=consts, dims={"x": ["batch", 8, 8, 8]}), feeds


def test_mobile_block_with_computed_shapes(onnx_kit: SimpleNamespace) -> None:
    model, feeds = _mobile_block(onnx_kit)
    onnx_kit.agree(model, feeds, bindings={"batch": 2})
    onnx_kit.agree(model, feeds, shapes={"x": (2, 8, 8, 8)})


def test_names_and_origins_are_kept(onnx_kit: SimpleNamespace) -> None:
    from nervure.compiler.ir import STORED
    from nervure.frontends.onnx import load

    model, _ = _mobile_block(onnx_kit)
    graph = load(model, {"batch": 1})
    names = {n for key in graph for n in graph.node(key).names}
    assert {"a", "d", "j", "k", "l", "q", "w1", "w2", "x", "y"} <= names
    assert graph.output_names == ["y"]
    conv = next(key for key in graph if "a" in graph.node(key).names)
    assert graph.node(conv).origin == ("net/expand (Conv)",)
    unnamed = next(key for key in graph if "k" in graph.node(key).names)
    assert graph.node(unnamed).origin == ("net/Add:#10 (Add)",)
    shapes = [graph.node(k).op for k in graph if graph.node(k).op not in STORED]
    assert "gather" not in shapes and "concat" not in shapes  # the arithmetic on shapes is folded
    assert graph.text() == load(model, {"batch": 1}).text()


def test_auto_names_do_not_take_a_name_of_the_file(onnx_kit: SimpleNamespace) -> None:
    """Gemm becomes matmul and add; the file's own tensor already has the name that the matmul would get."""
    rng = np.random.default_rng(0)
    feeds = {"x": rng.standard_normal((2, 3)).astype(np.float32)}
    consts = {"w": rng.standard_normal((3, 4)).astype(np.float32), "b": np.ones(4, np.float32)}
    nodes = [onnx_kit.node("Gemm", ["x", "w", "b"], ["y"]), onnx_kit.node("Relu", ["y"], ["y/matmul"])]
    onnx_kit.agree(onnx_kit.build(nodes, feeds, ["y/matmul"], consts), feeds)


def test_mobilenet_sized_file_loads_in_a_second(onnx_kit: SimpleNamespace, tmp_path: Path) -> None:
    import onnx
    from nervure.frontends.onnx import load

    rng = np.random.default_rng(0)
    consts = {f"w{i}": rng.standard_normal((192, 192, 1, 1)).astype(np.float32) for i in range(100)}
    nodes = [onnx_kit.node("Conv", [f"t{i}", f"w{i}"], [f"t{i + 1}"]) for i in range(100)]
    feeds = {"t0": np.zeros((1, 192, 7, 7), np.float32)}
    onnx.save(onnx_kit.build(nodes, feeds, ["t100"], consts), tmp_path / "deep.onnx")
    begin = time.perf_counter()
    graph = load(tmp_path / "deep.onnx")
    assert time.perf_counter() - begin < 1.5  # 14.7 MB; about 0.1 s on an idle machine
    assert len(graph.find("conv")) == 100
