"""Worlds that log slates: a known policy shows one of several candidates, and all their chances are known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from lsm_cli.commands.synth import synth
from lsm_cli.data.building.pipeline import build_store
from lsm_cli.data.description import load_description
from lsm_cli.data.store import Store
from lsm_cli.data.synth.again import redraw
from lsm_cli.errors import InputError
from lsm_cli.report.console import Console
from tests.data.building import DESCRIPTION, anchors, build, event, write

SIZE = 4


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("slates") / "world"
    synth(Console(quiet=True), out, users=150, seed=3, slate=SIZE)
    return out


def test_slates_are_logged_whole_and_labels_of_what_was_shown(world: Path) -> None:
    rows = pl.read_parquet(world / "impressions.parquet")
    slated = rows.filter(pl.col("propensity") < 1)
    assert rows.filter(pl.col("propensity") == 1)["click"].null_count() == 0
    each = slated.group_by("user", "time_ms", maintain_order=True).agg(
        pl.len(), pl.col("propensity").sum(), pl.col("click").count().alias("labels"), pl.col("order_value").count()
    )
    assert (each["len"] % SIZE == 0).all()
    requests = each["len"].to_numpy() / SIZE  # two requests of one second are not told apart
    assert np.allclose(each["propensity"], requests, atol=1e-5)
    assert np.array_equal(each["labels"], requests) and np.array_equal(each["order_value"], requests)
    assert slated.height > 1500 and (rows["time_ms"].diff().drop_nulls() >= 0).all()
    assert (slated["time_ms"].min() or 0) // 1000 >= 1_714_176_000  # the first test day, 2024-04-27


def test_the_policy_shows_what_it_says(world: Path) -> None:
    slated = pl.read_parquet(world / "impressions.parquet").filter(pl.col("propensity") < 1)
    p, shown = slated["propensity"].to_numpy(), slated["click"].is_not_null().to_numpy()
    for part in np.array_split(np.argsort(p), 8):
        sd = np.sqrt((p[part] * (1 - p[part])).sum())
        assert abs(shown[part].sum() - p[part].sum()) < 4 * sd


def test_a_world_is_drawn_again_from_its_truth(world: Path, tmp_path: Path) -> None:
    drawn = redraw(world)
    rows = pl.read_parquet(world / "impressions.parquet")
    order = np.lexsort((drawn.requests.user, drawn.requests.time))
    shown = rows.filter(pl.col("click").is_not_null())
    assert np.allclose(shown["p_order"], drawn.p["order"][order], rtol=1e-4)
    assert np.array_equal(shown["order"], drawn.label["order"][order].astype(np.int8))
    synth(Console(quiet=True), tmp_path / "plain", users=30)
    with pytest.raises(InputError, match="one candidate each"):
        redraw(tmp_path / "plain")
    with pytest.raises(InputError, match="not a world"):
        redraw(tmp_path)
    truth = json.loads((tmp_path / "plain" / "truth.json").read_text())
    assert "slates" not in truth and "propensity" not in (tmp_path / "plain" / "dataset.toml").read_text()
    with pytest.raises(InputError, match="--slate 1"):
        synth(Console(quiet=True), tmp_path / "one", slate=1)


def test_the_store_keeps_propensities(world: Path, tmp_path: Path) -> None:
    build_store(load_description(world / "dataset.toml"), tmp_path / "store")
    store = Store.open(tmp_path / "store")
    rows = pl.read_parquet(world / "impressions.parquet").filter(pl.col("propensity") < 1)
    samples = store.samples("test")
    assert np.array_equal(samples.column("propensity"), rows["propensity"].to_numpy())
    assert np.array_equal(samples.column("label.click"), rows["click"].fill_null(-1).to_numpy())
    assert store.manifest["propensity"] is True


@pytest.mark.parametrize("wrong", [0.0, 1.5, -0.1, None, float("nan"), float("inf")])
def test_what_is_no_propensity_is_refused(tmp_path: Path, wrong: float | None) -> None:
    rows = [{**row, "shown": 0.5} for row in anchors()]
    rows[2]["shown"] = wrong
    write(tmp_path, "events", [event(0, 1, 5)])
    write(tmp_path, "samples", rows)
    raw = {**DESCRIPTION, "samples": {**DESCRIPTION["samples"], "propensity": "shown"}}
    with pytest.raises(InputError, match="column 'shown' is a propensity and says"):
        build(tmp_path, raw)
    assert not (tmp_path / "store").exists()
