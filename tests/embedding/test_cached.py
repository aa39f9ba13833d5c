"""A table of which the device holds some rows does, to the bit, what a whole table does."""

from __future__ import annotations

import gc
import os
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lsm_cli.embedding import tables, tiers
from lsm_cli.embedding.cached import CachedTable
from lsm_cli.embedding.optimizer import RowOptimizer, row_optimizer
from lsm_cli.embedding.slots import Slots
from lsm_cli.embedding.tables import Table
from lsm_cli.embedding.tiers import Tier
from lsm_cli.errors import LsmError

ROWS, DIM = 40, 3
IDS = st.lists(st.integers(0, ROWS - 1), min_size=1, max_size=30)
ACTIONS = st.lists(
    st.tuples(st.sampled_from(["step", "step", "between", "look", "expect", "save", "load", "reset", "skip"]), IDS),
    min_size=1,
    max_size=25,
)
Pair = tuple[Table, RowOptimizer]


def _pair(name: str, dtype: torch.dtype, tier: Tier | None = None) -> Pair:
    if tier is None:
        return Table(ROWS, DIM, 0.5, 7, dtype), row_optimizer(name, ROWS, DIM)
    optimizer = row_optimizer(name, tier.held(ROWS), DIM)
    return CachedTable(ROWS, DIM, 0.5, 7, dtype, optimizer, tier), optimizer


def _state(pair: Pair) -> dict[str, torch.Tensor]:
    return {name: value.clone() for part in pair for name, value in part.state_dict().items()}


def _step(pair: Pair, ids: list[int], number: int, between: list[int] | None = None) -> torch.Tensor:
    torch.manual_seed(number)  # rounding by chance
    table, optimizer = pair
    rows = table.fetch(torch.tensor(ids), torch.tensor(ids[:2]), grad=True)
    slope = torch.linspace(-1, 2, DIM) * (number % 5 - 1.5)
    (rows.values[torch.cat(rows.local)].sin() * slope).sum().backward()
    if between is not None:  # somebody looks at other rows, for which these may make room
        table.fetch(torch.tensor(between), grad=False)
    table.update(rows, optimizer, lr=0.1)
    return rows.values.detach()


def _same(one: Any, other: Any) -> None:
    for a, b in zip(one.values(), other.values(), strict=True):
        assert torch.equal(a, b)


