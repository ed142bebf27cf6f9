"""Operators, functions and indexing of symbolic tensors against numpy."""

from __future__ import annotations

import operator

import hypothesis.extra.numpy as hnp
import nervure as nv
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nervure.compiler.interpret import interpret


def traced(function, *arrays):
    """``function`` traced over the arrays' shapes, then interpreted."""
    specs = {f"x{i}": nv.Input(batch_shape=a.shape, dtype=a.dtype) for i, a in enumerate(arrays)}
    names = ", ".join(specs)
    net = nv.network(eval(f"lambda {names}: f({names})", {"f": function}), name="traced", **specs)
    graph = net.to_graph()
    graph.check()
    found = interpret(graph, list(arrays))
    return found[0] if len(found) == 1 else found


def floats(*shape, seed=0, low=-2.0, high=2.0):
    return np.random.default_rng(seed).uniform(low, high, shape).astype(np.float32)


A, B = floats(3, 4), floats(3, 4, seed=1, low=0.5)
INTS = np.array([[7, -7, 3], [-3, 0, 12]], np.int32)
OTHER = np.array([[2, 2, -2], [-5, 4, 5]], np.int32)

BINARY = [
    operator.add,
    operator.sub,
    operator.mul,
    operator.truediv,
    operator.floordiv,
    operator.mod,
    operator.lt,
    operator.le,
    operator.gt,
    operator.ge,
    operator.eq,
    operator.ne,
]


@pytest.mark.parametrize("op", [*BINARY, operator.pow], ids=lambda f: f.__name__)
def test_operators_on_two_floats(op):
    np.testing.assert_allclose(traced(op, abs(A), B), op(abs(A), B), rtol=2e-6)


@pytest.mark.parametrize("op", BINARY, ids=lambda f: f.__name__)
def test_operators_on_integers(op):
    found, want = traced(op, INTS, OTHER), op(INTS, OTHER)
    np.testing.assert_allclose(found, want, rtol=1e-6)
    assert found.dtype == (np.float32 if want.dtype == np.float64 else want.dtype)


@pytest.mark.parametrize("op", [*BINARY, operator.pow], ids=lambda f: f.__name__)
@pytest.mark.parametrize("scalar", [2, 1.5])
def test_operators_with_python_numbers_on_both_sides(op, scalar):
    for f in (lambda x: op(x, scalar), lambda x: op(scalar, x)):
        found, want = traced(f, B), f(B)
        assert found.dtype == want.dtype
        np.testing.assert_allclose(found, want, rtol=2e-6)


def test_operators_on_bools_and_bits():
    p, q = np.array([True, True, False]), np.array([True, False, False])
    for op in (operator.and_, operator.or_, operator.xor, operator.add, operator.mul, operator.eq):
        np.testing.assert_array_equal(traced(op, p, q), op(p, q))
    for op in (operator.and_, operator.or_, operator.xor):
        np.testing.assert_array_equal(traced(op, INTS, OTHER), op(INTS, OTHER))
    np.testing.assert_array_equal(traced(operator.invert, p), ~p)
    np.testing.assert_array_equal(traced(operator.invert, INTS), ~INTS)
    np.testing.assert_array_equal(traced(lambda x: (x << 2) >> 1, INTS), (INTS << 2) >> 1)


def test_unary_operators_and_array_on_the_left():
    np.testing.assert_array_equal(traced(lambda x: -x, A), -A)
    np.testing.assert_array_equal(traced(lambda x: +x, A), A)
    np.testing.assert_array_equal(traced(abs, A), abs(A))
    np.testing.assert_allclose(traced(lambda x: B - x, A), B - A)
    np.testing.assert_allclose(traced(lambda x: B.T @ x, A), B.T @ A, rtol=1e-5)
    np.testing.assert_allclose(traced(lambda x: np.float32(2) * x, A), 2 * A)


def test_numpys_own_functions_are_recorded():
    """np.exp(x) and np.concatenate([x]) mean nv.exp and nv.concatenate."""
    for name in ("reshape", "moveaxis", "stack", "where", "clip", "tile", "einsum"):
        want = SHAPES[name](np, X)
        np.testing.assert_allclose(traced(lambda x, name=name: SHAPES[name](np, x), X), want, rtol=1e-5, atol=1e-6)
    f = lambda x: np.sum(np.exp(x) % 2, axis=1) + np.abs(np.max(x, axis=1))  # noqa: E731
    np.testing.assert_allclose(traced(f, A), f(A), rtol=1e-5)


