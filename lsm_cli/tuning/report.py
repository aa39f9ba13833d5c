"""The report of a study: report.html, self-contained, and its charts as PNG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial

from lsm_cli.report import html, png, trials
from lsm_cli.report.console import count, size
from lsm_cli.tuning import results
from lsm_cli.tuning.plan import Plan, write_text
from lsm_cli.tuning.results import Row
from lsm_cli.tuning.study import Tuning

APART = "What sets the best tenth of the trials apart"
SETTLED = "A choice that the search settled early sets no later trial apart: see the best of each choice."
CHOICES = ("option", "choice", "tried", "trained to the end", "best", "trial")


def write(tuning: Tuning, importances: dict[str, float], decisions: list[str]) -> list[Path]:
    """Write report.html and, where matplotlib is there, history.png, parallel.png, importances.png and pareto.png.

    Returns:
        the files.
    """
    plan, drawable = tuning.plan, png.available()
    rows = [results.row(plan, trial) for trial in tuning.trials()]
    done = [row for row in rows if row.kind == "complete" and row.values]
    page = html.Page(f"{tuning.folder.name}: {plan.recipe.name} tuned")
    page.paragraph(plan.recipe.description)
    counts = results.counts(tuning.trials())
    page.paragraph(
        ", ".join(f"{number} {name}" for name, number in counts.items() if number)
        + " trials. Every number here is of the validation samples; the test samples were not looked at."
    )
    names = [objective.name for objective in plan.objectives]
    leading = [results.row(plan, trial) for trial in results.leading(plan, tuning.trials(), 10)]
    first = [row for row in done if row.origin and row.number not in {one.number for one in leading}]
    page.table(
        "Trials that no other one beats" if plan.several else "Best trials",
        ["trial", *names, *columns(plan), "samples/s", "memory", "parameters", ""],
        [
            [row.number, *map(number, row.values or []), *cells(plan, row), *costs(row), row.origin]
            for row in (*leading, *first)
        ],
    )
    files: list[Path] = []
    folder = tuning.folder
    if done:
        dots, best = history(rows, plan.objectives[0].larger)
        page.figure(
            f"History: {names[0]} by trial",
            trials.history(dots, best, "trial", names[0]),
            "Blue: trained to the end. Grey: stopped early, at its last validation. Line: the best so far.",
        )
        axes, lines = parallel(tuning, done)
        caption = "One line per trial that was trained to its end; the bluer the better."
        page.figure("Options side by side", trials.parallel(axes, lines), caption)
        if drawable:
            png.scatter(folder / "history.png", dots, "trial", names[0], best, steps=True)
            png.parallel(folder / "parallel.png", axes, lines)
            files += [folder / "history.png", folder / "parallel.png"]
    if plan.several and done:
        front = {row.number for row in leading}
        dots = [
            trials.Dot(row.values[1], row.values[0], told(row, names), row.number in front)
            for row in done
            if row.values
        ]
        path = sorted((dot.x, dot.y) for dot in dots if dot.strong)
        drawing = trials.scatter(dots, names[1], names[0], path)
        page.figure(f"{names[0]} against {names[1]}", drawing, "Blue: no other trial beats it.")
        if drawable:
            png.scatter(folder / "pareto.png", dots, names[1], names[0], path)
            files.append(folder / "pareto.png")
    if importances:
        page.bars(APART, {name: 100 * share for name, share in importances.items()}, " %")
        page.paragraph(SETTLED)
        if drawable:
            png.bars(folder / "importances.png", importances, APART)
            files.append(folder / "importances.png")
    page.table(f"Best {names[0]} of each choice", CHOICES, choices(plan, tuning.trials()))
    page.parts.append('<div style="overflow-x:auto">')
    page.table(
        "All trials",
        ["trial", "", *names, "validations", "seconds", *columns(plan), "remark"],
        [
            [
                row.number,
                row.kind,
                *(map(number, row.values) if row.values else [None] * len(names)),
                row.validations,
                None if row.seconds is None else f"{row.seconds:.0f}",
                *cells(plan, row),
                row.reason or row.origin,
            ]
            for row in rows
        ],
    )
    page.parts.append("</div>")
    page.code("What was decided", "\n".join(decisions))
    page.code("Recipe that was varied", plan.recipe.to_toml())
    write_text(folder / "report.html", page.render())
    return [folder / "report.html", *files]


def choices(plan: Plan, trials: list[FrozenTrial]) -> list[list[Any]]:
    """A row of cells under `CHOICES` for every choice; an option is named on its first."""
    found, last = [], ""
    for one in results.choices(plan, trials):
        best = [None, None] if one.best is None else [number(one.best), one.trial]
        found.append([one.key if one.key != last else "", short(one.value), one.tried, one.complete, *best])
        last = one.key
    return found


def history(rows: list[Row], larger: bool) -> tuple[list[trials.Dot], list[tuple[float, float]]]:
    """Dots of the trials that have a value, and the points where the best so far rises (with its end)."""
    dots, best = [], list[tuple[float, float]]()
    for row in rows:
        if not row.values or row.kind not in ("complete", "pruned"):
            continue
        value, whole = row.values[0], row.kind == "complete"
        dots.append(trials.Dot(row.number, value, told(row, ["value"]), whole))
        if whole and (not best or (value > best[-1][1]) == larger):
            best.append((row.number, value))
    if best and dots:
        best.append((dots[-1].x, best[-1][1]))
    return dots, best


def parallel(tuning: Tuning, done: list[Row]) -> tuple[list[trials.Axis], list[trials.Line]]:
    """An axis per option that varied, then one for the first objective; a line per trial."""
    plan, found = tuning.plan, []
    for option in plan.space.options:
        values = [row.params.get(option.key) for row in done]
        values = [value if isinstance(value, int | float | str | None) else str(value) for value in values]
        if len({str(value) for value in values}) > 1:
            found.append(trials.axis(option.key, values, option.log))
    quality = [row.values[0] for row in done if row.values]
    found.append(trials.axis(plan.objectives[0].name, quality))
    ranks = trials.ranks(quality, plan.objectives[0].larger)
    lines = []
    for place, row in enumerate(done):
        points = [(number, at) for number, (_, places) in enumerate(found) if (at := places[place]) is not None]
        lines.append(trials.Line(points, ranks[place], told(row, [objective.name for objective in plan.objectives])))
    return [axis for axis, _ in found], lines


def columns(plan: Plan) -> list[str]:
    """A short name for every option of the space."""
    keys = [option.key for option in plan.space.options]
    names = [key.split(".")[-1] for key in keys]
    return [name if names.count(name) == 1 else key for name, key in zip(names, keys, strict=True)]


def cells(plan: Plan, row: Row) -> list[str | None]:
    """The options of a trial under these names; None where an option did not apply."""
    keys = [option.key for option in plan.space.options]
    return [short(row.params[key]) if key in row.params else None for key in keys]


def costs(row: Row) -> list[str | None]:
    """Training samples per second, peak memory and parameters of a trial."""
    shown = {"samples_per_second": count, "memory": size, "parameters": count}
    return [show(row.costs[name]) if name in row.costs else None for name, show in shown.items()]


def brief(plan: Plan, row: Row) -> str:
    """The options of a trial in one line."""
    pairs = zip(columns(plan), cells(plan, row), strict=True)
    return " ".join(f"{name}={cell}" for name, cell in pairs if cell is not None)


def told(row: Row, names: list[str]) -> str:
    values = ", ".join(f"{name} {number(value)}" for name, value in zip(names, row.values or [], strict=False))
    return f"trial {row.number}: {values}; {options(row.params)}"


def number(value: float) -> str:
    """Four digits for a metric, more for counts."""
    return f"{value:.4f}" if abs(value) < 10 else f"{value:,.0f}"


def options(params: dict[str, Any]) -> str:
    """Options as one would type them."""
    return " ".join(f"{key}={short(value)}" for key, value in params.items())


def short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return str(value).lower() if isinstance(value, bool) else str(value).replace(" ", "")
