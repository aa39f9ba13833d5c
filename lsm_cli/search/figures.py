"""What a search found, in figures: how much, by which level, how far back; counted chunk by chunk in little memory.

Ages and ranks are kept as counts in log-spaced bins, so that their percentiles are known to within 1.1 % however many
behaviours were found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lsm_cli.data.batches import SECONDS_PER_DAY, Pointers, Queries
from lsm_cli.data.orders import EventValues
from lsm_cli.data.store import MISSING, Store
from lsm_cli.search.hard import ANY

PER_OCTAVE, OCTAVES = 32, 63
BINS = PER_OCTAVE * OCTAVES
AGES = {  # how old, up to so many days
    "< 1 h": 1 / 24,
    "1 h – 1 d": 1.0,
    "1 – 7 d": 7.0,
    "7 – 30 d": 30.0,
    "30 – 90 d": 90.0,
    "90 d – 1 y": 365.0,
    "> 1 y": np.inf,
}


class Levels:
    """The finest searched level that a behaviour shares with its candidate; for a hard search, where it was found.

    Args:
        names: fields, finest first; `any`, which everything shares, is added where it is not the last of them.
    """

    def __init__(self, store: Store, names: Sequence[str]) -> None:
        self.names = [*(name for name in names if name != ANY), ANY]
        self.values = [EventValues(store, name) for name in self.names[:-1]]

    def __call__(self, queries: Queries, read: Pointers) -> np.ndarray:
        """uint8 [N]."""
        row = np.repeat(np.arange(len(queries)), np.diff(read.offsets))
        level = np.full(len(row), len(self.names) - 1, np.uint8)
        for place in reversed(range(len(self.values))):
            target = queries.target[self.names[place]]
            wanted = np.where(target > MISSING, target, -1)[row]
            level[self.values[place].at(read.pointer) == wanted] = place
        return level


class Figures:
    """Counts over the samples searched.

    Args:
        store: where the behaviours lie.
        levels: names of the levels, finest first.
        budget: behaviours that a sample may read.
        edges: names of the buckets of history lengths and where they begin, ascending from 0.
    """

    def __init__(self, store: Store, levels: Sequence[str], budget: int, edges: Mapping[str, int]) -> None:
        self.store, self.levels, self.budget, self.edges = store, levels, budget, edges
        self.samples = self.empty = self.possible = 0
        self.reach = np.zeros(BINS, np.int64)  # of histories with anything in them
        self.ages, self.ranks = (np.zeros((len(levels), BINS), np.int64) for _ in range(2))
        self.by_length = np.zeros((3, len(edges)), np.int64)  # samples, in reach, found
        self.time = store.column("time")
        self.columns: dict[str, np.ndarray] = {
            name: store.column(name)
            for name in ("domain", "scenario")
            if name in store.fields and store.fields[name].in_history
        }
        sizes = {name: store.manifest["fields"][name]["ids"] for name in self.columns}
        self.found_in: dict[str, np.ndarray] = {name: np.zeros(size, np.int64) for name, size in sizes.items()}
        self.there_in = {name: counts.copy() for name, counts in self.found_in.items()}

    def add(self, queries: Queries, read: Pointers, level: np.ndarray) -> None:
        """More samples.

        Args:
            queries: first:end is what lies within reach.
            read: what was found.
            level: uint8 [N], see `Levels`.
        """
        size, count = len(queries), np.diff(read.offsets)
        row = np.repeat(np.arange(size), count)
        reach = np.maximum(queries.end - queries.first, 0)
        self.samples += size
        self.empty += int((count == 0).sum())
        self.possible += int(np.minimum(reach, self.budget).sum())
        self.reach += np.bincount(_bin(reach[reach > 0]), minlength=BINS)
        for counts, value in (
            (self.ages, queries.time[row] - self.time[read.pointer]),
            (self.ranks, queries.end[row] - read.pointer),
        ):
            found = np.bincount(level.astype(np.int64) * BINS + _bin(value), minlength=counts.size)
            counts += found.reshape(counts.shape)
        length = queries.end - self.store.offsets[queries.user]
        bucket = np.searchsorted(list(self.edges.values()), length, side="right") - 1
        for place, weight in enumerate((None, reach, count)):
            self.by_length[place] += np.bincount(bucket, weight, len(self.edges)).astype(np.int64)
        _count(self.columns, self.found_in, read.pointer)

    def add_reach(self, pointer: np.ndarray) -> None:
        """Behaviours within reach of some of the samples, to compare the found ones with."""
        _count(self.columns, self.there_in, pointer)

    @property
    def found(self) -> int:
        return int(self.ages.sum())

    def summary(self) -> dict[str, Any]:
        """Shares of 1, ages in days, ranks in places back from the request; None where there is nothing to say."""
        age, rank = _percentiles(self.ages.sum(0), self._days), _percentiles(self.ranks.sum(0), round)
        by_level = {
            name: {
                "share": _share(int(self.ages[place].sum()), self.found),
                "days": _percentiles(self.ages[place], self._days),
                "rank": _percentiles(self.ranks[place], round),
            }
            for place, name in enumerate(self.levels)
        }
        return {
            "samples": self.samples,
            "budget": self.budget,
            "found_per_sample": _share(self.found, self.samples),
            "filled": _share(self.found, self.samples * self.budget),
            "filled_of_possible": _share(self.found, self.possible),
            "nothing_found": _share(self.empty, self.samples),
            "in_reach": {"mean": _share(int(self.by_length[1].sum()), self.samples), **_percentiles(self.reach, round)},
            "levels": {name: entry["share"] for name, entry in by_level.items()},
            "reach_days": age["p50"],
            "reach_days_p10_p90": None if age["p10"] is None else [age["p10"], age["p90"]],
            "reach_rank": rank["p50"],
            "by_level": by_level,
            "by_age": self._by_age(),
            "by_history": {
                name: {
                    "samples": int(samples),
                    "in_reach": _share(int(there), int(samples)),
                    "found_per_sample": _share(int(found), int(samples)),
                    "filled": _share(int(found), int(samples) * self.budget),
                }
                for name, samples, there, found in zip(self.edges, *self.by_length, strict=True)
                if samples
            },
            **{name: self._shares(name, counts) for name, counts in self.found_in.items()},
            "within_reach": {name: self._shares(name, counts) for name, counts in self.there_in.items()},
        }

    def _by_age(self) -> dict[str, dict[str, float | None]]:
        """level -> how old -> share of all that was found."""
        days = _middle(np.arange(BINS)) / self.store.ticks_per_second / SECONDS_PER_DAY
        bounds = [0, *np.searchsorted(days, list(AGES.values()))]
        total = np.concatenate([np.zeros((len(self.levels), 1), np.int64), self.ages.cumsum(1)], 1)[:, bounds]
        return {
            name: {label: _share(int(part), self.found) for label, part in zip(AGES, np.diff(counts), strict=True)}
            for name, counts in zip(self.levels, total, strict=True)
        }

    def _days(self, ticks: float) -> float:
        return float(f"{ticks / self.store.ticks_per_second / SECONDS_PER_DAY:.4g}")

    def _shares(self, name: str, counts: np.ndarray) -> dict[str, float | None]:
        names = self.store.manifest["fields"][name].get("names", {})
        total = int(counts.sum())
        return {
            names.get(str(number), f"#{number}"): _share(int(counts[number]), total)
            for number in np.flatnonzero(counts).tolist()
        }


def _count(columns: dict[str, np.ndarray], counts: dict[str, np.ndarray], pointer: np.ndarray) -> None:
    for name, column in columns.items():
        counts[name] += np.bincount(column.take(pointer), minlength=len(counts[name]))


def agreement(
    row: np.ndarray, rank: np.ndarray, best: np.ndarray, read: Pointers, end: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """How much of the attention's own choice was found, for samples with a history: float64 [samples] each.

    recall@K = Σ_r found_r / n,  NDCG@K = Σ_r found_r / log2(r + 1) / Σ_r 1 / log2(r + 1),  over the n <= K behaviours
    that weigh most; found_r tells whether the r-th of them is among what is read. The reader weighs anew whatever it
    reads, so the order of the finds is the attention's.

    Args:
        row: int64 [n], sample of each chosen behaviour; rank: int64 [n], r = 1 … K within the sample.
        best: int64 [n], event pointers of the choice.
        read: what was found.
        end: int64 [B], exclusive event pointers of the samples.
    """
    size = len(end)
    owner = np.repeat(np.arange(size), np.diff(read.offsets))
    back, back_read = end[row] - best, end[owner] - read.pointer  # one number per (sample, behaviour)
    span = int(max(back.max(initial=0), back_read.max(initial=0))) + 1
    hit = np.isin(row * span + back, owner * span + back_read)
    discount = 1 / np.log2(rank + 1)
    many = np.bincount(row, minlength=size)
    some = many > 0
    recall = np.bincount(row, hit, size)[some] / many[some]
    return recall, np.bincount(row, hit * discount, size)[some] / np.bincount(row, discount, size)[some]


def _bin(values: np.ndarray) -> np.ndarray:
    """int64 [n] of whole numbers from 1."""
    return (np.log2(np.maximum(values, 1)) * PER_OCTAVE).astype(np.int64)


def _middle(number: np.ndarray) -> np.ndarray:
    return np.exp2((number + 0.5) / PER_OCTAVE)


def _percentiles(counts: np.ndarray, unit: Any) -> dict[str, Any]:
    total = counts.cumsum()
    if not total[-1]:
        return dict.fromkeys(("p10", "p50", "p90"))
    places = np.searchsorted(total, np.array([0.1, 0.5, 0.9]) * total[-1])
    return {name: unit(float(value)) for name, value in zip(("p10", "p50", "p90"), _middle(places), strict=True)}


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None
