"""lsm runs: what was tried, with what result, and what made two runs differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lsm_cli.engine import choosing, trail
from lsm_cli.engine.trail import Record, code_name
from lsm_cli.errors import InputError
from lsm_cli.report.console import Console, count, size

HARDWARE = ("python", "torch", "numpy", "platform", "cpus", "threads", "gpu")
NAMES = {"auc": "AUC", "gauc": "GAUC", "logloss": "log loss", "calibration": "calibration"}
SPARE = ("parameters", "memory", "store", "samples/s", "when (UTC)", "seed", "recipe", "state")
COSTS = ("samples_per_second", "peak_memory_bytes", "parameters", "steps", "training_seconds")


def ls(
    console: Console,
    root: Path | None,
    sort: str = "when",
    reverse: bool = False,
    filters: list[str] | None = None,
    limit: int = 0,
    trials: bool = False,
) -> dict[str, Any]:
    """The runs in and below a folder; trials of studies where they are asked for, or where there is nothing else.

    Args:
        root: None = `runs` if there is such a folder, else here.
        sort, reverse: see `choosing.ordered`.
        filters: see `choosing.select`.
        limit: most runs shown; 0 = all.
        trials: show those of studies too.
    """
    if root is None:
        root = Path("runs") if Path("runs").is_dir() else Path()
    found, problems = trail.find_runs(root)
    others = [record for record in found if not record["trial"]]
    left_out = 0 if trials or not others else len(found) - len(others)
    found = others if left_out else found
    records = choosing.ordered(choosing.select(found, filters or []), sort, reverse)
    for problem in problems:
        console.warn(problem)
    shown = records[:limit] if limit else records
    if not found:
        console.text(f"no runs in {root}")
        console.next(f"lsm train --recipe stacked_tin --data STORE --out {root / 'first'}")
    else:
        targets = list(dict.fromkeys(target for record in shown for target in record["metrics"]))
        columns = ["run", "state", "recipe", "store", "seed", "when (UTC)"]
        columns += [f"{target} {NAMES[name]}" for target in targets for name in ("auc", "gauc")]
        rows = [_row(record, targets) for record in shown]
        hidden = len(records) - len(shown)
        notes = [f"{hidden:,} more; --limit 0 shows all"] if hidden else []
        notes += [f"{count(left_out)} trial{'s' * (left_out != 1)} of studies left out; --trials shows them"] * bool(
            left_out
        )
        if any(record["split"] == "valid" for record in shown):
            notes.append("* on the validation samples")
        title = f"{root}: {f'{len(records):,} of ' if filters else ''}{len(found):,} run{'s' * (len(found) != 1)}"
        if rows:
            note = "; ".join(notes) or None
            console.table(title, [*columns, "samples/s", "memory", "parameters"], rows, note=note, spare=SPARE)
        else:
            console.text("; ".join([title, *notes]))
        if len(shown) > 1:
            console.next(f"lsm runs diff {shown[0]['run']} {shown[1]['run']}")
        elif shown:
            console.next(f"lsm runs show {shown[0]['run']}")
    public = [_public(record) for record in shown]
    return {"root": str(root), "runs": public, "trials_left_out": left_out, "problems": problems}


def show(console: Console, path: Path) -> dict[str, Any]:
    """All that one run says of itself."""
    problems: list[str] = []
    record = trail.read_run(path, problems=problems)
    machine, data = (trail.read_object(path / name, problems) for name in (trail.ENVIRONMENT, trail.DATA))
    lines = trail.read_lines(path / trail.METRICS, problems) if (path / trail.METRICS).is_file() else []
    for problem in dict.fromkeys(problems):
        console.warn(problem)
    facts = [
        ["state", _state(record)],
        ["recipe", f"{record['recipe']}: {record['options'].get('description', '')}"],
        ["store", f"{record['store']} ({data.get('path')}), {len(data.get('files', {})):,} files hashed"],
        ["seed", record["seed"]],
        ["when", _when(record["when"])],
        ["code", code_name(machine)],
        *([name, machine[name]] for name in HARDWARE if machine.get(name) is not None),
        ["command", record["command"]],
        *([name.replace("_", " "), _cost(name, record[name])] for name in COSTS if record[name] is not None),
    ]
    console.table(str(path), ["", " "], [[name, None if value is None else str(value)] for name, value in facts])
    metric = record["options"].get("train", {}).get("metric", "metric")
    show_curve(console, metric, lines)
    if record["metrics"]:
        rows = [
            [target, *(_number(entry[name]) for name in NAMES), _whole(entry["n"]), _whole(entry["positives"])]
            for target, entry in record["metrics"].items()
        ]
        title = f"Result on the {record['split']} samples"
        console.table(title, ["target", *NAMES.values(), "samples", "positives"], rows)
    again = f"lsm train --from {path} --out NEW"
    unfinished = f"lsm train --from {path} --out {path} --resume"
    console.next(unfinished if record["state"] == "interrupted" else again)
    return {**_public(record), "options": record["options"], "environment": machine, "data": data, "history": lines}


def diff(console: Console, paths: list[Path]) -> dict[str, Any]:
    """What differs between runs: recipe, data, code, machine, and how they compare."""
    if len(paths) < 2:
        raise InputError("name at least two runs to compare")
    problems: list[str] = []
    records = [trail.read_run(path, problems=problems) for path in paths]
    machines, data = (
        [trail.read_object(path / name, problems) for path in paths] for name in (trail.ENVIRONMENT, trail.DATA)
    )
    for problem in dict.fromkeys(problems):
        console.warn(problem)
    names = [str(path) for path in paths]
    recipe = _differing([_flat(record["options"]) for record in records])
    recipe.pop("description", None)
    machine = _differing([{"code": code_name(one), **{name: one.get(name) for name in HARDWARE}} for one in machines])
    hashes = [one.get("files") or {} for one in data]
    stores = [trail.unlike(hashes[0], other) for other in hashes[1:]]
    tested = [_only(one, f"samples/{record['split']}/") for one, record in zip(hashes, records, strict=True)]
    comparable = all(one == tested[0] for one in tested)
    metrics = {
        target: {name: [record["metrics"].get(target, {}).get(name) for record in records] for name in NAMES}
        for target in dict.fromkeys(target for record in records for target in record["metrics"])
    }
    costs = {name: [record[name] for record in records] for name in COSTS}

    _differences(console, "Recipe", names, recipe, "the same options")
    _differences(console, "Code and machine", names, machine, "the same code, libraries and machine")
    for name, other, changed in zip(names[1:], data[1:], stores, strict=True):
        if changed:
            console.text(f"data: {name} was trained on {other.get('path')}: {changed} differ from those of {names[0]}")
    if not any(stores):
        console.text(f"data: all on {data[0].get('path')}, every file the same")
    if not comparable:
        console.warn("the runs were tested on different samples; their metrics cannot be compared")
    rows = []
    for target, found in metrics.items():
        rows += [[f"{target} {NAMES[name]}", *_beside(values)] for name, values in found.items()]
    rows += [[name.replace("_", " "), *_ratios(name, values)] for name, values in costs.items()]
    console.table("Result, and the difference to the first run", ["", *names], rows)
    if len(paths) == 2 and comparable:
        console.next(f"lsm eval {names[1]} --baseline {names[0]}")
    return {
        "runs": names,
        "recipe": recipe,
        "environment": machine,
        "data": {"paths": [one.get("path") for one in data], "same": not any(stores), "differing": stores},
        "comparable": comparable,
        "metrics": metrics,
        "cost": costs,
        "problems": list(dict.fromkeys(problems)),
    }


def show_curve(console: Console, metric: str, lines: list[dict[str, Any]]) -> None:
    """The learning curve, a row per validation.

    Args:
        lines: of metrics.jsonl; what is no validation is left out.
    """
    rows = [
        [
            f"{line['epoch']:.2f}",
            f"{line['train_loss']:.4f}",
            f"{abs(line['metric']):.4f}",
            "best" if line["best"] else "",
        ]
        for line in lines
        if {"epoch", "train_loss", "metric", "best"} <= line.keys()
    ]
    if rows:
        console.table("Learning curve", ["epoch", "train loss", f"valid {metric}", ""], rows)


def _row(record: Record, targets: list[str]) -> list[str | None]:
    values = [record["metrics"].get(target, {}).get(name) for target in targets for name in ("auc", "gauc")]
    mark = "*" if record["split"] == "valid" else ""
    metrics = [None if value is None else f"{value:.4f}{mark}" for value in values]
    costs = [_cost(name, record[name]) for name in COSTS[:3]]
    seed = None if record["seed"] is None else str(record["seed"])
    about = [record["name"], _state(record), record["recipe"], record["store"], seed, _when(record["when"])]
    return [*about, *metrics, *costs]


def _state(record: Record) -> str:
    if record["epoch"] is None:
        return record["state"]
    epochs = record["options"].get("train", {}).get("epochs")
    return f"{record['state']} at {record['epoch']:.2f} of {epochs}"


def _public(record: Record) -> Record:
    return {name: value for name, value in record.items() if name != "options"}


def _flat(options: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for section, values in options.items():
        if isinstance(values, dict):
            flat |= {f"{section}.{name}": value for name, value in values.items()}
        else:
            flat[section] = values
    return flat


def _differing(parts: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """key -> its value in each, where they are not all the same; None = has no such key."""
    keys = dict.fromkeys(key for part in parts for key in part)
    found = {key: [part.get(key) for part in parts] for key in keys}
    return {key: values for key, values in found.items() if any(value != values[0] for value in values)}


def _differences(console: Console, title: str, names: list[str], found: dict[str, list[Any]], none: str) -> None:
    if not found:
        console.text(f"{title.lower()}: {none}")
        return
    rows = [[key, *(None if value is None else str(value) for value in values)] for key, values in found.items()]
    console.table(f"{title}: what differs", ["", *names], rows)


def _only(hashes: dict[str, str], prefix: str) -> dict[str, str]:
    return {name: digest for name, digest in hashes.items() if name.startswith(prefix)}


def _beside(values: list[float | None]) -> list[str | None]:
    first = values[0]
    return [
        None
        if value is None
        else f"{value:.4f} ({value - first:+.4f})"
        if number and first is not None
        else f"{value:.4f}"
        for number, value in enumerate(values)
    ]


def _ratios(name: str, values: list[float | None]) -> list[str | None]:
    first = values[0]
    cells = [_cost(name, value) for value in values]
    return [
        f"{cell} (× {value / first:.2f})" if number and first and value is not None else cell
        for number, (cell, value) in enumerate(zip(cells, values, strict=True))
    ]


def _cost(name: str, value: float | None) -> str | None:
    if value is None:
        return None
    if name == "peak_memory_bytes":
        return size(value)
    return f"{value:,.1f} s" if name.endswith("seconds") else count(value)


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:.4f}"


def _whole(value: int | None) -> str | None:
    return None if value is None else f"{value:,}"


def _when(iso: str | None) -> str | None:
    return None if iso is None else f"{iso[:10]} {iso[11:16]}"
