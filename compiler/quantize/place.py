"""Where quantizers stand: which tensors of a float graph are stored as integers, and the graph that has them.

Convolutions and matmuls with constant weights are the *layers*; they want their input in integers. From there demand
goes backwards: through operators that only move elements to what they move, through relu and clip (absorbed: the
quantizer stands behind them) to the layer, add, mul, pool or function that computes it. Such an operator runs in
integers where an integer form exists and at least one of its inputs comes from a layer; then it demands its inputs.
What nothing demands stays in float, so that a network's last results are not rounded.

The parts of a concat share its scheme where nothing else reads them, else they are brought to it behind their own.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np

from ..ir import STORED, Graph, Value
from .forms import ABSORBED, LAYERS, Form, Layer, carried, form_of, layer_at, names_at, sum_at
from .recurrent import RECURRENT, Recurrent, recurrent_at, store_weights
from .scheme import Scheme, affine
from .settings import Settings, matching


@dataclass(frozen=True)
class Site:
    """A tensor that gets a quantizer (for a concat: its output, whose scheme its parts share)."""

    name: str
    dtype: str
    fixed: Scheme | None = None  # known without samples (softmax)


@dataclass(frozen=True)
class Sites:
    """What is quantized: activations and layers in topological order, and why other operators are not."""

    activations: tuple[Site, ...]
    layers: tuple[Layer, ...]
    floats: Mapping[str, str] = field(default_factory=dict)  # tensor name -> why what computes it stays in float
    recurrences: tuple[Recurrent, ...] = ()

    def site(self, name: str) -> Site | None:
        """The site of that name."""
        return next((s for s in self.activations if s.name == name), None)


def sites(graph: Graph, settings: Settings) -> Sites:
    """The tensors of a canonical float graph that get quantizers. ``NervureError`` for a pattern without a match."""
    return _Demand(graph, settings).sites()


class _Demand:
    """Demand for integers, from the layers backwards."""

    def __init__(self, graph: Graph, settings: Settings):
        self.graph = graph
        self.settings = settings
        self.named = names_at(graph)
        every = [n for names in self.named.values() for n in names]
        self.kept = matching(settings.float_patterns, every, "float pattern")
        self.wide = matching(settings.int16_patterns, every, "int16 pattern")
        self.order = {key: i for i, key in enumerate(graph.order())}
        self.layers: dict[int, Layer] = {}
        self.recurrences: dict[int, Recurrent] = {}
        self.found: dict[Value, set[int]] = {}  # site -> the operators that want it
        self.floats: dict[str, str] = {}
        self._sources: dict[Value, bool] = {}

    def matches(self, key: int, names: Collection[str]) -> bool:
        return bool(names) and any(n in names for n in self.named[key])

    def sites(self) -> Sites:
        graph = self.graph
        for key in graph.order():
            if graph.node(key).op in LAYERS:
                made = layer_at(graph, key)
                if isinstance(made, str):
                    self.floats[graph.node(key).names[0]] = made
                elif self.matches(key, self.kept) or self.matches(made.result.node, self.kept):
                    self.floats[made.name] = "a float pattern names it"
                else:
                    self.layers[key] = made
            elif graph.node(key).op in RECURRENT:
                self.recurrence(key)
        self.leave_inputs()
        for key in self.layers:
            self.demand(graph.args(key)[0], key)
        for key, recurrent in self.recurrences.items():
            self.demand(recurrent.x, key)
            self.demand(recurrent.y, key)
        if self.settings.outputs:
            for value in graph.outputs:
                if self.integral(value):
                    self.demand(value, value.node)
        self.reasons()
        found = sorted(self.found, key=lambda v: (self.order[v.node], v.index))
        every = tuple(self.site(v) for v in found)
        floats = dict(sorted(self.floats.items()))
        return Sites(every, tuple(self.layers.values()), floats, tuple(self.recurrences.values()))

    def leave_inputs(self) -> None:
        """Layers whose input a float pattern names stay in float; what is the result of a layer is named as that."""
        graph = self.graph
        layers = [layer_at(graph, k) for k in graph.order() if graph.node(k).op in LAYERS]
        results = {n for m in layers if isinstance(m, Layer) for n in (m.node, m.result.node)}
        for key, layer in list(self.layers.items()):
            source = graph.args(key)[0]
            if source is not None and source.node not in results and self.matches(source.node, self.kept):
                del self.layers[key]
                self.floats[layer.name] = "a float pattern names its input"

    def recurrence(self, key: int) -> None:
        """An LSTM or GRU in integers, or why it stays in float. Its x and y have 8 bits."""
        made, node = recurrent_at(self.graph, key), self.graph.node(key)
        if isinstance(made, str):
            self.floats[node.names[0]] = made
        elif self.matches(key, self.kept):
            self.floats[node.names[0]] = "a float pattern names it"
        elif self.settings.activations == "int16" or self.matches(key, self.wide):
            self.floats[node.names[0]] = f"{node.op} has no form with 16 bits"
        else:
            self.recurrences[key] = made

    def integral(self, value: Value) -> bool:
        """Whether a tensor is computed by integers, or can be."""
        if value not in self._sources:
            self._sources[value] = False
            self._sources[value] = self._integral(value)
        return self._sources[value]

    def _integral(self, value: Value) -> bool:
        graph, key = self.graph, value.node
        node = graph.node(key)
        if node.op in STORED or self.matches(key, self.kept) or graph.type(value).dtype != "float32":
            return False
        if key in self.layers or key in self.recurrences:
            return True
        if node.op == "concat" or carried(graph, key) is not None:
            parts = graph.args(key) if node.op == "concat" else [carried(graph, key)]
            return any(self.integral(p) for p in parts if p is not None)
        form = form_of(graph, value)
        if form is not None and form.kind == "sum":
            return sum_at(graph, form.inputs[0]) in self.layers
        return form is not None and any(self.integral(p) for p in form.inputs)

    def demand(self, value: Value | None, user: int) -> None:
        """``user`` wants this tensor in integers."""
        assert value is not None
        graph = self.graph
        source = carried(graph, value.node)
        if source is not None:
            self.demand(source, user)
            return
        if graph.type(value).dtype != "float32":
            return
        seen = value in self.found
        self.found.setdefault(value, set()).add(user)
        if seen:
            return
        if graph.node(value).op == "concat":
            for part in graph.args(value.node):
                self.part(part, value)  # type: ignore[arg-type]
            return
        self.inputs(value)

    def inputs(self, value: Value) -> None:
        """Demand for what the integer form of a tensor reads."""
        form = form_of(self.graph, value)
        if form is not None and form.kind != "sum" and self.integral(value):
            for part in form.inputs:
                self.demand(part, value.node)

    def part(self, part: Value, whole: Value) -> None:
        """A part of a concat: it needs no site of its own where only the concat reads it."""
        graph = self.graph
        source = origin_of(graph, part)
        if graph.node(source).op == "concat" or not exclusive(graph, source, whole.node):
            self.demand(source, whole.node)
        else:
            self.inputs(source)

    def site(self, value: Value) -> Site:
        graph, node = self.graph, self.graph.node(value)
        dtype = self.settings.activations
        makers = {value.node, *(v.node for v in absorbed(graph, value))}
        if any(self.matches(k, self.wide) for k in {*makers, *self.found[value]}):
            dtype = "int16"
        if node.op == "softmax" and dtype != "int16":
            zero = -128 if dtype == "int8" else 0
            return Site(node.names[0], dtype, Scheme(dtype, np.asarray(1 / 256, np.float32), zero))
        return Site(graph.tensor_name(value), dtype)

    def reasons(self) -> None:
        """Why operators that could be in integers, or that do much work, are not."""
        graph = self.graph
        for key in graph.order():
            node = graph.node(key)
            name = node.names[0]
            if node.op in STORED or key in self.layers or key in self.recurrences or name in self.floats:
                continue
            if self.matches(key, self.kept):
                self.floats[name] = "a float pattern names it"
            elif form_of(graph, Value(key)) is None and carried(graph, key) is None and node.op not in _QUIET:
                self.floats[name] = f"{node.op} has no integer form"


_QUIET = ("concat", "cast", "gather", "gather_nd", *ABSORBED)


# -- the structure that places and insertion share -----------------------------------------------------------------


def origin_of(graph: Graph, value: Value) -> Value:
    """The tensor whose elements this one holds, through operators that only move them."""
    source = carried(graph, value.node)
    while source is not None:
        value, source = source, carried(graph, source.node)
    return value


def absorbed(graph: Graph, value: Value) -> list[Value]:
    """The tensors behind which this one only has relu and clip, nearest first; the last is what a sum computes."""
    found = []
    while graph.node(value).op in ABSORBED:
        value = graph.args(value.node)[0]  # type: ignore[assignment]
        found.append(value)
    return found


def exclusive(graph: Graph, value: Value, node: int) -> bool:
    """Whether all of a tensor's uses lead, through operators that only move elements, to that node."""
    if value in graph.outputs:
        return False
    for user, _ in graph.users(value):
        if user != node and (carried(graph, user) is None or not exclusive(graph, Value(user), node)):
            return False
    return True


