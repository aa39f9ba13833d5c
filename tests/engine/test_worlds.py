"""The benchmark of the planted causes, reduced: one command, one seed, half the users, three of the worlds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "worlds.py"


@pytest.mark.slow
def test_an_idea_is_worth_something_where_its_cause_is_planted(tmp_path: Path) -> None:
    out = tmp_path / "worlds.json"
    worlds = ["noise", "disagree", "domains"]
    command = [sys.executable, SCRIPT, "--seeds", "0", "--users", "1500", "--worlds", *worlds, "--out", out]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = {key: entry["auc"] for key, entry in json.loads(out.read_text())["results"].items()}
    for world in worlds:
        plain, idea, truth = (found[f"{world}/{name}@0"] for name in ("tin", world, "truth"))
        assert found[f"{world}/no history@0"] < plain < idea < truth
        assert idea - plain > 0.5 * (truth - plain)
        assert f"| {world} |" in done.stdout
    again = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    assert again.stdout == done.stdout and not again.stderr, "finished entries are kept"
