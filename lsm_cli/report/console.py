"""The terminal: results on stdout, progress and decisions on stderr, JSON when asked for."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

WIDEST = 200  # columns of a table in a file or a pipe, where there is no edge to fold at


class Progress(Protocol):
    """What long library work reports to; `total` may be corrected while it runs."""

    def advance(self, amount: float = 1, total: float | None = None) -> None: ...

    def note(self, text: str) -> None: ...

    def warn(self, text: str) -> None:
        """A thing that the user should know, watching or not."""


class Silent:
    """A progress that nobody watches.

    Args:
        warn: hears what should be known all the same.
    """

    def __init__(self, warn: Callable[[str], None] = lambda text: None) -> None:
        self.warn = warn

    def advance(self, amount: float = 1, total: float | None = None) -> None:
        pass

    def note(self, text: str) -> None:
        pass


@dataclass
class Console:
    """Where a command speaks. With `json`, stdout carries one JSON object and nothing else."""

    json: bool = False
    quiet: bool = False

    def __post_init__(self) -> None:
        from rich.console import Console as Rich

        edge = None if sys.stdout.isatty() or "COLUMNS" in os.environ else WIDEST
        self._out = Rich(file=sys.stdout, highlight=False, soft_wrap=True, width=edge)
        self._err = Rich(file=sys.stderr, highlight=False, soft_wrap=True)

    def say(self, text: str) -> None:
        """A decision that was taken and why, or a thing worth knowing: one line on stderr."""
        if not self.quiet:
            self._err.print(text, markup=False)

    def warn(self, text: str) -> None:
        self._err.print(f"warning: {text}", markup=False, style="yellow")

    def error(self, text: str) -> None:
        self._err.print(f"error: {text}", markup=False, style="red")

    def table(
        self,
        title: str,
        columns: Sequence[str],
        rows: Sequence[Sequence[Any]],
        note: str | None = None,
        spare: Sequence[str] = (),
    ) -> None:
        """A result table on stdout: numbers right-aligned, text left-aligned, None shown as a dash.

        Args:
            spare: columns that a narrow terminal does without, in this order, until the table fits; named below it.
        """
        if self.json:
            return
        drawn, gone = _drawn(title, columns, rows), list[str]()
        for name in spare:
            if self._out.measure(drawn, options=self._out.options.update(max_width=10_000)).maximum <= self._out.width:
                break
            gone.append(name)
            kept = [place for place, column in enumerate(columns) if column not in gone]
            drawn = _drawn(title, [columns[place] for place in kept], [[row[place] for place in kept] for row in rows])
        self._out.print(drawn)
        notes = [note] if note else []
        notes += [f"too narrow here for {', '.join(gone)}"] if gone else []
        if notes:
            self._out.print("; ".join(notes), markup=False, style="dim")

    def text(self, text: str) -> None:
        """Plain result text on stdout."""
        if not self.json:
            self._out.print(text, markup=False)

    def next(self, command: str) -> None:
        """The command that a user most likely wants now."""
        if not self.json and not self.quiet:
            self._out.print(f"next: {command}", markup=False, style="bold")

    def result(self, value: dict[str, Any]) -> None:
        """The machine-readable result; printed only with --json."""
        if self.json:
            sys.stdout.write(json.dumps(value) + "\n")
            sys.stdout.flush()

    @contextmanager
    def live(self) -> Iterator[Callable[[str, Sequence[str], Sequence[Sequence[Any]]], None] | None]:
        """A table on stderr that each call (title, columns, rows) draws anew in its place; None when nobody watches."""
        if self.quiet or not self._err.is_terminal:
            yield None
            return
        from rich.live import Live

        with Live(console=self._err, auto_refresh=False, transient=True) as live:
            yield lambda title, columns, rows: live.update(_drawn(title, columns, rows), refresh=True)

    @contextmanager
    def progress(self, label: str, total: float | None = None, unit: str = "") -> Iterator[Progress]:
        """A bar with rate and time left on stderr; silent when stderr is not a terminal or --quiet."""
        if self.quiet or not self._err.is_terminal:
            yield Silent(self.warn)
            return
        from rich.progress import BarColumn, SpinnerColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        bars = Bars(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self._err,
            transient=True,
        )
        with bars:
            task = bars.add_task(label, total=total, rate="", note="")
            yield _Bar(bars, task, unit, self.warn)


def _drawn(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Any:
    """A table for rich: numbers right-aligned, text left-aligned, None shown as a dash."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, title_style="bold", pad_edge=False)
    for position, column in enumerate(columns):
        cells = [str(row[position]) for row in rows if row[position] not in (None, "")]
        numbers = position > 0 and all(cell[0] in "+-.0123456789" for cell in cells)
        table.add_column(column, justify="right" if numbers else "left", overflow="fold", no_wrap=numbers)
    for row in rows:
        table.add_row(*(Text("–" if cell is None else str(cell)) for cell in row))
    return table


class _Bar:
    def __init__(self, bars: Any, task: Any, unit: str, warn: Callable[[str], None]) -> None:
        self.bars, self.task, self.unit, self.warn = bars, task, unit, warn
        self.started, self.done = time.monotonic(), 0.0

    def advance(self, amount: float = 1, total: float | None = None) -> None:
        self.done += amount
        rate = self.done / max(time.monotonic() - self.started, 1e-9)
        more = {} if total is None else {"total": total}
        self.bars.update(self.task, advance=amount, rate=f"{count(rate)} {self.unit}/s" if self.unit else "", **more)

    def note(self, text: str) -> None:
        self.bars.update(self.task, note=text)


def count(number: float) -> str:
    """1234567 -> '1.23 M'."""
    for size, suffix in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(number) >= size:
            return f"{number / size:.3g}{suffix}"
    return f"{number:.3g}"


def size(number: float) -> str:
    """Bytes in binary units: 1536 -> '1.5 KiB'."""
    for power, suffix in ((40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")):
        if number >= 1 << power:
            return f"{number / (1 << power):.3g} {suffix}"
    return f"{number:.0f} B"
