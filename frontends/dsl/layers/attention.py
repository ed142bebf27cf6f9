"""Attention and what transformers are built of. ``MultiHeadAttention`` is Keras's, ``TransformerEncoderLayer``
PyTorch's. A bool mask is True where a position may be looked at; a float mask is added to the scores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from .. import nn
from .. import shaping as s
from ..elementwise import emit, maximum, where
from ..promote import as_float, as_tensor
from ..tensor import Tensor
from ..trace import current, fail
from .base import Layer, expect_rank, whole
from .conv import Conv2d
from .core import Dense
from .dropout import Dropout, dropped, fraction
from .norm import LayerNorm

_HIDDEN = -1e30


class MultiHeadAttention(Layer):
    """Attention in ``num_heads`` heads of ``key_dim`` (Vaswani et al. 2017), called on (query, value, key) as Keras's:
    the value is the query and the key the value unless given. Inputs: [batch, time, features].

    ``key_dim`` is the query's features over ``num_heads`` unless given. The children ``query``, ``key``, ``value`` and
    ``output`` are dense layers. With ``return_attention_scores`` the call also returns how much each query looked at
    each key, [batch, heads, queries, keys].
    """

    ALIASES: ClassVar = {"bias": "use_bias"}

    def __init__(
        self,
        num_heads: int,
        *,
        key_dim: int | None = None,
        value_dim: int | None = None,
        output_shape: int | None = None,
        dropout: float = 0.0,
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
    ) -> None:
        self.num_heads = whole(num_heads, "num_heads")
        self.key_dim = None if key_dim is None else whole(key_dim, "key_dim")
        self.value_dim = None if value_dim is None else whole(value_dim, "value_dim")
        self.output_shape, self.use_bias, self.dropout = output_shape, use_bias, fraction(dropout)
        self.kernel_initializer = kernel_initializer

    def build(self, shape: Any) -> None:
        if len(shape) != 3:
            raise fail(f"expected a query [batch, time, features], got {list(shape)}")
        features = shape[-1]
        if self.key_dim is None and features % self.num_heads:
            raise fail(f"num_heads: expected a divisor of {features} features, got {self.num_heads}")
        key_dim = self.key_dim or features // self.num_heads
        value_dim = self.value_dim or key_dim
        self.query = self._dense(self.num_heads * key_dim)
        self.key = self._dense(self.num_heads * key_dim)
        self.value = self._dense(self.num_heads * value_dim)
        self.output = self._dense(self.output_shape or features)

    def _dense(self, units: int) -> Dense:
        return Dense(units, use_bias=self.use_bias, kernel_initializer=self.kernel_initializer)

    def call(
        self,
        query: Tensor,
        value: Any = None,
        key: Any = None,
        attention_mask: Any = None,
        use_causal_mask: bool = False,
        return_attention_scores: bool = False,
    ) -> Any:
        value = query if value is None else as_tensor(value)
        key = value if key is None else as_tensor(key)
        for tensor in (query, value, key):
            expect_rank(tensor, 3, "batch, time, features")
        q, k, v = (self._split(p) for p in (self.query(query), self.key(key), self.value(value)))
        mask = None if attention_mask is None else as_tensor(attention_mask)
        if mask is not None and mask.ndim == 3:
            mask = s.expand_dims(mask, 1)
        if return_attention_scores:
            weights = probabilities(q, k, mask, use_causal_mask)
            return self._joined(emit("matmul", dropped(weights, self.dropout), v)), weights
        if self.dropout and current().training:
            return self._joined(thinned(q, k, v, mask, use_causal_mask, self.dropout))
        return self._joined(nn.attention(q, k, v, mask, causal=use_causal_mask))

    def _joined(self, y: Tensor) -> Tensor:
        """The output of what the heads have found, [batch, heads, time, size]."""
        y = emit("transpose", y, perm=(0, 2, 1, 3))
        batch, steps, count, size = y.shape
        return self.output(emit("reshape", y, shape=s.sizes((batch, steps, count * size))))  # type: ignore[no-any-return]

    def _split(self, x: Tensor) -> Tensor:
        """[batch, time, heads * size] as [batch, heads, time, size]."""
        batch, steps, features = x.shape
        wide = emit("reshape", x, shape=s.sizes((batch, steps, self.num_heads, features // self.num_heads)))
        return emit("transpose", wide, perm=(0, 2, 1, 3))


def thinned(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, rate: float) -> Tensor:
    """Attention that drops ``rate`` of its probabilities."""
    return emit("matmul", dropped(probabilities(q, k, mask, causal), rate), v)


def probabilities(q: Tensor, k: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """How much each query looks at each key, [batch, heads, queries, keys]. Masked scores are large and negative, not
    -inf: the row of a query that may look at nothing stays finite."""
    scores = emit("matmul", q, emit("transpose", k, perm=(0, 1, 3, 2))) * q.shape[-1] ** -0.5
    if mask is not None:
        scores = where(mask, scores, _HIDDEN) if mask.dtype == "bool" else scores + maximum(mask, _HIDDEN)
    if causal:
        scores = where(np.tri(*scores.shape[-2:], dtype=np.bool_), scores, _HIDDEN)
    weights = emit("softmax", scores, axis=3)
    if mask is not None and mask.dtype == "bool":
        weights = where(mask, weights, 0)
    return weights


class TransformerEncoderLayer(Layer):
    """Self-attention and a feed-forward part, each with a residual and a layer norm (Vaswani et al. 2017; PyTorch's
    arguments, defaults and children's names). The input is [batch, time, d_model].

    Called on (src, mask): the mask is True where a position may be looked at. With ``return_attention_scores`` it
    returns how much each position looked at each other one too, [batch, heads, time, time].
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
    ) -> None:
        if whole(d_model, "d_model") % whole(nhead, "nhead"):
            raise fail(f"nhead: expected a divisor of d_model {d_model}, got {nhead}")
        if not batch_first:
            raise fail("batch_first=False is not supported", hint="give inputs as [batch, time, features]")
        self.d_model, self.norm_first = d_model, norm_first
        self.self_attn = MultiHeadAttention(nhead, key_dim=d_model // nhead, dropout=dropout, use_bias=bias)
        self.linear1 = Dense(dim_feedforward, use_bias=bias)
        self.linear2 = Dense(d_model, use_bias=bias)
        self.norm1 = LayerNorm(d_model, layer_norm_eps, bias=bias)
        self.norm2 = LayerNorm(d_model, layer_norm_eps, bias=bias)
        self.dropout = Dropout(dropout)
        self.activation = nn.activation(activation)

    def call(
        self, src: Tensor, mask: Any = None, is_causal: bool = False, return_attention_scores: bool = False
    ) -> Any:
        self._expect(src)
        scores: list[Tensor] = []

        def attend(x: Tensor) -> Any:
            found = self.self_attn(x, None, None, mask, is_causal, return_attention_scores)
            y, *rest = found if return_attention_scores else (found,)
            scores.extend(rest)
            return self.dropout(y)

        x = self._around(self._around(src, self.norm1, attend), self.norm2, self._feed)
        return (x, scores[0]) if return_attention_scores else x

    def _expect(self, x: Tensor) -> None:
        expect_rank(x, 3, "batch, time, features")
        if x.shape[-1] != self.d_model:
            raise fail(f"expected {self.d_model} features on the last axis, got {list(x.shape)}")

    def _around(self, x: Tensor, norm: LayerNorm, part: Callable[[Tensor], Any]) -> Tensor:
        """A part with its residual, the norm in front or behind."""
        found: Tensor = x + part(norm(x)) if self.norm_first else norm(x + part(x))
        return found

    def _feed(self, x: Tensor) -> Tensor:
        hidden = self.linear1(x)
        hidden = hidden if self.activation is None else self.activation(hidden)
        return self.dropout(self.linear2(self.dropout(hidden)))  # type: ignore[no-any-return]


class PositionalEncoding(Layer):
    """The input [batch, time, features] plus sines and cosines of the position (Vaswani et al. 2017)."""

    def call(self, x: Tensor) -> Tensor:
        expect_rank(x, 3, "batch, time, features")
        steps, features = x.shape[1:]
        if isinstance(steps, str):
            raise fail(f"dimension {str(steps)!r} has no number yet")
        rates = 10000.0 ** (-(np.arange(features) // 2 * 2) / features)
        angles = np.arange(steps)[:, None] * rates
        table = np.where(np.arange(features) % 2, np.cos(angles), np.sin(angles)).astype(np.float32)
        return as_float(x) + table  # type: ignore[no-any-return]


class PositionEmbedding(Layer):
    """The input [batch, time, features] plus a learned row for each position; ``weight`` [length, features]."""

    ALIASES: ClassVar = {"sequence_length": "length"}

    def __init__(self, length: int, initializer: Any = "glorot_uniform") -> None:
        self.length, self.initializer = whole(length, "length"), initializer

    def build(self, shape: Any) -> None:
        self.weight = self.add_weight("weight", (self.length, shape[-1]), self.initializer)

    def call(self, x: Tensor) -> Tensor:
        expect_rank(x, 3, "batch, time, features")
        steps = x.shape[1]
        if isinstance(steps, str) or steps > self.length:
            raise fail(f"expected at most {self.length} steps, got {list(x.shape)}")
        return x + as_tensor(self.weight, x.dtype)[:steps]


class PatchEmbedding(Layer):
    """A picture [batch, channels, height, width] as a sequence [batch, patches, dim]: squares of ``patch_size`` pixels,
    row by row, each by one linear map, ``projection`` (Dosovitskiy et al. 2021). Pixels that fill no square are left
    out. With ``class_token`` a learned row of that name stands in front, where a network may gather what it finds.
    """

    ALIASES: ClassVar = {"embed_dim": "dim", "hidden_dim": "dim"}

    def __init__(self, patch_size: int, dim: int, class_token: bool = False) -> None:
        self.patch_size, self.dim = whole(patch_size, "patch_size"), whole(dim, "dim")
        self.projection = Conv2d(self.dim, self.patch_size, strides=self.patch_size)
        self.with_token = class_token

    def build(self, shape: Any) -> None:
        self.class_token = self.add_weight("class_token", (1, 1, self.dim), "zeros") if self.with_token else None

    def call(self, x: Tensor) -> Tensor:
        expect_rank(x, 4, "batch, channels, height, width")
        y = s.transpose(s.flatten(self.projection(x), 2), 0, 2, 1)
        if self.class_token is None:
            return y
        token = s.broadcast_to(as_tensor(self.class_token, y.dtype), y.shape[0], 1, self.dim)
        return s.concat([token, y], 1)


__all__ = ["MultiHeadAttention", "PatchEmbedding", "PositionEmbedding", "PositionalEncoding", "TransformerEncoderLayer"]
