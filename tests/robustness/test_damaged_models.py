"""Damaged ONNX files: a NervureError or a plan, in bounded time and memory, never another exception."""

from __future__ import annotations

import random
import resource
import time
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from builders import convolutional, dense, recurrent, transformer
from nervure.compiler.pipeline import EntryGraph, Options, plan_program
from nervure.errors import NervureError
from nervure.frontends.onnx import load
from nervure.targets import get
from onnx import numpy_helper

NUMBERS = [0, 1, -1, 2, 3, 5, -2, 7, 64, 1000, 2**31 - 1, 2**31, -(2**31), 2**40, 2**62, -(2**63)]
OTHERS = [
    "Conv",
    "Loop",
    "If",
    "Gather",
    "TopK",
    "Nope",
    "Resize",
    "Slice",
    "Pad",
    "Expand",
    "Tile",
    "Range",
    "CumSum",
    "Einsum",
    "NonZero",
    "Attention",
]
TYPES = [0, 1, 2, 3, 6, 7, 8, 9, 10, 11, 16, 17, 99]
SECONDS, BYTES = 10, 2 << 30


def damaged(model: onnx.ModelProto, rng: random.Random) -> bytes:
    """Truncated, or with a few bits flipped."""
    data = bytearray(model.SerializeToString())
    if rng.random() < 0.25:
        return bytes(data[: rng.randrange(len(data))])
    for _ in range(rng.choice([1, 1, 2, 8])):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def mistaken(model: onnx.ModelProto, rng: random.Random) -> bytes:
    """Well-formed, but with wrong numbers, names, types and operators: gets deeper than flipped bits do."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        rng.choice([_attribute, _weight, _edge, _operator, _port])(changed.graph, rng)
    return changed.SerializeToString()


def _attribute(graph: onnx.GraphProto, rng: random.Random) -> None:
    node = rng.choice([n for n in graph.node if n.attribute])
    attribute = rng.choice(node.attribute)
    if rng.random() < 0.2:
        node.attribute.remove(attribute)
    elif attribute.ints:
        attribute.ints[rng.randrange(len(attribute.ints))] = rng.choice(NUMBERS)
    elif attribute.type == onnx.AttributeProto.INT:
        attribute.i = rng.choice(NUMBERS)
    elif attribute.type == onnx.AttributeProto.FLOAT:
        attribute.f = rng.choice([0, -1, 1e30, float("nan"), float("inf")])
    elif attribute.type == onnx.AttributeProto.STRING:
        attribute.s = rng.choice([b"", b"SAME_UPPER", b"VALID", b"nothing", b"\xff"])


def _weight(graph: onnx.GraphProto, rng: random.Random) -> None:
    tensor = rng.choice(graph.initializer)
    what = rng.randrange(3)
    if what == 0 and tensor.dims:
        tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice(NUMBERS)
    elif what == 1:
        tensor.data_type = rng.choice(TYPES)
    elif tensor.data_type == onnx.TensorProto.INT64 and len(tensor.raw_data) == 8 * int(np.prod(tensor.dims)):
        values = np.array(numpy_helper.to_array(tensor))
        values.reshape(-1)[:1] = rng.choice(NUMBERS)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def _edge(graph: onnx.GraphProto, rng: random.Random) -> None:
    node = rng.choice([n for n in graph.node if n.input])
    names = [o for n in graph.node for o in n.output] + [t.name for t in graph.initializer] + ["", "ghost"]
    what = rng.randrange(3)
    if what == 0:
        node.input[rng.randrange(len(node.input))] = rng.choice(names)
    elif what == 1:
        del node.input[rng.randrange(len(node.input))]
    else:
        node.input.append(rng.choice(names))


def _operator(graph: onnx.GraphProto, rng: random.Random) -> None:
    rng.choice(graph.node).op_type = rng.choice([*(n.op_type for n in graph.node), *OTHERS])


def _port(graph: onnx.GraphProto, rng: random.Random) -> None:
    kind = rng.choice(graph.input).type.tensor_type
    if rng.random() < 0.3:
        kind.elem_type = rng.choice(TYPES)
    else:
        kind.shape.dim[rng.randrange(len(kind.shape.dim))].dim_value = rng.choice(NUMBERS)


@pytest.mark.slow
@pytest.mark.parametrize("change", [damaged, mistaken], ids=lambda f: f.__name__)
def test_a_thousand_files_each_are_planned_or_refused(change: Callable[..., bytes]) -> None:
    models = [convolutional(1), transformer(1), recurrent(), dense()]
    machine, rng = get("host"), random.Random(2)
    planned, worst = 0, 0.0
    for i in range(1000):
        data = change(models[i % len(models)], rng)
        begin = time.perf_counter()
        try:
            plan_program([EntryGraph(load(data))], machine, Options())
            planned += 1
        except NervureError as error:
            assert str(error).strip()
        worst = max(worst, time.perf_counter() - begin)
    print(f"{planned} planned, {1000 - planned} refused, at most {worst:.2f} s")
    assert 50 < planned < 950
    assert worst < SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 < BYTES
