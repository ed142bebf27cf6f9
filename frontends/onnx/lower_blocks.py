"""Weights in blocks as ONNX Runtime's contributed operators have them: ``dequantize`` with a scale for each block."""

from __future__ import annotations

import numpy as np

from ...compiler.ir import Value
from ...errors import NervureError
from .context import Context, OnnxNode, Unsupported
from .lower_quant import MICROSOFT, checked_scale
from .registry import Lowered, lowers

BITS = (4, 8)


def _bits(n: OnnxNode) -> int:
    bits = int(n.attr("bits", 4))
    if bits not in BITS:
        raise Unsupported(f"{n.op_type} with {bits} bits", "4 or 8 bits")
    return bits


def _block(n: OnnxNode) -> int:
    size = int(n.attr("block_size", 0))
    if size < 1:
        raise NervureError(f"a block size of {size}", where=n.path, hint="ONNX Runtime has 16, 32, 64, 128 and 256")
    return size


def unpacked(packed: np.ndarray, bits: int, count: int) -> np.ndarray:
    """Bytes along the last axis as integers, the lower half of a byte first, ``count`` of them."""
    if bits == 8:
        return packed[..., :count]
    halves = np.stack([packed & 15, packed >> 4], axis=-1)
    return np.ascontiguousarray(halves.reshape(*packed.shape[:-1], -1)[..., :count])


def _sized(n: OnnxNode, what: str, array: np.ndarray, count: int) -> np.ndarray:
    if array.size != count:
        raise NervureError(f"{what} have {array.size} elements; {count} are needed", where=n.path)
    return array


def _centered(codes: np.ndarray, zero: np.ndarray | None, bits: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Unsigned integers whose zero point is the middle of their range as signed ones without a zero point."""
    middle = 1 << (bits - 1)
    if zero is None or bool((zero == middle).all()):
        return (codes.astype(np.int16) - middle).astype(np.int8), None
    return codes, zero


@lowers("MatMulNBits", domain=MICROSOFT)
def matmul_n_bits(c: Context, n: OnnxNode) -> Lowered:
    """``A B^T`` for B [N, K], packed block by block; scales lie [N, blocks]."""
    a, scale = n.input(0), checked_scale(c, n, n.input(2))
    if n.optional(4) is not None:
        raise Unsupported("MatMulNBits with g_idx", "weights whose blocks are neighbours")
    bits, size, rows, columns = _bits(n), _block(n), int(n.attr("K", 0)), int(n.attr("N", 0))
    if c.shape(a)[-1] != rows:
        raise NervureError(f"K is {rows}, the last axis of A {c.shape(a)[-1]}", where=n.path)
    blocks = -(-rows // size)
    packed = c.need(n.input(1), "the packed weights of MatMulNBits")
    whole = _sized(n, "the packed weights", packed, columns * blocks * size * bits // 8)
    codes = unpacked(whole.reshape(columns, -1), bits, rows)
    scales = _sized(n, "the scales", c.need(scale, "the scales of MatMulNBits"), columns * blocks)
    zero = None if n.optional(3) is None else c.need(n.optional(3), "the zero points of MatMulNBits")
    if zero is not None and zero.dtype != np.uint8:
        raise Unsupported(f"MatMulNBits with zero points of type {zero.dtype}", "packed zero points")
    if zero is not None:
        bytes_each = -(-blocks * bits // 8)
        zero = unpacked(_sized(n, "the zero points", zero, columns * bytes_each).reshape(columns, -1), bits, blocks)
    codes, zero = _centered(codes, zero, bits)
    point = None if zero is None else c.const(zero)
    held = c.const(scales.reshape(columns, blocks).astype(np.float32))
    block = (1, size) if blocks > 1 else None
    w = c.op("dequantize", c.const(codes), held, point, block=block)
    y = c.op("matmul", c.cast(a, "float32"), c.transpose(w, (1, 0)))
    if n.optional(5) is not None:
        y = c.op("add", y, c.cast(n.input(5), "float32"))
    return c.cast(y, c.dtype(a))


@lowers("GatherBlockQuantized", domain=MICROSOFT)
def gather_block_quantized(c: Context, n: OnnxNode) -> Lowered:
    """Slices of a table of integers, as floats; bytes hold two along the last axis where ``bits`` says 4."""
    table, indices, scale, zero = n.input(0), n.input(1), checked_scale(c, n, n.input(2)), n.optional(3)
    bits, size = _bits(n), _block(n)
    axis = c.axis(n.attr("gather_axis", 0), c.rank(table))
    blocked = c.axis(n.attr("quantize_axis", 1), c.rank(table))
    codes = c.need(table, "the table of GatherBlockQuantized")
    points = None if zero is None else c.need(zero, "the zero points of GatherBlockQuantized")
    if c.stored_as.get(table) in (None, "UINT8") and codes.dtype == np.uint8:
        codes = unpacked(codes, bits, codes.shape[-1] * 8 // bits)
        if points is not None:
            points = unpacked(points, bits, c.shape(scale)[-1])
        codes, points = _centered(codes, points, bits)
    blocks = c.shape(scale)[blocked]
    if blocks != -(-codes.shape[blocked] // size):
        raise NervureError(
            f"the scales have {blocks} blocks along axis {blocked}",
            where=n.path,
            why=f"the table has {codes.shape[blocked]} elements there, in blocks of {size}",
        )
    held = c.const(c.need(scale, "the scales of GatherBlockQuantized").astype(np.float32))
    point = None if points is None or not points.any() else c.const(points.astype(codes.dtype))
    block = (blocked, size) if blocks > 1 else None
    w: Value = c.op("dequantize", c.const(codes), held, point, block=block)
    return c.cast(c.op("gather", w, indices, axis=axis), c.dtype(scale))
