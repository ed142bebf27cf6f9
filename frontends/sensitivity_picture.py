"""The picture of a sensitivity scan, as SVG text: layers against sparsities, the darker the more it costs."""

from __future__ import annotations

from html import escape
from itertools import pairwise
from typing import TYPE_CHECKING

from ..runtime.curves import BLUE, GRID, INK

if TYPE_CHECKING:
    from .sensitivity import Point, Sensitivity

LABEL, CELL, ROW, BARS, EDGE = 250.0, 62.0, 24.0, 150.0, 16.0
HEAD, FOOT = 92.0, 60.0
STOPS = ((0.0, (255, 255, 255)), (0.12, (253, 232, 196)), (0.4, (245, 158, 66)), (1.0, (150, 32, 16)))
WORST = 0.3  # damage that is painted in the darkest colour: of a score, 30 points


def picture(found: Sensitivity, title: str = "") -> str:
    """The scan as a table of colours. The same values give the same text."""
    layers = found.layers
    columns = sorted({p.asked for p in found.rows})
    width = LABEL + CELL * len(columns) + BARS + 2 * EDGE
    height = HEAD + ROW * len(layers) + FOOT
    most = max(p.weights for p in found.rows)
    total = sum({p.layer: p.weights for p in found.rows}.values())
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
        f'height="{height:g}" font-family="sans-serif" font-size="11" fill="{INK}">',
        f'<rect width="{width:g}" height="{height:g}" fill="#ffffff"/>',
        *_head(found, title, columns, width),
    ]
    for i, layer in enumerate(layers):
        points = [p for p in found.rows if p.layer == layer]
        parts += _row(found, layer, points, columns, HEAD + i * ROW, most, total)
    parts += _legend(found, HEAD + ROW * len(layers) + 22)
    return "\n".join([*parts, "</svg>", ""])


def _head(found: Sensitivity, title: str, columns: list[float], width: float) -> list[str]:
    named = title or "One layer pruned, the others dense"
    said = [f"{found.structure}", f"{found.samples} sample{'s' if found.samples != 1 else ''}"]
    if found.dense is not None:
        said.append(f"{found.metric} of the dense model {_number(found, found.dense)}")
    parts = [
        f'<text x="{EDGE:g}" y="26" font-size="16">{escape(named)}</text>',
        f'<text x="{EDGE:g}" y="45" fill="#777777">{escape(", ".join(said))}</text>',
        f'<text x="{EDGE + LABEL - 12:g}" y="{HEAD - 10:g}" text-anchor="end" fill="#777777">'
        f"{'weights' if found.structure not in KINDS else found.structure} that are zero</text>",
    ]
    for j, sparsity in enumerate(columns):
        x = EDGE + LABEL + (j + 0.5) * CELL
        parts.append(f'<text x="{x:g}" y="{HEAD - 10:g}" text-anchor="middle" font-size="12">{sparsity:.0%}</text>')
    parts.append(
        f'<text x="{EDGE + LABEL + CELL * len(columns) + 14:g}" y="{HEAD - 10:g}" fill="#777777">'
        f"share of the weights</text>"
    )
    return parts


KINDS = ("channels", "heads", "units", "groups", "blocks")


def _row(
    found: Sensitivity, layer: str, points: list[Point], columns: list[float], y: float, most: int, total: int
) -> list[str]:
    middle = y + ROW / 2 + 4
    parts = [
        f'<g><title>{escape(layer)}</title><text x="{EDGE + LABEL - 12:g}" y="{middle:g}" text-anchor="end">'
        f"{escape(_short(layer))}</text></g>"
    ]
    for j, column in enumerate(columns):
        point = next((p for p in points if p.asked == column), None)
        x = EDGE + LABEL + j * CELL
        if point is None:
            parts.append(f'<rect x="{x:g}" y="{y:g}" width="{CELL:g}" height="{ROW:g}" fill="#fafafa"/>')
            continue
        damage = max(found.damage(point), 0.0) / WORST
        ink = "#ffffff" if damage > 0.75 else INK
        parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{CELL:g}" height="{ROW:g}" fill="{_colour(damage)}" stroke="{GRID}"/>'
        )
        parts.append(
            f'<text x="{x + CELL / 2:g}" y="{middle:g}" text-anchor="middle" fill="{ink}">'
            f"<title>{escape(layer)} at {point.sparsity:.1%}</title>{_number(found, _value(point))}</text>"
        )
    x = EDGE + LABEL + len(columns) * CELL + 14
    size = points[0].weights
    length = (BARS - 64) * size / most
    parts.append(f'<rect x="{x:g}" y="{y + 6:g}" width="{max(length, 1):.1f}" height="{ROW - 12:g}" fill="{BLUE}"/>')
    parts.append(f'<text x="{x + max(length, 1) + 5:.1f}" y="{middle:g}" fill="#777777">{size / total:.1%}</text>')
    return parts


def _legend(found: Sensitivity, y: float) -> list[str]:
    what = found.metric or ("rows of the same class" if found.rows[0].agreement is not None else "noise over signal")
    parts = [
        f'<text x="{EDGE + LABEL - 12:g}" y="{y + 11:g}" text-anchor="end" fill="#777777">{escape(what)}: loss</text>'
    ]
    steps = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3)
    for i, step in enumerate(steps):
        x = EDGE + LABEL + i * 54
        text = f"{step:.0%}" if step < WORST else f"{step:.0%} or more"
        parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="14" height="14" fill="{_colour(step / WORST)}" stroke="{GRID}"/>'
        )
        parts.append(f'<text x="{x + 19:g}" y="{y + 11:g}">{text}</text>')
    return parts


def _value(point: Point) -> float:
    if point.score is not None:
        return point.score
    return point.noise if point.agreement is None else point.agreement


def _number(found: Sensitivity, value: float) -> str:
    """A part of 1 in per cent; a noise or an r2 as it is."""
    plain = found.metric == "r2" or (found.metric is None and found.rows[0].agreement is None)
    return f"{value:.2g}" if plain else f"{100 * value:.1f}"


def _short(name: str, most: int = 38) -> str:
    return name if len(name) <= most else f"{name[: most // 2 - 1]}…{name[-most // 2 :]}"


def _colour(damage: float) -> str:
    at = min(max(damage, 0.0), 1.0)
    for (low, first), (high, last) in pairwise(STOPS):
        if at <= high:
            part = (at - low) / (high - low)
            return "#" + "".join(f"{round(a + (b - a) * part):02x}" for a, b in zip(first, last, strict=True))
    return "#962010"