@pytest.mark.parametrize(
    ("left", "right", "want"),
    [
        ("float32", 2.5, "float32"),
        ("float16", 2.5, "float16"),
        ("float64", 2.5, "float64"),
        ("int8", 3, "int8"),
        ("uint8", 3, "uint8"),
        ("bool", 3, "int64"),
        ("int32", 2.5, "float32"),  # numpy says float64, which only a float64 tensor brings
        ("float32", np.array([1.0]), "float32"),
        ("float32", np.array([1]), "float32"),
        ("int32", np.array([1]), "int64"),
        ("float16", np.array([1], np.float32), "float32"),
        ("float32", np.float64(2), "float32"),
    ],
)
def test_promotion(left, right, want):
    x = np.array([1], left)
    for f in (lambda x: x + right, lambda x: right + x, lambda x: nv.where(x > 0, x, right)):
        assert traced(f, x).dtype.name == want


def test_promotion_of_two_tensors():
    assert traced(operator.add, np.ones(2, np.int8), np.ones(2, np.uint8)).dtype == np.int16
    assert traced(operator.add, np.ones(2, np.int64), np.ones(2, np.float32)).dtype == np.float32
    assert traced(operator.add, np.ones(2, np.float64), np.ones(2, np.float32)).dtype == np.float64


UNARY = [
    np.negative,
    np.abs,
    np.sign,
    np.sqrt,
    np.square,
    np.exp,
    np.expm1,
    np.log,
    np.log1p,
    np.sin,
    np.cos,
    np.tan,
    np.sinh,
    np.cosh,
    np.tanh,
    np.arctan,
    np.arcsinh,
    np.floor,
    np.ceil,
    np.reciprocal,
    np.isnan,
    np.isinf,
]


@pytest.mark.parametrize("name", [f.__name__.replace("absolute", "abs") for f in UNARY])
def test_functions_of_numpys_names(name):
    np.testing.assert_allclose(traced(getattr(nv, name), B), getattr(np, name)(B), rtol=2e-6)
    eager = getattr(nv, name)(B)  # outside of a network, at once
    assert isinstance(eager, np.ndarray)
    np.testing.assert_allclose(eager, getattr(np, name)(B), rtol=2e-6)


