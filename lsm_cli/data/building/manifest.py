"""What a store says about itself: vocabularies, taxonomy, and the manifest."""

from __future__ import annotations

from typing import Any

import numpy as np

from lsm_cli.data.building.counting import Counted
from lsm_cli.data.building.encoding import Encoded
from lsm_cli.data.building.files import found_files
from lsm_cli.data.building.moments import iso
from lsm_cli.data.building.requests import Requests
from lsm_cli.data.building.samples import Sampled
from lsm_cli.data.building.taxonomy import meeting, unmapped
from lsm_cli.data.building.vocabulary import write_vocabulary
from lsm_cli.data.building.workspace import Workspace
from lsm_cli.data.description import SPLITS
from lsm_cli.data.store import FORMAT

NAMED = ("domain", "scenario", "action")
MOST_NAMES = 1000


def describe_store(
    encoded: Encoded, counted: Counted, requests: Requests, sampled: Sampled, lengths: np.ndarray,
    statistics: list[str], work: Workspace,
) -> dict[str, Any]:  # fmt: skip
    """Write vocabularies and taxonomy and put the manifest together.

    Args:
        lengths: int64 [samples], visible history of each.
    """
    plan, description = encoded.plan, encoded.plan.description
    for name, vocabulary in encoded.vocabularies.items():
        write_vocabulary(vocabulary.frame(), work.folder / f"vocab/{name}.parquet")
        work.note(f"vocab/{name}.parquet")
    write_vocabulary(encoded.users.frame().drop("trained"), work.folder / "vocab/user.parquet")
    work.note("vocab/user.parquet")
    fields: dict[str, Any] = {}
    for name in plan.fields:
        vocabulary = encoded.vocabularies[name]
        fields[name] = {
            "dtype": str(vocabulary.dtype), "ids": vocabulary.size, "trained": vocabulary.trained,
            "in_history": plan.in_history(name), "in_sample": plan.in_sample(name),
        }  # fmt: skip
        if name in NAMED and vocabulary.size <= MOST_NAMES:  # reports are written where polars is not installed
            ids = range(vocabulary.first, vocabulary.size)
            fields[name]["names"] = {str(i): str(value) for i, value in zip(ids, vocabulary.values, strict=True)}
    category, levels = _write_taxonomy(encoded, work)
    if category:
        fields = {"item": fields.pop("item"), "category": category, **fields}
    resolution = plan.resolution
    dates = {}
    for code, split in enumerate(SPLITS):
        times = requests.time[requests.split == code]
        dates[split] = [iso(int(times.min()), resolution), iso(int(times.max()), resolution)] if len(times) else None
    history = dict(
        zip(("p50", "p90", "p99", "max"), np.percentile(lengths, [50, 90, 99, 100], method="lower"), strict=True)
    )
    met, missed = [], []
    if encoded.tree is not None:
        met = meeting(encoded.tree, encoded.event_paths, encoded.sample_paths)
        missed = unmapped(encoded.tree, encoded.event_paths, encoded.sample_paths, description.taxonomy)
    return {
        "format": FORMAT,
        "name": description.name,
        "description": description.model_dump(mode="json", exclude_defaults=True),
        "time": {"ticks_per_second": resolution // encoded.divisor, "base": encoded.base},
        "counts": {"users": len(encoded.users.values), "events": counted.events, "samples": requests.counts()},
        "levels": levels,
        "fields": fields,
        "targets": sampled.targets,
        "statistics": statistics,
        "truth": bool(sampled.truth),
        "value": sampled.value,
        **({"propensity": True} if description.samples.propensity else {}),
        "split": {"how": requests.how, "dates": dates},
        "events": [iso(counted.first, resolution), iso(counted.last, resolution)],
        "dropped": counted.dropped,
        "meeting": met,
        "unmapped": missed,
        "history": {name: int(value) for name, value in history.items()},
        "positives": sampled.positives,
        "notes": _notes(encoded, sampled),
        "files": dict(sorted(work.files.items())),
    }


def _write_taxonomy(encoded: Encoded, work: Workspace) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The manifest's entries of the category field and of its levels."""
    tree, plan = encoded.tree, encoded.plan
    if tree is None:
        return {}, []
    trained, counts = np.zeros(tree.nodes, bool), np.zeros(tree.nodes, np.int64)
    trained[tree.node_of_path[encoded.trained_paths]] = True
    np.add.at(counts, tree.node_of_path, encoded.event_paths + encoded.sample_paths)
    rows, levels = tree.rows(trained)
    work.array("taxonomy/ancestors.npy", tree.ancestors)
    work.array("taxonomy/rows.npy", rows)
    work.array("taxonomy/range.npy", tree.range)
    write_vocabulary(tree.frame(counts, trained), work.folder / "vocab/category.parquet")
    work.note("vocab/category.parquet")
    known = int(tree.spread(trained).sum())
    return {
        "dtype": str(tree.dtype), "ids": tree.nodes, "trained": known + 2,
        "in_history": plan.categories_in_history, "in_sample": True,
    }, levels  # fmt: skip


def _notes(encoded: Encoded, sampled: Sampled) -> list[str]:
    """Things that are probably not what the user meant."""
    found = list(sampled.notes)
    plan = encoded.plan
    for source in plan.sources:
        patterns = source.table.spec.path if len(source.table.spec.path) > 1 else []
        empty = [pattern for pattern in patterns if not found_files(plan.description, pattern)]
        found += [
            f"{source.table.key}: no file matches {pattern}; the block's other paths were read" for pattern in empty
        ]
    if sampled.placeless > len(sampled.user) / 2:
        columns = "[items]" if plan.samples is None else "samples.category or in [items]"
        found.append(
            f"{sampled.placeless:,} of {len(sampled.user):,} samples have no category: they take it from their item's "
            f"events before the request, and there are none; name the columns in {columns}"
        )
    requests = np.bincount(sampled.user, minlength=len(encoded.users.counts)) > 0
    everybody, without = int(requests.sum()), int((requests & (encoded.users.counts == 0)).sum())
    if without == everybody:
        found.append(
            "no user of the samples occurs in the events: every history is empty; do both logs use the same ids?"
        )
    elif without > everybody / 2:
        found.append(f"{without:,} of the samples' {everybody:,} users have no events")
    return found
