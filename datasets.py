"""``from nervure.datasets import fashion_mnist``: small data sets, where Keras's users look for them."""

from .frontends.datasets import *  # noqa: F403
from .frontends.datasets import __all__ as __all__
