"""An ONNX model inside a recording of the DSL: its nodes are lowered into the graph that is being traced, its weights
enter as the trace keeps them, and what behaves otherwise in training does so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from ...compiler.ir import Value
from ...errors import NervureError
from ..dsl.elementwise import emit
from ..dsl.layers.dropout import dropped
from ..dsl.layers.norm import BatchNorm, moving_statistics
from ..dsl.tensor import Tensor, Weight
from ..dsl.trace import Trace
from . import reader
from .context import Context, OnnxNode
from .tensors import ExternalData
from .walk import Scope, Walker


@dataclass(frozen=True)
class Imported:
    """A model whose weights were taken out. ``batch``: the size of the batch in the file, None where it has a name."""

    model: onnx.ModelProto
    weights: Mapping[str, Weight]
    external: ExternalData
    batch: int | None


class NetworkContext(Context):
    """Computes nothing on weights ahead of time: their names and values live on in what is built."""

    def __init__(self, trace: Trace, reserved: set[str]) -> None:
        super().__init__(trace.graph, reserved)
        self.weights: dict[Value, Weight] = {}

    def need(self, value: Value | None, what: str) -> np.ndarray:
        if value in self.weights:  # an operator wants to know it now: it is a setting, as it is at this moment
            return self.weights[value].array
        return super().need(value, what)

    def _fold(self, name: str, args: Sequence[Value | None], attrs: Mapping[str, Any]) -> list[Value] | None:
        return None if any(a in self.weights for a in args) else super()._fold(name, args, attrs)


class NetworkWalker(Walker):
    """Lowers a model for any batch, and for training where the trace is of it."""

    def __init__(self, context: NetworkContext, source: Imported, trace: Trace, batch: int) -> None:
        super().__init__(context, source.model, source.external)
        self.held, self.trace, self.batch = context.weights, trace, batch
        self.declared = batch if source.batch is None else source.batch

    def _values(self, call: OnnxNode) -> list[Value]:
        if not call.domain:
            if call.op_type == "Reshape" and self.batch != self.declared:
                call.inputs[1] = self._rebatched(call)
            elif call.op_type == "BatchNormalization" and self.trace.training:
                found = self._batch_norm(call)
                if found is not None:
                    return [found]
            elif call.op_type == "Dropout" and self.trace.training and not call.wants(1):
                return [self._dropout(call)]
        return super()._values(call)

    def _rebatched(self, call: OnnxNode) -> Value | None:
        """The shape of a Reshape that was exported for one size of the batch, for another."""
        x, wanted = call.input(0), call.optional(1)
        shape = self.context.array(wanted)
        if shape is None or not shape.size:
            return wanted
        dims = [int(d) for d in shape.reshape(-1)]
        whole = -1 not in dims and 0 not in dims
        grown = np.prod(dims) * self.batch == self.context.type(x).size * self.declared if whole else False
        leads = not whole and dims[0] == self.declared and self.context.shape(x)[:1] == (self.batch,)
        if not (grown or leads):
            return wanted
        return self.context.const(np.array([dims[0] * self.batch // self.declared, *dims[1:]], np.int64))

    def _tensor(self, value: Value) -> Tensor:
        return Tensor(self.trace, value)

    def _batch_norm(self, call: OnnxNode) -> Value | None:
        """The batch's mean and variance, and the running ones moved; None where they are frozen."""
        mean, var = (self.held.get(call.input(i)) for i in (3, 4))
        x = self._tensor(call.input(0))
        if mean is None or var is None or mean.frozen or x.ndim < 2:
            return None
        momentum = 1.0 - call.attr("momentum", 0.9)
        seen = moving_statistics(x, 1, mean, var, momentum, BatchNorm.UNBIASED)
        scale, bias = (self._tensor(self.context.cast(call.input(i), x.dtype)) for i in (1, 2))
        return emit("batch_norm", x, scale, bias, *seen, epsilon=call.attr("epsilon", 1e-5)).value

    def _dropout(self, call: OnnxNode) -> Value:
        ratio = call.optional(1)
        array = np.asarray(call.attr("ratio", 0.5)) if ratio is None else self.context.need(ratio, "the ratio")
        rate = float(array.reshape(-1)[0])
        if not 0 <= rate < 1:
            raise NervureError(f"a dropout ratio of {rate:g}", where=call.path, hint="give one from 0 to below 1")
        return dropped(self._tensor(call.input(0)), rate).value


def inline(
    source: Imported, title: str, trace: Trace, given: Mapping[str, Tensor], *, keep_names: bool
) -> tuple[list[Tensor], dict[str, Value]]:
    """Lowers the model over these inputs; its outputs, and every tensor by its name in the file.

    ``keep_names``: tensors are called as in the file, else ``title/name``.
    """
    proto = source.model.graph
    reserved = {o for node in proto.node for o in node.output} | set(given) | {o.name for o in proto.output}
    context = NetworkContext(trace, reserved if keep_names else set())
    first = next(iter(given.values()), None)
    batch = int(first.shape[0]) if first is not None and first.ndim else 1
    walker = NetworkWalker(context, source, trace, batch)
    scope = Scope(title, reader.opsets(source.model.opset_import), keep_names=keep_names)
    for name, tensor in given.items():
        scope.env[name] = trace.resolve(tensor.value)
    for name, weight in source.weights.items():
        value = trace.weight(weight).value
        scope.env[name] = value
        context.weights[value] = weight
    results = walker.run(proto, scope)
    walker.report()
    bounded = [i.name for i, v in zip(proto.output, results, strict=True) if walker.extents.of(v)]
    if bounded:
        raise NervureError(
            f"the length of output {bounded[0]!r} is only known at run time",
            where=title,
            hint="cut the network before it, or compile the file itself: nv.compile('model.onnx')",
        )
    found = {name: value for name, value in scope.env.items() if value is not None}
    return [Tensor(trace, v) for v in results], found
