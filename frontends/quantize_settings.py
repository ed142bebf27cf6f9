"""What may be said about a quantization, in each mode. Nothing heavy is imported: the command line's options are made
from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from ..compiler.quantize.settings import Settings
from ..compiler.settings import option
from ..errors import NervureError

MODES = ("static", "dynamic", "weights")
HALVES = ("float16", "bfloat16")


@dataclass(frozen=True)
class WeightSettings:
    """How weights alone are quantized (``mode="weights"``); documented as the fields of ``Settings`` are."""

    weights: str = option("int4", "what weights are stored as, with --mode weights", ("int8", "int4", *HALVES))
    group: int = option(32, "neighbouring weights that share a scale, with --mode weights", (), 2, 1 << 20)
    gptq: bool = option(False, "round weights by what the layer reads (GPTQ; needs samples), with --mode weights")
    float_patterns: tuple[str, ...] = option((), "weights that stay in float (patterns of names)")

    def __post_init__(self) -> None:
        if self.weights not in ("int8", "int4", *HALVES):
            hint = f"use one of: int8, int4, {', '.join(HALVES)}"
            raise NervureError(f"quantization: weights is {self.weights!r}", hint=hint)


AnySettings = Settings | WeightSettings


def settings_for(mode: str, given: Any, options: Mapping[str, Any]) -> AnySettings:
    """The settings of a mode, from an object and single fields. ``NervureError`` for an unknown field."""
    if mode not in MODES:
        raise NervureError(f"mode {mode!r} is unknown", hint=f"use one of: {', '.join(MODES)}")
    kind: Any = WeightSettings if mode == "weights" else Settings
    known, other = ([f.name for f in fields(c)] for c in (kind, Settings if mode == "weights" else WeightSettings))
    unknown = sorted(set(options) - set(known))
    if unknown and unknown[0] in other:
        use = "static" if mode == "weights" else "weights"
        raise NervureError(f"{unknown[0]} does nothing with mode {mode!r}", hint=f"leave it out, or use mode {use!r}")
    if unknown:
        raise NervureError(f"quantization has no setting {unknown[0]!r}", hint=f"settings: {', '.join(known)}")
    clean = {n: (v,) if isinstance(v, str) else tuple(v) for n, v in options.items() if n.endswith("_patterns")}
    made: AnySettings = replace(given or kind(), **{**options, **clean})
    return made


def promoted(settings: AnySettings, names: Mapping[str, str]) -> AnySettings:
    """Settings with these layers in ``float`` or ``int16``."""
    more = {kind: tuple(sorted(n for n, k in names.items() if k == kind)) for kind in ("float", "int16")}
    made: AnySettings = replace(settings, float_patterns=(*settings.float_patterns, *more["float"]))
    if isinstance(made, Settings) and more["int16"]:
        made = replace(made, int16_patterns=(*made.int16_patterns, *more["int16"]))
    return made
