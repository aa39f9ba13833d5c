"""Found behaviours on disk: written once by `lsm search`, memory-mapped by training.

search/
  manifest.json               format, the store's name and hashes, the recipe's search options
  <split>/offsets.npy         int64 [samples + 1]
  <split>/pointer.npy         int64 [N], event pointers, oldest first within a sample
      <split>/level.npy           uint8 [N], the finest searched level that each shares with the candidate
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from lsm_cli.data.batches import Pointers
from lsm_cli.data.orders import ragged_arange
from lsm_cli.data.store import Store
from lsm_cli.errors import InputError

FORMAT = 1


class FoundFile:
    """The pointers of one split.

    Raises:
        InputError: no such file, of another store, or without this split.
    """

    def __init__(self, path: str | Path, store: Store, split: str) -> None:
        path = Path(path)
        self.manifest = _manifest(path)
        if self.manifest["events"] != identity(store):
            raise InputError(f"{path}: was searched in another store than {store.path}; run `lsm search` again")
        if split not in self.manifest["splits"]:
            raise InputError(
                f"{path}: holds no {split} samples, only {', '.join(self.manifest['splits'])}; run `lsm search` with "
                "--split all"
            )
        try:
            self.offsets = np.load(path / split / "offsets.npy", mmap_mode="r")
            self.pointer = np.load(path / split / "pointer.npy", mmap_mode="r" if self.offsets[-1] else None)
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: damaged ({error}); run `lsm search` again") from None

    def take(self, index: np.ndarray) -> Pointers:
        """The behaviours of samples `index`, in that order."""
        first, lengths = self.offsets[index], self.offsets[index + 1] - self.offsets[index]
        _, place = ragged_arange(first, lengths)
        offsets = np.zeros(len(index) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        return Pointers(offsets, self.pointer.take(place))


def identity(store: Store) -> dict[str, str]:
    """The files that event pointers mean something in."""
    kept = ("events/offsets.npy", "events/time.npy", "samples/")
    return {name: entry["sha256"] for name, entry in store.manifest["files"].items() if name.startswith(kept)}


def _manifest(path: Path) -> dict[str, Any]:
    file = path / "manifest.json"
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError):
        raise InputError(f"{path}: not a result of `lsm search` (no readable manifest.json)") from None
    if found.get("format") != FORMAT or found.get("kind") != "search":
        raise InputError(f"{path}: not a result of this version's `lsm search`; write it again")
    return found


class FoundWriter:
    """Writes found behaviours split by split, aside; `finish` gives the folder its name.

    Args:
        out: the folder to be.
        overwrite: replace an earlier result.

    Raises:
        InputError: something else is at `out`, or an earlier result without `overwrite`, or it cannot be written.
    """

    def __init__(self, out: Path, store: Store, overwrite: bool) -> None:
        self.out, self.store = out, store
        if out.exists() and not (out.is_dir() and not any(out.iterdir())):
            _manifest(out)
            if not overwrite:
                raise InputError(f"{out}: holds a search already; add --overwrite or choose another --out")
        self.folder = out.absolute().parent / f".{out.name}.searching"
        self.splits: dict[str, dict[str, int]] = {}
        with self._writing():
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)

    def split(self, name: str, parts: Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> None:
        """Write one split from parts of (found per sample, pointers, levels), in the order of the samples."""
        lengths = []
        with self._writing():
            (self.folder / name).mkdir()
            with (
                (self.folder / name / "pointer.npy").open("wb") as pointers,
                (self.folder / name / "level.npy").open("wb") as levels,
            ):
                columns = ((pointers, np.dtype(np.int64)), (levels, np.dtype(np.uint8)))
                for file, dtype in columns:
                    _header(file, dtype, 0)
                for found, pointer, level in parts:
                    lengths.append(found)
                    pointers.write(np.ascontiguousarray(pointer, np.int64).tobytes())
                    levels.write(np.ascontiguousarray(level, np.uint8).tobytes())
                offsets = np.concatenate([[0], np.cumsum(np.concatenate(lengths))]) if lengths else np.zeros(1)
                for file, dtype in columns:
                    file.seek(0)
                    _header(file, dtype, int(offsets[-1]))  # numpy leaves room for a length to grow
            np.save(self.folder / name / "offsets.npy", offsets.astype(np.int64))
        self.splits[name] = {"samples": len(offsets) - 1, "found": int(offsets[-1])}

    def finish(self, search: dict[str, Any]) -> None:
        """Give the folder its name.

        Args:
            search: what was searched for, to be read by people.
        """
        manifest = {"format": FORMAT, "kind": "search", "store": self.store.name, "events": identity(self.store)}
        manifest |= {"splits": self.splits, "search": search}
        with self._writing():
            (self.folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
            if self.out.exists():
                shutil.rmtree(self.out)
            self.folder.rename(self.out)

    def drop(self) -> None:
        """Leave nothing behind."""
        shutil.rmtree(self.folder, ignore_errors=True)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(f"{self.out}: cannot be written ({error.strerror}); choose another --out") from None


def _header(file: IO[bytes], dtype: np.dtype, rows: int) -> None:
    description = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (rows,)}
    np.lib.format.write_array_header_1_0(file, description)
