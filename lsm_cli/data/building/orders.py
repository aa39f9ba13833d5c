"""The search index: for each shared field, every user's events in the order of (value, time).

A value of a field is then one contiguous run of a user's order, and the request's time cuts it by binary search. An
order is a permutation of positions within the user's trajectory: two bytes an event while no trajectory is longer than
65,536 events, else four.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from lsm_cli.data.aside import hold, remove
from lsm_cli.data.building.radix import PIECE, radix_order
from lsm_cli.data.building.trajectories import bucket_bounds
from lsm_cli.data.building.workspace import Workspace
from lsm_cli.data.store import Field, Store

ROWS = PIECE  # events sorted at once
_AHEAD = 32  # chunks that may be ordered before the first of them is written
Reader = Callable[[slice], np.ndarray]


def write_orders(work: Workspace, offsets: np.ndarray, fields: dict[str, Reader]) -> list[str]:
    """Write `index/<field>.npy` for each field.

    Args:
        offsets: int64 [users + 1].
        fields: field -> reads a slice of its events' ids, or of anything in their order.

    Returns:
        the fields, in order.
    """
    lengths = np.diff(offsets)
    dtype = np.uint16 if lengths.max(initial=0) <= 1 << 16 else np.uint32
    files = {name: work.column(f"index/{name}.npy", dtype, int(offsets[-1])) for name in fields}

    def orders(users: tuple[int, int]) -> list[np.ndarray]:
        """Each field's order of the events of a range of users: [events] of `dtype`."""
        first, last = users
        starts = offsets[first:last] - offsets[first]
        owner = np.repeat(np.arange(last - first), lengths[first:last])
        place = (np.arange(len(owner)) - starts[owner]).astype(dtype)
        here = slice(int(offsets[first]), int(offsets[last]))
        return [place.take(ordered(owner, read(here))) for read in fields.values()]

    chunks = list(itertools.pairwise(bucket_bounds(lengths, ROWS).tolist()))
    with ThreadPoolExecutor(2) as pool:
        for done in range(0, len(chunks), _AHEAD):
            for found in pool.map(orders, chunks[done : done + _AHEAD]):
                for file, order in zip(files.values(), found, strict=True):
                    file.append(order)
    work.close(*files.values())
    return list(fields)


def ordered(owner: np.ndarray, value: np.ndarray) -> np.ndarray:
    """The rows by (owner, value, row): int64 [n]."""
    width = int(value.max(initial=0)).bit_length()
    bits = int(owner.max(initial=0)).bit_length() + width
    if bits > 63:
        return np.lexsort((value, owner))
    return radix_order(owner.astype(np.int64) << width | value, bits)


def shared_readers(events: Path, fields: Iterable[Field], ancestors: np.ndarray | None) -> dict[str, Reader]:
    """Readers of the fields that candidates share, from a folder of event columns.

    Of a level they read the rank of its nodes, which takes fewer digits than the node. Columns are read, not mapped:
    what was mapped would stay in memory, and grow with the log.
    """

    def of(field: Field) -> Reader:
        file = events / f"{'category' if field.level else field.name}.npy"
        column = np.load(file, mmap_mode="r")
        dtype, start = column.dtype, column.offset

        def read(part: slice) -> np.ndarray:
            return np.fromfile(file, dtype, part.stop - part.start, offset=start + part.start * dtype.itemsize)

        if not field.level or ancestors is None:
            return read
        rank = np.unique(ancestors[:, field.level - 1], return_inverse=True)[1]
        return lambda part: rank.take(read(part))

    return {field.name: of(field) for field in fields if field.in_history and field.in_sample}


def add_orders(path: Path) -> dict[str, Any]:
    """Give a store that was built without one its search index.

    Returns:
        the store's manifest, with the index in it.

    Raises:
        InputError: no store there.
        LsmError: another process is writing the same index.
    """
    store = Store.open(path)
    folder = path / ".index.building"
    handle = hold(folder, f"{path}: another process is writing this store's index; wait for it")
    try:
        for stale in folder.iterdir():
            remove(stale)
        work = Workspace(folder)
        readers = shared_readers(path / "events", store.fields.values(), store.ancestors if store.depth else None)
        fields = write_orders(work, store.offsets, readers) if store.events else []
        bare = {name: entry for name, entry in store.manifest.items() if name != "index"}
        if store.index:
            _replace_manifest(path, folder, bare)  # a kill from here on leaves a store without an index
        remove(path / "index")
        if fields:
            (folder / "index").rename(path / "index")
        manifest = bare | {"index": {"fields": fields, "files": dict(sorted(work.files.items()))}}
        _replace_manifest(path, folder, manifest)
        return manifest
    finally:
        remove(folder)
        os.close(handle)


def _replace_manifest(path: Path, folder: Path, manifest: dict[str, Any]) -> None:
    aside = folder / "manifest.json"
    aside.write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(aside, path / "manifest.json")
