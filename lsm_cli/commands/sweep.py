"""lsm train --seeds: the same recipe with several seeds, and how far apart the results lie."""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from lsm_cli.commands import pages
from lsm_cli.commands.train import prepare, train_one
from lsm_cli.engine.run import RunFolder
from lsm_cli.engine.setup import Setup
from lsm_cli.engine.trail import LOCK, QUALITY, Finished, is_run
from lsm_cli.errors import InputError
from lsm_cli.report.console import Console, count, size

SUMMARY, REPORT = "summary.json", "report.html"
MOST = 100  # seeds
TITLES = {"auc": "AUC", "gauc": "GAUC", "logloss": "log loss", "calibration": "calibration"}


def numbers(text: str) -> list[int]:
    """ "3" -> 0, 1, 2; "0,1,7" -> these.

    Raises:
        InputError: neither.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isdecimal() for part in parts):
        raise InputError(f"--seeds {text}: write how many, as 3, or which ones, as 0,1,7")
    chosen = [int(part) for part in parts] if "," in text else list(range(int(parts[0])))
    if not 1 <= len(chosen) <= MOST or len(set(chosen)) < len(chosen):
        raise InputError(f"--seeds {text}: name between 1 and {MOST} seeds, each once")
    return chosen


def train_seeds(
    console: Console,
    recipe: str | None,
    data: Path | None,
    out: Path,
    overrides: list[str],
    seeds: str,
    resume: bool = False,
    again: Path | None = None,
) -> dict[str, Any]:
    """Train in OUT/seed-N for each seed, then say mean and standard deviation; see `prepare` for the other arguments.

    With `resume` the finished runs stay as they are, and the first unfinished one goes on.

    Returns:
        {"test": {target: {metric: mean}}, "sd": {target: {metric: …}}, "seeds", "runs": [{"seed", "run", "test"}], …}.
    """
    chosen = numbers(seeds)
    _check_free(out, resume)
    setup = prepare(console, recipe, data, overrides, again)
    done: list[Finished] = []
    for seed in chosen:
        folder = out / f"seed-{seed}"
        train = setup.recipe.train.model_copy(update={"seed": seed})
        one = replace(setup, recipe=setup.recipe.model_copy(update={"train": train}))
        before = _finished(folder, one) if resume else None
        where = "finished before" if before else f"{len(done) + 1} of {len(chosen)}"
        console.say(f"seed       {seed}, in {folder}: {where}")
        done.append(before or train_one(console, one, folder, resume))
    result = summary(setup, out, chosen, done)
    _write(out / SUMMARY, json.dumps(result, indent=1) + "\n")
    _write(out / REPORT, pages.sweep_page(setup, done, result).render())
    _show(console, setup, result, done)
    return result


def summary(setup: Setup, out: Path, seeds: list[int], done: list[Finished]) -> dict[str, Any]:
    """What --json prints and summary.json keeps; the standard deviation is that of a sample (n - 1)."""
    split = done[0].split
    means: dict[str, dict[str, float | None]] = {}
    spread: dict[str, dict[str, float | None]] = {}
    for target, entry in done[0].targets.items():
        found = {name: mean_sd([run.targets[target][name] for run in done]) for name in QUALITY}
        means[target] = {name: pair[0] for name, pair in found.items()} | {
            name: entry[name] for name in ("n", "positives")
        }
        spread[target] = {name: pair[1] for name, pair in found.items()}
    rates = mean_sd([run.result["samples_per_second"] for run in done])
    return {
        "run": str(out),
        "recipe": setup.recipe.name,
        "store": str(setup.store.path),
        "seeds": seeds,
        split: means,
        "sd": spread,
        "samples_per_second": rates[0],
        "samples_per_second_sd": rates[1],
        "peak_memory_bytes": max(run.result["peak_memory_bytes"] for run in done),
        "training_seconds": sum(run.result.get("training_seconds", 0.0) for run in done),
        "parameters": done[0].result["parameters"],
        "runs": [
            {
                "seed": seed,
                "run": str(run.folder),
                split: {target: {name: entry[name] for name in QUALITY} for target, entry in run.targets.items()},
                "samples_per_second": run.result["samples_per_second"],
            }
            for seed, run in zip(seeds, done, strict=True)
        ],
    }


def mean_sd(values: list[float | None]) -> tuple[float | None, float | None]:
    """Mean and sample standard deviation; None where a value is missing, and no deviation of a single one."""
    if not values or any(value is None for value in values):
        return None, None
    known = [value for value in values if value is not None]
    mean = math.fsum(known) / len(known)
    if len(known) == 1:
        return mean, None
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in known) / (len(known) - 1))


def _show(console: Console, setup: Setup, result: dict[str, Any], done: list[Finished]) -> None:
    split, seeds = done[0].split, result["seeds"]
    rows = []
    for target, means in result[split].items():
        for seed, run in zip(seeds, result["runs"], strict=True):
            values = [run[split][target][name] for name in QUALITY]
            rows.append([f"{target}, seed {seed}", *(None if value is None else f"{value:.4f}" for value in values)])
        rows.append([f"{target}, mean ± sd", *(pages.with_margin(means[n], result["sd"][target][n]) for n in QUALITY)])
    title = f"{setup.recipe.name} on the {split} samples of {setup.store.name}, {len(seeds)} seeds"
    console.table(title, ["", *TITLES.values()], rows)
    console.text(
        f"{count(result['samples_per_second'])} training samples/s, peak memory {size(result['peak_memory_bytes'])}; "
        f"summary in {Path(result['run']) / SUMMARY}, report in {Path(result['run']) / REPORT}"
    )
    console.next(f"lsm runs {result['run']}")


def _check_free(out: Path, resume: bool) -> None:
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; choose another --out")
    if is_run(out):
        raise InputError(f"{out}: holds a single run; choose another --out for the runs of several seeds")
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not any((folder / LOCK).exists() or is_run(folder) for folder in out.glob("seed-*")):
        raise InputError(f"{out}: the folder is not empty and holds no runs of seeds; choose another --out")
    if not resume:
        raise InputError(f"{out}: already holds runs; go on with them by --resume, or choose another --out")


def _finished(folder: Path, setup: Setup) -> Finished | None:
    """A run that an earlier call finished, if it is the same one that this call would train.

    Raises:
        InputError: it is of another recipe or store.
    """
    done = Finished.read(folder)
    if done is not None:
        RunFolder.start(folder, setup.recipe, setup.store, resume=True).close()
    return done


def _write(file: Path, text: str) -> None:
    aside = file.with_name(f".{file.name}.tmp")
    aside.write_text(text)
    os.replace(aside, file)
