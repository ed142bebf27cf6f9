"""The base of all layers, built-in and users' own."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import numpy as np

from ....compiler.types import is_float
from ....errors import NervureError
from .. import nn
from ..block import Block, snake
from ..initializers import generator, initial
from ..place import user_place
from ..promote import as_array, as_tensor
from ..tensor import Tensor, Weight
from ..trace import Frame, Row, Trace, current, eager, fail, leaves, rebuild, tracing

F = TypeVar("F", bound=Callable[..., Any])

# What every layer takes, whether or not its own __init__ says so.
PENALTIES = ("kernel_regularizer", "bias_regularizer", "activity_regularizer")
COMMON = ("name", "input_shape", "input_dim", "batch_input_shape", "weights", "seed", "trainable", "dtype", *PENALTIES)


def _parameters(cls: type) -> tuple[list[inspect.Parameter], bool]:
    """What a class's constructor takes, through ``**options`` into its bases; and whether that is all."""
    found: dict[str, inspect.Parameter] = {}
    for base in cls.__mro__:
        if "__init__" not in vars(base):
            continue
        given = list(inspect.signature(vars(base)["__init__"]).parameters.values())[1:]
        for parameter in given:
            found.setdefault(parameter.name, parameter)
        if not any(p.kind is p.VAR_KEYWORD for p in given):
            return [p for p in found.values() if p.kind is not p.VAR_KEYWORD], True
        if base is Layer:
            break
    return [p for p in found.values() if p.kind is not p.VAR_KEYWORD], False


