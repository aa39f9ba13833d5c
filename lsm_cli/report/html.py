"""Self-contained HTML pages: text, tables and line charts; no script, no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1c2430;background:#fff}
h1{font-size:1.5rem}h2{font-size:1.1rem;margin-top:2rem}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:.25rem .7rem;text-align:right;border-bottom:1px solid #e3e7ec}
th:first-child,td:first-child{text-align:left}th{font-weight:600;color:#55606e}
pre{background:#f5f7f9;padding:1rem;overflow:auto;font-size:13px}svg text{font:12px system-ui,sans-serif;fill:#55606e}
"""
COLOURS = ("#2563eb", "#d9480f", "#2b8a3e", "#862e9c", "#b8860b", "#0b7285")
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 260, 64, 16, 16, 40


class Page:
    """A report built from top to bottom."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.parts: list[str] = []

    def paragraph(self, text: str) -> None:
        self.parts.append(f"<p>{escape(text)}</p>")

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        head = "".join(f"<th>{escape(column)}</th>" for column in columns)
        body = "".join(
            "<tr>" + "".join(f"<td>{'–' if cell is None else escape(str(cell))}</td>" for cell in row) + "</tr>"
            for row in rows
        )
        self.parts.append(f"<h2>{escape(title)}</h2><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")

    def code(self, title: str, text: str) -> None:
        self.parts.append(f"<h2>{escape(title)}</h2><pre>{escape(text)}</pre>")

    def lines(self, title: str, series: Mapping[str, Sequence[tuple[float, float]]]) -> None:
        """A line chart; each series is a sequence of (x, y)."""
        points = [point for line in series.values() for point in line]
        if points:
            self.parts.append(f"<h2>{escape(title)}</h2>{_chart(series, points)}")

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
                drawn.append(f'<rect {shape} fill="{COLOURS[place % len(COLOURS)]}">{told}</rect>')
                left += long
            value = f"{sums[name]:,.0f}" if sums[name] >= 1000 else f"{sums[name]:.3g}"
            drawn.append(f'<text x="{left + 8:.1f}" y="{top + 17}">{value}{escape(unit)}</text>')
        size = f'viewBox="0 0 {WIDTH} {26 * len(names)}" width="{WIDTH}" height="{26 * len(names)}"'
        self.parts.append(f'<h2>{escape(title)}</h2>{_legend(series)}<svg {size} role="img">{"".join(drawn)}</svg>')

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
                drawn.append(f'<rect {shape} fill="{COLOURS[place % len(COLOURS)]}"></rect>')
                value = f"{values.get(name, 0):.3g}{escape(unit)}"
                drawn.append(f'<text x="{168 + long:.1f}" y="{down + 9}" style="font-size:10px">{value}</text>')
        size = f'viewBox="0 0 {WIDTH} {high * len(names)}" width="{WIDTH}" height="{high * len(names)}"'
        self.parts.append(f'<h2>{escape(title)}</h2>{_legend(series)}<svg {size} role="img">{"".join(drawn)}</svg>')

    def render(self) -> str:
        return (
            '<!doctype html><html lang="en"><head><meta charset="utf-8">'
            f"<title>{escape(self.title)}</title><style>{STYLE}</style></head>"
            f"<body><h1>{escape(self.title)}</h1>{''.join(self.parts)}</body></html>\n"
        )


def _legend(series: Mapping[str, Any]) -> str:
    if len(series) < 2:
        return ""
    entries = (
        f'<span style="color:{COLOURS[place % len(COLOURS)]}">■</span> {escape(kind)} &nbsp; '
        for place, kind in enumerate(series)
    )
    return f"<p>{''.join(entries)}</p>"


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
    for step in range(5):
        y = low_y + (high_y - low_y) * step / 4
        _, down = place(low_x, y)
        drawn.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{down}" y2="{down}" stroke="#e3e7ec"/>')
        drawn.append(f'<text x="{LEFT - 8}" y="{down + 4}" text-anchor="end">{y:.4g}</text>')
        x = low_x + (high_x - low_x) * step / 4
        across, _ = place(x, low_y)
        drawn.append(f'<text x="{across}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle">{x:.3g}</text>')
    for number, (name, line) in enumerate(series.items()):
        colour = COLOURS[number % len(COLOURS)]
        path = " ".join(f"{across},{down}" for across, down in (place(*point) for point in line))
        drawn.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for point in line:
            across, down = place(*point)
            drawn.append(f'<circle cx="{across}" cy="{down}" r="3" fill="{colour}"/>')
        if len(series) > 1:
            down = TOP + 14 * (number + 1)
            style = f'text-anchor="end" style="fill:{colour}"'
            drawn.append(f'<text x="{WIDTH - RIGHT}" y="{down}" {style}>{escape(name)}</text>')
    return "".join(drawn) + "</svg>"
