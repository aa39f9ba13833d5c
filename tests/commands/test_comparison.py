"""`lsm eval --baseline`, the controls that hide behaviours, and `lsm simulate`, as a user meets them."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from lsm_cli.data.store import Store
from lsm_cli.data.synth.again import redraw
from lsm_cli.judging.simulate import Round, Simulation
from lsm_cli.main import app

SMALL = [
    "train.batch_size=256",
    "train.threads=1",
    "train.epochs=1",
    "model.hidden=[16]",
    "model.bins=4",
    "model.dim=4",
]


def _lsm(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def _json(*arguments: str | Path) -> dict:
    result = _lsm(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world with slates, its store, and two runs."""
    folder = tmp_path_factory.mktemp("compared")
    _json("synth", "--out", folder / "world", "--users", "200", "--slate", "3")
    _json("build-sequences", folder / "world" / "dataset.toml", "--out", folder / "store")
    for recipe in ("dnn", "tin"):
        _json("train", "-r", recipe, "--data", folder / "store", "--out", folder / recipe, *SMALL)
    return folder


@pytest.fixture(scope="module")
def compared(folder: Path) -> dict:
    more = ["--replicates", "300", "--ads-only", "--shuffle-history", "--out", folder / "page"]
    return _json("eval", folder / "tin", "--baseline", folder / "dnn", *more)


def test_two_runs_side_by_side(compared: dict, folder: Path) -> None:
    alone = _json("eval", folder / "tin")
    against = compared["against"]
    assert list(against) == ["baseline", "shuffled", "ads_only"]
    for target in ("click", "order"):
        entry = against["baseline"]["differences"][target]
        for name in ("auc", "gauc", "logloss"):
            assert entry[name]["run"] == pytest.approx(alone["test"][target][name], abs=1e-9)
            assert entry[name]["low"] <= entry[name]["difference"] <= entry[name]["high"]
        assert entry["slices"].keys() >= {"scenario", "history", "item in training", "last behaviour"}
        assert alone["test"][target]["slices"].keys() == entry["slices"].keys()
        assert len(compared["test"][target]["calibration_curve"]["bins"]) == 10
    assert "not a model retrained" in against["ads_only"]["ablation"]
    gone = against["ads_only"]["differences"]["click"]["auc"]
    assert gone["other"] != gone["run"]
    assert compared["gmv"]["method"] == "snips" and compared["gmv"]["target"] == "order"
    assert compared["gmv"]["support"]["run"]["effective"] > 50
    page = (folder / "page" / "compare.html").read_text()
    assert all(f"{name}: {compared['gmv']['support'][who]['requests']:,} requests speak for it" in page
               for name, who in (("tin", "run"), ("dnn", "other")))  # fmt: skip


def test_the_same_seed_says_the_same(compared: dict, folder: Path) -> None:
    command = ["eval", folder / "tin", "--baseline", folder / "dnn", "--replicates", "300"]
    again, other = _json(*command), _json(*command, "--seed", "1")
    first, second = (one["against"]["baseline"]["differences"]["click"]["auc"] for one in (again, other))
    assert first == compared["against"]["baseline"]["differences"]["click"]["auc"]
    assert first["low"] != second["low"] and first["run"] == second["run"]


def test_a_run_against_itself_is_no_difference(folder: Path, tmp_path: Path) -> None:
    found = _json("eval", folder / "tin", "--baseline", folder / "tin", "--out", tmp_path)
    for entry in found["against"]["baseline"]["differences"].values():
        assert {entry[name]["verdict"] for name in ("auc", "gauc", "logloss")} == {"no difference"}
    assert found["gmv"]["lift"]["lift"] == 0 and not found["gmv"]["value_auc"]["difference"]


