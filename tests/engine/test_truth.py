"""On a world whose truth is known, the whole chain finds most of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lsm_cli.main import app


def _lsm(*arguments: object) -> dict:
    result = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.mark.slow
def test_stacked_tin_closes_most_of_the_gap_to_the_truth(tmp_path: Path) -> None:
    _lsm("synth", "--out", tmp_path / "world")
    _lsm("build-sequences", tmp_path / "world" / "dataset.toml", "--out", tmp_path / "store")
    plain, stacked = (
        _lsm("train", "-r", recipe, "--data", tmp_path / "store", "--out", tmp_path / recipe)["test"]
        for recipe in ("dnn", "stacked_tin")
    )
    for target in ("click", "order"):
        low, high = plain[target]["auc"], stacked[target]["truth"]["auc"]
        assert (stacked[target]["auc"] - low) / (high - low) > 0.8


def test_the_shipped_samples_show_that_the_sequence_helps(tmp_path: Path) -> None:
    samples = Path(__file__).parents[2] / "data_samples" / "dataset.toml"
    _lsm("build-sequences", samples, "--out", tmp_path / "store")
    plain, stacked = (
        _lsm("train", "-r", recipe, "--data", tmp_path / "store", "--out", tmp_path / recipe)["test"]
        for recipe in ("dnn", "stacked_tin")
    )
    tested = _lsm("eval", tmp_path / "stacked_tin", "--shuffle-history")
    assert stacked["click"]["auc"] > plain["click"]["auc"] + 0.08
    assert tested["shuffled"]["click"]["auc"] < tested["test"]["click"]["auc"] - 0.08
    assert stacked["click"]["auc"] < stacked["click"]["truth"]["auc"] + 0.01, "nobody beats the truth"
