"""``from nervure.layers import Dense``: the DSL's layers, where Keras's users look for them."""

from .frontends.dsl.layers import *  # noqa: F403
from .frontends.dsl.layers import __all__ as __all__
