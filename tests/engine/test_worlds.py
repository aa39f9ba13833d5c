"""The benchmark of the planted causes with one seed: as many users as show them, and as many as the benchmark has."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "worlds.py"
SEED = 1
COST = 0.01  # of AUC, that an idea may lose where nothing is planted
FEW = {"noise": 0.5, "domains": 0.25}
SOME = {"tempos": 0.2, "third_order": 0.25, "disagree": 0.1}
MANY = {"noise": 0.8, "domains": 0.5, "tempos": 0.35, "third_order": 0.45, "disagree": 0.4}


@pytest.mark.parametrize(
    ("users", "least", "control"),
    [(300, FEW, True), (1500, SOME, False), pytest.param(3000, MANY, True, marks=pytest.mark.slow)],
    ids=["few", "some", "many"],
)
def test_an_idea_is_worth_something_where_its_cause_is_planted(
    tmp_path: Path, users: int, least: dict[str, float], control: bool
) -> None:
    """It closes at least such a share of the gap between plain TIN and the truth, and costs little without a cause."""
    out, worlds = tmp_path / "worlds.json", [*least, *(["control"] if control else [])]
    command = [sys.executable, SCRIPT, "--seeds", SEED, "--users", users, "--worlds", *worlds, "--out", out]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = {key: entry["auc"] for key, entry in json.loads(out.read_text())["results"].items()}
    for world, share in least.items():
        base, plain, idea, truth = (found[f"{world}/{name}@{SEED}"] for name in ("no history", "tin", world, "truth"))
        assert base < plain < idea < truth, world
        assert idea - plain > share * (truth - plain), world
        assert f"| {world} |" in done.stdout
    if control:
        rivals = {"tin": "tin on ads_only", "tempos": "tin", "noise": "tin", "third_order": "tin", "disagree": "tin"}
        for name, rival in rivals.items():
            assert found[f"control/{name}@{SEED}"] > found[f"control/{rival}@{SEED}"] - COST, name
    again = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    assert again.stdout == done.stdout and not again.stderr, "finished entries are kept"
