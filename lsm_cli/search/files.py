"""Found behaviours on disk: written once by `lsm search`, memory-mapped by training.

search/
  manifest.json               format, the store's hashes, the search options, levels, files; written last
  <split>/offsets.npy         int64 [samples + 1]
  <split>/pointer.npy         int32 or int64 [N], event pointers, oldest first within a sample
  <split>/level.npy           uint8 [N], the finest searched level that each shares with the candidate
  report.html, result.json    what `lsm search` showed

Everything is written to a sibling folder, which takes the result's name in one step when all is on disk.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from lsm_cli.data.aside import replacing
from lsm_cli.data.batches import Pointers
from lsm_cli.data.orders import ragged_arange
from lsm_cli.data.store import Store
from lsm_cli.errors import InputError
from lsm_cli.options import SearchOptions

FORMAT = 1
HEADER = 128  # bytes before the first row of a file


class FoundFile:
    """The pointers of one split.

    Raises:
        InputError: no such file, of another store, without this split, or damaged.
    """

    def __init__(self, path: str | Path, store: Store, split: str) -> None:
        self.path = path = Path(path)
        self.manifest = _manifest(path)
        if self.manifest["events"] != identity(store):
            raise InputError(f"{path}: was searched in another store than {store.path}; run `lsm search` again")
        if split not in self.manifest["splits"]:
            raise InputError(
                f"{path}: holds no {split} samples, only {', '.join(self.manifest['splits'])}; run `lsm search` with "
                "--split all"
            )
        samples = store.samples(split)
        self.starts, self.user, self.end = store.offsets, samples.column("user"), samples.column("end")
        try:
            for name, size in self.manifest["files"].items():
                if (path / name).stat().st_size != size:
                    raise ValueError(f"{name} has not the size it was written with")
            self.offsets, self.pointer, self.level = (
                _map(path / split / f"{name}.npy") for name in ("offsets", "pointer", "level")
            )
            if len(self.offsets) != len(samples) + 1 or not self.offsets[-1] == len(self.pointer) == len(self.level):
                raise ValueError(f"the files of {split} do not fit together")
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: damaged ({error}); run `lsm search` again") from None

    @property
    def search(self) -> SearchOptions:
        """The options of the search that found all this."""
        return SearchOptions.model_validate(self.manifest["search"])

    def lengths(self, index: np.ndarray) -> np.ndarray:
        """Behaviours of samples `index`: int64 [len(index)]."""
        return self.offsets[index + 1] - self.offsets[index]

    def take(self, index: np.ndarray) -> Pointers:
        """The behaviours of samples `index`, in that order.

        Raises:
            InputError: one of them is not a behaviour of that user before the request.
        """
        lengths = self.lengths(index)
        offsets = np.zeros(len(index) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        whole = bool((lengths >= 0).all()) and offsets[-1] <= len(self.pointer)
        if whole:
            row, place = ragged_arange(self.offsets[index], lengths)
            pointer = self.pointer.take(place, mode="clip").astype(np.int64, copy=False)
            first, end = self.starts[self.user[index]], self.end[index]
            whole = not ((pointer < first[row]) | (pointer >= end[row])).any()
        if not whole:
            raise InputError(f"{self.path}: damaged (behaviours outside the user's past); run `lsm search` again")
        return Pointers(offsets, pointer)


def identity(store: Store) -> dict[str, str]:
    """The files that event pointers mean something in."""
    kept = ("events/offsets.npy", "events/time.npy", "samples/")
    return {name: entry["sha256"] for name, entry in store.manifest["files"].items() if name.startswith(kept)}


class FoundWriter:
    """Writes the result of a search split by split, in pieces of any size."""

    def __init__(self, folder: Path, store: Store) -> None:
        self.folder, self.store = folder, store
        self.splits: dict[str, dict[str, int]] = {}
        self.files: dict[str, int] = {}  # bytes

    @contextmanager
    def split(self, name: str) -> Iterator[_Split]:
        """Where the finds of one split's samples go, in their order."""
        part = _Split(self.folder / name, np.int32 if self.store.events < 1 << 31 else np.int64)
        try:
            yield part
            self.splits[name] = {"samples": part.samples, "found": part.total}
        finally:
            for column in part.columns:
                column.close()
                self.files[f"{name}/{column.file.name}"] = column.bytes

    def text(self, name: str, text: str) -> None:
        """A file for people."""
        (self.folder / name).write_text(text)

    def finish(self, search: SearchOptions, levels: list[str], **more: Any) -> None:
        """Say what was searched and how; without this the result is not one.

        Args:
            search: what another search must be asked for to find the same.
            levels: their names, in the order of their numbers.
            more: whatever else is worth knowing of it.
        """
        manifest = {
            "format": FORMAT,
            "store": self.store.name,
            "search": search.model_dump(by_alias=True),
            "levels": levels,
            "splits": self.splits,
            **more,
            "events": identity(self.store),
            "files": self.files,
        }
        self.text("manifest.json", json.dumps(manifest, indent=1) + "\n")


