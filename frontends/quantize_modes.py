"""The modes of quantization behind one face: a graph goes in, a quantized graph and a row for each layer come out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..compiler.ir import Graph, Value
from ..compiler.quantize.control import decibels
from ..compiler.quantize.settings import Settings
from ..errors import NervureError
from .calibration import Samples
from .quantize_settings import HALVES, AnySettings, WeightSettings

Progress = Callable[[str, int, int], None]
BARS = 64  # of a histogram in a report


@dataclass(frozen=True)
class Quantized:
    """A quantized graph; ``rows`` are described at ``quantize_report.Report.layers``. ``state`` is the mode's own."""

    graph: Graph
    rows: tuple[dict[str, Any], ...]
    notes: tuple[str, ...] = ()
    state: Any = field(default=None, repr=False)

    def ranked(self) -> list[dict[str, Any]]:
        """The quantized layers, the worst first."""
        from .quantize_report import rank

        return rank(self.rows)


def quantized(
    mode: str,
    graph: Graph,
    samples: Samples | None,
    settings: AnySettings,
    progress: Progress,
    before: Quantized | None = None,
) -> Quantized:
    """``graph`` quantized. ``before``: an earlier result for the same graph and samples, of which what still holds is
    taken over; then ``rows`` lack what each layer costs (see ``with_facts``)."""
    if isinstance(settings, WeightSettings):
        return _weights_only(graph, samples, settings, progress)
    if mode == "dynamic":
        return _dynamic(graph, settings)
    assert samples is not None
    return _static(graph, samples, settings, progress, before)


# -- weights alone, and dynamic ----------------------------------------------------------------------------------------


def _weights_only(graph: Graph, samples: Samples | None, settings: WeightSettings, progress: Progress) -> Quantized:
    from ..compiler.quantize.weights import halve_weights, quantize_weights, weights_of

    kept = settings.float_patterns
    if settings.weights in HALVES:
        made = halve_weights(graph, settings.weights, float_patterns=kept)
        every = {made.node(n).names[0].removesuffix(".half") for n in made if made.node(n).names[0].endswith(".half")}
        rows = [_weight_row(name, settings.weights, None) for name in sorted(every)]
        return Quantized(made, tuple(rows))
    if settings.gptq and samples is None:
        raise NervureError("GPTQ needs calibration data", hint="give calibration, or leave gptq out")
    bits, how = int(settings.weights[3:]), "gptq" if settings.gptq else "nearest"
    feeds = list(samples) if settings.gptq and samples is not None else None
    made = quantize_weights(graph, bits, settings.group, how, feeds, progress=progress, float_patterns=kept)
    rows = [_weight_row(r.name, f"int{r.bits}", r) for r in made.meta["weights"]]
    rows += [_weight_row(w.name, "float", None) for w in weights_of(made)]
    return Quantized(made, tuple(rows))


def _weight_row(name: str, form: str, row: Any) -> dict[str, Any]:
    facts: dict[str, Any] = {"name": name, "op": "weight", "format": form, "sqnr_db": None, "causes": {}}
    if form == "float":
        facts["why"] = "a pattern names it, or it has no form of this kind"
    if row is not None:
        facts["sqnr_db"] = _decibels(row.loss)
        facts |= {"causes": {"rounding": 1.0} if row.loss > 0 else {}, "scales": row.scales, "method": row.method}
    return facts


def _dynamic(graph: Graph, settings: Settings) -> Quantized:
    from ..compiler.quantize.dynamic import quantize_dynamic
    from ..compiler.quantize.quantizer import prepare

    plain = prepare(graph)
    made = quantize_dynamic(plain, settings)
    place = {name: i for i, key in enumerate(plain.order()) for name in plain.node(key).names}
    nodes = [m.node for m in made.products] + [m.node for m in made.recurrences]
    names = {plain.node(n).names[0]: plain.node(n).op for n in nodes}
    rows: list[dict[str, Any]] = [
        {"name": n, "op": op, "format": "int8", "sqnr_db": None, "causes": {}} for n, op in names.items()
    ]
    rows += [_float_row(plain, name, why) for name, why in made.floats.items()]
    rows.sort(key=lambda r: place.get(str(r["name"]), len(place)))
    notes = (
        () if names else ("nothing was quantized: the model has no matrix product, LSTM or GRU with constant weights",)
    )
    return Quantized(made.graph, tuple(rows), notes)


def _float_row(graph: Graph, name: str, why: str) -> dict[str, Any]:
    op = graph.node(_node(graph, name)).op
    return {"name": name, "op": op, "format": "float", "why": why, "sqnr_db": None, "causes": {}}


# -- static ------------------------------------------------------------------------------------------------------------


def _static(
    graph: Graph, samples: Samples, settings: Settings, progress: Progress, before: Quantized | None
) -> Quantized:
    from ..compiler.quantize.quantizer import quantize

    observed = None if before is None else before.state
    made = quantize(graph, samples, settings, progress, observed=observed, measure=before is None)
    return Quantized(made.graph, tuple(_static_rows(made)), state=made)


def with_facts(made: Quantized, progress: Progress) -> Quantized:
    """The same with what quantization costs each layer, where that was left out."""
    if made.state is None or made.state.facts or not made.state.sites.layers:
        return made
    from ..compiler.quantize.measure import layer_facts

    held = made.state
    facts = layer_facts(held.base, held.graph, held.base_sites, held.schemes, held.calls, progress)
    state = replace(held, facts=facts)
    return replace(made, rows=tuple(_static_rows(state)), state=state)


