"""Pointers written by a search are what training reads."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from lsm_cli import recipe as recipes
from lsm_cli.data.building.orders import add_orders
from lsm_cli.data.store import Store
from lsm_cli.engine.feed import Feed
from lsm_cli.engine.setup import Setup
from lsm_cli.errors import InputError
from lsm_cli.main import app
from lsm_cli.search.files import FoundFile
from tests.small import write_store


def _lsm(*arguments: object) -> dict:
    done = CliRunner().invoke(app, [*map(str, arguments), "--json", "-q"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def found(small_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("search") / "found"
    _lsm("search", "-r", "hier_hard", "--data", small_store, "--split", "all", "--out", out, "search.top_k=5")
    return out


@pytest.fixture(scope="module")
def dare_run(small_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "dare"
    _lsm("train", "-r", "dare", "--data", small_store, "--out", out, "train.epochs=1", "search.top_k=5")
    return out


def test_training_from_the_file_reads_what_a_live_search_finds(small_store: Path, found: Path) -> None:
    store = Store.open(small_store)
    live = Setup.of(recipes.load("hier_hard", ["search.top_k=5"]), store)
    filed = Setup.of(recipes.load("hier_hard", ["search.top_k=5", f"search.from={found}"]), store)
    index = np.random.default_rng(0).permutation(200)
    for split in ("train", "valid", "test"):
        one = Feed(live, split).batch(index, live.model())
        two = Feed(filed, split).batch(index, filed.model())
        assert torch.equal(one.offsets, two.offsets) and torch.equal(one.age, two.age)
        assert torch.equal(one.history["item"], two.history["item"])


def test_a_frozen_soft_search_feeds_another_model(small_store: Path, dare_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "frozen"
    report = _lsm("search", "--run", dare_run, "--data", small_store, "--split", "all", "--out", out)
    assert report["recall_at_k"] == pytest.approx(1.0) and report["ndcg_at_k"] == pytest.approx(1.0)
    trained = _lsm(
        "train", "-r", "tin", "--data", small_store, "--out", tmp_path / "run", "train.epochs=1", f"search.from={out}"
    )
    assert trained["test"]["click"]["auc"] > 0.5
    refused = CliRunner().invoke(app, ["eval", str(tmp_path / "run"), "--shuffle-history", "-q"])
    assert refused.exit_code == 2 and "no shuffled control" in refused.stderr


def test_hard_search_is_judged_by_attention(small_store: Path, dare_run: Path) -> None:
    command = ["search", "-r", "hier_hard", "--data", small_store, "--run", dare_run]
    few, many = (_lsm(*command, f"search.top_k={k}") for k in (2, 1000))
    assert 0 < few["recall_at_k"] < 1 and many["recall_at_k"] == pytest.approx(1.0)
    assert sum(many["levels"].values()) == pytest.approx(1.0) and few["filled"] > many["filled"]


def test_levels_and_reach_are_those_of_the_finds(small_store: Path) -> None:
    leaf = _lsm("search", "-r", "sim_hard", "--data", small_store, "search.top_k=1000")
    assert set(leaf["levels"]) == {"category2", "any"} and leaf["levels"]["category2"] == 1.0
    recent = _lsm("search", "-r", "tin", "--data", small_store, "model.max_len=1")
    assert recent["reach_rank"] == 1.0


BAD = {
    "no run for a soft search": (["-r", "twin"], "give --run RUN"),
    "neither recipe nor run": ([], "--recipe is missing"),
    "split that is not there": (["-r", "hier_hard", "--split", "later"], "no split 'later'"),
    "unknown level": (["-r", "hier_hard", 'search.levels=["brand"]'], "has no field 'brand'"),
    "run that is none": (["-r", "hier_hard", "--run", "nowhere"], "not a run"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence(case: str, small_store: Path, tmp_path: Path) -> None:
    arguments, words = BAD[case]
    out = tmp_path / "found"
    done = CliRunner().invoke(app, ["search", "--data", str(small_store), "--out", str(out), *arguments])
    assert done.exit_code == 2 and words in done.stderr and "Traceback" not in done.output, done.output
    assert not out.exists() and not list(tmp_path.iterdir())


def test_results_are_not_overwritten_unasked(small_store: Path, found: Path, tmp_path: Path) -> None:
    command = ["search", "-r", "sim_hard", "--data", str(small_store), "--out", str(found), "-q"]
    assert "--overwrite" in CliRunner().invoke(app, command).stderr
    (tmp_path / "notes").write_text("mine")
    other = CliRunner().invoke(app, [*command[:-2], str(tmp_path), "--overwrite"])
    assert other.exit_code == 2 and (tmp_path / "notes").read_text() == "mine"


def test_a_file_of_another_store_or_split_is_refused(found: Path, tmp_path: Path) -> None:
    other = write_store(tmp_path / "other", seed=3)
    add_orders(other)
    with pytest.raises(InputError, match="another store"):
        FoundFile(found, Store.open(other), "train")
    store = Store.open(write_store(tmp_path / "same"))  # the same seed as the store of the file
    assert FoundFile(found, store, "train").take(np.array([0])).offsets[0] == 0
    with pytest.raises(InputError, match="holds no dev samples"):
        FoundFile(found, store, "dev")
    with pytest.raises(InputError, match="not a result"):
        FoundFile(tmp_path, store, "train")
