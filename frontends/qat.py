"""``nv.quantize_aware``: a trained float network as a quantized one that is trained further."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from ..compiler.ir import Graph
from ..compiler.quantize.place import insert
from ..compiler.quantize.quantizer import prepare, quantize
from ..compiler.quantize.scheme import LEAST_SCALE, Scheme
from ..compiler.quantize.settings import Settings
from ..errors import NervureError
from .calibration import calibration as samples_of
from .dsl.network import Network
from .dsl.spec import BATCH
from .dsl.tensor import Weight
from .training.quantized import QuantizedNetwork

SAMPLES = 200  # of calibration, if nobody says how many


def quantize_aware(
    source: Any,
    calibration: Any,
    *,
    weight_bits: int = 8,
    activation_bits: int = 8,
    learn_scales: bool = True,
    gradient_scale: bool = True,
    float_patterns: tuple[str, ...] = (),
    method: str = "mse",
    samples: int = SAMPLES,
    name: str | None = None,
) -> QuantizedNetwork:
    """A quantized network to be trained: start from a network that is trained already, then fine-tune::

        net.fit(x, y, epochs=20)
        small = nv.quantize_aware(net, x[:200], weight_bits=4)
        small.compile(nv.optimizers.Adam(3e-4), "sparse_categorical_crossentropy")
        small.fit(x, y, epochs=5)
        small.export("small.onnx")  # or nv.compile(small)

    ``source``: a network, or an ONNX file (path, bytes, ``ModelProto``). Its batch norms are folded into the weights
    first; dropout is gone. ``calibration``: samples, as ``nv.quantize`` takes them; they give the activations their
    first scales (by ``method``) and their zero points. ``weight_bits`` 2 to 8, one scale for each channel;
    ``activation_bits`` 2 to 8, or 16. With ``learn_scales`` the scales are weights too (LSQ, Esser et al. 2020), and
    with ``gradient_scale`` their gradients are scaled as there: what plain SGD needs, and Adam does not notice.
    ``float_patterns``: layers or tensors that stay in float.

    What it computes while it is trained is what the compiled or exported model computes, bit for bit.
    Raises ``NervureError`` for samples, numbers of bits and patterns that do not fit.
    """
    _check_bits(weight_bits, activation_bits)
    net = source if isinstance(source, Network) else _loaded(source)
    wide = activation_bits == 16
    settings = Settings(
        activations="int16" if wide else "int8",
        weight_bits=weight_bits,
        method=method,
        # training does what these do, and does it better
        equalize=False,
        bias_correction=False,
        rounding="nearest",
        smooth=None,
        float_patterns=tuple(float_patterns),
    )
    one = {BATCH: 1} if any(BATCH in spec.shape for spec in net._specs().values()) else {}
    feeds = samples_of(calibration, net.types(one), samples=samples)
    found = quantize(net.to_graph(one), list(feeds), settings, measure=False)
    layers = {layer.weight for layer in found.sites.layers}
    schemes = {n: s if n in layers else narrowed(s, activation_bits) for n, s in found.schemes.items()}
    state = [(weight, weight.array) for weight in net.weights]

    def build(bindings: Mapping[str, int]) -> Graph:
        with _as_it_was(state):
            plain = prepare(net.to_graph(bindings))
        return insert(plain, schemes, found.sites.floats, trained=True)

    made = QuantizedNetwork(
        build, net._specs(), name or net.name, learn_scales=learn_scales, gradient_scale=gradient_scale
    )
    _take_masks(made, net)
    return made


def _take_masks(made: QuantizedNetwork, net: Network) -> None:
    """Masked weights stay masked: the zero point of weights is 0, so that zeros are zeros as integers, too. A folded
    batch norm scales whole channels and keeps the name; a matrix that was kept turned has a new one."""
    masks = {name: weight.mask for name, weight in net.named_weights() if weight.mask is not None}
    turned = [mask.T for name, mask in sorted(masks.items()) if mask.ndim == 2 and not mask.all()]
    for name, weight in made.named_weights():
        own = [masks[name]] if name in masks else turned
        fitting = (m for m in own if m.shape == weight.shape and not weight.array[~m].any())
        weight.mask = next(fitting, None)


def _check_bits(weights: int, activations: int) -> None:
    for what, bits, allowed in (
        ("weight_bits", weights, range(2, 9)),
        ("activation_bits", activations, (*range(2, 9), 16)),
    ):
        if isinstance(bits, bool) or bits not in allowed:
            raise NervureError(f"{what} is {bits!r}", hint=f"use one of: {', '.join(map(str, allowed))}")


def _loaded(source: Any) -> Network:
    from .onnx import load_network

    if isinstance(source, Graph):
        raise NervureError("a Graph cannot be trained", hint="give the network, or the ONNX file")
    return load_network(source)


@contextmanager
def _as_it_was(state: list[tuple[Weight, np.ndarray]]) -> Iterator[None]:
    """The float network with the weights that it had, whatever has been done with it since."""
    now = [weight.array for weight, _ in state]
    try:
        for weight, array in state:
            weight.array = array
        yield
    finally:
        for (weight, _), array in zip(state, now, strict=True):
            weight.array = array


def narrowed(scheme: Scheme, bits: int) -> Scheme:
    """A scheme of 8 bits for the same range with fewer steps, the lowest ones of its type. 0 stays exact."""
    if bits >= 8:
        return scheme
    low, high = (float(r) for r in scheme.reals)
    least, _ = scheme.bounds
    most = least + 2**bits - 1
    scale = np.float32(max((high - low) / (most - least), LEAST_SCALE))
    zero = int(np.clip(np.rint(least - low / scale), least, most))
    return replace(scheme, scale=np.asarray(scale, np.float32), zero_point=zero, low=least, high=most)


__all__ = ["narrowed", "quantize_aware"]
