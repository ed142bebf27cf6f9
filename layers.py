"""``from nervure.layers import Dense``: the DSL's layers, where Keras's users look for them."""

from .frontends.dsl.layers import *  # noqa: F403
from .frontends.dsl.layers import __all__ as _own
from .frontends.dsl.spec import Input

__all__ = [*_own, "Input"]