@pytest.mark.parametrize("name", ["sum", "mean", "max", "min", "prod", "var", "std", "argmax", "cumsum", "all", "any"])
@pytest.mark.parametrize("axis", [None, 1, -2])
def test_reductions(name, axis):
    x = A > 0 if name in ("all", "any") else A
    want = getattr(np, name)(x, axis=axis)
    np.testing.assert_allclose(traced(lambda t: getattr(nv, name)(t, axis=axis), x), want, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(traced(lambda t: getattr(t, name)(axis=axis), x), want, rtol=1e-5, atol=1e-6)


def test_reductions_keep_axes_and_widen_integers():
    x = floats(2, 3, 4)
    np.testing.assert_allclose(
        traced(lambda t: t.sum((0, 2), keepdims=True), x), x.sum((0, 2), keepdims=True), rtol=1e-5
    )
    np.testing.assert_allclose(traced(lambda t: nv.var(t, 1, ddof=1), x), x.var(1, ddof=1), rtol=1e-5)
    assert traced(nv.sum, INTS).dtype == np.int64
    assert traced(nv.mean, INTS) == pytest.approx(INTS.mean())
    np.testing.assert_allclose(traced(lambda t: nv.logsumexp(t, 1), x), np.log(np.exp(x).sum(1)), rtol=1e-5)
    np.testing.assert_allclose(traced(lambda t: nv.norm(t, 2), x), np.linalg.norm(x, axis=2), rtol=1e-5)


X = floats(2, 3, 4)
SHAPES = {
    "reshape": (lambda m, x: x.reshape(4, -1)),
    "reshape tuple": (lambda m, x: m.reshape(x, (3, 8))),
    "T": (lambda m, x: x.T),
    "transpose": (lambda m, x: x.transpose(2, 0, 1)),
    "transpose function": (lambda m, x: m.transpose(x, (1, 0, 2))),
    "swapaxes": (lambda m, x: x.swapaxes(0, -1)),
    "moveaxis": (lambda m, x: m.moveaxis(x, 0, -1)),
    "moveaxis several": (lambda m, x: m.moveaxis(x, [0, 1], [2, 0])),
    "squeeze": (lambda m, x: m.squeeze(x[:, :1], 1)),
    "expand_dims": (lambda m, x: m.expand_dims(x, (0, 3))),
    "broadcast_to": (lambda m, x: m.broadcast_to(x[:, :1], (5, 2, 3, 4))),
    "concatenate": (lambda m, x: m.concatenate([x, x[:, :1]], axis=1)),
    "stack": (lambda m, x: m.stack([x, x + 1], axis=-1)),
    "split": (lambda m, x: m.split(x, 2, axis=2)[1]),
    "split at": (lambda m, x: m.split(x, [1, 3], axis=2)[1]),
    "pad": (lambda m, x: m.pad(x, ((0, 0), (1, 2), (0, 3)))),
    "pad edge": (lambda m, x: m.pad(x, 2, mode="edge")),
    "tile": (lambda m, x: m.tile(x, (2, 1, 3))),
    "tile wide": (lambda m, x: m.tile(x, (2, 1, 1, 2))),
    "repeat": (lambda m, x: m.repeat(x, 3, axis=1)),
    "flip": (lambda m, x: m.flip(x, (0, 2))),
    "roll": (lambda m, x: m.roll(x, 5, axis=2)),
    "roll back": (lambda m, x: m.roll(x, -1, axis=1)),
    "tril": (lambda m, x: m.tril(x)),
    "triu": (lambda m, x: m.triu(x, 1)),
    "take": (lambda m, x: m.take(x, [[2, 0]], axis=2)),
    "take flat": (lambda m, x: m.take(x, [5, -1])),
    "take_along_axis": (lambda m, x: m.take_along_axis(x, np.array([[[2], [0], [1]]] * 2), axis=2)),
    "sort": (lambda m, x: m.sort(x, axis=1)),
    "argsort": (lambda m, x: m.argsort(x, axis=2)),
    "where": (lambda m, x: m.where(x > 0, x, -1.0)),
    "clip": (lambda m, x: m.clip(x, -0.5, 0.5)),
    "maximum": (lambda m, x: m.maximum(x, 0.1)),
    "zeros_like": (lambda m, x: m.zeros_like(x) + 1),
    "outer": (lambda m, x: m.outer(x[0, 0], x[1, 1])),
    "einsum": (lambda m, x: m.einsum("bij,bkj->bik", x, x)),
    "einsum three": (lambda m, x: m.einsum("bij,kj,b->ik", x, x[0], x[:, 0, 0])),
    "einsum sum": (lambda m, x: m.einsum("bij->i", x)),
    "einsum implicit": (lambda m, x: m.einsum("ij,jk", x[0], x[0].T)),
    "matmul": (lambda m, x: m.matmul(x, x[0].T)),
    "dot": (lambda m, x: m.dot(x[0, 0], x[1, 2])),
    "astype": (lambda m, x: (x * 3).astype("int32")),
    "full": (lambda m, x: x + m.full((4,), 2, "float32")),
    "arange": (lambda m, x: x + m.arange(4).astype("float32")),
}


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_shapes_and_movement(name):
    want = SHAPES[name](np, X)
    found = traced(lambda t: SHAPES[name](nv, t), X)
    assert found.shape == want.shape
    np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-6)


def test_activations():
    x = floats(5, 7, low=-4, high=4)
    sigmoid = 1 / (1 + np.exp(-x.astype(np.float64)))
    softmax = np.exp(x) / np.exp(x).sum(1, keepdims=True)
    known = {
        nv.relu: np.maximum(x, 0),
        nv.relu6: np.clip(x, 0, 6),
        nv.sigmoid: sigmoid,
        nv.silu: x * sigmoid,
        nv.softplus: np.log1p(np.exp(x)),
        nv.softsign: x / (1 + abs(x)),
        nv.mish: x * np.tanh(np.log1p(np.exp(x))),
        nv.hard_sigmoid: np.clip(x / 6 + 0.5, 0, 1),
        nv.hard_swish: x * np.clip(x / 6 + 0.5, 0, 1),
        nv.leaky_relu: np.where(x < 0, 0.01 * x, x),
        nv.elu: np.where(x < 0, np.expm1(x), x),
        nv.selu: 1.0507009873554805 * np.where(x < 0, 1.6732632423543772 * np.expm1(x), x),
        nv.log_sigmoid: np.log(sigmoid),
        nv.softmax: softmax,
        nv.log_softmax: np.log(softmax),
        nv.normalize: x / np.linalg.norm(x, axis=1, keepdims=True),
    }
    for function, want in known.items():
        np.testing.assert_allclose(traced(function, x), want, rtol=3e-5, atol=1e-6, err_msg=function.__name__)


