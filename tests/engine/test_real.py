"""Public logs, as downloaded, go through the whole chain."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lsm_cli.main import app


@pytest.mark.parametrize("name", ["taobao", "kuairand"])
def test_public_logs_build_train_and_evaluate(name: str, shared_data: Path, tmp_path: Path) -> None:
    def lsm(*arguments: object) -> dict:
        result = CliRunner().invoke(app, [*map(str, arguments), "--json"])
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    store, run = tmp_path / "store", tmp_path / "run"
    lsm("build-sequences", name, "--root", shared_data / name, "--out", store)
    trained = lsm("train", "-r", "stacked_tin", "--data", store, "--out", run, "train.epochs=1", "model.hidden=[32]")
    tested = lsm("eval", run)
    for target, entry in trained["test"].items():
        assert entry["n"] > 0 and 0 < entry["logloss"] < 2
        assert tested["test"][target]["auc"] == entry["auc"]
