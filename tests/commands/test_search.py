"""`lsm search` as a user meets it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from lsm_cli.main import app

SMALL = ["train.epochs=1", "train.batch_size=64", "train.threads=1", "search.top_k=5", "search.hard_k=2"]


def _lsm(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def _json(*arguments: object) -> dict:
    done = _lsm("search", *arguments, "--json", "-q")
    assert done.exit_code == 0, done.output
    assert done.stderr == ""
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def runs(small_store: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    for name in ("tin", "mean_pool"):
        done = _lsm("train", "-r", name, "--data", small_store, "--out", folder / name, *SMALL, "model.dim=8")
        assert done.exit_code == 0, done.output
    return {name: folder / name for name in ("tin", "mean_pool")}


def test_says_what_it_decided_found_and_what_comes_next(
    small_store: Path, runs: dict[str, Path], tmp_path: Path
) -> None:
    done = _lsm(
        "search", "-r", "hier_hard", "--data", small_store, "--run", runs["tin"], "--split", "all",
        "--out", tmp_path / "found", "--sample", 100, *SMALL,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    for words in ("600 train, 200 valid, 200 test", "item > category2 > category1 > any", "100 of the samples"):
        assert words in done.stderr
    for words in ("budget filled", "category2", "11–50", "queries/s", "recall@5", "by scenario", "days back"):
        assert words in done.stdout
    assert f"next: lsm train --recipe hier_hard --data {small_store}" in done.stdout
    assert f"search.from={tmp_path / 'found'}" in done.stdout
    page = (tmp_path / "found" / "report.html").read_text()
    assert page.count("<svg") == 3 and "recall@5" in page
    kept = json.loads((tmp_path / "found" / "result.json").read_text())
    assert kept["judged_samples"] <= 100 and kept["samples"] == 1000


def test_json_has_every_figure_whatever_is_searched(small_store: Path, runs: dict[str, Path]) -> None:
    hard = _json("-r", "hier_hard", "--data", small_store, *SMALL)
    soft = _json("--run", runs["tin"], "search.method=soft", *SMALL)  # the run knows its store and recipe
    assert hard.keys() == soft.keys()
    assert hard["recall_at_k"] is None and hard["scores"] is None
    assert soft["recall_at_k"] == pytest.approx(1) and soft["ndcg_at_k"] == pytest.approx(1)
    assert soft["scores"]["found"]["p50"] > soft["scores"]["within_reach"]["p50"]
    for found in (hard, soft):
        assert 0 < found["filled"] <= found["filled_of_possible"] <= 1
        assert found["queries_per_second"] > 0 and found["queries_per_second_by_history"].keys() >= {"11–50"}


def test_hashed_and_hybrid_searches_go_by_the_run(small_store: Path, runs: dict[str, Path]) -> None:
    recall = {
        name: _json("-r", recipe, "--data", small_store, "--run", runs["tin"], *SMALL, *own)["recall_at_k"]
        for name, recipe, *own in (
            ("twin", "twin"),
            ("sim_soft", "sim_soft"),
            ("eta", "eta"),
            ("sdim", "tin", "search.method=sdim"),
            ("hybrid", "hybrid"),
        )
    }
    assert recall["twin"] == pytest.approx(1) and all(0 < value <= 1 for value in recall.values())
    assert min(recall["sim_soft"], recall["eta"], recall["sdim"]) < 1


def test_the_most_recent_are_a_search_too(small_store: Path, runs: dict[str, Path]) -> None:
    done = _lsm("search", "-r", "tin", "--data", small_store, "model.max_len=3")
    assert "the most recent 3" in done.stderr and "any" in done.stdout
    found = _json("-r", "tin", "--data", small_store, "--run", runs["tin"], "model.max_len=3")
    assert found["budget"] == 3 and found["reach_rank"] == 2 and found["in_reach"]["p90"] > 3
    assert 0 < found["recall_at_k"] < 1  # judged by all behaviours before the request, not by the three


def test_a_store_without_an_index_is_scanned(tmp_path: Path, small_store: Path) -> None:
    from tests.small import write_store

    plain = write_store(tmp_path / "plain")
    done = _lsm("search", "-r", "hier_hard", "--data", plain, *SMALL)
    assert done.exit_code == 0 and "no index" in done.stderr
    ignored = {"queries_per_second", "queries_per_second_by_history"}
    one, two = (_json("-r", "hier_hard", "--data", store, *SMALL) for store in (plain, small_store))
    assert {k: v for k, v in one.items() if k not in ignored} == {k: v for k, v in two.items() if k not in ignored}


BAD = {
    "no attention": (["-r", "hier_hard", "--run", "{mean_pool}"], "no attention to search or judge by"),
    "model of a run changed": (["--run", "{tin}", "model.dim=4"], "model.dim=4: the model of"),
    "nothing to search": (["-r", "dnn", "--data", "{store}"], "reads no history"),
    "nothing read": (["-r", "tin", "--data", "{store}", "model.max_len=0"], "reads no history"),
    "found before": (["-r", "tin", "--data", "{store}", "search.from=found"], "leave this key out"),
    "no store": (["-r", "hier_hard"], "--data is missing"),
    "another store": (["-r", "hier_hard", "--run", "{tin}", "--data", "{other}"], "was trained on another store"),
    "unknown split": (["-r", "hier_hard", "--data", "{store}", "--split", "tset"], "no split 'tset'"),
    "a file in the way": (["-r", "hier_hard", "--data", "{store}", "--out", "{file}"], "not a result of `lsm search`"),
    "no folder to write in": (["-r", "hier_hard", "--data", "{store}", "--out", "{file}/x"], "cannot be created"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence(case: str, small_store: Path, runs: dict[str, Path], tmp_path: Path) -> None:
    arguments, words = BAD[case]
    other, file = shutil.copytree(small_store, tmp_path / "other"), tmp_path / "file"
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["files"]["taxonomy/rows.npy"]["sha256"] = "0"
    (other / "manifest.json").write_text(json.dumps(manifest))
    file.write_text("precious")
    names = {"store": small_store, "other": other, "file": file, **runs}
    done = _lsm("search", *(argument.format(**names) for argument in arguments))
    assert done.exit_code == 2, done.output
    assert words in done.stderr and done.stderr.count("error:") == 1 and "Traceback" not in done.output
    assert file.read_text() == "precious"
