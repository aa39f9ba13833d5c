"""Reading logs: files of any supported format become batches of rows with the same few canonical columns.

Identifiers become Int64 where every source of a role holds integers, and text otherwise, so that the same log gives
the same store whether it came as csv, parquet or ndjson. Times become Int64 ticks. Rows keep the order of the files
(sorted by name) and of the rows within them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl

from lsm_cli.data.building.cells import as_label, as_number, as_text
from lsm_cli.data.building.files import Table, check_column, open_table, unreadable
from lsm_cli.data.building.moments import parse_time, time_resolution
from lsm_cli.data.description import Description, Events, Items, Samples
from lsm_cli.data.parts import Label, Role
from lsm_cli.errors import InputError


@dataclass
class Source:
    """A table and the roles its columns play."""

    table: Table
    columns: dict[str, str]  # role -> column, read as identifiers
    constants: dict[str, str] = field(default_factory=dict)  # role -> value
    time: Any = None  # description.Time
    labels: dict[str, Label] = field(default_factory=dict)  # by name of the column of the store: "label.<target>"
    numbers: dict[str, str] = field(default_factory=dict)  # "value", "propensity", "truth.<target>" -> column
    renames: dict[str, str] = field(default_factory=dict)  # raw action -> name
    flags: dict[str, str] = field(default_factory=dict)  # action -> flag column
    items: pl.DataFrame | None = None  # attributes to join by item
    joined: list[str] = field(default_factory=list)  # roles that come from `items`

    @property
    def roles(self) -> list[str]:
        return [*self.columns, *(["action"] if self.flags else []), *self.constants, *self.joined]

    def settle(self) -> None:
        """See `Table.settle`: whatever is no text by its nature."""
        columns = {*self.columns.values(), *(label.column for label in self.labels.values()), *self.flags.values()}
        numbers = {self.time.column} if self.time is not None and self.time.unit else set()
        self.table.settle(columns | numbers, self.columns.values())

    @cached_property
    def resolution(self) -> int:
        """Ticks per second that this source's times need."""
        if self.time is None:
            return 1
        return max(time_resolution(self.time, schema[self.time.column]) for schema in self.table.schemas)

    def plan(
        self,
        position: int,
        kinds: dict[str, str],
        resolution: int,
        only: Iterable[str] | None = None,
        head: int | None = None,
    ) -> pl.LazyFrame:
        """One file as canonical columns: a column per role that is not constant, time, labels and numbers."""
        schema = self.table.schemas[position]
        out: list[pl.Expr] = []
        for role, column in self.columns.items():
            kind = kinds.get(role, "text")
            value = pl.col(column).cast(pl.Int64, strict=False) if kind == "int" else as_text(column, schema[column])
            if role == "action" and self.renames:
                short = {raw.removesuffix(".0"): name for raw, name in self.renames.items()}  # 4.0 is read as 4
                value = value.replace(short | self.renames)
            out.append(value.alias(role))
        if self.flags:
            out.append(self._first_flag(schema).alias("action"))
        if self.time is not None:
            out.append(parse_time(self.time, schema[self.time.column], resolution).alias("time"))
        out += [as_label(label, schema[label.column]).alias(name) for name, label in self.labels.items()]
        out += [as_number(column, schema[column]).alias(name) for name, column in self.numbers.items()]
        rows = self.table.scan(position)
        frame = (rows if head is None else rows.head(head)).select(out)
        if self.items is not None and self.joined:
            attributes = self.items.select("item", *self.joined).lazy()
            frame = frame.join(attributes, on="item", how="left", maintain_order="left")
        return frame if only is None else frame.select(only)

    def _first_flag(self, schema: dict[str, pl.DataType]) -> pl.Expr:
        action = pl.lit("none")
        for name, column in reversed(self.flags.items()):
            flag = as_label(Label(column=column), schema[column])
            action = pl.when(flag == 1).then(pl.lit(name)).otherwise(action)
        return action

    def batches(
        self, kinds: dict[str, str], resolution: int, rows: int, only: Iterable[str] | None = None
    ) -> Iterator[pl.DataFrame]:
        """All rows in order, at most `rows` at a time.

        Raises:
            InputError: a file cannot be parsed.
        """
        for position, file in enumerate(self.table.files):
            try:
                plan = self.plan(position, kinds, resolution, only)
                for frame in plan.collect_batches(chunk_size=rows, maintain_order=True, engine="streaming"):
                    if frame.height:
                        yield frame.rechunk()
            except (pl.exceptions.PolarsError, OSError) as error:
                raise unreadable(file, error) from None

    def example(self, column: str) -> str:
        """A value that is there, for messages."""
        for position in range(len(self.table.files)):
            found = self.table.scan(position).select(pl.col(column).drop_nulls().head(1)).collect(engine="streaming")
            if found.height:
                return repr(found.item())
        return "nothing"


def usable(frame: pl.DataFrame) -> tuple[np.ndarray | None, dict[str, int]]:
    """Rows that have a user, an item and a time that is not negative.

    Returns:
        bool [rows] (None when all are usable) and how many are not, by the first reason that applies.
    """
    if not any(frame[name].null_count() for name in ("user", "item", "time")) and (frame["time"].min() or 0) >= 0:  # type: ignore[operator]
        return None, {}
    keep, dropped = np.ones(frame.height, bool), {}
    for name in ("user", "item", "time", "negative time"):
        bad = (frame["time"] < 0).fill_null(True) if name == "negative time" else frame[name].is_null()
        lost = keep & bad.to_numpy()
        if lost.any():
            dropped[name if name == "negative time" else f"no {name}"] = int(lost.sum())
            keep &= ~lost
    return keep, dropped


