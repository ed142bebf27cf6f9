"""``nv.streaming``: a network that was made for whole sequences, read as they come."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ...compiler.interpret import interpret
from ...compiler.ops.numeric import numpy_dtype
from ...compiler.types import TensorType
from ...errors import NervureError
from .network import Network
from .place import user_place
from .spec import BATCH, Input
from .trace import Trace

_CALLS = 3  # of the comparison with the whole sequence


def streaming(net: Network, frames: int = 1, *, axis: int = 1, name: str | None = None) -> Network:
    """The same network for a stream: each call takes the next ``frames`` of a sequence, and layers go on where the last
    call ended. ``reset()`` of the session (``<model>_reset`` in C) begins a new sequence.

    Weights and layers are those of ``net``, nothing is copied: train ``net`` on whole sequences, then compile
    ``nv.streaming(net)``, alone or as one of ``entries`` beside it. ``axis`` is that of time in the inputs (those that
    have it). What is kept: the states of ``RNN``, ``LSTM`` and ``GRU``; the last frames under a ``Conv1d`` with
    ``padding="causal"``; sum and maximum under ``GlobalAvgPool1d`` and ``GlobalMaxPool1d``, which so give the mean and
    the maximum until now.

    ``NervureError``: on random numbers the stream's answers are not those of the whole sequence, because a layer looks
    ahead (bidirectional, ``padding="same"``) or at all frames at once (attention, a mean over the time axis).
    """
    if not isinstance(net, Network):
        hint = "net = nv.load_network('model.onnx') makes one of a file"
        raise NervureError(f"a network is wanted, got {type(net).__name__}", where=user_place().full, hint=hint)
    if isinstance(frames, bool) or not isinstance(frames, int) or frames < 1:
        raise NervureError(f"frames must be a whole number from 1 on, got {frames!r}", where=user_place().full)
    net.ready()
    made = Stream(net, frames, axis, name or f"{net.name}_stream")
    made.check()
    return made


class Stream(Network):
    """A network whose layers remember what they have seen; made by ``streaming``."""

    def __init__(self, net: Network, frames: int, axis: int, name: str) -> None:
        self.whole, self.frames, self.axis = net, frames, axis
        specs = {key: self._spec(spec, frames) for key, spec in net._specs().items()}
        super().__init__(net.function, name, specs, net.seed)
        self._children, self._own, self._inherited = net._children, net._own, net._inherited
        self.options, self.named, self.__doc__ = net.options, True, net.__doc__

    def _spec(self, spec: Input, frames: int) -> Input:
        if len(spec.shape) <= self.axis:
            return spec
        return Input(batch_shape=[*spec.shape[: self.axis], frames, *spec.shape[self.axis + 1 :]], dtype=spec.dtype)

    def record(self, trace: Trace, types: Mapping[str, TensorType], values: Mapping[str, Any] | None = None) -> Any:
        before, trace.streaming = trace.streaming, True
        try:
            return super().record(trace, types, values)
        finally:
            trace.streaming = before

    def _inline(self, trace: Trace, given: dict[str, Any], options: dict[str, Any]) -> Any:
        before, trace.streaming = trace.streaming, True
        try:
            return super()._inline(trace, given, options)
        finally:
            trace.streaming = before

    def check(self) -> None:
        """Compares some calls with the whole sequence, on random numbers."""
        rng = np.random.default_rng(0)
        one, many = self._types(self.frames), self._types(_CALLS * self.frames)
        feeds = {n: _random(type, rng) for n, type in many.items()}
        try:
            graph, long = self._trace(one).graph, self.whole._trace(many).graph
        except NervureError as error:
            raise self._refused(error.what) from None
        state: dict[str, np.ndarray] = {}
        parts = []
        for call in range(_CALLS):
            now = slice(call * self.frames, (call + 1) * self.frames)
            cut = {n: a[(slice(None),) * self.axis + (now,)] if one[n] != many[n] else a for n, a in feeds.items()}
            parts.append(interpret(graph, cut, state))
        for i, expected in enumerate(interpret(long, feeds)):
            found = _joined([part[i] for part in parts], expected.shape)
            apart = np.abs(found - expected).max() if found.shape == expected.shape else np.inf
            if not apart <= 1e-4 * max(1.0, float(np.abs(expected).max())):
                raise self._refused(f"on random numbers its answers differ from the whole sequence's by {apart:.2g}")

    def _types(self, frames: int) -> dict[str, TensorType]:
        named = {d for spec in self.inputs.values() if spec is not None for d in spec.shape if isinstance(d, str)}
        sizes = {name: 1 if name == BATCH else 2 for name in named}
        return {n: self._spec(spec, frames).bound(sizes) for n, spec in self._specs().items()}

    def _refused(self, why: str) -> NervureError:
        hint = "layers that look ahead or at all frames at once stand in its way; Conv1d has padding='causal'"
        return NervureError(
            f"network {self.whole.name!r} cannot be read as a stream", where=user_place().full, why=why, hint=hint
        )


def _random(type: TensorType, rng: np.random.Generator) -> np.ndarray:
    drawn = rng.standard_normal(type.dims)
    kind = numpy_dtype(type.dtype)
    return drawn.astype(kind) if kind.kind == "f" else (drawn > 0).astype(kind)


def _joined(parts: list[np.ndarray], wanted: tuple[int, ...]) -> np.ndarray:
    """The calls' outputs one behind the other along the axis that makes them as long as the whole, else the last."""
    for axis, (size, whole) in enumerate(zip(parts[0].shape, wanted, strict=False)):
        if size != whole:
            return np.concatenate(parts, axis)
    return parts[-1]
