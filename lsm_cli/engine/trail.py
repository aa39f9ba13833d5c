"""The trail of experiments: what the run folders and ledgers below a folder say, whatever state they are in.

A folder is a run if it holds a recipe and one of the other files that a run begins with. What it says of itself comes
first; a line of the ledger beside it adds when and by which command, and outlives the folder. Nothing here needs torch.
"""

from __future__ import annotations

import fcntl
import json
import os
import tomllib
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lsm_cli.errors import InputError

STATE, WEIGHTS, METRICS, LEDGER = "state.pt", "model.safetensors", "metrics.jsonl", "ledger.jsonl"
LOCK, RECIPE, RESULT, DATA, ENVIRONMENT = ".lock", "recipe.toml", "result.json", "data.json", "environment.json"
STUDY, TRIALS = "study.json", "trials"  # a study's plan, and the folder of its trials' runs beside it
DEPTH = 4  # folders below the one that is asked for in which runs are looked for

Record = dict[str, Any]  # a run as `lsm runs --json` prints it; `options` is the recipe, section by section
SPLITS = ("test", "valid")
QUALITY = ("auc", "gauc", "logloss", "calibration")
FIELDS = (
    "name", "state", "recipe", "store", "seed", "when", "samples_per_second", "peak_memory_bytes", "parameters",
    "steps", "training_seconds",
)  # fmt: skip


@dataclass(frozen=True)
class Finished:
    """A run that was tested: its result.json, and the lines of its metrics.jsonl."""

    folder: Path
    split: str  # that it was tested on
    result: dict[str, Any]
    history: list[dict[str, Any]]

    @property
    def targets(self) -> dict[str, Any]:
        """target -> {auc, gauc, logloss, calibration, n, positives, slices, …}."""
        return self.result[self.split]

    @classmethod
    def read(cls, folder: Path) -> Finished | None:
        """None = it has no result yet.

        Raises:
            InputError: the result is damaged.
        """
        if not (folder / RESULT).is_file():
            return None
        problems: list[str] = []
        result = read_object(folder / RESULT, problems)
        split = next((name for name in SPLITS if isinstance(result.get(name), dict)), None)
        if split is None:
            raise InputError(f"{folder / RESULT}: damaged; remove it, and `lsm train … --resume` makes it anew")
        return cls(folder, split, result, read_lines(folder / METRICS, problems))


def find_runs(root: str | Path) -> tuple[list[Record], list[str]]:
    """All runs in and below a folder.

    Returns:
        (a record each, newest first; a sentence for each thing that could not be read).

    Raises:
        InputError: there is no such folder.
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; `lsm train … --out {root}/NAME` makes runs in it")
    records, problems = [], list[str]()
    for folder, names, files in os.walk(root):
        path = Path(folder)
        if is_run(path):
            names.clear()
            records.append(read_run(path, root, problems))
            continue
        deep = len(path.relative_to(root).parts) >= DEPTH
        names[:] = [] if deep else sorted(name for name in names if not name.startswith("."))
        if LEDGER in files:
            records += _removed(path, root, problems)
    return sorted(records, key=lambda record: record["when"] or "", reverse=True), problems


def study_of(path: Path) -> Path | None:
    """The study that a folder is a trial of; None = of none."""
    folder = path.resolve().parent
    return folder.parent if folder.name == TRIALS and (folder.parent / STUDY).is_file() else None


def is_run(path: Path) -> bool:
    return (path / RECIPE).is_file() and any((path / name).exists() for name in (LOCK, DATA, ENVIRONMENT))


def read_run(path: str | Path, root: str | Path | None = None, problems: list[str] | None = None) -> Record:
    """What a run says of itself; what cannot be read is None, and named in `problems`.

    Args:
        path: its folder.
        root: the folder that its name is relative to; None = its parent.

    Raises:
        InputError: no run there.
    """
    path = Path(path)
    if not is_run(path):
        near = Path("runs") / path
        hint = f"; did you mean {near}?" if is_run(near) else "; `lsm runs` lists those there are"
        raise InputError(f"{path}: not a run{hint}")
    problems = [] if problems is None else problems
    options = _toml(path / RECIPE, problems)
    data, machine = read_object(path / DATA, problems), read_object(path / ENVIRONMENT, problems)
    done = (path / RESULT).is_file()
    result = read_object(path / RESULT, problems) if done else {}
    line = _line_of(path, machine.get("started"), problems)
    said = result or line
    split = next((name for name in SPLITS if name in said), None)
    when = line.get("at") if done else machine.get("started")
    record = {
        "run": str(path),
        "name": _name(path, root or path.parent),
        "trial": study_of(path) is not None,
        "state": "running" if is_held(path) else "finished" if done else "interrupted",
        "recipe": options.get("name"),
        "store": data.get("name"),
        "seed": options.get("train", {}).get("seed"),
        "when": when or _changed_at(path / (RESULT if done else RECIPE)),
        "split": split,
        "metrics": _metrics(said, split),
        **{key: said.get(key) for key in FIELDS[6:]},
        "code": machine.get("code"),
        "lsm": machine.get("lsm"),
        "command": machine.get("command"),
        "options": options,
    }
    record["epoch"] = None if done else _epoch(path)
    if record["trial"] and not done:
        record |= _last_validation(path)
        if record["state"] == "interrupted" and not (path / STATE).exists():
            record["state"] = "stopped"  # by the study: nothing goes on from here
    return record


def is_held(path: Path) -> bool:
    """Whether a process is writing to the run: its lock cannot be shared."""
    try:
        with open(path / LOCK) as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
    except BlockingIOError:
        return True
    except OSError:
        return False


def read_lines(file: Path, problems: list[str]) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file; lines that are none are left out and named."""
    found = []
    try:
        text = file.read_text(errors="replace")
    except OSError as error:
        problems.append(f"{file}: cannot be read ({error.strerror})")
        return []
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            value = json.loads(line)
        except ValueError:
            value = None
        if isinstance(value, dict):
            found.append(value)
        elif line.strip():
            problems.append(f"{file}: line {number} is damaged and left out")
    return found


