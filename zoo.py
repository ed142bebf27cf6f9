"""``nv.zoo``: the networks and ways of learning that nervure has an example for.

``print(nv.zoo.table())`` lists them, ``nv.zoo.find("lstm")`` is the row that has LSTMs.
"""

from .frontends.zoo import *  # noqa: F403
from .frontends.zoo import __all__ as __all__
