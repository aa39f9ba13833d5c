"""Hard search finds what a reading of its definition, event by event, finds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lsm_cli.data.assembling import visible_end
from lsm_cli.data.batches import Queries
from lsm_cli.data.orders import Order
from lsm_cli.data.store import MISSING, Store
from lsm_cli.search.hard import ANY, HardOptions, HardSearch
from tests.search.forest import random_queries, random_store, value

LEVELS = [
    ["category3", "category2", "category1", ANY],
    ["category3"],
    [ANY],
    ["item", "category3", "category1", ANY],
    ["scenario", "category2"],
    ["item", "scenario", ANY],
    ["category1", "category3", ANY],
]


def brute(store: Store, queries: Queries, options: HardOptions) -> list[list[tuple[int, int]]]:
    """(pointer, level) of each query, by reading every event of the user."""
    answers = []
    for b in range(len(queries)):
        user, time = int(queries.user[b]), int(queries.time[b])
        found: list[tuple[int, int]] = []
        groups: dict[int, list[int]] = {level: [] for level in range(len(options.levels))}
        for pointer in range(int(store.offsets[user]), int(store.offsets[user + 1])):
            at = int(store.column("time")[pointer])
            if at >= time or (options.within and at < time - options.within):
                continue
            if any(value(store, name, pointer) not in ids for name, ids in (options.only or {}).items()):
                continue
            for level, name in enumerate(options.levels):
                wanted = MISSING if name == ANY else int(queries.target[name][b])
                if name == ANY or (wanted > MISSING and value(store, name, pointer) == wanted):
                    groups[level].append(pointer)
                    break
        for level, name in enumerate(options.levels):
            most = min(options.budgets.get(name, options.top_k), options.top_k - len(found))
            found += [(pointer, level) for pointer in groups[level][::-1][:most]]
        answers.append(found)
    return answers


def answers(search: HardSearch, queries: Queries) -> list[list[tuple[int, int]]]:
    found = search(queries)
    pairs = list(zip(found.pointer.tolist(), found.level.tolist(), strict=True))
    return [pairs[a:b] for a, b in zip(found.offsets[:-1], found.offsets[1:], strict=True)]


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 1 << 30),
    levels=st.sampled_from(LEVELS),
    top_k=st.integers(1, 80),
    caps=st.lists(st.integers(0, 10), min_size=4, max_size=4),
    capped=st.booleans(),
    within=st.sampled_from([0, 0, 5, 30]),
    filtered=st.booleans(),
    longest=st.sampled_from([0, 3, 60, 200]),
    scan_below=st.sampled_from([0, 20, 1 << 40]),
)
def test_equals_brute_force(
    seed: int, levels: list[str], top_k: int, caps: list[int], capped: bool, within: int, filtered: bool, longest: int,
    scan_below: int,
) -> None:  # fmt: skip
    store, rng = random_store(seed, longest=longest)
    queries = random_queries(store, rng, 25)
    budgets = dict(zip(levels, caps, strict=False)) if capped else {}
    only = {"scenario": np.array([2, 4])} if filtered else None
    options = HardOptions(levels, top_k, budgets, within, only, scan_below)
    assert answers(HardSearch(store, options), queries) == brute(store, queries, options)


def test_other_users_and_the_future_change_nothing() -> None:
    store, rng = random_store(5, users=6, longest=80)
    queries = random_queries(store, rng, 40)
    options = HardOptions(LEVELS[0], 10, {}, scan_below=0)
    search = HardSearch(store, options)
    together = answers(search, queries)
    for b in range(len(queries)):
        assert answers(search, queries.take(np.array([b]))) == [together[b]]
    for b, found in enumerate(together):
        assert all(store.column("time")[pointer] < queries.time[b] for pointer, _ in found)


def test_without_an_index_the_same_is_found() -> None:
    store, rng = random_store(7, longest=150)
    queries = random_queries(store, rng, 40)
    options = HardOptions(LEVELS[0], 10, {}, scan_below=0)
    indexed = answers(HardSearch(store, options), queries)
    store.manifest["index"] = {"fields": []}
    assert answers(HardSearch(store, options), queries) == indexed


@pytest.mark.parametrize("field", ["item", "category2", "scenario"])
def test_runs_hold_the_events_with_the_value(field: str) -> None:
    store, rng = random_store(11, users=8, longest=100)
    queries = random_queries(store, rng, 60)
    order = Order(store, field)
    middle = visible_end(store, queries.user, queries.time - 10)
    low, high = order.runs(queries.user, queries.target[field], queries.first, queries.end)
    between = order.cut(queries.user, low, high, middle)
    for b in range(len(queries)):
        wanted = int(queries.target[field][b])
        for start, stop, first, end in (
            (low[b], between[b], queries.first[b], middle[b]),
            (between[b], high[b], middle[b], queries.end[b]),
        ):
            places = np.arange(start, stop)
            found = order.pointers(np.full(len(places), queries.user[b]), places).tolist()
            true = [p for p in range(first, end) if value(store, field, p) == wanted > MISSING]
            assert found == true
