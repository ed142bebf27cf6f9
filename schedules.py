"""``from nervure.schedules import CosineDecay``: learning rates for each step."""

from .runtime.schedules import *  # noqa: F403
from .runtime.schedules import __all__ as __all__