def unlike(before: dict[str, str], after: dict[str, str]) -> str | None:
    """Which files of two stores differ, in words, from the hash of each file; None = none does."""
    names = [name for name in sorted(before.keys() | after.keys()) if before.get(name) != after.get(name)]
    if not names:
        return None
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more} of {len(before.keys() | after.keys())} files"


def code_name(record: Record) -> str | None:
    """A short name of the code that made a run: release, commit and whether it was changed, or a hash of the sources.

    Args:
        record: of a run, or the content of its environment.json.
    """
    release, code = record.get("lsm") or "", record.get("code") or {}
    if code.get("commit"):
        return f"{release} {code['commit'][:10]}{', changed since' if code.get('dirty') else ''}".strip()
    return f"{release} {code.get('sha256', '')[:10]}".strip() or None


# reading


def _removed(folder: Path, root: Path, problems: list[str]) -> list[Record]:
    """Runs that the ledger tells of and whose folders are gone, or hold a later run."""
    latest: dict[tuple[str, str | None], dict[str, Any]] = {}
    for line in read_lines(folder / LEDGER, problems):
        if isinstance(line.get("run"), str):
            latest[Path(line["run"]).name, line.get("started")] = line
        else:
            problems.append(f"{folder / LEDGER}: a line names no run and is left out")
    found = []
    for (name, started), line in latest.items():
        path = folder / name
        if is_run(path) and started in (None, read_object(path / ENVIRONMENT, []).get("started")):
            continue
        split = next((split for split in SPLITS if split in line), None)
        found.append(
            {
                "run": str(path),
                "name": _name(path, root),
                "trial": False,
                "state": "removed",
                **{key: line.get(key) for key in ("recipe", "seed", *FIELDS[6:], "command", "code", "lsm")},
                "store": line.get("store_name") or Path(str(line.get("store"))).name,
                "when": line.get("at"),
                "split": split,
                "metrics": _metrics(line, split),
                "options": {},
                "epoch": None,
            }
        )
    return found


def _line_of(path: Path, started: str | None, problems: list[str]) -> dict[str, Any]:
    """The last line that the ledger has of this run; damaged lines are named once, by `_removed`."""
    file = path.parent / LEDGER
    if not file.is_file():
        return {}
    lines = [line for line in read_lines(file, []) if Path(str(line.get("run"))).name == path.name]
    return next((line for line in reversed(lines) if line.get("started") in (None, started)), {})


def _metrics(said: dict[str, Any], split: str | None) -> dict[str, dict[str, Any]]:
    targets = said.get(split) if split else None
    if not isinstance(targets, dict):
        return {}
    kept = (*QUALITY, "n", "positives")
    return {
        target: {name: entry.get(name) for name in kept} for target, entry in targets.items() if isinstance(entry, dict)
    }


def _last_validation(path: Path) -> Record:
    """What the last validation of an unfinished run said."""
    lines = read_lines(path / METRICS, []) if (path / METRICS).is_file() else []
    said = {"valid": lines[-1].get("valid")} if lines else {}
    return {"split": "valid" if said else None, "metrics": _metrics(said, "valid")}


def _epoch(path: Path) -> float | None:
    """How far an unfinished run had come at its last validation."""
    lines = read_lines(path / METRICS, []) if (path / METRICS).is_file() else []
    return lines[-1].get("epoch") if lines else None


def _name(path: Path, root: str | Path) -> str:
    name = os.path.relpath(path, root)
    return path.resolve().name if name == "." else name


def _changed_at(file: Path) -> str | None:
    try:
        return datetime.fromtimestamp(file.stat().st_mtime, UTC).isoformat(timespec="seconds")
    except OSError:
        return None


def read_object(file: Path, problems: list[str]) -> dict[str, Any]:
    """The object of a JSON file; empty, and named in `problems`, if there is none."""
    try:
        found = json.loads(file.read_text())
        if isinstance(found, dict):
            return found
        raise ValueError("not an object")
    except (OSError, ValueError) as error:
        problems.append(f"{file}: missing or damaged ({_reason(error)})")
        return {}


def _toml(file: Path, problems: list[str]) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text())
    except (OSError, ValueError) as error:
        problems.append(f"{file}: missing or damaged ({_reason(error)})")
        return {}


def _reason(error: Exception) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)
