"""Match statistics by the index are those of a reading of the whole history."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lsm_cli.data.assembling import Assembler
from lsm_cli.data.orders import EventValues
from lsm_cli.data.store import MISSING, Store
from lsm_cli.kernels.ragged import Segments
from lsm_cli.models.evidence import Evidence, match_mask
from lsm_cli.search import scan
from lsm_cli.search.matches import MatchStatistics
from tests.search.forest import random_queries, random_store, value

FIELDS = ["item", "category1", "category3", "scenario"]
DAY = 86_400.0


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1 << 30),
    longest=st.sampled_from([0, 5, 80, 200]),
    below=st.sampled_from([-1, 40, 1 << 40]),
    cells=st.sampled_from([1, 300, 1 << 20]),
    cut=st.booleans(),
)
def test_equals_a_literal_count(seed: int, longest: int, below: int, cells: int, cut: bool) -> None:
    store, rng = random_store(seed, longest=longest)
    queries = random_queries(store, rng, 20)
    days, windows = ([5 / DAY, 20 / DAY], [3, 10]) if cut else ([], [])
    statistics = MatchStatistics(store, FIELDS, days, windows, below)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scan, "CELLS", cells)
        patch.setattr(scan, "SPARED", 0)
        found = statistics(queries)
    time = store.column("time")
    for b in range(len(queries)):
        first, end, now = int(queries.first[b]), int(queries.end[b]), int(queries.time[b])
        expected: list[float] = []
        for field in FIELDS:
            wanted = int(queries.target[field][b])
            hits = [p for p in range(first, end) if wanted > MISSING and value(store, field, p) == wanted]
            expected.append(len(hits))
            expected += [sum(time[p] >= now - round(day * DAY) for p in hits) for day in days]
            expected += [sum(p >= end - window for p in hits) for window in windows]
            expected += [now - time[hits[-1]], end - hits[-1]] if hits else [-1, -1]
        expected += [end - first, now - time[end - 1], now - time[first]] if end > first else [0, -1, -1]
        np.testing.assert_allclose(found[b], expected, err_msg=str(statistics.names))


def test_equals_the_evidence_of_the_whole_history(small_store: Path) -> None:
    store = Store.open(small_store)
    fields = ["item", "category1", "category2", "scenario"]
    assembler = Assembler(store, "train", list(store.fields.values()), store.targets, 1 << 40, [])
    index = np.arange(300)
    batch = assembler.batch(index)
    segments = Segments(batch.offsets, batch.behaviours)
    evidence = Evidence(fields, [1.0], [10])
    read = evidence(batch, segments, {name: match_mask(batch, segments, name) for name in fields})
    statistics = MatchStatistics(store, fields, [1.0], [10])
    counted = torch.from_numpy(statistics(assembler.queries(index)))
    both = [name for name in statistics.names if name in evidence.names]
    assert len(both) == 4 * 4 + 3
    for name in both:
        torch.testing.assert_close(
            counted[:, statistics.names.index(name)], read[:, evidence.names.index(name)], msg=name
        )


def test_a_missing_value_is_no_id_where_ids_fill_their_type() -> None:
    store, _ = random_store(3, users=1, longest=1)
    store._columns["scenario"] = np.full(store.events, 255, np.uint8)
    nobody = np.array([MISSING])
    part = scan._matches(store.column("scenario")[None, :], nobody, EventValues(store, "scenario"))
    assert not part.any()


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1 << 30))
def test_without_an_index_every_history_is_looked_at(seed: int) -> None:
    store, rng = random_store(seed, longest=80)
    queries = random_queries(store, rng, 20)
    expected = MatchStatistics(store, FIELDS, [5 / DAY], [3], -1)(queries)
    store.manifest["index"] = {"fields": ["item"]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scan, "SPARED", 0)
        found = MatchStatistics(store, FIELDS, [5 / DAY], [3], -1)(queries)
    np.testing.assert_array_equal(found, expected)
