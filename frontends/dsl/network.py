"""``@nv.network``: a plain function over symbolic tensors as a network."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ...compiler.ir import Graph
from ...compiler.ops.numeric import numpy_dtype
from ...compiler.types import DTYPES, TensorType
from ...errors import NervureError
from .block import Block
from .place import Place, user_place
from .promote import as_array, as_tensor
from .spec import BATCH, Input
from .tensor import Tensor, Weight
from .trace import Frame, Held, Row, Trace, current, fail, leaves, rebuild, tracing


class Network(Block):
    """A network. ``nv.compile(net)`` compiles it, ``net(array)`` computes at once by the reference interpreter, and
    inside of another network it is called on tensors like a layer. Made by ``nv.network`` or ``nv.Sequential``."""

    name: str

    def __init__(self, function: Callable[..., Any], name: str, inputs: Mapping[str, Any], seed: int = 0) -> None:
        self.function, self.name, self.seed = function, name, seed
        self.inputs: dict[str, Input | None] = dict(inputs)  # parameter -> what it is, None until it is called
        self.options: set[str] = set()  # parameters that are settings, not tensors
        self._place = user_place()
        self._children, self._own, self._inherited = {}, {}, {}
        trace = tracing()
        self._born = trace.number if trace is not None else 0
        self._ready = False
        self._fitting: Any = None  # what ``compile`` was told

    @property
    def kind(self) -> str:
        return "Network"

    # -- graphs ------------------------------------------------------------------------------------------------------

    def to_graph(
        self,
        bindings: Mapping[str, int] | None = None,
        *,
        symbolic: bool = False,
        stored: Mapping[int, Held] | None = None,
    ) -> Graph:
        """The network as a graph, its weights as constants but for those ``stored`` otherwise.

        ``bindings`` gives named dimensions their numbers; ``batch`` is 1 unless it is given. With ``symbolic``
        dimensions without a number stay names, as far as the network's operators allow it.
        Raises ``NervureError`` where the network does not fit together, or a dimension has no number.
        """
        return self.traced(bindings, symbolic=symbolic, stored=stored).graph

    def traced(
        self,
        bindings: Mapping[str, int] | None = None,
        *,
        symbolic: bool = False,
        stored: Mapping[int, Held] | None = None,
    ) -> Trace:
        """The recording behind ``to_graph``."""
        return self._trace(self.types(bindings, symbolic=symbolic), trace=Trace(self.name, self, stored=stored))

    def types(self, bindings: Mapping[str, int] | None = None, *, symbolic: bool = False) -> dict[str, TensorType]:
        """The inputs' types; see ``to_graph``."""
        bound = self._bindings(dict(bindings or {}), symbolic)
        return {name: spec.bound(bound) for name, spec in self._specs().items()}

    def _specs(self) -> dict[str, Input]:
        for name, spec in self.inputs.items():
            if spec is None:
                raise NervureError(
                    f"network {self.name!r}: the shape of input {name!r} is not known",
                    where=self._place.full,
                    hint=self._shape_hint(name),
                )
        return {name: spec for name, spec in self.inputs.items() if spec is not None}

    def _shape_hint(self, name: str) -> str:
        return f"annotate it, {name}: nv.Input((784,)), or call the network on an array once"

    def _bindings(self, given: dict[str, int], symbolic: bool) -> dict[str, int]:
        names = sorted({d for spec in self._specs().values() for d in spec.shape if isinstance(d, str)})
        unknown = sorted(set(given) - set(names))
        if unknown:
            raise NervureError(
                f"network {self.name!r} has no dimension {unknown[0]!r}", why=f"it has: {', '.join(names) or 'none'}"
            )
        for name, size in given.items():
            if isinstance(size, bool) or not isinstance(size, int | np.integer) or size < 1:
                raise NervureError(f"dimension {name!r} must be a whole number from 1 on, got {size!r}")
        if symbolic:
            return given
        bound = {BATCH: 1} if BATCH in names else {}
        bound |= {name: int(size) for name, size in given.items()}
        free = [name for name in names if name not in bound]
        if free:
            raise NervureError(
                f"network {self.name!r}: not bound: {', '.join(map(repr, free))}",
                where=self._place.full,
                why="a program is compiled for fixed sizes of its dimensions",
                hint=f"give each a size, for example dims={{{', '.join(f'{name!r}: 16' for name in free)}}}",
            )
        return bound

    def _trace(
        self, types: Mapping[str, TensorType], values: Mapping[str, Any] | None = None, trace: Trace | None = None
    ) -> Trace:
        """Runs the function once over inputs of the given types (into ``trace``, if one is given)."""
        with (trace or Trace(self.name, self)).active() as trace:
            self.record(trace, types, values)
            named = _outputs(trace.result)
            for name, tensor in named.items():
                trace.graph.output(trace.resolve(tensor.value), name)
            trace.graph.prune()
        return trace

    def record(self, trace: Trace, types: Mapping[str, TensorType], values: Mapping[str, Any] | None = None) -> Any:
        """Runs the function into ``trace``, over new inputs of these types; returns what it returned, as tensors."""
        tensors: dict[str, Any] = {name: trace.input(name, type) for name, type in types.items()}
        trace.features = dict(tensors)
        for name, tensor in tensors.items():
            trace.rows.append(Row(name, "Input", (tensor.shape,), None))
        trace.result = self._result(self.function(**tensors, **(values or {})), trace)
        self._ready = True
        return trace.result

    def _result(self, found: Any, trace: Trace) -> Any:
        """What the function returned, with every leaf a tensor. One that assigns need not return anything."""
        if found is None and trace.graph.bindings:
            return ()
        if found is None or not list(leaves(found)) or any(leaf is None for leaf in leaves(found)):
            raise NervureError(
                f"network {self.name!r} returned {found!r}",
                where=self._place.full,
                hint="its function must return a tensor, or a tuple or dictionary of tensors; or nv.assign something",
            )
        return rebuild(found, as_tensor)

    def ready(self) -> None:
        if not self._ready:
            self.inspect()

    def inspect(self) -> Trace:
        """A trace for reports: named dimensions stay names where the network allows it, else batch is 1."""
        specs = self._specs()
        try:
            return self._trace({name: spec.bound({}) for name, spec in specs.items()})
        except NervureError:
            return self._trace({name: spec.bound({BATCH: 1}) for name, spec in specs.items()})

    def summary(self, print_fn: Callable[[str], Any] = print) -> None:
        """Prints a table of the layers, their output shapes and numbers of parameters, as Keras does."""
        from .summary import summary_text

        print_fn(summary_text(self))

    # -- training (Keras) --------------------------------------------------------------------------------------------

    def compile(
        self,
        optimizer: Any = "rmsprop",
        loss: Any = None,
        metrics: Any = (),
        loss_weights: Any = None,
        *,
        target: str = "host",
        threads: int = 1,
        seed: int = 0,
        max_ram: int | None = None,
        gradient_norms: bool = True,
    ) -> None:
        """Says how the network is trained: see ``nv.Training`` for the arguments. Nothing is compiled before ``fit``
        knows the batch. ``threads`` workers run the step; ``max_ram`` (bytes) bounds its arena, if need be by computing
        activations again. ``gradient_norms=False`` does without the watch on gradients and its copy of them."""
        from ..training.fitting import Fitting
        from ..training.step import Training, check

        training = Training(loss, optimizer, metrics, loss_weights, seed=seed, gradient_norms=gradient_norms)
        check(training)
        self._fitting = Fitting(self, training, target, threads, max_ram)

    def fit(
        self,
        x: Any,
        y: Any = None,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose: Any = "auto",
        callbacks: Any = (),
        validation_split: float = 0.0,
        validation_data: Any = None,
        **options: Any,
    ) -> Any:
        """Trains on arrays, or on anything that gives batches, and returns a ``History``; the weights of the network
        are the trained ones afterwards. For the other options see ``runtime.Trainer.fit``."""
        options |= {"epochs": epochs, "verbose": verbose, "callbacks": callbacks, "validation_split": validation_split}
        return self._trained().fit(x, y, batch_size, validation_data, options)

    def evaluate(self, x: Any, y: Any = None, batch_size: int | None = None, verbose: Any = 0, **options: Any) -> Any:
        """Loss and metrics on any number of samples; see ``runtime.Trainer.evaluate``. It shows no bar, whatever
        ``verbose`` says."""
        return self._trained().evaluate(x, y, batch_size, options)

    def predict(self, x: Any, batch_size: int | None = None, verbose: Any = 0) -> Any:
        """The outputs for any number of samples, by a compiled program."""
        return self._trained().predict(x, batch_size)

    def train_on_batch(self, x: Any, y: Any = None, sample_weight: Any = None) -> dict[str, float]:
        """One step on one batch: its loss and metrics."""
        return self._trained().train_on_batch(x, y, sample_weight)  # type: ignore[no-any-return]

    def test_on_batch(self, x: Any, y: Any = None, sample_weight: Any = None) -> dict[str, float]:
        """Loss and metrics of one batch."""
        return self._trained().test_on_batch(x, y, sample_weight)  # type: ignore[no-any-return]

    @property
    def metrics_names(self) -> list[str]:
        """What ``evaluate`` returns, by name: the loss, then the metrics (Keras)."""
        return self._trained().names()  # type: ignore[no-any-return]

    def reset_states(self) -> None:
        """States of layers with ``stateful=True`` back to zero, for what is trained and predicted next (Keras)."""
        if self._fitting is not None:
            self._fitting.reset_states()

    def averaged_weights(self) -> dict[str, np.ndarray]:
        """The averages of the trained weights by name, where the optimizer has ``ema_momentum``; for
        ``load_state_dict(..., strict=False)``."""
        return self._trained().averages()  # type: ignore[no-any-return]

    def _trained(self) -> Any:
        if self._fitting is None:
            raise NervureError(
                f"network {self.name!r} is not compiled yet",
                where=user_place().full,
                hint="net.compile(loss=..., optimizer=...) comes first",
            )
        return self._fitting

    # -- calling -----------------------------------------------------------------------------------------------------

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        given, options = self._arguments(args, kwargs)
        trace = tracing()
        if trace is not None:
            return self._inline(trace, given, options)
        if any(isinstance(leaf, Tensor) for leaf in leaves([given, options])):
            current()
        arrays = {name: self._array(name, value) for name, value in given.items()}
        sizes: dict[str, int] = {}
        for name, array in arrays.items():
            self._fit(name, array.shape, sizes)
            if self.inputs[name] is None:
                self.inputs[name] = Input(array.shape[1:], array.dtype) if array.ndim else Input(batch_shape=())
        types = {name: TensorType(array.dtype.name, array.shape) for name, array in arrays.items()}
        made = self._trace(types, options)
        made.graph.outputs.clear()
        found = iter(made.run(list(leaves(made.result)), list(arrays.values())))
        return rebuild(made.result, lambda _: next(found))

    def _arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """The call's tensors and its settings, by parameter."""
        parameters = [inspect.Parameter(n, inspect.Parameter.POSITIONAL_OR_KEYWORD) for n in self.inputs]
        parameters += [inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, default=None) for n in sorted(self.options)]
        try:
            bound = inspect.Signature(parameters).bind(*args, **kwargs).arguments
        except TypeError as error:
            raise NervureError(
                f"network {self.name!r}: {error}",
                where=user_place().full,
                hint=f"its inputs are: {', '.join(self.inputs) or 'none'}",
            ) from None
        return {n: bound[n] for n in self.inputs}, {n: bound[n] for n in sorted(self.options) if n in bound}

    def _inline(self, trace: Trace, given: dict[str, Any], options: dict[str, Any]) -> Any:
        tensors = {name: as_tensor(value) for name, value in given.items()}
        name = self.enter(trace)
        with trace.frame(Frame(self, name, self.kind, is_network=True)):
            sizes: dict[str, Any] = {}
            for key, tensor in tensors.items():
                if not trace.streaming:  # other numbers of frames than it was made for
                    self._fit(key, tensor.shape, sizes)
                spec = self.inputs[key]
                if spec is not None and spec.dtype != tensor.dtype:
                    raise fail(f"network {self.name!r}: input {key!r} must be {spec.dtype}, got {tensor.dtype}")
            result = self._result(self.function(**tensors, **options), trace)
            trace.remember(result)
        if len(trace.frames) == 1:
            trace.rows.append(Row(name, self.kind, tuple(leaf.shape for leaf in leaves(result)), self))
        self._ready = True
        return result

    def _array(self, name: str, value: Any) -> np.ndarray:
        spec = self.inputs[name]
        array = value.array if isinstance(value, Weight) else as_array(value)
        if spec is None:
            array = array.astype(np.float32) if array.dtype == np.float64 else array
        elif array.dtype != numpy_dtype(spec.dtype):
            if not np.can_cast(array.dtype, numpy_dtype(spec.dtype), "same_kind"):
                raise NervureError(
                    f"network {self.name!r}: input {name!r} must be {spec.dtype}, got {array.dtype}",
                    where=user_place().full,
                )
            array = array.astype(numpy_dtype(spec.dtype))
        if array.dtype.name not in DTYPES:
            raise NervureError(
                f"network {self.name!r}: input {name!r} cannot be an array of {array.dtype}", where=user_place().full
            )
        return array

    def _fit(self, name: str, shape: tuple[Any, ...], sizes: dict[str, Any]) -> None:
        """Refuses a shape that is not what the parameter says; named dimensions must agree over all inputs."""
        spec = self.inputs[name]
        if spec is None:
            return
        fits = len(shape) == len(spec.shape)
        for want, got in zip(spec.shape, shape, strict=False):
            fits = fits and got == (sizes.setdefault(want, got) if isinstance(want, str) else want)
        if not fits:
            shown = ", ".join(f"{d}={sizes[d]}" for d in spec.shape if isinstance(d, str) and d in sizes)
            raise NervureError(
                f"network {self.name!r}: input {name!r}: expected shape [{', '.join(map(str, spec.shape))}], "
                f"got {[d if isinstance(d, int) else str(d) for d in shape]}",
                where=user_place().full,
                why=shown or None,
            )

    def __setattr__(self, key: str, value: Any) -> None:
        object.__setattr__(self, key, value)
        if key == "trainable":
            self.freeze() if not value else self.unfreeze()

    def __repr__(self) -> str:
        return f"<nervure {self.kind} {self.name!r}({', '.join(self.inputs)})>"


