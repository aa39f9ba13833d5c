"""A scan works in parts of any size, on histories at either end of the columns, and takes no id for another."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lsm_cli.search import scan
from lsm_cli.search.hard import ANY, HardOptions, HardSearch
from tests.search.forest import random_queries, random_store

LEVELS = ["item", "category3", "category1", ANY]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1 << 30), cells=st.sampled_from([1, 50, 1000]), longest=st.sampled_from([0, 1, 30, 300]))
def test_parts_change_nothing(seed: int, cells: int, longest: int) -> None:
    store, rng = random_store(seed, users=5, longest=longest)
    queries = random_queries(store, rng, 30)
    options = HardOptions(LEVELS, 20, {"category3": 4}, scan_below=1 << 40)
    with pytest.MonkeyPatch.context() as patch:
        whole = HardSearch(store, options)(queries)
        patch.setattr(scan, "CELLS", cells)
        parts = HardSearch(store, options)(queries)
    for name, expected in vars(whole).items():
        np.testing.assert_array_equal(getattr(parts, name), expected)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1 << 30), below=st.integers(1, 60))
def test_scanned_and_looked_up_histories_in_one_batch(seed: int, below: int) -> None:
    store, rng = random_store(seed, users=6, longest=80)
    queries = random_queries(store, rng, 30)
    options = HardOptions(LEVELS, 20, {"category3": 4}, scan_below=below)
    with pytest.MonkeyPatch.context() as patch:
        scanned = HardSearch(store, options)(queries)
        patch.setattr(scan, "SPARED", -1000)
        mixed = HardSearch(store, options)(queries)
    for name, expected in vars(scanned).items():
        np.testing.assert_array_equal(getattr(mixed, name), expected)


def test_an_id_beyond_the_columns_type_matches_nothing() -> None:
    store, rng = random_store(3, longest=40)
    queries = random_queries(store, rng, 20)
    queries.target["item"] = np.asarray(queries.target["item"]) + (1 << 16)  # the same low bits
    for below in (0, 1 << 40):
        assert not len(HardSearch(store, HardOptions(["item"], 20, {}, scan_below=below))(queries).pointer)


def test_a_store_without_events_is_searched_in_vain() -> None:
    store, rng = random_store(3, longest=0)
    found = HardSearch(store, HardOptions(LEVELS, 20, {}))(random_queries(store, rng, 7))
    assert found.offsets.tolist() == [0] * 8 and not len(found.pointer)


def test_a_search_and_statistics_look_at_a_batch_once_and_at_very_many_histories_part_by_part() -> None:
    store, rng = random_store(5, users=6, longest=200)
    queries, rows = random_queries(store, rng, 50), np.arange(50)
    histories = scan.Histories(store)
    assert histories.parts(queries, rows) is histories.parts(queries, rows)
    histories.forget()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scan, "KEPT", 10)
        parts = histories.parts(queries, rows)
        assert not isinstance(parts, list) and histories.parts(queries, rows) is not parts
        assert (
            sorted(row for part in parts for row in part.rows) == np.flatnonzero(queries.end > queries.first).tolist()
        )
