"""Elementwise work as JSON values: how a region's body travels to a worker.

``serialize`` runs in the compiler; ``evaluate.Evaluator`` reads the result in the worker. Values are numbered: region
inputs first, then the body's nodes in order. Scalar constants travel by value; larger ones are region inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..ir import Value
from .spec import Operand, Region

Program = dict[str, Any]


def serialize(region: Region) -> Program:
    """The region's body with its anchors (if any) as nodes ``anchor`` whose values the template supplies."""
    body = region.body
    ids: dict[Value, int] = {Value(n): i for i, n in enumerate(body.inputs)}
    nodes: list[dict[str, Any]] = []
    anchor: list[int] = []
    for key in body.order():
        node = body.node(key)
        if node.op == "input":
            continue
        for value in body.values(key):
            ids[value] = len(body.inputs) + len(nodes)
            entry: dict[str, Any] = {
                "op": node.op,
                "dtype": node.types[value.index].dtype,
                "shape": list(node.types[value.index].dims),
                "args": [],
            }
            if key in region.anchors:
                entry["op"] = "anchor"
                entry["args"] = [None if a is None else ids[a] for a in body.args(key)]
                anchor.append(ids[value])
            elif node.op == "const":
                if node.array.size != 1:
                    raise ValueError(f"constant {node.names[0]} of a fused body is not a scalar")
                entry["value"] = node.array.reshape(-1)[0].item()
            else:
                entry["args"] = [None if a is None else ids[a] for a in body.args(key)]
                entry["attrs"] = {k: plain(v) for k, v in node.attrs.items()}
                if node.op == "requantize":
                    entry["attrs"]["fits"] = _products_fit(region, *body.args(key))
            nodes.append(entry)
    return {
        "inputs": [_operand(o) for o in region.inputs],
        "outputs": [_operand(o) for o in region.outputs],
        "nodes": nodes,
        "anchor": anchor,
        "results": [ids[v] for v in body.outputs],
    }


def _products_fit(region: Region, x: Value | None, multiplier: Value | None) -> bool:
    """Whether ``requantize``'s products certainly fit an int32, with room for a zero point: its multipliers must be
    known (one of sums below 2^31 is smaller than 1/2 in any sensible network)."""
    assert x is not None and multiplier is not None
    body = region.body
    array = body.constant(multiplier)
    if multiplier.node in body.inputs:
        array = region.inputs[body.inputs.index(multiplier.node)].const
    bits = 8 * body.type(x).itemsize
    return array is not None and bits <= 32 and bool((np.abs(array) < 2.0 ** (29 - bits + 1)).all())


def _operand(operand: Operand) -> dict[str, Any]:
    return {
        "dtype": operand.type.dtype,
        "shape": list(operand.type.dims),
        "strides": list(operand.strides),
        "span": operand.span,
    }


def plain(value: Any) -> Any:
    """An attribute as a JSON value."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [plain(v) for v in value]
    return value
