"""The commands as a user meets them: output, JSON, exit codes, and one sentence per mistake."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from lsm_cli.main import app

SMALL = ["train.batch_size=64", "train.threads=1", "model.max_len=10", "model.hidden=[16]", "model.bins=4"]


def _lsm(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def run(small_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "tin"
    result = _lsm("train", "-r", "tin", "--data", small_store, "--out", out, *SMALL)
    assert result.exit_code == 0, result.output
    return out


def test_train_says_what_it_decided_and_what_comes_next(run: Path, small_store: Path, tmp_path: Path) -> None:
    result = _lsm("train", "-r", "dnn", "--data", small_store, "--out", tmp_path / "run", *SMALL)
    assert result.exit_code == 0
    for word in ("device", "fields", "targets", "tables", "click", "order", "samples/s"):
        assert word in result.output
    assert "next: lsm eval" in result.stdout


def test_train_and_eval_json_is_the_only_thing_on_stdout(small_store: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    trained = _lsm("train", "-r", "tin", "--data", small_store, "--out", out, "--json", *SMALL)
    value = json.loads(trained.stdout)
    assert {"auc", "gauc", "logloss", "calibration", "n"} <= value["test"]["click"].keys()
    assert value["samples_per_second"] > 0 and value["peak_memory_bytes"] > 0
    tested = json.loads(_lsm("eval", out, "--json", "--shuffle-history").stdout)
    assert tested["test"]["click"]["auc"] == pytest.approx(value["test"]["click"]["auc"], abs=1e-9)
    assert tested["shuffled"]["click"]["auc"] < value["test"]["click"]["auc"]
    assert {"scenario", "history"} <= tested["test"]["order"]["slices"].keys()
    ledger = (tmp_path / "ledger.jsonl").read_text().splitlines()
    assert json.loads(ledger[0])["test"]["click"]["n"] == value["test"]["click"]["n"]


def test_quiet_train_prints_no_decisions(small_store: Path, tmp_path: Path) -> None:
    result = _lsm("train", "-r", "tin", "--data", small_store, "--out", tmp_path / "run", "-q", *SMALL)
    assert result.stderr == ""


def test_a_run_holds_what_repeats_it(run: Path, small_store: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    result = _lsm("train", "-r", run / "recipe.toml", "--data", small_store, "--out", again)
    assert result.exit_code == 0
    first, second = (json.loads((folder / "result.json").read_text())["test"] for folder in (run, again))
    assert first == second


def test_recipes_commands(tmp_path: Path) -> None:
    assert "stacked_tin" in _lsm("recipes", "ls").stdout
    assert "model.max_len" in _lsm("recipes", "show", "din").stdout
    copy = tmp_path / "mine.toml"
    assert _lsm("recipes", "cp", "din", copy).exit_code == 0
    assert _lsm("recipes", "check", copy, "tin").exit_code == 0
    assert _lsm("recipes", "cp", "din", copy).exit_code == 2


def test_shipped_recipes_are_short() -> None:
    from lsm_cli import recipe

    for name in recipe.shipped():
        assert len(recipe.find(name).read_text().splitlines()) < 30
        assert recipe.load(name).description


def test_all_recipe_errors_are_reported_at_once(tmp_path: Path) -> None:
    file = tmp_path / "bad.toml"
    file.write_text("[model]\nlayerz = 3\ndim = -1\n[train]\nlr = 'fast'\n[modle]\n")
    result = _lsm("recipes", "check", file)
    assert result.exit_code == 2
    for words in ("'model.layerz'; did you mean 'model.layers'?", "model.dim = -1", "train.lr = 'fast'", "modle"):
        assert words in result.stderr
    assert result.stderr.count(str(file)) == 4


BAD = {
    "unknown recipe": (["-r", "stacked_tim"], "did you mean 'stacked_tin'?"),
    "no recipe file": (["-r", "nowhere/x.toml"], "no such recipe file"),
    "unknown key": (["-r", "tin", "model.lairs=3"], "did you mean 'model.layers'?"),
    "key in the wrong section": (["-r", "tin", "train.max_len=3"], "did you mean 'model.max_len'?"),
    "value out of range": (["-r", "tin", "model.layers=99"], "less than or equal to 8"),
    "value of the wrong type": (["-r", "tin", "train.epochs=many"], "train.epochs = 'many'"),
    "no such choice": (["-r", "tin", "model.sequence=lstm"], "'din'"),
    "override without value": (["-r", "tin", "model.layers"], "section.key=value"),
    "override of a section": (["-r", "tin", "name.x=3"], "not a section"),
    "unknown field": (["-r", "tin", 'data.fields=["itm"]'], "did you mean 'item'?"),
    "unknown target": (["-r", "tin", 'data.targets=["clck"]'], "did you mean 'click'?"),
    "weight of an unknown target": (["-r", "tin", "train.weights={buy=2}"], "train.weights"),
    "a field twice": (["-r", "tin", 'data.fields=["item","item"]'], "data.fields: 'item' is there twice"),
    "a target twice": (["-r", "tin", 'data.targets=["click","click"]'], "data.targets: 'click' is there twice"),
    "nothing to train": (["-r", "tin", "train.weights={click=0,order=0}"], "every target that is trained has weight 0"),
    "no GPU": (["-r", "tin", "train.device=cuda"], "no CUDA device"),
    "fp16 on the CPU": (["-r", "tin", "train.device=cpu", "train.precision=fp16"], "bf16 or fp32"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_training_input_is_one_sentence(case: str, small_store: Path, tmp_path: Path) -> None:
    arguments, words = BAD[case]
    out = tmp_path / "run"
    result = _lsm("train", "--data", small_store, "--out", out, *arguments)
    assert result.exit_code == 2, result.output
    assert words in result.stderr and "Traceback" not in result.output
    assert not out.exists(), "nothing half-written"


UNKNOWN = {
    "nobody has both": ({"click": "user", "order": "user"}, [], "no user has both classes; use train.metric=logloss"),
    "only by a target of weight 0": ({"click": "user"}, ["train.weights={order=0}"], "no user has both classes"),
    "one class": ({"click": 1, "order": 1}, ["train.metric=auc"], "they have not both classes; use train.metric=log"),
    "nothing observed": ({"click": -1, "order": -1}, ["train.metric=logloss"], "was observed there; name another in"),
    "not what is trained": ({"order": -1}, ['data.targets=["order"]'], "was observed there; name another in"),
}


@pytest.mark.parametrize("case", UNKNOWN)
def test_a_metric_that_validation_labels_do_not_allow_is_refused(tmp_path: Path, case: str) -> None:
    from tests.small import write_store

    labels, overrides, words = UNKNOWN[case]
    store, out = write_store(tmp_path / "store"), tmp_path / "run"
    user = np.load(store / "samples/valid/user.npy")
    for target, label in labels.items():
        values = user % 2 if label == "user" else np.full(len(user), label)
        np.save(store / f"samples/valid/label.{target}.npy", values.astype(np.int8))
    result = _lsm("train", "-r", "tin", "--data", store, "--out", out, *SMALL, *overrides)
    assert result.exit_code == 2, result.output
    assert words in result.stderr and len(result.stderr.splitlines()) == 1
    assert not out.exists(), "nothing half-written"


def test_bad_stores(small_store: Path, tmp_path: Path) -> None:
    def fails(data: Path, words: str) -> None:
        out = tmp_path / "run"
        result = _lsm("train", "-r", "tin", "--data", data, "--out", out, *SMALL)
        assert result.exit_code == 2 and words in result.stderr and "Traceback" not in result.output
        assert not out.exists()

    fails(tmp_path / "nowhere", "not a store")
    store = shutil.copytree(small_store, tmp_path / "store")
    manifest = json.loads((store / "manifest.json").read_text())

    def change(**values: object) -> None:
        (store / "manifest.json").write_text(json.dumps({**manifest, **values}))

    change(format=99)
    fails(store, "store format 99")
    (store / "manifest.json").write_text("{")
    fails(store, "not valid JSON")
    change(counts={**manifest["counts"], "samples": {"train": 600, "valid": 0, "test": 0}})
    fails(store, "no valid samples")
    change()
    (store / "events" / "item.npy").unlink()
    fails(store, "events/item.npy is missing")


def test_bad_runs(run: Path, small_store: Path, tmp_path: Path) -> None:
    from tests.small import write_store

    def fails(words: str, *arguments: str | Path) -> None:
        result = _lsm(*arguments)
        assert result.exit_code == 2 and words in result.stderr and "Traceback" not in result.output

    fails("already holds a run", "train", "-r", "tin", "--data", small_store, "--out", run, *SMALL)
    fails("another recipe", "train", "-r", "tin", "--data", small_store, "--out", run, "--resume")
    other = write_store(tmp_path / "other", items=40, seed=5)
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["files"]["taxonomy/rows.npy"]["sha256"] = "0"
    (other / "manifest.json").write_text(json.dumps(manifest))
    fails("another store", "train", "-r", "tin", "--data", other, "--out", run, "--resume", *SMALL)
    fails("another store", "eval", run, "--data", other)
    fails("not a run", "eval", tmp_path)
    fails("no split 'tset'", "eval", run, "--split", "tset")
    occupied = tmp_path / "occupied"
    occupied.mkdir()
    (occupied / "thesis.txt").write_text("precious")
    fails("not empty", "train", "-r", "tin", "--data", small_store, "--out", occupied, *SMALL)
    broken = shutil.copytree(run, tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"oops")
    fails("damaged", "eval", broken)
    (broken / "model.safetensors").unlink()
    fails("no weights yet", "eval", broken)
    (broken / "state.pt").write_bytes(b"oops")
    fails("damaged", "train", "-r", broken / "recipe.toml", "--data", small_store, "--out", broken, "--resume")


def test_a_full_disk_is_one_sentence(small_store: Path, tmp_path: Path) -> None:
    """Files may not grow beyond 64 KiB: what a full disk looks like to a program."""
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16)); "
        "from lsm_cli.main import main; sys.argv[0] = 'lsm'; main()"
    )
    out = tmp_path / "run"
    command = ["train", "-r", "stacked_tin", "--data", small_store, "--out", out, *SMALL, "model.hidden=[256]"]
    result = subprocess.run(
        [sys.executable, "-c", code, *map(str, command)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert "could not be written" in result.stderr and "Traceback" not in result.stderr
    assert not (out / "model.safetensors").exists() and not list(out.glob("*.tmp"))


def test_diverging_training_says_so(small_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lsm_cli.engine.train.Trainer._loss", lambda self, logits, *_: logits.sum() * float("nan"))
    result = _lsm("train", "-r", "tin", "--data", small_store, "--out", tmp_path / "run", *SMALL)
    assert result.exit_code == 1 and "smaller train.lr" in result.stderr and "Traceback" not in result.output


def test_help_starts_as_fast_as_its_libraries() -> None:
    """The promise is 1.5 times; the test allows 3, as machines are noisy."""

    def best(*command: str) -> float:
        times = []
        for _ in range(5):
            started = time.perf_counter()
            subprocess.run([sys.executable, *command], check=True, capture_output=True)
            times.append(time.perf_counter() - started)
        return min(times)

    assert best("-m", "lsm_cli.main", "--help") < 3 * best("-c", "import typer, rich")


def test_help_needs_no_heavy_import() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from lsm_cli.main import app; "
        "CliRunner().invoke(app, ['--help']); "
        "print([name for name in ('torch', 'polars', 'optuna', 'pydantic', 'numpy') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert result.stdout.strip() == "[]"


def test_what_a_gpu_machine_does_needs_neither_polars_nor_optuna(small_store: Path, tmp_path: Path) -> None:
    """A store built elsewhere is trained on, judged, searched and gone on with; `lsm profile` has a test of its own."""
    code = (
        "import sys; sys.modules['polars'] = sys.modules['optuna'] = None; "
        "from lsm_cli.main import app\n"
        "for command in sys.argv[1:]: assert not app(command.split(), standalone_mode=False), command"
    )
    first, again, small = tmp_path / "first", tmp_path / "again", " ".join(SMALL)
    commands = [
        f"train -r hier_hard --data {small_store} --out {first} -q train.epochs=1 {small}",
        f"train --from {first} --out {again} -q",
        f"eval {first} --shuffle-history --attention -q",
        f"eval {first} --baseline {again} -q",
        f"search -r twin --data {small_store} --run {first} -q train.threads=1",
        f"runs {tmp_path} -q",
        "recipes ls -q",
    ]
    result = subprocess.run([sys.executable, "-c", code, *commands], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert (again / "model.safetensors").read_bytes() == (first / "model.safetensors").read_bytes()
