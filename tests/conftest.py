from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from lsm_cli.data.building.orders import add_orders
from tests.small import write_store

os.environ.pop("COLUMNS", None)  # set in the workers of a parallel run; tables would be folded to it

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is first imported, by whomever

torch.set_num_threads(1)  # small tensors: threads only add noise


@pytest.fixture(scope="session")
def small_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = write_store(tmp_path_factory.mktemp("stores") / "small")
    add_orders(path)
    return path


@pytest.fixture
def shared_data() -> Path:
    """Real data sets beside the checkout; a test that wants one skips where it is absent."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no data sets at {folder}")
    return folder
