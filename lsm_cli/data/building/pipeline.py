"""Building a store: count, number, encode, sort, write.

The logs are read twice. The first reading counts the values of every field and notes the category paths; ids, the tree
and the size of every file follow from it. The second encodes, spills and sorts. Nothing is ever held that grows with
the number of events, except one counter per distinct value, and where samples are made from events what they are made
of: the positives, and events to draw negatives from in a quarter of the memory.
"""

from __future__ import annotations

import json
import time as clock
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from lsm_cli import __version__
from lsm_cli.data.building.counting import Counted, count
from lsm_cli.data.building.drawn import Collector, draw_samples
from lsm_cli.data.building.encoding import Encoded, encode_events, number
from lsm_cli.data.building.lists import open_lists
from lsm_cli.data.building.manifest import describe_store
from lsm_cli.data.building.orders import shared_readers, write_orders
from lsm_cli.data.building.plan import Plan, Progress, Unwatched
from lsm_cli.data.building.positives import Positives, read_positives
from lsm_cli.data.building.requests import read_requests
from lsm_cli.data.building.samples import Sampled, encode_samples
from lsm_cli.data.building.scan import open_sources
from lsm_cli.data.building.statistics import write_statistics
from lsm_cli.data.building.trajectories import Spill, write_trajectories
from lsm_cli.data.building.workspace import Workspace, open_workspace
from lsm_cli.data.description import SPLITS, Description
from lsm_cli.data.store import stored_fields


def build_store(
    description: Description,
    out: Path,
    *,
    memory: int = 2 << 30,
    overwrite: bool = False,
    index: bool = True,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Build a store.

    Args:
        description: what to read.
        out: the store's folder.
        memory: bytes the build may use.
        overwrite: replace a store that is there already.
        index: also write the orders that searches go by.

    Returns:
        the store's manifest, with what a user wants to know about the build.

    Raises:
        InputError: the description does not fit the logs, or the store cannot be written.
        LsmError: another build is writing the same store.
    """
    started = clock.monotonic()
    progress = progress or Unwatched()
    lists = description.samples.layout == "lists"
    opened = None if lists else open_sources(description)  # what is missing is said before anything is written
    with open_workspace(Path(out), overwrite) as work:
        progress.note("opening")
        sources, samples = opened or open_lists(description, work.scratch("lists"), memory)
        plan = Plan.of(description, sources, samples, memory, progress)
        manifest = _build(plan, work, index)
        passed = clock.monotonic() - started
        manifest["build"] = {
            "seconds": round(passed, 3),
            "events_per_second": round(manifest["counts"]["events"] / passed),
            "memory": memory,
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "version": __version__,
        }
        text = json.dumps(manifest, indent=1, ensure_ascii=False)
        (work.folder / "manifest.json").write_text(text + "\n", encoding="utf-8")
        work.note("manifest.json")
    return manifest


def _build(plan: Plan, work: Workspace, index: bool) -> dict[str, Any]:
    options, note = plan.description.samples.from_events, plan.progress.note
    positives = Positives(options.positive) if options else None
    note("reading requests")
    if positives is not None and options is not None:
        requests = read_positives(plan, positives, 1 + options.negatives)
    else:
        assert plan.samples is not None
        requests = read_requests(plan.description, plan.samples, plan.kinds, plan.resolution, plan.rows)
    note("counting")
    counted = count(plan, requests, positives)
    encoded = number(plan, counted)
    work.array("events/offsets.npy", np.concatenate([[0], np.cumsum(encoded.users.counts)]).astype(np.int64))
    collector = None
    if options and positives:
        collector = Collector.of(options, positives, encoded, counted, requests)
    note("encoding events")
    spill = encode_events(encoded, requests, collector, work)
    note("writing samples")
    if collector is not None:
        sampled = draw_samples(encoded, collector, requests, work)
        del collector  # its memory is for sorting
    else:
        sampled = encode_samples(encoded, requests, work)
    note("sorting")
    lengths = _write_events(encoded, counted, spill, sampled, work)
    note("statistics")
    statistics = write_statistics(encoded, sampled, work)
    manifest = describe_store(encoded, counted, requests, sampled, lengths, statistics, work)
    if index and counted.events:
        note("ordering")
        manifest["index"] = _write_index(encoded, manifest, work)
    return manifest


def _write_index(encoded: Encoded, manifest: dict[str, Any], work: Workspace) -> dict[str, Any]:
    stored = set(work.files)
    ancestors = encoded.tree.ancestors if encoded.tree else None
    readers = shared_readers(work.folder / "events", stored_fields(manifest).values(), ancestors)
    fields = write_orders(work, np.load(work.folder / "events/offsets.npy"), readers)
    return {"fields": fields, "files": {name: work.files[name] for name in sorted(set(work.files) - stored)}}


def _write_events(encoded: Encoded, counted: Counted, spill: Spill, sampled: Sampled, work: Workspace) -> np.ndarray:
    """Sort bucket by bucket, write the events' columns and the samples' pointers.

    Returns:
        int64 [samples], visible history of each.
    """
    dtypes = {name: dtype for name, dtype in spill.dtypes.items() if name != "user"}
    files = {name: work.column(f"events/{name}.npy", dtype, counted.events) for name, dtype in dtypes.items()}
    ends = np.zeros(len(sampled.user), np.int64)
    for rows, mine, end in write_trajectories(spill, files, sampled.user, sampled.time):
        ends[mine] = end
        encoded.plan.progress.advance(rows)
    spill.close()
    work.close(*files.values())
    for code, split in enumerate(SPLITS):
        work.array(f"samples/{split}/end.npy", ends[sampled.split == code])
    starts = np.cumsum(encoded.users.counts) - encoded.users.counts
    return ends - starts[sampled.user]
