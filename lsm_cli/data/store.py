"""Reading a trajectory store: every user's behaviours once, in compressed-sparse-row form.

    store/
      manifest.json                  see `Manifest`
      events/offsets.npy             int64 [users + 1]; user u owns events offsets[u]:offsets[u + 1], oldest first
      events/time.npy                ticks since `manifest.time.base`; narrow signed integer
      events/<field>.npy             ids (item, category, scenario, domain, action, and the description's `fields`)
      samples/<split>/user.npy       int32 [n], index into offsets
      samples/<split>/end.npy        int64 [n], exclusive event pointer: events offsets[user]:end have time < request
      samples/<split>/time.npy       int64 [n], ticks since base
      samples/<split>/<field>.npy    ids of the candidate (item, category, scenario, …) in the events' vocabularies
      samples/<split>/label.<target>.npy   int8 [n]: 0, 1, or -1 where the target was not observed
      samples/<split>/value.npy      float32 [n], only when the description names a value column
      samples/<split>/propensity.npy float32 [n], in (0, 1], only when the description names a propensity column
      samples/<split>/stat.<name>.npy      float32 [n], point-in-time statistics (counts, not logarithms)
      index/<field>.npy              positions in the user's trajectory, ordered by (value, time); see `orders`
      taxonomy/ancestors.npy         int32 [nodes, levels]: node -> its ancestor (or itself) at each level, 1 = none
      taxonomy/rows.npy              int32 [nodes]: node -> embedding row in the table of its level
      taxonomy/range.npy             int32 [nodes, 2]: the node's subtree is the id range [lo, hi)
      vocab/<field>.parquet          raw value <-> id, count, trained; category: node, path, parent, level, lo, hi

Ids: 0 = padding, 1 = missing. For a plain field ids [2, trained) were seen in training and own an embedding
row; every later id keeps its identity (so that it can match) and shares row `trained`, the unknown row. Category
nodes are numbered depth first, so their rows come from `taxonomy/rows.npy` by the same rule, level by level.
Nothing here imports polars: a store is trained on where only numpy and torch are installed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from lsm_cli.errors import InputError

FORMAT = 1
PAD, MISSING = 0, 1


@dataclass(frozen=True)
class Field:
    """One side-information field as models see it: a category contributes one field per level."""

    name: str
    rows: int  # embedding rows: padding, missing, every trained value, unknown
    in_history: bool
    in_sample: bool
    level: int = 0  # 1 … depth for category levels, 0 for plain fields


class Samples:
    """The prediction rows of one split; columns are memory-mapped on first use."""

    def __init__(self, folder: Path, size: int) -> None:
        self.folder, self.size = folder, size
        self._columns: dict[str, np.ndarray] = {}

    def __len__(self) -> int:
        return self.size

    def has(self, column: str) -> bool:
        return (self.folder / f"{column}.npy").exists()

    def column(self, name: str) -> np.ndarray:
        if name not in self._columns:
            self._columns[name] = _map(self.folder / f"{name}.npy")
        return self._columns[name]


class Store:
    """A built store. Opening reads the manifest only; columns are memory-mapped when first asked for."""

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path, self.manifest = path, manifest
        self._columns: dict[str, np.ndarray] = {}
        self._samples: dict[str, Samples] = {}
        self.resident: dict[str, Any] = {}  # columns that were placed on a device, see `data.resident`

    @classmethod
    def open(cls, path: str | Path) -> Store:
        """Open a store.

        Raises:
            InputError: the folder is not a store, is not whole, or was written by another format version.
        """
        path = Path(path)
        file = path / "manifest.json"
        if not file.is_file():
            raise InputError(
                f"{path}: not a store (no manifest.json); `lsm build-sequences DATASET.toml --out {path}` builds one"
            )
        try:
            manifest = json.loads(file.read_text())
        except ValueError as error:
            raise InputError(f"{file}: not valid JSON ({error}); rebuild the store") from None
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            found = manifest.get("format") if isinstance(manifest, dict) else None
            raise InputError(
                f"{file}: store format {found!r}, this version of lsm reads format {FORMAT}; rebuild the store"
            )
        for name in {**manifest.get("files", {}), **manifest.get("index", {}).get("files", {})}:
            if not (path / name).is_file():
                raise InputError(f"{path}: {name} is missing from the store; rebuild it")
        return cls(path, manifest)

    @property
    def name(self) -> str:
        return self.manifest["name"]

    @property
    def users(self) -> int:
        return self.manifest["counts"]["users"]

    @property
    def events(self) -> int:
        return self.manifest["counts"]["events"]

    @property
    def splits(self) -> dict[str, int]:
        """Split name -> number of samples."""
        return self.manifest["counts"]["samples"]

    @property
    def targets(self) -> list[str]:
        return self.manifest["targets"]

    @property
    def statistics(self) -> list[str]:
        """Names of the point-in-time statistics that every sample carries."""
        return self.manifest["statistics"]

    @property
    def depth(self) -> int:
        """Number of category levels; 0 without categories."""
        return len(self.manifest["levels"])

    @property
    def ticks_per_second(self) -> int:
        return self.manifest["time"]["ticks_per_second"]

    @property
    def base(self) -> int:
        """Ticks since 1970-01-01 UTC of stored time 0."""
        return self.manifest["time"]["base"]

    @cached_property
    def fields(self) -> dict[str, Field]:
        """See `stored_fields`."""
        return stored_fields(self.manifest)

    @property
    def index(self) -> list[str]:
        """Fields in whose order every user's events are kept; empty for a store without an index."""
        return self.manifest.get("index", {}).get("fields", [])

    @cached_property
    def ancestors(self) -> np.ndarray:
        """int32 [nodes, levels], in memory."""
        return np.array(_map(self.path / "taxonomy" / "ancestors.npy"))

    @cached_property
    def category_rows(self) -> np.ndarray:
        """int32 [nodes]: category node -> embedding row in the table of its level."""
        return np.array(_map(self.path / "taxonomy" / "rows.npy"))

    @cached_property
    def offsets(self) -> np.ndarray:
        return np.array(_map(self.path / "events" / "offsets.npy"))

    def column(self, name: str) -> np.ndarray:
        """One event column, memory-mapped, [events]."""
        if name not in self._columns:
            self._columns[name] = _map(self.path / "events" / f"{name}.npy")
        return self._columns[name]

    def order(self, field: str) -> np.ndarray:
        """Positions within the users' trajectories in the order of (value, time), memory-mapped, [events]."""
        name = f"index/{field}"
        if name not in self._columns:
            self._columns[name] = _map(self.path / f"{name}.npy")
        return self._columns[name]

    def samples(self, split: str) -> Samples:
        """The samples of one split.

        Raises:
            InputError: the store has no such split.
        """
        if split not in self.splits:
            raise InputError(f"{self.path}: no split {split!r} in the store; it has {', '.join(self.splits)}")
        if split not in self._samples:
            self._samples[split] = Samples(self.path / "samples" / split, self.splits[split])
        return self._samples[split]

    def vocabulary_file(self, field: str) -> Path:
        return self.path / "vocab" / f"{field}.parquet"


def stored_fields(manifest: dict[str, Any]) -> dict[str, Field]:
    """Side-information fields in a fixed order: item, category levels, scenario, domain, action, extra."""
    found: dict[str, Field] = {}
    for name, info in manifest["fields"].items():
        there = info["in_history"], info["in_sample"]
        if name == "category":
            for level, entry in enumerate(manifest["levels"], start=1):
                found[f"category{level}"] = Field(f"category{level}", entry["trained"] + 1, *there, level)
        else:
            found[name] = Field(name, info["trained"] + 1, *there)
    return found


def _map(file: Path) -> np.ndarray:
    try:
        return np.load(file, mmap_mode="r")
    except FileNotFoundError:
        raise InputError(f"{file}: missing from the store; rebuild it") from None
    except ValueError as error:
        if file.is_file() and file.stat().st_size and "mmap" in str(error):
            return np.load(file)  # numpy cannot map an empty array
        raise InputError(f"{file}: damaged ({error}); rebuild the store") from None
