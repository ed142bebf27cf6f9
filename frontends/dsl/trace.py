"""Tracing: while a network's function runs, every operation on its tensors is recorded into a Graph.

Errors are raised as the line runs; they name the layer or operator, the user's file and line, and what was expected
and found.
"""

from __future__ import annotations

import functools
import itertools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import numpy as np

from ...compiler.interpret import interpret
from ...compiler.ir import Graph, Value
from ...compiler.ops import OpError
from ...compiler.types import DTYPES, TensorType
from ...errors import NervureError
from .place import user_place
from .tensor import Tensor, Variable, Weight

F = TypeVar("F", bound=Callable[..., Any])
_numbers = itertools.count(1)


@dataclass
class Frame:
    """One call of a network or layer: the namespace in which the layers that it calls get their names."""

    owner: Any  # Network or Layer: its ``_children`` keep the names from trace to trace
    name: str
    kind: str
    is_network: bool = False
    names: dict[int, str] = field(default_factory=dict)  # id of a block called from here -> its name
    kept: list[Any] = field(default_factory=list)  # keeps those ids valid


class Root:
    """Owner of layers that are called outside of any network."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.seed = 0
        self._children: dict[str, Any] = {}


@dataclass(frozen=True)
class Row:
    """One line of a summary: a layer's call."""

    name: str
    kind: str
    shapes: tuple[tuple[Any, ...], ...]
    layer: Any  # None for an input


class Held(NamedTuple):
    """How a weight is kept in an artifact: ``const``, ``param`` or ``state``, and its name there."""

    kind: str
    name: str


