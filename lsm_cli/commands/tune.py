"""lsm tune: a search for a better recipe."""

from __future__ import annotations

import difflib
import os
import re
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lsm_cli import recipe as recipes
from lsm_cli.commands.train import stoppable
from lsm_cli.data.store import Store
from lsm_cli.engine.setup import Setup
from lsm_cli.engine.train import InterruptedRunError
from lsm_cli.errors import InputError
from lsm_cli.report import png
from lsm_cli.report.console import Console, count
from lsm_cli.tuning import defaults, pool, report, results, sampling, storage
from lsm_cli.tuning import space as spaces
from lsm_cli.tuning.objective import KEEP
from lsm_cli.tuning.plan import PRUNERS, SAMPLERS, Plan, digest, objectives
from lsm_cli.tuning.space import Space
from lsm_cli.tuning.study import Tuning
from lsm_cli.tuning.worker import Job

SHOWN = 12  # trials in the live table
UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


@dataclass(frozen=True)
class Wanted:
    """The options of the command."""

    trials: int = 30
    timeout: str | None = None
    workers: int = 1
    objective: str | None = None
    sampler: str = "tpe"
    pruner: str = "median"
    storage: str | None = None
    seed: int = 0


def tune(
    console: Console, recipe: str, data: Path, out: Path, overrides: list[str], space: list[str], wanted: Wanted
) -> dict[str, Any]:
    """Search, show how it goes, write best recipe, report and charts."""
    started = time.monotonic()
    seconds = parse_seconds(wanted.timeout) if wanted.timeout else None
    for option, value, known in (("--sampler", wanted.sampler, SAMPLERS), ("--pruner", wanted.pruner, PRUNERS)):
        if value not in known:
            near = difflib.get_close_matches(value, known, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise InputError(f"{option} {value!r} is not known; {hint}there are {', '.join(known)}")
    sampling.check_sampler(wanted.sampler)
    store = Store.open(data)
    for split in ("train", "valid"):
        if not store.splits.get(split):
            raise InputError(f"{data}: no {split} samples; set [split] in the dataset's description and rebuild it")
    plan, lines = _plan(recipe, store, overrides, space, wanted)
    setup = Setup.of(plan.recipe, store)
    url = storage.resolve(wanted.storage, out)
    lines = [
        f"recipe     {plan.recipe.name}: {plan.recipe.description}",
        f"store      {data} ({store.name}): " + ", ".join(f"{n:,} {name}" for name, n in store.splits.items()),
        *setup.decisions(),
        *lines,
        _workers_line(plan, wanted, seconds),
        f"study      {storage.hidden(url)}; weights are kept of "
        + ("the Pareto set" if plan.several else f"the best {KEEP}"),
    ]
    for line in lines:
        console.say(line)
    tuning = Tuning(plan, out, url, wanted.trials)
    before = results.counts(tuning.trials())
    ended = before["complete"] + before["pruned"] + before["failed"]
    if ended:
        console.say(f"goes on    {ended} of {wanted.trials} trials have ended already")
    deadline = None if seconds is None else time.time() + seconds
    with storage.reached(url), stoppable() as asked, _watched(console, tuning) as tick:
        job = Job(
            str(out), str(data), url, wanted.trials, deadline, tuning.begun.isoformat(), plan.recipe.train.threads,
            once=_costs_memory(plan), parent=os.getpid(),
        )  # fmt: skip

        def stop() -> bool:
            tick()
            return asked() or (deadline is not None and time.time() > deadline)

        if wanted.workers > 1 or job.once:
            pool.supervise(tuning, pool.split(job, wanted.workers, job.threads), wanted.workers, stop, tick)
        else:
            pool.alone(tuning, store, stop, tick)
        tick(True)
    found = results.counts(tuning.trials())
    ended = found["complete"] + found["pruned"] + found["failed"]
    if asked():
        raise InterruptedRunError(
            f"{out}: stopped with {ended} of {wanted.trials} trials ended; all is saved, go on with the same command"
        )
    return _finish(console, tuning, data, lines, time.monotonic() - started, ended)


def _plan(recipe: str, store: Store, overrides: list[str], space: list[str], wanted: Wanted) -> tuple[Plan, list[str]]:
    """The plan, and what was decided about it."""
    errors: list[str] = []
    try:
        options = recipes.load(recipe, overrides)
    except InputError as error:
        errors += str(error).splitlines()
        options = recipes.load(recipe)
    table = recipes.tune_table(recipe)
    fixed = {text.partition("=")[0].strip() for text in overrides}
    asked = {text.partition("=")[0].strip() for text in space}
    errors += [f"{key} is both set and in --space; drop one of them" for key in sorted(fixed & asked)]
    origin = f"[tune] of {recipes.find(recipe)}" if table else "--space"
    if not table and not space:
        origin = "the default one, as the recipe has no [tune] and there is no --space"
        try:
            table = defaults.default(Setup.of(options, store))
        except InputError as error:
            errors += [line for line in str(error).splitlines() if line not in errors]
    elif table and space:
        origin += " and --space"
    found = Space(())
    try:
        found = spaces.parse(table, space, f"{recipes.find(recipe)}: [tune]")
    except InputError as error:
        errors += str(error).splitlines()
    try:
        sought = objectives(wanted.objective, options)
    except InputError as error:
        errors += str(error).splitlines()
    if errors:
        raise InputError("\n".join(errors))
    lines = []
    metric = next(objective for objective in sought if objective.quality)
    if metric.name != options.train.metric:
        options = spaces.applied(options, {"train.metric": metric.name})
    set_aside = {option.key: "it is set" for option in found.options if option.key in fixed}
    found = found.without(set_aside)
    set_aside |= found.idle(options)
    found = found.without(set_aside)
    if not found.options:
        raise InputError(f"{recipe}: nothing is left to vary; give --space key=low:high or key=a,b,c")
    lines.append("objective  " + "; ".join(f"{one.name}: {one.meaning}, {one.direction}d" for one in sought))
    lines.append(f"space      {origin}")
    width = max(len(option.key) for option in found.options)
    lines += [f"           {option.key:<{width}}  {option.describe()}" for option in found.options]
    lines += [f"           {key:<{width}}  left out: {reason}" for key, reason in set_aside.items()]
    plan = Plan(options, found, sought, wanted.sampler, wanted.pruner, wanted.seed, digest(store))
    if plan.space.of(options) is not None:
        lines.append("first      the recipe as it is, which is never stopped early")
    else:
        lines.append("first      a draw: the recipe as it is lies outside the space")
    lines.append(f"sampler    {wanted.sampler}, seed {wanted.seed}")
    lines.append(f"pruning    {'none' if plan.several else wanted.pruner}: {sampling.pruning(plan)}")
    return plan, lines


def _costs_memory(plan: Plan) -> bool:
    return any(objective.name == "memory" for objective in plan.objectives)


def _workers_line(plan: Plan, wanted: Wanted, seconds: float | None) -> str:
    text = f"trials     {wanted.trials} in all, {wanted.workers} at a time"
    if wanted.workers > 1 and not plan.recipe.train.threads:
        text += f", CPU threads each: {max(1, (os.cpu_count() or 1) // wanted.workers)}"
    if _costs_memory(plan):
        text += ", each in a process of its own, whose memory is its own"
    return text + (f", for {wanted.timeout}" if seconds is not None else "")


def parse_seconds(text: str) -> float:
    """Seconds of 90, 45s, 90m, 2h, 1h30m or 1d.

    Raises:
        InputError: it is something else, or nothing.
    """
    parts = re.findall(r"(\d+(?:\.\d+)?)\s*([smhd])", text)
    if re.fullmatch(r"\s*\d+(\.\d+)?\s*", text):
        parts = [(text, "s")]
    elif "".join(number + unit for number, unit in parts) != text.replace(" ", ""):
        parts = []
    total = sum(float(number) * UNITS[unit] for number, unit in parts)
    if not total:
        raise InputError(f"--timeout {text!r} is no time; write seconds, or 90m, 2h, 1h30m")
    return total


@contextmanager
def _watched(console: Console, tuning: Tuning) -> Iterator[Callable[..., None]]:
    """Shows how the study goes: a table that is drawn anew, or a line for every trial that has ended."""
    told = {trial.number for trial in tuning.trials() if trial.state.is_finished()}
    plan, last = tuning.plan, 0.0
    names = [objective.name for objective in plan.objectives]

    def describe(row: results.Row) -> str:
        pairs = zip(names, row.values or [], strict=False)
        values = "  ".join(f"{name} {report.number(value)}" for name, value in pairs)
        seconds = "" if row.seconds is None else f"{row.seconds:.0f} s"
        remark = row.reason or row.origin
        parts = [f"trial {row.number:<4}", f"{row.kind:<10}", values, seconds, report.brief(plan, row)]
        return "  ".join(part for part in parts if part) + (f"  ({remark})" if remark else "")

    with console.live() as draw:

        def tick(last_time: bool = False) -> None:
            nonlocal last
            if not last_time and time.monotonic() - last < 1.0:
                return
            last = time.monotonic()
            for note in tuning.notes:
                console.say(note)
            tuning.notes.clear()
            trials = tuning.trials()
            if draw is None:
                new = [trial for trial in trials if trial.state.is_finished() and trial.number not in told]
                for trial in sorted(new, key=lambda trial: (trial.datetime_complete, trial.number)):
                    told.add(trial.number)
                    row = results.row(plan, trial)
                    if row.kind != "surplus":
                        console.say(describe(row))
                return
            rows = [results.row(plan, trial) for trial in trials if trial.state.name != "WAITING"]
            best = results.ranked(plan, trials)
            counts = results.counts(trials)
            title = f"{tuning.folder}: " + ", ".join(f"{n} {name}" for name, n in counts.items() if n)
            if best:
                title += f"; best {names[0]} {report.number(best[0].values[0])} (trial {best[0].number})"
            draw(
                title,
                ["trial", "", *names, "seconds", "options"],
                [
                    [
                        row.number,
                        row.kind,
                        *(map(report.number, row.values) if row.values else [None] * len(names)),
                        None if row.seconds is None else f"{row.seconds:.0f}",
                        report.brief(plan, row),
                    ]
                    for row in rows[-SHOWN:]
                ],
            )

        yield tick


def _finish(
    console: Console, tuning: Tuning, data: Path, decisions: list[str], seconds: float, ended: int
) -> dict[str, Any]:
    """Write what was found, show it, and hand it back."""
    plan, out = tuning.plan, tuning.folder
    trials = tuning.trials()
    written = results.write_recipes(tuning)
    weights = results.importances(tuning)
    files = report.write(tuning, weights, decisions)
    names = [objective.name for objective in plan.objectives]
    leading = [results.row(plan, trial) for trial in results.leading(plan, trials, 5)]
    best = [results.row(plan, trial) for trial in results.ranked(plan, trials)[:1]]
    rows = [results.row(plan, trial) for trial in trials]
    base = next((row for row in rows if row.origin and row.kind == "complete"), None)
    shown = [*leading, *([base] if base and base.number not in {row.number for row in leading} else [])]
    console.table(
        f"{plan.recipe.name} tuned on the validation samples: "
        + ("trials that no other one beats" if plan.several else "best trials"),
        ["trial", *names, "options", ""],
        [[row.number, *map(report.number, row.values or []), report.brief(plan, row), row.origin] for row in shown],
    )
    if weights:
        shares = [[key, f"{share:.0%}"] for key, share in weights.items()]
        console.table(report.APART, ["option", "share"], shares, note=report.SETTLED)
    elif best:
        console.text("What matters cannot be told from so few trials that were trained to their end.")
    if cells := report.choices(plan, trials):
        console.table(f"Best {names[0]} of each choice", report.CHOICES, cells)
    failed = [row for row in rows if row.kind in ("failed", "infeasible")]
    if failed:
        reasons = [[row.number, row.kind, row.reason] for row in failed]
        console.table("Trials without a result", ["trial", "", "reason"], reasons)
    counts = results.counts(trials)
    console.text(", ".join(f"{number} {name}" for name, number in counts.items() if number) + f" in {count(seconds)} s")
    if ended < tuning.total:
        console.text(f"{tuning.total - ended} of {tuning.total} trials are left; go on with the same command")
    if not png.available():
        console.warn("no PNG charts: matplotlib is not installed; pip install 'lsm-cli[plots]'")
    console.text(f"report     {out / 'report.html'}")
    console.text(f"dashboard  {storage.dashboard(tuning.url)}   (pip install optuna-dashboard)")
    if best:
        file, place = shlex.quote(str(out / results.BEST)), shlex.quote(str(data))
        console.next(f"lsm train --recipe {file} --data {place} --out runs/tuned")

    def entry(row: results.Row) -> dict[str, Any]:
        values = dict(zip(names, row.values or [], strict=False))
        return {
            "trial": row.number, "value": next(iter(values.values())), "values": values, "params": row.params,
            "costs": row.costs,
        }  # fmt: skip

    return {
        "study": str(out),
        "best": entry(best[0]) | {"recipe": str(written[0])} if best else None,
        "trials": counts,
        "baseline": entry(base) if base else None,
        "pareto": [entry(row) for row in leading] if plan.several else None,
        "objectives": {objective.name: objective.direction for objective in plan.objectives},
        "importances": weights,
        "choices": [asdict(one) for one in results.choices(plan, trials)],
        "failures": [{"trial": row.number, "kind": row.kind, "reason": row.reason} for row in failed],
        "files": [str(file) for file in (*written, *files)],
        "storage": storage.hidden(tuning.url),
        "seconds": round(seconds, 1),
    }
