"""``nv.explain``: why a network says what it says, as networks that run on the device beside it."""

from .frontends.explanations import *  # noqa: F403
from .frontends.explanations import __all__ as __all__
