"""``nv.federated``: many devices train one network on data that never leave them; see ``frontends/federated.py``."""

from typing import Any

from .frontends.federated import *  # noqa: F403
from .frontends.federated import __all__ as _own

__all__ = [*_own, "LocalGrid", "Strategy", "client_app"]  # noqa: F405


def __getattr__(name: str) -> Any:
    from .frontends import federated

    return getattr(federated, name)
