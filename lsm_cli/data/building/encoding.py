"""The second reading of the logs: values become ids, ready to be sorted into trajectories."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from lsm_cli.data.building.plan import Plan
from lsm_cli.data.building.requests import Requests
from lsm_cli.data.building.scan import Source, is_level, usable
from lsm_cli.data.building.taxonomy import PathEncoder, Tree, read_alignment
from lsm_cli.data.building.trajectories import Spill, bucket_bounds
from lsm_cli.data.building.vocabulary import Vocabulary
from lsm_cli.data.building.workspace import Workspace
from lsm_cli.data.store import MISSING
from lsm_cli.errors import InputError

if TYPE_CHECKING:
    from lsm_cli.data.building.counting import Counted
    from lsm_cli.data.building.drawn import Collector


class FirstSeen:
    """When each item first occurs: int64 [items' ids]."""

    def __init__(self, items: int) -> None:
        self.time = np.full(items, np.iinfo(np.int64).max)

    def add(self, item: np.ndarray, time: np.ndarray) -> np.ndarray:
        """Take in events in the order of the logs.

        Returns:
            which of them are earlier than all before of their item; of several of an item, the first comes last.
        """
        new = np.flatnonzero(time < self.time[item])
        order = new[np.argsort(time[new], kind="stable")][::-1]
        self.time[item[order]] = time[order]
        return order


class KnownItems:
    """What the events say of the items' categories: that of an item's first event which has one."""

    def __init__(self, items: int, dtype: np.dtype) -> None:
        self.node, self.first = np.full(items, MISSING, dtype), FirstSeen(items)

    def add(self, item: np.ndarray, node: np.ndarray, time: np.ndarray) -> None:
        rows = np.flatnonzero(node > MISSING)
        rows = rows[self.first.add(item[rows], time[rows])]
        self.node[item[rows]] = node[rows]

    def before(self, item: np.ndarray, time: np.ndarray) -> np.ndarray:
        """Nodes as they are known before a time; `MISSING` where they are not."""
        return np.where(self.first.time[item] < time, self.node[item], self.node.dtype.type(MISSING))


@dataclass
class Encoded:
    """How values become ids, and what the second reading adds up.

    Attributes:
        divisor, base: stored time = ticks while reading // divisor - base.
        known_items: their categories as the events have them, for samples that do not say; None = all say.
        event_paths, sample_paths: int64 [distinct paths], rows with each path of `tree.raw`.
        trained_paths: bool [distinct paths].
    """

    plan: Plan
    vocabularies: dict[str, Vocabulary]
    users: Vocabulary
    divisor: int
    base: int
    time_dtype: np.dtype
    tree: Tree | None = None
    paths: PathEncoder | None = None
    known_items: KnownItems | None = None
    event_paths: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    sample_paths: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    trained_paths: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))

    def plant(self, tree: Tree) -> None:
        """Take in the taxonomy."""
        size = tree.raw.height
        self.tree, self.paths = tree, PathEncoder(tree, self.plan.kinds)
        self.event_paths, self.sample_paths = np.zeros(size, np.int64), np.zeros(size, np.int64)
        self.trained_paths = np.zeros(size, bool)
        samples = self.plan.samples
        if samples is None or not any(is_level(role) for role in samples.roles):
            self.known_items = KnownItems(self.vocabularies["item"].size, tree.dtype)

    def encode(self, source: Source, frame: pl.DataFrame, name: str) -> np.ndarray:
        """Ids of one plain field, [rows]."""
        vocabulary = self.vocabularies[name]
        if name in frame.columns:
            return vocabulary.encode(frame[name])
        constant = source.constants.get(name)
        return np.full(frame.height, MISSING if constant is None else vocabulary.id_of(constant), vocabulary.dtype)

    def ticks(self, frame: pl.DataFrame) -> np.ndarray:
        """int64 [rows], ticks since the store's base."""
        time = frame["time"].to_numpy()
        return (time if self.divisor == 1 else time // self.divisor) - self.base


def number(plan: Plan, counted: Counted) -> Encoded:
    """Settle ids, tree and the base of time.

    Raises:
        InputError: the alignment of the taxonomies cannot be used.
    """
    vocabularies = {name: Vocabulary.of(table) for name, table in counted.tables.items()}
    users = Vocabulary.by_value(counted.users)
    first, last = counted.first // counted.divisor, counted.last // counted.divisor
    base = first
    dtype: np.dtype = np.dtype(np.int32)
    if last - first >= 1 << 32:
        dtype = np.dtype(np.int64)
    elif last - first >= 1 << 31:
        base = first + (1 << 31)
    encoded = Encoded(plan, vocabularies, users, counted.divisor, base, dtype)
    if plan.depth:
        encoded.plant(_grow(plan, counted))
    return encoded


def _grow(plan: Plan, counted: Counted) -> Tree:
    domains = [value for value in counted.paths.rows["domain"].unique().sort().to_list() if value is not None]
    options, align = plan.description.taxonomy, None
    if options.align:
        align = read_alignment(plan.description.base / options.align, options, domains, plan.depth)
    if (align is not None or not options.shared) and len(domains) > 1:
        for source in plan.sources:
            if "domain" not in source.roles:
                raise InputError(
                    f"{plan.description.file}: {source.table.key}.domain is missing: with several domains whose"
                    f" categories differ ({', '.join(domains)}) it decides what a category means"
                )
    return Tree(counted.paths.rows, plan.depth, align, options.shared)


def encode_events(encoded: Encoded, requests: Requests, collector: Collector | None, work: Workspace) -> Spill:
    """Spill all usable events, in the order of the logs, as ids."""
    plan, tree = encoded.plan, encoded.tree
    fields = [name for name in plan.fields if plan.in_history(name)]
    dtypes = {"user": np.dtype(np.int32), "time": encoded.time_dtype}
    dtypes |= {name: encoded.vocabularies[name].dtype for name in fields}
    if tree is not None and plan.categories_in_history:
        dtypes["category"] = tree.dtype
    width = 3 * 8 + 2 * sum(dtype.itemsize for dtype in dtypes.values())  # sorting: the key, and two copies of each
    bounds = bucket_bounds(encoded.users.counts, plan.memory // 8 // width)
    size = int(encoded.users.counts.sum()) * sum(dtype.itemsize for dtype in dtypes.values())
    spill = Spill(work.scratch("events"), dtypes, bounds, on_disk=size > plan.memory // 8)
    cut = requests.last_training
    for source in plan.events:
        domain = plan.domain_of(source)
        for frame in source.batches(plan.kinds, plan.resolution, plan.rows):
            keep, _ = usable(frame)
            frame = frame if keep is None else frame.filter(keep)
            if not frame.height:
                continue
            columns = {"user": encoded.users.encode(frame["user"]), "time": encoded.ticks(frame)}
            columns |= {name: encoded.encode(source, frame, name) for name in fields}
            codes = None if collector is None else collector.positives.codes(source, frame)
            if encoded.paths is not None and tree is not None and plan.categories_in_history:
                place = encoded.paths.places(frame, domain)
                columns["category"] = node = tree.node_of_path.astype(tree.dtype)[place]
                encoded.event_paths += np.bincount(place, minlength=len(encoded.event_paths))
                time = frame["time"].to_numpy()
                trained = time < cut if codes is None else (time < cut) | (time == cut) & (codes >= 0)
                encoded.trained_paths[place[trained]] = True
                if encoded.known_items is not None:
                    encoded.known_items.add(columns["item"], node, columns["time"])
            if collector is not None and codes is not None:
                collector.add(codes, columns)
            spill.add(columns)
            plan.progress.advance(frame.height)
    return spill
