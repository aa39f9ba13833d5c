"""Which samples belong together in a report: by where they come from, by their history, by their item."""

from __future__ import annotations

import numpy as np

from lsm_cli.data.batches import SECONDS_PER_DAY, Queries
from lsm_cli.data.store import MISSING, Samples, Store
from lsm_cli.search.matches import MatchStatistics

LENGTH_EDGES = (0, 1, 11, 51, 201, 1001)
AGES = {"under 1 hour": 1 / 24, "1 hour–1 day": 1.0, "1–7 days": 7.0, "7–30 days": 30.0, "30 days or more": np.inf}
SHOWN = {"0": 1, "1–9": 10, "10–99": 100, "100–999": 1000, "1000+": np.inf}  # name -> upper bound, exclusive
CHUNK = 1 << 17
TITLES = {  # kind -> (in a narrow column, in a sentence)
    "history": ("history length", "behaviours before the request"),
    "item in training": ("item in training", "training samples of the item"),
    "last behaviour": ("last behaviour", "age of the last behaviour"),
}

Slices = dict[str, dict[str, np.ndarray]]


def slices(store: Store, split: str) -> Slices:
    """kind -> name -> rows (bool [n]) of a split.

    Kinds: domain, scenario, behaviours before the request, training samples of the item, age of the last behaviour,
    age of the last behaviour in the candidate's leaf category (where the store has an index of it).
    """
    samples = store.samples(split)
    found: Slices = {}
    for kind in ("domain", "scenario"):
        if samples.has(kind):
            ids = np.asarray(samples.column(kind))
            names = store.manifest["fields"][kind].get("names", {})
            found[kind] = {names.get(str(i), f"#{i}"): ids == i for i in np.unique(ids)}
    bucket = np.searchsorted(LENGTH_EDGES, _visible(store, samples), side="right") - 1
    found["history"] = {name: bucket == place for place, name in enumerate(length_names())}
    found["item in training"] = _popularity(store, samples)
    return found | _recency(store, samples)


def title(kind: str) -> str:
    """What a kind of slice goes by, in words."""
    return (
        f"age of the {kind.replace(',', ' of')}"
        if kind.startswith("last match,")
        else TITLES.get(kind, (kind, kind))[1]
    )


def short(kind: str) -> str:
    return TITLES.get(kind, (kind, kind))[0]


def length_names() -> list[str]:
    """Names of the history-length buckets."""
    upper = [edge - 1 for edge in LENGTH_EDGES[1:]]
    names = ["0", *(f"{low}–{high}" for low, high in zip(LENGTH_EDGES[1:], upper[1:], strict=False))]
    return [*names, f"{LENGTH_EDGES[-1]}+"]


def _visible(store: Store, samples: Samples) -> np.ndarray:
    return samples.column("end") - store.offsets[samples.column("user")]


def _popularity(store: Store, samples: Samples) -> dict[str, np.ndarray]:
    """By how many training samples had the item; new = neither sample nor behaviour of the training period had it."""
    item, info = np.asarray(samples.column("item")), store.manifest["fields"]["item"]
    shown = np.zeros(info["ids"] + 1, np.int64)
    if "train" in store.splits:
        shown = np.bincount(store.samples("train").column("item"), minlength=info["ids"] + 1)
    count, new = shown[item], item >= info["trained"]
    return {"new": new} | _bins(np.where(new, -1, count), SHOWN)


def _recency(store: Store, samples: Samples) -> Slices:
    leaf = f"category{store.depth}" if store.depth else "item"
    matches = MatchStatistics(store, [leaf] if leaf in store.index else [], [], [])
    user, end = np.asarray(samples.column("user"), np.int64), np.asarray(samples.column("end"))
    columns: list[np.ndarray] = []
    for start in range(0, len(samples), CHUNK):
        rows = slice(start, start + CHUNK)
        ids = samples.column("category" if store.depth else "item")[rows]
        target = {leaf: np.where(ids > MISSING, ids if not store.depth else store.ancestors[ids, -1], 0)}
        queries = Queries(user[rows], store.offsets[user[rows]], end[rows], samples.column("time")[rows], target)
        columns.append(matches(queries))
    ages = np.concatenate(columns) if columns else np.empty((0, len(matches.names)), np.float32)
    found: Slices = {"last behaviour": _ages(ages[:, matches.names.index("last_age")])}
    if matches.fields:
        found[f"last match, {leaf}"] = _ages(ages[:, matches.names.index(f"{leaf}.age")])
    return found


def _ages(seconds: np.ndarray) -> dict[str, np.ndarray]:
    """By age; -1 = never."""
    return _bins(seconds, {name: days * SECONDS_PER_DAY for name, days in AGES.items()}) | {"never": seconds < 0}


def _bins(values: np.ndarray, edges: dict[str, float]) -> dict[str, np.ndarray]:
    """name -> rows below its edge and not below the one before; negative values are in none."""
    place = np.searchsorted(list(edges.values()), values, side="right")
    return {name: (place == number) & (values >= 0) for number, name in enumerate(edges)}
