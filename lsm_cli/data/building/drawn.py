"""Samples made from events: every positive event is a request, its item the positive candidate.

Candidates are items that somebody had met before the request, negatives in the positive's own domain: an item that did
not exist yet would give itself away by its freshness, and so would one that nobody had met but the positive. What is
said of candidates was known then, too. Requests from before there was a second item to choose from are left out. The
event itself happens at the time of the request, so it is not part of the history it predicts from.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from lsm_cli.data.building.encoding import Encoded, FirstSeen
from lsm_cli.data.building.positives import Positives
from lsm_cli.data.building.requests import Requests, check_splits
from lsm_cli.data.building.samples import Sampled, SampleWriter, check_classes, tally_labels
from lsm_cli.data.building.vocabulary import Vocabulary
from lsm_cli.data.building.workspace import Workspace
from lsm_cli.data.description import SPLITS, FromEvents
from lsm_cli.data.store import MISSING
from lsm_cli.errors import InputError

_REMEMBERED = 1 << 22  # events that popularity is drawn from; every n-th of more
_CHUNK = 1 << 17  # positives at a time; part of what a seed means
_TRIES = 16


@dataclass
class Pool:
    """What negatives of a domain are drawn from.

    Attributes:
        items, times: in the order of time.
        distinct, met: each item once, at its first time.
    """

    items: np.ndarray
    times: np.ndarray
    distinct: np.ndarray
    met: np.ndarray

    @classmethod
    def of(cls, items: np.ndarray, times: np.ndarray) -> Pool:
        first = np.sort(np.unique(items, return_index=True)[1])
        return cls(items, times, items[first], times[first])


@dataclass
class Urn:
    """Items to draw from, per domain, ordered by when they could first be drawn.

    With `draw = "popularity"` an item lies in it once per remembered event, with "uniform" once, at its first event.
    """

    items: dict[int, np.ndarray] = field(default_factory=dict)
    times: dict[int, np.ndarray] = field(default_factory=dict)
    chosen: dict[int, Pool] = field(default_factory=dict)

    def fill(self, domain: np.ndarray, item: np.ndarray, time: np.ndarray, once: bool) -> None:
        for code in np.unique(domain).tolist():
            mine = np.flatnonzero(domain == code)
            order = mine[np.argsort(time[mine], kind="stable")]
            if once:
                order = order[np.sort(np.unique(item[order], return_index=True)[1])]
            self.items[code], self.times[code] = item[order], time[order]

    def choice(self, domain: np.ndarray, time: np.ndarray) -> np.ndarray:
        """How many items there were to choose from for requests of these domains and times, [n]."""
        found = np.zeros(len(time), np.int64)
        for code in np.unique(domain).tolist():
            mine = np.flatnonzero(domain == code)
            found[mine] = self._of(code).met.searchsorted(time[mine])
        return found

    def draw(
        self, rng: np.random.Generator, domain: np.ndarray, item: np.ndarray, time: np.ndarray, each: int
    ) -> np.ndarray:
        """Negatives for each positive, [positives, each]: never its own item, and none met for the first time later.

        Every positive needs a choice of two.
        """
        found = np.zeros((len(item), each), item.dtype)
        for code in np.unique(domain).tolist():
            mine = np.flatnonzero(domain == code)
            pool, own = self._of(code), item[mine]
            reach, choice = (times.searchsorted(time[mine]) for times in (pool.times, pool.met))
            drawn = pool.items[(rng.random((len(mine), each)) * reach[:, None]).astype(np.int64)]
            for _ in range(_TRIES):
                row, column = np.nonzero(drawn == own[:, None])
                if not len(row):
                    break
                drawn[row, column] = pool.items[(rng.random(len(row)) * reach[row]).astype(np.int64)]
            row, column = np.nonzero(drawn == own[:, None])
            if len(row):  # an item that is nearly all there is: any other
                place = (rng.random(len(row)) * (choice[row] - 1)).astype(np.int64)
                other = pool.distinct[place]
                drawn[row, column] = np.where(other == own[row], pool.distinct[choice[row] - 1], other)
            found[mine] = drawn
        return found

    def _of(self, domain: int) -> Pool:
        """The items of a domain, or of all if it has only one."""
        if domain not in self.chosen:
            pool = Pool.of(self.items[domain], self.times[domain])
            if len(pool.distinct) < 2:
                items, times = (np.concatenate([*parts.values()]) for parts in (self.items, self.times))
                order = np.argsort(times, kind="stable")
                pool = Pool.of(items[order], times[order])
            if len(pool.distinct) < 2:
                raise InputError("samples.from_events: negatives need a second item, the events have only one")
            self.chosen[domain] = pool
        return self.chosen[domain]


@dataclass
class Collector:
    """Positive events, and the events that negatives are drawn from, gathered while the events are encoded."""

    options: FromEvents
    positives: Positives
    every: int  # of how many events of a domain one is remembered
    met: FirstSeen
    parts: list[dict[str, np.ndarray]] = field(default_factory=list)
    pool: list[dict[str, np.ndarray]] = field(default_factory=list)
    seen: dict[int, int] = field(default_factory=dict)  # domain -> events

    @classmethod
    def of(cls, options: FromEvents, positives: Positives, events: int, items: int) -> Collector:
        every = -(-events // _REMEMBERED) if options.draw == "popularity" else 1
        return cls(options, positives, every, FirstSeen(items))

    def add(self, codes: np.ndarray, columns: dict[str, np.ndarray]) -> None:
        """Take in a batch of encoded events; `codes` as from `Positives.codes`."""
        size, kept = (
            len(codes),
            {n: v for n, v in columns.items() if n in ("user", "time", "item", "scenario", "domain")},
        )
        self.met.add(columns["item"], columns["time"])
        mine = np.flatnonzero(codes >= 0)
        self.parts.append({"code": codes[mine]} | {name: values[mine] for name, values in kept.items()})
        domain = columns.get("domain", np.ones(size, np.int8))
        if self.options.draw == "uniform":  # the first event of each item in the batch, then of all batches
            order = np.argsort(columns["time"], kind="stable")
            pair = domain[order].astype(np.int64) << 32 | columns["item"][order]
            picked = order[np.unique(pair, return_index=True)[1]]
        else:
            picked = self._remembered(domain)
        self.pool.append({"item": columns["item"][picked], "time": columns["time"][picked], "domain": domain[picked]})

    def _remembered(self, domain: np.ndarray) -> np.ndarray:
        """Every n-th event of each domain, from its first one."""
        if self.every == 1:
            return np.arange(len(domain))
        picked = []
        for code in np.unique(domain).tolist():
            mine, before = np.flatnonzero(domain == code), self.seen.get(code, 0)
            picked.append(mine[-before % self.every :: self.every])
            self.seen[code] = before + len(mine)
        return np.sort(np.concatenate(picked))

    def columns(self) -> dict[str, np.ndarray]:
        """All positives, in the order of the logs."""
        return {name: np.concatenate([part[name] for part in self.parts]) for name in self.parts[0]}

    def urn(self) -> Urn:
        urn, pool = Urn(), {name: np.concatenate([part[name] for part in self.pool]) for name in self.pool[0]}
        urn.fill(pool["domain"], pool["item"], pool["time"], once=self.options.draw == "uniform")
        return urn


def draw_samples(encoded: Encoded, collector: Collector, requests: Requests, work: Workspace) -> Sampled:
    """Write a sample for each positive, followed by its negatives.

    Raises:
        InputError: there is nothing to draw from, or a target with one class in training.
    """
    options, targets = collector.options, collector.positives.targets
    found, urn, each = collector.columns(), collector.urn(), collector.options.negatives
    domain = found.get("domain", np.ones(len(found["item"]), np.int8))
    met = collector.met.time[found["item"]] < found["time"]
    choice = urn.choice(domain, found["time"]) > 1
    kept = met & choice
    if not kept.all():
        for rows, reason in (
            (~met, "of an item that nobody had met"),
            (met & ~choice, "from before there was a choice of items"),
        ):
            if rows.any():
                requests.drop(rows, reason)
        check_splits(encoded.plan.description, requests, encoded.plan.resolution)
        found, domain = {name: values[kept] for name, values in found.items()}, domain[kept]
    writer = SampleWriter(work, requests.counts())
    split = np.repeat(requests.split[kept], 1 + each)
    user = np.repeat(found["user"], 1 + each).astype(np.int32)
    time = np.repeat(found["time"], 1 + each).astype(np.int64)
    sampled = Sampled(user, time, split, targets)
    attributes = _attributes(encoded)
    tally = np.zeros((len(targets), len(SPLITS), 2), np.int64)
    for number, start in enumerate(range(0, len(found["item"]), _CHUNK)):
        part = slice(start, start + _CHUNK)
        rng = np.random.default_rng([options.seed, number])
        item = found["item"][part]
        negatives = urn.draw(rng, domain[part], item, found["time"][part], each)
        rows = slice(start * (1 + each), (start + len(item)) * (1 + each))
        columns: dict[str, np.ndarray] = {
            "user": user[rows],
            "time": time[rows],
            "item": np.concatenate([item[:, None], negatives], 1).ravel(),
        }
        columns |= {name: np.repeat(found[name][part], 1 + each) for name in ("scenario", "domain") if name in found}
        columns |= {name: ids[columns["item"]] for name, ids in attributes.items()}
        if encoded.known_items is not None:
            columns["category"] = encoded.known_items.before(columns["item"], time[rows])
            sampled.placeless += int((columns["category"] == MISSING).sum())
        code = np.repeat(found["code"][part], 1 + each)
        first = np.zeros((len(item), 1 + each), np.int8)
        first[:, 0] = 1
        for target_code, target in enumerate(targets):
            columns[f"label.{target}"] = np.where(code == target_code, first.ravel(), -1).astype(np.int8)
        tally += tally_labels([columns[f"label.{target}"] for target in targets], split[rows])
        writer.append(split[rows], columns)
    writer.close()
    sampled.count(tally)
    check_classes(str(encoded.plan.description.file), sampled.positives)
    return sampled


def _attributes(encoded: Encoded) -> dict[str, np.ndarray]:
    """Ids of each item's attributes, for fields that come from the table of items; [items' ids] each."""
    plan, found = encoded.plan, {}
    for source in plan.events:
        for name in source.joined:
            if source.items is None or name not in encoded.vocabularies:
                continue
            vocabulary: Vocabulary = encoded.vocabularies[name]
            table = np.ones(encoded.vocabularies["item"].size, vocabulary.dtype)
            table[encoded.vocabularies["item"].encode(source.items["item"])] = vocabulary.encode(source.items[name])
            table[1] = 1  # items that no log has
            found[name] = table
    return found
