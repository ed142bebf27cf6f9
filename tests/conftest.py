"""Makes ``tests/models.py`` importable under pytest's importlib mode, in a checkout of any name."""

from __future__ import annotations

import signal
import sys
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


# A shell's background job inherits that SIGINT is ignored, and would pass that on to the programs that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
