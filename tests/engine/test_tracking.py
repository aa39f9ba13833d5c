"""Trackers: each validation arrives once, over interruptions too, and none of them can stop a training."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from lsm_cli import recipe as recipes
from lsm_cli.data.store import Store
from lsm_cli.engine.run import RunFolder
from lsm_cli.engine.tracking import Tracking
from lsm_cli.errors import LsmError
from lsm_cli.main import app

SMALL = ["train.batch_size=64", "train.threads=1", "model.max_len=10", "model.hidden=[16]", "model.bins=4"]
METRICS = {"auc": 0.7, "gauc": None, "logloss": 0.5, "calibration": 1.0}


def _line(step: int) -> dict:
    return {"step": step, "train_loss": 1.0 / step, "valid": {"click": METRICS}}


def _train(store: Path, out: Path, *more: str) -> Result:
    return CliRunner().invoke(app, ["train", "-r", "tin", "--data", str(store), "--out", str(out), *SMALL, *more])


@pytest.fixture
def run(small_store: Path, tmp_path: Path) -> RunFolder:
    folder = RunFolder.start(tmp_path / "run", recipes.load("tin"), Store.open(small_store), resume=False)
    yield folder
    folder.close()


class _Failing:
    """Works until a step."""

    def __init__(self, until: int) -> None:
        self.until, self.seen = until, []

    def start(self, lines: list) -> None:
        if self.until < 0:
            raise ConnectionError("refused\nby the server")

    def log(self, line: dict) -> None:
        if line["step"] > self.until:
            raise ConnectionError("gone")
        self.seen.append(line["step"])

    def finish(self, result: dict | None) -> None:
        self.seen.append("finished")


def test_metrics_jsonl_is_whole_after_every_line(run: RunFolder) -> None:
    tracking = Tracking(recipes.load("tin"), run)
    tracking.start([_line(1)])
    for step in (2, 3):
        tracking.log(_line(step))
        lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
        assert lines == [_line(n) for n in range(1, step + 1)] == tracking.lines


def test_a_tracker_that_fails_on_the_way_is_left_out_and_named(run: RunFolder) -> None:
    tracking, bad, good = Tracking(recipes.load("tin"), run), _Failing(1), _Failing(9)
    tracking.others = {"bad": bad, "good": good}
    tracking.start([])
    for step in (1, 2, 3):
        tracking.log(_line(step))
    tracking.finish({})
    assert bad.seen == [1] and good.seen == [1, 2, 3, "finished"] and len(tracking.lines) == 3
    assert tracking.lost == [("bad", "ConnectionError: gone")]
    tracking.others = {"bad": _Failing(-1)}
    with pytest.raises(LsmError, match=r"bad could not be started \(ConnectionError: refused\)"):
        tracking.start([])


@pytest.mark.parametrize(
    ("option", "name"), [('train.track=["mlflow"]', "mlflow"), ("train.tensorboard=true", "tensorboard")]
)
def test_a_missing_package_is_one_sentence_and_nothing_is_written(
    option: str, name: str, small_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    result = _train(small_store, tmp_path / "run", option)
    assert result.exit_code == 2 and f"pip install 'lsm-cli[{name}]'" in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="extra `tensorboard`")
@pytest.mark.parametrize("option", ['train.track=["tensorboard"]', "train.tensorboard=true"])
def test_tensorboard_holds_the_curves(option: str, small_store: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = tmp_path / "run"
    assert _train(small_store, out, option).exit_code == 0
    found = EventAccumulator(str(out / "tensorboard")).Reload()
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    auc = [line["valid"]["click"]["auc"] for line in lines]
    assert [event.value for event in found.Scalars("valid/click/auc")] == pytest.approx(auc)


@pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="extra `mlflow`")
def test_mlflow_holds_parameters_curves_and_result(
    small_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    where = (tmp_path / "tracked").as_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", where)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "ads")
    out = tmp_path / "run"
    result = _train(small_store, out, 'train.track=["mlflow"]')
    assert result.exit_code == 0 and "warning" not in result.stderr, result.output
    client = MlflowClient(where)
    (tracked,) = client.search_runs([client.get_experiment_by_name("ads").experiment_id])
    assert tracked.info.status == "FINISHED" and tracked.info.run_name == "run"
    assert tracked.data.params["model.sequence"] == "tin" and tracked.data.params["name"] == "tin"
    said = json.loads((out / "result.json").read_text())
    assert tracked.data.metrics["test/click/auc"] == pytest.approx(said["test"]["click"]["auc"])
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    curve = client.get_metric_history(tracked.info.run_id, "valid/click/auc")
    assert [(point.step, point.value) for point in curve] == [
        (line["step"], pytest.approx(line["valid"]["click"]["auc"])) for line in lines
    ]
    again = CliRunner().invoke(app, ["train", "--from", str(out), "--out", str(out), "--resume"])
    assert again.exit_code == 0
    assert len(client.search_runs([tracked.info.experiment_id])) == 1, "a resumed run goes on with its own curves"
