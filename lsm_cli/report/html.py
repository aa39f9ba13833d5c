"""Self-contained HTML pages: text, tables and line charts; no script, no network."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

STYLE = """
:root{color-scheme:light dark;--ink:#1c2430;--soft:#55606e;--line:#e3e7ec;--ground:#fff;--panel:#f5f7f9}
@media(prefers-color-scheme:dark){:root{--ink:#e6e9ed;--soft:#a3adb9;--line:#363e48;--ground:#14181d;--panel:#1d232a}}
body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}
body{color:var(--ink);background:var(--ground)}
h1{font-size:1.5rem;margin-bottom:.3rem}h2{font-size:1.1rem;margin:2rem 0 .6rem}.note{color:var(--soft);font-size:13px}
.wide{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:.25rem .7rem;text-align:right;border-bottom:1px solid var(--line)}
th:first-child,td:first-child,td.text,th.text{text-align:left}th{font-weight:600;color:var(--soft)}
td:not(.text){white-space:nowrap}
.facts td{text-align:left;vertical-align:top;white-space:normal}
.facts td:first-child{color:var(--soft);white-space:nowrap}
.tiles{display:flex;flex-wrap:wrap;gap:.8rem;margin:1.2rem 0}
.tiles div{background:var(--panel);border-radius:8px;padding:.7rem 1rem;min-width:8rem}
.tiles b{display:block;font-size:1.5rem;font-weight:600;line-height:1.3}.tiles span{color:var(--soft);font-size:13px}
pre{background:var(--panel);padding:1rem;overflow:auto;font-size:13px}summary{cursor:pointer;margin-top:2rem;font-weight:600}
svg{max-width:100%;height:auto}svg text{font:12px system-ui,sans-serif;fill:var(--soft)}svg .grid{stroke:var(--line)}
"""
COLOURS = ("#2563eb", "#d9480f", "#2b8a3e", "#862e9c", "#b8860b", "#0b7285")
SHADES = (*COLOURS, "#6b7280", "#be185d", "#4d7c0f", "#1e3a8a", "#9a3412", "#94a3b8")
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 260, 64, 16, 16, 40


class Page:
    """A report built from top to bottom."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.parts: list[str] = []

    def paragraph(self, text: str) -> None:
        self.parts.append(f"<p>{escape(text)}</p>")

    def note(self, text: str) -> None:
        """Small print."""
        self.parts.append(f'<p class="note">{escape(text)}</p>')

    def tiles(self, tiles: Sequence[tuple[str, str, str]]) -> None:
        """The few numbers to be seen first: (what, value, small print) each."""
        drawn = "".join(
            f"<div><span>{escape(what)}</span><b>{escape(value)}</b><span>{escape(note)}</span></div>"
            for what, value, note in tiles
        )
        self.parts.append(f'<div class="tiles">{drawn}</div>')

    def facts(self, title: str, rows: Sequence[tuple[str, Any]]) -> None:
        """What is so: (name, text) each; None is left out."""
        body = "".join(
            f"<tr><td>{escape(name)}</td><td>{escape(str(text))}</td></tr>" for name, text in rows if text is not None
        )
        self.parts.append(f'<h2>{escape(title)}</h2><table class="facts">{body}</table>')

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Columns of numbers to the right, each on one line; of words to the left."""
        cells = [["–" if cell is None else str(cell) for cell in row] for row in rows]
        words = [any(row[at] and row[at][0] not in "+-−–.0123456789" for row in cells) for at in range(len(columns))]
        kinds = [' class="text"' if word else "" for word in words]
        head = "".join(f"<th{kind}>{escape(column)}</th>" for kind, column in zip(kinds, columns, strict=True))
        lines = ("".join(f"<td{kind}>{escape(c)}</td>" for kind, c in zip(kinds, row, strict=True)) for row in cells)
        body = "".join(f"<tr>{line}</tr>" for line in lines)
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        self.parts.append(f'<h2>{escape(title)}</h2><div class="wide">{table}</div>')

    def code(self, title: str, text: str) -> None:
        """Text as it is, folded away."""
        self.parts.append(f"<details><summary>{escape(title)}</summary><pre>{escape(text)}</pre></details>")

    def figure(self, title: str, svg: str, caption: str = "") -> None:
        """A drawing of its own, with what it shows."""
        below = f"<p>{escape(caption)}</p>" if caption else ""
        self.parts.append(f"<h2>{escape(title)}</h2>{svg}{below}")

    def lines(self, title: str, series: Mapping[str, Sequence[tuple[float, float]]]) -> None:
        """A line chart; each series is a sequence of (x, y)."""
        points = [point for line in series.values() for point in line]
        if points:
            self.parts.append(f"<h2>{escape(title)}</h2>{_legend(series)}{_chart(series, points)}")

    def bars(self, title: str, values: Mapping[str, float], unit: str = "") -> None:
        """A horizontal bar per name, longest = the largest value."""
        self.stacks(title, {"": values}, unit)

    def stacks(self, title: str, series: Mapping[str, Mapping[str, float]], unit: str = "") -> None:
        """A horizontal bar per name, made of one piece per series, and the sum beside it."""
        names = list(dict.fromkeys(name for values in series.values() for name in values))
        sums = {name: sum(values.get(name, 0) for values in series.values()) for name in names}
        most, drawn = max(sums.values(), default=0) or 1, []
        for number, name in enumerate(names):
            top, left = 26 * number, 160.0
            drawn.append(f'<text x="150" y="{top + 17}" text-anchor="end">{escape(name)}</text>')
            for place, (kind, values) in enumerate(series.items()):
                long = (WIDTH - 260) * values.get(name, 0) / most
                shape = f'x="{left:.1f}" y="{top + 4}" width="{long:.1f}" height="18"'
                told = f"<title>{escape(kind)} {values.get(name, 0):,.3g}{escape(unit)}</title>"
                drawn.append(f'<rect {shape} fill="{SHADES[place % len(SHADES)]}">{told}</rect>')
                left += long
            value = f"{sums[name]:,.0f}" if sums[name] >= 1000 else f"{sums[name]:.3g}"
            drawn.append(f'<text x="{left + 8:.1f}" y="{top + 17}">{value}{escape(unit)}</text>')
        size = f'viewBox="0 0 {WIDTH} {26 * len(names)}" width="{WIDTH}" height="{26 * len(names)}"'
        self.parts.append(f'<h2>{escape(title)}</h2>{_legend(series)}<svg {size} role="img">{"".join(drawn)}</svg>')

    def timeline(
        self, title: str, points: Sequence[tuple[float, str]], unit: str = "", kinds: Iterable[str] = ()
    ) -> None:
        """A value over time, the area under it coloured by what was going on; `kinds` come first in the colours."""
        if not points:
            return
        kinds = list(dict.fromkeys([*kinds, *(kind for _, kind in points)]))
        shade = {kind: SHADES[place % len(SHADES)] for place, kind in enumerate(kinds)}
        most, wide = max(value for value, _ in points) or 1.0, (WIDTH - LEFT - RIGHT) / len(points)
        drawn = []
        for step in range(5):
            down = HEIGHT - 10 - (HEIGHT - 20) * step / 4
            drawn.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{down}" y2="{down}" class="grid"/>')
            drawn.append(f'<text x="{LEFT - 8}" y="{down + 4}" text-anchor="end">{most * step / 4:.3g}{unit}</text>')
        for place, (value, kind) in enumerate(points):
            tall = (HEIGHT - 20) * value / most
            shape = f'x="{LEFT + place * wide:.1f}" y="{HEIGHT - 10 - tall:.1f}" width="{wide + 0.3:.1f}"'
            told = f"<title>{escape(kind)}: {value:.4g}{escape(unit)}</title>"
            drawn.append(f'<rect {shape} height="{tall:.1f}" fill="{shade[kind]}">{told}</rect>')
        size = f'viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
        self.parts.append(f'<h2>{escape(title)}</h2>{_legend(kinds)}<svg {size} role="img">{"".join(drawn)}</svg>')

    def roofline(self, title: str, bandwidth: float, peak: float, points: Mapping[str, tuple[float, float]]) -> None:
        """FLOP/s over FLOP per byte, both logarithmic, under what bandwidth (byte/s) and peak (FLOP/s) allow."""
        ridge = peak / bandwidth
        many = [ridge / 100, ridge * 100, *(x for x, _ in points.values())]
        low, high = math.floor(math.log10(min(many))), math.ceil(math.log10(max(many)))
        bottom = math.floor(math.log10(min([bandwidth * 10.0**low, *(y for _, y in points.values())])))
        top = math.ceil(math.log10(peak * 1.01))

        def place(x: float, y: float) -> tuple[float, float]:
            across = LEFT + (math.log10(x) - low) / (high - low) * (WIDTH - LEFT - RIGHT)
            down = HEIGHT - BOTTOM - (math.log10(y) - bottom) / (top - bottom) * (HEIGHT - TOP - BOTTOM)
            return round(across, 1), round(down, 1)

        drawn = []
        for power in range(bottom, top + 1):
            _, down = place(1, 10.0**power)
            drawn.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{down}" y2="{down}" class="grid"/>')
            drawn.append(f'<text x="{LEFT - 8}" y="{down + 4}" text-anchor="end">1e{power}</text>')
        for power in range(low, high + 1):
            across, _ = place(10.0**power, peak)
            drawn.append(f'<text x="{across}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle">{10.0**power:g}</text>')
        roof = [place(10.0**low, bandwidth * 10.0**low), place(ridge, peak), place(10.0**high, peak)]
        path = " ".join(f"{x},{y}" for x, y in roof)
        drawn.append(f'<polyline points="{path}" fill="none" stroke="#55606e" stroke-width="2"/>')
        for number, (name, point) in enumerate(points.items()):
            across, down = place(*point)
            drawn.append(f'<circle cx="{across}" cy="{down}" r="5" fill="{COLOURS[number % len(COLOURS)]}"/>')
            drawn.append(f'<text x="{across + 9}" y="{down + 4}">{escape(name)}</text>')
        label = (
            f'<text x="{WIDTH / 2}" y="{HEIGHT - 4}" text-anchor="middle">FLOP per byte (across), FLOP/s (up)</text>'
        )
        size = f'viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
        self.parts.append(f'<h2>{escape(title)}</h2><svg {size} role="img">{"".join(drawn)}{label}</svg>')

    def intervals(self, title: str, rows: Sequence[tuple[str, float, float, float]], unit: str = "") -> None:
        """A point with its interval per name, (name, low, value, high), and a line at zero: what leaves it is told."""
        if rows:
            self.parts.append(f"<h2>{escape(title)}</h2>{_forest(rows, unit)}")

    def groups(self, title: str, series: Mapping[str, Mapping[str, float]], unit: str = "") -> None:
        """For every name a horizontal bar per series, one below the other; longest = the largest value."""
        names = list(dict.fromkeys(name for values in series.values() for name in values))
        most = max((value for values in series.values() for value in values.values()), default=0) or 1
        thick, drawn = 12, []
        high = thick * len(series) + 10
        for number, name in enumerate(names):
            top = high * number
            middle = top + (high - 10) / 2 + 8
            drawn.append(f'<text x="150" y="{middle:.0f}" text-anchor="end">{escape(name)}</text>')
            for place, values in enumerate(series.values()):
                long, down = (WIDTH - 260) * values.get(name, 0) / most, top + 4 + thick * place
                shape = f'x="160" y="{down}" width="{long:.1f}" height="{thick - 2}"'
                drawn.append(f'<rect {shape} fill="{SHADES[place % len(SHADES)]}"></rect>')
                value = f"{values.get(name, 0):.3g}{escape(unit)}"
                drawn.append(f'<text x="{168 + long:.1f}" y="{down + 9}" style="font-size:10px">{value}</text>')
        size = f'viewBox="0 0 {WIDTH} {high * len(names)}" width="{WIDTH}" height="{high * len(names)}"'
        self.parts.append(f'<h2>{escape(title)}</h2>{_legend(series)}<svg {size} role="img">{"".join(drawn)}</svg>')

    def render(self) -> str:
        return (
            '<!doctype html><html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width,initial-scale=1">'
            f"<title>{escape(self.title)}</title><style>{STYLE}</style></head>"
            f"<body><h1>{escape(self.title)}</h1>{''.join(self.parts)}</body></html>\n"
        )


def _forest(rows: Sequence[tuple[str, float, float, float]], unit: str) -> str:
    left, right, step = 240, 150, 26
    low, high = min(0.0, *(row[1] for row in rows)), max(0.0, *(row[3] for row in rows))
    scale = (WIDTH - left - right) / ((high - low) or 1.0)
    size = f'viewBox="0 0 {WIDTH} {step * len(rows)}" width="{WIDTH}" height="{step * len(rows)}"'
    zero = left - low * scale
    drawn = [f'<line x1="{zero:.1f}" x2="{zero:.1f}" y1="0" y2="{step * len(rows)}" stroke="#98a2ae"/>']
    for number, (name, below, value, above) in enumerate(rows):
        y = step * number + step // 2
        start, middle, end = (left + (x - low) * scale for x in (below, value, above))
        colour = "#98a2ae" if below <= 0 <= above else COLOURS[2] if below > 0 else COLOURS[1]
        drawn.append(f'<text x="{left - 12}" y="{y + 4}" text-anchor="end">{escape(name)}</text>')
        drawn.append(f'<line x1="{start:.1f}" x2="{end:.1f}" y1="{y}" y2="{y}" stroke="{colour}" stroke-width="3"/>')
        drawn.append(f'<circle cx="{middle:.1f}" cy="{y}" r="5" fill="{colour}"/>')
        said = f"{value:+.4f}{escape(unit)}"
        drawn.append(f'<text x="{WIDTH - right + 16}" y="{y + 4}">{said}</text>')
    return f'<svg {size} role="img">{"".join(drawn)}</svg>'


def _chart(series: Mapping[str, Sequence[tuple[float, float]]], points: Sequence[tuple[float, float]]) -> str:
    low_x, high_x = min(x for x, _ in points), max(x for x, _ in points)
    low_y, high_y = min(y for _, y in points), max(y for _, y in points)
    low_x, high_x = (low_x, high_x) if high_x > low_x else (low_x - 0.5, high_x + 0.5)
    margin = (high_y - low_y) * 0.08 or abs(high_y) * 0.05 or 1.0
    low_y, high_y = low_y - margin, high_y + margin

    def place(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (x - low_x) / (high_x - low_x) * (WIDTH - LEFT - RIGHT)
        down = HEIGHT - BOTTOM - (y - low_y) / (high_y - low_y) * (HEIGHT - TOP - BOTTOM)
        return round(across, 1), round(down, 1)

    drawn = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" role="img">']
    for y in _ticks(low_y, high_y):
        _, down = place(low_x, y)
        drawn.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{down}" y2="{down}" class="grid"/>')
        drawn.append(f'<text x="{LEFT - 8}" y="{down + 4}" text-anchor="end">{y:.6g}</text>')
    for x in _ticks(low_x, high_x):
        across, _ = place(x, low_y)
        drawn.append(f'<text x="{across}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle">{x:.6g}</text>')
    for number, line in enumerate(series.values()):
        colour = COLOURS[number % len(COLOURS)]
        path = " ".join(f"{across},{down}" for across, down in (place(*point) for point in line))
        drawn.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for point in line:
            across, down = place(*point)
            drawn.append(f'<circle cx="{across}" cy="{down}" r="3" fill="{colour}"/>')
    return "".join(drawn) + "</svg>"


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers within a range, or a hundredth of it outside, some four to eight of them."""
    slack = (high - low) / 100
    step = 10.0 ** math.floor(math.log10((high - low) / 4))
    step *= next((many for many in (5, 2) if step * many <= (high - low) / 4), 1)
    first, last = math.ceil((low - slack) / step), math.floor((high + slack) / step)
    return [round(number * step, 12) for number in range(first, last + 1)]


def _legend(names: Iterable[str]) -> str:
    """Which colour is what; nothing for a single unnamed thing."""
    names = list(names)
    if len(names) < 2:
        return ""
    said = (
        f'<span style="color:{SHADES[place % len(SHADES)]}">■</span> {escape(name)} &nbsp; '
        for place, name in enumerate(names)
    )
    return f"<p>{''.join(said)}</p>"