def test_what_the_terminal_says(folder: Path, tmp_path: Path) -> None:
    result = _lsm("eval", folder / "tin", "--baseline", folder / "dnn", "--drop-domain", "video", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    said = " ".join(result.output.split())
    for words in ("click AUC", "95% interval", "history length", "calibration", "without video", "GMV lift over the"):
        assert words in said
    assert "Traceback" not in result.output and (tmp_path / "compare.html").is_file()


def test_an_ablation_has_a_page_of_its_own(folder: Path, tmp_path: Path) -> None:
    options = ["--replicates", "200", "--out", tmp_path / "pages"]
    compared_to = _json("eval", folder / "tin", "--baseline", folder / "dnn", *options)["page"]
    hidden = _json("eval", folder / "tin", "--ads-only", *options)["page"]
    assert {path.name for path in (tmp_path / "pages").iterdir()} == {Path(compared_to).name, Path(hidden).name}
    assert "dnn" in Path(compared_to).read_text() and "dnn" not in Path(hidden).read_text()


def test_where_the_page_cannot_go_nothing_is_scored(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("lsm_cli.commands.comparison._score", lambda *_: pytest.fail("scored"))
    result = _lsm("eval", folder / "tin", "--ads-only", "--out", tmp_path / "file" / "page")
    assert result.exit_code == 2 and "choose another --out" in result.output


def test_the_page_needs_nothing_from_elsewhere(compared: dict, folder: Path) -> None:
    text = (folder / "page" / "compare.html").read_text()
    assert "<script" not in text and not re.search(r"""(src|href)\s*=|url\(|https?://""", text)
    for words in ("dnn", "order", "calibration", "Cost", "not a model retrained", "GMV"):
        assert words in text
    _Balanced().feed(text)


class _Balanced(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, _: object) -> None:
        if tag not in ("meta", "line", "circle", "rect", "polyline"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_mistakes_are_one_sentence(folder: Path, small_store: Path, tmp_path: Path) -> None:
    def fails(words: str, *arguments: str | Path) -> None:
        result = _lsm(*arguments)
        assert result.exit_code == 2 and words in result.stderr and "Traceback" not in result.output, result.output

    run = folder / "tin"
    fails("did you mean 'video'", "eval", run, "--drop-domain", "vidoe")
    fails("no behaviours", "eval", run, "--drop-domain", "ad", "--drop-domain", "video", "--drop-domain", "article")
    fails("give one of them", "eval", run, "--ads-only", "--drop-domain", "video")
    fails("not a run", "eval", run, "--baseline", tmp_path)
    fails("add --baseline", "eval", run, "--out", tmp_path)
    fails("not a common target", "eval", run, "--baseline", run, "--gmv-target", "buy")
    only = folder / "only_click"
    _json("train", "-r", "dnn", "--data", folder / "store", "--out", only, *SMALL, 'data.targets=["click"]')
    other = folder / "only_order"
    _json("train", "-r", "dnn", "--data", folder / "store", "--out", other, *SMALL, 'data.targets=["order"]')
    fails("no target to compare", "eval", only, "--baseline", other)
    half = _json("eval", run, "--baseline", only, "--out", tmp_path)
    assert list(half["against"]["baseline"]["differences"]) == ["click"]
    foreign = tmp_path / "foreign"
    _json("train", "-r", "dnn", "--data", small_store, "--out", foreign, *SMALL)
    fails("another store", "eval", run, "--baseline", foreign)
    fails("have no domain", "eval", foreign, "--ads-only")
    (tmp_path / "file").write_text("")
    fails("choose another --out", "eval", run, "--baseline", run, "--out", tmp_path / "file")
    fails("does not predict order", "simulate", only, "--baseline", "random", "--world-dir", folder / "world")
    fails("not a world", "simulate", run, "--baseline", "random", "--world-dir", tmp_path)
    fails("--data is missing", "simulate", "truth", "--baseline", "random", "--world-dir", folder / "world")
    world = shutil.copytree(folder / "world", tmp_path / "world")
    truth = json.loads((world / "truth.json").read_text())
    (world / "truth.json").write_text(json.dumps(truth | {"seed": 8}))
    fails("from this", "simulate", run, "--baseline", "random", "--world-dir", world)


def test_a_value_column_without_propensities_is_replayed(tmp_path: Path) -> None:
    _json("synth", "--out", tmp_path / "world", "--users", "60")
    _json("build-sequences", tmp_path / "world" / "dataset.toml", "--out", tmp_path / "store")
    _json("train", "-r", "dnn", "--data", tmp_path / "store", "--out", tmp_path / "run", *SMALL)
    found = _json("eval", tmp_path / "run", "--baseline", tmp_path / "run", "--shown", "2")["gmv"]
    assert found["method"] == "replay" and found["unit"] == "day" and found["shown"] == 2
    assert 0 <= found["captured"]["run"] == found["captured"]["other"] <= 1 and found["assumptions"]


def test_the_truth_earns_more_than_chance_and_the_log_knows(folder: Path) -> None:
    found = _json(
        "simulate", "truth", "--baseline", "random", "--world-dir", folder / "world", "--data", folder / "store"
    )
    assert found["real"]["expected"]["low"] > 0.5 and found["real"]["expected"]["word"] == "better"
    assert found["sign_agrees"] and found["within"]
    same = _json("simulate", folder / "tin", "--baseline", folder / "tin", "--world-dir", folder / "world")
    assert same["alike"] == 1 and same["real"]["earned"]["verdict"] == "no difference"
    assert same["offline"]["lift"]["lift"] == 0


def test_the_model_sees_the_history_that_its_policy_made(folder: Path) -> None:
    """What users did becomes behaviours that the world and the store both know at the next request."""
    store = Store.open(folder / "store")
    simulation = Simulation(redraw(folder / "world"), store)
    samples, seen = store.samples("test"), []

    def policy(asked: Round) -> np.ndarray:
        view = asked.view()
        seen.append(view.events)
        users = samples.column("user")[asked.rows]
        ends = view.samples("test").column("end")[asked.rows]
        times = samples.column("time")[asked.rows]
        for row in range(0, len(ends), 97):
            past = view.column("time")[view.offsets[users[row]] : ends[row]]
            assert (past < times[row]).all() and (np.diff(past) >= 0).all()
        return asked.p["order"]

    outcome = simulation.live(policy)
    lost = len(simulation.drawn.events.user) - len(simulation.before.user)
    assert seen[0] == store.events - lost and (np.diff(seen) >= 0).all() and seen[-1] > seen[0]
    orders = int((outcome.earned > 0).sum())
    assert 0 < orders <= seen[-1] - seen[0]
    assert outcome.expected.sum() == pytest.approx(outcome.earned.sum(), rel=0.5)
