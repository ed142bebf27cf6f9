"""``from nervure.losses import BinaryCrossentropy``: what ``nv.losses`` has, where Keras's users look for it."""

from .frontends.training.losses import *  # noqa: F403
from .frontends.training.losses import __all__ as __all__
