"""Vocabularies: which values a field takes, how often, whether training saw them, and which id each one has.

Ids of the training period come first, frequent values before rare ones, ties by value: the order depends on the data
alone, never on how it was read.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from lsm_cli.data.store import MISSING

_DENSE = 1 << 24  # integers below this are counted and looked up in plain arrays: an order faster than hashing
_FIRST = MISSING + 1


class Counter:
    """Counts the values of one field, batch by batch."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.counts = np.zeros(0, np.int64)  # integers below _DENSE
        self.trained = np.zeros(0, bool)
        self.parts: list[pl.DataFrame] = []  # everything else, as value, count, trained
        self.merged = 0

    def add(self, values: pl.Series, trained: np.ndarray) -> None:
        """Count a batch.

        Args:
            values: [rows] Int64 or String; null is not counted.
            trained: bool [rows], whether the row belongs to the training period.
        """
        if values.dtype == pl.Int64 and _within(values, _DENSE):
            self._add_dense(values, trained)
            return
        rows = pl.DataFrame({"value": values, "trained": trained}).lazy().drop_nulls("value")
        part = rows.group_by("value").agg(pl.len().cast(pl.Int64).alias("count"), pl.col("trained").any())
        self._add_part(part.collect(engine="streaming"))

    def _add_dense(self, values: pl.Series, trained: np.ndarray) -> None:
        high: int = values.max()  # type: ignore[assignment]
        if high >= len(self.counts):
            size = max(high + 1, 2 * len(self.counts))
            self.counts, self.trained = _grown(self.counts, size), _grown(self.trained, size)
        if values.null_count():
            trained = trained[values.is_not_null().to_numpy()]
            values = values.drop_nulls()
        numbers = values.to_numpy()
        counted = np.bincount(numbers)
        self.counts[: len(counted)] += counted
        self.trained[numbers[trained]] = True

    def add_constant(self, value: str, rows: int, trained: bool) -> None:
        """Count a value that all of `rows` rows have."""
        if rows:
            self._add_part(pl.DataFrame({"value": [value], "count": [rows], "trained": [trained]}))

    def _add_part(self, part: pl.DataFrame) -> None:
        self.parts.append(part.select("value", "count", "trained"))
        if sum(p.height for p in self.parts) > max(2 * self.merged, 1 << 20):
            self.parts = [merge_tables(self.parts)]
            self.merged = self.parts[0].height

    def table(self) -> pl.DataFrame:
        """value, count, trained: one row a value, in no particular order."""
        parts = list(self.parts)
        if len(self.counts):
            found = np.flatnonzero(self.counts)
            parts.append(pl.DataFrame({"value": found, "count": self.counts[found], "trained": self.trained[found]}))
        if not parts:
            dtype = pl.Int64 if self.kind == "int" else pl.String
            return pl.DataFrame(schema={"value": dtype, "count": pl.Int64, "trained": pl.Boolean})
        return merge_tables(parts) if len(parts) > 1 else parts[0]