def _outputs(result: Any) -> dict[str, Tensor]:
    """The names of the outputs: ``output``, or ``output_0``, ..., or a dictionary's keys."""
    if isinstance(result, dict):
        return {str(name): leaf for key, value in result.items() for name, leaf in _numbered(str(key), value)}
    return dict(_numbered("output", result))


def _numbered(name: str, value: Any) -> list[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        return [(name, value)]
    return [(f"{name}_{i}", leaf) for i, leaf in enumerate(leaves(value))]


def network(
    function: Callable[..., Any] | None = None, /, *, name: str | None = None, seed: int = 0, **inputs: Input
) -> Any:
    """Makes a network of a function over symbolic tensors::

        @nv.network
        def classifier(x: nv.Input((784,))):
            x = nv.layers.Dense(128, "relu")(x)
            return nv.layers.Dense(10)(x)

    A parameter is described by ``nv.Input`` as its annotation, its default, or an argument of ``network``. A parameter
    with another default is a setting, not a tensor. One with neither gets its shape from the first array it is called
    on. The function runs once for every compile; it may return a tensor, a tuple or a dictionary of tensors,
    or nothing where it calls ``nv.assign``. ``seed`` starts the weights.
    """
    if function is None:
        return lambda f: network(f, name=name, seed=seed, **inputs)
    if not callable(function):
        raise NervureError(f"nv.network needs a function, got {function!r}", where=user_place().full)
    caller = sys._getframe(1)
    while caller.f_back is not None and caller.f_code.co_filename == __file__:
        caller = caller.f_back
    specs, options = _parameters(function, inputs, caller.f_locals)
    made = Network(function, name or getattr(function, "__name__", "network").strip("<>"), specs, seed)
    made.options, made.named = options, name is not None
    code = getattr(function, "__code__", None)
    made._place = Place(code.co_filename, code.co_firstlineno) if code is not None else made._place
    made.__doc__ = function.__doc__
    return made


def _parameters(
    function: Callable[..., Any], given: Mapping[str, Input], scope: Mapping[str, Any]
) -> tuple[dict[str, Input | None], set[str]]:
    """What each parameter of the function is; and the names of those that are settings."""
    specs: dict[str, Input | None] = {}
    options: set[str] = set()
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise NervureError(f"a network's parameter cannot be {parameter}", where=user_place().full)
        found = given.get(name, _evaluated(parameter.annotation, function, scope))
        if not isinstance(found, Input) and isinstance(parameter.default, Input):
            found = parameter.default
        if isinstance(found, Input):
            specs[name] = found
        elif parameter.default is parameter.empty:
            specs[name] = None
        else:
            options.add(name)
    unknown = sorted(set(given) - set(specs))
    if unknown:
        raise NervureError(f"the function has no parameter {unknown[0]!r}", where=user_place().full)
    return specs, options


def _evaluated(annotation: Any, function: Callable[..., Any], scope: Mapping[str, Any]) -> Any:
    """An annotation that ``from __future__ import annotations`` left as text."""
    if not isinstance(annotation, str):
        return annotation
    try:
        return eval(annotation, getattr(function, "__globals__", {}), dict(scope))
    except NervureError:
        raise
    except Exception:
        return None  # an annotation for type checkers
