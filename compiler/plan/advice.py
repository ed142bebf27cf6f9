"""What to do about a model that does not fit: an error with what is needed, what there is, which layer is the largest,
and what would fit. Every number is that of a plan that was made."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ...errors import NervureError
from ..ir import Graph, Value
from ..ops import OpError
from ..passes.patches import WINDOWS
from ..program import Entry
from ..types import is_float
from .fit import Bound, Fit
from .liveness import liveness, peak
from .memory import Span, place

_SHARES = ((3, 4), (1, 2), (1, 3), (1, 4))  # of the input's lines and points
_LISTED = 4  # live tensors of the largest layer
_LENGTH = 48  # of a name in a sentence


def too_large(graph: Graph, plain: Entry, found: Fit, build: Callable[[Graph], Entry], bound: Bound) -> NervureError:
    """The error for an entry that no plan makes fit. ``graph`` is its canonical graph, ``plain`` the plan of whole
    layers, ``found`` the smallest plan, ``build`` plans a graph."""
    entry = found.entry
    if bound.ram is not None and bound.needed(entry) > bound.ram:
        what = f"{entry.name} needs {bound.needed(entry)} bytes of RAM, --max-ram allows {bound.ram}"
    else:
        what = f"{entry.name} needs {entry.region_bytes[0]} bytes in one memory, the largest has {bound.arena}"
    why = _largest(plain)
    if entry.updates_params:
        again = ", computing activations again where that helps" if len(found.tried) > 1 else ""
        hint = "a smaller batch, fewer trained layers (net.freeze), or fewer threads"
        return NervureError(
            what, why=f"{why}; no plan of these steps needs less than {plain.lower_bound}{again}", hint=hint
        )
    options = [
        *_patches(found, plain, bound),
        *_int8(graph, plain, bound),
        *_smaller(graph, build, bound),
        *_alone(entry, bound),
    ]
    hint = "; ".join(options) or "a smaller input or batch"
    return NervureError(what, why=f"{why}; whole layers need {bound.needed(plain)}", hint=hint)


def _largest(entry: Entry) -> str:
    """The layer with the most live bytes, and what they are."""
    row = peak(liveness(entry))
    if row is None:
        return "nothing is alive"
    held = [f"{'scratch' if b.scratch else short(b.name)} {b.nbytes}" for b in row.buffers[:_LISTED]]
    more = len(row.buffers) - _LISTED
    rest = f" and {more} more" if more > 0 else ""
    return f"the largest live layer is {short(row.name)} ({row.op}) with {row.bytes} bytes: {', '.join(held)}{rest}"


def short(name: str) -> str:
    """A tensor's name for a sentence: converters join those of all that they fused."""
    first = name.split(";")[0]
    return first if len(first) <= _LENGTH else f"...{first[-_LENGTH:]}"


def _patches(found: Fit, plain: Entry, bound: Bound) -> Iterator[str]:
    least = min(found.tried, key=lambda row: (row["arena_bytes"], row["flops"]))
    if least["arena_bytes"] < bound.needed(plain):
        work = sum(step.flops for step in plain.steps)
        share = f", {100 * least['flops'] / work:.1f} % more operations" if work else ""
        yield f"the least that was found is {least['arena_bytes']} bytes in {least['name']}{share}"