class _LayerType(type):
    """Takes the common arguments and other frameworks' names of arguments before ``__init__`` sees the call."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        signature = inspect.signature(cls.__init__)  # type: ignore[misc]
        takes, complete = _parameters(cls)
        names = {p.name for p in takes}
        aliases: Mapping[str, str] = getattr(cls, "ALIASES", {})
        given: dict[str, Any] = {}
        for key, value in kwargs.items():
            name = aliases.get(key, key) if key not in names else key
            if name in given:
                raise NervureError(f"{cls.__name__}: {key} is given twice", where=user_place().full)
            given[name] = value
        layer: Any = cls.__new__(cls)  # type: ignore[call-overload]
        layer._setup({k: given.pop(k) for k in COMMON if k in given and k not in names})
        try:
            unknown = sorted(set(given) - names) if complete else []
            if unknown:
                raise TypeError(f"got an unexpected keyword argument {unknown[0]!r}")
            signature.bind(layer, *args, **given)
        except TypeError as error:
            hint = _usage(cls.__name__, takes)
            raise NervureError(f"{cls.__name__}: {error}", where=user_place().full, hint=hint) from None
        try:
            layer.__init__(*args, **given)
        except NervureError as error:
            what = f"{cls.__name__}: {error.what}"
            raise NervureError(what, where=error.where, why=error.why, hint=error.hint) from None
        return layer


class Layer(Block, metaclass=_LayerType):
    """A layer: weights that are made when the input's shape is known, and a function over symbolic tensors.

    A layer of your own has ``call(self, x)`` and, if it has weights, ``build(self, shape)``, which makes them::

        class Scale(nv.layers.Layer):
            def build(self, shape):
                self.factor = self.add_weight("factor", (shape[-1],), "ones")

            def call(self, x):
                return x * self.factor

    Layers that it keeps in attributes (or in lists in attributes) are its children; ``__init__`` need not call the
    base's. Every layer takes, by name: ``name``; ``input_shape`` (of one sample) or ``input_dim`` (a single axis) on
    the first layer of a ``Sequential``; ``weights``, a list in the order of creation or a dictionary by name;
    ``seed``, instead of the network's; ``trainable``; ``dtype`` of the weights, that of the input unless given;
    ``kernel_regularizer``, ``bias_regularizer`` and ``activity_regularizer``, penalties while it is trained.

    Called on arrays, a layer computes at once.
    """

    ALIASES: ClassVar[Mapping[str, str]] = {}  # argument names of other frameworks
    input_dtype: ClassVar[str] = "float32"  # of the input of a Sequential that starts with this layer

    seed: int | None = None
    trainable: bool = True
    dtype: str | None = None  # of the weights
    input_spec: Any = None  # the nv.Input that a first layer asks for
    built: bool = False
    kernel_regularizer: Any = None  # penalties: of the weights but biases, of the biases, of the output
    bias_regularizer: Any = None
    activity_regularizer: Any = None
    _chosen: Any = None  # the arrays of weights=

    def __init__(self, **common: Any) -> None:
        unknown = sorted(set(common) - set(COMMON))
        if unknown:
            raise NervureError(
                f"{self.kind} has no argument {', '.join(unknown)}",
                where=user_place().full,
                hint=f"every layer takes {', '.join(COMMON)}",
            )
        if common:
            self._configure(common)

    def _setup(self, common: dict[str, Any]) -> None:
        """The state that every layer has before its ``__init__`` runs."""
        trace = tracing()
        values: dict[str, Any] = {"_children": {}, "_own": {}, "_inherited": {}, "_place": user_place()}
        values["_born"] = trace.number if trace is not None else 0
        self.__dict__.update(values)
        self._configure(common)

    def _configure(self, common: dict[str, Any]) -> None:
        values = dict(common)
        self.named = self.named or values.get("name") is not None
        self._chosen = values.pop("weights", self._chosen)
        self.input_spec = self._spec(values) or self.input_spec
        for key in ("name", "seed", "trainable", "dtype"):
            if values.get(key) is not None:
                setattr(self, key, values[key])
        for key in PENALTIES:
            if values.get(key) is not None:
                from ...training.regularizers import get

                object.__setattr__(self, key, get(values[key]))

    def _spec(self, values: dict[str, Any]) -> Any:
        from ..spec import Input

        shape, whole = values.get("input_shape"), values.get("batch_input_shape")
        if values.get("input_dim") is not None:
            shape = (values["input_dim"],)
        if shape is None and whole is None:
            return None
        shape = shape if whole is None else None
        return Input(shape, self.input_dtype, batch_shape=whole)

    def __setattr__(self, key: str, value: Any) -> None:
        object.__setattr__(self, key, value)
        if key in ("_children", "_own", "_inherited", "_place"):
            return
        if key == "trainable":
            self.freeze() if not value else self.unfreeze()
            return
        parts = {f"{key}.{i}": v for i, v in enumerate(value)} if isinstance(value, list | tuple) else {key: value}
        for name, part in parts.items():
            if isinstance(part, Block):
                if name in self._inherited:
                    part.adopt(self._inherited.pop(name), name)
                self._children[name] = part
                if isinstance(part, Layer) and isinstance(self._chosen, Mapping):
                    part._chosen = {k[len(name) + 1 :]: v for k, v in self._chosen.items() if k.startswith(name + ".")}

    # -- what a layer of one's own defines ----------------------------------------------------------------------------

    def build(self, shape: Any) -> None:
        """Makes the weights. ``shape``: that of the first argument (a list of them for a list of tensors)."""

    def call(self, *inputs: Any, **options: Any) -> Any:
        """The outputs, computed from symbolic tensors."""
        raise NotImplementedError(f"{self.kind} has no call(self, x)")

    # -- weights ------------------------------------------------------------------------------------------------------

    def add_weight(
        self,
        name: str,
        shape: Sequence[int],
        initializer: Any = "glorot_uniform",
        *,
        trainable: bool = True,
        dtype: str | None = None,
        persistent: bool = True,
    ) -> Weight:
        """A new weight, or the one that an earlier trace made.

        ``initializer``: a Keras name (``"he_normal"``), a number, an array, or ``function(shape, rng)``. The random
        numbers depend on the seed and on the names of network, layers and weight alone. ``persistent=False`` makes what
        lives from call to call and no longer (a cache, to be written by ``nv.assign``): no state dictionary holds it.
        """
        if not isinstance(name, str):  # Keras 3 has the shape first
            name, shape = f"weight_{len(self._own)}", name
        extents = self._extents(name, shape)
        held = self._own.get(name)
        if held is None:
            values = self._chosen_values(name) if persistent else None
            if values is None:
                values = initial(initializer, extents, self._generator(name))
            elif values.shape != extents:
                raise fail(f"weights: {name!r}: expected shape {list(extents)}, got {list(values.shape)}")
            dtype = dtype or self.dtype or "float32"
            held = Weight(name, np.asarray(values).astype(dtype), trainable)
            held.frozen, held.persistent = not self.trainable, persistent
            self._own[name] = held
        elif held.shape != extents:
            raise fail(f"weight {name!r} has shape {list(held.shape)}, this input needs {list(extents)}")
        return held

    def memory(self, name: str, shape: Sequence[int], start: Any = "zeros", *, dtype: str | None = None) -> Weight:
        """What a call leaves for the next one, to be written by ``nv.assign``; a state of the artifact and no weight of
        the network. Each call of the layer in a network has its own, and another shape makes a new one."""
        trace = current()
        calls = trace.memories[id(self), name] = trace.memories.get((id(self), name), -1) + 1
        name = f"{name}_{calls}" if calls else name
        extents = self._extents(name, shape)
        if name in self._own and self._own[name].shape != extents and not self._own[name].persistent:
            del self._own[name]
        return self.add_weight(name, extents, start, trainable=False, dtype=dtype, persistent=False)

    def _extents(self, name: str, shape: Sequence[Any]) -> tuple[int, ...]:
        for size in shape:
            if isinstance(size, str):
                raise fail(f"weight {name!r}: dimension {str(size)!r} has no number yet and cannot size a weight")
        return tuple(int(size) for size in shape)

    def _chosen_values(self, name: str) -> np.ndarray | None:
        """The values of ``weights=``, if there are any for this one."""
        if self._chosen is None:
            return None
        if isinstance(self._chosen, Mapping):
            return np.asarray(self._chosen[name]) if name in self._chosen else None
        place = len(self._own)
        if place >= len(self._chosen):
            raise fail(f"weights: expected an array for {name!r} too, got {len(self._chosen)}")
        return np.asarray(self._chosen[place])

    def _check_chosen(self) -> None:
        if isinstance(self._chosen, Mapping):
            unknown = sorted(
                k for k in self._chosen if k not in self._own and k.split(".")[0] not in self._child_names()
            )
            if unknown:
                raise fail(f"weights: no weight is named {unknown[0]!r}", why=f"there are {', '.join(self._own)}")
        elif self._chosen is not None and len(self._chosen) != len(self._own) and not self._children:
            raise fail(f"weights: expected {len(self._own)} arrays, got {len(self._chosen)}")

    def _child_names(self) -> set[str]:
        return {name.split(".")[0] for name in self._children}

    def _generator(self, name: str) -> np.random.Generator:
        frames = current().frames
        start = max(i for i, frame in enumerate(frames) if frame.is_network)
        owner = frames[start].owner
        seed = self.seed if self.seed is not None else owner.seed
        return generator(int(seed or 0), owner.name, *(f.name for f in frames[start + 1 :]), name)

    # -- calling ------------------------------------------------------------------------------------------------------

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        return self._use(self.call, inputs, options, called=True)

    def _use(self, function: Callable[..., Any], inputs: Any, options: Any, called: bool = False) -> Any:
        """What ``call`` gives, or a ``method``."""
        trace = tracing()
        if trace is None:
            if any(isinstance(leaf, Tensor) for leaf in leaves([inputs, options])):
                current()
            return eager(self.name or snake(self.kind), lambda: self._use(function, inputs, options, called))
        if not called and trace.frames[-1].owner is self:
            return function(*inputs, **options)
        inputs = rebuild(inputs, _given)
        name = self.enter(trace)
        with trace.frame(Frame(self, name, self.kind)):
            result = self._invoke(function, inputs, options)
            if called:
                trace.remember(result)
        if called:
            self._note(trace, name, result)
        return result

    def _note(self, trace: Trace, name: str, result: Any) -> None:
        """Penalties on the output of a call, and its line of the summary."""
        if self.activity_regularizer is not None:
            trace.activities += [(self.activity_regularizer, t) for t in leaves(result) if isinstance(t, Tensor)]
        if len(trace.frames) == 1:
            shapes = tuple(leaf.shape for leaf in leaves(result) if isinstance(leaf, Tensor))
            trace.rows.append(Row(name, self.kind, shapes, self))

    def _tensor(self, value: Any) -> Any:
        """Arrays as tensors; numpy's default float64 becomes the layer's type."""
        if not isinstance(value, np.ndarray | Weight):
            return value
        wide = isinstance(value, np.ndarray) and value.dtype == np.float64
        return as_tensor(value, (self.dtype or "float32") if wide else None)

    def _invoke(self, function: Callable[..., Any], inputs: tuple[Any, ...], options: dict[str, Any]) -> Any:
        args = rebuild(inputs, self._tensor)
        if args and isinstance(args[0], int | float):
            args = (as_tensor(as_array(args[0])), *args[1:])
        for leaf in leaves(args[:1]):
            if not isinstance(leaf, Tensor):
                raise fail(
                    f"expected a tensor or an array, got {type(leaf).__name__}",
                    hint="nv.Input describes a parameter of an @nv.network function" if _is_spec(leaf) else None,
                )
            as_tensor(leaf)  # refuses tensors of other traces
        if not self.built:
            first = next((leaf for leaf in leaves(args) if isinstance(leaf, Tensor)), None)
            if self.dtype is None and first is not None and is_float(first.dtype):
                object.__setattr__(self, "dtype", first.dtype)
            self.build(rebuild(args[0], lambda t: t.shape) if args else None)
            self.built = True
            self._check_chosen()
        try:
            inspect.signature(function).bind(*args, **options)
        except TypeError as error:
            raise fail(str(error)) from None
        return function(*args, **options)


def _given(value: Any) -> Any:
    """A weight or variable that is an argument belongs to whoever gives it, not to the layer that takes it."""
    return as_tensor(value) if isinstance(value, Weight) else value


def method(function: F) -> F:
    """A further function of a layer, beside ``call``: it too works under the layer's name, with its weights (which the
    first argument's shape makes), and computes at once on arrays. What learns by a rule of its own has its rule so."""

    @functools.wraps(function)
    def use(self: Layer, *inputs: Any, **options: Any) -> Any:
        return self._use(functools.partial(function, self), inputs, options)

    return use  # type: ignore[return-value]


