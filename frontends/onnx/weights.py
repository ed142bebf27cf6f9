"""Which stored tensors of an ONNX file are weights, and a file's form for training: one weight a role, no trace of how
it was exported."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, numpy_helper

from ..dsl.tensor import Weight
from .tensors import ExternalData, to_array

FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16)
FEW = 4  # stored tensors of so many elements are settings, unless they are a layer's own
MASK = 1e4  # what holds larger numbers masks something and is no weight

# Inputs that are weights of a layer, whatever their size.
LAYERS: dict[str, tuple[int, ...]] = {
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "Gemm": (1, 2),
    "MatMul": (0, 1),
    "BatchNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "GroupNormalization": (1, 2),
    "LayerNormalization": (1, 2),
    "RMSNormalization": (1,),
    "LSTM": (1, 2, 3),
    "GRU": (1, 2, 3),
    "RNN": (1, 2, 3),
    "PRelu": (1,),
    "Gather": (0,),
}
# Operators around layers: a bias that is added, a matrix that is turned around first.
AROUND = """
    Add Sub Mul Div Sum Einsum Identity Transpose Reshape Squeeze Unsqueeze Flatten Cast Concat Slice Split Expand
"""
STATISTICS = (3, 4)  # of BatchNormalization: running mean and variance


def for_training(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with weights as initializers of their own: constant nodes are stored, normalizations share nothing,
    BatchNormalization and Dropout are in inference mode (a network that is trained knows what they do)."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    _store_constants(graph)
    stored = {t.name: t for t in graph.initializer}
    claimed: set[str] = set()
    for node in graph.node:
        if node.op_type == "BatchNormalization":
            _own_weights(graph, node, stored, claimed)
            _drop_attribute(node, "training_mode")
            del node.output[1:]
        elif node.op_type == "Dropout" and len(node.input) > 2:
            del node.input[2:]
    _drop_unused(graph)
    return copy


def _store_constants(graph: onnx.GraphProto) -> None:
    for node in list(graph.node):
        held = [a.t for a in node.attribute if a.name == "value"] if node.op_type == "Constant" else []
        if held and held[0].data_type in FLOATS and node.output[0] not in {o.name for o in graph.output}:
            tensor = graph.initializer.add()
            tensor.CopyFrom(held[0])
            tensor.name = node.output[0]
            graph.node.remove(node)


def _own_weights(graph: onnx.GraphProto, node: NodeProto, stored: dict[str, TensorProto], claimed: set[str]) -> None:
    """Exporters store equal tensors once; trained, those of two layers go apart."""
    aliases = {n.output[0]: n.input[0] for n in graph.node if n.op_type == "Identity"}
    for at, role in enumerate(("weight", "bias", "running_mean", "running_var"), start=1):
        name = source = node.input[at]
        while source in aliases:
            source = aliases[source]
        if source not in stored or (name == source and name not in claimed):
            claimed.add(name)
            continue
        own = name if name != source and name not in claimed else f"{node.name or node.output[0]}.{role}"
        for alias in [n for n in graph.node if n.op_type == "Identity" and n.output[0] == own]:
            graph.node.remove(alias)
        tensor = graph.initializer.add()
        tensor.CopyFrom(stored[source])
        tensor.name = node.input[at] = own
        stored[own] = tensor
        claimed.add(own)


def _drop_attribute(node: NodeProto, name: str) -> None:
    for attribute in [a for a in node.attribute if a.name == name]:
        node.attribute.remove(attribute)


def _drop_unused(graph: onnx.GraphProto) -> None:
    from .reader import _needs

    wanted = {o.name for o in graph.output}.union(*(_needs(n) for n in graph.node))
    for tensor in [t for t in graph.initializer if t.name not in wanted]:
        graph.initializer.remove(tensor)


def take_weights(model: onnx.ModelProto, external: ExternalData) -> dict[str, Weight]:
    """Moves the weights out of the model, by name, in the order of their first use."""
    stored = {t.name: t for t in model.graph.initializer}
    roles = dict(_roles(model.graph))
    local = {f.name for f in model.functions}
    found: dict[str, Weight] = {}
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            tensor = stored.get(name)
            if tensor is None or name in found or tensor.data_type not in FLOATS:
                continue
            statistic = roles.get(name) == "statistic"
            array = to_array(tensor, f"{model.graph.name}/{name} (initializer)", external)
            if statistic or _is_weight(node, index, array, roles.get(name), local):
                found[name] = Weight(name, array, trainable=not statistic)
                model.graph.initializer.remove(tensor)
    return found


def _roles(graph: onnx.GraphProto) -> Iterator[tuple[str, str]]:
    """Running statistics, and what is added to a product alone (the bias of a single unit has one element)."""
    uses = Counter(name for node in graph.node for name in node.input)
    products = {o for n in graph.node if n.op_type == "MatMul" for o in n.output}
    for node in graph.node:
        for index, name in enumerate(node.input):
            if node.op_type == "BatchNormalization" and index in STATISTICS:
                yield name, "statistic"
            elif node.op_type == "Add" and uses[name] == 1 and products.intersection(node.input):
                yield name, "bias"


def _is_weight(node: NodeProto, index: int, array: np.ndarray, role: str | None, local: set[str]) -> bool:
    if array.size == 0 or not np.isfinite(array).all() or np.abs(array).max() > MASK:
        return False
    if node.domain in ("", "ai.onnx") and node.op_type not in local:
        if index in LAYERS.get(node.op_type, ()) or role == "bias":
            return True
        if node.op_type not in AROUND.split():
            return False
    return bool(array.ndim and array.size > FEW)


def to_tensor(weight: Weight, name: str) -> TensorProto:
    """A weight as the initializer that it came from."""
    return numpy_helper.from_array(weight.array, name)


__all__ = ["for_training", "take_weights", "to_tensor"]
