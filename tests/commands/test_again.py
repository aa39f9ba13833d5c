"""A run is repeated from its folder alone, and a recipe with several seeds."""

from __future__ import annotations

import json
import shutil
import statistics
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

from lsm_cli.commands import sweep
from lsm_cli.engine.environment import code_version
from lsm_cli.engine.run import RunFolder
from lsm_cli.errors import InputError
from lsm_cli.main import app
from tests.small import write_store

SMALL = ["train.batch_size=64", "train.threads=1", "model.max_len=10", "model.hidden=[16]", "model.bins=4"]


def _lsm(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def run(small_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("again") / "first"
    result = _lsm("train", "-r", "stacked_tin", "--data", small_store, "--out", out, *SMALL, "train.seed=3")
    assert result.exit_code == 0, result.output
    return out


def test_from_a_run_gives_the_same_weights_to_the_bit(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # nothing in the folder depends on where it was made
    result = _lsm("train", "--from", run, "--out", "again")
    assert result.exit_code == 0, result.output
    one, two = load_file(run / "model.safetensors"), load_file(tmp_path / "again" / "model.safetensors")
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    assert RunFolder(run).recipe() == RunFolder("again").recipe()
    first, second = (json.loads((folder / "result.json").read_text()) for folder in (run, tmp_path / "again"))
    assert first["test"] == second["test"]


def test_from_with_overrides_changes_only_these(run: Path, tmp_path: Path) -> None:
    assert _lsm("train", "--from", run, "--out", tmp_path / "two", "train.epochs=1").exit_code == 0
    found = json.loads(_lsm("runs", "diff", run, tmp_path / "two", "--json").stdout)
    assert found["recipe"] == {"train.epochs": [3, 1]}


def test_from_refuses_other_data_unless_it_is_named(run: Path, small_store: Path, tmp_path: Path) -> None:
    def fails(words: str, *arguments: str | Path) -> None:
        result = _lsm("train", "--out", tmp_path / "new", *arguments)
        assert result.exit_code == 2 and words in result.stderr and "Traceback" not in result.output
        assert not (tmp_path / "new").exists()

    fails("exactly one of --recipe")
    fails("exactly one of --recipe", "--from", run, "-r", "tin")
    fails("--data is missing", "-r", "tin")
    fails("not a run", "--from", tmp_path)
    moved = shutil.copytree(run, tmp_path / "moved")
    data = json.loads((moved / "data.json").read_text())
    (moved / "data.json").write_text(json.dumps({**data, "path": str(tmp_path / "gone")}))
    fails("is gone; give --data", "--from", moved)
    other = write_store(tmp_path / "other", seed=1)
    (moved / "data.json").write_text(json.dumps({**data, "path": str(other)}))
    fails("events/action.npy", "--from", moved)
    (moved / "data.json").write_text("{")
    fails("data.json: missing or damaged", "--from", moved)
    result = _lsm("train", "--from", run, "--data", other, "--out", tmp_path / "new", "train.epochs=1")
    assert result.exit_code == 0 and "other data than that run's" in result.stderr


def test_the_environment_names_the_code(run: Path, tmp_path: Path) -> None:
    known = json.loads((run / "environment.json").read_text())
    assert {"python", "torch", "numpy", "threads", "command", "started"} <= known.keys()
    assert known["code"]["sha256"] == code_version()["sha256"]
    if "commit" in known["code"]:
        assert len(known["code"]["commit"]) == 40 and isinstance(known["code"]["dirty"], bool)
    package = tmp_path / "site" / "lsm_cli"
    package.mkdir(parents=True)
    (package / "one.py").write_text("a = 1\n")
    installed = code_version(package)
    assert installed.keys() == {"sha256"}, "an installed package is in no checkout of its own"
    (package / "one.py").write_text("a = 2\n")
    assert code_version(package) != installed


@pytest.fixture(scope="module")
def swept(small_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("seeds") / "sweep"
    result = _lsm("train", "-r", "tin", "--data", small_store, "--out", out, "--seeds", "3", *SMALL, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == json.loads((out / "summary.json").read_text())
    return out


def test_seeds_are_swept_and_summed_up(swept: Path, small_store: Path, tmp_path: Path) -> None:
    found = json.loads((swept / "summary.json").read_text())
    assert found["seeds"] == [0, 1, 2] and [run["seed"] for run in found["runs"]] == [0, 1, 2]
    values = [json.loads((swept / f"seed-{n}" / "result.json").read_text())["test"]["click"]["auc"] for n in range(3)]
    assert len(set(values)) == 3
    assert found["test"]["click"]["auc"] == pytest.approx(statistics.mean(values))
    assert found["sd"]["click"]["auc"] == pytest.approx(statistics.stdev(values))
    ledger = [json.loads(line) for line in (swept / "ledger.jsonl").read_text().splitlines()]
    assert [line["seed"] for line in ledger] == [0, 1, 2]
    assert "±" in (swept / "report.html").read_text()
    single = _lsm(
        "train", "-r", "tin", "--data", small_store, "--out", tmp_path / "one", "--seed", "1", *SMALL, "--json"
    )
    assert json.loads(single.stdout)["test"]["click"]["auc"] == values[1], "a sweep is made of ordinary runs"


def test_a_stopped_sweep_goes_on_with_the_first_unfinished_run(swept: Path, small_store: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(swept, tmp_path / "sweep"))
    before = json.loads((out / "summary.json").read_text())
    for name in ("summary.json", "report.html", "seed-1/result.json"):
        (out / name).unlink()
    shutil.rmtree(out / "seed-2")
    kept = (out / "seed-0" / "state.pt").stat().st_mtime_ns
    command = ["train", "-r", "tin", "--data", small_store, "--out", out, "--seeds", "0,1,2", *SMALL]
    assert "--resume" in _lsm(*command).stderr
    assert _lsm(*command, "--resume").exit_code == 0
    assert (out / "seed-0" / "state.pt").stat().st_mtime_ns == kept
    after = json.loads((out / "summary.json").read_text())
    assert after["test"] == before["test"] and after["sd"] == before["sd"]
    result = _lsm(*command, "--resume", "model.dim=4")
    assert result.exit_code == 2 and "another recipe" in result.stderr


def test_mistakes_with_seeds_are_one_sentence(run: Path, small_store: Path, tmp_path: Path) -> None:
    for text in ("", "0", "x", "1,1", "-1", "1.5", "101"):
        with pytest.raises(InputError, match="--seeds"):
            sweep.numbers(text)
    assert sweep.numbers("2") == [0, 1] and sweep.numbers("0,1,7") == [0, 1, 7] and sweep.numbers("5,") == [5]
    command = ["train", "-r", "tin", "--data", small_store, "--seeds", "2"]
    both = _lsm(*command, "--seed", "1", "--out", tmp_path / "new")
    assert both.exit_code == 2 and "only one" in both.stderr and not (tmp_path / "new").exists()
    assert "single run" in _lsm(*command, "--out", run).stderr
    (tmp_path / "file.txt").write_text("precious")
    assert "not empty" in _lsm(*command, "--out", tmp_path).stderr


def test_mean_and_deviation() -> None:
    assert sweep.mean_sd([1.0]) == (1.0, None) and sweep.mean_sd([1.0, None]) == (None, None)
    assert sweep.mean_sd([1.0, 3.0]) == (2.0, pytest.approx(2**0.5))
