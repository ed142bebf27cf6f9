"""``nv.load_network``: an ONNX file as a network that can be cut, joined with layers, trained and written again."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx

from ...compiler.ir import STORED
from ...compiler.types import TensorType
from ...errors import NervureError, printable
from ..dsl.place import user_place
from ..dsl.replayed import ReplayedNetwork
from ..dsl.spec import BATCH, Input
from ..dsl.tensor import Tensor
from ..dsl.trace import Trace, current, leaves
from . import reader
from .importer import _MISFITS, _size
from .inline import Imported, inline
from .tensors import DTYPES, ExternalData
from .weights import for_training, take_weights, to_tensor

Names = str | Sequence[str]


def load_network(
    source: reader.Source,
    *,
    inputs: Names | None = None,
    outputs: Names | None = None,
    dims: Mapping[str, int] | None = None,
    shapes: Mapping[str, Sequence[Any]] | None = None,
    name: str | None = None,
) -> ImportedNetwork:
    """An ONNX model (path, bytes or ``ModelProto``) as a network::

        body = nv.load_network("mobilenet.onnx").cut("pool5")
        body.freeze()
        net = nv.Sequential([body, nv.layers.Dense(10)])

    Its floating-point weights keep the file's names; running statistics move and dropout drops while it is trained.
    The first axis is the batch, of any size, also where the file was exported for one size of it and the graph allows
    others. ``inputs`` and ``outputs`` cut it (see ``cut``). ``dims`` binds other named dimensions (``{"time": 16}``);
    ``shapes`` gives inputs another shape, the batch first: ``{"x": (None, 3, 96, 96)}``.

    Raises ``NervureError`` for a broken file and (all at once) for operators that are not supported.
    """
    model, folder = reader.read(source)
    title = model.graph.name or (Path(source).stem if isinstance(source, str | Path) else "model")
    reader.check_names(model.graph, printable(title))
    label = name or (Path(source).stem if isinstance(source, str | Path) else title)
    try:
        model = for_training(model)
        external = ExternalData(folder)
        specs, batch = _signature(model, dict(dims or {}), dict(shapes or {}))
        weights = take_weights(model, external)
        net = ImportedNetwork(Imported(model, weights, external, batch), specs, label)
        net.named = name is not None
        net._settle()
        return net if inputs is None and outputs is None else net.cut(outputs, inputs=inputs, name=name)
    except _MISFITS as error:
        raise NervureError(
            "the model cannot be imported",
            where=str(source) if isinstance(source, str | Path) else None,
            why=reader.native_verdict(model) or f"{type(error).__name__}: {error}",
        ) from error


class ImportedNetwork(ReplayedNetwork):
    """The network of an ONNX file. Its outputs are called as there; one output is a tensor, several a dictionary."""

    def __init__(self, source: Imported, specs: Mapping[str, Input], name: str) -> None:
        super().__init__(self._run, name, specs)
        self.source = source
        self.outputs = [o.name for o in source.model.graph.output]
        self._own = dict(source.weights)
        self._seen: dict[str, Any] = {}

    @property
    def kind(self) -> str:
        return "Network"

    # -- graphs ------------------------------------------------------------------------------------------------------

    def _run(self, **tensors: Tensor) -> Any:
        trace = current()
        title = trace.path or self.name
        results, self._seen = inline(self.source, title, trace, tensors, keep_names=self._keep and not trace.path)
        made = {n: v for n, v in self._seen.items() if trace.graph.node(v).op not in STORED}
        trace.layer_outputs.setdefault(id(self), {}).update({n: Tensor(trace, v) for n, v in made.items()})
        return results[0] if len(results) == 1 else dict(zip(self.outputs, results, strict=True))

    def inspect(self) -> Trace:
        """A trace for reports; batch is 1."""
        return self._trace(self.types())

    def ready(self) -> None:
        """The weights are there from the start."""

    def _arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        names = list(self.inputs)  # of ONNX, where a name may hold anything
        given = dict(zip(names, args, strict=False))
        twice, unknown = set(given) & set(kwargs), set(kwargs) - set(names)
        given |= kwargs
        if len(args) > len(names) or twice or unknown or len(given) < len(names):
            raise NervureError(
                f"network {self.name!r} takes {len(names)} input(s): {', '.join(map(printable, names))}",
                where=user_place().full,
                why=f"{len(args)} were given by position, by name: {', '.join(kwargs) or 'none'}",
            )
        return {n: given[n] for n in names}, {}

    def _settle(self) -> None:
        """Traces once, so that what cannot be imported is said now. A batch that cannot change keeps its size."""
        fixed = self.source.batch
        if fixed is None:
            self.inspect()
            return
        shapes = [t.shape for t in leaves(self._trace(self.types({BATCH: fixed})).result)]
        try:
            grown = [t.shape for t in leaves(self._trace(self.types({BATCH: 2 * fixed})).result)]
        except NervureError:
            grown = []
        if grown != [(2 * s[0], *s[1:]) if s else s for s in shapes]:
            self.inputs = {n: _fixed(spec, fixed) for n, spec in self._specs().items()}

    # -- cutting -----------------------------------------------------------------------------------------------------

    def tensors(self, pattern: str = "*") -> dict[str, TensorType]:
        """Where it can be cut: every tensor that a node of the file makes, in order, by name."""
        made = [o for node in self.source.model.graph.node for o in node.output if o]
        types = self._types()
        return {n: types[n] for n in made if n in types and fnmatch.fnmatchcase(n, pattern)}

    def _types(self) -> dict[str, TensorType]:
        """The types of all tensors by name. What grows with the batch is called so."""
        batched = any(BATCH in spec.shape for spec in self._specs().values())
        found: list[dict[str, TensorType]] = []
        for size in (2, 3) if batched else (1,):
            trace = Trace(self.name, self)
            with trace.active():
                self.record(trace, self.types({BATCH: size} if batched else {}))
            found.append({n: trace.graph.type(v) for n, v in self._seen.items()})
        low, high = found[0], found[-1]
        return {n: _named_batch(t, high[n]) for n, t in low.items() if n in high}

    def cut(self, outputs: Names | None = None, *, inputs: Names | None = None, name: str | None = None) -> Any:
        """The part of the network up to the tensors ``outputs`` (and from ``inputs`` on), as a network that shares its
        weights. A tensor is named by itself or by the node that makes it; ``tensors()`` lists them.

        Raises ``NervureError`` with the closest names for one that does not exist, and where the part needs an input
        that is cut away.
        """
        wanted = [self._tensor_name(n) for n in _several(outputs)] or list(self.outputs)
        starts = [self._tensor_name(n) for n in _several(inputs)]
        types = self._types()
        specs = {n: Input(dtype=types[n].dtype, batch_shape=types[n].shape) for n in starts} or self._specs()
        model = _part(self.source.model, wanted, set(specs), types)
        missing = sorted(_needed(model) - set(specs) - {*self._own} - {t.name for t in model.graph.initializer})
        missing = [m for m in missing if m in self.inputs]
        if missing:
            raise NervureError(
                f"the outputs need input {printable(missing[0])!r}, which is cut away", where=user_place().full
            )
        used = _needed(model)
        specs = {n: spec for n, spec in specs.items() if n in used or n in wanted}
        weights = {n: w for n, w in self._own.items() if n in used}
        source = Imported(_with_inputs(model, specs), weights, self.source.external, self.source.batch)
        made = ImportedNetwork(source, specs, name or self.name)
        made.named = name is not None or self.named
        object.__setattr__(made, "trainable", self.trainable)
        return made

    def _tensor_name(self, name: str) -> str:
        graph = self.source.model.graph
        made = [o for node in graph.node for o in node.output if o]
        if name in made or name in self.inputs:
            return name
        nodes = {node.name: node.output[0] for node in graph.node if node.name}
        if name in nodes:
            return str(nodes[name])
        fitting = [n for n in made if fnmatch.fnmatchcase(n, name)]
        if len(fitting) == 1:
            return str(fitting[0])
        near = fitting[:8] or difflib.get_close_matches(name, [*made, *nodes], 6, 0.3) or made[-6:]
        raise NervureError(
            f"{len(fitting)} tensors fit {printable(name)!r}" if fitting else f"no tensor is named {printable(name)!r}",
            where=user_place().full,
            hint=f"there are: {', '.join(printable(n, 80) for n in near)}; net.tensors() lists them all",
        )

    # -- out ---------------------------------------------------------------------------------------------------------

    def to_model(self) -> onnx.ModelProto:
        """The ONNX model with the weights as they are now; everything else is as it was in the file."""
        model = onnx.ModelProto()
        model.CopyFrom(self.source.model)
        model.graph.initializer.extend(to_tensor(w, n) for n, w in self._own.items())
        return model


# -- signatures --------------------------------------------------------------------------------------------------------


def _signature(
    model: onnx.ModelProto, dims: dict[str, int], shapes: dict[str, Sequence[Any]]
) -> tuple[dict[str, Input], int | None]:
    """The inputs, and the batch of a file that was exported for one size of it."""
    stored = {t.name for t in model.graph.initializer}
    infos = {i.name: i for i in model.graph.input if i.name not in stored}
    unknown = sorted(set(shapes) - set(infos))
    if unknown:
        raise NervureError(f"the model has no input {printable(unknown[0])!r}", why=f"its inputs: {', '.join(infos)}")
    if not infos:
        raise NervureError("the model has no inputs: there is nothing to train on")
    declared = {n: _declared(info, shapes.get(n)) for n, info in infos.items()}
    symbols = {d for shape in declared.values() for d in shape if isinstance(d, str)}
    strangers = sorted(set(dims) - symbols)
    if strangers:
        raise NervureError(
            f"the model has no dimension {printable(strangers[0])!r}",
            why=f"it has: {', '.join(sorted(map(printable, symbols))) or 'none'}",
        )
    bound = reader.dim_sizes(dims)
    lead = next((shape[0] for shape in declared.values() if shape), None)
    size = lead if isinstance(lead, int) else None
    specs = {}
    for name, shape in declared.items():
        whole = [BATCH if i == 0 and d == lead else bound.get(d, d) for i, d in enumerate(shape)]
        whole = [BATCH if isinstance(lead, str) and d == lead else d for d in whole]
        kind = DTYPES.get(infos[name].type.tensor_type.elem_type)
        if kind is None:
            raise NervureError(f"input {printable(name)!r} is no tensor of a known type")
        specs[name] = Input(dtype=kind, batch_shape=whole)
        if name in shapes:
            _declare(infos[name], specs[name])
    if shapes:
        del model.graph.value_info[:]
    return specs, None if any(name in shapes for name in specs) and size is None else size


def _declared(info: onnx.ValueInfoProto, given: Sequence[Any] | None) -> list[Any]:
    tensor = info.type.tensor_type
    if given is None and not tensor.HasField("shape"):
        raise NervureError(
            f"input {printable(info.name)!r} has no declared shape", hint="give it: shapes={...: (None, 3, 224, 224)}"
        )
    own = [_size(d) if not d.dim_param else d.dim_param for d in tensor.shape.dim]
    own = [f"dim{i}" if d is None else d for i, d in enumerate(own)]
    if given is None:
        return own
    if own and len(own) != len(given):
        raise NervureError(f"input {printable(info.name)!r} has {len(own)} axes, {len(given)} were given")
    return [(own[i] if own else f"dim{i}") if d is None else d for i, d in enumerate(given)]


def _fixed(spec: Input, batch: int) -> Input:
    return Input(dtype=spec.dtype, batch_shape=spec.bound({BATCH: batch}).shape)


def _named_batch(low: TensorType, high: TensorType) -> TensorType:
    """Of two types of a tensor, at batch 2 and 3: the dimension that grew with it is the batch."""
    same = low.rank == high.rank
    dims = [BATCH if same and (a, b) == (2, 3) else a for a, b in zip(low.shape, high.shape, strict=same)]
    return low.with_shape(tuple(dims))


def _several(names: Names | None) -> list[str]:
    return [names] if isinstance(names, str) else list(names or ())


# -- parts of a model --------------------------------------------------------------------------------------------------


def _part(
    model: onnx.ModelProto, outputs: Sequence[str], starts: set[str], types: Mapping[str, TensorType]
) -> onnx.ModelProto:
    """The nodes between ``starts`` and ``outputs``."""
    makers = {o: i for i, node in enumerate(model.graph.node) for o in node.output if o}
    wanted: set[int] = set()
    stack = [n for n in outputs if n not in starts]
    while stack:
        at = makers.get(stack.pop())
        if at is not None and at not in wanted:
            wanted.add(at)
            stack += [n for n in reader._needs(model.graph.node[at]) if n not in starts]
    part = onnx.ModelProto()
    part.CopyFrom(model)
    del part.graph.node[:]
    part.graph.node.extend(node for i, node in enumerate(model.graph.node) if i in wanted)
    used = _needed(part)
    for tensor in [t for t in part.graph.initializer if t.name not in used]:
        part.graph.initializer.remove(tensor)
    declared = {o.name: o for o in model.graph.output}
    del part.graph.output[:]
    part.graph.output.extend(declared.get(n) or _info(n, types[n]) for n in outputs)
    return part


def _needed(model: onnx.ModelProto) -> set[str]:
    return set().union(*(reader._needs(node) for node in model.graph.node))


def _with_inputs(model: onnx.ModelProto, specs: Mapping[str, Input]) -> onnx.ModelProto:
    declared = {i.name: i for i in model.graph.input}
    del model.graph.input[:]
    model.graph.input.extend(declared.get(n) or _info(n, spec.type) for n, spec in specs.items())
    return model


def _info(name: str, type: TensorType) -> onnx.ValueInfoProto:
    code = next(code for code, dtype in DTYPES.items() if dtype == type.dtype)
    return onnx.helper.make_tensor_value_info(name, code, list(type.shape))


def _declare(info: onnx.ValueInfoProto, spec: Input) -> None:
    info.CopyFrom(_info(info.name, spec.type))


__all__ = ["ImportedNetwork", "load_network"]
