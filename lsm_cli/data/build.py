"""Building a store: count, number, encode, sort, write.

The logs are read twice. The first reading counts the values of every field and notes the category paths; ids, the tree
and the size of every file follow from it. The second encodes, spills and sorts. Nothing is ever held that grows with
the number of events, except one counter per distinct value.
"""

from __future__ import annotations

import json
import time as clock
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import polars as pl

from lsm_cli import __version__
from lsm_cli.data import samples as sample_files
from lsm_cli.data.description import SPLITS, Description, seconds
from lsm_cli.data.moments import iso
from lsm_cli.data.requests import Requests, check_rows, check_years, read_requests
from lsm_cli.data.scan import Source, open_sources, settle_kinds, usable
from lsm_cli.data.statistics import EventColumn, popularity
from lsm_cli.data.store import FORMAT, MISSING
from lsm_cli.data.taxonomy import PathEncoder, Paths, Tree, meeting, read_alignment
from lsm_cli.data.trajectories import Spill, bucket_bounds, write_trajectories
from lsm_cli.data.vocabulary import Counter, Vocabulary, merge_tables, narrowest, write_vocabulary
from lsm_cli.data.workspace import Workspace, open_workspace
from lsm_cli.errors import InputError

_PLAIN = ("item", "scenario", "domain", "action")  # fields of our own, before the description's


class Progress(Protocol):
    def advance(self, amount: float = 1, total: float | None = None) -> None: ...

    def note(self, text: str) -> None: ...


class _Unwatched:
    def advance(self, amount: float = 1, total: float | None = None) -> None: ...

    def note(self, text: str) -> None: ...


@dataclass
class Plan:
    """What is known before the logs are read as a whole."""

    description: Description
    events: list[Source]
    samples: Source
    kinds: dict[str, str]
    resolution: int  # ticks per second while reading
    rows: int  # of a batch
    memory: int  # bytes
    progress: Progress

    @property
    def sources(self) -> list[Source]:
        return [*self.events, self.samples]

    @property
    def depth(self) -> int:
        """Declared category levels."""
        return sum(name.startswith("category") for name in {r for s in self.sources for r in s.roles if _is_level(r)})

    @property
    def fields(self) -> list[str]:
        """Plain fields in the store's order."""
        extra = [r for s in self.sources for r in s.roles if not _is_level(r) and r not in _PLAIN]
        extra = [name for name in dict.fromkeys(extra) if name not in ("user", "split", "target")]
        present = {role for source in self.sources for role in source.roles}
        return [name for name in _PLAIN if name in present] + extra

    def in_history(self, name: str) -> bool:
        return any(name in source.roles for source in self.events)

    def in_sample(self, name: str) -> bool:
        return name in self.samples.roles

    @property
    def sample_domain(self) -> str | None:
        """The only domain there is, where the samples do not name theirs."""
        named = {source.constants.get("domain") for source in self.events}
        return next(iter(named)) if len(named) == 1 and "domain" not in self.samples.roles else None

    def domain_of(self, source: Source) -> str | None:
        return (
            self.sample_domain
            if source is self.samples and "domain" not in source.roles
            else source.constants.get("domain")
        )


@dataclass
class Counted:
    """What the first reading found."""

    users: pl.DataFrame  # value, count (events), trained
    tables: dict[str, pl.DataFrame]  # field -> value, count, trained
    paths: Paths
    events: int
    first: int  # time of the first and last event, ticks
    last: int
    divisor: int  # every time is a multiple of it
    dropped: dict[str, dict[str, int]]