def _usage(name: str, parameters: Sequence[inspect.Parameter]) -> str:
    """What a layer takes: by position, by name, and as every layer."""
    by_name = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    by_place = ", ".join(
        p.name if p.default is p.empty else f"{p.name}={p.default!r}"
        for p in parameters
        if p.kind is p.POSITIONAL_OR_KEYWORD
    )
    return f"{name}({by_place})" + (f", by name {', '.join(by_name)}" if by_name else "")


def _is_spec(value: Any) -> bool:
    from ..spec import Input

    return isinstance(value, Input)


def activated(function: Callable[[Any], Any] | None, x: Tensor) -> Tensor:
    """``x`` after an ``activation=``."""
    return x if function is None else function(x)


def activation(given: Any) -> Callable[[Any], Any] | None:
    """The function of an ``activation=`` argument."""
    return nn.activation(given)


def whole(value: Any, what: str, minimum: int = 1) -> int:
    """A whole number of at least ``minimum``; ``NervureError`` otherwise."""
    if isinstance(value, bool) or not hasattr(value, "__index__") or value < minimum:
        raise fail(f"{what}: expected a whole number of at least {minimum}, got {value!r}")
    return int(value)


def features_of(shape: Any) -> int:
    """The size of the last axis of an input [batch, features]; ``NervureError`` for others."""
    if shape is None or len(shape) != 2:
        hint = "call it on samples first" if shape is None else None
        raise fail(f"expected an input [batch, features], got {'none yet' if hint else list(shape)}", hint=hint)
    return int(shape[1])


def each(value: Any, rank: int, what: str, minimum: int = 1) -> tuple[int, ...]:
    """One number for each of ``rank`` axes, given as one number or a sequence."""
    given = list(value) if isinstance(value, list | tuple) else [value] * rank
    if len(given) != rank:
        raise fail(f"{what}: expected one number or {rank}, got {value!r}")
    return tuple(whole(v, what, minimum) for v in given)


def expect_rank(x: Tensor, rank: int, axes: str) -> None:
    """Refuses an input with another number of axes."""
    if x.ndim != rank:
        hint = None
        if x.ndim == rank + 1:
            hint = "nv.Input(shape) leaves out the batch axis; nv.Input(batch_shape=...) holds it"
        raise fail(f"expected an input [{axes}] with {rank} axes, got {list(x.shape)}", hint=hint)