class Trace:
    """A recording. ``with trace.active():`` makes it the one that operations go to."""

    def __init__(
        self, name: str, owner: Any = None, *, training: bool = False, stored: Mapping[int, Held] | None = None
    ) -> None:
        self.graph = Graph(name)
        self.training = training  # dropout drops, batch norm takes the batch's statistics
        self.streaming = False  # layers over time go on where the last call ended
        self.memories: dict[tuple[int, str], int] = {}  # id of a layer, name -> how many of its calls had a memory
        self.sample_mask: Tensor | None = None  # bool [batch]: which samples are no padding; None: all are real
        self.stored = stored  # id of a weight -> how it is kept; the rest, and all without it, are constants
        self.parts: dict[int, Value] = {}  # id of a weight that is trained in part -> that part
        self.replaced: dict[Value, Value] = {}  # tensors that differentiation has put into another form
        self.scope = ""  # what the names of new states start with
        self._generator: Tensor | None = None
        self._draws = 0
        self.number = next(_numbers)
        self.frames = [Frame(owner if owner is not None else Root(name), name, "Network", is_network=True)]
        self.rows: list[Row] = []
        self.features: dict[str, Tensor] = {}  # the inputs of the network that is traced
        self.activities: list[tuple[Any, Tensor]] = []  # penalties on outputs: regularizer, output
        self.result: Any = None  # what the traced function returned
        self.layer_outputs: dict[int, dict[str, Any]] = {}  # id of a network -> what each layer in it gave, by name
        self._weights: dict[int, tuple[Weight, Value]] = {}
        self._assigned: dict[int, Tensor] = {}  # id of a weight -> the value that it has been given

    @contextmanager
    def active(self) -> Iterator[Trace]:
        _stack().append(self)
        try:
            yield self
        finally:
            _stack().pop()

    @contextmanager
    def frame(self, frame: Frame) -> Iterator[Frame]:
        self.frames.append(frame)
        try:
            yield frame
        finally:
            self.frames.pop()

    def remember(self, result: Any) -> None:
        """Keeps what the block at work gives, under its name in every network around it (``layer_output``)."""
        for i, frame in enumerate(self.frames[:-1]):
            if frame.is_network:
                name = ".".join(f.name for f in self.frames[i + 1 :])
                self.layer_outputs.setdefault(id(frame.owner), {})[name] = result

    # -- names and places ----------------------------------------------------------------------------------------

    @property
    def path(self) -> str:
        """The dotted name of the layer that is being called: ``encoder.attention``."""
        return ".".join(f.name for f in self.frames[1:])

    def label(self, op: str) -> str:
        """What an error calls the place: the layer if there is one, else the operator."""
        inner = [f for f in self.frames if not f.is_network]
        return f"layer {self.path!r} ({inner[-1].kind})" if inner else f"operator {op}"

    def where(self) -> str:
        """``file.py:12 (layer name)`` with the full path, for errors."""
        return user_place().full + (f" ({self.path})" if self.path else "")

    def origin(self) -> tuple[str]:
        """``file.py:12 (layer name)``, for graph nodes."""
        return (user_place().short + (f" ({self.path})" if self.path else ""),)

    # -- tensors -------------------------------------------------------------------------------------------------

    def input(self, name: str, type: TensorType) -> Tensor:
        return Tensor(self, self.graph.input(name, type, [f"input {name}"]))

    def constant(self, array: np.ndarray) -> Tensor:
        if array.dtype.name not in DTYPES:
            raise NervureError(
                f"an array of {array.dtype} cannot be a tensor",
                where=self.where(),
                hint=f"element types: {', '.join(DTYPES)}",
            )
        return Tensor(self, self.graph.const(array, origin=self.origin()))

    def weight(self, weight: Weight) -> Tensor:
        """A layer's weight in this graph: the one place where weights enter. At inference they are constants; while
        training those that are trained are params."""
        found = self._weights.get(id(weight))
        if found is None:
            name = self._enter(weight)
            kind, name = self._kept(weight, name)
            found = (weight, self._stored(weight, kind, name))
            self._weights[id(weight)] = found
        return Tensor(self, found[1])

    def read(self, weight: Weight) -> Tensor:
        """The value that a weight has by now: what it was given earlier in this trace, else what is stored."""
        found = self._assigned.get(id(weight))
        return self.weight(weight) if found is None else found

    def _enter(self, weight: Weight) -> str:
        """The name of a weight that is used for the first time. One that no layer made joins the network it is in."""
        own = getattr(self.frames[-1].owner, "_own", {})
        if isinstance(weight, Variable) and own.setdefault(weight.name, weight) is not weight:
            raise fail(f"two variables are named {weight.name!r}", hint="give each its own name=")
        return f"{self.path}.{weight.name}" if self.path else weight.name

    def _stored(self, weight: Weight, kind: str, name: str) -> Value:
        """A weight's node; of one whose channels are trained in part, its parts side by side, the trained one a
        param that has the weight's name."""
        if kind != "param" or weight.channels is None:
            store = {"const": self.graph.const, "param": self.graph.param, "state": self.graph.state}[kind]
            return store(weight.array, name, self.origin())
        axis, trained = weight.output_axis, weight.channels
        before, own, after = np.split(weight.array, [trained.start, trained.stop], axis)
        parts = [self.graph.const(before, f"{name}.before", self.origin())] if before.size else []
        self.parts[id(weight)] = self.graph.param(own, name, self.origin())
        parts.append(self.parts[id(weight)])
        if after.size:
            parts.append(self.graph.const(after, f"{name}.after", self.origin()))
        return self.graph.add("concat", *parts, axis=axis, origin=self.origin())

    def param(self, weight: Weight) -> Tensor:
        """What a step trains of a weight: all of it, or a part of its channels."""
        whole = self.weight(weight)
        return Tensor(self, self.parts[id(weight)]) if id(weight) in self.parts else whole

    def _kept(self, weight: Weight, name: str) -> Held:
        if self.stored is not None:
            return self.stored.get(id(weight), Held("const", name))
        return Held("param" if self.training and weight.trained else "const", name)

    def held(self) -> dict[int, Held]:
        """How each weight is kept that the graph still has, for the other entries of the artifact (``stored=``)."""
        stored = {key: self.parts.get(key, value) for key, (_, value) in self._weights.items()}
        nodes = {key: self.graph.node(value) for key, value in stored.items() if value.node in self.graph.nx}
        return {key: Held(node.op, node.names[0]) for key, node in nodes.items()}

    def weights(self) -> list[tuple[Weight, Value]]:
        """The weights that were used, each with its node, in the order of their first use."""
        return list(self._weights.values())

    # -- what lives from call to call ------------------------------------------------------------------------------

    def state(self, name: str, value: Any) -> Tensor:
        """A new state: its first value is ``value``; ``bind`` says what the next one is."""
        scoped = f"{self.scope}/{name}" if self.scope else name
        return Tensor(self, self.graph.state(np.asarray(value), scoped, self.origin()))

    def bind(self, stored: Tensor, value: Tensor) -> None:
        """``value`` becomes the next value of a param or state."""
        self.graph.bind(stored.value, self.resolve(value.value))

    def resolve(self, value: Value) -> Value:
        """The tensor that stands for ``value`` now."""
        while value in self.replaced:
            value = self.replaced[value]
        return value

    def update(self, weight: Weight, value: Tensor) -> None:
        """The next value of a weight: one that is not trained, such as a running statistic, becomes a state."""
        stored = self.weight(weight)
        if self.graph.node(stored.value).op == "const":
            self.graph.set_node(stored.value.node, op="param" if weight.trained else "state")
        self.bind(stored, value)

    def assign(self, weight: Weight, value: Tensor) -> None:
        """``update``, and what reads the weight from here on reads the new value."""
        self.update(weight, value)
        self._assigned[id(weight)] = value

    def random_uniform(self, shape: Sequence[int]) -> Tensor:
        """float32 in [0, 1), other ones at every call and every step; the same on every machine for the same seed.

        The state ``generator`` (seed, counter) moves on by one a step; each call of a trace has its own stream.
        """
        if self._generator is None:
            scope, self.scope = self.scope, ""
            self._generator = self.state("generator", np.array([0, 0], np.uint32))
            self.scope = scope
            self.bind(self._generator, self._emit("add", self._generator, np.array([0, 1], np.uint32)))
        stream = np.array([self._draws * 0x9E3779B9 & 0xFFFFFFFF, 0], np.uint32)
        self._draws += 1
        key = self._emit("add", self._generator, stream)
        bits = self._emit("right_shift", self._emit("random_bits", key, shape=tuple(shape)), np.uint32(8))
        real = self._emit("cast", self._emit("cast", bits, to="int32"), to="float32")
        return self._emit("mul", real, np.float32(2.0**-24))

    def _emit(self, op: str, *args: Any, **attrs: Any) -> Tensor:
        return self.emit(op, [a if isinstance(a, Tensor) else self.constant(np.asarray(a)) for a in args], attrs)[0]

    def emit(self, op: str, args: Sequence[Tensor | None], attrs: dict[str, Any]) -> tuple[Tensor, ...]:
        """Adds an operation; ``NervureError`` where inputs and attributes do not fit."""
        name = f"{self.path}.{op}" if self.path else op
        try:
            first = self.graph.add(
                op,
                *(None if a is None else self.resolve(a.value) for a in args),
                names=[self.graph.unique(name)],
                origin=self.origin(),
                **attrs,
            )
        except OpError as error:
            given = ", ".join(str(a.type) for a in args if a is not None)
            raise NervureError(
                f"{self.label(op)}: {error}", where=self.where(), why=f"{op} was given {given or 'no inputs'}"
            ) from None
        return tuple(Tensor(self, v) for v in self.graph.values(first.node))

    def run(self, outputs: Sequence[Tensor], inputs: Sequence[np.ndarray] = ()) -> list[np.ndarray]:
        """The outputs' values, by the reference interpreter."""
        for tensor in outputs:
            self.graph.outputs.append(self.resolve(tensor.value))
        return interpret(self.graph, inputs)


