"""``nv.layer_output``: what a layer inside of another network gave, for losses and explanations that look inside."""

from __future__ import annotations

import difflib
import fnmatch
from typing import Any

from ...errors import printable
from .block import Block
from .promote import as_tensor
from .tensor import Tensor
from .trace import current, fail


def layer_output(net: Any, layer: Any) -> Any:
    """What ``layer`` gave when ``net``, a network that holds it, was last called in this trace.

    ``layer``: its name in ``net`` (``"encoder.conv2d_1"``, a pattern that fits one), the layer itself, or the name of a
    tensor of an imported network (``net.tensors()`` lists them). ``NervureError``: ``net`` was not called, or the
    closest names, where it has no such layer::

        @nv.network
        def features(x: nv.Input((3, 32, 32))):
            classifier(x)
            return nv.layer_output(classifier, "conv2d_4")
    """
    made = current().layer_outputs.get(id(net))
    if made is None:
        raise fail(f"{getattr(net, 'name', net)!r} was not called in this trace", hint="call it first: net(x)")
    found = made.get(_name(net, layer, made))
    return found if not isinstance(found, Tensor) else as_tensor(found)


def _name(net: Any, layer: Any, made: dict[str, Any]) -> str:
    if isinstance(layer, Block):
        names = [name for name, block in _blocks(net) if block is layer]
        if not names:
            raise fail(f"{net.name!r} has no such layer: {layer!r}", hint=_near("", made))
        return names[0]
    name = str(layer)
    fitting = [name] if name in made else [n for n in made if fnmatch.fnmatchcase(n, name)]
    if len(fitting) == 1:
        return fitting[0]
    what = f"{len(fitting)} layers of {net.name!r} fit {printable(name)!r}" if fitting else None
    raise fail(
        what or f"{net.name!r} has no layer {printable(name)!r}", hint=_near(name, dict.fromkeys(fitting) or made)
    )


def _near(name: str, made: dict[str, Any]) -> str:
    near = difflib.get_close_matches(name, list(made), 6, 0.3) or list(made)[-6:]
    return f"there are: {', '.join(printable(n, 80) for n in near)}"


def _blocks(block: Block, prefix: str = "") -> list[tuple[str, Block]]:
    children = [(prefix + name, child) for name, child in block._children.items()]
    return [*children, *(found for name, child in children for found in _blocks(child, f"{name}."))]
