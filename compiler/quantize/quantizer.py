"""Post-training quantization from end to end: a float graph and samples in, a graph with quantizers and facts out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ...errors import NervureError
from ..ir import STORED, Graph
from ..passes import canonicalize
from .correct import correct_biases
from .equalize import equalize
from .forms import Layer
from .measure import layer_facts
from .observe import Extent, Histogram, Progress, Watcher, compiled, extents, histograms, silent
from .place import Sites, insert, origin_of, sites
from .ranges import activation_range, weight_scheme
from .rounding import round_adaptively
from .samples import Samples, feeds
from .scheme import LEAST_SCALE, Scheme, affine
from .settings import Settings
from .smooth import smooth

CANDIDATES = ("mse", "average")  # of method "auto", the first one where they are equal
COMPARED = 32  # samples that decide between them


@dataclass(frozen=True)
class Quantized:
    """A quantized network.

    ``graph`` has quantizers and is what to compile or export; ``plain`` is the float graph it was made of (canonical,
    with equalized or corrected weights), ``base`` the same before weights were rounded and biases corrected;
    ``schemes`` say how each tensor is stored, ``facts`` what that costs each layer (see ``measure.layer_facts``);
    ``calls`` are the samples, ``method`` is how ranges were chosen (never "auto").
    """

    graph: Graph
    plain: Graph
    sites: Sites
    settings: Settings
    schemes: Mapping[str, Scheme]
    extents: Mapping[str, Extent]
    histograms: Mapping[str, Histogram] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    base: Graph | None = None
    calls: Sequence[Mapping[str, np.ndarray]] = ()
    method: str = ""

    @property
    def base_sites(self) -> Sites:
        """The sites of ``base``, whose layers may have no bias where those of ``plain`` were given one."""
        assert self.base is not None
        return sites(self.base, self.settings)


def quantize(
    graph: Graph,
    samples: Samples,
    settings: Settings | None = None,
    progress: Progress | None = None,
    *,
    observed: Quantized | None = None,
    measure: bool = True,
) -> Quantized:
    """Quantizes a static float graph.

    ``samples``: see ``samples.feeds``. ``observed``: what an earlier call made of the same graph and samples; what it
    saw serves again where only patterns, element types or ranges differ. Without ``measure`` there are no ``facts``.
    Raises ``NervureError`` for samples or settings that do not fit, for NaN or infinity in a tensor, and for a graph
    that has quantizers already.
    """
    settings, tell = settings or Settings(), progress or silent
    base, calls, seen, counted = _observations(graph, samples, settings, tell, observed)
    placed = sites(base, settings)
    method = settings.method
    if method == "auto":
        method = _best_method(base, placed, seen, counted, calls, settings, tell)
    schemes = _schemes(base, placed, seen, counted, replace(settings, method=method))
    plain = base
    if settings.rounding == "adaptive":
        plain = round_adaptively(plain, placed, schemes, calls, tell)
    if settings.bias_correction and placed.layers:
        plain = correct_biases(plain, placed, schemes, calls, tell, base)
    before, placed = placed, (placed if plain is base else sites(plain, settings))
    made = insert(plain, schemes, placed.floats)
    facts = layer_facts(base, made, before, schemes, calls, tell) if measure and placed.layers else {}
    return Quantized(made, plain, placed, settings, schemes, seen, counted, facts, base, calls, method)


def _schemes(
    graph: Graph, placed: Sites, seen: Mapping[str, Extent], counted: Mapping[str, Histogram], settings: Settings
) -> dict[str, Scheme]:
    found = activation_schemes(placed, seen, counted, settings)
    return found | weight_schemes(graph, placed, found, settings)


def _best_method(
    graph: Graph,
    placed: Sites,
    seen: Mapping[str, Extent],
    counted: Mapping[str, Histogram],
    calls: Sequence[Mapping[str, np.ndarray]],
    settings: Settings,
    tell: Progress,
) -> str:
    """The method among ``CANDIDATES`` whose quantized network differs least from the float one on some samples.

    What a tensor's own error says about the outputs differs from network to network: clipping rare large values is
    harmless in some and ruins others. So it is measured, by the outputs' noise over signal, each sample alike.
    """
    some = calls[:COMPARED]
    with compiled(graph) as run:
        real = [[y.astype(np.float64) for y in run(call)] for call in some]
    loss = {}
    for method in CANDIDATES:
        schemes = _schemes(graph, placed, seen, counted, replace(settings, method=method))
        total = 0.0
        with compiled(insert(graph, schemes, placed.floats)) as run:
            for i, (call, wanted) in enumerate(zip(some, real, strict=True)):
                for y, exact in zip(run(call), wanted, strict=True):
                    total += float(np.square(y - exact).sum() / max(float(np.square(exact).sum()), 1e-30))
                tell(f"trying {method}", i + 1, len(some))
        loss[method] = total
    return min(CANDIDATES, key=lambda m: loss[m])


def _observations(
    graph: Graph, samples: Samples, settings: Settings, tell: Progress, observed: Quantized | None
) -> tuple[Graph, Sequence[Mapping[str, np.ndarray]], dict[str, Extent], dict[str, Histogram]]:
    """The float graph (canonical, smoothed, equalized), the calls, and what its sites held."""
    if observed is not None and observed.base is not None and _alike(observed.settings, settings):
        names = [s.name for s in sites(observed.base, settings).activations]
        if all(name in observed.extents and name in observed.histograms for name in names):
            return observed.base, observed.calls, dict(observed.extents), dict(observed.histograms)
    plain = prepare(graph)
    calls = feeds(plain, samples)
    if settings.smooth is not None:
        plain = smooth(plain, sites(plain, settings), calls, settings.smooth, tell)
    if settings.equalize:
        plain = equalize(plain, sites(plain, settings), calls, tell, settings.weight_bits)
    names = [s.name for s in sites(plain, settings).activations]
    with Watcher(plain, names) as watcher:
        seen = extents(watcher, names, calls, settings.momentum, tell)
        counted = histograms(watcher, seen, calls, settings.bins, tell)
    return plain, calls, seen, counted


def _alike(a: Settings, b: Settings) -> bool:
    """Whether what was observed with one serves the other."""
    return all(getattr(a, n) == getattr(b, n) for n in ("equalize", "smooth", "bins", "momentum", "weight_bits"))


def prepare(graph: Graph) -> Graph:
    """The canonical form of a float graph, its parameters as constants."""
    work = graph.copy()
    for key in list(work.nx):
        node = work.node(key)
        if node.op == "param" and key not in work.bindings:
            work.set_node(key, op="const")
        if node.op in ("quantize", "dequantize"):
            raise NervureError("the network is quantized already", where=node.origin, hint="give the float network")
        if node.op not in STORED and not all(t.static for t in node.types):
            raise NervureError("the network's shapes are not known", where=node.origin, hint="bind its dimensions")
    return canonicalize(work)


def activation_schemes(
    placed: Sites, seen: Mapping[str, Extent], counted: Mapping[str, Histogram], settings: Settings
) -> dict[str, Scheme]:
    """A scheme for each activation."""
    found = {}
    for site in placed.activations:
        low, high = activation_range(seen[site.name], counted.get(site.name), site.dtype, settings)
        found[site.name] = site.fixed or affine(low, high, site.dtype)
    return found


def weight_schemes(graph: Graph, placed: Sites, schemes: Mapping[str, Scheme], settings: Settings) -> dict[str, Scheme]:
    """A scheme for each layer's weight. Where a bias would need more than 2^30 steps, the channel's scale is raised."""
    found: dict[str, Scheme] = {}
    for layer in placed.layers:
        array = graph.constant(graph.args(layer.node)[1])
        assert array is not None
        scheme = found.get(layer.weight) or weight_scheme(array, layer.axis, settings)
        scheme = _holding_bias(graph, layer, scheme, input_scheme(graph, layer, schemes))
        found[layer.weight] = scheme
    return found


def _holding_bias(graph: Graph, layer: Layer, scheme: Scheme, before: Scheme | None) -> Scheme:
    if layer.bias_at is None:
        return scheme
    at, arg = layer.bias_at
    bias = graph.constant(graph.args(at)[arg])
    if bias is None or before is None:
        return scheme
    least = np.abs(bias.astype(np.float64)).reshape(-1) / (float(before.scale) * 2.0**30)
    shape = scheme.scale.shape
    needed = np.broadcast_to(least, layer.channels).reshape(shape) if scheme.scale.size > 1 else least.max()
    raised = np.maximum(scheme.scale, np.maximum(needed, LEAST_SCALE)).astype(np.float32)
    return Scheme(scheme.dtype, raised.reshape(shape), scheme.zero_point, scheme.low, scheme.high)


def input_scheme(graph: Graph, layer: Layer, schemes: Mapping[str, Scheme]) -> Scheme | None:
    """The scheme of what a layer reads."""
    value = graph.args(layer.node)[0]
    assert value is not None
    return schemes.get(graph.tensor_name(origin_of(graph, value)))


__all__ = ["Quantized", "activation_schemes", "input_scheme", "prepare", "quantize", "weight_schemes"]