def insert(
    graph: Graph, schemes: Mapping[str, Scheme], floats: Collection[str] = (), *, trained: bool = False
) -> Graph:
    """A copy of a canonical float graph with quantizers at the named tensors.

    An activation gets ``quantize`` and ``dequantize`` behind it; a layer's weight becomes ``dequantize`` of integers,
    and its bias of int32 with the product of the scales. A name that the graph does not have, or that is neither an
    activation nor a layer's weight, is left alone. Operators that compute a tensor in ``floats`` take their inputs as
    they are where they can be had so. The result computes the same network; it need not be canonical.

    ``trained``: the form that quantization-aware training takes: weights stay what they are, with ``quantize`` and
    ``dequantize`` behind them, biases too; quantizers that must keep one scheme have one scale.
    """
    return _Insertion(graph, schemes, floats, trained).run()


class _Insertion:
    def __init__(self, graph: Graph, schemes: Mapping[str, Scheme], floats: Collection[str], trained: bool):
        self.graph, self.schemes, self.trained = graph.copy(), schemes, trained
        self.parameters: dict[int, tuple[Value, Value]] = {}  # of a scheme: its scale and zero point, where shared
        self.plain = graph
        self.floats = set(floats)
        self.at: dict[Value, Scheme] = {}  # where quantizers stand
        self.edges: list[tuple[int, int, Scheme]] = []  # parts that a concat brings to its scheme
        self.layers = [m for key in graph.order() for m in [self._layer(key)] if m is not None]
        self.recurrences = [] if trained else self._recurrences()
        self.keys = {m.node for m in self.layers} | {m.node for m in self.recurrences}
        self.inside: frozenset[int] = frozenset()

    def _layer(self, key: int) -> Layer | None:
        made = layer_at(self.plain, key) if self.plain.node(key).op in LAYERS else None
        return made if isinstance(made, Layer) and made.weight in self.schemes else None

    def _recurrences(self) -> list[Recurrent]:
        """The LSTMs and GRUs whose y has a quantizer, and x where it comes from."""
        found = [recurrent_at(self.plain, key) for op in RECURRENT for key in self.plain.find(op)]
        names = self.plain.tensor_name
        return [
            m
            for m in found
            if isinstance(m, Recurrent) and {names(m.y), names(origin_of(self.plain, m.x))} <= set(self.schemes)
        ]

    def run(self) -> Graph:
        self._stand()
        biases = [(layer, self.scheme_before(layer)) for layer in self.layers]
        forms = {v: self._formed(v) for v in self.at}
        self.inside = frozenset(key for form in forms.values() if form for key in form.nodes)
        whole = {v for v in self.at if forms[v]} | {m.y for m in self.recurrences}
        users = {v: [u for u in self.plain.users(v) if v in whole or self.wants(*u)] for v in self.at}
        for layer, before in biases:
            self._weight(layer)
            if before is not None and layer.bias is not None and not self.trained:
                self._bias(layer, before)
        for key, arg, scheme in self.edges:
            value = self.graph.args(key)[arg]
            assert value is not None
            self.graph.set_arg(key, arg, self.pair(value, scheme))
        for value in sorted(self.at, key=lambda v: (v.node, v.index)):
            self._behind(value, users[value], value in whole)
        for recurrent in self.recurrences:
            store_weights(self.graph, recurrent)
        self.graph.prune()
        return self.graph

    def _stand(self) -> None:
        """Where quantizers stand: at named tensors, and at the parts of a named concat."""
        plain = self.plain
        for key in plain.order():
            for value in plain.values(key):
                scheme = self.schemes.get(plain.tensor_name(value))
                if scheme is None or plain.node(key).op in STORED[1:]:
                    continue
                if plain.node(key).op != "concat":
                    self.at[value] = scheme
                    continue
                for arg, part in enumerate(plain.args(key)):
                    assert part is not None
                    source = origin_of(plain, part)
                    if plain.tensor_name(source) in self.schemes:
                        if not self.schemes[plain.tensor_name(source)].same(scheme):
                            self.edges.append((key, arg, scheme))
                    elif plain.node(source).op == "const":
                        self.edges.append((key, arg, scheme))
                    else:
                        self.at[source] = scheme

    def scheme_before(self, layer: Layer) -> Scheme | None:
        """The scheme of a layer's input."""
        source = origin_of(self.plain, self.plain.args(layer.node)[0])  # type: ignore[arg-type]
        return self.schemes.get(self.plain.tensor_name(source)) or self.at.get(source)

    def pair(self, value: Value, scheme: Scheme) -> Value:
        """``value`` quantized and dequantized."""
        graph, name = self.graph, self.graph.tensor_name(value)
        origin = graph.node(value).origin
        if id(scheme) not in self.parameters or not self.trained:
            scale = graph.const(scheme.scale, f"{name}_scale", origin)
            zero = graph.const(np.asarray(scheme.zero_point, scheme.dtype), f"{name}_zero_point", origin)
            self.parameters[id(scheme)] = scale, zero
        scale, zero = self.parameters[id(scheme)]
        bounds = {"to": scheme.dtype, "low": scheme.low, "high": scheme.high}
        q = graph.add("quantize", value, scale, zero, names=[f"{name}_quantized"], origin=origin, **bounds)
        return graph.add("dequantize", q, scale, zero, names=[f"{name}_dequantized"], origin=origin)

    def _behind(self, value: Value, users: list[tuple[int, int]], outputs: bool) -> None:
        graph = self.graph
        back = self.pair(value, self.at[value])
        for user, arg in users:
            if graph.args(user)[arg] == value:
                graph.set_arg(user, arg, back)
        if outputs:
            graph.outputs = [back if v == value else v for v in graph.outputs]

    def _weight(self, layer: Layer) -> None:
        graph, scheme = self.graph, self.schemes[layer.weight]
        weight = graph.args(layer.node)[1]
        array, origin = graph.constant(weight), graph.node(weight).origin  # type: ignore[arg-type]
        assert weight is not None and array is not None
        scale = graph.const(scheme.scale, f"{layer.weight}_scale", origin)
        if self.trained:
            bounds = {"to": scheme.dtype, "low": scheme.low, "high": scheme.high}
            q = graph.add("quantize", weight, scale, names=[f"{layer.weight}_quantized"], origin=origin, **bounds)
        else:
            q = graph.const(scheme.steps(array), f"{layer.weight}_quantized", origin)
        graph.set_arg(layer.node, 1, graph.add("dequantize", q, scale, origin=origin))

    def _bias(self, layer: Layer, before: Scheme) -> None:
        graph = self.graph
        at, arg = layer.bias_at  # type: ignore[misc]
        value = graph.args(at)[arg]
        array, origin = graph.constant(value), graph.node(value).origin  # type: ignore[arg-type]
        assert array is not None
        channels = np.broadcast_to(self.schemes[layer.weight].scale.reshape(-1), layer.channels)
        if array.size == 1:
            array = np.broadcast_to(array.reshape(-1), (layer.channels,))
        scale = (before.scale * channels).astype(np.float32).reshape(array.shape)
        scheme = Scheme("int32", scale)
        q = graph.const(scheme.steps(array), f"{layer.bias}_quantized", origin)
        held = graph.const(scale, f"{layer.bias}_scale", origin)
        graph.set_arg(at, arg, graph.add("dequantize", q, held, origin=origin))

    def _formed(self, value: Value) -> Form | None:
        """The integer form of a tensor with a quantizer whose inputs have one too; None for a layer's."""
        plain = self.plain
        form = form_of(plain, value)
        if form is None or form.kind == "sum" or not all(self.stands(p) for p in form.inputs):
            return None
        kept = any(name in self.floats for key in form.nodes for name in plain.node(key).names)
        return None if kept else form

    def stands(self, value: Value) -> bool:
        """Whether a tensor has a quantizer, or moves the elements of one that has."""
        source = origin_of(self.plain, value)
        return source in self.at or self.plain.tensor_name(source) in self.schemes

    def wants(self, user: int, arg: int) -> bool:
        """Whether a use takes the integers."""
        plain, node = self.plain, self.plain.node(user)
        if user in self.keys:
            return arg == 0
        if user in self.inside or (node.op == "concat" and node.names[0] in self.schemes):
            return True
        if node.op == "concat" or carried(plain, user) is not None:
            return any(self.wants(*u) for u in plain.users(Value(user)))
        return False


__all__ = ["Layer", "Scheme", "Site", "Sites", "affine", "insert", "sites"]
