"""The item graph against a literal count; nothing that a held-out request could tell about is in it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lsm_cli.data import graph
from lsm_cli.data.graph import Graph, item_graph, training_ends
from lsm_cli.data.store import Store
from tests.small import write_store


def _literal(store: Store, window: int, own: bool = True) -> dict[tuple[int, int], int]:
    """User by user, pair by pair; own: cut at the user's first request of validation or test, too."""
    last = max(store.samples("train").column("time").tolist())
    held_out = [store.samples(split) for split in ("valid", "test")] if own else []
    rows, found = store.fields["item"].rows, {}
    for user in range(store.users):
        mine = [part.column("time")[part.column("user") == user].tolist() for part in held_out]
        end = min([last, *(time for times in mine for time in times)])
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
    assert _edges(item_graph(store, window, pairs)) == _literal(store, window) != _literal(store, window, own=False)


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


def test_ticks_may_lie_below_zero(tmp_path: Path) -> None:
    path = write_store(tmp_path / "store")
    wanted = _literal(Store.open(path), 4)
    for file in path.glob("**/time.npy"):
        np.save(file, np.load(file) - 10_000)
    assert _edges(item_graph(Store.open(path), 4)) == wanted


def test_a_split_by_time_needs_no_cut_but_one(tmp_path: Path) -> None:
    path = write_store(tmp_path / "store")
    for number, split in enumerate(("train", "valid", "test")):
        file = path / "samples" / split / "time.npy"
        np.save(file, np.load(file) // 3 + 2_000 * number)
    store = Store.open(path)
    last = store.samples("train").column("time").max()
    assert (training_ends(store) == last).all() and last < store.column("time").max()
    assert _edges(item_graph(store, 4)) == _literal(store, 4, own=False)


def test_in_a_split_by_user_the_outcome_of_a_request_and_what_follows_change_nothing(tmp_path: Path) -> None:
    path = write_store(tmp_path / "store")
    offsets, time, item = (np.load(path / "events" / f"{name}.npy") for name in ("offsets", "time", "item"))
    rng, owner = np.random.default_rng(0), np.repeat(np.arange(60), np.diff(offsets))
    first = np.full(60, 10_000)
    for split, users in (("train", range(40)), ("valid", range(40, 50)), ("test", range(50, 60))):
        folder = path / "samples" / split
        rows = len(np.load(folder / "user.npy"))
        held_out = rng.choice(np.flatnonzero(np.isin(owner, users)), rows)  # a request at the moment of its own outcome
        np.save(folder / "user.npy", owner[held_out].astype(np.int32))
        np.save(folder / "time.npy", time[held_out].astype(np.int64))
        if split != "train":
            np.minimum.at(first, owner[held_out], time[held_out])

    def found(changed: np.ndarray) -> dict[tuple[int, int], int]:
        other = np.where(changed, rng.integers(2, 45, len(item)), item).astype(item.dtype)
        np.save(path / "events/item.npy", other)
        return _edges(item_graph(Store.open(path), 4))

    whole = found(np.zeros(len(item), bool))
    late, held = time >= first[owner], owner >= 40
    assert late.any() and (held & ~late).any()
    assert found(late) == whole != found(held & ~late), "what lies before their requests counts"
