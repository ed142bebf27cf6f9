"""Operators on shapes: Shape, Reshape, Squeeze, Expand, ... Their shape inputs have been folded to constants."""

from __future__ import annotations

import math

import numpy as np

from ...compiler.ir import Value
from ...errors import NervureError
from .context import FOLD_BYTES, Context, OnnxNode, Unsupported
from .lower_math import element_type
from .registry import Lowered, lowers
from .tensors import MAX_BYTES


@lowers("Shape")
def shape(c: Context, n: OnnxNode) -> Lowered:
    dims = c.shape(n.input(0))
    return c.const(np.array(dims[slice(n.attr("start", 0), n.attr("end"))], np.int64))


@lowers("Size")
def size(c: Context, n: OnnxNode) -> Lowered:
    return c.const(np.int64(math.prod(c.shape(n.input(0)))))


@lowers("Reshape")
def reshape(c: Context, n: OnnxNode) -> Lowered:
    x = n.input(0)
    wanted = list(c.ints(n.input(1), "the shape"))
    before = c.shape(x)
    if not n.attr("allowzero", 0):
        if any(d == 0 and i >= len(before) for i, d in enumerate(wanted)):
            raise NervureError("a 0 in the new shape copies a dimension that is not there", where=n.path)
        wanted = [before[i] if d == 0 else d for i, d in enumerate(wanted)]
    if -1 in wanted:
        rest = math.prod(d for d in wanted if d != -1)
        wanted[wanted.index(-1)] = math.prod(before) // rest if rest else 0
    return c.reshape(x, wanted)


@lowers("Flatten")
def flatten(c: Context, n: OnnxNode) -> Lowered:
    x = n.input(0)
    dims, axis = c.shape(x), n.attr("axis", 1)
    if not -len(dims) <= axis <= len(dims):
        raise NervureError(f"axis {axis} does not exist in {c.type(x)}", where=n.path)
    axis = axis + len(dims) if axis < 0 else axis
    return c.reshape(x, (math.prod(dims[:axis]), math.prod(dims[axis:])))


@lowers("Squeeze")
def squeeze(c: Context, n: OnnxNode) -> Lowered:
    x = n.input(0)
    axes = c.listed(n, "axes", 1, "the axes")
    return c.squeeze(x, [i for i, d in enumerate(c.shape(x)) if d == 1] if axes is None else axes)


@lowers("Unsqueeze")
def unsqueeze(c: Context, n: OnnxNode) -> Lowered:
    return c.unsqueeze(n.input(0), c.listed(n, "axes", 1, "the axes") or ())


@lowers("Expand")
def expand(c: Context, n: OnnxNode) -> Lowered:
    x = n.input(0)
    wanted = c.ints(n.input(1), "the shape")
    if any(d < 0 for d in wanted):
        raise NervureError("a shape must hold sizes", where=n.path, why=str(list(wanted)))
    rank = max(len(wanted), c.rank(x))
    pair = [(1,) * (rank - len(s)) + tuple(s) for s in (c.shape(x), wanted)]
    return c.expand(x, [a if b == 1 else b for a, b in zip(*pair, strict=True)])


@lowers("Tile")
def tile(c: Context, n: OnnxNode) -> Lowered:
    x = n.input(0)
    repeats = c.ints(n.input(1), "the repeats")
    return x if all(r == 1 for r in repeats) else c.op("tile", x, repeats=repeats)


@lowers("Transpose")
def transpose(c: Context, n: OnnxNode) -> Lowered:
    x = n.input(0)
    return c.transpose(x, tuple(n.attr("perm", tuple(reversed(range(c.rank(x)))))))


@lowers("ConstantOfShape")
def constant_of_shape(c: Context, n: OnnxNode) -> Lowered:
    dims = c.ints(n.input(0), "the shape")
    if any(d < 0 for d in dims):
        raise NervureError("a shape must hold sizes", where=n.path, why=str(list(dims)))
    value = n.attr("value")
    array = np.zeros(1, np.float32) if value is None else tensor_attribute(c, n, value).reshape(-1)
    return c.filled(dims, array[0], array.dtype.name)


def tensor_attribute(c: Context, n: OnnxNode, tensor: object) -> np.ndarray:
    """A tensor that is an attribute of a node."""
    from onnx import TensorProto

    from .tensors import ExternalData, to_array

    if not isinstance(tensor, TensorProto):
        raise NervureError("an attribute that should be a tensor is none", where=n.path)
    return to_array(tensor, n.path, ExternalData(None))


@lowers("Constant")
def constant(c: Context, n: OnnxNode) -> Lowered:
    if (tensor := n.attr("value")) is not None:
        from .tensors import declared

        value = c.const(tensor_attribute(c, n, tensor))
        c.stored_as[value] = declared(tensor)
        return value
    for name, dtype in (
        ("value_float", "float32"),
        ("value_floats", "float32"),
        ("value_int", "int64"),
        ("value_ints", "int64"),
    ):
        if (number := n.attr(name)) is not None:
            return c.const(number, dtype)
    if (sparse := n.attr("sparse_value")) is not None:
        from .tensors import ExternalData, sparse_to_array

        return c.const(sparse_to_array(sparse, n.path, ExternalData(None)))
    raise Unsupported("constants of text")


@lowers("Range")
def range_(c: Context, n: OnnxNode) -> Lowered:
    start, limit, delta = (c.need(n.input(i), "a bound of Range").reshape(-1)[0] for i in range(3))
    if delta == 0:
        raise NervureError("Range with a step of 0", where=n.path)
    dtype, whole = start.dtype.name, start.dtype.kind in "iu"
    first, step, last = (int(v) if whole else float(v) for v in (start, delta, limit))
    count = max(-(-(last - first) // step) if whole else math.ceil((last - first) / step), 0)
    if count * start.dtype.itemsize > MAX_BYTES:
        raise NervureError(f"Range of {count:.3g} elements", where=n.path, why=f"more than {MAX_BYTES} bytes")
    if count * start.dtype.itemsize <= FOLD_BYTES:
        places = np.arange(int(count), dtype=np.int64 if whole else np.float64)
        return c.const(places * np.asarray(step) + np.asarray(first), dtype)
    line = c.op("iota", shape=(int(count),), axis=0, dtype=dtype)
    return c.op("add", c.op("mul", line, c.scalar(step, dtype)), c.scalar(first, dtype))


@lowers("EyeLike")
def eye_like(c: Context, n: OnnxNode) -> Lowered:
    x = n.input(0)
    rows, columns = c.shape(x)
    dtype = element_type(n.attr("dtype"), "EyeLike") if n.attr("dtype") else c.dtype(x)
    if rows * columns * 8 <= FOLD_BYTES:
        return c.const(np.eye(rows, columns, n.attr("k", 0)), dtype)
    row, column = (c.op("iota", shape=(rows, columns), axis=a, dtype="int64") for a in (0, 1))
    return c.cast(c.op("equal", c.op("add", row, c.scalar(n.attr("k", 0), "int64")), column), dtype)


@lowers("Dropout")
def dropout(c: Context, n: OnnxNode) -> Lowered:
    x: Value = n.input(0)
    training = n.optional(2)
    if training is not None and bool(c.need(training, "training_mode").reshape(-1)[0]):
        ratio = n.optional(1)
        if ratio is None or float(c.need(ratio, "the ratio").reshape(-1)[0]) != 0.0:
            raise Unsupported("training mode drops at random", "Dropout in inference mode")
    if not n.wants(1):
        return x
    mask = c.filled(c.shape(x), 1, "bool" if n.version >= 10 else c.dtype(x))
    return x, mask
