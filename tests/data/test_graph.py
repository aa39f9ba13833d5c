"""The item graph against a literal count; nothing after the last training request is in it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lsm_cli.data import graph
from lsm_cli.data.graph import Graph, item_graph
from lsm_cli.data.store import Store


def _literal(store: Store, window: int) -> dict[tuple[int, int], int]:
    """User by user, pair by pair."""
    end = max(store.samples("train").column("time").tolist())
    rows, found = store.fields["item"].rows, {}
    for user in range(store.users):
        span = range(store.offsets[user], store.offsets[user + 1])
        item = [int(store.column("item")[i]) for i in span if store.column("time")[i] < end]
        item, near = [i for i in item if 2 <= i < rows - 1], set()
        for place, one in enumerate(item):
            for other in item[place + 1 : place + 1 + window]:
                if one != other:
                    near |= {(one, other), (other, one)}
        for pair in near:
            found[pair] = found.get(pair, 0) + 1
    return {pair: users for pair, users in found.items() if users > 1}


def _edges(found: Graph) -> dict[tuple[int, int], int]:
    item = np.repeat(np.arange(len(found.offsets) - 1), np.diff(found.offsets))
    return dict(zip(zip(item.tolist(), found.neighbour.tolist(), strict=True), found.count.tolist(), strict=True))


@pytest.mark.parametrize("window", [1, 3, 100])
@pytest.mark.parametrize("pairs", [1, 500, 1 << 24])
def test_counts_equal_brute_force_in_any_number_of_passes(
    small_store: Path, window: int, pairs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph, "EVENTS", 100)
    store = Store.open(small_store)
    assert _edges(item_graph(store, window, pairs)) == _literal(store, window)


def test_only_the_strongest_neighbours_stay(small_store: Path) -> None:
    store, most = Store.open(small_store), 3
    every, kept = _literal(store, 5), _edges(item_graph(store, 5, most=most))
    items = sorted({one for one, _ in every})
    strongest = {
        (one, other)
        for one in items
        for other in sorted((o for o in items if (one, o) in every), key=lambda o: (-every[one, o], o))[:most]
    }
    assert kept == {pair: every[pair] for pair in strongest | {(b, a) for a, b in strongest}}


def test_what_happens_after_training_changes_nothing(tmp_path: Path) -> None:
    from tests.small import write_store

    path = write_store(tmp_path / "store", seed=3)
    before = item_graph(Store.open(path), 4)
    time, item = (np.load(path / "events" / f"{name}.npy") for name in ("time", "item"))
    requests = np.load(path / "samples/train/time.npy")
    requests = np.minimum(requests, 2500)
    np.save(path / "samples/train/time.npy", requests)
    earlier = item_graph(Store.open(path), 4)
    assert earlier.count.sum() < before.count.sum()
    late = time >= requests.max()
    assert late.any() and not late.all()
    item[late] = np.random.default_rng(0).integers(2, 45, late.sum())
    np.save(path / "events/item.npy", item)
    changed = item_graph(Store.open(path), 4)
    for name in ("offsets", "neighbour", "count"):
        assert np.array_equal(getattr(changed, name), getattr(earlier, name))
