"""The shipped dataset descriptions: each builds a store from files in the published format."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from lsm_cli.commands.build import build_sequences
from lsm_cli.data.description import load_description
from lsm_cli.data.store import Store
from lsm_cli.report.console import Console

RECIPES = Path(__file__).parents[2] / "recipes" / "datasets"
SHARED = Path(__file__).parents[3] / "shared" / "data"
NAMES = ["kuairand", "movielens", "taac2026", "taobao", "tmall"]


def build(name: str, root: Path, out: Path) -> Store:
    build_sequences(Console(quiet=True), name, out, root=root, memory="1GiB", overwrite=False, check=False)
    store = Store.open(out)
    for split in store.splits:  # whatever the data, no event at or after the request is visible
        samples = store.samples(split)
        user, end, time = (np.asarray(samples.column(column)) for column in ("user", "end", "time"))
        held, seconds = end > store.offsets[user], np.asarray(store.column("time")).astype(np.int64)
        assert (end >= store.offsets[user]).all() and (end <= store.offsets[user + 1]).all()
        assert (seconds[end[held] - 1] < time[held]).all()
        follows = end < store.offsets[user + 1]
        assert (seconds[end[follows]] >= time[follows]).all()
    return store


def values(store: Store, field: str) -> set[str]:
    column = pl.read_parquet(store.vocabulary_file(field))
    return {str(value) for value in column["value"].to_list()}


def shared(name: str) -> Path:
    if not (SHARED / name).is_dir():
        pytest.skip(f"../shared/data/{name} is not here")
    return SHARED / name


def test_all_are_shipped_and_valid(tmp_path: Path) -> None:
    assert sorted(file.stem for file in RECIPES.glob("*.toml")) == NAMES
    for name in NAMES:
        assert load_description(RECIPES / f"{name}.toml", tmp_path).name == name


def test_taobao_as_downloaded(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    size = 4000
    first, last = 1511539200, 1512316799  # the nine published days, Beijing time
    frame = pl.DataFrame(
        {
            "user": np.sort(rng.integers(1, 60, size)),
            "item": rng.integers(1, 5_000_000, size) // 20_000,
            "category": rng.integers(1, 40, size),
            "behaviour": rng.choice(["pv", "cart", "fav", "buy"], size, p=[0.8, 0.07, 0.05, 0.08]),
            "time": np.append(rng.integers(first, last, size - 1), -1644019200),  # the real log has such rows too
        }
    )
    frame.write_csv(tmp_path / "UserBehavior.csv", include_header=False)
    store = build("taobao", tmp_path, tmp_path / "store")
    assert store.events == size - 1
    assert values(store, "action") >= {"view", "cart", "favourite", "buy"}
    assert store.depth == 1 and min(store.splits.values()) > 0
    positives = sum(int((store.samples(s).column("label.buy") == 1).sum()) for s in store.splits)
    assert 0 < positives <= (frame["behaviour"] == "buy").sum()


def test_taobao_real(tmp_path: Path) -> None:
    store = build("taobao", shared("taobao"), tmp_path / "store")
    assert store.users == 157 and 14_000 < store.events <= 14_321
    assert min(store.splits.values()) > 50


def kuairand_log(rng: np.random.Generator, size: int, first_day: int) -> pl.DataFrame:
    moment = 1649347200000 + first_day * 86_400_000 + np.sort(rng.integers(0, 14 * 86_400_000, size))
    flags = {"is_click": 0.4, "is_like": 0.05, "is_follow": 0.03, "is_comment": 0.01, "is_forward": 0.01}
    flags |= {"is_hate": 0.001, "long_view": 0.3}
    found = {"user_id": rng.integers(0, 40, size), "video_id": rng.integers(0, 500, size)}
    found |= {"date": np.full(size, 20220408), "hourmin": rng.integers(0, 24, size) * 100, "time_ms": moment}
    found |= {name: (rng.random(size) < share).astype(int) for name, share in flags.items()}
    found |= {"play_time_ms": rng.integers(0, 60_000, size), "duration_ms": rng.integers(1000, 60_000, size)}
    found |= {name: np.zeros(size, int) for name in ("profile_stay_time", "comment_stay_time", "is_profile_enter")}
    return pl.DataFrame(found | {"is_rand": np.zeros(size, int), "tab": rng.integers(0, 15, size)})


def test_kuairand_as_downloaded(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    kuairand_log(rng, 3000, 0).write_csv(tmp_path / "log_standard_4_08_to_4_21_1k.csv")
    kuairand_log(rng, 3000, 14).write_csv(tmp_path / "log_standard_4_22_to_5_08_1k.csv")
    kuairand_log(rng, 50, 14).write_csv(tmp_path / "log_random_4_22_to_5_08_1k.csv")  # another policy: not read
    store = build("kuairand", tmp_path, tmp_path / "store")
    assert store.events == 6000 and sum(store.splits.values()) == 6000
    assert store.targets == ["click", "long_view", "follow"]
    assert values(store, "action") >= {"none", "click", "long_view", "follow"}


def test_kuairand_real(tmp_path: Path) -> None:
    store = build("kuairand", shared("kuairand"), tmp_path / "store")
    assert store.users == 664 and store.events == 41_828 == sum(store.splits.values())


def test_tmall_as_downloaded(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    size = 5000
    day = np.datetime64("2014-05-11") + rng.integers(0, 185, size)
    day = np.where(rng.random(size) < 0.2, np.datetime64("2014-11-11"), day)
    text = np.datetime_as_string(day)
    pl.DataFrame(
        {
            "user_id": rng.integers(1, 80, size),
            "item_id": rng.integers(1, 300, size),
            "cat_id": rng.integers(1, 40, size),
            "seller_id": rng.integers(1, 50, size),
            "brand_id": np.where(rng.random(size) < 0.01, None, rng.integers(1, 60, size).astype(str)).tolist(),
            "time_stamp": [value[5:7] + value[8:10] for value in text.tolist()],
            "action_type": rng.choice(4, size, p=[0.85, 0.01, 0.1, 0.04]),
        }
    ).write_csv(tmp_path / "user_log_format1.csv")
    store = build("tmall", tmp_path, tmp_path / "store")
    assert store.events == size and {"seller", "brand"} <= set(store.fields)
    assert values(store, "action") >= {"click", "cart", "purchase", "favourite"}
    seconds = np.asarray(store.column("time")).astype(np.int64) // store.ticks_per_second
    moments = np.datetime64(store.base // store.ticks_per_second, "s") + seconds
    assert moments.min() >= np.datetime64("2014-05-11") and moments.max() <= np.datetime64("2014-11-12")


def test_movielens_as_downloaded(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    size = 4000
    ratings = {"userId": np.sort(rng.integers(1, 90, size)), "movieId": rng.integers(1, 200, size)}
    ratings |= {"rating": rng.integers(1, 11, size) / 2, "timestamp": rng.integers(825_000_000, 1_574_000_000, size)}
    pl.DataFrame(ratings).write_csv(tmp_path / "ratings.csv")
    titles = [f'American President, The "{n}" (1995)' if n % 9 == 0 else f"Heat {n} (1995)" for n in range(1, 200)]
    genres = [["Comedy|Drama|Romance", "Action|Crime|Thriller", "(no genres listed)"][n % 3] for n in range(1, 200)]
    films = {"movieId": np.arange(1, 200), "title": titles, "genres": genres}
    pl.DataFrame(films).write_csv(tmp_path / "movies.csv")
    store = build("movielens", tmp_path, tmp_path / "store")
    assert store.events == size and store.depth == 1
    assert values(store, "action") >= {"like", "neutral", "dislike"}
    likes = int((ratings["rating"] >= 4).sum())
    assert 0 < sum(int((store.samples(s).column("label.like") == 1).sum()) for s in store.splits) <= likes


def test_taac2026_as_published(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    size, now = 400, 1772725000
    times = {"a": 39, "b": 67, "c": 27, "d": 26}
    features = {"a": range(38, 47), "b": [*range(67, 80), 88], "c": [*range(27, 38), 47], "d": range(17, 27)}
    frame: dict[str, object] = {"user_id": np.arange(size) + 10, "item_id": rng.integers(1, 90, size)}
    frame |= {"label_type": rng.choice([1, 2], size, p=[0.8, 0.2]).astype(np.int32)}
    frame["timestamp"] = now + np.sort(rng.integers(0, 780, size))
    frame["label_time"] = np.asarray(frame["timestamp"]) + 30
    for number in (*range(5, 11), 12, 13, 16, 81, 83, 84, 85):
        frame[f"item_int_feats_{number}"] = rng.integers(0, 30, size)
    behaviours = 0
    for domain, numbers in features.items():
        length = np.where(rng.random(size) < 0.05, 0, rng.integers(1, 40, size))
        behaviours += int(length.sum())
        for number in numbers:
            is_time = number == times[domain]
            lists = [
                (now - 1 - np.sort(rng.integers(0, 86_400 * 90, n)) if is_time else rng.integers(1, 50, n)).tolist()
                for n in length
            ]
            frame[f"domain_{domain}_seq_{number}"] = pl.Series(lists, dtype=pl.List(pl.Int64))
    pl.DataFrame(frame).write_parquet(tmp_path / "demo_1000.parquet")
    store = build("taac2026", tmp_path, tmp_path / "store")
    assert store.users == size and store.events == behaviours and sum(store.splits.values()) == size
    assert values(store, "domain") >= {"a", "b", "c", "d"} and store.depth == 3
    converted = sum(int((store.samples(s).column("label.conversion") == 1).sum()) for s in store.splits)
    assert converted == int((np.asarray(frame["label_type"]) == 2).sum())
