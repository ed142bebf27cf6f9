"""Tiny models, the command line called in this process, and a compiled library that the tests share."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper


class Call:
    """What one command did."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> dict[str, Any]:
        found = json.loads(self.out, parse_constant=lambda c: pytest.fail(f"{c} is not JSON"))
        assert isinstance(found, dict)
        return found


@pytest.fixture
def nervure(capsys: pytest.CaptureFixture[str]) -> Callable[..., Call]:
    """``nervure("compile", path)``: runs a command; no output may ever hold a traceback or a raw escape."""
    from nervure.frontends.cli.main import main

    def call(*arguments: Any) -> Call:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(a) for a in arguments])
        said = capsys.readouterr()
        assert "Traceback" not in said.err + said.out
        assert "\x1b" not in said.err + said.out
        return Call(ended.value.code or 0, said.out, said.err)

    return call


def build(
    path: Path,
    *,
    names: tuple[str, str, str] = ("x", "h", "y"),
    batch: int | str = 2,
    classes: int = 3,
    last: str = "Relu",
) -> Path:
    """y = last(x W + b), x: [batch, 4]."""
    x, h, y = names
    random = np.random.default_rng(0)
    weights = [
        onnx.numpy_helper.from_array(random.standard_normal((4, classes)).astype(np.float32), "w"),
        onnx.numpy_helper.from_array(random.standard_normal(classes).astype(np.float32), "b"),
    ]
    nodes = [helper.make_node("Gemm", [x, "w", "b"], [h], name=h), helper.make_node(last, [h], [y], name=y)]
    graph = helper.make_graph(
        nodes,
        path.stem,
        [helper.make_tensor_value_info(x, TensorProto.FLOAT, [batch, 4])],
        [helper.make_tensor_value_info(y, TensorProto.FLOAT, [batch, classes])],
        weights,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


@pytest.fixture
def make_model() -> Callable[..., Path]:
    return build


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("tiny") / "tiny.onnx")


@pytest.fixture(scope="session")
def library(tiny: Path) -> Path:
    import nervure as nv

    return nv.compile(tiny, out=tiny.with_suffix(".so")).path
