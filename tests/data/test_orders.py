"""The search index: built with the store or added later, the same orders."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from lsm_cli.data.building import orders
from lsm_cli.data.building.orders import add_orders
from lsm_cli.data.store import Store
from lsm_cli.engine.run import identity
from lsm_cli.errors import InputError, LsmError
from lsm_cli.main import app
from tests.data.building import DESCRIPTION, EVENTS, SAMPLES, anchors, build, build_rows, event, write
from tests.small import write_store


def _rows(count: int = 300) -> list:
    rng = np.random.default_rng(0)
    return [
        event(int(u), int(i), int(t), brand=int(b))
        for u, i, t, b in zip(
            rng.integers(0, 9, count),
            rng.integers(1, 30, count),
            rng.integers(0, 9, count),
            rng.integers(0, 4, count),
            strict=True,
        )
    ]


def _check(store: Store) -> None:
    assert store.index
    for name in store.index:
        level = store.fields[name].level
        values = np.asarray(store.column("category" if level else name)).astype(np.int64)
        if level:
            values = store.ancestors[values, level - 1]
        order = np.asarray(store.order(name)).astype(np.int64)
        for user in range(store.users):
            first, end = store.offsets[user], store.offsets[user + 1]
            mine, own = order[first:end], values[first:end]
            expected = np.lexsort((np.arange(end - first), own))
            np.testing.assert_array_equal(mine, expected, err_msg=f"{name} of user {user}")


def test_orders_are_by_value_and_time(tmp_path: Path) -> None:
    store = build_rows(tmp_path, _rows(), anchors())
    assert {"item", "category1", "category2"} <= set(store.index)
    _check(store)


def test_buckets_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = build_rows(tmp_path / "a", _rows(), anchors())
    monkeypatch.setattr(orders, "ROWS", 40)
    many = build_rows(tmp_path / "b", _rows(), anchors())
    assert one.manifest["index"] == many.manifest["index"]


def test_an_index_added_later_is_the_same(tmp_path: Path) -> None:
    built = build_rows(tmp_path / "a", _rows(), anchors())
    bare = build_rows(tmp_path / "b", _rows(), anchors(), index=False)
    assert bare.index == [] and not (bare.path / "index").exists()
    before = identity(bare)["files"]
    done = CliRunner().invoke(app, ["build-sequences", "--index-only", "--out", str(bare.path), "--json", "-q"])
    assert done.exit_code == 0 and json.loads(done.stdout)["index"] == built.index
    later = Store.open(bare.path)
    assert later.manifest["index"] == built.manifest["index"]
    assert identity(later)["files"] == before  # a run goes on with its store
    add_orders(bare.path)  # again
    assert Store.open(bare.path).manifest["index"] == built.manifest["index"]
    assert not list(bare.path.glob(".*"))


def test_long_histories_take_four_bytes(tmp_path: Path) -> None:
    path = write_store(tmp_path / "short", users=3, longest=20)
    add_orders(path)
    assert Store.open(path).order("item").dtype == np.uint16
    lengths = np.array([0, 70_000])
    offsets = np.array([0, 0, 70_000])
    work = orders.Workspace(tmp_path / "work")
    ids = np.random.default_rng(0).integers(2, 9, lengths.sum())
    orders.write_orders(work, offsets, {"item": lambda part: ids[part]})
    order = np.load(tmp_path / "work/index/item.npy")
    assert order.dtype == np.uint32
    np.testing.assert_array_equal(order, np.argsort(ids, kind="stable"))


@pytest.mark.parametrize(("longest", "dtype"), [(1 << 16, np.uint16), ((1 << 16) + 1, np.uint32)])
def test_the_last_position_fits(tmp_path: Path, longest: int, dtype: type) -> None:
    work = orders.Workspace(tmp_path)
    ids = np.arange(longest, 0, -1)  # the last event comes first
    orders.write_orders(
        work, np.array([0, longest, longest + 3]), {"item": lambda part: np.append(ids, [7, 5, 6])[part]}
    )
    order = np.load(tmp_path / "index/item.npy")
    assert order.dtype == dtype
    np.testing.assert_array_equal(order, np.append(np.arange(longest)[::-1], [1, 2, 0]))


def test_adding_an_index_leaves_the_other_files_alone(tmp_path: Path) -> None:
    path = write_store(tmp_path / "store")
    before = {file: file.read_bytes() for file in sorted(path.rglob("*.npy"))}
    known_as = identity(Store.open(path))
    add_orders(path)
    assert {file: file.read_bytes() for file in sorted(path.rglob("*.npy")) if file.parent.name != "index"} == before
    assert identity(Store.open(path)) == known_as
    _check(Store.open(path))


def test_a_store_without_events_has_no_orders(tmp_path: Path) -> None:
    path = write_store(tmp_path / "store", longest=0)
    assert add_orders(path)["index"] == {"fields": [], "files": {}}
    assert Store.open(path).index == [] and not (path / "index").exists()


def test_two_at_once_are_refused(tmp_path: Path) -> None:
    path = write_store(tmp_path / "store")
    (path / ".index.building").mkdir()
    handle = os.open(path / ".index.building", os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(LsmError, match="another process"):
        add_orders(path)
    os.close(handle)


def test_no_store_no_index(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a store"):
        add_orders(tmp_path)


def test_a_field_may_be_called_like_a_category(tmp_path: Path) -> None:
    def named(rows: list) -> list:
        return [{("category_id" if key == "brand" else key): value for key, value in row.items()} for row in rows]

    write(tmp_path, "events", named(_rows()))
    write(tmp_path, "samples", [row | {"category_id": 1} for row in anchors()])
    events, samples = EVENTS | {"fields": ["category_id"]}, SAMPLES | {"fields": ["category_id"]}
    store = build(tmp_path, DESCRIPTION | {"events": [events], "samples": samples})
    assert "category_id" in store.index
    _check(store)
