"""The restricted Boltzmann machine (Smolensky 1986; Hinton 2002): two layers that make each other likely."""

from __future__ import annotations

from typing import Any

from .. import random
from ..elementwise import square
from ..nn import sigmoid, softplus
from ..promote import as_tensor
from ..reduce import sum as total
from ..tensor import Tensor
from ..trace import fail
from .base import Layer, features_of, method, whole


class RBM(Layer):
    """A restricted Boltzmann machine of ``units`` hidden binary units: [batch, inputs] to the probability that each is
    1, [batch, units], ``sigmoid(v @ weight + bias)``. So a stack of them is a network (Hinton, Osindero, Teh 2006).

    ``visible`` says what the inputs are: ``"bernoulli"`` (0 or 1, or probabilities) or ``"gaussian"`` (any numbers, of
    standard deviation 1). ``weight`` [inputs, units] is normal with ``stddev`` (Hinton 2010), ``bias`` [units] and
    ``visible_bias`` [inputs] are 0.

    Contrastive divergence needs no rule of its own: its update is the gradient of a difference of free energies, of the
    data and of where ``steps`` steps of the machine's own lead to. Started at the data it is CD-k (Hinton 2002)::

        dream = nv.stop_gradient(rbm.gibbs(v, steps=1))
        loss = nv.mean(rbm.free_energy(v)) - nv.mean(rbm.free_energy(dream))
        nv.minimize(loss, rbm, nv.optimizers.SGD(momentum=0.9, weight_decay=2e-4), rate)

    and started where the last call ended, at an ``nv.Variable`` ``chain`` [samples, inputs], it is persistent CD
    (Tieleman 2008): ``dream = nv.assign(chain, rbm.gibbs(chain))``.
    """

    def __init__(self, units: int, visible: str = "bernoulli", stddev: float = 0.01) -> None:
        self.units, self.stddev = whole(units, "units"), stddev
        if visible not in ("bernoulli", "gaussian"):
            raise fail(f"visible: expected 'bernoulli' or 'gaussian', got {visible!r}")
        self.visible = visible

    def build(self, shape: Any) -> None:
        inputs, spread = features_of(shape), self.stddev
        self.weight = self.add_weight("weight", (inputs, self.units), lambda s, rng: rng.normal(0, spread, s))
        self.bias = self.add_weight("bias", (self.units,), "zeros")
        self.visible_bias = self.add_weight("visible_bias", (inputs,), "zeros")

    def call(self, v: Tensor) -> Tensor:
        return sigmoid(self._drive(v))

    @method
    def reconstruct(self, h: Tensor) -> Tensor:
        """What the visible units are on average, [batch, inputs], given hidden ones [batch, units]. It comes after a
        call on visible units, whose number it cannot know."""
        if h.shape[-1] != self.units:
            raise fail(f"expected {self.units} hidden units, got {list(h.shape)}")
        mean = h @ as_tensor(self.weight).T + self.visible_bias
        return sigmoid(mean) if self.visible == "bernoulli" else mean

    @method
    def sample_hidden(self, v: Tensor) -> Tensor:
        """Hidden units, 0 or 1 [batch, units], drawn given visible ones [batch, inputs]."""
        return random.bernoulli(self.call(v))

    @method
    def sample_visible(self, h: Tensor) -> Tensor:
        """Visible units [batch, inputs], drawn given hidden ones [batch, units]."""
        mean = self.reconstruct(h)
        return random.bernoulli(mean) if self.visible == "bernoulli" else mean + random.normal(mean.shape)

    @method
    def gibbs(self, v: Tensor, steps: int = 1, sampled: bool = False) -> Tensor:
        """Visible units after ``steps`` times down and up, [batch, inputs] as ``v``. Hidden units are drawn; visible
        ones are their means, unless they are to be ``sampled`` (less noise in learning, as Hinton 2010 advises)."""
        for _ in range(whole(steps, "steps")):
            h = self.sample_hidden(v)
            v = self.sample_visible(h) if sampled else self.reconstruct(h)
        return v

    @method
    def free_energy(self, v: Tensor) -> Tensor:
        """-log of the probability of ``v`` [batch, inputs] but for a constant, [batch]: the lower, the likelier."""
        hidden = total(softplus(self._drive(v)), axis=1)
        if self.visible == "gaussian":
            return total(square(v - self.visible_bias), axis=1) / 2 - hidden
        return -(v @ as_tensor(self.visible_bias)) - hidden

    def _drive(self, v: Tensor) -> Tensor:
        if v.ndim != 2 or v.shape[1] != self.weight.shape[0]:
            raise fail(f"expected an input [batch, {self.weight.shape[0]}], got {list(v.shape)}")
        return v @ as_tensor(self.weight) + self.bias


__all__ = ["RBM"]