class _Split:
    """The three columns of one split."""

    def __init__(self, folder: Path, pointers: type[np.signedinteger]) -> None:
        folder.mkdir()
        self.samples = self.total = 0
        self.columns = [
            _Column(folder / "offsets.npy", np.int64),
            _Column(folder / "pointer.npy", pointers),
            _Column(folder / "level.npy", np.uint8),
        ]
        self.columns[0].append(np.zeros(1, np.int64))

    def add(self, read: Pointers, level: np.ndarray) -> None:
        """The next samples: what was found for each, oldest first, and at which level (uint8 [N])."""
        offsets, pointer, levels = self.columns
        offsets.append(read.offsets[1:] + self.total)
        pointer.append(read.pointer)
        levels.append(level)
        self.samples += len(read.offsets) - 1
        self.total += len(read.pointer)


class _Column:
    """A .npy file that grows; its header, of fixed size, is written again with the final length."""

    def __init__(self, file: Path, dtype: type[np.generic]) -> None:
        self.file, self.dtype, self.rows, self.bytes = file, np.dtype(dtype), 0, HEADER
        self._handle: BinaryIO = file.open("wb")
        self._handle.write(self._header())

    def _header(self) -> bytes:
        said = f"{{'descr': {self.dtype.str!r}, 'fortran_order': False, 'shape': ({self.rows},), }}".encode()
        length = HEADER - len(np.lib.format.magic(1, 0)) - 2
        return np.lib.format.magic(1, 0) + length.to_bytes(2, "little") + said.ljust(length - 1) + b"\n"

    def append(self, values: np.ndarray) -> None:
        data = np.ascontiguousarray(values, self.dtype).tobytes()
        self._handle.write(data)
        self.rows += len(values)
        self.bytes += len(data)

    def close(self) -> None:
        with self._handle:
            self._handle.flush()
            self._handle.seek(0)
            self._handle.write(self._header())
            self._handle.flush()
            os.fsync(self._handle.fileno())


@contextmanager
def writing(out: str | Path, store: Store, overwrite: bool = False) -> Iterator[FoundWriter]:
    """A writer of one result; when the block ends well, the result gets its name.

    Raises:
        InputError: something is in the way at `out`, or it cannot be created.
        LsmError: another search is writing there, or the disk is full.
    """
    out = Path(out)
    with replacing(out, "search", lambda: _check_free(out, overwrite)) as folder:
        yield FoundWriter(folder, store)


def _check_free(out: Path, overwrite: bool) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    try:
        _manifest(out)
    except InputError:
        raise InputError(f"{out}: exists and is not a result of `lsm search`; choose another --out") from None
    if not overwrite:
        raise InputError(f"{out}: holds a result already; add --overwrite to replace it or choose another --out")


def _map(file: Path) -> np.ndarray:
    return np.load(file, mmap_mode="r" if file.stat().st_size > HEADER else None)  # numpy cannot map an empty array


def _manifest(path: Path) -> dict[str, Any]:
    file = path / "manifest.json"
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError):
        raise InputError(f"{path}: not a result of `lsm search` (no readable manifest.json)") from None
    kept = {"splits", "events", "files", "search", "levels"}
    if not isinstance(found, dict) or found.get("format") != FORMAT or not kept <= found.keys():
        raise InputError(f"{path}: not a result of this version's `lsm search`; write it again")
    return found
