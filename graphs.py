"""``from nervure.graphs import from_networkx``: graphs as arrays, for the layers of graph networks."""

from .frontends.graphs import *  # noqa: F403
from .frontends.graphs import __all__ as __all__
