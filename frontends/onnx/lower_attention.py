"""Attention and RotaryEmbedding of the newest opsets."""

from __future__ import annotations

import math

from ...compiler.ir import Value
from .context import Context, OnnxNode
from .registry import Lowered, lowers


def _heads(c: Context, x: Value, heads: int) -> Value:
    """[B, S, heads * E] -> [B, heads, S, E]; rank 4 stays."""
    if c.rank(x) == 4:
        return x
    batch, steps, width = c.shape(x)
    return c.transpose(c.reshape(x, (batch, steps, heads, width // heads)), (0, 2, 1, 3))


def _repeated(c: Context, x: Value, heads: int) -> Value:
    """Keys or values shared by groups of query heads, one for each of ``heads``."""
    batch, own, steps, width = c.shape(x)
    wide = c.expand(c.reshape(x, (batch, own, 1, steps, width)), (batch, own, heads // own, steps, width))
    return c.reshape(wide, (batch, heads, steps, width))


@lowers("Attention")
def attention(c: Context, n: OnnxNode) -> Lowered:
    q = _heads(c, n.input(0), n.attr("q_num_heads", 1))
    k, v = (_heads(c, n.input(i), n.attr("kv_num_heads", 1)) for i in (1, 2))
    past = n.optional(4)
    if past is not None:
        k, v = c.concat([past, k], 2), c.concat([n.input(5), v], 2)
    present = [k, v]
    heads, steps, width = c.shape(q)[1:]
    k, v = _repeated(c, k, heads), _repeated(c, v, heads)
    scale, softcap = n.attr("scale", 0.0) or 1.0 / math.sqrt(width), float(n.attr("softcap", 0.0))
    mask, causal = _mask(c, n, q, c.shape(k)[2])
    if n.wants(3):
        y, shown = _spelled_out(c, n, (q, k, v), mask, scale, softcap)
    else:
        y, shown = c.op("attention", q, k, v, mask, scale=float(scale), causal=causal, softcap=softcap), q
    if c.rank(n.input(0)) == 3:
        y = c.reshape(c.transpose(y, (0, 2, 1, 3)), (c.shape(y)[0], steps, heads * c.shape(y)[3]))
    return [y, *present, shown][: max(len(n.outputs), 1)]


def _mask(c: Context, n: OnnxNode, q: Value, keys: int) -> tuple[Value | None, bool]:
    """The mask (bool, or float to be added) and whether the plain causal rule is left to the operator."""
    steps = c.shape(q)[2]
    mask = _given_mask(c, n, keys, c.dtype(q))
    causal, valid = bool(n.attr("is_causal", 0)), n.optional(6)
    left, right = n.attr("left_window_size", -1), n.attr("right_window_size", -1)
    past = c.shape(n.input(4))[2] if n.optional(4) is not None else 0
    if valid is None and past == 0 and left < 0 and right < 0 and not n.wants(3):
        return mask, causal
    if valid is None:
        offset = c.scalar(past, "int64")
    else:  # the valid keys, one number a batch row; the queries are the last of them
        valid = c.reshape(c.cast(valid, "int64"), (*c.shape(valid), 1, 1, 1))
        offset = c.op("sub", valid, c.scalar(steps, "int64"))
    allowed = _window(c, (steps, keys), offset, left, 0 if causal else right)
    if valid is not None:
        allowed = _both(c, allowed, c.op("less", c.op("iota", shape=(steps, keys), axis=1, dtype="int64"), valid))
    return _joined(c, mask, allowed), False


def _window(c: Context, shape: tuple[int, int], offset: Value, left: int, right: int) -> Value | None:
    """Which of the keys (axis 1) each query (axis 0, at ``offset``) sees; -1 leaves a side open."""
    allowed = None
    key = c.op("iota", shape=shape, axis=1, dtype="int64")
    query = c.op("add", c.op("iota", shape=shape, axis=0, dtype="int64"), offset)
    if right >= 0:
        allowed = c.op("less_equal", key, c.op("add", query, c.scalar(right, "int64")))
    if left >= 0:
        allowed = _both(c, allowed, c.op("greater_equal", key, c.op("sub", query, c.scalar(left, "int64"))))
    return allowed


def _both(c: Context, a: Value | None, b: Value) -> Value:
    return b if a is None else c.op("logical_and", a, b)


def _given_mask(c: Context, n: OnnxNode, keys: int, dtype: str) -> Value | None:
    mask = n.optional(3)
    if mask is None:
        return None
    flags = c.dtype(mask) == "bool"
    if not flags:
        mask = c.cast(mask, dtype)
    have = c.shape(mask)[-1]
    if have not in (1, keys):  # a short mask hides the keys behind its end
        pads = (0,) * (2 * c.rank(mask) - 1) + (keys - have,)
        wide = c.cast(mask, "uint8") if flags else mask
        wide = c.op("pad", wide, pads=pads, mode="constant", value=0 if flags else -math.inf)
        mask = c.cast(wide, "bool") if flags else wide
    return mask


def _joined(c: Context, mask: Value | None, allowed: Value | None) -> Value | None:
    if mask is None or allowed is None:
        return mask if allowed is None else allowed
    if c.dtype(mask) == "bool":
        return c.op("logical_and", mask, allowed)
    return c.op("where", allowed, mask, c.like(-math.inf, mask))


def _spelled_out(
    c: Context, n: OnnxNode, qkv: tuple[Value, Value, Value], mask: Value | None, scale: float, softcap: float
) -> tuple[Value, Value]:
    """Attention step by step, because the file asks for one of the scores between: (result, scores)."""
    q, k, v = qkv
    scores = c.op("matmul", q, c.transpose(k, (0, 1, 3, 2)))
    scores = c.op("mul", scores, c.like(scale, scores))
    stages = [scores]
    if softcap:
        bound = c.like(softcap, scores)
        scores = c.op("mul", bound, c.op("tanh", c.op("div", scores, bound)))
    stages.append(scores)
    if mask is not None and c.dtype(mask) == "bool":
        scores = c.op("where", mask, scores, c.like(-math.inf, scores))
    elif mask is not None:
        scores = c.op("add", scores, mask)
    stages.append(scores)
    lowest = c.reduce("max", scores, (3,))
    blind = c.op("equal", lowest, c.like(-math.inf, scores))
    weights = c.op("where", blind, c.like(0, scores), c.op("softmax", scores, axis=3))
    stages.append(weights)
    return c.op("matmul", weights, v), stages[n.attr("qk_matmul_output_mode", 0)]


@lowers("RotaryEmbedding")
def rotary_embedding(c: Context, n: OnnxNode) -> Lowered:
    """Pairs of channels turned by the angle of their place; the channels behind ``rotary_embedding_dim`` stay."""
    x, cos, sin, places = n.input(0), n.input(1), n.input(2), n.optional(3)
    y = _heads(c, x, n.attr("num_heads", 0) or 1)
    batch, heads, steps, width = c.shape(y)
    turned = n.attr("rotary_embedding_dim", 0) or width
    if places is not None:
        cos, sin = (c.op("gather", t, places, axis=0) for t in (cos, sin))
    cos, sin = (c.reshape(t, (c.shape(t)[0], 1, steps, turned // 2)) for t in (cos, sin))
    head, tail = c.slice(y, 3, 0, turned), c.slice(y, 3, turned, width) if turned < width else None
    if n.attr("interleaved", 0):
        a, b = c.slice(head, 3, 0, turned, 2), c.slice(head, 3, 1, turned, 2)
    else:
        a, b = c.slice(head, 3, 0, turned // 2), c.slice(head, 3, turned // 2, turned)
    real = c.op("sub", c.op("mul", cos, a), c.op("mul", sin, b))
    imaginary = c.op("add", c.op("mul", sin, a), c.op("mul", cos, b))
    if n.attr("interleaved", 0):
        pair = c.concat([c.unsqueeze(real, [4]), c.unsqueeze(imaginary, [4])], 4)
        head = c.reshape(pair, (batch, heads, steps, turned))
    else:
        head = c.concat([real, imaginary], 3)
    y = head if tail is None else c.concat([head, tail], 3)
    return y if c.rank(x) == 4 else c.reshape(c.transpose(y, (0, 2, 1, 3)), c.shape(x))
