"""Identifiers, files and clocks of every kind that logs come with."""

from __future__ import annotations

import copy
import gzip
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from lsm_cli.data.building.statistics import Clock, EventColumn, popularity
from tests.data.building import DESCRIPTION, EVENTS, Row, anchors, build, data_bytes, event, sample, vocabulary, write

KINDS: dict[str, list[Any]] = {
    "small": [0, 1, 7, 10, 9, 100],
    "sparse": [2**40, 2**62, 5, 10**12, 2**40 + 1, 17],
    "negative": [-1, -20, 3, 10, 9, -3],
    "text": ["b", "a", "aa", "Z", "é", "a b"],
    "digits": ["007", "7", "07", "70", "0", "700"],
    "quoted": ['say "x"', "a,b", "c\td", "e;f", "g|h", " i "],
    "flag": [True, False, True, False, True, False],
}


def rows(values: list[Any]) -> tuple[list[Row], list[Row]]:
    events = [
        event(n % 3, 0, n) | {"item": values[n % 6], "brand": values[n * 5 % 6] if n % 4 else None} for n in range(30)
    ]
    samples = [row | {"item": values[n]} for n, row in enumerate(anchors())]
    return events, [*samples, sample(0, 0, 9, 1, "train") | {"item": values[5]}]


@pytest.mark.parametrize("kind", KINDS)
def test_identifiers_read_alike_in_every_format(tmp_path: Path, kind: str) -> None:
    events, samples = rows(KINDS[kind])
    found = []
    for form in ("parquet", "csv", "ndjson"):
        write(tmp_path / form, "events", events, form)
        write(tmp_path / form, "samples", samples, form)
        raw = copy.deepcopy(DESCRIPTION)
        raw["events"][0]["path"], raw["samples"]["path"] = f"events.{form}", f"samples.{form}"
        store = build(tmp_path / form, raw)
        found.append(data_bytes(store))
        text = {str(value).lower() if isinstance(value, bool) else str(value) for value in KINDS[kind]}
        assert set(vocabulary(store, "item").values()) == text | {None}
    assert found[0] == found[1] == found[2]


def test_whole_floats_are_the_integers_they_stand_for(tmp_path: Path) -> None:
    events, samples = rows(KINDS["small"])
    write(tmp_path, "events", events)
    write(tmp_path, "samples", samples)
    whole = data_bytes(build(tmp_path, DESCRIPTION))
    for name in ("events", "samples"):  # what pandas writes once a column has held a missing value
        frame = pl.read_parquet(tmp_path / f"{name}.parquet")
        frame.with_columns(pl.col("user", "item").cast(pl.Float64)).write_parquet(tmp_path / f"{name}.parquet")
    assert data_bytes(build(tmp_path, DESCRIPTION, out="floats")) == whole


def test_whole_floats_in_text_too(tmp_path: Path) -> None:
    events, samples = rows(KINDS["small"])
    events[3]["item"] = None
    for form in ("parquet", "csv"):
        write(tmp_path, "events", events, form)
        write(tmp_path, "samples", samples, form)
    frame = pl.read_csv(tmp_path / "events.csv").with_columns(pl.col("item").cast(pl.Float64))
    frame.write_csv(tmp_path / "events.csv")
    assert "7.0" in (tmp_path / "events.csv").read_text()
    whole = vocabulary(build(tmp_path, DESCRIPTION), "item")
    raw = copy.deepcopy(DESCRIPTION)
    raw["events"][0]["path"], raw["samples"]["path"] = "events.csv", "samples.csv"
    assert vocabulary(build(tmp_path, raw, out="floats"), "item") == whole


def test_what_where_leaves_out_may_be_text(tmp_path: Path) -> None:
    events, samples = rows(KINDS["small"])
    write(tmp_path, "samples", samples)
    kept = [row | {"kind": "ad"} for row in events]
    write(tmp_path, "events", kept, "csv")
    raw = DESCRIPTION | {"events": [EVENTS | {"path": "events.csv", "where": {"kind": "ad"}}]}
    whole = vocabulary(build(tmp_path, raw), "item")
    write(tmp_path, "events", [row | {"item": str(row["item"])} for row in kept] +
          [row | {"item": "x7", "kind": "post"} for row in events[:4]], "csv")  # fmt: skip
    assert vocabulary(build(tmp_path, raw, out="mixed"), "item") == whole


