"""Samples made from events, and logs with one row a sample and the history in list columns."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from lsm_cli.data.store import Store
from lsm_cli.errors import InputError
from tests.data.building import (
    DESCRIPTION,
    EVENTS,
    SAMPLES,
    Row,
    anchors,
    build,
    data_bytes,
    event,
    sample,
    seconds,
    vocabulary,
    write,
)


def log(size: int = 600, items: int = 30) -> list[Row]:
    rng = np.random.default_rng(3)
    columns = (
        rng.integers(0, 12, size),
        rng.integers(1, items, size),
        np.sort(rng.integers(0, 500, size)),
        rng.integers(0, 3, size),
    )
    return [
        event(int(u), int(i), int(t)) | {"act": ("view", "cart", "buy")[a]} for u, i, t, a in zip(*columns, strict=True)
    ]


def from_events(**options: Any) -> dict[str, Any]:
    block = EVENTS | {"action": {"column": "act"}}
    made = {"positive": ["buy", "cart"], "negatives": 3} | options
    return DESCRIPTION | {"events": [block], "samples": {"from_events": made}, "split": {}}


def met(rows: list[Row], row: Row) -> set[int]:
    """Items of the row's domain that somebody had met before it."""
    return {e["item"] for e in rows if e["ts"] < row["ts"] and e.get("where") == row.get("where")}


def choice(rows: list[Row], row: Row) -> set[int]:
    """Of those, what the user did not take at the same moment."""
    return met(rows, row) - {
        e["item"] for e in rows if (e["user"], e["ts"]) == (row["user"], row["ts"]) and e["act"] != "view"
    }


def groups(store: Store) -> list[list[int]]:
    """Items of each request, its positive first, in the order of the splits."""
    names = vocabulary(store, "item")
    items = [names[i] for split in ("train", "valid", "test") for i in store.samples(split).column("item").tolist()]
    size = 1 + store.manifest["description"]["samples"]["from_events"]["negatives"]
    return [[int(item or 0) for item in items[start : start + size]] for start in range(0, len(items), size)]


@pytest.mark.parametrize("draw", ["popularity", "uniform"])
def test_a_positive_event_becomes_a_request_with_negatives_seen_before(tmp_path: Path, draw: str) -> None:
    rows = log()
    write(tmp_path, "events", rows)
    store = build(tmp_path, from_events(draw=draw))
    born: dict[str, int] = {}
    for row in rows:
        born.setdefault(str(row["item"]), row["ts"])
    positive = [row for row in rows if row["act"] != "view"]
    known = [row for row in positive if born[str(row["item"])] < row["ts"]]
    wanted = [row for row in known if choice(rows, row)]
    assert store.manifest["dropped"]["samples"] == {
        "of an item that nobody had met": len(positive) - len(known),
        "from before there was a choice of items": len(known) - len(wanted),
    }
    assert len(positive) > len(known) > len(wanted)
    assert store.targets == ["buy", "cart"] and sum(store.splits.values()) == 4 * len(wanted)
    items, users = vocabulary(store, "item"), vocabulary(store, "user")
    place = 0
    for split in ("train", "valid", "test"):  # by time, as the log is
        part = store.samples(split)
        times = seconds(part.column("time"), store)
        for start in range(0, len(part), 4):
            row, group = wanted[place], range(start, start + 4)
            place += 1
            drawn = [items[part.column("item")[i]] for i in group]
            assert drawn[0] == str(row["item"]) and drawn[0] not in drawn[1:]
            assert all(times[i] == row["ts"] and users[part.column("user")[i]] == str(row["user"]) for i in group)
            assert all(born[str(item)] < row["ts"] for item in drawn[1:])
            other = "cart" if row["act"] == "buy" else "buy"
            assert [part.column(f"label.{row['act']}")[i] for i in group] == [1, 0, 0, 0]
            assert [part.column(f"label.{other}")[i] for i in group] == [-1] * 4
            seen = sum(e["user"] == row["user"] and e["ts"] < row["ts"] for e in rows)
            assert (part.column("end")[start] - store.offsets[part.column("user")[start]]) == seen