@dataclass
class Encoded:
    """How values become ids, and what the second reading adds up."""

    plan: Plan
    vocabularies: dict[str, Vocabulary]
    users: Vocabulary
    tree: Tree | None
    paths: PathEncoder | None
    divisor: int
    base: int
    time_dtype: np.dtype
    node_of_item: np.ndarray | None = None  # from the events, for samples that lack categories
    event_paths: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    sample_paths: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    trained_paths: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))

    def encode(self, source: Source, frame: pl.DataFrame, name: str) -> np.ndarray:
        """Ids of one plain field, [rows]."""
        vocabulary = self.vocabularies[name]
        if name in frame.columns:
            return vocabulary.encode(frame[name])
        constant = source.constants.get(name)
        return np.full(frame.height, MISSING if constant is None else vocabulary.id_of(constant), vocabulary.dtype)

    def ticks(self, frame: pl.DataFrame) -> np.ndarray:
        """int64 [rows], ticks since the store's base."""
        return frame["time"].to_numpy() // self.divisor - self.base


def build_store(
    description: Description,
    out: Path,
    *,
    memory: int = 2 << 30,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Build a store.

    Args:
        description: what to read.
        out: the store's folder.
        memory: bytes the build may use.
        overwrite: replace a store that is there already.

    Returns:
        the store's manifest, with what a user wants to know about the build.

    Raises:
        InputError: the description does not fit the logs, or the store cannot be written.
        LsmError: another build is writing the same store.
    """
    started = clock.monotonic()
    progress = progress or _Unwatched()
    sources, sample_source = open_sources(description)
    with open_workspace(Path(out), overwrite) as work:
        assert sample_source is not None
        kinds = settle_kinds([*sources, sample_source])
        resolution = max(source.resolution for source in [*sources, sample_source])
        rows = int(np.clip(memory >> 11, 1 << 15, 1 << 20))
        plan = Plan(description, sources, sample_source, kinds, resolution, rows, memory, progress)
        progress.note("reading samples")
        requests = read_requests(description, sample_source, kinds, resolution, rows)
        progress.note("counting")
        counted = count(plan, requests)
        encoded = number(plan, counted)
        work.array("events/offsets.npy", np.concatenate([[0], np.cumsum(encoded.users.counts)]).astype(np.int64))
        progress.note("encoding events")
        spill = encode_events(plan, encoded, counted, requests, work)
        progress.note("encoding samples")
        sampled = sample_files.encode_samples(encoded, requests, work)
        progress.note("sorting")
        lengths = write_events(plan, encoded, counted, spill, sampled, work)
        progress.note("statistics")
        names = write_statistics(plan, encoded, sampled, work)
        manifest = finish(plan, encoded, counted, requests, sampled, lengths, names, work)
        passed = clock.monotonic() - started
        manifest["build"] = {
            "seconds": round(passed, 3), "events_per_second": round(counted.events / passed), "memory": memory,
            "at": datetime.now(timezone.utc).isoformat(timespec="seconds"), "version": __version__,
        }  # fmt: skip
        (work.folder / "manifest.json").write_text(
            json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        work.note("manifest.json")
    return manifest


def count(plan: Plan, requests: Requests) -> Counted:
    """The first reading."""
    users = {True: Counter(plan.kinds["user"]), False: Counter(plan.kinds["user"])}  # of events, of samples
    counters = {name: Counter(plan.kinds[name]) for name in plan.fields}
    paths = Paths(plan.depth)
    cut = requests.last_training
    used = requests.time[requests.split >= 0]
    dropped: dict[str, dict[str, int]] = {"samples": requests.dropped}
    divisor = _divisor(used, plan.resolution, plan.resolution)
    check_years(plan.samples, int(used.max()), plan.resolution)
    first, last, events = np.iinfo(np.int64).max, np.iinfo(np.int64).min, 0
    for source in plan.sources:
        is_events = source is not plan.samples
        done, lost_here, seen = 0, {}, False
        for frame in source.batches(plan.kinds, plan.resolution, plan.rows):
            size = frame.height
            if is_events:
                keep, lost = usable(frame)
                for reason, rows in lost.items():
                    lost_here[reason] = lost_here.get(reason, 0) + rows
                frame = frame if keep is None else frame.filter(keep)
                time = frame["time"].to_numpy()
                trained = time < cut
                if len(time):
                    first, last = min(first, int(time.min())), max(last, int(time.max()))
                    divisor = _divisor(time, divisor, plan.resolution)
                events += frame.height
            else:
                split = requests.split[done : done + size]
                frame = frame.filter(split >= 0)
                trained = split[split >= 0] == 0
            for name in counters:
                if name in frame.columns:
                    counters[name].add(frame[name], trained)
            users[is_events].add(frame["user"], trained)
            paths.add(frame, plan.domain_of(source))
            seen |= bool(trained.any())
            done += size
            plan.progress.advance(size)
        if is_events:
            check_rows(source, done, lost_here)
            dropped[source.table.key] = lost_here
            check_years(source, last, plan.resolution)
        kept = done - sum(dropped["samples" if not is_events else source.table.key].values())
        for name, value in source.constants.items():
            counters[name].add_constant(value, kept, seen)
    if not events:
        raise InputError(f"{plan.description.file}: events: no usable event is left; see the columns with --check")
    everyone = merge_tables(
        [users[True].table(), users[False].table().with_columns(pl.lit(0, pl.Int64).alias("count"))]
    )
    tables = {name: counter.table() for name, counter in counters.items()}
    return Counted(everyone, tables, paths, events, first, last, divisor, dropped)


def _divisor(time: np.ndarray, divisor: int, resolution: int) -> int:
    """The coarsest of seconds, milliseconds and microseconds that loses nothing, as ticks of `resolution`."""
    for unit in (1, 1_000, 1_000_000):
        step = resolution // unit
        if step <= divisor and step and not (step > 1 and (time % step).any()):
            return step
    return 1


def number(plan: Plan, counted: Counted) -> Encoded:
    """Ids, tree and the base of time."""
    vocabularies = {name: Vocabulary.of(table) for name, table in counted.tables.items()}
    users = Vocabulary.by_value(counted.users)
    counted.tables.clear()
    first, last = counted.first // counted.divisor, counted.last // counted.divisor
    base, dtype = first, np.dtype(np.int32)
    if last - first >= 1 << 32:
        dtype = np.dtype(np.int64)
    elif last - first >= 1 << 31:
        base = first + (1 << 31)
    tree = paths = None
    if plan.depth:
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
        tree = Tree(counted.paths.rows, plan.depth, align, options.shared)
        paths = PathEncoder(tree, plan.kinds)
    encoded = Encoded(plan, vocabularies, users, tree, paths, counted.divisor, base, dtype)
    if tree is not None:
        size = tree.raw.height
        encoded.event_paths, encoded.sample_paths = np.zeros(size, np.int64), np.zeros(size, np.int64)
        encoded.trained_paths = np.zeros(size, bool)
        encoded.node_of_item = np.full(vocabularies["item"].size, MISSING, tree.dtype)
    return encoded


def encode_events(plan: Plan, encoded: Encoded, counted: Counted, requests: Requests, work: Workspace) -> Spill:
    """The second reading: ids instead of values, spilled by user."""
    fields = [name for name in plan.fields if plan.in_history(name)]
    dtypes = {"user": np.dtype(np.int32), "time": encoded.time_dtype}
    dtypes |= {name: encoded.vocabularies[name].dtype for name in fields}
    if encoded.tree is not None:
        dtypes["category"] = encoded.tree.dtype
    width = 3 * 8 + 2 * sum(dtype.itemsize for dtype in dtypes.values())  # sorting needs the key and two copies of each
    bounds = bucket_bounds(encoded.users.counts, max(plan.memory // 8 // width, 1 << 12))
    spill = Spill(work.scratch("events"), dtypes, bounds)
    cut = requests.last_training
    for source in plan.events:
        domain = plan.domain_of(source)
        for frame in source.batches(plan.kinds, plan.resolution, plan.rows):
            keep, _ = usable(frame)
            frame = frame if keep is None else frame.filter(keep)
            columns = {"user": encoded.users.encode(frame["user"]), "time": encoded.ticks(frame)}
            columns |= {name: encoded.encode(source, frame, name) for name in fields}
            if encoded.paths is not None and encoded.tree is not None:
                place = encoded.paths.places(frame, domain)
                encoded.event_paths += np.bincount(place, minlength=len(encoded.event_paths))
                encoded.trained_paths[place[frame["time"].to_numpy() < cut]] = True
                columns["category"] = node = encoded.tree.node_of_path.astype(encoded.tree.dtype)[place]
                assert encoded.node_of_item is not None
                encoded.node_of_item[columns["item"]] = node
            spill.add(columns)
            plan.progress.advance(frame.height)
    return spill


def write_events(
    plan: Plan, encoded: Encoded, counted: Counted, spill: Spill, sampled: sample_files.Sampled, work: Workspace
) -> np.ndarray:
    """Sort bucket by bucket, write the events' columns and the samples' pointers.

    Returns:
        int64 [samples], visible history of each.
    """
    files = {
        n: work.column(f"events/{n}.npy", dtype, counted.events) for n, dtype in spill.dtypes.items() if n != "user"
    }
    ends = np.zeros(len(sampled.user), np.int64)
    for rows, mine, end in write_trajectories(spill, files, sampled.user, sampled.time):
        ends[mine] = end
        plan.progress.advance(rows)
    spill.close()
    work.close(*files.values())
    for code, split in enumerate(SPLITS):
        work.array(f"samples/{split}/end.npy", ends[sampled.split == code])
    starts = np.cumsum(encoded.users.counts) - encoded.users.counts
    return ends - starts[sampled.user]


def write_statistics(plan: Plan, encoded: Encoded, sampled: sample_files.Sampled, work: Workspace) -> list[str]:
    """Popularity of the sample's item and categories, and the item's age and recency in seconds."""
    wanted = plan.description.samples.statistics
    if wanted is None:
        return []
    per_second = plan.resolution // encoded.divisor
    lengths = [seconds(window) for window in wanted.popularity]
    windows = [None if length is None else length * per_second for length in lengths]
    time = np.load(work.folder / "events/time.npy", mmap_mode="r")
    item = np.load(work.folder / "events/item.npy", mmap_mode="r")
    rows = max(plan.memory // 4 // 16, 1 << 16)
    columns = [("any", EventColumn(item, time, np.zeros_like), None)]
    columns = [("any", EventColumn(item, time, lambda ids: np.full(len(ids), 2)), np.full(len(sampled.user), 2))]
    columns.append(("item", EventColumn(item, time, lambda ids: ids), _read_back(work, sampled, "item")))
    if encoded.tree is not None:
        node = np.load(work.folder / "events/category.npy", mmap_mode="r")
        sample_node = _read_back(work, sampled, "category")
        for level in range(encoded.tree.depth):
            ancestor = encoded.tree.ancestors[:, level]
            columns.append(
                (f"category{level + 1}", EventColumn(node, time, ancestor.__getitem__), ancestor[sample_node])
            )
    names: list[str] = []
    for name, events, ids in columns:
        ages = name == "item"
        found = popularity(events, ids.astype(np.int64), sampled.time, windows, rows, ages)
        labels = [f"popularity.{name}.{window}" for window in wanted.popularity] + (
            ["age.item", "recency.item"] if ages else []
        )
        for label, values in zip(labels, found, strict=True):
            if label.startswith(("age", "recency")):
                values = np.where(values < 0, -1, values / per_second).astype(np.float32)
            for code, split in enumerate(SPLITS):
                work.array(f"samples/{split}/stat.{label}.npy", values[sampled.split == code])
        names += labels
    return names


def _read_back(work: Workspace, sampled: sample_files.Sampled, name: str) -> np.ndarray:
    """A column of all samples, in the order of the files."""
    parts = [np.load(work.folder / f"samples/{split}/{name}.npy") for split in SPLITS]
    out = np.empty(len(sampled.split), parts[0].dtype)
    for code, part in enumerate(parts):
        out[sampled.split == code] = part
    return out


def finish(
    plan: Plan, encoded: Encoded, counted: Counted, requests: Requests, sampled: sample_files.Sampled,
    lengths: np.ndarray, statistics: list[str], work: Workspace,
) -> dict[str, Any]:  # fmt: skip
    """Write vocabularies and taxonomy; put the manifest together."""
    description = plan.description
    (work.folder / "vocab").mkdir()
    for name, vocabulary in encoded.vocabularies.items():
        write_vocabulary(vocabulary.frame(), work.folder / f"vocab/{name}.parquet")
        work.note(f"vocab/{name}.parquet")
    write_vocabulary(encoded.users.frame().drop("trained"), work.folder / "vocab/user.parquet")
    work.note("vocab/user.parquet")
    levels: list[dict[str, Any]] = []
    fields: dict[str, Any] = {}
    for name in plan.fields:
        vocabulary = encoded.vocabularies[name]
        fields[name] = {
            "dtype": str(vocabulary.dtype), "ids": vocabulary.size, "trained": vocabulary.trained,
            "in_history": plan.in_history(name), "in_sample": plan.in_sample(name),
        }  # fmt: skip
    met = []
    if encoded.tree is not None:
        tree = encoded.tree
        trained, counts = np.zeros(tree.nodes, bool), np.zeros(tree.nodes, np.int64)
        trained[tree.node_of_path[encoded.trained_paths]] = True
        np.add.at(counts, tree.node_of_path, encoded.event_paths + encoded.sample_paths)
        rows, levels = tree.rows(trained)
        work.array("taxonomy/ancestors.npy", tree.ancestors)
        work.array("taxonomy/rows.npy", rows)
        work.array("taxonomy/range.npy", tree.range)
        write_vocabulary(tree.frame(counts, trained), work.folder / "vocab/category.parquet")
        work.note("vocab/category.parquet")
        met = meeting(tree, encoded.event_paths, encoded.sample_paths)
        category = {
            "dtype": str(tree.dtype),
            "ids": tree.nodes,
            "trained": sum(int(level["trained"]) for level in levels),
        }
        category |= {"in_history": any(_is_level(r) for s in plan.events for r in s.roles), "in_sample": True}
        fields = {"item": fields.pop("item"), "category": category, **fields}
    resolution = plan.resolution
    spans = {}
    for code, split in enumerate(SPLITS):
        times = requests.time[requests.split == code]
        spans[split] = [iso(int(times.min()), resolution), iso(int(times.max()), resolution)] if len(times) else None
    shares = np.percentile(lengths, [50, 90, 99], method="lower") if len(lengths) else np.zeros(3)
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
        "split": {"how": requests.how, "dates": spans},
        "events": [iso(counted.first, resolution), iso(counted.last, resolution)],
        "dropped": counted.dropped,
        "meeting": met,
        "history": {name: int(v) for name, v in zip(("p50", "p90", "p99"), shares, strict=True)}
        | {"max": int(lengths.max(initial=0))},
        "positives": sampled.positives,
        "notes": notes(plan, encoded, sampled),
        "files": dict(sorted(work.files.items())),
    }


def notes(plan: Plan, encoded: Encoded, sampled: sample_files.Sampled) -> list[str]:
    """Things that are probably not what the user meant."""
    found = []
    for source in plan.sources:
        base, patterns = plan.description.base, source.table.spec.path
        empty = [pattern for pattern in patterns if not any(base.glob(pattern))]
        found += [
            f"{source.table.key}: no file matches {pattern}; the block's other paths were read" for pattern in empty
        ]
    without = int((encoded.users.counts[np.unique(sampled.user)] == 0).sum())
    users = len(np.unique(sampled.user))
    if without == users:
        found.append(
            "no user of the samples occurs in the events: every history is empty; do both logs use the same ids?"
        )
    elif without > users / 2:
        found.append(f"{without:,} of the samples' {users:,} users have no events")
    return found


def _is_level(role: str) -> bool:
    return role.startswith("category") and role[8:].isdigit()


__all__ = ["build_store", "narrowest"]