@settings(deadline=None, max_examples=100)
@given(
    ACTIONS,
    st.integers(1, 39),
    st.sampled_from(["host", "file"]),
    st.sampled_from(["adagrad", "adam"]),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_whatever_happens_it_equals_the_whole_table(
    actions: list[tuple[str, list[int]]], cache: int, kind: str, name: str, dtype: torch.dtype
) -> None:
    cached, whole = _pair(name, dtype, Tier(kind, float(max(cache, 2)))), _pair(name, dtype)
    kept: list[dict[str, torch.Tensor]] = []
    for number, (action, ids) in enumerate(actions):
        if action == "step":
            assert torch.equal(_step(cached, ids, number), _step(whole, ids, number))
        elif action == "between":
            others = [ROWS - 1 - one for one in ids]
            assert torch.equal(_step(cached, ids, number, others), _step(whole, ids, number, others))
        elif action == "look":
            found = [pair[0].fetch(torch.tensor(ids), grad=False) for pair in (cached, whole)]
            assert torch.equal(found[0].values, found[1].values) and torch.equal(found[0].index, found[1].index)
        elif action == "expect":
            assert isinstance(cached[0], CachedTable)
            cached[0].expect(torch.tensor(ids), number % 3)
        elif action == "save":
            kept = [_state(cached), _state(whole)]
            _same(*kept)
        elif action == "load" and kept:
            for pair, state in zip((cached, whole), kept, strict=True):
                pair[0].load_state_dict({"weight": state["weight"]})
                if number % 2:  # what scoring loads are weights alone
                    continue
                pair[1].load_state_dict({key: value for key, value in state.items() if key != "weight"})
        elif action == "skip":  # a step whose gradients overflowed
            for pair in (cached, whole):
                pair[0].fetch(torch.tensor(ids), grad=True)
        elif action == "reset":
            for table, optimizer in (cached, whole):
                table.reset()
                for state in optimizer.buffers():
                    state.zero_()
    _same(_state(cached), _state(whole))


@settings(deadline=None, max_examples=60)
@given(st.lists(IDS, min_size=1, max_size=30), st.integers(1, 30))
def test_the_directory_is_consistent(reads: list[list[int]], size: int) -> None:
    slots = Slots(ROWS, size)
    for ids in reads:
        rows = torch.tensor(sorted(set(ids)))[:size]
        slots.begin()
        at = slots.find(rows)
        missing = rows[at < 0]
        if (lack := len(missing) - len(slots.spare)) > 0:
            victims = slots.victims(lack, at[at >= 0])
            assert len(victims) >= lack and not set(victims.tolist()) & set(at.tolist())
            assert slots.row[victims].tolist() == sorted(slots.row[victims].tolist())
            slots.release(victims)
        at[at < 0] = slots.take(missing)
        slots.use(at)
        assert slots.row[at].tolist() == rows.tolist() and len(set(at.tolist())) == len(rows)
        held = (slots.row >= 0).nonzero().squeeze(1)
        assert slots.find(slots.row[held]).tolist() == held.tolist()
        assert sorted([*held.tolist(), *slots.spare.tolist()]) == list(range(size))
        assert int((slots.of >= 0).sum()) == len(held)


def test_rows_used_often_stay() -> None:
    slots = Slots(1000, 32)
    for number in range(60):
        rows = torch.tensor([*range(8), *range(8 + 16 * number, 24 + 16 * number)])
        slots.begin()
        at = slots.find(rows)
        missing = rows[at < 0]
        if number > 4:
            assert missing.tolist() == list(range(8 + 16 * number, 24 + 16 * number))
        if (lack := len(missing) - len(slots.spare)) > 0:
            slots.release(slots.victims(lack, at[at >= 0]))
        at[at < 0] = slots.take(missing)
        slots.use(at)


def test_what_was_used_long_ago_makes_room() -> None:
    slots = Slots(100, 8)
    first = slots.take(torch.arange(4))
    for _ in range(20):
        slots.begin()
        slots.use(first)
    second = slots.take(torch.arange(4, 8))
    for _ in range(100):
        slots.begin()
        slots.use(second)
    assert set(slots.victims(4, second[:0]).tolist()) == set(first.tolist())


@pytest.mark.parametrize("kind", ["host", "file"])
def test_counts(kind: str) -> None:
    table, optimizer = pair = _pair("adagrad", torch.float32, Tier(kind, 10.0))
    assert isinstance(table, CachedTable)
    _step(pair, [0, 1, 2, 3], 0)
    _step(pair, [2, 3, 4, 5], 1)
    assert (table.counts[True].asked, table.counts[True].waited, table.counts[True].hit) == (8, 6, 0.25)
    table.expect(torch.tensor([5, 5, 6, 7]), 1)
    _step(pair, [5, 6, 7], 2)
    assert (table.counts[True].waited, table.counts[True].ahead, table.counts[True].pieces) == (6, 2, 0)
    assert table.counts[True].written == 0 and table.counts[False].asked == 0
    table.fetch(torch.arange(20), grad=False)
    assert (table.counts[False].waited, table.counts[False].pieces, table.counts[True].written) == (12, 1, 0)
    _step(pair, list(range(20, 30)), 3)
    assert table.counts[True].written == 8, "what steps had changed made room, and nothing else is written"
    assert optimizer.total.shape == (10,) and table.cache.shape == (10, DIM)


def test_a_table_that_is_only_read_writes_nothing() -> None:
    table, _ = _pair("adagrad", torch.float32, Tier("file", 8.0))
    assert isinstance(table, CachedTable)
    for start in range(0, ROWS, 5):
        table.fetch(torch.arange(start, start + 5), grad=False)
    assert table.writes == 0 and table.counts[True].written == 0
    assert table.counts[False].asked == ROWS


def test_a_row_that_was_written_while_it_was_on_its_way_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 5 is read for the next batch; then the step under way brings it in, moves it and lets it go."""
    cached, whole = _pair("adagrad", torch.float32, Tier("host", 4.0)), _pair("adagrad", torch.float32)
    table = cached[0]
    assert isinstance(table, CachedTable)
    read, go_on = threading.Event(), threading.Event()
    copies = table._copies

    def slowly(rows: torch.Tensor) -> list[torch.Tensor]:
        found = copies(rows)
        if threading.current_thread() is not threading.main_thread():
            read.set()
            assert go_on.wait(20)
        return found

    monkeypatch.setattr(table, "_copies", slowly)
    thread = threading.Thread(target=table.expect, args=(torch.tensor([5]), 1))
    thread.start()
    assert read.wait(20)
    for number, ids in enumerate([[5, 6], [7, 8, 9, 10], [7]]):
        assert torch.equal(_step(cached, ids, number), _step(whole, ids, number))
    assert int(table.slots.find(torch.tensor([5]))) == -1 and table.writes
    go_on.set()
    thread.join()
    assert int(table.slots.find(torch.tensor([5]))) >= 0, "there was room, so it was taken"
    assert torch.equal(_step(cached, [5], 3), _step(whole, [5], 3))
    _same(_state(cached), _state(whole))


@pytest.mark.parametrize("kind", ["host", "file"])
def test_a_thread_that_brings_rows_changes_no_result(kind: str) -> None:
    make = torch.Generator().manual_seed(0)
    batches = [(ROWS ** torch.rand(25, generator=make)).long().clamp(max=ROWS - 1) for _ in range(100)]
    cached, whole = _pair("adam", torch.float32, Tier(kind, 20.0)), _pair("adam", torch.float32)
    table = cached[0]
    assert isinstance(table, CachedTable)
    running = True

    def bring() -> None:
        number = 0
        while running:
            table.expect(batches[number % len(batches)], 1 + number % 3)
            number += 1
            time.sleep(1e-4)  # the lock goes to whoever comes first

    thread = threading.Thread(target=bring)
    thread.start()
    try:
        for number, batch in enumerate(batches):
            assert torch.equal(_step(cached, batch.tolist(), number), _step(whole, batch.tolist(), number))
            if not number % 40:
                _same(_state(cached), _state(whole))
    finally:
        running = False
        thread.join()
    _same(_state(cached), _state(whole))


def test_first_weights_are_drawn_in_pieces_as_they_would_be_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for rows, dim in ((1, 1), (3, 5), (16, 1), (17, 1), (33, 1), (48, 3), (50, 1), (100, 7), (64, 16)):
        whole = torch.empty(rows, dim).normal_(0, 0.3, generator=torch.Generator().manual_seed(5))
        whole[[0, min(1, rows - 1), rows - 1]] = 0
        for piece in (16, 32, 1 << 16):
            monkeypatch.setattr(tables, "PIECE", piece)
            assert torch.equal(Table(rows, dim, 0.3, 5).weight, whole), (rows, dim, piece)


def test_a_full_disk_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(LsmError, match=r"no room for a table of 160 B in .*No space left on device.*TMPDIR"):
        Tier("file", 4.0).room((10, 4), torch.float32)


def test_the_scratch_file_has_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiers.tempfile, "tempdir", str(tmp_path))
    room = Tier("file", 4.0).room((1000, 4), torch.bfloat16)
    room.fill_(2)
    assert not list(tmp_path.iterdir()) and room.float().sum() == 8000


def test_how_much_the_device_holds() -> None:
    assert Tier("device", 0.1).held(10**6) == 10**6
    assert Tier("host", 0.1).held(10**6) == 10**5
    assert Tier("host", 0.1).held(10_000) == tiers.LEAST and Tier("file", 0.1).held(50) == 50
    assert Tier("host", 7.0).held(10**6) == 7 and Tier("host", 1.0).held(10**6) == 10**6


def test_memory_goes_with_the_table() -> None:
    table, optimizer = _pair("adam", torch.float32, Tier("host", 4.0))
    assert isinstance(table, CachedTable)
    home = weakref.ref(table.homes[0])
    gc.disable()
    try:
        del table, optimizer
        assert home() is None
    finally:
        gc.enable()


def test_what_does_not_fit_is_not_loaded() -> None:
    table, optimizer = _pair("adagrad", torch.float32, Tier("host", 4.0))
    with pytest.raises(RuntimeError, match=r"weight: has the shape \(41, 3\), not \(40, 3\)"):
        table.load_state_dict({"weight": torch.zeros(ROWS + 1, DIM)})
    with pytest.raises(RuntimeError, match=r"Missing key.*weight"):
        table.load_state_dict({})
    with pytest.raises(RuntimeError, match=r"Missing key.*total"):
        optimizer.load_state_dict({})
    assert table.load_state_dict({"weights": torch.zeros(1)}, strict=False).unexpected_keys == ["weights"]
