"""A picture of training curves as SVG text: one panel for each quantity, training and validation in one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT = 400.0, 260.0
LEFT, RIGHT, TOP, BOTTOM = 58.0, 16.0, 34.0, 36.0
BLUE, ORANGE, INK, GRID = "#2563a8", "#d9730d", "#333333", "#e3e6ea"


def svg(history: Mapping[str, Sequence[float]], epochs: Sequence[int] | None = None, title: str = "") -> str:
    """The curves of ``history`` (name -> one value per epoch). The same values give the same text."""
    drawn = [n for n in history if not n.startswith("gradient_norm/")]
    names = [n for n in drawn if not (n.startswith("val_") and n[4:] in history)]
    columns = min(max(len(names), 1), 3)
    rows = -(-max(len(names), 1) // columns)
    head = 30.0 if title else 0.0
    width, height = columns * WIDTH, rows * HEIGHT + head
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
        f'height="{height:g}" font-family="sans-serif" font-size="11" fill="{INK}">',
        f'<rect width="{width:g}" height="{height:g}" fill="#ffffff"/>',
    ]
    if title:
        parts.append(f'<text x="{width / 2:g}" y="21" text-anchor="middle" font-size="15">{escape(title)}</text>')
    for i, name in enumerate(names):
        lines = [(history[name], BLUE, "training")]
        if f"val_{name}" in history:
            lines.append((history[f"val_{name}"], ORANGE, "validation"))
        place = f"translate({i % columns * WIDTH:g} {i // columns * HEIGHT + head:g})"
        count = max((len(values) for values, _, _ in lines), default=0)
        parts += [f'<g transform="{place}">', *_panel(name, lines, list(epochs or range(1, count + 1))), "</g>"]
    return "\n".join([*parts, "</svg>", ""])


def _panel(name: str, lines: Sequence[tuple[Sequence[float], str, str]], epochs: Sequence[int]) -> list[str]:
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    finite = [v for values, _, _ in lines for v in values if math.isfinite(v)]
    ticks = nice_ticks(min(finite, default=0.0), max(finite, default=1.0))
    low, high = min(ticks[0], *finite) if finite else ticks[0], max(ticks[-1], *finite) if finite else ticks[-1]
    first, last = (epochs[0], epochs[-1]) if epochs else (0, 1)

    def x(epoch: float) -> float:
        return LEFT + (epoch - first) / max(last - first, 1) * (right - LEFT)

    def y(value: float) -> float:
        return bottom - (value - low) / (high - low) * (bottom - TOP)

    label = name.replace("_", " ")
    parts = [f'<text x="{LEFT:g}" y="20" font-size="13">{escape(label)}</text>']
    for tick in ticks:
        parts.append(f'<path d="M{LEFT:g} {y(tick):.1f}H{right:g}" stroke="{GRID}"/>')
        parts.append(f'<text x="{LEFT - 6:g}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:.4g}</text>')
    for tick in sorted({round(t) for t in nice_ticks(first, last, 6) if first <= round(t) <= last}):
        parts.append(f'<text x="{x(tick):.1f}" y="{bottom + 15:g}" text-anchor="middle">{tick}</text>')
    parts.append(f'<text x="{(LEFT + right) / 2:g}" y="{bottom + 30:g}" text-anchor="middle">epoch</text>')
    for i, (values, colour, what) in enumerate(lines):
        points = [(x(e), y(v)) for e, v in zip(epochs, values, strict=False) if math.isfinite(v)]
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="2.5" fill="{colour}"/>' for a, b in points[-1:]]
        if len(lines) > 1:
            at = right - 150 + 70 * i
            parts.append(f'<path d="M{at:g} 16h14" stroke="{colour}" stroke-width="2"/>')
            parts.append(f'<text x="{at + 18:g}" y="20">{what}</text>')
    return parts


def nice_ticks(low: float, high: float, most: int = 5) -> list[float]:
    """At most ``most`` + 1 round numbers (1, 2 or 5 times a power of ten apart) around ``low`` to ``high``."""
    if not high - low > abs(high) * 1e-9:
        pad = abs(high) * 0.1 or 0.5
        low, high = low - pad, high + pad
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next((m * power for m in (1, 2, 5) if m * power >= raw), 10 * power)
    start, end = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(start, end + 1)]
