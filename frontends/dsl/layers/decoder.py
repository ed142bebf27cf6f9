"""What networks that write text are built of: causal attention with rotary positions and a cache, and the decoder layer
around it. The same layer, over the same weights, sees a whole text at once or goes on with one token by token."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import nn
from .. import shaping as s
from ..elementwise import cos, emit, greater, greater_equal, less_equal, logical_and, sin
from ..index import put
from ..promote import as_tensor
from ..tensor import Tensor, Weight
from ..trace import current, fail
from ..variable import assign
from .attention import MultiHeadAttention, TransformerEncoderLayer, thinned
from .base import expect_rank, whole
from .norm import LayerNorm

_TURN = 2.0**32  # a position's angle is held as a part of a turn in 32 bits, which is exact for every position


class CausalSelfAttention(MultiHeadAttention):
    """Attention of every position to itself and to those before it, in ``num_heads`` heads. The input is [batch, time,
    features]; ``window`` bounds how many positions one looks at, itself included (Beltagy et al. 2020).

    ``rotary`` turns queries and keys by an angle that grows with the position, so that a score depends on how far two
    positions are apart (Su et al. 2021; halves as in Llama): nothing else need say where a token stands.

    ``attention(x, stateful=True)`` goes on with a text: x has its next positions, mostly one, and sees the earlier ones
    by their keys and values. They are states of the artifact, [window, batch, features], a ring in which the newest
    take the place of the oldest: what comes out is what the whole text at once would give there, however long it grows.
    A position is written in place. ``reset()`` starts another text.
    """

    def __init__(
        self,
        num_heads: int,
        *,
        window: int | None = None,
        rotary: bool = True,
        key_dim: int | None = None,
        dropout: float = 0.0,
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
    ) -> None:
        super().__init__(
            num_heads, key_dim=key_dim, dropout=dropout, use_bias=use_bias, kernel_initializer=kernel_initializer
        )
        self.window, self.rotary = None if window is None else whole(window, "window"), rotary

    def build(self, shape: Any) -> None:
        super().build(shape)
        size = self.key_dim or shape[-1] // self.num_heads
        if self.rotary and size % 2:
            raise fail(f"rotary positions turn pairs: expected an even number of features a head, got {size}")

    def call(self, x: Tensor, stateful: bool = False) -> Tensor:  # type: ignore[override]
        expect_rank(x, 3, "batch, time, features")
        steps = x.shape[1]
        if isinstance(steps, str):
            raise fail(f"dimension {str(steps)!r} has no number yet")
        if stateful:
            return self._continued(x, steps)
        q, k, v = (self._split(layer(x)) for layer in (self.query, self.key, self.value))
        angles = as_tensor(_angle(np.arange(steps), q.shape[-1])) if self.rotary else None
        q, k = _turned(q, angles), _turned(k, angles)
        band = None if self.window is None or self.window >= steps else _band(steps, steps, self.window)
        if self.dropout and current().training:
            return self._joined(thinned(q, k, v, None if band is None else as_tensor(band), True, self.dropout))
        return self._joined(nn.attention(q, k, v, band, causal=True))

    # -- going on with a text ----------------------------------------------------------------------------------------

    def _continued(self, x: Tensor, steps: int) -> Tensor:
        window = self.window
        if window is None or steps > window:
            hint = "window= says how many positions are kept"
            raise fail(f"stateful: {steps} positions at once with window={window}", hint=hint)
        position = self._held("position", (), "int32")
        now = as_tensor(position)
        numbers = now + np.arange(steps, dtype=np.int32)
        q, k, v = (self._split(layer(x)) for layer in (self.query, self.key, self.value))
        if self.rotary:
            angles = _angle(numbers, q.shape[-1])
            q, k = _turned(q, angles), _turned(k, angles)
        keys, values = (
            self._held(name, (window, x.shape[0], t.shape[1] * t.shape[3]), x.dtype)
            for name, t in (("keys", k), ("values", v))
        )
        if steps == 1:  # what the new position drives out is what it no longer sees
            both = [self._written(kept, numbers % window, t) for kept, t in ((keys, k), (values, v))]
            seen = s.expand_dims(less_equal(np.arange(window, dtype=np.int32), now), 0)
        else:
            pairs = ((keys, k), (values, v))
            both = [s.concat([self._heads(as_tensor(kept)), t], 2) for kept, t in pairs]
            seen = self._seen(now, numbers, window)
            for kept, t in pairs:
                self._written(kept, numbers % window, t)
        assign(position, now + np.int32(steps))
        return self._joined(nn.attention(q, both[0], both[1], seen))

    def _held(self, name: str, shape: tuple[int, ...], dtype: str) -> Weight:
        return self.add_weight(name, shape, "zeros", trainable=False, dtype=dtype, persistent=False)

    def _heads(self, kept: Tensor) -> Tensor:
        """[positions, batch, heads * size] as [batch, heads, positions, size]."""
        positions, batch, features = kept.shape
        wide = emit("reshape", kept, shape=(positions, batch, self.num_heads, features // self.num_heads))
        return emit("transpose", wide, perm=(1, 2, 0, 3))

    def _written(self, kept: Weight, at: Tensor, new: Tensor) -> Tensor:
        """All that is kept, [batch, heads, window, size], after ``new`` [batch, heads, time, size] has been written."""
        batch, heads, steps, size = new.shape
        rows = emit("reshape", emit("transpose", new, perm=(2, 0, 1, 3)), shape=(steps, batch, heads * size))
        return self._heads(assign(kept, put(kept, at, rows)))

    @staticmethod
    def _seen(now: Tensor, numbers: Tensor, window: int) -> Tensor:
        """bool [time, window + time]: what the new positions see of what was kept and of each other."""
        place = np.arange(window, dtype=np.int32)
        kept = s.expand_dims(now - 1 - (now - 1 - place) % window, 0)  # the position that lies in each place
        old = logical_and(greater_equal(kept, 0), greater(kept, s.expand_dims(numbers, 1) - window))
        steps = numbers.shape[0]
        return s.concat([old, as_tensor(_band(steps, steps, window))], 1)


class TransformerDecoderLayer(TransformerEncoderLayer):
    """Causal self-attention and a feed-forward part, each with a residual and a layer norm: what GPT and its like are
    stacked of. The input is [batch, time, d_model]; arguments are those of ``TransformerEncoderLayer`` (so are the
    children's names) and ``window`` and ``rotary`` of ``CausalSelfAttention``.

    With ``memory`` [batch, any, d_model], the output of an encoder, it is the decoder of Vaswani et al. (2017): what is
    between the two is an attention to the memory, ``multihead_attn``, with a norm ``norm3`` of its own.

    ``layer(x, stateful=True)`` goes on with a text; see ``CausalSelfAttention``. A network for whole texts and one for
    the next token share their layers, and become entry points of one artifact::

        blocks = [nv.layers.TransformerDecoderLayer(64, 4, 256, norm_first=True, window=128) for _ in range(3)]
    """

    def __init__(
        self,
        d_model: int,
        nhead: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: Any = "relu",
        layer_norm_eps: float = 1e-5,
        batch_first: bool = True,
        norm_first: bool = False,
        bias: bool = True,
        window: int | None = None,
        rotary: bool = True,
    ) -> None:
        super().__init__(
            d_model, nhead, dim_feedforward, dropout, activation, layer_norm_eps, batch_first, norm_first, bias
        )
        size = d_model // nhead
        self.self_attn = CausalSelfAttention(
            nhead, window=window, rotary=rotary, key_dim=size, dropout=dropout, use_bias=bias
        )
        self.multihead_attn = MultiHeadAttention(nhead, key_dim=size, dropout=dropout, use_bias=bias)
        self.norm3 = LayerNorm(d_model, layer_norm_eps, bias=bias)

    def call(self, x: Tensor, memory: Any = None, stateful: bool = False) -> Tensor:  # type: ignore[override]
        self._expect(x)
        x = self._around(x, self.norm1, lambda y: self.dropout(self.self_attn(y, stateful=stateful)))
        if memory is not None:
            x = self._around(x, self.norm3, lambda y: self.dropout(self.multihead_attn(y, memory)))
        return self._around(x, self.norm2, self._feed)


# -- positions ---------------------------------------------------------------------------------------------------------


def _band(queries: int, keys: int, window: int) -> np.ndarray:
    """bool [queries, keys]: True where a key is the query's own or one of the ``window - 1`` before it."""
    apart = np.arange(queries)[:, None] - np.arange(keys)
    return (apart >= 0) & (apart < window)


def _angle(positions: Any, size: int, base: float = 10000.0) -> Any:
    """Angles [time, size / 2] of int32 positions, known or computed: their product with the rate in parts of a turn,
    modulo one turn. The lowest 8 of 32 bits are beyond float32."""
    rates = np.round(_TURN / (2 * np.pi) * base ** (-np.arange(0, size, 2) / size)).astype(np.uint32)
    if isinstance(positions, np.ndarray):
        known = positions.astype(np.uint32)[:, None] * rates >> np.uint32(8)
        return known.astype(np.float32) * np.float32(2 * np.pi / 2**24)
    turns = emit("right_shift", s.expand_dims(as_tensor(positions, "uint32"), 1) * rates, as_tensor(np.uint32(8)))
    return as_tensor(as_tensor(turns, "int32"), "float32") * np.float32(2 * np.pi / 2**24)


def _turned(x: Tensor, angles: Tensor | None) -> Tensor:
    """x [batch, heads, time, size], its halves as the two coordinates of points that are turned by [time, size / 2]."""
    if angles is None:
        return x
    c, si = as_tensor(cos(angles), x.dtype), as_tensor(sin(angles), x.dtype)
    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]
    return s.concat([a * c - b * si, a * si + b * c], -1)


__all__ = ["CausalSelfAttention", "TransformerDecoderLayer"]
