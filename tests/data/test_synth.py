"""The synthetic world: reproducible, its truth a function of what a request sees, its labels drawn from that."""

from __future__ import annotations

import gzip
import json
import math
from collections import defaultdict
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import roc_auc_score

from lsm_cli.commands.synth import score, synth
from lsm_cli.data.building.pipeline import build_store
from lsm_cli.data.description import load_description
from lsm_cli.data.store import Store
from lsm_cli.data.synth import files as synth_files
from lsm_cli.data.synth.world import Drawn, draw_world
from lsm_cli.data.synth.worlds import DAY, WORLDS
from lsm_cli.errors import InputError, LsmError
from lsm_cli.report.console import Console

SAMPLES = Path(__file__).parents[2] / "data_samples"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("synth") / "world"
    synth(Console(quiet=True), out, users=80, seed=3)
    return out


@pytest.fixture(scope="module")
def drawn() -> Drawn:
    return draw_world(WORLDS["base"], 1200, 1)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def test_same_seed_same_bytes(world: Path, tmp_path: Path) -> None:
    synth(Console(quiet=True), tmp_path / "again", users=80, seed=3)
    synth(Console(quiet=True), tmp_path / "other", users=80, seed=4)
    first, again, other = contents(world), contents(tmp_path / "again"), contents(tmp_path / "other")
    assert first == again
    assert first["impressions.parquet"] != other["impressions.parquet"]


