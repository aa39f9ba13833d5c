"""A killed run, resumed, ends as if it had never been killed: to the bit."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

OVERRIDES = [
    "train.batch_size=16",
    "train.epochs=3",
    "train.checkpoint_seconds=0",
    "train.threads=1",
    "model.max_len=10",
    "model.dropout=0.1",
    "train.ema=0.9",
    "train.unknown=0.05",
    "model.hidden=[16]",
    "model.bins=4",
]


def _command(store: Path, out: Path, *more: str) -> list[str]:
    recipe = ["--recipe", "stacked_tin", "--data", str(store), "--out", str(out), "--quiet"]
    return [sys.executable, "-m", "lsm_cli.main", "train", *recipe, *more, *OVERRIDES]


def _result(out: Path) -> tuple[dict, dict, list]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        del line["samples_per_second"], line["validation_seconds"]
    state = torch.load(out / "state.pt", weights_only=True)
    return load_file(out / "model.safetensors"), state, lines


def _assert_same(a: object, b: object, place: str = "state") -> None:
    if isinstance(a, torch.Tensor):
        assert isinstance(b, torch.Tensor) and torch.equal(a, b), place
    elif isinstance(a, dict):
        assert isinstance(b, dict) and a.keys() == b.keys(), place
        for key in a:
            if key not in ("seconds", "samples_per_second", "validation_seconds"):
                _assert_same(a[key], b[key], f"{place}.{key}")
    elif isinstance(a, list):
        assert isinstance(b, list) and len(a) == len(b), place
        for number, (x, y) in enumerate(zip(a, b, strict=True)):
            _assert_same(x, y, f"{place}[{number}]")
    else:
        assert a == b, place


@pytest.fixture(scope="module")
def uninterrupted(small_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    subprocess.run(_command(small_store, out), check=True, capture_output=True)
    return out


TIERED = ["engine.table_tier=file", "engine.cache_rows=9", "engine.prefetch=2"]


@pytest.mark.parametrize(("trial", "more"), [(0, []), (1, []), (2, []), (3, TIERED)])
def test_kill_nine_and_resume_equals_uninterrupted(
    small_store: Path, uninterrupted: Path, tmp_path: Path, trial: int, more: list[str]
) -> None:
    out = tmp_path / "killed"
    process = subprocess.Popen(_command(small_store, out, *more), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (out / "state.pt").exists() and process.poll() is None:
        time.sleep(0.005)
    time.sleep(random.Random(trial).uniform(0, 0.6))
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (out / "state.pt").exists()
    subprocess.run(_command(small_store, out, "--resume", *more), check=True, capture_output=True)
    for one, other in zip(_result(uninterrupted), _result(out), strict=True):
        _assert_same(one, other)


def test_interrupt_saves_the_state_and_resumes(small_store: Path, uninterrupted: Path, tmp_path: Path) -> None:
    out = tmp_path / "stopped"
    process = subprocess.Popen(_command(small_store, out), stderr=subprocess.PIPE, text=True)
    while not (out / "state.pt").exists() and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    if process.returncode != 0:  # it may have come after the last step
        assert process.returncode == 130 and "--resume" in err and "Traceback" not in err
    subprocess.run(_command(small_store, out, "--resume"), check=True, capture_output=True)
    for one, other in zip(_result(uninterrupted), _result(out), strict=True):
        _assert_same(one, other)


def test_resuming_a_finished_run_changes_nothing(small_store: Path, uninterrupted: Path) -> None:
    before = _result(uninterrupted)
    subprocess.run(_command(small_store, uninterrupted, "--resume"), check=True, capture_output=True)
    for one, other in zip(before, _result(uninterrupted), strict=True):
        _assert_same(one, other)


def test_two_processes_cannot_write_one_run(small_store: Path, tmp_path: Path) -> None:
    out = tmp_path / "shared"
    command = [*_command(small_store, out), "train.epochs=500"]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not (out / "state.pt").exists() and first.poll() is None:
            time.sleep(0.005)
        second = subprocess.run([*command, "--resume"], capture_output=True, text=True)
        assert second.returncode == 2 and "another process" in second.stderr
    finally:
        first.kill()
        first.wait()


def test_state_needs_no_pickled_code(uninterrupted: Path) -> None:
    torch.load(uninterrupted / "state.pt", weights_only=True)
    assert os.listdir(uninterrupted)
    names = {file.name for file in uninterrupted.iterdir()}
    assert {
        "recipe.toml",
        "model.safetensors",
        "metrics.jsonl",
        "environment.json",
        "data.json",
        "report.html",
    } <= names