def _static_rows(made: Any) -> list[dict[str, Any]]:
    """Layers in the network's order, then what stays in float."""
    plain: Graph = made.plain
    behind = _sites_behind(plain, made.schemes)
    place = {name: i for i, key in enumerate(plain.order()) for name in plain.node(key).names}
    rows = []
    for layer in made.sites.layers:
        site = behind.get(layer.name)
        scheme = made.schemes[layer.weight]
        before = _input_site(made, layer)
        formats = [s.dtype for s in (before, made.schemes.get(site) if site else None) if s is not None]
        facts = made.facts.get(layer.name, {})
        row = {
            "name": layer.name,
            "op": plain.node(layer.node).op,
            "format": "int16" if "int16" in formats else formats[0] if formats else "int8",
            "weights": _weights(plain, layer, scheme),
            "sqnr_db": _number(facts.get("sqnr_db")),
            "causes": {k: float(v) for k, v in facts.get("causes", {}).items()},
            "parts": {k: float(v) for k, v in facts.get("parts", {}).items()},
            "origin": list(plain.node(layer.node).origin),
        }
        shown = site or _input_name(plain, layer)
        rows.append(row | (_activation(made, shown) if shown in made.schemes else {}))
    for layer in made.sites.recurrences:
        op, site = plain.node(layer.node).op, plain.tensor_name(layer.y)
        row = {"name": layer.name, "op": op, "format": made.schemes[site].dtype, "sqnr_db": None, "causes": {}}
        rows.append(row | _activation(made, site))
    rows += [_float_row(plain, name, why) for name, why in made.sites.floats.items()]
    rows.sort(key=lambda r: place.get(str(r["name"]), len(place)))
    return rows


def _node(graph: Graph, name: str) -> int:
    return next(key for key in graph.order() if name in graph.node(key).names)


def _number(value: Any) -> float | None:
    return None if value is None or not np.isfinite(value) else float(value)


def _input_site(made: Any, layer: Any) -> Any:
    from ..compiler.quantize.quantizer import input_scheme

    return input_scheme(made.plain, layer, made.schemes)


def _input_name(graph: Graph, layer: Any) -> str:
    """What a layer reads: shown where what it computes has no quantizer."""
    from ..compiler.quantize.place import origin_of

    value = graph.args(layer.node)[0]
    assert value is not None
    return graph.tensor_name(origin_of(graph, value))


def _sites_behind(graph: Graph, schemes: Mapping[str, Any]) -> dict[str, str]:
    """Of each tensor's name: the tensor with a quantizer that it becomes through relu and clip."""
    found: dict[str, str] = {}
    for key in graph.order():
        name = graph.node(key).names[0]
        at, steps = Value(key), 0
        while steps < 4 and graph.tensor_name(at) not in schemes:
            users = graph.users(at)
            if len(users) != 1 or graph.node(users[0][0]).op not in ("relu", "clip", "identity", "add"):
                break
            at, steps = Value(users[0][0]), steps + 1
        if graph.tensor_name(at) in schemes and graph.node(at).op != "const":
            found[name] = graph.tensor_name(at)
    return found


def _weights(graph: Graph, layer: Any, scheme: Any) -> dict[str, Any]:
    """How the weights fit their scales: SQNR of rounding them (of all, and of the channel that is worst off), extremes
    of the channels' ranges."""
    array = graph.constant(graph.args(layer.node)[1])
    assert array is not None
    wide = array.astype(np.float64)
    flat = [np.moveaxis(a, layer.axis, 0).reshape(layer.channels, -1) for a in (wide, scheme.rounded(array) - wide)]
    power, error = (np.square(a).sum(axis=1) for a in flat)
    reach = np.abs(flat[0]).max(axis=1)
    some = reach > 0
    noisy = (error / np.where(some, power, 1.0))[some].max(initial=0.0)
    return {
        "bits": 8 if scheme.high is None else int(scheme.high).bit_length() + 1,
        "channels": int(layer.channels),
        "scales": int(scheme.scale.size),
        "sqnr_db": _decibels(float(error.sum() / power.sum())) if some.any() else None,
        "worst_channel_db": _decibels(float(noisy)) if some.any() else None,
        "channel_ratio": float(reach[some].max() / reach[some].min()) if some.any() else 1.0,
        "zero_channels": int((~some).sum()),
    }


def _decibels(noise: float) -> float | None:
    return _number(decibels(noise))


def _activation(made: Any, site: str) -> dict[str, Any]:
    """Range, clip and histogram of a tensor."""
    scheme, extent, counted = made.schemes[site], made.extents.get(site), made.histograms.get(site)
    low, high = (float(v) for v in scheme.reals)
    found: dict[str, Any] = {"tensor": site, "clip": [low, high]}
    if extent is not None:
        found["range"] = [float(extent.low), float(extent.high)]
    if counted is not None and counted.high > counted.low:
        found["histogram"] = {"low": float(counted.low), "high": float(counted.high), "counts": _coarse(counted.counts)}
    return found


def _coarse(counts: Sequence[int]) -> list[int]:
    """A histogram with at most ``BARS`` bars."""
    array = np.asarray(counts, np.int64)
    step = -(-len(array) // BARS)
    padded = np.concatenate([array, np.zeros(-len(array) % step, np.int64)])
    return [int(v) for v in padded.reshape(-1, step).sum(1)]
