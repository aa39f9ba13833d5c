"""A tiny study, and what it left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from typer.testing import CliRunner, Result

from lsm_cli.main import app
from lsm_cli.tuning.plan import Plan
from lsm_cli.tuning.study import Tuning

TINY = [
    "train.batch_size=64",
    "train.threads=1",
    "train.epochs=1",
    "model.max_len=10",
    "model.hidden=[16]",
    "model.bins=4",
]
SPACE = [
    "--space", "model.sequence=tin,stacked_tin",
    "--space", "model.layers=1:3 when model.sequence=stacked_tin",
    "--space", "train.lr=1e-3:1e-1:log",
    "--space", "model.dim=8,16",
]  # fmt: skip


def arguments(store: Path, out: Path, *more: str | Path | int, space: list[str] = SPACE) -> list[str]:
    return [str(a) for a in ("tune", "-r", "stacked_tin", "--data", store, "--out", out, *space, *more, *TINY)]


def tune(store: Path, out: Path, *more: str | Path | int, space: list[str] = SPACE) -> Result:
    return CliRunner().invoke(app, arguments(store, out, *more, space=space))


def found(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def start(store: Path, out: Path, *more: str | Path | int, space: list[str] = SPACE) -> subprocess.Popen[str]:
    """The command in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "lsm_cli.main", *arguments(store, out, *more, space=space)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def opened(out: Path, total: int = 0) -> Tuning:
    return Tuning(Plan.load(out), out, json.loads((out / "study.json").read_text())["storage"], total)


def trials(out: Path) -> list[Any]:
    return opened(out).trials() if (out / "study.json").exists() else []


def outcome(out: Path) -> list[Any]:
    """Everything of the trials that a seed decides."""
    return [(t.number, t.state, t.params, t.values, t.intermediate_values) for t in trials(out)]


def wait_for(condition: Any, process: subprocess.Popen[str], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not condition() and process.poll() is None:
        assert time.monotonic() < until, "it takes too long"
        time.sleep(0.02)


def kill(process: subprocess.Popen[str], out: Path) -> None:
    """kill -9 of the command and all its workers."""
    kill_tree(process, trials(out))


def kill_tree(process: subprocess.Popen[str], known: list[Any]) -> None:
    owners = [(trial.user_attrs.get("owner") or {}).get("pid") for trial in known if trial.state.name == "RUNNING"]
    process.kill()
    for pid in owners:
        if pid and pid != os.getpid():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    process.communicate()
