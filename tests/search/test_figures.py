"""What a search found, in figures, against literal loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lsm_cli.data.batches import SECONDS_PER_DAY, Pointers
from lsm_cli.search.figures import Figures, Levels, agreement
from lsm_cli.search.hard import ANY, HardOptions, HardSearch
from tests.search.forest import random_queries, random_store

EDGES = {"0": 0, "1–10": 1, "11–50": 11, "51+": 51}


def _found(seed: int, top_k: int, pieces: int = 1) -> tuple[dict, list[int], list[int], HardSearch]:
    """The summary of a random search, taken in pieces, and the ages and ranks of all finds."""
    store, rng = random_store(seed)
    names = ["item", "category3", "category2", "category1", ANY]
    search = HardSearch(store, HardOptions(names, top_k, {}))
    levels = Levels(store, names)
    figures = Figures(store, levels.names, top_k, EDGES)
    ages: list[int] = []
    ranks: list[int] = []
    for _ in range(pieces):
        queries = random_queries(store, rng, 20)
        found = search(queries)
        read = found.by_time()
        level = levels(queries, read)
        order = np.lexsort((found.pointer, found.row))
        np.testing.assert_array_equal(level, found.level[order])  # a hard search finds at the finest level shared
        figures.add(queries, read, level)
        ages += (queries.time[found.row] - store.column("time")[found.pointer]).tolist()
        ranks += (queries.end[found.row] - found.pointer).tolist()
    return figures.summary(), ages, ranks, search


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 30), st.integers(1, 3))
def test_percentiles_and_shares_are_those_of_the_finds(seed: int, top_k: int, pieces: int) -> None:
    summary, ages, ranks, _ = _found(seed, top_k, pieces)
    assert summary["samples"] == 20 * pieces
    assert summary["filled"] == pytest.approx(len(ages) / (20 * pieces * top_k))
    assert summary["filled_of_possible"] in (None, 1.0)  # with `any` it finds whatever fits the budget
    if not ages:
        assert summary["reach_days"] is None and summary["levels"]["any"] is None
        return
    assert sum(summary["levels"].values()) == pytest.approx(1)
    assert sum(sum(ages.values()) for ages in summary["by_age"].values()) == pytest.approx(1)
    low, high = np.percentile(ages, [50], method="inverted_cdf")[0], np.percentile(ages, [90], method="inverted_cdf")[0]
    assert summary["reach_days"] * SECONDS_PER_DAY == pytest.approx(low, rel=0.012)
    assert summary["reach_days_p10_p90"][1] * SECONDS_PER_DAY == pytest.approx(high, rel=0.012)
    assert summary["reach_rank"] == pytest.approx(np.percentile(ranks, 50, method="inverted_cdf"), rel=0.012)
    by_history = summary["by_history"].values()
    assert sum(entry["samples"] for entry in by_history) == summary["samples"]
    assert sum(entry["samples"] * entry["found_per_sample"] for entry in by_history) == pytest.approx(len(ages))
    assert sum(summary["scenario"].values()) == pytest.approx(1)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6))
def test_recall_and_ndcg_are_their_definitions(seed: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    first = np.array([100, 100, 300])
    lengths = rng.integers(0, 10, 3)
    end = first + lengths
    chosen = [rng.permutation(np.arange(a, b))[:k] for a, b in zip(first, end, strict=True)]
    read = [np.sort(rng.permutation(np.arange(a, b))[: rng.integers(0, 8)]) for a, b in zip(first, end, strict=True)]
    counts = [len(part) for part in chosen]
    offsets = np.concatenate([[0], np.cumsum([len(part) for part in read])])
    recall, ndcg = agreement(
        np.repeat(np.arange(3), counts),
        np.concatenate([np.arange(1, n + 1) for n in counts]),
        np.concatenate(chosen),
        Pointers(offsets, np.concatenate(read)),
        end,
    )
    true = []
    for want, got in zip(chosen, read, strict=True):
        if len(want):
            hit = [pointer in got for pointer in want]
            weight = [1 / np.log2(r + 2) for r in range(len(want))]
            true.append((sum(hit) / len(want), np.dot(hit, weight) / sum(weight)))
    np.testing.assert_allclose(recall, [pair[0] for pair in true])
    np.testing.assert_allclose(ndcg, [pair[1] for pair in true])


def test_what_lies_within_reach_is_counted_apart() -> None:
    store, _ = random_store(3)
    figures = Figures(store, [ANY], 5, EDGES)
    figures.add_reach(np.arange(store.events))
    shares = figures.summary()["within_reach"]["scenario"]
    scenario = store.column("scenario")
    assert shares == {f"#{i}": pytest.approx((scenario == i).mean()) for i in np.unique(scenario)}
