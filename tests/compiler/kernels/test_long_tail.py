"""Templates of the long tail against the op table's references: every sample case, dense and in other memory orders."""

from __future__ import annotations

import pytest
from harness import cases, channels_last, check_region, region_of, sample

MOVES = ("concat", "pad", "tile", "gather", "gather_elements", "gather_nd", "one_hot")
WINDOWS = ("max_pool", "avg_pool")


def reverse(rank):
    return tuple(reversed(range(rank)))


def last_channels(rank):
    return channels_last(rank) if rank > 2 else tuple(range(rank))


ORDERS = {"dense": (None, 0), "channels_last": (last_channels, 3), "reversed": (reverse, 1)}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("op", "case"), cases(*MOVES, *WINDOWS))
def test_cases(op, case, order):
    chosen, pad = ORDERS[order]
    region, arrays = region_of(op, sample(case), case.attrs, order=chosen, pad=pad)
    check_region(region, arrays)
