"""What layers and networks have in common: names, children, weights, state dictionaries."""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ...errors import NervureError
from .place import NOWHERE, Place, user_place
from .tensor import Weight
from .trace import Frame, Trace, fail


def snake(name: str) -> str:
    """``BatchNorm2d`` -> ``batch_norm2d``, ``LSTM`` -> ``lstm``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z][a-z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


class Block:
    """A callable part of a network. ``_children`` holds the parts that it calls, by name.

    Those made outside of a trace are found again by identity; those made while a function is traced (``Dense(8)(x)`` in
    its body) take over the weights of the one that had their name in the trace before.
    """

    name: str | None = None
    named = False  # whether the user chose the name
    trainable: bool = True
    _place: Place = NOWHERE  # where it was made
    _born = 0  # number of the trace in which it was made; 0 outside of traces
    _children: dict[str, Any]
    _own: dict[str, Weight]
    _inherited: dict[str, Any]  # adopted children whose successors ``build`` has not made yet

    @property
    def kind(self) -> str:
        """What it is called in summaries and errors."""
        return type(self).__name__

    # -- weights -----------------------------------------------------------------------------------------------------

    def named_weights(self) -> Iterator[tuple[str, Weight]]:
        """Every weight that is no cache once, under its dotted name: own ones first, then the children's."""
        seen: set[int] = set()
        for name, weight in self._walk(""):
            if id(weight) not in seen and weight.persistent:
                seen.add(id(weight))
                yield name, weight

    def _walk(self, prefix: str) -> Iterator[tuple[str, Weight]]:
        for name, weight in self._own.items():
            yield prefix + name, weight
        for name, child in self._children.items():
            yield from child._walk(f"{prefix}{name}.")

    def ready(self) -> None:
        """Makes sure that the weights exist (networks trace themselves)."""

    @property
    def weights(self) -> list[Weight]:
        """All weights, in the order of their creation."""
        self.ready()
        return [weight for _, weight in self.named_weights()]

    def count_params(self) -> int:
        """Number of weight elements."""
        return sum(weight.size for weight in self.weights)

    def get_weights(self) -> list[np.ndarray]:
        """All weights as arrays (Keras)."""
        return [weight.array.copy() for weight in self.weights]

    def set_weights(self, arrays: Any) -> None:
        """Replaces all weights, in the order of ``weights`` (Keras)."""
        weights, given = self.weights, list(arrays)
        if len(given) != len(weights):
            raise NervureError(
                f"{self.name or self.kind}: expected {len(weights)} arrays, got {len(given)}", where=user_place().full
            )
        _assign(dict(self.named_weights()), dict(zip((n for n, _ in self.named_weights()), given, strict=True)))

    def state_dict(self) -> dict[str, np.ndarray]:
        """All weights as arrays by dotted name (PyTorch): ``{"dense.weight": ..., "dense.bias": ...}``."""
        self.ready()
        return {name: weight.array.copy() for name, weight in self.named_weights()}

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> None:
        """Replaces weights by name. Nothing is changed when one does not fit.

        Raises ``NervureError`` for a wrong shape and, with ``strict``, for missing and unknown names.
        """
        self.ready()
        weights = dict(self.named_weights())
        missing, unknown = sorted(set(weights) - set(state)), sorted(set(state) - set(weights))
        if strict and (missing or unknown):
            raise NervureError(
                f"the state does not fit {self.name or self.kind!r}",
                where=user_place().full,
                why="; ".join(
                    f"{what}: {', '.join(names[:8])}" + (", ..." if len(names) > 8 else "")
                    for what, names in (("missing", missing), ("unknown", unknown))
                    if names
                ),
                hint="strict=False loads what fits by name",
            )
        _assign(weights, {name: state[name] for name in weights if name in state})

    # -- what is trained ---------------------------------------------------------------------------------------------

    def freeze(self, *patterns: str) -> None:
        """Keeps weights as they are while a network is trained: those whose dotted name fits one of the patterns
        (``"encoder.*"``, ``"*.bias"``), all without one. A batch norm whose statistics are frozen uses them as at
        inference. ``NervureError`` names the closest names when a pattern fits nothing."""
        self._set_frozen(patterns, True)

    def unfreeze(self, *patterns: str, channels: range | int | None = None) -> None:
        """The opposite of ``freeze``. With ``channels`` (a range, or a number of the first ones) only those output
        channels of the weights are trained; gradients and optimizer keep nothing of the others."""
        for weight in self._set_frozen(patterns, False):
            weight.channels = None if channels is None else _channels(weight, channels)

    def _set_frozen(self, patterns: tuple[str, ...], frozen: bool) -> list[Weight]:
        if not patterns:
            for block in self._blocks():
                object.__setattr__(block, "trainable", not frozen)
        if patterns:
            self.ready()
        weights = dict(self.named_weights())
        chosen = [weights[name] for name in (_matching(patterns, weights) if patterns else weights)]
        for weight in chosen:
            weight.frozen = frozen
        return chosen

    def _blocks(self) -> Iterator[Block]:
        yield self
        for child in [*self._children.values(), *self._inherited.values()]:
            yield from child._blocks()

    # -- names -------------------------------------------------------------------------------------------------------

    def enter(self, trace: Trace) -> str:
        """The block's name in the block that calls it; registers it there."""
        frame = trace.frames[-1]
        if id(self) not in frame.names:
            frame.names[id(self)] = self._join(frame, trace.number)
            frame.kept.append(self)
        return frame.names[id(self)]

    def _join(self, frame: Frame, trace: int) -> str:
        children: dict[str, Block] = frame.owner._children
        for name, child in children.items():
            if child is self:
                return name
        transient = self._born == trace
        taken = set(frame.names.values())
        taken |= {name for name, child in children.items() if not transient or not child._born}
        base = self.name or snake(self.kind)
        if self.named and base in taken:
            raise fail(f"two layers are named {base!r}", hint="give each its own name=")
        name = unique(base, taken)
        if transient and name in children:
            self.adopt(children[name], name)
        else:
            children[name] = self
        return name

    def adopt(self, other: Any, name: str) -> None:
        """Takes over the weights of the block that had this one's place in an earlier trace."""
        if type(other) is not type(self):
            raise fail(
                f"layer {name!r} was a {other.kind} in an earlier trace and is a {self.kind} now",
                why="a network must call the same layers whenever it is traced",
                hint="make layers outside of the function, or give them names",
            )
        self._own = other._own
        for key, child in other._children.items():
            if key in self._children:
                self._children[key].adopt(child, key)
            else:
                self._children[key] = self._inherited[key] = child