def read_behaviours(folder: Path) -> dict[int, list[dict]]:
    """Every user's behaviours as the files have them, with article categories aligned."""
    shared = {row["path"]: row["shared"] for row in pl.read_csv(folder / "taxonomy.csv").iter_rows(named=True)}
    found = defaultdict(list)
    for file in sorted((folder / "logs" / "video").glob("*.csv.gz")):
        for r in pl.read_csv(gzip.decompress(file.read_bytes())).iter_rows(named=True):
            fields = {"category1": r["c1"], "category2": r["c2"], "category3": r["c3"], "brand": r["brand"]}
            found[r["uid"]].append({"time": r["ts"], "action": r["act"], "domain": "video", **fields})
    for r in pl.read_csv(folder / "logs" / "article.csv").iter_rows(named=True):
        moment = datetime.strptime(r["read_at"], "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC)
        top, middle = shared[f"{r['section']}/{r['topic']}"].split("/")
        assert shared[r["section"]] == top
        fields = {"category1": top, "category2": middle}
        event = {"time": int(moment.timestamp()), "action": r["action"], "domain": "article", **fields}
        found[r["reader"]].append(event)
    for r in pl.read_parquet(folder / "logs" / "ads.parquet").iter_rows(named=True):
        fields = {"category1": r["industry"], "category2": r["segment"], "category3": r["product"]}
        event = {"time": r["time_ms"] // 1000, "action": r["action"], "domain": "ad", "item": r["ad"], **fields}
        found[r["user"]].append({**event, "brand": r["brand"]})
    return found


def test_truth_is_a_function_of_the_visible_history(world: Path) -> None:
    """The probabilities follow from the files alone, reading nothing at or after a request."""
    truth = json.loads((world / "truth.json").read_text())
    effects = {row["ad"]: row for row in pl.read_parquet(world / "ads_truth.parquet").iter_rows(named=True)}
    behaviours = read_behaviours(world)
    impressions = pl.read_parquet(world / "impressions.parquet").sample(300, seed=0)
    met = 0
    for row in impressions.iter_rows(named=True):
        now = row["time_ms"] // 1000
        ad = {"item": row["ad"], "brand": row["brand"], "category1": row["industry"]}
        ad |= {"category2": row["segment"], "category3": row["product"]}
        seen = [event for event in behaviours[row["user"]] if event["time"] < now]
        for name, target in truth["targets"].items():
            logit = target["intercept"] + target["scenario"][row["scenario"]] + effects[row["ad"]][f"ad_{name}"]
            for kernel in target["kernels"]:
                total = 0.0
                for event in seen:
                    same = event.get(kernel["match"]) is not None and event[kernel["match"]] == ad[kernel["match"]]
                    if same and event["domain"] in kernel["domains"]:
                        age = (now - event["time"]) / DAY
                        total += target["strength"][event["action"]] * 2 ** (-age / kernel["half_life"])
                        met += 1
                logit += kernel["weight"] * math.log1p(total)
            assert 1 / (1 + math.exp(-logit)) == pytest.approx(row[f"p_{name}"], rel=2e-5)
    assert met > 3000  # the check has looked at something


def test_labels_are_drawn_from_the_truth(drawn: Drawn) -> None:
    for name, p in drawn.p.items():
        label = drawn.label[name]
        group = np.argsort(np.argsort(p)) * 20 // len(p)
        expected, seen = np.bincount(group, p), np.bincount(group, label)
        sd = np.sqrt(np.bincount(group, p * (1 - p)))
        assert np.abs((seen - expected) / sd).max() < 4
        assert abs(label.sum() - p.sum()) < 4 * math.sqrt((p * (1 - p)).sum())


def test_history_is_most_of_the_truth(drawn: Drawn) -> None:
    scores = score(drawn)
    for name in ("click", "order"):
        found = scores[name]["train"]
        rows = drawn.requests.time < drawn.world.valid * DAY
        assert found["true"]["auc"] == pytest.approx(roc_auc_score(drawn.label[name][rows], drawn.p[name][rows]))
        assert found["true"]["auc"] > 0.76
        assert found["true"]["auc"] - found["without_history"]["auc"] > 0.12
        assert found["true"]["gauc"] - found["without_history"]["gauc"] > 0.08
    rates = [label.mean() for label in drawn.label.values()]
    assert 0.08 < rates[0] < 0.15 and 0.025 < rates[1] < 0.06


def test_the_world_looks_like_one(drawn: Drawn) -> None:
    events, users = drawn.events, drawn.users
    content = events.domain > 0
    assert 110 < content.sum() / users < 150 and 5 < (~content).sum() / users < 15
    assert np.all(np.diff(events.user * (1 << 32) + events.time) >= 0)
    share = np.sort(np.bincount(drawn.requests.item))[::-1]
    assert share[: len(share) // 10].sum() > 0.25 * share.sum()  # popular ads take more than their share
    ads = drawn.catalogues["ad"]
    assert np.all(ads.born[drawn.requests.item] <= drawn.requests.time)
    tested = drawn.requests.item[drawn.requests.time >= drawn.world.test * DAY]
    assert (ads.born[tested] >= drawn.world.test * DAY).mean() > 0.002  # some ads appear in the test days only
    assert ((drawn.value > 0) == drawn.label["order"]).all()


def test_the_files_build_a_store(world: Path, tmp_path: Path) -> None:
    build_store(load_description(world / "dataset.toml"), tmp_path / "store")
    store = Store.open(tmp_path / "store")
    behaviours, impressions = read_behaviours(world), pl.read_parquet(world / "impressions.parquet")
    assert store.events == sum(len(events) for events in behaviours.values())
    assert store.users == 80 and store.depth == 3 and store.targets == ["click", "order"]
    assert {"item", "category3", "scenario", "domain", "action", "brand"} <= set(store.fields)
    assert [file.name for file in sorted((world / "logs" / "video").iterdir())] == ["2024-03.csv.gz", "2024-04.csv.gz"]
    assert sum(store.splits.values()) == impressions.height
    for target in store.targets:
        found = np.concatenate([store.samples(split).column(f"truth.{target}") for split in store.splits])
        assert np.array_equal(np.sort(found), np.sort(impressions[f"p_{target}"].to_numpy()))
    # videos and ads share three levels of the tree, articles two
    meeting = {(row["domain"], row["level"]): row["events_meeting"] for row in store.manifest["meeting"]}
    assert meeting["ad", 3] and meeting["video", 3] and meeting["article", 2] and not meeting["article", 3]


def test_refuses_what_it_may_not_replace(world: Path, tmp_path: Path) -> None:
    quiet = Console(quiet=True)
    before = contents(world)
    with pytest.raises(InputError, match="--overwrite"):
        synth(quiet, world, users=40)
    assert contents(world) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(InputError, match="not a world"):
        synth(quiet, tmp_path / "mine", users=40, overwrite=True)
    assert contents(tmp_path / "mine") == {"notes.txt": b"keep"}
    with pytest.raises(InputError, match="no such world; there is base"):
        synth(quiet, tmp_path / "w", world="bass")
    for wrong in ({"users": 3}, {"seed": -1}, {"behaviours": 0.0}, {"impressions": math.nan}):
        with pytest.raises(InputError, match=f"--{next(iter(wrong))}"):
            synth(quiet, tmp_path / "w", **wrong)  # type: ignore[arg-type]
    assert not (tmp_path / "w").exists()


def test_a_failed_write_leaves_the_old_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "world"
    synth(Console(quiet=True), out, users=30)
    before = contents(out)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(synth_files, "_impressions", full)
    with pytest.raises(LsmError, match="the disk is full"):
        synth(Console(quiet=True), out, users=30, seed=1, overwrite=True)
    assert contents(out) == before and [path.name for path in tmp_path.iterdir()] == ["world"]
    monkeypatch.undo()
    synth(Console(quiet=True), out, users=30, seed=1, overwrite=True)
    assert contents(out) != before and [path.name for path in tmp_path.iterdir()] == ["world"]


def test_data_samples_are_the_command_they_name(tmp_path: Path) -> None:
    """The committed world is what its first line says; floating point may differ by machine, so not to the byte."""
    truth = json.loads((SAMPLES / "truth.json").read_text())
    words = (SAMPLES / "dataset.toml").read_text().split("`")[1].split()
    given = {word.removeprefix("--"): words[n + 1] for n, word in enumerate(words) if word.startswith("--")}
    sizes = {name: float(given[name]) for name in ("behaviours", "impressions")}
    synth(Console(quiet=True), tmp_path / "w", given["world"], int(given["users"]), int(given["seed"]), **sizes)
    kept, made = (pl.read_parquet(folder / "impressions.parquet") for folder in (SAMPLES, tmp_path / "w"))
    assert kept.drop("click", "order", "order_value", "p_click", "p_order").equals(made.select(kept.columns[:8]))
    assert (kept["click"] == made["click"]).mean() > 0.999
    assert sum(file.stat().st_size for file in SAMPLES.rglob("*") if file.is_file()) < 1.5e6
    assert (
        truth["scores"]["click"]["test"]["true"]["auc"]
        > truth["scores"]["click"]["test"]["without_history"]["auc"] + 0.1
    )
