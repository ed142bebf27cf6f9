"""Mathematical functions on scalars and on all lanes of a vector."""

from __future__ import annotations

from tvm import tirx

from .tir import Builder, Expr, as_dtype, constant, dtype_of, lanes_of, like, maximum, minimum, select


def floor(k: Builder, x: Expr) -> Expr:
    return tirx.floor(x)


def trunc(k: Builder, x: Expr) -> Expr:
    return tirx.trunc(x)


def round_even(k: Builder, x: Expr) -> Expr:
    return tirx.nearbyint(x)


def absolute(k: Builder, x: Expr) -> Expr:
    return tirx.abs(x)


def gelu(k: Builder, x: Expr, approximate: str) -> Expr:
    if approximate == "tanh":
        inner = (x + x * x * x * like(0.044715, x)) * like(0.7978845608028654, x)
        return x * like(0.5, x) * (like(1, x) + tanh(k, inner))
    return x * like(0.5, x) * (like(1, x) + erf(k, x * like(0.7071067811865476, x)))


def elu(k: Builder, x: Expr, alpha: float) -> Expr:
    return select(x < like(0, x), expm1(k, x) * like(alpha, x), x)


def sigmoid(k: Builder, x: Expr) -> Expr:
    return like(1, x) / (like(1, x) + exp(k, x * like(-1, x)))


def silu(k: Builder, x: Expr) -> Expr:
    return x * sigmoid(k, x)


def expm1(k: Builder, x: Expr) -> Expr:
    return exp(k, x) - like(1, x)


def tanh(k: Builder, x: Expr) -> Expr:
    return tirx.tanh(x)


def exp(k: Builder, x: Expr) -> Expr:
    return tirx.exp(x)


def erf(k: Builder, x: Expr) -> Expr:
    return tirx.erf(x)


def sqrt(k: Builder, x: Expr) -> Expr:
    return tirx.sqrt(x)


def rsqrt(k: Builder, x: Expr) -> Expr:
    return like(1, x) / tirx.sqrt(x)
