"""What recipe and store decide together."""

from __future__ import annotations

from pathlib import Path

import pytest

from lsm_cli import recipe as recipes
from lsm_cli.data.store import Store
from lsm_cli.embedding.tables import Table
from lsm_cli.engine.setup import Setup


def _setup(path: Path, name: str, *overrides: str) -> Setup:
    return Setup.of(recipes.load(name, ["train.threads=1", "model.max_len=20", *overrides]), Store.open(path))


@pytest.mark.parametrize("name", ["tin", "sasrec"])
@pytest.mark.parametrize("sparse", [True, False])
def test_every_model_takes_the_rows_of_a_step_as_the_engine_says(small_store: Path, name: str, sparse: bool) -> None:
    model = _setup(small_store, name, f"engine.sparse_rows={str(sparse).lower()}").model()
    tables = [part for part in model.modules() if isinstance(part, Table)]
    assert tables and all(table.sparse == sparse for table in tables)


def _ignored(path: Path, name: str, *overrides: str) -> list[str]:
    recipe = recipes.load(name, ["train.threads=1", *overrides])
    lines = Setup.of(recipe, Store.open(path)).decisions()
    return [line.removeprefix("ignored    ") for line in lines if line.startswith("ignored")]


def test_what_a_recipe_sets_in_vain_is_said(small_store: Path) -> None:
    assert _ignored(small_store, "tin", "model.layers=4", "model.time_tables=own", "model.temporal=[]") == [
        "model.time_tables = own: no time is encoded",
        "model.layers = 4: tin has none",
    ]
    assert _ignored(small_store, "bst", "model.stack_residual=gate", "model.layers=3") == [
        "model.stack_residual = gate: bst is no stack"
    ]
    assert _ignored(small_store, "dnn", "model.time_tables=own") == ["model.time_tables = own: no time is encoded"]
    (line,) = _ignored(small_store, "twin", "model.max_len=100")
    assert line.startswith("model.max_len = 100: a search reads what it finds")
    assert not _ignored(small_store, "tin", "model.max_len=100", "model.time_tables=own")
    for name in recipes.shipped():
        assert not _ignored(small_store, name)
