"""Found behaviours on disk: written once by `lsm search`, memory-mapped by training.

search/
  manifest.json               format, the store's name and hashes, the recipe's search options
  <split>/offsets.npy         int64 [samples + 1]
  <split>/pointer.npy         int64 [N], event pointers, oldest first within a sample
  <split>/level.npy           uint8 [N], level of a hard search by which each was found; 255 = soft
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

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
