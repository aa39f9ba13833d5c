"""The charts of `report.trials` as PNG files; needs matplotlib (extra `plots`)."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lsm_cli.report.html import COLOURS
from lsm_cli.report.trials import GREY, Axis, Dot, Line, colour


def available() -> bool:
    return importlib.util.find_spec("matplotlib") is not None


def _figure(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def scatter(
    file: Path, dots: Sequence[Dot], across: str, up: str, path: Sequence[tuple[float, float]] = (), steps: bool = False
) -> None:
    """Dots in the plane, with a line through some points; `steps` = the line keeps its height until the next point."""
    figure, axes = _figure(7, 4)
    for strong in (False, True):
        chosen = [dot for dot in dots if dot.strong == strong]
        axes.scatter(
            [dot.x for dot in chosen], [dot.y for dot in chosen], s=22, color=COLOURS[0] if strong else GREY, zorder=3
        )
    if path:
        xs, ys = zip(*path, strict=True)
        axes.plot(xs, ys, color=COLOURS[1], drawstyle="steps-post" if steps else "default")
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.grid(axis="y", color="#e3e7ec")
    figure.savefig(file)


def parallel(file: Path, axes: Sequence[Axis], lines: Sequence[Line]) -> None:
    """One vertical axis per option, one line per trial, the better the bluer."""
    figure, plot = _figure(max(7, 1.4 * len(axes)), 4.2)
    for line in sorted(lines, key=lambda line: line.quality):
        xs, ys = zip(*line.points, strict=True)
        plot.plot(xs, ys, color=colour(line.quality), linewidth=0.8 + 1.2 * line.quality)
    for number, axis in enumerate(axes):
        plot.axvline(number, color="#55606e", linewidth=0.8)
        for share, text in axis.ticks:
            plot.text(number + 0.03, share, text, fontsize=7, va="center")
    plot.set_xticks(range(len(axes)), [axis.label for axis in axes], fontsize=8, rotation=20)
    plot.set_yticks([])
    plot.set_ylim(-0.03, 1.03)
    plot.spines[["left", "bottom"]].set_visible(False)
    figure.savefig(file)


def bars(file: Path, values: Mapping[str, float], across: str) -> None:
    """A horizontal bar per name, the first on top."""
    figure, plot = _figure(7, 0.8 + 0.3 * len(values))
    names = list(values)[::-1]
    plot.barh(names, [values[name] for name in names], color=COLOURS[0])
    plot.set_xlabel(across)
    figure.savefig(file)
