"""The readable text form of a graph. Stable: the same graph prints the same text."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import printable
from .ir import Graph, Value


def graph_text(graph: Graph, indent: str = "") -> str:
    """One line a node: ``%y: f32[1,8] = add(%x, %b) axis=1``."""
    inputs = ", ".join(f"%{_name(graph, Value(n))}: {graph.type(Value(n))}" for n in graph.inputs)
    lines = [f"{indent}graph {printable(graph.name)}({inputs})"]
    for key in graph.order():
        node = graph.node(key)
        if node.op == "input":
            continue
        left = ", ".join(f"%{printable(n)}: {t}" for n, t in zip(node.names, node.types, strict=True))
        args = ", ".join("-" if a is None else f"%{_name(graph, a)}" for a in graph.args(key))
        bodies = [(k, v) for k, v in node.attrs.items() if isinstance(v, Graph)]
        attrs = "".join(f" {k}={_attr(v)}" for k, v in node.attrs.items() if v is not None and not isinstance(v, Graph))
        lines.append(f"{indent}  {left} = {node.op}({args}){attrs}")
        for _, body in bodies:
            lines.append(graph_text(body, indent + "    "))
    for stored, value in sorted(graph.bindings.items()):
        lines.append(f"{indent}  bind %{_name(graph, Value(stored))} <- %{_name(graph, value)}")
    results = ", ".join(
        f"%{_name(graph, v)}" + ("" if n == graph.tensor_name(v) else f" as {printable(n)}")
        for v, n in zip(graph.outputs, graph.output_names, strict=True)
    )
    lines.append(f"{indent}  return {results}")
    return "\n".join(lines)


def _name(graph: Graph, value: Value) -> str:
    return printable(graph.tensor_name(value))


def _attr(value: Any) -> str:
    if isinstance(value, np.ndarray):
        flat = value.reshape(-1)
        shown = ",".join(f"{v:.6g}" if value.dtype.kind == "f" else str(v) for v in flat[:4].tolist())
        return f"{{{shown}{',...' if flat.size > 4 else ''}}}"
    if isinstance(value, tuple | list):
        return "[" + ",".join(_attr(v) for v in value) + "]"
    if isinstance(value, float):
        return f"{value:.9g}"
    return printable(str(value))