def unique(base: str, taken: Any) -> str:
    """``base``, ``base_1``, ``base_2``, ...: the first that is free."""
    name, i = base, 0
    while name in taken:
        i += 1
        name = f"{base}_{i}"
    return name


def _channels(weight: Weight, given: range | int) -> range | None:
    size = weight.shape[weight.output_axis] if weight.shape else 0
    found = given if isinstance(given, range) else range(given)
    if found.step != 1 or not 0 <= found.start < found.stop <= size:
        raise NervureError(
            f"weight {weight.name!r} has {size} output channels, got channels={given!r}", where=user_place().full
        )
    return None if len(found) == size else found


def _matching(patterns: Sequence[str], names: Mapping[str, Any]) -> list[str]:
    """The names that fit a pattern. One that fits nothing is an error."""
    found: dict[str, None] = {}
    for pattern in patterns:
        fitting = [n for n in names if fnmatch.fnmatchcase(n, pattern) or n.startswith(f"{pattern}.")]
        if not fitting:
            near = difflib.get_close_matches(pattern, list(names), 4, 0.3) or list(names)[:8]
            raise NervureError(
                f"no weight is named {pattern!r}", where=user_place().full, hint=f"there are: {', '.join(near)}"
            )
        found.update(dict.fromkeys(fitting))
    return list(found)


def _assign(weights: Mapping[str, Weight], state: Mapping[str, Any]) -> None:
    arrays = {name: np.asarray(values) for name, values in state.items()}
    wrong = [
        f"{name!r}: expected {list(weights[name].shape)}, got {list(array.shape)}"
        for name, array in arrays.items()
        if array.shape != weights[name].shape
    ]
    if wrong:
        raise NervureError(
            f"{len(wrong)} of the given weights have another shape", where=user_place().full, why="; ".join(wrong[:8])
        )
    for name, array in arrays.items():
        weights[name].assign(array)
