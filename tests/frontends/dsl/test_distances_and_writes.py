"""``nv.cdist`` and ``nv.put``: compiled, beside SciPy's and numpy's."""

from __future__ import annotations

from typing import Any

import nervure as nv
import numpy as np
import pytest


def compiled(function: Any, *arrays: np.ndarray) -> np.ndarray:
    inputs = {f"x{i}": nv.Input(batch_shape=a.shape, dtype=a.dtype.name) for i, a in enumerate(arrays)}
    body = {1: lambda x0: function(x0), 2: lambda x0, x1: function(x0, x1), 3: lambda x0, x1, x2: function(x0, x1, x2)}
    return nv.compile(nv.network(body[len(arrays)], name="net", **inputs))(*arrays)


@pytest.mark.parametrize("shapes", [((5, 4), (3, 4)), ((2, 5, 4), (2, 3, 4)), ((6, 1), (6, 1))])
def test_distances_of_rows(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(s, dtype=np.float32) for s in shapes)
    expected = np.linalg.norm(a[..., :, None, :] - b[..., None, :, :], axis=-1)
    np.testing.assert_allclose(compiled(nv.cdist, a, b), expected, atol=2e-5)
    squared = compiled(lambda x, y: nv.cdist(x, y, "sqeuclidean"), a, b)
    np.testing.assert_allclose(squared, expected**2, atol=2e-5)


def test_the_gradient_of_distances_is_that_of_differences_and_zero_for_equal_rows() -> None:
    a = np.array([[0, 0], [3, 4], [0, 0]], np.float32)
    found = compiled(lambda x: nv.grad(nv.sum(nv.cdist(x, x)), x), a)
    away = a[:, None] - a[None]
    length = np.maximum(np.linalg.norm(away, axis=-1, keepdims=True), 1e-9)
    np.testing.assert_allclose(found, 2 * (away / length).sum(axis=1), atol=1e-5)


def test_wrong_distances_are_refused() -> None:
    a = np.zeros((3, 2), np.float32)
    with pytest.raises(nv.NervureError, match="no metric 'cosine'"):
        compiled(lambda x: nv.cdist(x, x, "cosine"), a)
    with pytest.raises(nv.NervureError, match="rows of one length"):
        compiled(nv.cdist, a, np.zeros((3, 4), np.float32))


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_slices_are_replaced(axis: int) -> None:
    rng = np.random.default_rng(1)
    x, at = rng.standard_normal((4, 5, 6), dtype=np.float32), np.array([2, 0], np.int32)
    values = rng.standard_normal(np.take(x, at, axis).shape, dtype=np.float32)
    expected = x.copy()
    np.moveaxis(expected, axis, 0)[at] = np.moveaxis(values, axis, 0)
    np.testing.assert_array_equal(compiled(lambda a, i, v: nv.put(a, i, v, axis), x, at, values), expected)


def test_a_number_goes_to_one_place_and_the_last_of_several_stays() -> None:
    x, one = np.zeros((3, 2), np.float32), np.array(1, np.int32)
    np.testing.assert_array_equal(compiled(lambda a, i: nv.put(a, i, 7), x, one), [[0, 0], [7, 7], [0, 0]])
    rows = np.array([[1, 1], [2, 2], [3, 3]], np.float32)
    twice = np.array([2, 0, 2], np.int32)
    np.testing.assert_array_equal(compiled(nv.put, x, twice, rows), [[2, 2], [0, 0], [3, 3]])


def test_a_row_of_a_variable_is_written_call_by_call() -> None:
    kept = nv.Variable(np.zeros((3, 2)), trainable=False, name="kept")
    count = nv.Variable(np.zeros((), np.int32), trainable=False, name="count")

    @nv.network
    def remember(x: nv.Input(batch_shape=(2,))):
        new = nv.assign(kept, nv.put(kept, nv.mod(count, 3), x))
        nv.assign(count, count + 1)
        return new

    model = nv.compile(remember)
    rows = np.arange(10, dtype=np.float32).reshape(5, 2)
    for row in rows:
        last = model(row)
    np.testing.assert_array_equal(last, rows[[3, 4, 2]])
