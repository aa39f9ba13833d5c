"""lsm doctor says what is there, tests it, and fails when something does not work."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from typer.testing import CliRunner

from lsm_cli.engine import machine, selftest
from lsm_cli.kernels import ragged
from lsm_cli.main import app

WITHOUT = (
    "import sys; sys.modules['polars'] = sys.modules['optuna'] = None; "
    "from lsm_cli.main import main; sys.argv[0] = 'lsm'; main()"
)


def test_it_works_where_polars_and_optuna_are_missing_and_says_so() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, "doctor", "--json"], capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    assert found["ok"] and {check["name"]: check["ok"] for check in found["checks"]}.items() >= {
        "libraries": True, "store": True, "kernels": True, "search": True, "training": True, "save and load": True,
        "bf16": True,
    }.items()  # fmt: skip
    missing = next(check for check in found["checks"] if check["name"] == "optional libraries")
    assert missing["ok"] is None and "polars (needed to build stores" in missing["detail"]
    assert found["environment"]["libraries"]["torch"] == torch.__version__
    assert {"memory", "disk", "cuda", "allocator", "kernels", "threads", "code"} <= found["environment"].keys()


def test_a_kernel_that_computes_something_else_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = ragged._cells
    monkeypatch.setattr(ragged, "_cells", lambda weight, at: 1.01 * right(weight, at))
    result = CliRunner().invoke(app, ["doctor", "--json"])
    assert result.exit_code == 1 and "checks failed: kernels" in result.stderr
    found = json.loads(result.stdout)
    failed = [check for check in found["checks"] if check["ok"] is False]
    assert not found["ok"] and [check["name"] for check in failed] == ["kernels"] and failed[0]["remedy"]


def test_what_goes_wrong_is_told_and_does_not_end_the_test(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **options: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(selftest, "write_store", broken)
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 1
    assert "OSError: no space left" in result.stdout and "Traceback" not in result.output
    for name in ("store", "search", "training", "bf16"):
        assert name in result.stderr
    assert "kernels" not in result.stderr


def test_versions_are_compared_by_number() -> None:
    assert machine.too_old("2.9.1", "2.11") and not machine.too_old("2.13.0+cpu", "2.11")
    assert not machine.too_old("2.11", "2.11") and machine.requirements()["torch"] == "2.11"
