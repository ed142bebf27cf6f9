"""``from nervure.callbacks import EarlyStopping``: what ``fit`` tells of itself, where Keras's users look for it."""

from __future__ import annotations

from typing import Any

from .runtime.callbacks import *  # noqa: F403
from .runtime.callbacks import __all__ as _own

__all__ = [*_own, "GradualPruning"]  # noqa: F405


def __getattr__(name: str) -> Any:
    if name != "GradualPruning":
        raise AttributeError(f"module 'nervure.callbacks' has no attribute {name!r}")
    from .frontends.training.pruning import GradualPruning

    return GradualPruning