@pytest.mark.parametrize("draw", ["popularity", "uniform"])
def test_what_was_taken_at_the_same_moment_is_no_negative(tmp_path: Path, draw: str) -> None:
    """A log that knows the day alone, and users who take much of what there is on one."""
    rows = [row | {"ts": row["ts"] // 100 * 100} for row in log(items=8)]
    write(tmp_path, "events", rows)
    store = build(tmp_path, from_events(draw=draw))
    wanted = [row for row in rows if row["act"] != "view" and row["item"] in met(rows, row) and choice(rows, row)]
    found = groups(store)
    assert [group[0] for group in found] == [row["item"] for row in wanted]
    assert all(set(group[1:]) <= choice(rows, row) for group, row in zip(found, wanted, strict=True))
    assert any(len(choice(rows, row)) == 1 for row in wanted)


@pytest.mark.parametrize("draw", ["popularity", "uniform"])
def test_candidates_were_met_in_the_domain_of_the_request(tmp_path: Path, draw: str) -> None:
    """An item met in another domain only would always be the positive."""
    rng = np.random.default_rng(0)
    rows = [row | {"where": ("feed", "shop")[n]} for row, n in zip(log(), rng.integers(0, 2, 600), strict=True)]
    write(tmp_path, "events", rows)
    raw = from_events(draw=draw)
    raw["events"] = [raw["events"][0] | {"domain": {"column": "where"}}]
    store = build(tmp_path, raw | {"taxonomy": {"shared": True}})
    positive = [row for row in rows if row["act"] != "view"]
    known = [row for row in positive if row["item"] in met(rows, row)]
    wanted = [row for row in known if choice(rows, row)]
    found = groups(store)
    assert [group[0] for group in found] == [row["item"] for row in wanted]
    assert all(set(group) <= met(rows, row) for group, row in zip(found, wanted, strict=True))
    lost = {"of an item that nobody had met in its domain": len(positive) - len(wanted)}
    assert store.manifest["dropped"]["samples"] == lost and len(known) == len(wanted)


def test_a_domain_of_one_item_has_no_requests(tmp_path: Path) -> None:
    """Negatives from elsewhere would be known by their item, which is never met in this domain."""
    rows = [row | {"where": "feed"} for row in log()]
    rows += [event(3, 5, time, brand=1) | {"act": "buy", "where": "shop"} for time in (250, 251)]
    rows.sort(key=lambda row: row["ts"])
    write(tmp_path, "events", rows)
    raw = from_events()
    raw["events"] = [raw["events"][0] | {"domain": {"column": "where"}}]
    store = build(tmp_path, raw | {"taxonomy": {"shared": True}})
    shop = next(number for number, name in vocabulary(store, "domain").items() if name == "shop")
    part = store.samples("train")
    assert len(part) and not (np.asarray(part.column("domain")) == shop).any()


def test_nothing_but_taste_tells_positives_from_negatives(tmp_path: Path) -> None:
    """Items come up new all the time; that one was never met would say that it is the positive."""
    rng = np.random.default_rng(0)
    rows = [event(n % 9, int(1 + n // 3 if rng.random() < 0.3 else rng.integers(1, 2 + n // 3)), n) for n in range(900)]
    write(tmp_path, "events", rows)
    raw = from_events(positive=[]) | {"events": [EVENTS]}
    raw["samples"] |= {"statistics": {"popularity": ["all"]}}
    part = build(tmp_path, raw).samples("train")
    assert (np.asarray(part.column("stat.popularity.item.all")) > 0).all()


def test_what_is_said_of_candidates_was_known_before(tmp_path: Path) -> None:
    """Items whose category is named when they are bought, and never before."""
    rng = np.random.default_rng(0)
    rows = [event(n % 9, int(rng.integers(1, 40)), n) | {"act": ("view", "buy")[n % 2]} for n in range(400)]
    for row in rows:
        if row["act"] == "view":
            row |= {"c1": None, "c2": None}
    write(tmp_path, "events", rows)
    store = build(tmp_path, from_events(positive=["buy"]))
    items, named = vocabulary(store, "item"), {}
    for row in rows:
        if row["c2"] is not None:
            named.setdefault(str(row["item"]), row["ts"])
    part = store.samples("train")
    times, has = seconds(part.column("time"), store), np.asarray(part.column("category")) > 1
    known = [named.get(items[i], time) < time for i, time in zip(part.column("item").tolist(), times, strict=True)]
    assert has.tolist() == known and 0 < has.mean() < 1


def test_most_candidates_have_no_category(tmp_path: Path) -> None:
    rows = log()
    for row in rows[: len(rows) * 9 // 10]:
        row |= {"c1": None, "c2": None}
    write(tmp_path, "events", rows)
    (note,) = build(tmp_path, from_events()).manifest["notes"]
    assert "samples have no category" in note and note.endswith("name the columns in [items]")


def test_what_memory_cannot_hold_is_said(tmp_path: Path) -> None:
    write(tmp_path, "events", log())
    for out, memory, draw in (("enough", 600 * 32, "popularity"), ("alike", 1 << 10, "uniform")):
        assert not build(tmp_path, from_events(draw=draw), out=out, memory=memory).manifest["notes"]
    (note,) = build(tmp_path, from_events(), memory=599 * 32).manifest["notes"]
    assert "599 of 600 events" in note and "--memory 1GiB" in note


def test_a_rare_domain_is_remembered(tmp_path: Path) -> None:
    rows = [row | {"where": "feed"} for row in log()]
    rare_rows = [row | {"where": "rare"} for row in log()[300:303:2]]
    rows += rare_rows + [row | {"ts": row["ts"] + 50} for row in rare_rows]
    write(tmp_path, "events", sorted(rows, key=lambda row: row["ts"]))
    raw = from_events(positive=["view", "buy", "cart"])
    raw["events"] = [raw["events"][0] | {"domain": {"column": "where"}}]
    store = build(tmp_path, raw | {"taxonomy": {"shared": True}}, memory=150 * 32)
    rare = next(number for number, name in vocabulary(store, "domain").items() if name == "rare")
    assert sum(int((store.samples(split).column("domain") == rare).sum()) for split in store.splits) == 8


def test_attributes_of_items_with_numbers_below_zero(tmp_path: Path) -> None:
    write(tmp_path, "events", [{k: v for k, v in row.items() if k != "brand"} for row in log()])
    write(tmp_path, "items", [{"item": n, "brand": f"b{n}"} for n in range(-40, 30)])
    block = {name: value for name, value in from_events()["events"][0].items() if name != "fields"}
    raw = from_events() | {"events": [block], "items": {"path": "items.parquet", "item": "item", "fields": ["brand"]}}
    store = build(tmp_path, raw)
    items, brands = vocabulary(store, "item"), vocabulary(store, "brand")
    part = store.samples("train")
    for item, brand in zip(part.column("item").tolist(), part.column("brand").tolist(), strict=True):
        assert brands[brand] == f"b{items[item]}"


def test_the_same_seed_draws_the_same_negatives(tmp_path: Path) -> None:
    write(tmp_path, "events", log())
    stores = [
        build(tmp_path, from_events(seed=seed), out=f"s{n}", memory=m)
        for n, (seed, m) in enumerate([(0, 1 << 30), (0, 1 << 15), (1, 1 << 30)])
    ]
    first, again, other = (data_bytes(store) for store in stores)
    assert first == again and first != other


def test_popularity_draws_popular_items(tmp_path: Path) -> None:
    rows = [
        event(n % 7, 1 if n % 10 else 2 + n // 10 % 20, n) | {"act": "buy" if n % 5 == 0 else "view"}
        for n in range(2000)
    ]
    write(tmp_path, "events", rows)
    shares = []
    for draw in ("popularity", "uniform"):
        store = build(tmp_path, from_events(positive=["buy"], draw=draw), out=draw)
        part = store.samples("train")
        drawn = part.column("item")[np.asarray(part.column("label.buy")) == 0]
        shares.append(float((drawn == 2).mean()))  # the most frequent item has the first id
    assert shares[0] > 2 * shares[1]


def test_an_action_that_never_occurs(tmp_path: Path) -> None:
    write(tmp_path, "events", log(50))
    with pytest.raises(InputError, match="no event has the action 'buys'; did you mean 'buy'"):
        build(tmp_path, from_events(positive=["buys"]))


def test_an_action_that_is_named_twice_is_refused(tmp_path: Path) -> None:
    """It would be a target twice."""
    write(tmp_path, "events", log(50))
    with pytest.raises(InputError, match="'buy' is there twice"):
        build(tmp_path, from_events(positive=["buy", "buy"]))


def test_columns_of_samples_that_are_made_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "events", log(50))
    raw = from_events()
    raw["samples"] |= {"fields": {"brand": "brand"}, "scenario": "x"}
    with pytest.raises(InputError, match="from_events makes the samples, so fields and scenario must go"):
        build(tmp_path, raw)


def test_one_item_leaves_nothing_to_draw(tmp_path: Path) -> None:
    write(tmp_path, "events", log(50, items=2))
    with pytest.raises(InputError, match="negatives need a second item"):
        build(tmp_path, from_events())
    assert not (tmp_path / "store").exists()


LISTED: dict[str, Any] = {
    "item": "h_item",
    "time": {"column": "h_ts", "unit": "s"},
    "scenario": {"column": "h_scenario"},
    "category": ["h_c1", "h_c2"],
    "fields": {"brand": "h_brand"},
}


def listed(events: list[Row], samples: list[Row]) -> list[Row]:
    rows = []
    for row in samples:
        mine = sorted(
            (e for e in events if e["user"] == row["user"] and e["ts"] < row["ts"] + 3), key=lambda e: e["ts"]
        )
        rows.append(
            row | {f"h_{name}": [e[name] for e in mine] for name in ("item", "ts", "scenario", "c1", "c2", "brand")}
        )
    return rows


def test_lists_give_the_same_store_as_logs(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    samples = [
        row | {"user": int(u), "ts": 30 + n}
        for n, (row, u) in enumerate(zip(anchors() * 5, rng.integers(0, 4, 20), strict=True))
    ]
    events = [
        event(int(u), int(i), int(t))
        for u, i, t in zip(rng.integers(0, 4, 80), rng.integers(1, 6, 80), rng.integers(0, 40, 80), strict=True)
    ]
    events += events[:5]  # the same thing twice in one second is two events
    reach = {row["user"]: max(s["ts"] for s in samples if s["user"] == row["user"]) for row in samples}
    events = sorted(
        (e for e in events if e["user"] in reach and e["ts"] < reach[e["user"]] + 3), key=lambda e: (e["user"], e["ts"])
    )
    write(tmp_path, "events", events)
    write(tmp_path, "samples", samples)
    write(tmp_path, "lists", listed(events, samples))
    logs = build(tmp_path, DESCRIPTION)
    raw = DESCRIPTION | {"events": [LISTED], "samples": SAMPLES | {"path": "lists.parquet", "layout": "lists"}}
    for out, memory in (("lists", 1 << 30), ("parts", 1 << 10)):
        lists = build(tmp_path, raw, out=out, memory=memory)
        assert data_bytes(lists) == data_bytes(logs)


def test_a_behaviour_that_two_files_have_is_kept_once(tmp_path: Path) -> None:
    events = [event(n % 3, 1 + n % 7, n) for n in range(20)]
    rows = listed(events, [*anchors(), sample(2, 3, 19, 1, "train")])
    raw = DESCRIPTION | {"events": [LISTED], "samples": SAMPLES | {"path": "lists*.parquet", "layout": "lists"}}
    write(tmp_path, "lists", rows)
    whole = data_bytes(build(tmp_path, raw))
    (tmp_path / "lists.parquet").unlink()
    for number in range(2):
        write(tmp_path, f"lists{number}", rows[number * 2 : number * 2 + 2 + number])
    for out, memory in (("two", 1 << 30), ("parts", 1 << 10)):
        assert data_bytes(build(tmp_path, raw, out=out, memory=memory)) == whole


def test_lists_of_different_lengths(tmp_path: Path) -> None:
    rows = listed([event(0, 1, 3), event(0, 2, 4)], anchors())
    rows[0]["h_item"] = [1]
    write(tmp_path, "lists", rows)
    raw = copy.deepcopy(DESCRIPTION) | {
        "events": [LISTED],
        "samples": SAMPLES | {"path": "lists.parquet", "layout": "lists"},
    }
    with pytest.raises(InputError, match="lists 'h_item' and 'h_ts' differ in length in 1 rows"):
        build(tmp_path, raw)
    assert pl.read_parquet(tmp_path / "lists.parquet").height == 4 and not (tmp_path / "store").exists()


def test_what_is_wrong_in_lists_names_the_users_file(tmp_path: Path) -> None:
    rows = [row | {"h_ts": [-1 for _ in row["h_ts"]]} for row in listed([event(0, 1, 3)], anchors())]
    write(tmp_path, "lists", rows)
    raw = DESCRIPTION | {"events": [LISTED], "samples": SAMPLES | {"path": "lists.parquet", "layout": "lists"}}
    with pytest.raises(InputError, match=r"/lists\.parquet: column 'h_ts' .* is negative in every row"):
        build(tmp_path, raw)
