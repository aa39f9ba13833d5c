"""Retrieval from the whole catalogue against brute force, and the vectors that leave the house."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from lsm_cli import recipe as recipes
from lsm_cli.data.store import Store
from lsm_cli.engine.feed import Feed
from lsm_cli.engine.setup import Setup
from lsm_cli.errors import InputError, LsmError
from lsm_cli.judging import retrieval, vectors
from lsm_cli.judging.retrieval import CUTS, Catalogue, item_vectors, retrieve
from lsm_cli.main import app
from lsm_cli.models.two_tower import TwoTower

SMALL = ["train.batch_size=64", "train.threads=1", "model.max_len=10", "model.hidden=[16]", "model.dim=4"]


def _lsm(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def towers(small_store: Path) -> tuple[Setup, TwoTower]:
    options = recipes.load("sasrec", [*SMALL, "model.quiet=false", "model.init_std=1.0"])
    setup = Setup.of(options, Store.open(small_store))
    return setup, setup.model().eval()


@pytest.fixture(scope="module")
def run(small_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "sasrec"
    result = _lsm("train", "-r", "sasrec", "--data", small_store, "--out", out, "train.epochs=1", *SMALL)
    assert result.exit_code == 0, result.output
    return out


def _latest(store: Store) -> dict[int, int]:
    """item -> its latest training sample, if its embedding was trained."""
    samples = store.samples("train")
    found: dict[int, int] = {}
    for row in np.argsort(samples.column("time"), kind="stable"):
        item = int(samples.column("item")[row])
        if 1 < item < store.fields["item"].rows - 1:
            found[item] = int(row)
    return found


def test_the_catalogue_is_what_could_be_shown_and_was_trained_on(towers: tuple[Setup, TwoTower]) -> None:
    catalogue = Catalogue.of(towers[0].store)
    expected = _latest(towers[0].store)
    assert dict(zip(catalogue.item.tolist(), catalogue.sample.tolist(), strict=True)) == expected
    asked = np.array([0, 1, 2, 7, 49, 10_000])
    for item, place in zip(asked, catalogue.places(asked), strict=True):
        assert (catalogue.item[place] == item) if place >= 0 else (item not in expected)


@pytest.mark.parametrize("cells", [1, 200, 1 << 24])
def test_recall_equals_brute_force(towers: tuple[Setup, TwoTower], cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    setup, model = towers
    monkeypatch.setattr(retrieval, "CELLS", cells)
    monkeypatch.setattr(retrieval, "CUTS", (1, 5, 20))
    found = retrieve(setup, model, Catalogue.of(setup.store), "test")
    samples, latest = setup.store.samples("test"), _latest(setup.store)
    feed, train = Feed(setup, "test"), setup.assembler("train")
    items = {}
    with torch.no_grad():
        for item, row in latest.items():
            items[item] = model.items(model.fetch(train.batch(np.array([row]))))[0].double()
        for column, target in enumerate(setup.targets):
            ranks, outside = [], 0
            for row in np.flatnonzero(samples.column(f"label.{target}") == 1):
                batch = feed.batch(np.array([row]), model)
                user = model.users(batch, model.fetch(batch))[0, column, :-1].double()
                wanted = int(samples.column("item")[row])
                if wanted not in items:
                    outside += 1
                    ranks.append(math.inf)
                    continue
                own = float(user @ items[wanted])
                ranks.append(1 + sum(float(user @ v) > own + 1e-6 for item, v in items.items() if item != wanted))
            entry = found[target]
            assert entry["n"] == len(ranks) and entry["outside"] == outside > 0
            for cut in (1, 5, 20):
                assert entry["recall"][str(cut)] == pytest.approx(np.mean([rank <= cut for rank in ranks]))
                gains = [1 / math.log2(1 + rank) if rank <= cut else 0 for rank in ranks]
                assert entry["ndcg"][str(cut)] == pytest.approx(np.mean(gains))


def test_popularity_equals_brute_force(towers: tuple[Setup, TwoTower]) -> None:
    setup, model = towers
    store = setup.store
    catalogue = Catalogue.of(store)
    entry = retrieve(setup, model, catalogue, "test")["order"]["popularity"]
    train, test = store.samples("train"), store.samples("test")
    sold = [int(i) for i, y in zip(train.column("item"), train.column("label.order"), strict=True) if y == 1]
    counts = {int(item): sold.count(item) for item in catalogue.item}
    hits = []
    for item, label in zip(test.column("item").tolist(), test.column("label.order"), strict=True):
        if label == 1:
            hits.append(item in counts and sum(c >= counts[item] for c in counts.values()) <= 10)
    assert entry["recall"]["10"] == pytest.approx(np.mean(hits))


def test_equal_scores_count_against_the_wanted_item(towers: tuple[Setup, TwoTower]) -> None:
    setup, model = towers
    kept = model.readout.detach().clone()
    with torch.no_grad():
        model.readout.zero_()
        try:
            found = retrieve(setup, model, Catalogue.of(setup.store), "test")
        finally:
            model.readout.copy_(kept)
    assert found["click"]["recall"]["10"] == 0


def test_eval_reports_retrieval(run: Path) -> None:
    result = json.loads(_lsm("eval", run, "--json").stdout)
    for target in ("click", "order"):
        entry = result["test"][target]["retrieval"]
        assert entry["recall"].keys() == entry["ndcg"].keys() == {str(cut) for cut in CUTS}
        assert 0 <= entry["recall"]["10"] <= entry["recall"]["100"] <= 1
    assert result["catalogue"]["items"] > 30
    said = _lsm("eval", run)
    assert "R@10" in said.stdout and "candidate in training" in said.stderr


def test_vectors_are_those_of_the_last_request_and_score_as_the_model(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "vectors"
    result = json.loads(_lsm("eval", run, "--json", "--user-vectors", out).stdout)
    manifest = json.loads((out / "manifest.json").read_text())
    assert result["vectors"]["users"] == manifest["users"]
    loaded = {file.stem: np.load(file) for file in out.glob("*.npy")}
    users, items = loaded["user_vectors"], loaded["item_vectors"]
    assert users.dtype == items.dtype == np.float32
    assert users.shape == (manifest["users"], 2, manifest["width"]) and items.shape[1] == manifest["width"]

    options = recipes.load(str(run / "recipe.toml"))
    store = Store.open(json.loads((run / "data.json").read_text())["path"])
    setup = Setup.of(options, store)
    model = setup.model()
    model.load_state_dict({**model.state_dict(), **_weights(run)})
    model.eval()
    samples, feed = store.samples("test"), Feed(setup, "test")
    time, user = np.asarray(samples.column("time")), np.asarray(samples.column("user"))
    assert sorted(set(user.tolist())) == loaded["users"].tolist()
    catalogue = Catalogue.of(store)
    np.testing.assert_allclose(items, item_vectors(setup, model, catalogue).numpy(), rtol=1e-6)
    assert loaded["items"].tolist() == catalogue.item.tolist()
    for place in (0, 5, len(users) - 1):
        own = np.flatnonzero(user == loaded["users"][place])
        last = own[time[own] == time[own].max()][-1:]
        assert loaded["user_time"][place] == time[last[0]] + store.base
        batch = feed.batch(last, model)
        with torch.no_grad():
            literal = model.users(batch, model.fetch(batch))[0, :, :-1]
        np.testing.assert_allclose(users[place], literal.numpy(), rtol=1e-4, atol=1e-5)


def _weights(run: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(run / "model.safetensors")


def test_nothing_half_written_and_nothing_overwritten(
    towers: tuple[Setup, TwoTower], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup, model = towers
    out = tmp_path / "vectors"

    def broken(*arguments: object) -> object:
        raise OSError(28, "No space left on device")
        yield

    with monkeypatch.context() as patched:
        patched.setattr(vectors, "user_vectors", broken)
        with pytest.raises(LsmError, match="the disk is full"):
            vectors.export(setup, model, "test", out, Path("run"))
    assert list(tmp_path.iterdir()) == []
    vectors.export(setup, model, "test", out, Path("run"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["vectors"]
    with pytest.raises(InputError, match="exists already"):
        vectors.export(setup, model, "test", out, Path("run"))


def test_mistakes_are_said_before_any_work(run: Path, small_store: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine")
    result = _lsm("eval", run, "--user-vectors", tmp_path / "taken")
    assert result.exit_code == 2 and "exists already" in result.stderr and "device" not in result.stderr
    tin = tmp_path / "tin"
    _lsm("train", "-r", "dnn", "--data", small_store, "--out", tin, "train.epochs=1", *SMALL)
    result = _lsm("eval", tin, "--user-vectors", tmp_path / "out")
    assert result.exit_code == 2 and "no user vectors" in result.stderr
