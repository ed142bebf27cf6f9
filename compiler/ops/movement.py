"""Movement: operators that only say where an element lies. Most become views of the same bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ..types import Dim, TensorType
from .channels_moved import CONCAT, COPY, EXPAND, PAD, RESHAPE, SLICE, TILE, TRANSPOSE
from .dims import missing_factor, same_size
from .gradient import Call as Grad
from .gradient import Sym
from .record import REQUIRED, Call, Case, Cost, Kind, Op, OpError
from .sampling import f32
from .shapes import known, normalise_axis, require_length, shape_text


def free(call: Call) -> Cost:
    """No arithmetic: the cost lies in the bytes, which the types tell."""
    return Cost(0.0)


# -- reshape, transpose, expand --------------------------------------------------------------------------------


def _reshape_infer(call: Call) -> list[TensorType]:
    x, shape = call.type(0), tuple(call.attrs["shape"])
    if any(isinstance(d, int) and d < -1 for d in shape) or shape.count(-1) > 1:
        raise OpError(f"shape must hold sizes and at most one -1, got {shape_text(shape)}")
    if -1 in shape:
        at = shape.index(-1)
        rest = shape[:at] + shape[at + 1 :]
        found = missing_factor(x.shape, rest)
        if found is None:
            raise OpError(f"cannot reshape {x} to {shape_text(shape)}: no whole size for the -1")
        shape = (*shape[:at], found, *shape[at + 1 :])
    elif not same_size(x.shape, shape):
        counts = f": {x.size} elements into {TensorType(x.dtype, shape).size}" if _static(x, shape) else ""
        raise OpError(f"cannot reshape {x} to {shape_text(shape)}{counts}")
    return [x.with_shape(shape)]


def _static(x: TensorType, shape: Sequence[Dim]) -> bool:
    return x.static and all(isinstance(d, int) for d in shape)


def _reshape(x: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    return np.reshape(x, shape)


def _transpose_infer(call: Call) -> list[TensorType]:
    x, perm = call.type(0), tuple(call.attrs["perm"])
    if sorted(perm) != list(range(x.rank)):
        raise OpError(f"perm must order the axes 0..{x.rank - 1} of {x}, got {perm}")
    return [x.with_shape(tuple(x.shape[p] for p in perm))]


def _transpose(x: np.ndarray, perm: Sequence[int]) -> np.ndarray:
    return np.transpose(x, perm)


def _transpose_gradient(c: Grad) -> list[Sym]:
    return [c.g.transpose(np.argsort(c.attrs["perm"]).tolist())]


def _expand_infer(call: Call) -> list[TensorType]:
    x, shape = call.type(0), tuple(call.attrs["shape"])
    tail = shape[len(shape) - x.rank :]
    if len(shape) < x.rank or any(have not in (1, want) for have, want in zip(x.shape, tail, strict=True)):
        raise OpError(f"cannot broadcast {x} to {shape_text(shape)}")
    if any(isinstance(d, int) and d < 0 for d in shape):
        raise OpError(f"shape must hold sizes, got {shape_text(shape)}")
    return [x.with_shape(shape)]


def _expand(x: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    return np.broadcast_to(x, shape)


# -- slice -----------------------------------------------------------------------------------------------------


def normal_slice(
    shape: Sequence[int],
    starts: Sequence[int],
    stops: Sequence[int],
    steps: Sequence[int] | None = None,
    axes: Sequence[int] | None = None,
) -> dict[str, tuple[int, ...]]:
    """Attributes of ``slice`` from any numpy or ONNX form: negative and too large bounds, some axes only.

    An empty range becomes 0:0:1; a range down to the first element has the stop -1.
    """
    ranges = [(0, d, 1) for d in shape]
    for i, axis in enumerate(range(len(starts)) if axes is None else axes):
        step = steps[i] if steps is not None else 1
        if step == 0:
            raise OpError("the step of a slice must not be 0")
        at = normalise_axis(axis, len(shape))
        found = slice(starts[i], stops[i], step).indices(shape[at])
        ranges[at] = found if len(range(*found)) else (0, 0, 1)
    begin, end, step_by = zip(*ranges, strict=True) if ranges else ((), (), ())
    return {"starts": begin, "stops": end, "steps": step_by}


def _slice_infer(call: Call) -> list[TensorType]:
    x = call.type(0)
    bounds = [tuple(call.attrs[name]) for name in ("starts", "stops", "steps")]
    for name, values in zip(("starts", "stops", "steps"), bounds, strict=True):
        require_length(values, x.rank, name)
    return [x.with_shape(tuple(map(_sliced, x.shape, *bounds)))]


def _sliced(dim: Dim, start: int, stop: Dim, step: int) -> Dim:
    if isinstance(dim, str) or isinstance(stop, str):
        if (start, stop, step) == (0, dim, 1):
            return dim
        raise OpError(f"dimension {dim!r} must be bound to be sliced with {start}:{stop}:{step}")
    lowest = 0 if step > 0 else -1
    if step == 0 or not (0 <= start <= dim and lowest <= stop <= dim) or (step < 0 and start == dim > 0):
        raise OpError(f"{start}:{stop}:{step} is not a normal slice of {dim} elements (see normal_slice)")
    return len(range(start, stop, step)) if dim else 0


def _slice(x: np.ndarray, starts: Sequence[int], stops: Sequence[int], steps: Sequence[int]) -> np.ndarray:
    bounds = zip(starts, stops, steps, strict=True)
    return x[tuple(slice(b, None if e < 0 else e, s) for b, e, s in bounds)]


def _slice_gradient(c: Grad) -> list[Sym]:
    """Zeros where x was not read: between the elements for steps, then around them."""
    if 0 in c.g.shape:
        return [c.x.zeros()]
    starts, steps = c.attrs["starts"], c.attrs["steps"]
    g = c.g.flip([i for i, step in enumerate(steps) if step < 0])
    first, span = [], []
    for i, (start, step, n) in enumerate(zip(starts, steps, c.g.shape, strict=True)):
        g = _spaced(g, i, abs(step))
        span.append((n - 1) * abs(step) + 1)
        first.append(min(start, start + (n - 1) * step))
    return [g.pad(first, [d - b - s for d, b, s in zip(c.x.shape, first, span, strict=True)])]


def _spaced(x: Sym, axis: int, step: int) -> Sym:
    """``step - 1`` zeros between neighbours along an axis."""
    n, shape = x.shape[axis], x.shape
    if step == 1 or n == 1:
        return x
    apart = x.reshape((*shape[: axis + 1], 1, *shape[axis + 1 :]))
    apart = apart.pad([0] * apart.rank, [step - 1 if i == axis + 1 else 0 for i in range(apart.rank)])
    wide = apart.reshape((*shape[:axis], n * step, *shape[axis + 1 :]))
    return wide.cut([0] * x.rank, [*shape[:axis], (n - 1) * step + 1, *shape[axis + 1 :]])


# -- concat, pad, tile, copy -----------------------------------------------------------------------------------


def _concat_infer(call: Call) -> list[TensorType]:
    parts = [call.type(i) for i in range(len(call.types))]
    if not parts:
        raise OpError("concat needs at least one input")
    first = parts[0]
    axis = normalise_axis(call.attrs["axis"], first.rank)
    for i, part in enumerate(parts[1:], 1):
        others = [d for k, d in enumerate(part.shape) if k != axis]
        if part.dtype != first.dtype or part.rank != first.rank or others != _without(first.shape, axis):
            raise OpError(f"input {i} must be like input 0 except along axis {axis}: expected {first}, got {part}")
    if len(parts) == 1:
        return [first]
    joined = sum(known(p.shape[axis], "the joined axis") for p in parts)
    return [first.with_shape((*first.shape[:axis], joined, *first.shape[axis + 1 :]))]


def _without(shape: Sequence[Dim], axis: int) -> list[Dim]:
    return [d for k, d in enumerate(shape) if k != axis]


def _concat(*xs: np.ndarray, axis: int) -> np.ndarray:
    return np.concatenate(xs, axis=axis)


def _concat_gradient(c: Grad) -> list[Sym]:
    axis, at, parts = normalise_axis(c.attrs["axis"], c.g.rank), 0, []
    for x in (x for x in c.xs if x is not None):
        starts, stops = [0] * c.g.rank, list(c.g.shape)
        starts[axis], stops[axis] = at, at + x.shape[axis]
        parts.append(c.g.cut(starts, stops))
        at += x.shape[axis]
    return parts


PAD_MODES = ("constant", "reflect", "edge", "wrap")


def _pad_infer(call: Call) -> list[TensorType]:
    x, pads, mode = call.type(0), tuple(call.attrs["pads"]), call.attrs["mode"]
    if mode not in PAD_MODES:
        raise OpError(f"mode must be one of {', '.join(PAD_MODES)}, got {mode!r}")
    if len(pads) != 2 * x.rank or any(p < 0 for p in pads):
        raise OpError(f"pads must be {2 * x.rank} sizes (begins, then ends) for {x}, got {pads}")
    shape: list[Dim] = []
    for dim, before, after in zip(x.shape, pads[: x.rank], pads[x.rank :], strict=True):
        if before or after:
            dim = known(dim, "a padded axis")
            if dim == 0 and mode != "constant":
                raise OpError(f"an empty axis of {x} cannot be padded with mode {mode}")
            dim += before + after
        shape.append(dim)
    return [x.with_shape(tuple(shape))]


def pad_source(size: int, before: int, after: int, mode: str) -> np.ndarray:
    """The source coordinate of each padded one, along one axis of ``size`` elements, for the modes that copy."""
    at = np.arange(-before, size + after)
    if mode == "edge" or size == 1:
        return np.clip(at, 0, size - 1)
    if mode == "wrap":
        return at % size
    at %= 2 * (size - 1)  # reflection repeats: 0 1 2 3 2 1 | 0 1 ...
    return np.minimum(at, 2 * (size - 1) - at)


def _pad(x: np.ndarray, pads: Sequence[int], mode: str, value: float) -> np.ndarray:
    rank = x.ndim
    if mode == "constant":
        shape = tuple(d + pads[i] + pads[i + rank] for i, d in enumerate(x.shape))
        y = np.full(shape, value, x.dtype)
        y[tuple(slice(pads[i], pads[i] + d) for i, d in enumerate(x.shape))] = x
        return y
    for i in range(rank):
        if pads[i] or pads[i + rank]:
            x = np.take(x, pad_source(x.shape[i], pads[i], pads[i + rank], mode), axis=i)
    return x


def _pad_gradient(c: Grad) -> list[Sym]:
    """The middle; of the modes that copy, the border is added to where it came from."""
    g, rank, pads = c.g, c.x.rank, c.attrs["pads"]
    for i, size in enumerate(c.x.shape):
        before, after = pads[i], pads[i + rank]
        if before or after:
            starts, stops = [0] * rank, list(g.shape)
            starts[i], stops[i] = before, before + size
            middle = g.cut(starts, stops)
            if c.attrs["mode"] != "constant":
                sources = np.eye(size)[pad_source(size, before, after, c.attrs["mode"])]
                sources[before : before + size] = 0
                middle = middle + g.along(i, sources)
            g = middle
    return [g]


def _tile_infer(call: Call) -> list[TensorType]:
    x, repeats = call.type(0), tuple(call.attrs["repeats"])
    require_length(repeats, x.rank, "repeats")
    if any(r < 0 for r in repeats):
        raise OpError(f"repeats must not be negative, got {repeats}")
    return [
        x.with_shape(
            tuple(d if r == 1 else r * known(d, "a repeated axis") for d, r in zip(x.shape, repeats, strict=True))
        )
    ]


def _tile(x: np.ndarray, repeats: Sequence[int]) -> np.ndarray:
    return np.tile(x, repeats)


def _tile_gradient(c: Grad) -> list[Sym]:
    pairs = [d for pair in zip(c.attrs["repeats"], c.x.shape, strict=True) for d in pair]
    return [c.g.reshape(pairs).sum(range(0, len(pairs), 2))]


def _same(call: Call) -> list[TensorType]:
    return [call.type(0)]


def _copy(x: np.ndarray) -> np.ndarray:
    return np.array(x, order="C")


# -- cases -----------------------------------------------------------------------------------------------------


def _reshape_cases() -> Iterator[Case]:
    for shape in [(6, 4), (2, -1), (-1,), (1, 2, 3, 1, 4)]:
        yield Case((f32(2, 3, 4),), {"shape": shape})
    yield Case((f32(1, 1),), {"shape": ()}, note="to a scalar")
    yield Case((f32(0, 3),), {"shape": (3, 0)}, note="empty")


def _transpose_cases() -> Iterator[Case]:
    for perm in [(0, 2, 3, 1), (0, 3, 1, 2), (3, 2, 1, 0), (0, 1, 2, 3)]:
        yield Case((f32(2, 3, 5, 4),), {"perm": perm})
    yield Case((f32(17, 33),), {"perm": (1, 0)})
    yield Case((TensorType("int64", (3, 4)),), {"perm": (1, 0)})
    yield Case((TensorType("float32", ()),), {"perm": ()}, note="scalar")


def _expand_cases() -> Iterator[Case]:
    yield Case((f32(3, 1),), {"shape": (3, 4)})
    yield Case((f32(3, 1),), {"shape": (2, 3, 4)})
    yield Case((f32(),), {"shape": (2, 2)}, note="scalar")
    yield Case((TensorType("bool", (1, 5)),), {"shape": (2, 5)})


def _slice_cases() -> Iterator[Case]:
    def case(starts: Any, stops: Any, steps: Any, note: str = "") -> Case:
        return Case((f32(4, 9),), {"starts": starts, "stops": stops, "steps": steps}, note=note)

    yield case((1, 0), (3, 9), (1, 1))
    yield case((0, 1), (4, 8), (2, 3))
    yield case((3, 8), (-1, 2), (-1, -2), "backwards, down to the first element")
    yield case((2, 0), (2, 9), (1, 1), "empty")


def _concat_cases() -> Iterator[Case]:
    yield Case((f32(2, 3), f32(2, 1), f32(2, 4)), {"axis": 1})
    yield Case((f32(2, 3), f32(1, 3)), {"axis": 0})
    yield Case((f32(1, 8, 3, 3), f32(1, 5, 3, 3)), {"axis": -3})
    yield Case((TensorType("int64", (2,)), TensorType("int64", (0,))), {"axis": 0}, note="one part is empty")
    yield Case((f32(4),), {"axis": 0}, note="one input")


def _pad_cases() -> Iterator[Case]:
    for mode in PAD_MODES:
        yield Case((f32(1, 2, 5, 4),), {"pads": (0, 0, 1, 2, 0, 0, 3, 2), "mode": mode})
    yield Case((f32(3, 2),), {"pads": (1, 0, 0, 2), "mode": "constant", "value": -1.5})
    yield Case((TensorType("int32", (3,)),), {"pads": (2, 1), "mode": "constant", "value": 7})
    yield Case((f32(3),), {"pads": (7, 8), "mode": "reflect"}, note="reflected more than once")
    yield Case((f32(3),), {"pads": (7, 8), "mode": "wrap"}, note="wrapped more than once")


def _tile_cases() -> Iterator[Case]:
    yield Case((f32(2, 3),), {"repeats": (2, 1)})
    yield Case((f32(2, 3),), {"repeats": (3, 4)})
    yield Case((TensorType("bool", (2, 3, 1)),), {"repeats": (1, 2, 3)})
    yield Case((f32(2, 3),), {"repeats": (0, 1)}, note="empty")


def _copy_cases() -> Iterator[Case]:
    yield Case((f32(2, 3, 4),))
    yield Case((TensorType("int8", (5,)),))


OPS = (
    Op(
        "reshape",
        Kind.VIEW,
        _reshape_infer,
        _reshape,
        doc="The same elements in row-major order under another shape; one -1 is filled in (numpy reshape).",
        attrs={"shape": REQUIRED},
        cost=free,
        cases=_reshape_cases,
        gradient=lambda c: [c.g.reshape(c.x.shape)],
        channels=RESHAPE,
    ),
    Op(
        "transpose",
        Kind.VIEW,
        _transpose_infer,
        _transpose,
        doc="Axis i of the result is axis perm[i] of x (ONNX Transpose).",
        attrs={"perm": REQUIRED},
        cost=free,
        cases=_transpose_cases,
        gradient=_transpose_gradient,
        onnx={"Transpose": {}},
        channels=TRANSPOSE,
    ),
    Op(
        "slice",
        Kind.VIEW,
        _slice_infer,
        _slice,
        doc="x[start:stop:step] on every axis; bounds are normal (see normal_slice), a stop of -1 is before element 0.",
        attrs={"starts": REQUIRED, "stops": REQUIRED, "steps": REQUIRED},
        cost=free,
        cases=_slice_cases,
        gradient=_slice_gradient,
        channels=SLICE,
    ),
    Op(
        "expand",
        Kind.VIEW,
        _expand_infer,
        _expand,
        doc="x broadcast to shape (numpy broadcast_to).",
        attrs={"shape": REQUIRED},
        cost=free,
        cases=_expand_cases,
        gradient=lambda c: [c.g.sum_to(c.x.shape)],
        channels=EXPAND,
    ),
    Op(
        "concat",
        Kind.INJECTIVE,
        _concat_infer,
        _concat,
        doc="The inputs one after another along axis (ONNX Concat).",
        inputs=("xs*",),
        attrs={"axis": REQUIRED},
        cost=free,
        cases=_concat_cases,
        gradient=_concat_gradient,
        onnx={"Concat": {}},
        channels=CONCAT,
    ),
    Op(
        "pad",
        Kind.INJECTIVE,
        _pad_infer,
        _pad,
        doc="x with a border of pads[i] before and pads[rank + i] after axis i (ONNX Pad, no negative pads).",
        attrs={"pads": REQUIRED, "mode": "constant", "value": 0.0},
        cost=free,
        cases=_pad_cases,
        gradient=_pad_gradient,
        channels=PAD,
    ),
    Op(
        "tile",
        Kind.INJECTIVE,
        _tile_infer,
        _tile,
        doc="x repeated repeats[i] times along axis i (numpy tile).",
        attrs={"repeats": REQUIRED},
        cost=free,
        cases=_tile_cases,
        gradient=_tile_gradient,
        channels=TILE,
    ),
    Op(
        "copy",
        Kind.INJECTIVE,
        _same,
        _copy,
        doc="x itself, written anew: made by passes where another memory order is wanted.",
        cost=free,
        cases=_copy_cases,
        gradient=lambda c: [c.g],
        channels=COPY,
    ),
)