def test_attention_against_its_formula():
    q, k, v = floats(2, 5, 4), floats(2, 6, 4, seed=1), floats(2, 6, 3, seed=2)
    keep = np.arange(5)[:, None] >= np.arange(6)
    scores = np.where(keep, q @ k.swapaxes(1, 2) / 2, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    want = weights / weights.sum(-1, keepdims=True) @ v
    np.testing.assert_allclose(traced(lambda q, k, v: nv.attention(q, k, v, keep), q, k, v), want, rtol=1e-5)
    np.testing.assert_allclose(traced(lambda q, k, v: nv.attention(q, k, v, causal=True), q, k, v), want, rtol=1e-5)


def test_one_hot_topk_iteration_and_lists():
    index = np.array([[0, 3], [2, 1]], np.int64)
    np.testing.assert_array_equal(traced(lambda i: nv.one_hot(i, 4), index), np.eye(4, dtype=np.float32)[index])
    values, where = traced(lambda x: nv.topk(x, 2, axis=1), A)
    np.testing.assert_allclose(values, -np.sort(-A, axis=1)[:, :2])
    np.testing.assert_array_equal(where, np.argsort(-A, axis=1)[:, :2])
    np.testing.assert_allclose(traced(lambda x: sum(row for row in x), A), A.sum(0), rtol=1e-5)
    np.testing.assert_allclose(traced(lambda x: nv.stack([x[0], x[1] * 2]), A), np.stack([A[0], A[1] * 2]))


# -- indexing --------------------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_basic_indexing_is_numpys(data):
    shape = data.draw(hnp.array_shapes(max_dims=3, max_side=5))
    x = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    key = data.draw(hnp.basic_indices(shape, allow_newaxis=True, allow_ellipsis=True))
    want = x[key]
    found = traced(lambda t: t[key] + 0.0, x)
    np.testing.assert_array_equal(found, want)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_indexing_with_one_array_between_slices_and_integers_is_numpys(data):
    shape = data.draw(hnp.array_shapes(min_dims=2, max_dims=4, min_side=1, max_side=4))
    x = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    place = data.draw(st.integers(0, len(shape) - 1))
    key = []
    for axis, size in enumerate(shape):
        if axis == place:
            element = st.integers(-size, size - 1)
            key.append(data.draw(hnp.arrays(np.int64, hnp.array_shapes(max_dims=2, max_side=3), elements=element)))
        else:
            key.append(data.draw(st.one_of(st.slices(size), st.integers(-size, size - 1))))
    want = x[tuple(key)]
    np.testing.assert_array_equal(traced(lambda t: t[tuple(key)] + 0.0, x), want)


@pytest.mark.parametrize(
    "key",
    [
        ([0, 1], [2, 0]),
        ([0, 1], slice(None), [3, 0]),
        (slice(None), [0, 2], [[1], [3]]),
        (None, [1, 0], ..., 2),
        (..., np.array([True, False, True, True])),
        (0, slice(None), [3, 1]),
        (slice(1, None), np.array([[0, 1], [2, 2]])),
        np.array([True, False]),
    ],
    ids=str,
)
def test_indexing_with_arrays_is_numpys(key):
    np.testing.assert_array_equal(traced(lambda t: t[key] + 0.0, X), X[key])


def test_indexing_by_a_computed_tensor():
    np.testing.assert_array_equal(traced(lambda t, i: t[i], X, np.array([1, 0, -1])), X[[1, 0, -1]])
    np.testing.assert_array_equal(
        traced(lambda t: t[:, nv.argmax(t[0, 0])], X.swapaxes(1, 2)), X.swapaxes(1, 2)[:, X[0, :, 0].argmax()]
    )
