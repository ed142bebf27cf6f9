"""Makes ``tests/models.py`` importable under pytest's importlib mode, in a checkout of any name; samples of cases."""

from __future__ import annotations

import signal
import sys
from collections import Counter
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))


class Checkout:
    """The root of the checkout is the package ``nervure``, but pytest would import it by its folder's name."""

    def pytest_collect_directory(self, path: Path, parent: pytest.Collector) -> pytest.Collector | None:
        return pytest.Dir.from_parent(parent, path=path) if path == HERE.parent else None


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Checkout())


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--every-case", action="store_true", help="all slow cases of tests that are marked as sampled")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of the slow cases of a test that is marked ``sampled(n)`` one in n runs, the same ones each time."""
    if config.getoption("--every-case"):
        return
    seen: Counter[str] = Counter()
    kept, left = [], []
    for item in items:
        mark = item.get_closest_marker("sampled")
        if mark is None or item.get_closest_marker("slow") is None:
            kept.append(item)
            continue
        name, each = f"{item.path}::{getattr(item, 'originalname', item.name)}", mark.args[0]
        turn, place = divmod(seen[name], each)
        (kept if place == turn % each else left).append(item)  # not the same parameter each time
        seen[name] += 1
    if left:
        config.hook.pytest_deselected(items=left)
        items[:] = kept


# A shell's background job inherits that SIGINT is ignored, and would pass that on to the programs that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
