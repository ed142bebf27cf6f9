"""The modes of quantization behind one face: a graph goes in, a quantized graph and a row for each layer come out."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..compiler.ir import Graph, Value
from ..compiler.quantize.settings import Settings
from ..errors import NervureError
from .calibration import Samples

Progress = Callable[[str, int, int], None]
BARS = 64  # of a histogram in a report
MODES = ("static", "dynamic", "weights")


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
    settings: Settings,
    progress: Progress,
    before: Quantized | None = None,
) -> Quantized:
    """``graph`` quantized. ``before``: an earlier result for the same graph and samples, of which what still holds is
    taken over."""
    if mode == "static":
        assert samples is not None
        return _static(graph, samples, settings, progress, before)
    raise NervureError(f"mode {mode!r} is unknown", hint=f"use one of: {', '.join(MODES)}")


# -- static ------------------------------------------------------------------------------------------------------------


def _static(
    graph: Graph, samples: Samples, settings: Settings, progress: Progress, before: Quantized | None
) -> Quantized:
    from ..compiler.quantize.quantizer import quantize

    known = inspect.signature(quantize).parameters
    more: dict[str, Any] = {}
    if before is not None and "observed" in known:
        more["observed"] = before.state
    made = quantize(graph, samples, settings, progress, **more)
    return Quantized(made.graph, tuple(_static_rows(made)), state=made)


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
            "origin": list(plain.node(layer.node).origin),
        }
        rows.append(row | (_activation(made, site) if site else {}))
    for name, why in made.sites.floats.items():
        op = plain.node(_node(plain, name)).op
        rows.append({"name": name, "op": op, "format": "float", "why": why, "sqnr_db": None, "causes": {}})
    rows.sort(key=lambda r: place.get(str(r["name"]), len(place)))
    return rows


def _node(graph: Graph, name: str) -> int:
    return next(key for key in graph.order() if name in graph.node(key).names)


def _number(value: Any) -> float | None:
    return None if value is None or not np.isfinite(value) else float(value)


def _input_site(made: Any, layer: Any) -> Any:
    from ..compiler.quantize.quantizer import input_scheme

    return input_scheme(made.plain, layer, made.schemes)


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
    """How the weights fit their scales: SQNR of rounding them, extremes of the channels' ranges."""
    array = graph.constant(graph.args(layer.node)[1])
    assert array is not None
    wide = array.astype(np.float64)
    error = float(np.square(scheme.rounded(array).astype(np.float64) - wide).sum())
    power = float(np.square(wide).sum())
    reach = np.abs(np.moveaxis(wide, layer.axis, 0).reshape(layer.channels, -1)).max(axis=1)
    some = reach[reach > 0]
    return {
        "bits": 8 if scheme.high is None else int(scheme.high).bit_length() + 1,
        "channels": int(layer.channels),
        "scales": int(scheme.scale.size),
        "sqnr_db": 10 * float(np.log10(power / error)) if error > 0 and power > 0 else None,
        "channel_ratio": float(some.max() / some.min()) if some.size else 1.0,
        "zero_channels": int((reach == 0).sum()),
    }


def _activation(made: Any, site: str) -> dict[str, Any]:
    """Range, clip and histogram of the tensor in which a layer ends."""
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
