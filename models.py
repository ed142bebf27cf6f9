"""``from nervure.models import Sequential``: networks, where Keras's users look for them."""

from .frontends.dsl.network import Network as Model
from .frontends.dsl.sequential import Sequential

__all__ = ["Model", "Sequential"]
