"""How the taps of a kernel's row are paired when two neighbouring points lie in one word."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ._dsp_rows import REGISTERS, fits

_MOST_OUTPUTS = 8  # of a tile: their sums are registers
Pair = tuple[int | None, int | None]


@dataclass(frozen=True)
class Taps:
    """A tile of ``outputs`` neighbouring outputs; ``rest`` is the last one of a line where that is smaller (0: none).
    ``pairs`` are the words of weights (numbers of taps, None: 0). ``steps[o]`` are the products of output ``o``:
    ``(word of the tile, word of weights, halves)``, where halves is ``"both"``, or two letters (``b``, ``t``)
    for the half of the points' word and of the weights' word that are multiplied."""

    outputs: int
    rest: int
    pairs: tuple[Pair, ...]
    steps: tuple[tuple[tuple[int, int, str], ...], ...]
    move: int  # words from a tile to the next
    products: float  # instructions of a row of outputs
    loads: float

    @property
    def config(self) -> dict[str, Any]:
        return {
            "outputs": self.outputs,
            "rest": self.rest,
            "pairs": [list(p) for p in self.pairs],
            "steps": [[list(s) for s in steps] for steps in self.steps],
            "move": self.move,
        }


def taps_of(count: int, stride: int, dilation: int, extent: int) -> Taps:
    """The best tile for a row of ``count`` taps and ``extent`` outputs."""
    sizes = [n for n in range(1, _MOST_OUTPUTS + 1) if n <= extent and (n * stride % 2 == 0 or n == extent)]
    found = [_tile(n, count, stride, dilation, extent) for n in sizes or [1]]
    if not sizes:  # an odd stride and one output at a time cannot be: two, the second of which may be left over
        found = [_tile(2, count, stride, dilation, extent)]
    held = [t for t in found if fits(t.outputs, len(t.pairs))] or found[:1]
    return min(
        held, key=lambda t: (t.products + t.loads + 4 * (-(-extent // t.outputs)) + (8 * bool(t.rest)), -t.outputs)
    )


def _tile(outputs: int, count: int, stride: int, dilation: int, extent: int) -> Taps:
    touched = [_words(o, count, stride, dilation) for o in range(outputs)]
    pairs: list[Pair] = []
    for words in touched:
        for both in words.values():
            if None not in both and both not in pairs:
                pairs.append(both)
    alone = {t for words in touched for both in words.values() if None in both for t in both if t is not None}
    missing = sorted(t for t in alone if not any(t in p for p in pairs))
    pairs += [(missing[i], missing[i + 1] if i + 1 < len(missing) else None) for i in range(0, len(missing), 2)]
    steps = tuple(tuple(_step(word, both, pairs) for word, both in words.items()) for words in touched)
    rest, whole = extent % outputs, extent // outputs
    products = float(whole * sum(map(len, steps)) + sum(map(len, steps[:rest])))
    loads = float((whole + bool(rest)) * (2 + -(-_loads(steps) // max(1, REGISTERS - outputs - len(pairs)))))
    return Taps(outputs, rest, tuple(pairs), steps, outputs * stride // 2, products, loads)


def _words(output: int, count: int, stride: int, dilation: int) -> dict[int, Pair]:
    """For each word that an output touches the taps of its halves."""
    found: dict[int, list[int | None]] = {}
    for t in range(count):
        at = output * stride + t * dilation
        found.setdefault(at // 2, [None, None])[at % 2] = t
    return {word: (both[0], both[1]) for word, both in found.items()}


def _step(word: int, both: Pair, pairs: list[Pair]) -> tuple[int, int, str]:
    if both in pairs and None not in both:
        return word, pairs.index(both), "both"
    half = 0 if both[1] is None else 1
    place = next(i for i, p in enumerate(pairs) if both[half] in p)
    return word, place, "bt"[half] + "bt"[pairs[place].index(both[half])]


def _loads(steps: Any) -> int:
    last: int = max(word for each in steps for word, _, _ in each)
    return last + 1
