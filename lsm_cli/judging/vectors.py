"""Vectors of two towers on disk, for an index elsewhere.

vectors/                    what `lsm eval RUN --user-vectors DIR` writes
  users.npy                 int64 [n], rows of the store's vocab/user.parquet: everybody with a request in the split
  user_time.npy             int64 [n], seconds since 1970 of the user's last request there: what the vector knows
  user_vectors.npy          float32 [n, targets, width]
  items.npy                 int64 [m], ids in the store's vocab/item.parquet
  item_vectors.npy          float32 [m, width]; the inner product with a user's vector is the score
  manifest.json             targets, counts, width, where it all comes from
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from lsm_cli.data.aside import replacing
from lsm_cli.engine.feed import Feed
from lsm_cli.engine.setup import Setup
from lsm_cli.errors import InputError
from lsm_cli.judging.retrieval import Catalogue, item_vectors, user_vectors
from lsm_cli.models.two_tower import TwoTower
from lsm_cli.report.console import Progress, Silent


def check_free(out: Path) -> None:
    """Raise InputError if something is in the way."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise InputError(f"{out}: exists already; choose another --user-vectors")


def export(
    setup: Setup, model: TwoTower, split: str, out: Path, run: Path, progress: Progress | None = None
) -> dict[str, Any]:
    """Write the vectors of all users of a split, as of their last request in it, and of the catalogue.

    The folder is written aside and takes its name when it is whole; nothing larger than a batch is held in memory but
    the item vectors.

    Returns:
        what its manifest says.

    Raises:
        InputError: something is in the way at `out`, or it cannot be created.
        LsmError: another export is writing there, or the disk is full.
    """
    model.eval()
    check_free(out)
    samples, store, feed = setup.store.samples(split), setup.store, Feed(setup, split)
    order = np.lexsort((samples.column("time"), samples.column("user")))
    user = np.asarray(samples.column("user"))[order].astype(np.int64)
    index = order[np.flatnonzero(np.diff(user, append=-1))]  # the last request of each
    catalogue = Catalogue.of(store)
    items = item_vectors(setup, model, catalogue).cpu().numpy()
    time = (np.asarray(samples.column("time"))[index] + store.base) // store.ticks_per_second
    manifest = {
        "run": str(run),
        "store": str(store.path),
        "split": split,
        "targets": setup.targets,
        "users": len(index),
        "items": len(items),
        "width": model.width,
        "score": "the inner product of a user's vector for a target and an item's vector",
        "user": "row of vocab/user.parquet in the store; the vector holds as of user_time (seconds since 1970)",
        "item": "id in vocab/item.parquet in the store; items of the training vocabulary that were a candidate there",
    }
    with replacing(out, "export", lambda: check_free(out), "--user-vectors") as folder:
        columns = {
            "users": np.asarray(samples.column("user"))[index].astype(np.int64),
            "user_time": time.astype(np.int64),
            "items": catalogue.item,
            "item_vectors": items,
        }
        for name, values in columns.items():
            np.save(folder / f"{name}.npy", values)
        shape = (len(index), len(setup.targets), model.width)
        with open(folder / "user_vectors.npy", "wb") as file:
            header = {"descr": "<f4", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for _, vectors in user_vectors(setup, model, feed, index, progress or Silent()):
                file.write(np.ascontiguousarray(vectors.cpu().numpy(), "<f4").tobytes())
            file.flush()
            os.fsync(file.fileno())
        (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    return {"path": str(out), **manifest}
