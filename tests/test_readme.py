"""What the README says: its commands are commands, its tables are the results."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lsm_cli.main import app

ROOT = Path(__file__).parent.parent
PAGES = ("README.md", "CONTRIBUTING.md")


def commands() -> list[str]:
    found = []
    for page in PAGES:
        for line in (ROOT / page).read_text(encoding="utf-8").splitlines():
            if match := re.match(r" {4}(?:\$ )?(lsm .+?)(?:\s+#.*)?$", line):
                found.append(match[1])
    return found


def test_there_are_commands_to_check():
    assert len(commands()) > 15


@pytest.mark.parametrize("line", commands())
def test_a_command_of_the_readme_is_one_that_lsm_understands(line):
    found = CliRunner().invoke(app, [*shlex.split(line)[1:], "--help"])  # unknown options are refused before help
    assert found.exit_code == 0, found.output


def test_an_unknown_option_would_be_seen():
    assert CliRunner().invoke(app, ["runs", "--sorted", "click.auc", "--help"]).exit_code == 2


def test_tables_are_written_from_the_results():
    found = subprocess.run(
        [sys.executable, "benchmarks/tables.py", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr
