"""``to_model`` and ``save``: any ``Graph`` as an ONNX model that other tools run with the same result."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ...compiler.ir import STORED, Graph, Value
from ...compiler.ops.numeric import numpy_dtype
from ...compiler.types import TensorType
from ...errors import NervureError, printable
from .tensors import DTYPES

OPSET = 21
IR_VERSION = 10
OWN_DOMAIN = "nervure"  # of the functions that say what ONNX has no operator for
EXTERNAL_BYTES = (1 << 31) - (1 << 26)  # protobuf holds less than 2 GiB
EIGHT_BITS = {"int8", "uint8", "int32"}  # what opset 20 quantizes to and from
SIXTEEN_BITS = {"int16", "uint16"}
CODES = {name: code for code, name in DTYPES.items()}


@dataclass(frozen=True, slots=True)
class Call:
    """One operation to be written: ONNX names of its inputs ("" if absent), the names that its outputs must get."""

    op: str
    attrs: dict[str, Any]
    inputs: list[str]
    types: list[TensorType | None]  # of the inputs
    outs: list[str]
    out_types: tuple[TensorType, ...]

    def type(self, index: int = 0) -> TensorType:
        found = self.types[index]
        assert found is not None
        return found

    def has(self, index: int) -> bool:
        return index < len(self.inputs) and bool(self.inputs[index])


class Writer:
    """Collects nodes and initializers; every name it makes is new."""

    def __init__(self, taken: set[str]) -> None:
        self.taken = taken
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.infos: list[onnx.ValueInfoProto] = []
        self.functions: dict[str, onnx.FunctionProto] = {}
        self.hint = "tensor"
        self._shared: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._arrays: dict[str, np.ndarray] = {}  # of the initializers
        self.packed: set[str] = set()  # those of 4 bits

    def fresh(self, hint: str) -> str:
        name, i = hint, 0
        while name in self.taken:
            i += 1
            name = f"{hint}_{i}"
        self.taken.add(name)
        return name

    def emit(self, op_type: str, inputs: Sequence[str], outs: Sequence[str] | None = None, **attrs: Any) -> str:
        """One node; its first output. ``outs`` are given at the last node of an operation."""
        names = list(outs) if outs is not None else [self.fresh(f"{self.hint}/{op_type}")]
        given = list(inputs)
        while given and not given[-1]:
            given.pop()
        kept = {k: v for k, v in attrs.items() if v is not None}
        self.nodes.append(helper.make_node(op_type, given, names, name=f"{names[0] or self.hint}:{op_type}", **kept))
        return names[0]

    def const(self, values: Any, dtype: str = "int64") -> str:
        """A small constant; equal ones are shared."""
        array = np.asarray(values).astype(numpy_dtype(dtype))
        key = (dtype, array.shape, array.tobytes())
        if key not in self._shared:
            self._shared[key] = self.store(self.fresh(f"const_{len(self._shared)}"), array)
        return self._shared[key]

    def drop_unused(self, kept: set[str]) -> None:
        """Removes stored tensors that were written in another form."""
        used = kept | {name for node in self.nodes for name in node.input}
        self.initializers = [t for t in self.initializers if t.name in used]

    def like(self, number: float, t: TensorType) -> str:
        return self.const(number, t.dtype)

    def store(self, name: str, array: np.ndarray) -> str:
        self._arrays[name] = array
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name))
        return name

    def pack(self, name: str, array: np.ndarray) -> str:
        """int8 or uint8 of which 4 bits hold each, two to a byte, the first one in the lower half."""
        flat = np.append(array.reshape(-1), np.zeros(array.size % 2, array.dtype)).view(np.uint8) & 15
        code = onnx.TensorProto.INT4 if array.dtype == np.int8 else onnx.TensorProto.UINT4
        raw = (flat[::2] | (flat[1::2] << 4)).tobytes()
        self.initializers.append(helper.make_tensor(name, code, array.shape, raw, raw=True))
        self._arrays[name] = array
        self.packed.add(name)
        return name

    def array(self, name: str) -> np.ndarray | None:
        """A stored tensor's numbers; None of one that is computed."""
        return self._arrays.get(name)

    def cast(self, name: str, to: str, outs: Sequence[str] | None = None) -> str:
        return self.emit("Cast", [name], outs, to=CODES[to])


def to_model(network: Graph | Any) -> onnx.ModelProto:
    """A graph, or a network of the DSL, as a ``ModelProto``: opset 21, or 20 where it is quantized to 8 bits. Tensors
    keep their names.

    ``const`` and ``param`` become initializers. A ``param`` or ``state`` that the graph binds becomes an input with a
    default (its initial value) and an output ``NAME.next``. Raises ``NervureError`` for operators without a rule.
    """
    if hasattr(network, "to_model"):  # an imported network knows its file
        return network.to_model()
    graph: Graph = network if isinstance(network, Graph) else network.to_graph({})
    writer = Writer(set())
    names = _names(graph, writer)
    inputs, outputs = _ports(graph, names, writer)
    _write(graph, names, writer)
    _alias_outputs(graph, names, writer)
    writer.drop_unused({o.name for o in outputs} | {i.name for i in inputs})
    title = graph.name or "model"
    opsets = _opsets(writer)
    if writer.functions:
        opsets.append(helper.make_opsetid(OWN_DOMAIN, 1))
    proto = helper.make_graph(writer.nodes, title, inputs, outputs, writer.initializers, value_info=writer.infos)
    return helper.make_model(
        proto,
        producer_name="nervure",
        opset_imports=opsets,
        ir_version=IR_VERSION,
        functions=[writer.functions[k] for k in sorted(writer.functions)],
    )


def _opsets(writer: Writer) -> list[onnx.OperatorSetIdProto]:
    """The newest opset; 20 for quantization to 8 bits, because in 21 ONNX Runtime 1.31 loses the type of an int8 zero
    point where it moves quantizers over a view, and then refuses the model. 16 bits beside int8 are in its own domain:
    the standard has them since 21."""
    quantizers = [n for n in writer.nodes if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    stored = {n.name: _stored_type(writer, n) for n in quantizers}
    types = set(stored.values())
    newer = any(n.op_type == "GroupNormalization" for n in writer.nodes) or not types <= {*EIGHT_BITS, *SIXTEEN_BITS}
    signed = any(n.op_type == "QuantizeLinear" and stored[n.name] == "int8" for n in quantizers)
    if not quantizers or newer or (types & SIXTEEN_BITS and not signed):
        return [helper.make_opsetid("", OPSET)]
    for node in quantizers:
        if stored[node.name] in SIXTEEN_BITS:
            node.domain = "com.microsoft"
    return [helper.make_opsetid("", 20), *([helper.make_opsetid("com.microsoft", 1)] if types & SIXTEEN_BITS else [])]


def _stored_type(writer: Writer, node: onnx.NodeProto) -> str:
    """The type of a quantizer's integers where opset 20 has it or ONNX Runtime adds it, else a word."""
    zero = writer.array(node.input[2]) if len(node.input) > 2 else None
    if zero is None or node.input[2] in writer.packed or any(a.name == "block_size" for a in node.attribute):
        return "new"
    return str(zero.dtype)


def save(network: Graph | Any, path: str | os.PathLike[str]) -> None:
    """Writes a graph, or a network of the DSL, to an ONNX file, whole or not at all.

    Weights beyond 2 GB go to ``NAME.data`` beside it.
    """
    target = Path(path)
    model = to_model(network)
    size = sum(len(t.raw_data) for t in model.graph.initializer)
    if size >= EXTERNAL_BYTES:
        location = f"{target.name}.data"
        onnx.external_data_helper.convert_model_to_external_data(model, location=location, size_threshold=1024)
    try:
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".nervure-") as folder:
            onnx.save_model(model, str(Path(folder) / target.name))
            for made in sorted(Path(folder).iterdir(), key=lambda p: p.name == target.name):
                os.replace(made, target.parent / made.name)
    except (OSError, ValueError) as error:
        raise NervureError("the ONNX file cannot be written", where=str(target), why=str(error)) from None


# -- names and ports ---------------------------------------------------------------------------------------------------


def _names(graph: Graph, writer: Writer) -> dict[Value, str]:
    """Every tensor's name in the file. A name that the graph's signature uses for another tensor makes way."""
    first: dict[str, Value] = {}
    for name, value in zip(graph.output_names, graph.outputs, strict=True):
        first.setdefault(name, value)
    writer.taken.update(first)
    found: dict[Value, str] = {}
    for key in graph.order():
        for value, name in zip(graph.values(key), graph.node(key).names, strict=True):
            own = first.get(name)
            if own == value or (own is None and name not in writer.taken):
                writer.taken.add(name)
                found[value] = name
            elif graph.node(key).op == "input":
                raise NervureError(f"an input and an output are named {printable(name, 80)!r}", hint="rename one")
            else:
                found[value] = writer.fresh(name)
    return found


def info(name: str, t: TensorType) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, CODES[t.dtype], list(t.shape))


def _ports(
    graph: Graph, names: dict[Value, str], writer: Writer
) -> tuple[list[onnx.ValueInfoProto], list[onnx.ValueInfoProto]]:
    bound = [Value(k) for k in sorted(graph.bindings)]
    inputs = [info(names[Value(k)], graph.type(Value(k))) for k in graph.inputs]
    inputs += [info(names[v], graph.type(v)) for v in bound]
    outputs = [info(n, graph.type(v)) for n, v in zip(graph.output_names, graph.outputs, strict=True)]
    outputs += [info(_next(names[v]), graph.type(v)) for v in bound]
    writer.taken.update(_next(names[v]) for v in bound)
    return inputs, outputs


def _next(name: str) -> str:
    return f"{name}.next"


def _alias_outputs(graph: Graph, names: dict[Value, str], writer: Writer) -> None:
    """Outputs that are another tensor under a second name, and next values, are written as Identity."""
    written: set[str] = set()
    for name, value in zip(graph.output_names, graph.outputs, strict=True):
        if name in written:
            raise NervureError(f"two outputs are named {printable(name, 80)!r}", hint="rename one of them")
        written.add(name)
        if names[value] != name:
            writer.emit("Identity", [names[value]], [name])
    for key, value in sorted(graph.bindings.items()):
        writer.emit("Identity", [names[value]], [_next(names[Value(key)])])


def _write(graph: Graph, names: dict[Value, str], writer: Writer) -> None:
    """All nodes of a graph whose inputs have names already."""
    from .export_rules import EXPORT, keep

    missing = sorted({graph.node(k).op for k in graph.nx} - set(EXPORT) - set(STORED) - {"fused"})
    if missing:
        raise NervureError(f"no ONNX form for: {', '.join(missing)}")
    for key in graph.order():
        node = graph.node(key)
        if node.op in STORED:
            if node.op != "input":
                keep(graph, key, names[Value(key)], writer)
            continue
        args = graph.args(key)
        outs = [names[v] for v in graph.values(key)]
        inputs = ["" if a is None else names[a] for a in args]
        if node.op == "fused":
            _inline(node.attrs["body"], inputs, outs, writer)
            continue
        writer.hint = outs[0]
        types = [None if a is None else graph.type(a) for a in args]
        EXPORT[node.op](writer, Call(node.op, dict(node.attrs), inputs, types, outs, node.types))
        exposed = {graph.output_names[i] for i, v in enumerate(graph.outputs) if v.node == key}
        writer.infos += [info(n, t) for n, t in zip(outs, node.types, strict=True) if n not in exposed]


def _inline(body: Graph, inputs: Sequence[str], outs: Sequence[str], writer: Writer) -> None:
    """A fused operation is written as the operations of its body."""
    names: dict[Value, str] = {Value(k): name for k, name in zip(body.inputs, inputs, strict=True)}
    wanted: dict[Value, str] = {}
    for value, name in zip(body.outputs, outs, strict=True):
        wanted.setdefault(value, name)
    for key in body.order():
        for value, name in zip(body.values(key), body.node(key).names, strict=True):
            if value not in names:
                names[value] = wanted[value] if value in wanted else writer.fresh(f"{outs[0]}/{name}")
    _write(body, names, writer)
    for value, name in zip(body.outputs, outs, strict=True):
        if names[value] != name:
            writer.emit("Identity", [names[value]], [name])
