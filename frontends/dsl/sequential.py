"""``nv.Sequential``: layers one after another."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ...errors import NervureError
from .block import Block, snake, unique
from .network import Network
from .place import Place, user_place
from .spec import BATCH, Input


class Sequential(Network):
    """Layers one after another, as in Keras::

        net = nv.Sequential([
            nv.layers.Dense(8, input_dim=2, activation="relu"),
            nv.layers.Dense(1, activation="sigmoid"),
        ])

    The input's shape comes from ``input_shape=`` or ``input_dim=`` of the first layer, from an ``nv.Input`` in its
    place, from ``build(batch_shape)``, or from the first array that the network is called on. Networks and plain
    functions can stand between the layers. The input is called ``input``, the output ``output``.
    """

    def __init__(self, layers: Iterable[Any] = (), name: str | None = None, seed: int = 0) -> None:
        super().__init__(self._run, name or "sequential", {"input": None}, seed)
        self.named = name is not None
        self.layers: list[Any] = []
        self._places: list[Place] = []
        for layer in [layers] if isinstance(layers, Block) else layers:
            self.add(layer)

    @property
    def kind(self) -> str:
        return "Sequential"

    def add(self, layer: Any) -> None:
        """Appends a layer, a network, or a function over one tensor."""
        from .layers.core import Lambda

        if isinstance(layer, type) and issubclass(layer, Block):
            raise NervureError(
                f"Sequential: {layer.__name__} is a class, not a layer",
                where=user_place().full,
                hint=f"make one: {layer.__name__}(...)",
            )
        if isinstance(layer, Input):
            if self.layers:
                raise NervureError("Sequential: nv.Input must come first", where=user_place().full)
            self.inputs = {"input": layer}
            return
        place = layer._place if isinstance(layer, Block) else user_place()
        if not isinstance(layer, Block):
            layer = Lambda(layer)
        spec = self._spec(layer)
        if spec is not None and not self.layers and self.inputs["input"] is None:
            self.inputs = {"input": spec}
        self._name(layer)
        self.layers.append(layer)
        self._places.append(place)
        self._ready = False

    def _spec(self, layer: Any) -> Input | None:
        """The input that a first layer asks for."""
        if isinstance(layer, Network):
            found = list(layer.inputs.values())
            return found[0] if len(found) == 1 else None
        return getattr(layer, "input_spec", None)

    def _name(self, layer: Block) -> None:
        if any(child is layer for child in self._children.values()):
            return
        base = layer.name or snake(layer.kind)
        if layer.named and base in self._children:
            raise NervureError(
                f"Sequential: two layers are named {base!r}", where=user_place().full, hint="give each its own name="
            )
        self._children[unique(base, self._children)] = layer

    def pop(self) -> Any:
        """Removes the last layer and returns it."""
        if not self.layers:
            raise NervureError("Sequential: there is no layer to remove", where=user_place().full)
        layer = self.layers.pop()
        self._places.pop()
        if not any(other is layer for other in self.layers):
            self._children = {name: child for name, child in self._children.items() if child is not layer}
        return layer

    def build(self, batch_shape: Sequence[Any]) -> None:
        """Gives the input its whole shape (None or a name for an open dimension) and makes the weights."""
        shape = [BATCH if d is None and i == 0 else d for i, d in enumerate(batch_shape)]
        dtype = getattr(self.layers[0], "input_dtype", "float32") if self.layers else "float32"
        self.inputs = {"input": Input(dtype=dtype, batch_shape=shape)}
        self.inspect()

    def get_layer(self, name: str) -> Any:
        """The layer of that name."""
        if name not in self._children:
            raise NervureError(f"no layer is named {name!r}", why=f"there are {', '.join(self._children)}")
        return self._children[name]

    def _run(self, input: Any) -> Any:
        if not self.layers:
            raise NervureError(f"Sequential {self.name!r} has no layers", where=self._place.full)
        x = input
        for layer, place in zip(self.layers, self._places, strict=True):
            x = _step(layer, x, place)
        return x

    def _shape_hint(self, name: str) -> str:
        return "give the first layer input_shape= (of one sample) or input_dim=, or call net.build((None, 784))"

    def __len__(self) -> int:
        return len(self.layers)

    def __bool__(self) -> bool:
        return True

    def __iter__(self) -> Any:
        return iter(self.layers)

    def __getitem__(self, index: int) -> Any:
        return self.layers[index]


def _step(layer: Any, x: Any, _nervure_place: Place) -> Any:
    """One layer's call; errors in it are shown at the line where the layer was made (see ``place``)."""
    return layer(x)
