"""Layers.

Argument names, defaults and initial weights are Keras's, data are laid out like PyTorch's (channels first) unless a
layer says otherwise; see each layer.
"""

from . import conv, core
from .base import Layer as Layer
from .conv import *  # noqa: F403
from .core import *  # noqa: F403

__all__ = ["Layer"]
__all__ += core.__all__
__all__ += conv.__all__
