"""lsm profile as a user meets it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lsm_cli.main import app

FAST = ["--steps", "4", "train.batch_size=64", "model.max_len=10", "train.threads=1", "train.device=cpu"]


def _run(*arguments: str) -> tuple[int, str, str]:
    found = CliRunner().invoke(app, ["profile", *arguments])
    return found.exit_code, found.stdout, found.stderr


def test_json_and_report_without_polars_or_optuna(small_store: Path, tmp_path: Path) -> None:
    out = tmp_path / "profile"
    program = (
        "import sys\nfrom lsm_cli.main import app\n"
        "try:\n    app(sys.argv[1:])\nfinally:\n    assert not {'polars', 'optuna', 'pandas'} & set(sys.modules)\n"
    )
    arguments = ["profile", "-r", "stacked_tin", "--data", str(small_store), "--out", str(out), "--json", *FAST]
    arguments += ["--ablate", "--rounds", "1", "--sweep", "model.max_len=5,10", "model.layers=1,2"]
    found = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    result = json.loads(found.stdout)
    assert result == json.loads((out / "profile.json").read_text())
    assert result["samples_per_second"] > 0 and result["behaviours_per_second"] > 0
    parts = dict(result["step_ms"])
    assert abs(sum(parts.values()) - 2 * parts["total"]) < 0.05 * parts["total"]
    assert {"peak_allocated", "peak_reserved", "fragmentation"} <= result["memory"].keys()
    assert all(isinstance(ratio, float) for ratio in result["ablation"].values())
    assert [point["options"] for point in result["sweep"]] == [
        {"model.max_len": a, "model.layers": b} for a in ("5", "10") for b in ("1", "2")
    ]
    page = (out / "report.html").read_text()
    assert "<script" not in page and not re.search(r"(src|href)=", page) and "http" not in page
    assert page.count("<svg") >= 6  # breakdown, memory twice, roofline, scaling twice, ablation
    names = {event.get("name") for event in json.loads((out / "trace.json").read_text())["traceEvents"]}
    assert {"attention", "backward", "rows"} <= names
    assert not list(tmp_path.glob(".*"))


def test_tables_for_people(small_store: Path, tmp_path: Path) -> None:
    code, stdout, _ = _run("-r", "dnn", "--data", str(small_store), "--phase", "infer", *FAST)
    assert code == 0
    for words in ("scored samples/s", "Where a step's time goes", "Memory of the heaviest step", "Against the device"):
        assert words in stdout
    code, stdout, _ = _run("-r", "tin", "--data", str(small_store), "--estimate", "--out", str(tmp_path / "e"), *FAST)
    assert code == 0 and "nothing of it was run" in stdout
    assert json.loads((tmp_path / "e" / "profile.json").read_text())["estimate"]["peak_allocated"] > 0


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--phase", "both"], "--phase both"),
        (["--sweep", "model.max_lem=1,2"], "model.max_len"),
        (["--sweep", "train.batch_size=8,0"], "train.batch_size"),
        (["--sweep", "train.batch_size"], "key=v1,v2"),
        (["engine.kernels=fast"], "engine.kernels"),
        (["engine.sparse_rows=false", "train.table_optimizer=adam"], "engine.sparse_rows"),
    ],
)
def test_mistakes_are_named(small_store: Path, arguments: list[str], named: str) -> None:
    code, stdout, stderr = _run("-r", "tin", "--data", str(small_store), *arguments)
    assert code == 2 and named in stderr and not stdout


def test_a_folder_with_something_else_is_left_alone(small_store: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    code, _, stderr = _run("-r", "tin", "--data", str(small_store), "--out", str(tmp_path), *FAST)
    assert code == 2 and "something else" in stderr
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]
