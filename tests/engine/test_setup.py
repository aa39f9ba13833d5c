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
