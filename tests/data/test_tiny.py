from __future__ import annotations

from pathlib import Path

import numpy as np

from lsm_cli.data.building.orders import add_orders
from lsm_cli.data.store import Store
from tests.small import write_store


def test_the_tiny_stores_index_is_the_one_that_a_build_writes(tmp_path: Path) -> None:
    own, built = write_store(tmp_path / "own", index=True), write_store(tmp_path / "built")
    add_orders(built)
    own_index, built_index = (Store.open(path).manifest["index"] for path in (own, built))
    assert sorted(own_index["fields"]) == sorted(built_index["fields"])
    for name in own_index["fields"]:
        assert np.array_equal(np.load(own / "index" / f"{name}.npy"), np.load(built / "index" / f"{name}.npy"))