def add_counts(total: dict[str, int], more: dict[str, int]) -> None:
    for reason, rows in more.items():
        total[reason] = total.get(reason, 0) + rows


def open_sources(description: Description) -> tuple[list[Source], Source | None]:
    """The events' sources and the samples' (None when they are made from events); files are found, not yet read.

    Raises:
        InputError: one line for each file or column that is missing or of the wrong type.
    """
    problems: list[str] = []
    events, samples = description.events, description.samples
    tables = [open_table(description, f"events[{n}]", block, problems) for n, block in enumerate(events)]
    sample_table = None if samples.from_events else open_table(description, "samples", samples, problems)
    item_table = open_table(description, "items", description.items, problems) if description.items else None
    if problems:
        raise InputError("\n".join(problems))
    sources = [
        event_source(description, table, block, problems) for table, block in zip(tables, events, strict=True) if table
    ]
    sampled = sample_source(description, sample_table, samples, problems) if sample_table else None
    items = _items(description, item_table, description.items, problems) if item_table and description.items else None
    if problems:
        raise InputError("\n".join(problems))
    for source in [*sources, *([sampled] if sampled else [])]:
        if items is not None:
            source.joined = [name for name in items.columns if name not in source.roles and name != "item"]
            if any(role.startswith("category") for role in source.columns):
                source.joined = [name for name in source.joined if not name.startswith("category")]
            source.items = items
    return sources, sampled


def _require(description: Description, source: Source, problems: list[str]) -> Source:
    """Check that every column which the source names is in every file."""
    wanted = {**source.columns, **{name: label.column for name, label in source.labels.items()}, **source.numbers}
    wanted |= {f"actions_from.{action}": column for action, column in source.flags.items()}
    if source.time is not None:
        wanted["time"] = source.time.column
    for file, schema in zip(source.table.files, source.table.schemas, strict=True):
        good = [check_column(description, source.table.key, r, file, schema, c, problems) for r, c in wanted.items()]
        if source.time is not None and all(good):
            try:
                time_resolution(source.time, schema[source.time.column])
            except InputError as error:
                problems.append(f"{description.file}: {source.table.key}.time: {error} ({file})")
    return source


def _roles(**roles: Role | str | None) -> tuple[dict[str, str], dict[str, str]]:
    columns, constants = {}, {}
    for name, role in roles.items():
        if isinstance(role, str):
            columns[name] = role
        elif role is not None and role.column:
            columns[name] = role.column
        elif role is not None and role.value:
            constants[name] = role.value
    return columns, constants


def _levels(category: list[str]) -> dict[str, str]:
    return {f"category{level}": column for level, column in enumerate(category, start=1)}


def event_source(description: Description, table: Table, block: Events, problems: list[str]) -> Source:
    columns, constants = _roles(
        user=block.user, item=block.item, scenario=block.scenario, domain=block.domain, action=block.action
    )
    columns |= _levels(block.category) | block.fields
    source = Source(table, columns, constants, block.time, renames=block.actions, flags=block.actions_from)
    return _require(description, source, problems)


def sample_source(description: Description, table: Table, block: Samples, problems: list[str]) -> Source:
    columns, constants = _roles(user=block.user, item=block.item, scenario=block.scenario, domain=block.domain)
    columns |= _levels(block.category) | block.fields
    if description.split.column:
        columns["split"] = description.split.column
    if block.target:
        columns["target"] = block.target
    labels = {f"label.{name}": label for name, label in block.labels.items()}
    if block.label:
        labels["label"] = Label(column=block.label)
    numbers = {f"truth.{name}": column for name, column in block.truth.items()}
    if block.value:
        numbers["value"] = block.value
    if block.propensity:
        numbers["propensity"] = block.propensity
    return _require(description, Source(table, columns, constants, block.time, labels, numbers), problems)


def _items(description: Description, table: Table, block: Items, problems: list[str]) -> pl.DataFrame | None:
    """The items' attributes as text or integers, one row an item (the first that the files have)."""
    source = _require(
        description, Source(table, {"item": block.item} | _levels(block.category) | block.fields), problems
    )
    if problems:
        return None
    source.settle()
    whole = table.integers()
    kinds = {role: "int" for role, column in source.columns.items() if column in whole}
    frames = list(source.batches(kinds, 1, 1 << 20))
    if not frames:
        problems.append(f"{table.files[0]}: has no rows; items needs one row an item")
        return None
    return pl.concat(frames).filter(pl.col("item").is_not_null()).unique("item", keep="first", maintain_order=True)


def is_level(role: str) -> bool:
    """Whether a role is a level of the category."""
    return role.startswith("category") and role[8:].isdigit()


def settle_kinds(sources: list[Source]) -> dict[str, str]:
    """Role -> "int" where every source of it holds integers, "text" otherwise; joined attributes are cast to match."""
    votes: dict[str, list[bool]] = {}
    named = {"domain", "split", "target"}  # few values, compared with words of the description
    for source in sources:
        source.settle()
        whole = source.table.integers()
        for role, column in source.columns.items():
            renamed = role == "action" and source.renames
            votes.setdefault(role, []).append(column in whole and not renamed)
        for role in ["item", *source.joined] if source.joined and source.items is not None else []:
            votes.setdefault(role, []).append(source.items[role].dtype == pl.Int64)  # type: ignore[index]
        for role in [*source.constants, *(["action"] if source.flags else [])]:
            votes.setdefault(role, []).append(False)
    kinds = {role: "int" if all(votes[role]) and role not in named else "text" for role in votes}
    for source in sources:
        if source.items is not None and source.joined:
            names = ["item", *source.joined]
            source.items = source.items.with_columns(pl.col(n).cast(pl.String) for n in names if kinds[n] == "text")
    return kinds
