"""``from nervure.callbacks import EarlyStopping``: what ``fit`` tells of itself, where Keras's users look for it."""

from .runtime.callbacks import *  # noqa: F403
from .runtime.callbacks import __all__ as __all__