class Vocabulary:
    """Values in the order of their ids, which start at 2 (0 is padding, 1 is missing)."""

    def __init__(self, values: pl.Series, counts: np.ndarray, trained: int, first: int = _FIRST) -> None:
        self.values, self.counts, self.first = values, counts, first
        self.trained = first + trained  # ids below were seen in training
        self.size = first + len(values)
        self.dtype = narrowest(self.size) if first else np.dtype(np.int32)  # those from 0 know -1
        self._table: np.ndarray | None = None
        self._dense = len(values) > 0 and values.dtype == pl.Int64 and _within(values, _DENSE)
        self._sorted: pl.DataFrame | None = None

    @classmethod
    def of(cls, table: pl.DataFrame) -> Vocabulary:
        """Trained values first, then by count, then by value; `table` as from `Counter.table`."""
        table = _ordered(table, [pl.col("trained").not_(), -pl.col("count")])
        return cls(table["value"], table["count"].to_numpy(), int(table["trained"].sum()))

    @classmethod
    def by_value(cls, table: pl.DataFrame) -> Vocabulary:
        """Numbered from 0 in the order of the values alone: users, and the parts of category paths."""
        table = _ordered(table, [])
        return cls(table["value"], table["count"].to_numpy(), table.height, first=0)

    def encode(self, values: pl.Series, missing: int = MISSING) -> np.ndarray:
        """Ids of values that were counted before; `missing` for nulls and for values never counted.

        Returns:
            [rows] of `dtype`.
        """
        if values.dtype == pl.String:
            ids = values.cast(self._enum, strict=False).to_physical()
            found = ids.fill_null(len(self.values)).to_numpy()
            return np.append(np.arange(self.first, self.size), missing).astype(self.dtype)[found]
        if self._dense:
            table = self._lookup
            table[-1] = missing
            numbers = values.fill_null(-1).to_numpy()  # the last element is what -1 finds
            inside = not len(numbers) or (numbers.max() < len(table) - 1 and numbers.min() >= -1)
            return table[numbers if inside else np.where((numbers >= 0) & (numbers < len(table) - 1), numbers, -1)]
        joined = values.to_frame("value").join(self._pairs, on="value", how="left", maintain_order="left")
        return joined["id"].fill_null(missing).to_numpy().astype(self.dtype)

    def id_of(self, value: str) -> int:
        """Id of a value given as text; 1 where it never occurs."""
        found = self.values.cast(pl.String).index_of(value)
        return MISSING if found is None else self.first + found

    @property
    def _enum(self) -> pl.Enum:
        if not hasattr(self, "_categories"):
            self._categories = pl.Enum(self.values)
        return self._categories

    @property
    def _lookup(self) -> np.ndarray:
        """[largest value + 2] ids, the last one for missing."""
        if self._table is None:
            numbers = self.values.to_numpy()
            self._table = np.full(int(numbers.max()) + 2, MISSING, self.dtype)
            self._table[numbers] = np.arange(self.first, self.size)
        return self._table

    @property
    def _pairs(self) -> pl.DataFrame:
        if self._sorted is None:
            ids = np.arange(self.first, self.size, dtype=np.int32)
            self._sorted = pl.DataFrame({"value": self.values, "id": ids})
        return self._sorted

    def frame(self) -> pl.DataFrame:
        """id, value (text), count, trained."""
        ids = np.arange(self.first, self.size, dtype=np.int32)
        return pl.DataFrame(
            {"id": ids, "value": self.values.cast(pl.String), "count": self.counts, "trained": ids < self.trained}
        )


def narrowest(size: int) -> np.dtype:
    """The narrowest integer type for ids below `size` that torch can read as well."""
    for dtype in (np.int8, np.uint8, np.int16):
        if size - 1 <= np.iinfo(dtype).max:
            return np.dtype(dtype)
    return np.dtype(np.int32)


def write_vocabulary(frame: pl.DataFrame, file: Path) -> None:
    file.parent.mkdir(exist_ok=True)
    frame.write_parquet(file, compression="zstd", statistics=False)


def _within(values: pl.Series, limit: int) -> bool:
    """Whether all integers are in [0, limit)."""
    low, high = values.min(), values.max()
    return isinstance(low, int) and isinstance(high, int) and low >= 0 and high < limit


def _grown(array: np.ndarray, size: int) -> np.ndarray:
    larger = np.zeros(size, array.dtype)
    larger[: len(array)] = array
    return larger


def merge_tables(parts: list[pl.DataFrame]) -> pl.DataFrame:
    """Sum counts of the same value."""
    rows = pl.concat(parts, how="vertical").lazy()
    return rows.group_by("value").agg(pl.col("count").sum(), pl.col("trained").any()).collect(engine="streaming")


def _ordered(table: pl.DataFrame, keys: list[pl.Expr]) -> pl.DataFrame:
    """Sort by `keys`, then by value: shorter text first, which orders numbers alike whether read as numbers or text."""
    value = pl.col("value")
    if table["value"].dtype == pl.Int64 and (not table.height or table["value"].min() >= 0):  # type: ignore[operator]
        return table.sort(*keys, value)
    text = value.cast(pl.String)
    return table.sort(*keys, text.str.len_bytes(), text)
