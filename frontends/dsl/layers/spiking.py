"""Spiking neurons. Names, arguments and equations are snnTorch's (Eshraghian et al. 2023)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ..elementwise import clip, stop_gradient
from ..promote import as_array, as_float, as_tensor
from ..shaping import stack
from ..spiking import Surrogate, atan
from ..tensor import Tensor
from ..trace import current, fail
from ..variable import assign
from .base import Layer

_RESETS = ("subtract", "zero", "none")


class Leaky(Layer):
    """Leaky integrate-and-fire neurons. A membrane ``mem`` leaks by ``beta`` from step to step and gathers the input;
    above ``threshold`` the neuron spikes, and what was above it at one step is reset at the next::

        mem[t] = beta mem[t - 1] + x[t] - threshold (mem[t - 1] > threshold)
        spikes[t] = mem[t] > threshold

    ``reset_mechanism="zero"`` takes mem[t - 1] as 0 there, ``"none"`` leaves it; without ``reset_delay`` the reset is
    part of the step that spikes. ``beta`` (bounded to 0..1) and ``threshold`` are numbers, or arrays that broadcast
    over the neurons; ``learn_beta``, ``learn_threshold`` train them. Spikes are 0.0 or 1.0, and are differentiated as
    ``spike_grad`` says (``nv.spiking.atan()``); no gradient goes through a delayed reset.

    Called on all time steps, ``leaky(x)`` makes spikes [batch, time, ...] of currents of that shape, from membranes of
    0 on; with ``return_mem`` it returns the membranes too. ``leaky(x, mem)`` is one step as in snnTorch: it returns
    spikes and membranes [batch, ...]. ``leaky.step(x)`` is one step whose membrane is a state of the artifact: it is
    kept from call to call until ``reset()``, so that a device runs step by step what was trained on all of them; as
    ``nv.streaming(net)`` does with a whole network.
    """

    def __init__(
        self,
        beta: Any,
        threshold: Any = 1.0,
        *,
        spike_grad: Surrogate | None = None,
        learn_beta: bool = False,
        learn_threshold: bool = False,
        reset_mechanism: str = "subtract",
        reset_delay: bool = True,
    ) -> None:
        if reset_mechanism not in _RESETS:
            raise fail(f"reset_mechanism: expected one of {', '.join(_RESETS)}, got {reset_mechanism!r}")
        self.given = (as_array(beta), as_array(threshold))
        self.learned = (learn_beta, learn_threshold)
        self.spike_grad = atan() if spike_grad is None else spike_grad
        self.reset_mechanism, self.reset_delay = reset_mechanism, reset_delay

    def build(self, shape: Any) -> None:
        pairs = zip(("beta", "threshold"), self.given, self.learned, strict=True)
        self.beta, self.threshold = (self.add_weight(n, a.shape, a, trainable=learn) for n, a, learn in pairs)

    def call(self, x: Tensor, mem: Any = None, *, return_mem: bool = False, stateful: bool = False) -> Any:
        x = as_float(x)
        beta, threshold = clip(as_tensor(self.beta, x.dtype), 0.0, 1.0), as_tensor(self.threshold, x.dtype)
        if stateful:
            held = self.memory("mem", x.shape, dtype=x.dtype)
            spikes, new = self._step(x, as_tensor(held), beta, threshold)
            assign(held, new)
            return spikes
        if mem is not None:
            return self._step(x, as_tensor(mem, x.dtype), beta, threshold)
        if x.ndim < 2 or isinstance(x.shape[1], str):
            hint = "one time step: leaky(x, mem) or leaky.step(x)"
            raise fail(f"expected currents [batch, time, ...], got {x.type}", hint=hint)
        kept = self.memory("mem", (x.shape[0], *x.shape[2:]), dtype=x.dtype) if current().streaming else None
        both = list(zip(*self._steps(x, kept, beta, threshold), strict=True))
        if kept is not None:
            assign(kept, both[1][-1])
        spikes, mems = (stack(list(part), 1) for part in both)
        return (spikes, mems) if return_mem else spikes

    def step(self, x: Any) -> Any:
        """One time step: spikes [batch, ...] of currents [batch, ...]; the membrane is a state."""
        return self(x, stateful=True)

    def _steps(self, x: Tensor, held: Any, beta: Tensor, threshold: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Spikes and membranes of every time step, from the membranes held on, or from 0."""
        mem, fired = as_tensor(np.zeros((), np.float32) if held is None else held, x.dtype), None
        for t in range(x.shape[1]):
            spikes, mem = self._step(x[:, t], mem, beta, threshold, fired)
            fired = stop_gradient(spikes) if self.reset_delay else None  # what the next step would find of the membrane
            yield spikes, mem

    def _step(
        self, x: Tensor, mem: Tensor, beta: Tensor, threshold: Tensor, fired: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Spikes and membranes after one more step; ``fired``: whose membranes were above the threshold, if known."""
        if fired is None:
            fired = stop_gradient(self.spike_grad(mem - threshold))
        if self.reset_mechanism == "zero":
            mem = (1 - fired) * mem
        new = beta * mem + x
        if self.reset_mechanism == "subtract":
            new = new - fired * threshold
        spikes = self.spike_grad(new - threshold)
        if not self.reset_delay and self.reset_mechanism != "none":
            new = new - (spikes - fired) * (threshold if self.reset_mechanism == "subtract" else new)
        return spikes, new


__all__ = ["Leaky"]
