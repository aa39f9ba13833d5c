"""The first reading of the logs: which values there are, how often, and what cannot be used."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from lsm_cli.data.building.plan import Plan
from lsm_cli.data.building.positives import Positives
from lsm_cli.data.building.requests import Requests, check_rows, check_units, check_years
from lsm_cli.data.building.scan import Source, add_counts, usable
from lsm_cli.data.building.taxonomy import Paths
from lsm_cli.data.building.vocabulary import Counter, merge_tables
from lsm_cli.errors import InputError


@dataclass
class Counted:
    """What the first reading found.

    Attributes:
        users: value, count (of events): everybody who has events or samples.
        tables: field -> value, count, trained.
        first, last: time of the first and last event, ticks.
        divisor: every time is a multiple of it.
        dropped: block -> reason -> rows.
    """

    users: pl.DataFrame
    tables: dict[str, pl.DataFrame]
    paths: Paths
    events: int
    first: int
    last: int
    divisor: int
    dropped: dict[str, dict[str, int]]


def count(plan: Plan, requests: Requests, positives: Positives | None) -> Counted:
    """Read everything once.

    Raises:
        InputError: a log without usable rows, or with times that cannot be right.
    """
    counting = _Counting(plan, requests, positives)
    for source in plan.events:
        counting.read_events(source)
    if not counting.events:
        raise InputError(f"{plan.description.file}: events: no usable event is left; see the columns with --check")
    if plan.samples is not None:
        check_units(plan.samples, requests, counting.spans, plan.resolution)
        counting.read_samples(plan.samples)
    users = [counting.users.table(), counting.requesters.table().with_columns(pl.lit(0, pl.Int64).alias("count"))]
    tables = {name: counter.table() for name, counter in counting.counters.items()}
    return Counted(
        merge_tables(users), tables, counting.paths, counting.events, counting.first, counting.last,
        counting.divisor, counting.dropped,
    )  # fmt: skip


class _Counting:
    def __init__(self, plan: Plan, requests: Requests, positives: Positives | None) -> None:
        self.plan, self.requests, self.positives = plan, requests, positives
        self.users, self.requesters = Counter(plan.kinds["user"]), Counter(plan.kinds["user"])
        self.counters = {name: Counter(plan.kinds[name]) for name in plan.fields}
        self.paths = Paths(plan.depth)
        self.dropped: dict[str, dict[str, int]] = {"samples": requests.dropped}
        used = requests.time[requests.split >= 0]
        self.divisor = _divisor(used, plan.resolution, plan.resolution)
        self.spans: list[tuple[Source, int, int]] = []  # first and last time of each source of events
        self.events, self.first, self.last = 0, np.iinfo(np.int64).max, np.iinfo(np.int64).min

    def read_events(self, source: Source) -> None:
        cut, rows, before = self.requests.last_training, 0, self.events
        lost: dict[str, int] = {}
        earliest, latest, seen = np.iinfo(np.int64).max, 0, False
        for frame in source.batches(self.plan.kinds, self.plan.resolution, self.plan.rows):
            rows += frame.height
            keep, dropped = usable(frame)
            add_counts(lost, dropped)
            frame = frame if keep is None else frame.filter(keep)
            if frame.height:
                time = frame["time"].to_numpy()
                trained = time < cut
                if self.positives is not None:  # the last training request is itself an event
                    trained |= (time == cut) & (self.positives.codes(source, frame) >= 0)
                earliest, latest = min(earliest, int(time.min())), max(latest, int(time.max()))
                self.divisor = _divisor(time, self.divisor, self.plan.resolution)
                self._count(source, frame, trained, self.users)
                seen |= bool(trained.any())
                self.events += frame.height
            self.plan.progress.advance(frame.height)
        check_rows(source, rows, lost)
        check_years(source, latest, self.plan.resolution)
        if self.events > before:
            self.spans.append((source, earliest, latest))
        self.first, self.last = min(self.first, earliest), max(self.last, latest)
        self.dropped[source.table.key] = lost
        self._count_constants(source, self.events - before, seen)

    def read_samples(self, source: Source) -> None:
        row = used = 0
        for frame in source.batches(self.plan.kinds, self.plan.resolution, self.plan.rows):
            split = self.requests.split[row : row + frame.height]
            row += frame.height
            frame = frame.filter(split >= 0)
            used += frame.height
            self._count(source, frame, split[split >= 0] == 0, self.requesters)
            self.plan.progress.advance(len(split))
        self._count_constants(source, used, True)

    def _count(self, source: Source, frame: pl.DataFrame, trained: np.ndarray, users: Counter) -> None:
        for name, counter in self.counters.items():
            if name in frame.columns:
                counter.add(frame[name], trained)
        users.add(frame["user"], trained)
        self.paths.add(frame, self.plan.domain_of(source))

    def _count_constants(self, source: Source, rows: int, trained: bool) -> None:
        for name, value in source.constants.items():
            self.counters[name].add_constant(value, rows, trained)


def _divisor(time: np.ndarray, divisor: int, resolution: int) -> int:
    """The coarsest of seconds, milliseconds and microseconds that loses nothing, as ticks of `resolution`."""
    for unit in (1, 1_000, 1_000_000):
        step = resolution // unit
        if 0 < step <= divisor and (step == 1 or not (time % step).any()):
            return step
    return 1
