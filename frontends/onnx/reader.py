"""From a path, bytes or ModelProto to a ModelProto whose structure can be trusted.

The protobuf parser is memory-safe and works here; onnx's native checker is not, so it only ever runs in a process of
its own, and only to explain a file that the importer could not make sense of (``native_verdict``).
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import onnx
from google.protobuf.message import DecodeError, EncodeError  # type: ignore[import-untyped]

from ...errors import NervureError, printable

OLDEST_OPSET = 7
MAX_FILE = 1 << 31  # bytes; protobuf's own bound
_DAMAGED = "the file is damaged or no ONNX model: export or copy it again"

Source: TypeAlias = str | os.PathLike[str] | bytes | onnx.ModelProto


def read(source: Source) -> tuple[onnx.ModelProto, Path | None]:
    """The model and the folder in which its external data may lie. Raises ``NervureError`` for what is no model."""
    if isinstance(source, onnx.ModelProto):
        return source, None
    if isinstance(source, bytes | bytearray | memoryview):
        return _parse(bytes(source), "the given bytes"), None
    path = Path(source)
    try:
        if path.exists() and not path.is_file():
            raise OSError("it is no regular file")
        if path.stat().st_size > MAX_FILE:
            raise OSError("it is larger than 2 GiB: an ONNX file keeps larger weights as external data beside it")
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        raise NervureError("the model file cannot be read", where=str(path), why=str(error)) from None
    return _parse(data, str(path)), path.parent


def _parse(data: bytes, where: str) -> onnx.ModelProto:
    try:
        model = onnx.ModelProto.FromString(data)
    except (DecodeError, RuntimeError, ValueError) as error:
        raise NervureError("this is no ONNX model", where=where, why=str(error), hint=_DAMAGED) from None
    if not model.HasField("graph") or not (model.graph.node or model.graph.output):
        raise NervureError("this is no ONNX model: it holds no graph", where=where, hint=_DAMAGED)
    return model


def opsets(entries: Iterable[onnx.OperatorSetIdProto]) -> dict[str, int]:
    """Domain -> opset, checked against what the installed onnx knows. The default domain is ``""``."""
    found = {"" if e.domain == "ai.onnx" else e.domain: int(e.version) for e in entries}
    newest = onnx.defs.onnx_opset_version()
    version = found.get("")
    if version is not None and not OLDEST_OPSET <= version <= newest:
        raise NervureError(
            f"the model uses ONNX opset {version}; {OLDEST_OPSET} to {newest} can be read",
            hint="convert it: onnx.version_converter.convert_version(onnx.load(path), 18)",
        )
    return found


def check_names(graph: onnx.GraphProto, where: str) -> None:
    """Every tensor has one producer: ``NervureError`` names those that have two."""
    produced = [o for node in graph.node for o in node.output if o]
    stored = [t.name for t in graph.initializer] + [t.values.name for t in graph.sparse_initializer]
    inputs = [i.name for i in graph.input]
    again = sorted({*_repeated(produced), *_repeated(stored), *_repeated(inputs), *({*produced} & {*stored, *inputs})})
    if again:
        raise NervureError(
            "tensors with more than one producer", where=where, why=", ".join(printable(n, 80) for n in again[:8])
        )
    if "" in inputs or "" in stored:
        raise NervureError("a graph input or stored tensor has no name", where=where)


def _repeated(names: Sequence[str]) -> Iterator[str]:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            yield name
        seen.add(name)


def in_order(nodes: Sequence[onnx.NodeProto], known: Callable[[str], bool], where: str) -> list[onnx.NodeProto]:
    """The nodes so that producers come first; files that are not sorted are sorted. ``known`` tells outer names.

    Raises ``NervureError`` for a tensor that nothing produces and for a cycle.
    """
    needs = [_needs(node) for node in nodes]
    produced = {o: i for i, node in enumerate(nodes) for o in node.output if o}
    for node, names in zip(nodes, needs, strict=True):
        missing = sorted(n for n in names if n not in produced and not known(n))
        if missing:
            raise NervureError(
                f"nothing produces tensor {printable(missing[0], 80)!r}",
                where=f"{where}/{node.name or node.op_type} ({node.op_type})",
                hint=_DAMAGED,
            )
    waiting = [{produced[n] for n in names if n in produced} for names in needs]
    if all(not w or max(w) < i for i, w in enumerate(waiting)):
        return list(nodes)
    return [nodes[i] for i in _sorted(waiting, nodes, where)]


def _sorted(waiting: Sequence[set[int]], nodes: Sequence[onnx.NodeProto], where: str) -> list[int]:
    import networkx as nx

    order: nx.DiGraph[int] = nx.DiGraph()
    order.add_nodes_from(range(len(waiting)))
    order.add_edges_from((before, i) for i, befores in enumerate(waiting) for before in sorted(befores))
    try:
        return list(nx.lexicographical_topological_sort(order))
    except nx.NetworkXUnfeasible:
        cycle = [printable(nodes[a].name or nodes[a].op_type, 80) for a, _ in nx.find_cycle(order)]
        raise NervureError("the graph has a cycle", where=where, why=" -> ".join(cycle[:12])) from None


def _needs(node: onnx.NodeProto) -> set[str]:
    """Names that must exist before the node runs, those that its bodies take from outside included."""
    names = {i for i in node.input if i}
    for attribute in node.attribute:
        for body in [attribute.g, *attribute.graphs] if attribute.HasField("g") or attribute.graphs else ():
            names |= _free(body)
    return names


def _free(body: onnx.GraphProto) -> set[str]:
    own = {i.name for i in body.input} | {t.name for t in body.initializer}
    own |= {t.values.name for t in body.sparse_initializer} | {o for node in body.node for o in node.output}
    return {n for node in body.node for n in _needs(node)} - own


_CHECK = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
import onnx
try:
    onnx.checker.check_model(sys.stdin.buffer.read())
except Exception as error:
    print(str(error)[:2000])
"""


def native_verdict(model: onnx.ModelProto, timeout: float = 5.0) -> str | None:
    """What onnx's own checker says about the model, asked in a process of its own; None if it has no complaint."""
    try:
        data = model.SerializeToString()
    except (ValueError, EncodeError, RuntimeError) as error:
        return str(error)
    if len(data) > 256 << 20:
        return None
    return _worker(_CHECK, data, timeout)


def _worker(program: str, data: bytes, timeout: float) -> str | None:
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-c", program], input=data, capture_output=True, timeout=timeout, check=False
        )
    except (OSError, subprocess.SubprocessError) as error:
        return f"onnx's checker did not end well ({type(error).__name__})"
    if done.returncode < 0:
        return f"onnx's checker died of signal {-done.returncode}"
    return done.stdout.decode(errors="replace").strip() or None


def dim_sizes(values: Mapping[str, int]) -> dict[str, int]:
    """Checked bindings of symbolic dimensions."""
    for name, size in values.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise NervureError(f"dimension {name!r} must be bound to a positive integer, got {size!r}")
    return dict(values)
