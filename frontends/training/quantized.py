"""Quantization-aware training: a quantized model (a graph with ``quantize`` and ``dequantize``) as a network whose
weights and scales are trained.

Its forward pass is the deployed arithmetic, not a likeness of it: the pass ``integers`` lowers the training step by the
same rules as the finished model, only that scales and weights are then values of the running program instead of
constants. The gradient goes straight through the rounding and stops where a value is clipped (Jacob et al. 2018); a
scale's is that of learned step sizes (LSQ, Esser et al. 2020). Zero points stay as calibration has found them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ...compiler.ir import Graph, Node, Value
from ...compiler.ops import OPS
from ..dsl.replayed import ReplayedNetwork
from ..dsl.spec import BATCH, Input
from ..dsl.tensor import Tensor, Weight
from ..dsl.trace import Held, Trace, current
from .quantizers import Quantizer, Quantizers, integer_biases

LEAST = np.float32(2.0**-8)  # of its calibrated size: what a learned scale never falls below

Build = Callable[[Mapping[str, int]], Graph]


class QuantizedNetwork(ReplayedNetwork):
    """A network that computes with integers, in training as when it is deployed; ``nv.quantize_aware`` makes it.

    Its weights: those of the float network, batch norms folded in, under their names; and for each learned scale
    ``TENSOR.scale``, its change relative to calibration: the scale is ``calibrated * max(|1 + change|, 2^-8)``. So a
    scale stays positive, an optimizer's step changes small and large ones alike, and weight decay pulls towards
    calibration. ``net.freeze("*.scale")`` keeps them all.
    """

    def __init__(
        self,
        build: Build,
        specs: Mapping[str, Input],
        name: str,
        *,
        learn_scales: bool = True,
        gradient_scale: bool = True,
    ) -> None:
        """``build`` gives the quantized graph for sizes of the named dimensions, always with the same names: weights
        are float constants behind ``quantize``, scales and zero points constants."""
        super().__init__(self._run, name, specs)
        self._build, self._graphs = build, dict[tuple[tuple[str, int], ...], Quantizers]()
        self.gradient_scale = gradient_scale
        found = self._quantizers({d: 1 for spec in specs.values() for d in spec.shape if isinstance(d, str)})
        self.outputs = list(found.graph.output_names)
        self._own = {n: Weight(n, array) for n, array in found.weights()}
        for _, quantizer in found.scales():
            label = f"{quantizer.name}.scale"
            self._own[label] = Weight(label, np.zeros_like(quantizer.scale), trainable=learn_scales)
        self._ready = True

    @property
    def kind(self) -> str:
        return "QuantizedNetwork"

    def to_graph(
        self,
        bindings: Mapping[str, int] | None = None,
        *,
        symbolic: bool = False,
        stored: Mapping[int, Held] | None = None,
    ) -> Graph:
        """The quantized graph. Without ``stored`` everything is constant: integer weights and biases, as in a QDQ file.

        Shapes are numbers; see ``Network.to_graph`` for the rest.
        """
        graph = super().to_graph(bindings, symbolic=symbolic, stored=stored)
        if stored is None:
            integer_biases(graph)
        return graph

    def export(self, path: str | os.PathLike[str]) -> None:
        """Writes the quantized model as QDQ ONNX (batch 1), whole or not at all."""
        from ..onnx import save

        save(self.to_graph(), path)

    def _quantizers(self, bindings: Mapping[str, int]) -> Quantizers:
        key = tuple(sorted(bindings.items()))
        if key not in self._graphs:
            self._graphs[key] = Quantizers(self._build(dict(bindings)))
        return self._graphs[key]

    def inspect(self) -> Trace:
        """A trace for reports; the batch is 1."""
        return self._trace(self.types({BATCH: 1} if self._batched() else {}))

    def _batched(self) -> bool:
        return any(BATCH in spec.shape for spec in self._specs().values())

    def _run(self, **tensors: Tensor) -> Any:
        sizes = {
            d: int(tensors[name].shape[axis])
            for name, spec in self._specs().items()
            for axis, d in enumerate(spec.shape)
            if isinstance(d, str)
        }
        found = _Replay(self, current(), self._quantizers(sizes)).run(tensors)
        return found[0] if len(found) == 1 else dict(zip(self.outputs, found, strict=True))


class _Replay:
    """Records a quantized graph into a trace, with the network's weights and scales in the place of its constants.

    Where all that something is computed from is constant it is computed here, so that what is exported has plain
    integers as weights. float32 arithmetic gives the same bits here and in a program.
    """

    def __init__(self, net: QuantizedNetwork, trace: Trace, source: Quantizers) -> None:
        self.net, self.trace, self.source = net, trace, source
        self.weights = dict(net.named_weights())
        self.held: dict[Value, Value] = {}
        self.scales: dict[Value, Value] = {}

    def run(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        graph = self.source.graph
        for key in graph.order():
            node = graph.node(key)
            if node.op == "input":
                self.held[Value(key)] = self.trace.resolve(inputs[node.names[0]].value)
            elif node.op == "const":
                continue
            else:
                self._add(key, node)
        return [Tensor(self.trace, self._value(v)) for v in graph.outputs]

    def _add(self, key: int, node: Node) -> None:
        graph = self.source.graph
        args = [None if a is None else self._value(a) for a in graph.args(key)]
        if node.op == "quantize":
            args[1] = self._scale(graph.args(key)[1])
        elif node.op == "dequantize":
            made = graph.args(key)[0]
            assert made is not None
            from_ = graph.args(made.node)[1] if graph.node(made).op == "quantize" else graph.args(key)[1]
            args[1] = self._scale(from_)
        first = self._emit(node.op, args, node.names, node.origin, dict(node.attrs))
        self.held.update(zip(graph.values(key), self.trace.graph.values(first.node), strict=True))

    def _value(self, value: Value) -> Value:
        """A tensor of the graph in the trace."""
        if value not in self.held:
            node = self.source.graph.node(value)
            weight = self.weights.get(node.names[0])
            if weight is not None:
                self.held[value] = self.trace.weight(weight).value
            else:
                self.held[value] = self.trace.graph.const(node.array, self._name(node.names[0]), node.origin)
        return self.held[value]

    def _name(self, name: str) -> str:
        path = self.trace.path
        return self.trace.graph.unique(f"{path}.{name}" if path else name)

    def _emit(self, op: str, args: list[Value | None], names: Any, origin: Any, attrs: dict[str, Any]) -> Value:
        """An operation, or its value where that is known."""
        graph = self.trace.graph
        arrays = [graph.constant(a) for a in args]
        named = [self._name(n) for n in names]
        if op not in ("dequantize",) and args and all(a is not None for a in arrays):
            reference = OPS[op].reference
            assert reference is not None
            return graph.const(np.asarray(reference(*arrays, **attrs)), named[0], origin)
        return graph.add(op, *args, names=named, origin=origin, **attrs)

    def _scale(self, value: Value | None) -> Value:
        """A scale as it is now."""
        assert value is not None
        if value not in self.scales:
            quantizer = self.source.of.get(value)
            weight = self.weights.get(f"{quantizer.name}.scale") if quantizer else None
            self.scales[value] = self._value(value) if weight is None else self._learned(value, quantizer, weight)
        return self.scales[value]

    def _learned(self, value: Value, quantizer: Quantizer | None, weight: Weight) -> Value:
        assert quantizer is not None
        change = self.trace.weight(weight).value
        origin = self.source.graph.node(value).origin

        def op(name: str, *args: Value, **attrs: Any) -> Value:
            return self._emit(name, list(args), [f"{weight.name}.{name}"], origin, attrs)

        def number(array: Any) -> Value:
            return self.trace.graph.const(np.asarray(array, np.float32), self._name(f"{weight.name}.number"), origin)

        if self.net.gradient_scale and self.trace.graph.node(change).op == "param":
            kept = op("stop_gradient", change)
            factor = 1 / (np.square(quantizer.scale, dtype=np.float64) * np.sqrt(quantizer.sharing * quantizer.most))
            change = op("add", kept, op("mul", op("sub", change, kept), number(factor)))
        size = op("maximum", op("abs", op("add", change, number(1))), number(LEAST))
        return op("mul", size, self._value(value))
