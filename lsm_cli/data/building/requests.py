"""Which samples there are, when each was requested, and to which split it belongs."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import polars as pl

from lsm_cli.data.building.moments import iso, moment_ticks
from lsm_cli.data.building.scan import Source, add_counts, usable
from lsm_cli.data.description import SPLITS, Description, Split, is_share
from lsm_cli.errors import InputError

DROPPED = -1
_SHARES = (0.1, 0.1)
_NAMES = {"train": 0, "valid": 1, "val": 1, "validation": 1, "dev": 1, "test": 2}


@dataclass
class Requests:
    """All rows of the samples' files, in order.

    Attributes:
        split: int8 [rows], index into `SPLITS`, -1 where the row is not used.
        time: int64 [rows], ticks.
        how: the decision about the split, for the user.
        dropped: reason -> rows.
        each: samples that come of one row: a positive and its negatives, where samples are made from events.
    """

    split: np.ndarray
    time: np.ndarray
    how: str
    dropped: dict[str, int] = field(default_factory=dict)
    each: int = 1

    @property
    def last_training(self) -> int:
        """Time of the last training request."""
        return int(self.time[self.split == 0].max())

    def drop(self, rows: np.ndarray, reason: str) -> None:
        """Leave out some rows, given as bool [rows]."""
        self.split[rows] = DROPPED
        add_counts(self.dropped, {reason: int(rows.sum())})

    def counts(self) -> dict[str, int]:
        return {name: self.each * int((self.split == code).sum()) for code, name in enumerate(SPLITS)}


def read_requests(
    description: Description, source: Source, kinds: dict[str, str], resolution: int, rows: int
) -> Requests:
    """Read the samples' times and split them.

    Raises:
        InputError: no usable rows, an unreadable column, or a split without training or validation rows.
    """
    only = ["user", "item", "time", *(["split"] if description.split.column else [])]
    dropped: dict[str, int] = {}
    times, codes, total = [], [], 0
    for frame in source.batches(kinds, resolution, rows, only):
        keep, lost = usable(frame)
        total += frame.height
        add_counts(dropped, lost)
        code = np.zeros(frame.height, np.int8)
        if description.split.column:
            name = frame["split"].str.strip_chars().str.to_lowercase()
            code = (
                name.replace_strict(_NAMES, default=DROPPED, return_dtype=pl.Int8).fill_null(DROPPED).to_numpy().copy()
            )
            unknown = (code == DROPPED) if keep is None else (code == DROPPED) & keep
            if unknown.any():
                dropped["in no split"] = dropped.get("in no split", 0) + int(unknown.sum())
        if keep is not None:
            code[~keep] = DROPPED
        codes.append(code)
        times.append(frame["time"].fill_null(-1).to_numpy())
    check_rows(source, total, dropped)
    split, time = np.concatenate(codes), np.concatenate(times)
    check_years(source, int(time.max()), resolution)
    if description.split.column and not (split >= 0).any():
        raise InputError(
            f"{source.table.named[0]}: column {description.split.column!r} never says train, valid or test"
            f" (it has {source.example(description.split.column)}); rename its values or split by time"
        )
    requests = Requests(split, time, f"by column {description.split.column!r}", dropped)
    if not description.split.column:
        unit = source.time.unit if source.time else None
        requests.how = split_by_time(description.split, split, time, unit, resolution)
    check_splits(description, requests, resolution)
    return requests


def split_by_time(split: Split, code: np.ndarray, time: np.ndarray, unit: str | None, resolution: int) -> str:
    """Fill in `code` (int8 [rows], >= 0 where usable) by the requests' times.

    Returns:
        what was done.
    """
    used = code >= 0
    valid, test = split.valid, split.test
    if valid is None or is_share(valid):
        shares = _SHARES if valid is None else (float(valid), float(test or 0))
        ordered = np.sort(time[used])
        places = [int(len(ordered) * (1 - shares[0] - shares[1])), int(len(ordered) * (1 - shares[1]))]
        # a moment is never divided: all of its requests fall on the later side
        first = [int(ordered[p]) if p < len(ordered) else int(ordered[-1]) + 1 for p in places]
        how = f"by time, the last {shares[0] + shares[1]:.0%} held out"
        if valid is None:
            how += " because [split] says nothing"
    else:
        first = [moment_ticks(valid, unit, resolution, "split.valid")]
        first.append(np.iinfo(np.int64).max if test is None else moment_ticks(test, unit, resolution, "split.test"))
        if first[1] <= first[0]:
            raise InputError(f"split.test: {test} is not after split.valid {valid}; validation lies between them")
        how = "by time"
    code[used] = (time[used] >= first[0]).astype(np.int8) + (time[used] >= first[1])
    return how


def check_splits(description: Description, requests: Requests, resolution: int) -> None:
    used = requests.time[requests.split >= 0]
    if not len(used):
        raise InputError(f"{description.file}: samples: no usable row is left; see the columns with --check")
    span = f"the samples run from {iso(int(used.min()), resolution)} to {iso(int(used.max()), resolution)}"
    counts = requests.counts()
    remedy = (
        "give every split rows in the split column" if description.split.column else "move split.valid and split.test"
    )
    for name, what in (("train", "training"), ("valid", "validation")):
        if not counts[name]:
            raise InputError(f"{description.file}: split: no {what} rows; {span}: {remedy}")


def check_rows(source: Source, rows: int, dropped: dict[str, int]) -> None:
    """Refuse a source without rows, and one whose user, item or time column can never be used.

    Raises:
        InputError: names the file, the column, a value and what to do.
    """
    names = ", ".join(str(file) for file in source.table.named[:3])
    if not rows:
        raise InputError(
            f"{names}: has no rows{' that `where` keeps' if source.table.spec.where else ''};"
            f" {source.table.key} needs some"
        )
    for reason, role in (("no time", "time"), ("negative time", "time"), ("no user", "user"), ("no item", "item")):
        if dropped.get(reason, 0) < rows:
            continue
        column = source.time.column if role == "time" else source.columns[role]
        if role != "time" or source.example(column) == "nothing":
            raise InputError(
                f"{names}: column {column!r} ({source.table.key}.{role}) is empty in every row; name another column"
            )
        if reason == "negative time":
            raise InputError(
                f"{names}: column {column!r} ({source.table.key}.time) is negative in every row;"
                " name another column or unit"
            )
        raise InputError(
            f"{names}: column {column!r} ({source.table.key}.time) cannot be read as a time,"
            f" e.g. {source.example(column)};"
            f' give its format, time = {{ column = "{column}", format = "%Y-%m-%d %H:%M:%S" }}, or its unit'
        )


def check_years(source: Source, last: int, resolution: int) -> None:
    """Refuse times far in the future: the unit is wrong.

    Raises:
        InputError: names the column, what it reads as, and the unit that would fit.
    """
    if last <= 7_258_118_400 * resolution:  # the year 2200
        return
    unit = source.time.unit or "s"
    likely = {"s": "ms", "ms": "us"}.get(unit)
    raise InputError(
        f"{source.table.named[0]}: column {source.time.column!r} ({source.table.key}.time) reaches the year 2200"
        f" and beyond when read as {unit}, e.g. {source.example(source.time.column)}; "
        + (f'is it unit = "{likely}"?' if likely else "mend the values")
    )


def check_units(samples: Source, requests: Requests, events: list[tuple[Source, int, int]], resolution: int) -> None:
    """Refuse times that end years before what they belong to, and would not in another unit.

    Args:
        events: each source with its first and last time.

    Raises:
        InputError: names the column, where it ends, and the unit that fits.
    """
    used = requests.time[requests.split >= 0]
    first, last = int(used.min()), int(used.max())
    for source, _, latest in events:
        _check_unit(source, latest, first, last, "the requests", resolution)
    began, ended = min(early for _, early, _ in events), max(late for *_, late in events)
    _check_unit(samples, last, began, ended, "the events", resolution)


def _check_unit(source: Source, latest: int, low: int, high: int, others: str, resolution: int) -> None:
    year = 365 * 86_400 * resolution
    if latest >= low - 5 * year:
        return
    for unit, times in {"ms": (("s", 1_000),), "us": (("ms", 1_000), ("s", 1_000_000))}.get(source.time.unit or "", ()):
        if low - year <= latest * times <= high + year:
            raise InputError(
                f"{source.table.named[0]}: column {source.time.column!r} ({source.table.key}.time) ends in"
                f" {iso(latest, resolution)} when read as {source.time.unit}, years before {others}; is it"
                f' unit = "{unit}"?'
            )
