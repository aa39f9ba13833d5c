"""Batches show exactly the behaviours before the request, the most recent of them, and nobody else's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lsm_cli.data.assembling import Assembler, derangement, visible_end
from lsm_cli.data.epochs import epoch_order
from lsm_cli.data.store import Store


def _assembler(path: Path, max_len: int = 8, split: str = "train", shuffle: int | None = None) -> Assembler:
    store = Store.open(path)
    return Assembler(store, split, list(store.fields.values()), store.targets, max_len, store.statistics, shuffle)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 599), min_size=1, max_size=40), st.integers(0, 50))
def test_histories_are_the_most_recent_strictly_before_the_request(
    small_store: Path, rows: list[int], max_len: int
) -> None:
    assembler = _assembler(small_store, max_len)
    store, samples = assembler.store, assembler.store.samples("train")
    batch = assembler.batch(np.array(rows))
    for place, row in enumerate(rows):
        user, request = int(samples.column("user")[row]), int(samples.column("time")[row])
        own = range(store.offsets[user], store.offsets[user + 1])
        visible = [event for event in own if store.column("time")[event] < request]
        kept = visible[max(0, len(visible) - max_len) :]
        start, stop = int(batch.offsets[place]), int(batch.offsets[place + 1])
        assert batch.history["item"][start:stop].tolist() == [int(store.column("item")[event]) for event in kept]
        assert batch.age[start:stop].tolist() == [request - int(store.column("time")[event]) for event in kept]
        assert batch.rank[start:stop].tolist() == list(range(len(kept), 0, -1))
        nodes = [int(store.column("category")[event]) for event in kept]
        assert batch.history["category1"][start:stop].tolist() == [int(store.ancestors[node, 0]) for node in nodes]
    assert (batch.age > 0).all(), "an event at the request's time is future"


def test_labels_are_missing_where_a_target_was_not_observed(small_store: Path) -> None:
    batch = _assembler(small_store).batch(np.arange(10))
    assert not batch.labels[:, 0].isnan().any()
    assert batch.labels[:, 1].isnan().tolist() == [False, True] * 5


def test_calendar_is_utc(small_store: Path) -> None:
    assembler = _assembler(small_store)
    batch = assembler.batch(np.arange(5))
    for row in range(5):
        moment = np.datetime64(int(assembler.time[row]) + assembler.store.base, "s").item()
        assert batch.calendar[row].tolist() == [moment.hour, moment.weekday()]


def test_visible_end_equals_stored_pointers(small_store: Path) -> None:
    store = Store.open(small_store)
    samples = store.samples("train")
    found = visible_end(store, samples.column("user").astype(np.int64), samples.column("time"))
    assert np.array_equal(found, samples.column("end"))


def test_shuffled_histories_belong_to_others_and_stay_in_the_past(small_store: Path) -> None:
    plain, shuffled = _assembler(small_store), _assembler(small_store, shuffle=3)
    index = np.arange(300)
    assert (shuffled.borrowed != np.arange(plain.store.users)).all()
    batch = shuffled.batch(index)
    assert (batch.age > 0).all()
    assert torch.equal(batch.target["item"], plain.batch(index).target["item"])
    assert not torch.equal(batch.offsets, plain.batch(index).offsets)


@pytest.mark.parametrize("size", [1, 2, 3, 1000])
def test_derangement_moves_everyone(size: int) -> None:
    moved = derangement(size, 5)
    assert sorted(moved) == list(range(size))
    assert size == 1 or (moved != np.arange(size)).all()


def test_epoch_order_is_a_function_of_seed_and_epoch() -> None:
    assert np.array_equal(epoch_order(100, 1, 2), epoch_order(100, 1, 2))
    assert not np.array_equal(epoch_order(100, 1, 2), epoch_order(100, 1, 3))
    assert sorted(epoch_order(100, 1, 2)) == list(range(100))
