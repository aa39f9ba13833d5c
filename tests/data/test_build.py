"""What a store promises: nothing of the future, the same bytes for the same logs, counts that are right."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from lsm_cli.data.building import encoding, plan
from lsm_cli.data.store import Store
from lsm_cli.errors import InputError
from tests.data.building import (
    DESCRIPTION,
    EVENTS,
    SAMPLES,
    Row,
    anchors,
    build,
    build_rows,
    data_bytes,
    event,
    sample,
    seconds,
    vocabulary,
    write,
)

USERS, ITEMS, TIMES = st.integers(0, 4), st.integers(0, 7), st.integers(0, 20)
SCENARIOS = st.sampled_from(["feed", "search", None])
EVENT_ROWS = st.lists(
    st.builds(event, USERS, ITEMS, TIMES, SCENARIOS, st.sampled_from([1, 2, 10, None])), min_size=1, max_size=40
)
SPLITS, LABELS = st.sampled_from(["train", "valid", "test"]), st.sampled_from([0, 1, None])
SAMPLE_ROWS = st.lists(st.builds(sample, st.integers(0, 6), st.integers(0, 9), TIMES, LABELS, SPLITS), max_size=15)
QUICK = settings(max_examples=15, phases=[Phase.explicit, Phase.generate], deadline=None, derandomize=True)


@QUICK
@given(EVENT_ROWS, SAMPLE_ROWS)
def test_a_sample_sees_its_users_earlier_events_and_nothing_else(events: list[Row], more: list[Row]) -> None:
    samples = anchors() + more
    with tempfile.TemporaryDirectory() as folder:
        store = build_rows(Path(folder), events, samples)
        users, items, brands = (vocabulary(store, name) for name in ("user", "item", "brand"))
        scenarios, times = vocabulary(store, "scenario"), seconds(store.column("time"), store)
        for split in store.splits:
            part = store.samples(split)
            rows = [row for row in samples if row["split"] == split]
            assert len(part) == len(rows)
            for number, row in enumerate(rows):  # samples keep the order of the logs
                user, end = part.column("user")[number], part.column("end")[number]
                visible = range(store.offsets[user], end)
                expected = sorted(
                    (e for e in events if e["user"] == row["user"] and e["ts"] < row["ts"]), key=lambda e: e["ts"]
                )
                assert users[user] == str(row["user"]) and items[part.column("item")[number]] == str(row["item"])
                assert [items[store.column("item")[i]] for i in visible] == [str(e["item"]) for e in expected]
                assert [times[i] for i in visible] == [e["ts"] for e in expected]
                assert [scenarios[store.column("scenario")[i]] for i in visible] == [e["scenario"] for e in expected]
                shown = [None if e["brand"] is None else str(e["brand"]) for e in expected]
                assert [brands[store.column("brand")[i]] for i in visible] == shown
                label = part.column("label.click")[number]
                assert (None if label == -1 else label) == row["label"]
        _check_statistics(store, events, samples)
        _check_trained(store, events, samples)


def _check_statistics(store: Store, events: list[Row], samples: list[Row]) -> None:
    for split in store.splits:
        part = store.samples(split)
        for number, row in enumerate(r for r in samples if r["split"] == split):
            before = [e for e in events if e["ts"] < row["ts"]]
            groups = {
                "any": before,
                "item": [e for e in before if e["item"] == row["item"]],
                "category1": [e for e in before if row["c1"] and e["c1"] == row["c1"]],
                "category2": [e for e in before if row["c2"] and (e["c1"], e["c2"]) == (row["c1"], row["c2"])],
            }
            for name, group in groups.items():
                recent = [e for e in group if e["ts"] >= row["ts"] - 5]
                assert part.column(f"stat.popularity.{name}.all")[number] == len(group)
                assert part.column(f"stat.popularity.{name}.5s")[number] == len(recent)
            seen = [e["ts"] for e in groups["item"]]
            assert part.column("stat.age.item")[number] == (row["ts"] - min(seen) if seen else -1)
            assert part.column("stat.recency.item")[number] == (row["ts"] - max(seen) if seen else -1)


def _check_trained(store: Store, events: list[Row], samples: list[Row]) -> None:
    """Ids below `trained` are those of the training period: before its last request, or in one of its samples."""
    training = [row for row in samples if row["split"] == "train"]
    last = max(row["ts"] for row in training)
    known = {str(e["item"]) for e in events if e["ts"] < last} | {str(row["item"]) for row in training}
    trained = store.manifest["fields"]["item"]["trained"]
    assert {value for number, value in vocabulary(store, "item").items() if 2 <= number < trained} == known


@QUICK
@given(EVENT_ROWS, SAMPLE_ROWS)
def test_csv_parquet_and_ndjson_give_the_same_bytes(events: list[Row], more: list[Row]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = []
        for form in ("parquet", "csv", "ndjson"):
            here = Path(folder) / form
            write(here, "events", events, form)
            write(here, "samples", anchors() + more, form)
            raw = copy.deepcopy(DESCRIPTION)
            raw["events"][0]["path"], raw["samples"]["path"] = f"events.{form}", f"samples.{form}"
            found.append(data_bytes(build(here, raw)))
        assert found[0] == found[1] == found[2]


def test_memory_does_not_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    size = 5000
    events = [
        event(int(u), int(i), int(t))
        for u, i, t in zip(rng.integers(0, 50, size), rng.integers(0, 90, size), rng.integers(0, 60, size), strict=True)
    ]
    whole = data_bytes(build_rows(tmp_path, events, anchors()))
    bounds = encoding.bucket_bounds
    monkeypatch.setattr(encoding, "bucket_bounds", lambda counts, rows: bounds(counts, 300))
    monkeypatch.setattr(plan, "LEAST_ROWS", 128)
    monkeypatch.setattr("lsm_cli.data.building.statistics.LEAST_ROWS", 256)
    assert whole == data_bytes(build_rows(tmp_path, events, anchors(), memory=1 << 10, out="parts"))


def test_several_blocks_of_different_depth_and_time_unit(tmp_path: Path) -> None:
    write(tmp_path, "events", [event(0, 1, 3), event(0, 2, 5)])
    frame = pl.DataFrame({"who": [0, 0], "what": [3, 1], "when": [4500, 8000], "kind": ["click", "like"]})
    frame.write_csv(tmp_path / "video.csv")
    write(tmp_path, "samples", anchors())
    video = {
        "path": "video.csv", "user": "who", "item": "what", "time": {"column": "when", "unit": "ms"},
        "scenario": "video", "action": {"column": "kind"}, "domain": "content",
    }  # fmt: skip
    store = build(tmp_path, DESCRIPTION | {"events": [EVENTS | {"domain": "ad"}, video]})
    assert store.ticks_per_second == 1000 and store.base == 3000
    assert store.column("time")[: store.offsets[1]].tolist() == [0, 1500, 2000, 5000]
    domains, actions = vocabulary(store, "domain"), vocabulary(store, "action")
    assert [domains[i] for i in store.column("domain")] == ["ad", "content", "ad", "content"]
    assert [actions[i] for i in store.column("action")] == [None, "click", None, "like"]
    assert store.column("category")[1] == 1 and store.samples("train").column("end").tolist() == [4, 4]


def test_times_in_every_spelling_agree(tmp_path: Path) -> None:
    moments = [1_396_310_400 + 86_400 * day for day in (0, 3, 40)]
    whole = pl.Series(moments)
    stamp = pl.from_epoch(whole)
    shown = stamp.dt.strftime
    spelled: dict[str, tuple[pl.Series, dict[str, str]]] = {
        "s": (whole, {"unit": "s"}),
        "ms": (whole * 1000, {"unit": "ms"}),
        "float": (whole.cast(pl.Float64), {"unit": "s"}),
        "text": (whole.cast(pl.String), {"unit": "s"}),
        "datetime": (stamp, {}),
        "zoned": (stamp.dt.replace_time_zone("UTC").dt.convert_time_zone("Asia/Shanghai"), {}),
        "date": (stamp.dt.date(), {}),
        "iso": (shown("%Y-%m-%dT%H:%M:%SZ"), {}),
        "day": (shown("%Y-%m-%d"), {}),
        "format": (shown("%d/%m/%Y %H:%M"), {"format": "%d/%m/%Y %H:%M"}),
        "hour": (shown("%Y%m%d%H").cast(pl.Int64), {"format": "%Y%m%d%H"}),
        "no year": (shown("%m%d").cast(pl.Int64), {"format": "%m%d", "prefix": "2014"}),
    }
    found = []
    write(tmp_path, "samples", [row | {"ts": row["ts"] + 1_400_000_000} for row in anchors()])
    for values, how in spelled.values():
        frame = pl.DataFrame({"user": [0, 0, 0], "item": [1, 2, 3], "ts": values})
        frame.write_parquet(tmp_path / "events.parquet")
        block = {"path": "events.parquet", "user": "user", "item": "item", "time": {"column": "ts"} | how}
        store = build(tmp_path, DESCRIPTION | {"events": [block]}, overwrite=True)
        found.append((seconds(store.column("time"), store).tolist(), store.ticks_per_second))
    assert found == [(moments, 1)] * len(spelled)


def test_time_is_as_narrow_as_its_range_allows(tmp_path: Path) -> None:
    for last, dtype in ((2**31 - 1, np.int32), (2**32 - 1, np.int32), (2**33, np.int64)):
        events = [event(0, 1, 5), event(0, 2, 5 + last)]
        write(tmp_path, "events", events)
        write(tmp_path, "samples", anchors())
        raw = copy.deepcopy(DESCRIPTION)
        raw["events"][0]["time"]["unit"] = raw["samples"]["time"]["unit"] = "us"
        store = build(tmp_path, raw, overwrite=True)
        assert store.column("time").dtype == dtype
        assert (np.diff(store.column("time").astype(np.int64))[0], store.ticks_per_second) == (last, 10**6)


def test_long_form_labels_and_positive_values(tmp_path: Path) -> None:
    write(tmp_path, "events", [event(0, 1, 3)])
    rows = [sample(0, n % 4 + 1, 9, n % 2, "train") | {"kind": "buy" if n % 3 else "install"} for n in range(12)]
    write(tmp_path, "samples", rows + [r | {"kind": "buy"} for r in anchors()])
    long = {key: value for key, value in SAMPLES.items() if key != "labels"} | {"target": "kind", "label": "label"}
    store = build(tmp_path, DESCRIPTION | {"samples": long})
    assert store.targets == ["buy", "install"]
    part = store.samples("train")
    expected = [(-1, row["label"]) if row["kind"] == "install" else (row["label"], -1) for row in rows]
    pairs = zip(part.column("label.buy").tolist(), part.column("label.install").tolist(), strict=True)
    assert list(pairs)[: len(rows)] == expected
    wide = SAMPLES | {"labels": {"install": {"column": "kind", "positive": "install"}}}
    store = build(tmp_path, DESCRIPTION | {"samples": wide}, out="wide")
    assert store.samples("train").column("label.install").tolist()[:3] == [1, 0, 0]


def test_flags_name_the_action(tmp_path: Path) -> None:
    rows = [event(0, 1, 3) | {"a": 0, "b": 1}, event(0, 2, 4) | {"a": 1, "b": 1}, event(0, 3, 5) | {"a": 0, "b": 0}]
    write(tmp_path, "events", rows)
    write(tmp_path, "samples", anchors())
    store = build(tmp_path, DESCRIPTION | {"events": [EVENTS | {"actions_from": {"order": "a", "click": "b"}}]})
    names = vocabulary(store, "action")
    assert [names[i] for i in store.column("action")] == ["click", "order", "none"]


def test_unusable_rows_are_dropped_and_counted(tmp_path: Path) -> None:
    good = event(0, 1, 3)
    rows = [
        good,
        good | {"user": None},
        good | {"item": None},
        good | {"ts": None},
        good | {"ts": -4},
        good | {"user": None, "ts": -1},
    ]
    write(tmp_path, "events", rows)
    write(
        tmp_path, "samples", [*anchors(), sample(0, 1, 9, 1, "holdout"), sample(0, 1, 9, 1, "train") | {"item": None}]
    )
    store = build(tmp_path, DESCRIPTION)
    assert store.manifest["dropped"] == {
        "samples": {"in no split": 1, "no item": 1},
        "events[0]": {"no user": 2, "no item": 1, "no time": 1, "negative time": 1},
    }
    assert store.events == 1 and sum(store.splits.values()) == len(anchors())


def test_items_table_fills_in_what_the_logs_lack(tmp_path: Path) -> None:
    write(tmp_path, "events", [event(0, item, 3 + item) for item in (1, 2, 3)])
    write(tmp_path, "samples", anchors())
    frame = pl.DataFrame({"id": ["1", "2", "2"], "c1": ["x", "y", "z"], "maker": ["m1", "m2", "m3"]})
    frame.write_csv(tmp_path / "items.csv")
    block = {key: value for key, value in EVENTS.items() if key not in ("category", "fields")}
    plain = {key: value for key, value in SAMPLES.items() if key != "category"}
    items = {"path": "items.csv", "item": "id", "category": ["c1"], "fields": ["maker"]}
    store = build(tmp_path, DESCRIPTION | {"events": [block], "samples": plain, "items": items})
    makers = vocabulary(store, "maker")
    assert [makers[i] for i in store.column("maker")] == ["m1", "m2", None]
    assert store.column("category")[2] == 1 and store.depth == 1
    assert [makers[i] for i in store.samples("train").column("maker")] == ["m1", "m2"]


def test_samples_without_categories_take_them_from_the_events(tmp_path: Path) -> None:
    write(tmp_path, "events", [event(0, item, 3) for item in (1, 2, 3)])
    write(tmp_path, "samples", anchors())
    plain = {key: value for key, value in SAMPLES.items() if key != "category"}
    full = build(tmp_path, DESCRIPTION)
    derived = build(tmp_path, DESCRIPTION | {"samples": plain}, out="derived")
    assert (derived.samples("train").column("category") == full.samples("train").column("category")).all()


def test_split_by_shares_never_divides_a_moment(tmp_path: Path) -> None:
    write(tmp_path, "events", [event(0, 1, 3)])
    rows = [sample(n % 3, 1, 10 + n // 7, n % 2, "x") for n in range(100)]
    write(tmp_path, "samples", rows)
    store = build(tmp_path, DESCRIPTION | {"split": {}})
    times = [set(store.samples(split).column("time").tolist()) for split in ("train", "valid", "test")]
    assert max(times[0]) < min(times[1]) and max(times[1]) < min(times[2])
    assert "because [split] says nothing" in store.manifest["split"]["how"]


def test_split_by_moments(tmp_path: Path) -> None:
    write(tmp_path, "events", [event(0, 1, 3)])
    write(tmp_path, "samples", [sample(0, 1, t, t % 2, "x") for t in range(0, 400_000, 9_001)])
    for valid, test in (
        (172_800, 259_200),
        ("1970-01-03", "1970-01-04 00:00:00"),
        ("1970-01-03T08:00:00+08:00", "1970-01-04"),
    ):
        store = build(tmp_path, DESCRIPTION | {"split": {"valid": valid, "test": test}}, overwrite=True)
        first = [seconds(store.samples(s).column("time"), store) for s in ("train", "valid", "test")]
        assert first[0].max() < 172_800 <= first[1].min() and first[1].max() < 259_200 <= first[2].min()


def test_truth_and_value_travel_along(tmp_path: Path) -> None:
    write(tmp_path, "events", [event(0, 1, 3)])
    write(tmp_path, "samples", [row | {"p": 0.25, "gmv": 2.5} for row in anchors()])
    store = build(tmp_path, DESCRIPTION | {"samples": SAMPLES | {"truth": {"click": "p"}, "value": "gmv"}})
    part = store.samples("train")
    assert part.column("truth.click").tolist() == [0.25] * 2 and part.column("value").tolist() == [2.5] * 2
    assert store.manifest["truth"] and store.manifest["value"]


def test_where_keeps_some_rows(tmp_path: Path) -> None:
    write(tmp_path, "events", [event(0, 1, 3), event(0, 2, 4, "search"), event(0, 3, 5, None)])
    write(tmp_path, "samples", anchors())
    store = build(tmp_path, DESCRIPTION | {"events": [EVENTS | {"where": {"scenario": ["search"]}}]})
    assert store.events == 1
    with pytest.raises(InputError, match="has no rows that `where` keeps"):
        build(tmp_path, DESCRIPTION | {"events": [EVENTS | {"where": {"scenario": "nowhere"}}]}, out="none")


def test_a_category_is_known_to_candidates_from_events_before(tmp_path: Path) -> None:
    """That an item has one may be known from nothing but the click that is to be predicted."""
    events = [event(0, 1, 5), event(1, 2, 9), event(0, 3, 12), event(1, 3, 14) | {"c1": "g9", "c2": "s9"}]
    samples = [sample(0, 1, 9, 1, "train"), sample(0, 2, 9, 0, "train"), sample(1, 3, 15, 1, "valid")]
    samples += [sample(1, 3, 12, 0, "test"), sample(1, 2, 10, 0, "test"), sample(1, 4, 30, 0, "test")]
    write(tmp_path, "events", events)
    write(tmp_path, "samples", [{k: v for k, v in row.items() if k not in ("c1", "c2")} for row in samples])
    block = {name: value for name, value in SAMPLES.items() if name != "category"}
    found = []
    for memory in (1 << 30, 1 << 10):
        store = build(tmp_path, DESCRIPTION | {"samples": block}, out=f"s{memory}", memory=memory)
        paths = dict(pl.read_parquet(store.vocabulary_file("category")).select("node", "path").iter_rows())
        nodes = np.concatenate([store.samples(split).column("category") for split in ("train", "valid", "test")])
        found.append([paths.get(node) for node in nodes.tolist()])
    assert found[0] == found[1] == ["g1/s1", None, "g1/s3", None, "g0/s2", None]
    assert not store.manifest["notes"]
    write(tmp_path, "events", [row | {"ts": row["ts"] + 3} for row in events])
    (note,) = build(tmp_path, DESCRIPTION | {"samples": block}, out="late").manifest["notes"]
    assert note.startswith("5 of 6 samples have no category: they take it from their item's events before the request")
