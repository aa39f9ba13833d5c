"""Small logs for the tests of the build, and a reference that reads them row by row."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from lsm_cli.data.building.pipeline import build_store
from lsm_cli.data.description import parse_description
from lsm_cli.data.store import Store

Row = dict[str, Any]

EVENTS: dict[str, Any] = {
    "path": "events.parquet",
    "user": "user",
    "item": "item",
    "time": {"column": "ts", "unit": "s"},
    "scenario": {"column": "scenario"},
    "category": ["c1", "c2"],
    "fields": ["brand"],
}
SAMPLES: dict[str, Any] = {
    "path": "samples.parquet",
    "user": "user",
    "item": "item",
    "time": {"column": "ts", "unit": "s"},
    "category": ["c1", "c2"],
    "labels": {"click": "label"},
    "statistics": {"popularity": ["5s", "all"]},
}
DESCRIPTION: dict[str, Any] = {
    "name": "small",
    "events": [EVENTS],
    "samples": SAMPLES,
    "split": {"column": "split"},
}


def event(user: int, item: int, ts: int, scenario: str | None = "feed", brand: int | None = 1) -> Row:
    """An event; an item's category follows from its number."""
    return {"user": user, "item": item, "ts": ts, "scenario": scenario, "brand": brand} | category(item)


def category(item: int) -> Row:
    return {"c1": f"g{item % 2}", "c2": f"s{item % 4}"} if item % 5 else {"c1": None, "c2": None}


def sample(user: int, item: int, ts: int, label: int | None, split: str) -> Row:
    return {"user": user, "item": item, "ts": ts, "label": label, "split": split} | category(item)


def anchors() -> list[Row]:
    """Samples that make every split and both classes exist."""
    return [
        sample(0, 1, 9, 1, "train"),
        sample(0, 2, 9, 0, "train"),
        sample(1, 3, 15, 1, "valid"),
        sample(1, 1, 18, 0, "test"),
    ]


def write(folder: Path, name: str, rows: list[Row], form: str = "parquet") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    frame = pl.DataFrame(rows, infer_schema_length=None)
    if form == "csv":
        frame.write_csv(folder / f"{name}.csv")
    elif form == "ndjson":
        frame.write_ndjson(folder / f"{name}.ndjson")
    else:
        frame.write_parquet(folder / f"{name}.parquet")


def build(folder: Path, raw: Mapping[str, Any], out: str = "store", **options: Any) -> Store:
    description = parse_description(dict(raw), folder / "dataset.toml")
    build_store(description, folder / out, **options)
    return Store.open(folder / out)


def build_rows(folder: Path, events: list[Row], samples: list[Row], **options: Any) -> Store:
    write(folder, "events", events)
    write(folder, "samples", samples)
    return build(folder, DESCRIPTION, **options)


def data_bytes(store: Store) -> dict[str, str]:
    """Hash of every data file."""
    return {name: entry["sha256"] for name, entry in store.manifest["files"].items()}


def vocabulary(store: Store, field: str) -> dict[int, str | None]:
    frame = pl.read_parquet(store.vocabulary_file(field))
    found: dict[int, str | None] = dict(zip(frame["id"].to_list(), frame["value"].to_list(), strict=True))
    return found if field == "user" else found | {1: None}


def seconds(values: np.ndarray, store: Store) -> np.ndarray:
    return (np.asarray(values).astype(np.int64) + store.base) // store.ticks_per_second
