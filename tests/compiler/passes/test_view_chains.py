"""The fewest steps of a view chain do what the chain did, over every small chain."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np
import pytest
from nervure.compiler.passes.views import Step, shortest


def apply(x: np.ndarray, steps: list[Step]) -> np.ndarray:
    for kind, values in steps:
        x = x.reshape(values) if kind == "reshape" else x.transpose(values)
    return x


def shapes(size: int, rank: int) -> Iterator[tuple[int, ...]]:
    if rank == 1:
        yield (size,)
        return
    for first in (d for d in range(1, size + 1) if size % d == 0):
        for rest in shapes(size // first, rank - 1):
            yield (first, *rest)


@pytest.mark.parametrize("size", [8, 12])
def test_every_reshape_transpose_reshape(size: int) -> None:
    forms = [s for rank in (1, 2, 3) for s in shapes(size, rank)]
    for source, middle in itertools.product(forms, forms):
        if len(middle) < 2:
            continue
        for perm in itertools.permutations(range(len(middle))):
            moved = tuple(middle[p] for p in perm)
            for target in forms:
                steps: list[Step] = [("reshape", middle), ("transpose", perm), ("reshape", target)]
                found = shortest(source, steps, target)
                if found is not None:
                    x = np.arange(size).reshape(source)
                    assert np.array_equal(apply(x, found), x.reshape(middle).transpose(perm).reshape(target)), (
                        source,
                        steps,
                        found,
                        moved,
                    )


def test_random_long_chains() -> None:
    random = np.random.default_rng(5)
    known = 0
    for _ in range(4000):
        size = int(random.choice([16, 24, 36, 64]))
        forms = [s for rank in (1, 2, 3, 4) for s in shapes(size, rank)]
        source = forms[random.integers(len(forms))]
        shape, steps = source, []
        for _ in range(int(random.integers(1, 6))):
            if random.random() < 0.5:
                shape = forms[random.integers(len(forms))]
                steps.append(("reshape", shape))
            else:
                perm = tuple(int(p) for p in random.permutation(len(shape)))
                shape = tuple(shape[p] for p in perm)
                steps.append(("transpose", perm))
        found = shortest(source, steps, shape)
        if found is not None:
            known += 1
            x = np.arange(math.prod(source)).reshape(source)
            assert np.array_equal(apply(x, found), apply(x, steps)), (source, steps, found)
    assert known > 1000
