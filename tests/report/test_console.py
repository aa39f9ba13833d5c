"""What the terminal shows."""

from __future__ import annotations

import pytest

from lsm_cli.report.console import Console

COLUMNS = ("run", "recipe", "AUC", "memory")
ROWS = [["runs/a-name-of-some-length", "stacked_tin", "0.9000", "1.5 GiB"]]


@pytest.mark.parametrize(
    ("width", "gone"), [(80, []), (58, ["memory"]), (40, ["memory", "recipe"]), (20, ["memory", "recipe"])]
)
def test_a_narrow_terminal_does_without_spare_columns_in_their_order(monkeypatch, capsys, width, gone):
    monkeypatch.setenv("COLUMNS", str(width))
    Console().table("title", COLUMNS, ROWS, note="a note", spare=("memory", "recipe"))
    shown = capsys.readouterr().out
    table, note = shown.split("a note")
    assert [name for name in ("memory", "recipe") if name not in table] == gone
    assert [name for name in ("memory", "recipe") if name in note] == gone
    assert "0.9000" in table
