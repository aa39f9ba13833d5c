"""`--check`: read the head of each file and show how every column is understood."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import polars as pl

from lsm_cli.data.building.cells import BAD_LABEL, NUMBERS
from lsm_cli.data.building.files import unreadable
from lsm_cli.data.building.lists import open_lists
from lsm_cli.data.building.moments import iso
from lsm_cli.data.building.scan import Source, open_sources, settle_kinds
from lsm_cli.data.description import Description

_HEAD = 1_000
_SHOWN = 3
_MEMORY = 1 << 30


def check_logs(description: Description) -> dict[str, Any]:
    """How the head of each file reads.

    Returns:
        "blocks": per block its key, files and columns (role, column, type, raw, read); "problems": sentences.

    Raises:
        InputError: a file or column is missing.
    """
    with tempfile.TemporaryDirectory() as scratch:
        if description.samples.layout == "lists":
            events, samples = open_lists(description, Path(scratch), _MEMORY, _HEAD)
            return _check(description, [*events, samples])
        sources, sampled = open_sources(description)
        return _check(description, [*sources, *([sampled] if sampled else [])])


def _check(description: Description, everything: list[Source]) -> dict[str, Any]:
    kinds = settle_kinds(everything)
    resolution = max(source.resolution for source in everything)
    problems: list[str] = []
    blocks = [_block(source, kinds, resolution, problems) for source in everything]
    return {"name": description.name, "blocks": blocks, "problems": problems}


def _block(source: Source, kinds: dict[str, str], resolution: int, problems: list[str]) -> dict[str, Any]:
    table, columns = source.table, _columns(source)
    shown: list[dict[str, Any]] = []
    for position, file in enumerate(table.files):
        try:
            raw = table.scan(position).head(_HEAD).collect()
            read = source.plan(position, kinds, resolution, head=_HEAD).collect()
        except (pl.exceptions.PolarsError, OSError) as error:
            problems.append(str(unreadable(file, error)))
            continue
        if not raw.height:
            problems.append(f"{file}: has no rows")
        for role, column in columns.items():
            problem = _problem(source, role, column, raw, read) if raw.height else None
            if problem:
                problems.append(f"{file}: {problem}")
        if not shown:
            shown = [_describe(role, column, raw, read, resolution) for role, column in columns.items()]
    shown += [
        {"role": role, "column": None, "type": "constant", "raw": None, "read": value}
        for role, value in source.constants.items()
    ]
    shown += [{"role": role, "column": None, "type": "from items", "raw": None, "read": None} for role in source.joined]
    return {"key": table.key, "files": [str(file) for file in table.named], "columns": shown}


def _columns(source: Source) -> dict[str, str]:
    """Canonical name -> column of the file."""
    found = {**source.columns, **{name: label.column for name, label in source.labels.items()}, **source.numbers}
    return found | ({"time": source.time.column} if source.time is not None else {})


def _describe(role: str, column: str, raw: pl.DataFrame, read: pl.DataFrame, resolution: int) -> dict[str, Any]:
    values = [str(value) for value in raw[column].drop_nulls().unique(maintain_order=True).head(_SHOWN).to_list()]
    understood = read[role].drop_nulls().unique(maintain_order=True).head(_SHOWN).to_list()
    if role == "time":
        understood = [iso(value, resolution) for value in understood]
    return {
        "role": role, "column": column, "type": str(raw[column].dtype),
        "raw": ", ".join(values), "read": ", ".join(str(value) for value in understood),
    }  # fmt: skip


def _problem(source: Source, role: str, column: str, raw: pl.DataFrame, read: pl.DataFrame) -> str | None:
    table, missing = source.table, read[role].null_count()
    if role in ("user", "item", "time") and missing == read.height:
        example = raw[column].drop_nulls().head(1).to_list()
        value = f"e.g. {example[0]!r}" if example else "it is empty"
        return f"column {column!r} ({table.key}.{role}) cannot be understood, {value}"
    if role.startswith("label") and (read[role] == BAD_LABEL).any():
        bad = raw[column].filter(read[role] == BAD_LABEL).head(1).to_list()
        return f"column {column!r} is a label and says {bad[0]!r}; labels are 0, 1 or empty (not observed)"
    if role in source.numbers and not read[role].is_finite().fill_null(True).all():
        odd = raw[column].filter(read[role].is_finite().not_())[0]
        return f"column {column!r} ({table.key}.{role}) says {odd!r}; {NUMBERS}"
    if role == "time" and (read[role].drop_nulls() < 0).any():
        return f"column {column!r} ({table.key}.time) has negative times; those rows are dropped"
    return None
