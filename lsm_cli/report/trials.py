"""Charts of a search over options, as SVG for pages: its history, its options side by side, its objectives against
each other. The same numbers as PNG are drawn by `report.png`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import Any

from lsm_cli.report.html import COLOURS, WIDTH

GREY, GRID = "#a7b0bb", "#e3e7ec"
WIDE, HIGH = 960, 340


@dataclass(frozen=True)
class Dot:
    """One trial in the plane."""

    x: float
    y: float
    told: str  # shown when pointed at
    strong: bool = True  # else drawn faintly: a trial that was stopped, or one that others beat


@dataclass(frozen=True)
class Axis:
    """One option as a vertical axis from 0 to 1."""

    label: str
    ticks: list[tuple[float, str]]


@dataclass(frozen=True)
class Line:
    """One trial across the axes that it has: (axis, place on it)."""

    points: list[tuple[int, float]]
    quality: float  # 0 = worst, 1 = best
    told: str


def axis(label: str, values: Sequence[Any], log: bool = False) -> tuple[Axis, list[float | None]]:
    """An axis for the values of one option, and the place of each on it; None has no place.

    Numbers of more than six values lie on a scale, everything else in its order, evenly apart.
    """
    present = [value for value in values if value is not None]
    distinct = list(dict.fromkeys(present))
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in distinct)
    if numeric:
        distinct.sort()
    if numeric and len(distinct) > 6:
        scale = math.log if log and distinct[0] > 0 else float
        low, high = scale(distinct[0]), scale(distinct[-1])
        back = math.exp if log and distinct[0] > 0 else float
        ticks = [(step / 4, f"{back(low + (high - low) * step / 4):.3g}") for step in range(5)]
        return Axis(label, ticks), [None if value is None else (scale(value) - low) / (high - low) for value in values]
    places = {str(value): (number + 0.5) / len(distinct) for number, value in enumerate(distinct)}
    shown = {str(value): f"{value:.3g}" if isinstance(value, float) else str(value) for value in distinct}
    return Axis(label, [(place, shown[key]) for key, place in places.items()]), [
        None if value is None else places[str(value)] for value in values
    ]


def ranks(values: Sequence[float], larger: bool) -> list[float]:
    """How good each value is among all: 0 = worst, 1 = best."""
    order = sorted(values, reverse=not larger)
    return [order.index(value) / max(len(order) - 1, 1) for value in values]


def colour(quality: float) -> str:
    """From a faint grey-blue to the full colour of the best."""
    weak, strong = (200, 208, 218), (37, 99, 235)
    share = quality**2
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in zip(weak, strong, strict=True))


def history(dots: Sequence[Dot], best: Sequence[tuple[float, float]], across: str, up: str) -> str:
    """Trials by number, and the best so far as a step line."""
    path = list(best[:1])
    for (_, before), (x, y) in pairwise(best):
        path += [(x, before), (x, y)]
    return scatter(dots, across, up, path)


def scatter(dots: Sequence[Dot], across: str, up: str, path: Sequence[tuple[float, float]] = ()) -> str:
    """Dots in the plane, with a line through some points."""
    left, right, top, bottom, height = 72, 16, 16, 44, 300
    (low_x, high_x), (low_y, high_y) = (_span([getattr(dot, name) for dot in dots]) for name in "xy")

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            round(left + (x - low_x) / (high_x - low_x) * (WIDTH - left - right), 1),
            round(height - bottom - (y - low_y) / (high_y - low_y) * (height - top - bottom), 1),
        )

    drawn = [f'<svg viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img">']
    for x in _ticks([dot.x for dot in dots]):
        at_x, _ = place(x, low_y)
        drawn.append(f'<text x="{at_x}" y="{height - bottom + 18}" text-anchor="middle">{x:.4g}</text>')
    for step in range(5):
        y = low_y + (high_y - low_y) * step / 4
        _, at_y = place(low_x, y)
        drawn.append(f'<line x1="{left}" x2="{WIDTH - right}" y1="{at_y}" y2="{at_y}" stroke="{GRID}"/>')
        drawn.append(f'<text x="{left - 8}" y="{at_y + 4}" text-anchor="end">{y:.4g}</text>')
    drawn.append(f'<text x="{WIDTH - right}" y="{height - 6}" text-anchor="end">{escape(across)}</text>')
    drawn.append(f'<text x="{left}" y="{top - 4}">{escape(up)}</text>')
    if path:
        points = " ".join(f"{x},{y}" for x, y in (place(*point) for point in path))
        drawn.append(f'<polyline points="{points}" fill="none" stroke="{COLOURS[1]}" stroke-width="2"/>')
    for dot in sorted(dots, key=lambda dot: dot.strong):
        x, y = place(dot.x, dot.y)
        drawn.append(
            f'<circle cx="{x}" cy="{y}" r="4" fill="{COLOURS[0] if dot.strong else GREY}"><title>{escape(dot.told)}'
            "</title></circle>"
        )
    return "".join(drawn) + "</svg>"


def parallel(axes: Sequence[Axis], lines: Sequence[Line]) -> str:
    """One vertical axis per option, one line per trial, the better the bluer."""
    left, right, top, bottom = 60, 90, 40, 16
    gap = (WIDE - left - right) / max(len(axes) - 1, 1)

    def place(number: int, share: float) -> tuple[float, float]:
        return round(left + number * gap, 1), round(HIGH - bottom - share * (HIGH - top - bottom), 1)

    drawn = [f'<svg viewBox="0 0 {WIDE} {HIGH}" width="100%" role="img">']
    for line in sorted(lines, key=lambda line: line.quality):
        points = " ".join(f"{x},{y}" for x, y in (place(*point) for point in line.points))
        width = 1 + 1.5 * line.quality
        drawn.append(
            f'<polyline points="{points}" fill="none" stroke="{colour(line.quality)}" stroke-width="{width:.1f}">'
            f"<title>{escape(line.told)}</title></polyline>"
        )
    for number, one in enumerate(axes):
        x, low = place(number, 0)
        _, high = place(number, 1)
        drawn.append(f'<line x1="{x}" x2="{x}" y1="{low}" y2="{high}" stroke="#55606e"/>')
        label = one.label.split(".")[-1]
        drawn.append(f'<text x="{x}" y="{high - 14 - 12 * (number % 2)}" text-anchor="middle">{escape(label)}</text>')
        for share, text in one.ticks:
            _, y = place(number, share)
            halo = 'style="paint-order:stroke;stroke:#fff;stroke-width:3px"'
            drawn.append(f'<text x="{x + 5}" y="{y + 4}" {halo}>{escape(text)}</text>')
    return "".join(drawn) + "</svg>"


def _ticks(values: Sequence[float]) -> list[float]:
    """Five marks from the lowest to the highest; whole numbers where all values are."""
    low, high = min(values), max(values)
    marks = [low + (high - low) * step / 4 for step in range(5)]
    return sorted({round(mark) for mark in marks}) if all(value == int(value) for value in values) else marks


def _span(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    margin = (high - low) * 0.05 or abs(high) * 0.05 or 0.5
    return low - margin, high + margin