def _int8(graph: Graph, plain: Entry, bound: Bound) -> Iterator[str]:
    """The same steps with tensors of one byte where they have four."""
    if not all(is_float(graph.node(n).types[0].dtype) for n in graph.inputs) or not graph.find("conv") + graph.find(
        "matmul"
    ):
        return
    spans = [Span(-(-b.nbytes // 4), b.first, b.last) for b in plain.buffers if not b.scratch]
    total = place(spans)[1] if spans else 0
    yield f"as int8 (nervure quantize) its tensors take {total} bytes{_fits(total, bound)}"


def _smaller(graph: Graph, build: Callable[[Graph], Entry], bound: Bound) -> Iterator[str]:
    """The first of a few smaller inputs that fits; else the smallest of them."""
    text = ""
    for up, down in _SHARES:
        other = scaled(graph, up, down)
        if other is None:
            break
        entry = build(other)
        shape = "x".join(map(str, other.type(Value(other.inputs[0])).dims))
        needed = bound.needed(entry)
        text = f"an input of {shape} needs {needed} bytes{_fits(needed, bound)}"
        if bound.over(entry) <= 0:
            break
    if text:
        yield text


def _alone(entry: Entry, bound: Bound) -> Iterator[str]:
    if bound.threads > 1:
        yield f"with one thread it needs {sum(entry.region_bytes)} bytes"


def _fits(nbytes: int, bound: Bound) -> str:
    limit = bound.ram if bound.ram is not None else bound.arena
    return " (fits)" if limit is not None and nbytes <= limit else ""


# -- smaller inputs --------------------------------------------------------------------------------------------------


def scaled(graph: Graph, up: int, down: int) -> Graph | None:
    """The graph for an image of ``up / down`` of the lines and points; None where it has no image, or where some shape
    in it is fixed. What it computes means nothing: it is only planned."""
    if len(graph.inputs) != 1 or graph.bindings or graph.node(graph.inputs[0]).types[0].rank != 4:
        return None
    key = graph.inputs[0]
    type_ = graph.node(key).types[0]
    users = [graph.node(user) for user, _ in graph.users(Value(key))]
    last = all(u.op == "transpose" and tuple(u.attrs["perm"]) == (0, 3, 1, 2) for u in users)
    axes = (1, 2) if last else (2, 3)
    dims = [n * up // down if a in axes else n for a, n in enumerate(type_.dims)]
    if min(dims) < 1:
        return None
    small = Graph(graph.name)
    made: dict[Value, Value] = {Value(key): small.input(graph.node(key).names[0], type_.with_shape(tuple(dims)))}
    try:
        for node in graph.order():
            if node != key:
                made |= _again(graph, node, small, made)
    except (OpError, KeyError, ValueError):
        return None
    for value, name in zip(graph.outputs, graph.output_names, strict=True):
        small.output(made[value], name)
    return small


def _again(graph: Graph, key: int, small: Graph, made: Mapping[Value, Value]) -> dict[Value, Value]:
    node = graph.node(key)
    if node.op == "const":
        return {Value(key): small.const(node.array, node.names[0], node.origin)}
    args = [None if a is None else made[a] for a in graph.args(key)]
    attrs = dict(node.attrs)
    first = graph.args(key)[0] if args else None
    window = attrs.get("kernel_shape") if node.op in WINDOWS else None
    if window is not None and first is not None and args[0] is not None:
        whole = tuple(window) == graph.type(first).dims[2:]  # a pool over the whole image stays one
        attrs["kernel_shape"] = small.type(args[0]).dims[2:] if whole else window
    result = small.add(node.op, *args, names=node.names, origin=node.origin, **attrs)
    return dict(zip(graph.values(key), small.values(result.node), strict=True))


# -- flash -----------------------------------------------------------------------------------------------------------


def too_much_flash(needed: int, flash: int, graphs: Sequence[Graph], smaller: Callable[[], int] | None) -> NervureError:
    """The error for constants that do not fit. ``smaller`` plans again for size and gives the bytes; None where that
    was done."""
    arrays: dict[Any, Any] = {id(g.node(n).array): g.node(n).array for g in graphs for n in g.find("const")}
    floats = sum(a.nbytes for a in arrays.values() if a.dtype.kind == "f" and a.ndim > 1)
    total = sum(a.nbytes for a in arrays.values())
    options = []
    if smaller is not None:
        options.append(f"--optimize size needs {smaller()} bytes")
    if floats > total // 2:
        options.append(f"with int8 weights (nervure quantize) the constants take {total - floats + floats // 4} bytes")
    return NervureError(
        f"the constants need {needed} bytes of flash, there are {flash}",
        why=f"the model's own tensors are {total} bytes; packed for the kernels they are {needed}",
        hint="; ".join(options) or "fewer or narrower layers, or pruning (nervure prune)",
    )
