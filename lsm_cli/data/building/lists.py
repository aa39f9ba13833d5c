"""Logs that hold one row per sample with the history as list columns, as competition data do.

The lists are unfolded into event logs once. Rows of one user repeat much of each other's history, so an event that
several rows have is kept once; one that a single row has twice is kept twice.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from lsm_cli.data.building.files import Table, check_column, open_table, unreadable
from lsm_cli.data.building.scan import Source, event_source, sample_source
from lsm_cli.data.description import Description, Events
from lsm_cli.errors import InputError

_BYTES = 64  # of one list element and column while unfolding


def open_lists(
    description: Description, scratch: Path, memory: int, head: int | None = None
) -> tuple[list[Source], Source]:
    """Unfold every events block into parquet files and open them, and the samples, as sources.

    Args:
        scratch: folder to write to.
        memory: bytes to work with; the users are unfolded in as many parts as it takes.
        head: only so many rows of each file.

    Raises:
        InputError: one line for each column that is missing or no list, or lists of different lengths.
    """
    problems: list[str] = []
    table = open_table(description, "samples", description.samples, problems)
    if problems or table is None:
        raise InputError("\n".join(problems))
    for position, block in enumerate(description.events):
        _check_block(description, f"events[{position}]", block, table, problems)
    samples = sample_source(description, table, description.samples, problems)
    if problems:
        raise InputError("\n".join(problems))
    events = []
    for position, block in enumerate(description.events):
        files = _unfold(table, position, block, _user(description), scratch, memory, head)
        schemas = [dict(pl.read_parquet_schema(file)) for file in files]
        unfolded = Table(
            f"events[{position}]", block.model_copy(update={"format": "parquet"}), files, schemas, table.files
        )
        whole = block.model_copy(update={"user": _user(description)})
        events.append(event_source(description, unfolded, whole, problems))
    if problems:
        raise InputError("\n".join(problems))
    return events, samples


def _user(description: Description) -> str:
    assert description.samples.user is not None
    return description.samples.user


def _columns(block: Events) -> dict[str, str]:
    """Role -> column, of everything that the block reads."""
    roles = {"item": block.item, "time": block.time.column}
    roles |= {
        name: role.column for name in ("domain", "scenario", "action") if (role := getattr(block, name)) and role.column
    }
    roles |= {f"category[{level}]": column for level, column in enumerate(block.category)}
    roles |= {f"fields.{name}": column for name, column in block.fields.items()}
    roles |= {f"where.{column}": column for column in block.where}
    return roles | {f"actions_from.{name}": column for name, column in block.actions_from.items()}


def _check_block(description: Description, key: str, block: Events, table: Table, problems: list[str]) -> None:
    for file, schema in zip(table.files, table.schemas, strict=True):
        for role, column in _columns(block).items():
            dtype = schema.get(column)
            if dtype is None or not isinstance(dtype, pl.List):
                if not check_column(description, key, role, file, schema, column, problems):
                    continue
                if role in ("item", "time"):
                    problems.append(
                        f"{description.file}: {key}.{role}: column {column!r} of {file} is {dtype}, not a list"
                    )


def _unfold(
    table: Table, number: int, block: Events, user: str, scratch: Path, memory: int, head: int | None
) -> list[Path]:
    wanted = list(dict.fromkeys(_columns(block).values()))
    columns = list(dict.fromkeys([user, *wanted]))
    alike: dict[tuple[pl.DataType, ...], list[int]] = {}  # what two files have of one user must meet
    for position, schema in enumerate(table.schemas):
        alike.setdefault(tuple(schema[name] for name in columns), []).append(position)
    found: list[Path] = []
    for positions in alike.values():
        lists = [name for name in wanted if isinstance(table.schemas[positions[0]][name], pl.List)]
        rows, elements = [], 0
        for position in positions:
            file, mine = table.files[position], table.scan(position).select(columns)
            rows.append(mine if head is None else mine.head(head))
            try:
                elements += _check_lengths(rows[-1], lists, block.item, file, f"events[{number}]")
            except (pl.exceptions.PolarsError, OSError) as error:
                raise unreadable(file, error) from None
        parts = max(1, -(-elements * len(wanted) * _BYTES // max(memory // 2, 1)))
        for part in range(parts):
            some = [mine if parts == 1 else mine.filter(pl.col(user).hash(0) % parts == part) for mine in rows]
            out = scratch / f"events-{number}-{len(found):05}.parquet"  # no brackets: they would be a glob
            try:
                _events(pl.concat(some), columns, lists, block.item).collect(engine="streaming").write_parquet(
                    out, statistics=False
                )
            except (pl.exceptions.PolarsError, OSError) as error:
                if "No space left" in str(error):
                    raise  # not the log's fault
                raise unreadable(table.files[positions[0]], error) from None
            found.append(out)
    return found


def _check_lengths(rows: pl.LazyFrame, lists: list[str], item: str, file: Path, key: str) -> int:
    """Number of list elements."""
    size = pl.col(item).list.len().fill_null(0)
    uneven = [(size > 0) & pl.col(name).list.len().ne_missing(size) for name in lists if name != item]
    checks = [expression.sum().alias(str(n)) for n, expression in enumerate(uneven)]
    found = rows.select(size.sum().alias("elements"), *checks).collect(engine="streaming").row(0, named=True)
    for number, name in enumerate(name for name in lists if name != item):
        if found[str(number)]:
            raise InputError(
                f"{file}: {key}: lists {item!r} and {name!r} differ in length in {found[str(number)]:,} rows;"
                " the lists of one block describe the same events"
            )
    return found["elements"]


def _events(rows: pl.LazyFrame, columns: list[str], lists: list[str], item: str) -> pl.LazyFrame:
    """One row an event, in the order of the rows and of their lists."""
    unfolded = (
        rows.filter(pl.col(item).list.len() > 0).with_row_index("_row").explode(lists)
        .with_columns(pl.int_range(pl.len()).over(["_row", *columns]).alias("_again"))
    )  # fmt: skip
    return unfolded.unique([*columns, "_again"], keep="first", maintain_order=True).select(columns)