def test_several_absolute_paths(tmp_path: Path) -> None:
    events, samples = rows(KINDS["small"])
    write(tmp_path, "samples", samples)
    write(tmp_path, "a", events[:9])
    write(tmp_path, "b", events[9:])
    paths = [str(tmp_path / name) for name in ("a.parquet", "b.parquet", "none/*.parquet")]
    store = build(tmp_path, DESCRIPTION | {"events": [EVENTS | {"path": paths}]})
    assert store.events == len(events)
    assert any("no file matches" in note and "none" in note for note in store.manifest["notes"])


def test_csv_as_it_comes(tmp_path: Path) -> None:
    events, samples = rows(KINDS["text"])
    write(tmp_path, "events", events)
    write(tmp_path, "samples", samples)
    whole = data_bytes(build(tmp_path, DESCRIPTION))
    frame = pl.read_parquet(tmp_path / "events.parquet")
    first, second = frame.head(11), frame.slice(11)
    plain = EVENTS | {"columns": frame.columns}
    first.write_csv(tmp_path / "a.csv", include_header=False)
    with gzip.open(tmp_path / "b.csv.gz", "wb") as file:
        file.write(second.write_csv(include_header=False).encode())
    (tmp_path / "logs[1]").mkdir()
    frame.write_csv(tmp_path / "logs[1]" / "events.tsv", separator="\t")
    frame.write_csv(tmp_path / "logs[1]" / "events.dat", separator="|")
    blocks = [
        plain | {"path": ["a.csv", "b.csv.gz"]},
        plain | {"path": ["?.csv*", "a.csv", "absent/*.csv"]},  # a file is read once
        EVENTS | {"path": "logs*/events.tsv"},
        EVENTS | {"path": "logs*/*.dat", "format": "csv", "separator": "|"},
    ]
    for number, block in enumerate(blocks):
        assert data_bytes(build(tmp_path, DESCRIPTION | {"events": [block]}, out=f"s{number}")) == whole


def test_files_that_disagree_about_a_type(tmp_path: Path) -> None:
    events, samples = rows(KINDS["small"])
    write(tmp_path, "samples", samples)
    write(tmp_path, "events", events)
    whole = data_bytes(build(tmp_path, DESCRIPTION))
    frame = pl.read_parquet(tmp_path / "events.parquet")
    frame.head(9).with_columns(pl.col("user", "item").cast(pl.Int32)).write_parquet(tmp_path / "part-0.parquet")
    frame.slice(9).with_columns(pl.col("item").cast(pl.String)).write_parquet(tmp_path / "part-1.parquet")
    parts = DESCRIPTION | {"events": [EVENTS | {"path": "part-*.parquet"}]}
    assert data_bytes(build(tmp_path, parts, out="parts")) == whole


@pytest.mark.parametrize("rows_at_once", [1 << 20, 37])
def test_counts_with_clocks_too_fine_for_the_key(rows_at_once: int) -> None:
    rng = np.random.default_rng(1)
    ids, time = rng.integers(2, 9, 400), rng.integers(0, 2**59, 400)
    time[200:] = time[:200]  # ties
    at, of, window = np.append(time[:50], rng.integers(0, 2**60, 50)), rng.integers(1, 11, 100), 2**57
    events = EventColumn(ids, time, Clock.of(time, 1 << 10), lambda x: x)
    assert events.clock.distinct is not None and Clock.of(time, 8).distinct is None
    whole, recent, age, recency = popularity(events, of, at, [None, window], rows_at_once, ages=True)
    for n, (who, when) in enumerate(zip(of.tolist(), at.tolist(), strict=True)):
        seen = time[(ids == who) & (time < when)] if who > 1 else time[:0]
        assert whole[n] == len(seen) and recent[n] == (seen >= when - window).sum()
        assert np.isclose(age[n], when - seen.min() if len(seen) else -1)
        assert np.isclose(recency[n], when - seen.max() if len(seen) else -1)
