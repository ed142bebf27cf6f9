"""``from nervure.optimizers import Adam``: what ``nv.optimizers`` has, where Keras's users look for it."""

from .frontends.training.optimizers import *  # noqa: F403
from .frontends.training.optimizers import __all__ as __all__
