"""Samples made from events: every positive event is a request, its item the positive candidate.

Candidates are items that somebody had met before the request, in the positive's own domain: an item that did not exist
yet would give itself away by its freshness, and so would one that nobody had met there but the positive. What the user
took at the same moment is no negative. What is said of candidates was known then, too. Requests from before there was
a second item to choose from are left out. The event itself happens at the time of the request, so it is not part of
the history it predicts from.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from lsm_cli.data.building.baskets import Baskets
from lsm_cli.data.building.counting import Counted
from lsm_cli.data.building.encoding import Encoded
from lsm_cli.data.building.pools import FirstMet, Packing, Remembered, Urn, by_domain
from lsm_cli.data.building.positives import Positives
from lsm_cli.data.building.requests import Requests, check_splits
from lsm_cli.data.building.samples import Sampled, SampleWriter, check_classes, tally_labels
from lsm_cli.data.building.vocabulary import Vocabulary
from lsm_cli.data.building.workspace import Workspace
from lsm_cli.data.description import SPLITS, FromEvents
from lsm_cli.data.store import MISSING
from lsm_cli.errors import InputError

_EVENT = 4 * 8  # bytes of memory for each event remembered: packed into 8, and they may take a quarter
_CHUNK = 1 << 17  # positives at a time; part of what a seed means


@dataclass
class Collector:
    """Positive events, and what negatives are drawn from, gathered while the events are encoded.

    Attributes:
        size: how many positives there are.
        remembered: None where all items are drawn alike.
        columns: all positives, in the order of the logs, of which the first `done` are there.
    """

    options: FromEvents
    positives: Positives
    size: int
    met: FirstMet
    packing: Packing
    remembered: Remembered | None
    columns: dict[str, np.ndarray] = field(default_factory=dict)
    done: int = 0

    @classmethod
    def of(
        cls, options: FromEvents, positives: Positives, encoded: Encoded, counted: Counted, requests: Requests
    ) -> Collector:
        items, remembered = encoded.vocabularies["item"].size, None
        first, last = (time // encoded.divisor - encoded.base for time in (counted.first, counted.last))
        packing = Packing.of(first, last, items)
        if options.draw == "popularity":
            domains, counts = encoded.vocabularies.get("domain"), {}
            if domains is not None:
                counts = dict(zip(range(domains.first, domains.size), domains.counts.tolist(), strict=True))
            counts[MISSING] = counted.events - sum(counts.values())
            remembered = Remembered(packing, counts, max(encoded.plan.memory // _EVENT, 1))
        return cls(options, positives, len(requests.split), FirstMet(items), packing, remembered)

    def add(self, codes: np.ndarray, columns: dict[str, np.ndarray]) -> None:
        """Take in a batch of encoded events; `codes` as from `Positives.codes`."""
        kept = {name: columns[name] for name in ("user", "time", "item", "scenario", "domain") if name in columns}
        mine = np.flatnonzero(codes >= 0)
        here = slice(self.done, self.done + len(mine))
        for name, values in ({"code": codes} | kept).items():
            if name not in self.columns:
                self.columns[name] = np.empty(self.size, values.dtype)
            self.columns[name][here] = values[mine]
        self.done += len(mine)
        domain = self.domain(columns)
        self.met.add(domain, columns["item"], columns["time"])
        if self.remembered is not None:
            self.remembered.add(domain, columns["item"], columns["time"])

    def domain(self, columns: dict[str, np.ndarray]) -> np.ndarray:
        """The domain of each row."""
        return columns.get("domain", np.full(len(columns["item"]), MISSING, np.int8))

    def notes(self) -> list[str]:
        """What the user should know of what negatives are drawn from."""
        known = self.remembered
        if known is None or known.kept == known.events:
            return []
        return [
            f"negatives are drawn by popularity among {known.kept:,} of {known.events:,} events, as many as a quarter "
            "of the memory holds: a rare item may never be a negative, which gives it away as a positive;"
            f" --memory {-(-known.events * _EVENT >> 30)}GiB holds every event"
        ]


def draw_samples(encoded: Encoded, collector: Collector, requests: Requests, work: Workspace) -> Sampled:
    """Write a sample for each positive, followed by its negatives.

    Raises:
        InputError: there is nothing to draw from, or a target with one class in training.
    """
    options, targets, found = collector.options, collector.positives.targets, collector.columns
    baskets, each = Baskets.gather(found["user"], found["time"], found["item"]), options.negatives
    if not collector.met.choice:
        raise InputError("samples.from_events: negatives need a second item in a domain, and each has only one")
    urn = Urn(collector.met, collector.packing, collector.remembered, baskets)
    found |= {"pool": collector.domain(found), "basket": baskets.of}
    met, free = _weigh(urn, found)
    kept = met & (free > 0)
    if not kept.all():
        where = " in its domain" if "domain" in found else ""
        for lost, reason in (
            (~met, f"of an item that nobody had met{where}"),
            (met & ~kept, f"from before there was a choice of items{where}"),
        ):
            if lost.any():
                requests.drop(lost, reason)
        check_splits(encoded.plan.description, requests, encoded.plan.resolution)
    found["free"] = free
    for name in found:
        found[name] = found[name][kept]
    writer = SampleWriter(work, requests.counts())
    split = np.repeat(requests.split[kept], 1 + each)
    user = np.repeat(found["user"], 1 + each).astype(np.int32, copy=False)
    time = np.repeat(found["time"], 1 + each).astype(np.int64, copy=False)
    sampled = Sampled(user, time, split, targets, notes=collector.notes())
    attributes = _attributes(encoded)
    tally = np.zeros((len(targets), len(SPLITS), 2), np.int64)
    for number, start in enumerate(range(0, len(found["item"]), _CHUNK)):
        part = slice(start, start + _CHUNK)
        item, negatives = found["item"][part], _draw(urn, found, part, options, number)
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


def _weigh(urn: Urn, found: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """For all positives, see `Pool.weigh`: bool and int32 [positives]."""
    met, free = np.zeros(len(found["item"]), bool), np.zeros(len(found["item"]), np.int32)
    for code, mine in by_domain(found["pool"]):
        item, time, basket = (found[name][mine] for name in ("item", "time", "basket"))
        met[mine], free[mine] = urn.pool(code).weigh(item, time, basket)
    return met, free


def _draw(urn: Urn, found: dict[str, np.ndarray], part: slice, options: FromEvents, number: int) -> np.ndarray:
    """Negatives for a chunk of the positives, [chunk, negatives]."""
    rng, here = np.random.default_rng([options.seed, number]), {name: values[part] for name, values in found.items()}
    drawn = np.zeros((len(here["item"]), options.negatives), here["item"].dtype)
    for code, mine in by_domain(here["pool"]):
        item, time, basket, free = (here[name][mine] for name in ("item", "time", "basket", "free"))
        drawn[mine] = urn.pool(code).draw(rng, item, time, basket, free, options.negatives)
    return drawn


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
