"""What a user may say about post-training quantization. Command-line options are made from these fields."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase

from ...errors import NervureError
from ..settings import check_options, option

METHODS = ("auto", "minmax", "average", "percentile", "entropy", "mse")


@dataclass(frozen=True)
class Settings:
    """How to quantize (``metadata["doc"]`` of a field: what it does). ``NervureError`` for a value out of range."""

    activations: str = option("int8", "element type of activations", ("int8", "uint8", "int16"))
    weights: str = option("int8", "element type that weights are stored in", ("int8",))
    weight_bits: int = option(8, "bits of a weight, stored as int8", tuple(range(8, 1, -1)))
    per_channel: bool = option(True, "one weight scale for each output channel instead of one for the layer")
    method: str = option("auto", "how the range of an activation is chosen from the samples", METHODS)
    percentile: float = option(99.99, "percentile: percentage of values inside the range", (), 50, 100)
    momentum: float = option(0.0, "average: weight of each further sample (0: all alike, a plain mean)", (), 0, 1)
    bins: int = option(2048, "bins of the histograms that percentile, entropy and mse read", (), 256, 1 << 16)
    weight_method: str = option("mse", "how the range of a weight is chosen", ("minmax", "mse"))
    equalize: bool = option(True, "even out the channels of consecutive layers first (cross-layer equalization)")
    bias_correction: bool = option(True, "put the mean error of each channel, as measured, into the bias")
    rounding: str = option(
        "nearest", "rounding of weights: nearest, or adaptive to the inputs", ("nearest", "adaptive")
    )
    smooth: float | None = option(None, "SmoothQuant's alpha: how much of outliers moves into weights", (), 0, 1)
    outputs: bool = option(False, "quantize what only the graph's outputs need (a last softmax, say) as well")
    float_patterns: tuple[str, ...] = option((), "layers or tensors that stay in float (patterns of names)")
    int16_patterns: tuple[str, ...] = option((), "layers or tensors whose activations get 16 bits (patterns of names)")

    def __post_init__(self) -> None:
        check_options(self, "quantization")


def matching(patterns: Iterable[str], names: Iterable[str], what: str = "pattern") -> set[str]:
    """The names that any of the patterns (``*``, ``?``, ``[...]``) matches.

    A name that is spelled out matches itself even where it holds such characters. ``NervureError`` for a pattern that
    matches nothing; it names the closest names.
    """
    every = sorted(set(names))
    found: set[str] = set()
    for pattern in patterns:
        hits = {n for n in every if n == pattern or fnmatchcase(n, pattern)}
        if not hits:
            close = get_close_matches(pattern, every, 3, 0.3) or every[:3]
            raise NervureError(
                f"{what} {pattern!r} matches nothing",
                why=f"the graph has {len(every)} names of layers and tensors",
                hint=f"the closest: {', '.join(map(repr, close))}" if close else None,
            )
        found |= hits
    return found