_local = threading.local()


def _stack() -> list[Trace]:
    if not hasattr(_local, "stack"):
        _local.stack = []
    return _local.stack  # type: ignore[no-any-return]


def tracing() -> Trace | None:
    """The recording that is going on in this thread."""
    return _stack()[-1] if _stack() else None


def current() -> Trace:
    """The recording that operations go to; ``NervureError`` where there is none."""
    trace = tracing()
    if trace is None:
        raise NervureError(
            "a symbolic tensor was used outside of its network",
            where=user_place().full,
            why="its network has been traced already",
            hint="do the computation inside the @nv.network function",
        )
    return trace


def fail(what: str, *, why: str | None = None, hint: str | None = None, op: str = "") -> NervureError:
    """The error of a user's line: names the layer or operator that is at work."""
    trace = tracing()
    label = trace.label(op) + ": " if trace is not None and (op or trace.path) else ""
    where = trace.where() if trace is not None else user_place().full
    return NervureError(f"{label}{what}", where=where, why=why, hint=hint)


def leaves(value: Any) -> Iterator[Any]:
    """What lies in nested tuples, lists and dictionaries."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from leaves(item)
    else:
        yield value


def rebuild(value: Any, new: Callable[[Any], Any]) -> Any:
    """Nested tuples, lists and dictionaries with every leaf replaced."""
    if isinstance(value, dict):
        return {k: rebuild(v, new) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(rebuild(v, new) for v in value)
    return new(value)


def eager(name: str, function: Callable[[], Any]) -> Any:
    """``function`` traced and run at once: its tensors come back as arrays."""
    with Trace(name).active() as trace:
        result = function()
        tensors = [t for t in leaves(result) if isinstance(t, Tensor)]
        arrays = iter(trace.run(tensors))
        return rebuild(result, lambda leaf: next(arrays) if isinstance(leaf, Tensor) else leaf)


def public(function: F) -> F:
    """A function on tensors that also works on arrays at once, outside of any network."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if tracing() is not None:
            return function(*args, **kwargs)
        if any(isinstance(a, Tensor) for a in leaves([args, kwargs])):
            current()
        return eager(function.__name__, lambda: function(*args, **kwargs))

    return call  # type: ignore[return-value]
