"""All functions on symbolic tensors under their public names (see ``names``)."""

from __future__ import annotations

from importlib import import_module

from .names import FUNCTIONS, NO_METHODS
from .promote import as_tensor

for _module, _names in FUNCTIONS.items():
    for _name in _names.split():
        globals()[_name] = getattr(import_module(f".{_module}", __package__), _name)

NAMES = frozenset(name for names in FUNCTIONS.values() for name in names.split())
METHODS = NAMES - set(NO_METHODS.split())

__all__ = ["METHODS", "NAMES", "as_tensor"]
