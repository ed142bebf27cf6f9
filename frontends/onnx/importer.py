"""``load``: an ONNX model becomes a static ``Graph``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx

from ...compiler.ir import Graph, Node, Value
from ...compiler.types import TensorType
from ...errors import NervureError, printable
from . import reader
from .context import Context
from .reader import Source
from .tensors import DTYPES, ExternalData, type_name
from .walk import Scope, Walker

_MISFITS = (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RecursionError, MemoryError)


def load(
    source: Source,
    bindings: Mapping[str, int] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> Graph:
    """The model as a graph with fixed shapes.

    ``source`` is a path, the file's bytes or a ``ModelProto``. ``bindings`` gives symbolic dimensions a size
    (``{"batch": 1}``), ``shapes`` gives whole inputs a shape (``{"x": (1, 3, 224, 224)}``). Raises ``NervureError``
    for a broken file, for a dimension that is not bound, and (all at once) for operators that are not supported.
    ``graph.meta["counts"]`` maps the index of an output of bounded length to (index of the output that holds the
    number of valid entries, axis).
    """
    model, folder = reader.read(source)
    try:
        return _import(model, folder, source, dict(bindings or {}), dict(shapes or {}))
    except _MISFITS as error:
        verdict = reader.native_verdict(model)
        raise NervureError(
            "the model cannot be imported",
            where=str(source) if isinstance(source, str | Path) else None,
            why=verdict or f"{type(error).__name__}: {error}",
        ) from error


def _import(
    model: onnx.ModelProto,
    folder: Path | None,
    source: Source,
    bindings: dict[str, int],
    shapes: dict[str, Sequence[int]],
) -> Graph:
    proto = model.graph
    versions = reader.opsets(model.opset_import)
    title = proto.name or (Path(source).stem if isinstance(source, str | Path) else "model")
    reader.check_names(proto, printable(title))
    graph = Graph(title)
    context = Context(graph, _names(proto))
    walker = Walker(context, model, ExternalData(folder))
    scope = Scope(title, versions, keep_names=True)
    stored = {t.name for t in proto.initializer} | {t.values.name for t in proto.sparse_initializer}
    for name, type in _signature(proto, stored, bindings, shapes).items():
        origin = (f"{title}/{name} (input)",)
        key = graph.insert(Node("input", {}, (type,), (name,), origin))
        graph.inputs.append(key)
        scope.env[name] = Value(key)
    results = walker.run(proto, scope)
    walker.report()
    for info, value in zip(proto.output, results, strict=True):
        graph.output(value, info.name)
    walker.add_counts()
    final = _compact(graph)
    final.meta.update({"source": "onnx", "opset": versions.get("", 0), "producer": model.producer_name, **graph.meta})
    return final


def _names(proto: onnx.GraphProto) -> set[str]:
    """Names that belong to tensors of the main graph and that nothing else may take."""
    names = {o for node in proto.node for o in node.output} | {i.name for i in proto.input}
    return names | {t.name for t in proto.initializer} | {o.name for o in proto.output}


def _signature(
    proto: onnx.GraphProto, stored: set[str], bindings: dict[str, int], shapes: dict[str, Sequence[int]]
) -> dict[str, TensorType]:
    infos = {i.name: i for i in proto.input if i.name not in stored}
    unknown = sorted(set(shapes) - set(infos))
    if unknown:
        raise NervureError(
            f"the model has no input {printable(unknown[0])!r}",
            why=f"its inputs: {', '.join(printable(n, 80) for n in infos) or 'none'}",
        )
    bound = reader.dim_sizes(bindings)
    symbols = {d.dim_param for i in infos.values() for d in i.type.tensor_type.shape.dim if d.dim_param}
    strangers = sorted(set(bound) - symbols)
    if strangers:
        raise NervureError(
            f"the model has no symbolic dimension {printable(strangers[0])!r}",
            why=f"it has: {', '.join(printable(s, 80) for s in sorted(symbols)) or 'none'}",
        )
    for name in sorted(shapes):
        _bind_shape(infos[name], shapes[name], bound)
    found = {name: _input_type(info, bound, shapes.get(name)) for name, info in infos.items()}
    loose = [f"{printable(n, 80)}[{', '.join(map(str, t.shape))}]" for n, t in found.items() if not t.static]
    if loose:
        raise _unbound(found)
    return found


def _bind_shape(info: onnx.ValueInfoProto, given: Sequence[int], bound: dict[str, int]) -> None:
    """Holds a given shape against the declared one; binds the symbols that it meets."""
    wanted = f"input {printable(info.name, 80)!r}"
    if any(isinstance(d, bool) or not isinstance(d, int) or d < 0 for d in given):
        raise NervureError(f"the shape of {wanted} must be sizes, got {tuple(given)}")
    if not info.type.tensor_type.HasField("shape"):
        return
    dims = info.type.tensor_type.shape.dim
    if len(dims) != len(given):
        raise NervureError(f"{wanted} has {len(dims)} dimensions, {len(given)} were given")
    for at, (dim, size) in enumerate(zip(dims, given, strict=True)):
        fixed = bound.setdefault(dim.dim_param, size) if dim.dim_param else _size(dim)
        if fixed is not None and fixed != size:
            raise NervureError(f"dimension {at} of {wanted} is {fixed} in the model, {size} was given")


def _size(dim: onnx.TensorShapeProto.Dimension) -> int | None:
    return int(dim.dim_value) if dim.HasField("dim_value") and dim.dim_value >= 0 else None


def _input_type(info: onnx.ValueInfoProto, bound: Mapping[str, int], given: Sequence[int] | None) -> TensorType:
    where = f"{printable(info.name, 80)} (input)"
    if info.type.WhichOneof("value") != "tensor_type":
        raise NervureError("inputs that are no tensors are not supported", where=where, why="sequence, map or optional")
    tensor = info.type.tensor_type
    dtype = DTYPES.get(tensor.elem_type)
    if dtype is None:
        raise NervureError(f"inputs of {type_name(tensor.elem_type)} are not supported", where=where)
    if given is not None:
        return TensorType(dtype, tuple(given))
    if not tensor.HasField("shape"):
        raise NervureError(
            "an input has no declared shape",
            where=where,
            hint=f"give it: --shape {printable(info.name, 80)}=1,3,224,224",
        )
    dims: list[int | str] = []
    for at, dim in enumerate(tensor.shape.dim):
        size = bound.get(dim.dim_param) if dim.dim_param else _size(dim)
        dims.append(size if size is not None else dim.dim_param or f"?{at}")
    return TensorType(dtype, tuple(dims))


def _unbound(types: Mapping[str, TensorType]) -> NervureError:
    names = dict.fromkeys(str(d) for t in types.values() for d in t.shape if isinstance(d, str) and d[0] != "?")
    loose = {n: t for n, t in types.items() if not t.static}
    options = [f"--shape {printable(name, 80)}=1" for name in names]
    for name, t in loose.items():
        if any(isinstance(d, str) and d[0] == "?" for d in t.shape):
            sizes = ",".join("1" if isinstance(d, str) else str(d) for d in t.shape)
            options.append(f"--shape {printable(name, 80)}={sizes}")
    return NervureError(
        "dimensions of the inputs are not bound: "
        + ", ".join([printable(n, 80) for n in names] or [printable(n, 80) for n in loose]),
        where=[f"input {n}[{', '.join(map(str, t.shape))}]" for n, t in loose.items()],
        why="a compiled program has fixed shapes",
        hint=f"give each a size: {' '.join(options)}",
    )


def _compact(graph: Graph) -> Graph:
    """The live part of the graph, numbered anew: what folding left behind goes, and every name is registered."""
    graph.prune()
    twin = Graph(graph.name)
    moved: dict[int, int] = {}
    for key in graph.order():
        args = [None if a is None else Value(moved[a.node], a.index) for a in graph.args(key)]
        moved[key] = twin.insert(graph.node(key), args)
    twin.inputs = [moved[k] for k in graph.inputs]
    for value, name in zip(graph.outputs, graph.output_names, strict=True):
        twin.output(Value(moved[value.node], value.index), name)
    return twin
