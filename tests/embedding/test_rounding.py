"""Rows moved in one launch, and rows kept in bfloat16."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lsm_cli import recipe as recipes
from lsm_cli.data.store import Store
from lsm_cli.embedding.optimizer import rounded, row_optimizer
from lsm_cli.embedding.tables import Table
from lsm_cli.engine.feed import Feed
from lsm_cli.engine.setup import Setup
from lsm_cli.kernels import fused, ragged

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
needs_triton = pytest.mark.skipif(
    not fused.available("cpu"), reason="the fused kernels need the package triton (extra `triton`)"
)
BOTH = ["eager", pytest.param("triton", marks=needs_triton)]


@pytest.fixture(autouse=True)
def as_before() -> object:
    yield
    ragged.prefer("auto")


def _moved(name: str, kernels: str, dtype: torch.dtype, steps: int = 3) -> list[torch.Tensor]:
    ragged.prefer(kernels)
    torch.manual_seed(0)
    table = Table(90, 5, 0.5, seed=0, dtype=dtype).to(DEVICE)
    optimizer = row_optimizer(name, 90, 5).to(DEVICE)
    for step in range(steps):
        rows = table.fetch(torch.arange(step, 80, 2, device=DEVICE), grad=True)
        (rows.values.sin() * torch.linspace(-2, 3, 5, device=DEVICE)).sum().backward()
        table.update(rows, optimizer, lr=0.1)
    return [table.weight, *optimizer.buffers()]


@needs_triton
@pytest.mark.parametrize("name", ["adagrad", "adam"])
def test_one_launch_moves_rows_as_torch_does(name: str) -> None:
    for plain, fast in zip(*(_moved(name, kernels, torch.float32) for kernels in ("eager", "triton")), strict=True):
        torch.testing.assert_close(fast, plain, rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize("kernels", BOTH)
@pytest.mark.parametrize("name", ["adagrad", "adam"])
def test_half_the_memory_is_a_step_of_rounding_away(name: str, kernels: str) -> None:
    wide, narrow = (_moved(name, kernels, dtype, steps=1)[0] for dtype in (torch.float32, torch.bfloat16))
    assert narrow.dtype == torch.bfloat16 and not torch.equal(narrow.float(), wide)
    torch.testing.assert_close(narrow.float(), wide, rtol=2**-6, atol=1e-2)


@pytest.mark.parametrize("kernels", BOTH)
def test_steps_below_the_precision_are_not_lost(kernels: str) -> None:
    ragged.prefer(kernels)
    torch.manual_seed(0)
    table = Table(400, 8, 1.0, seed=0, dtype=torch.bfloat16).to(DEVICE)
    table.weight.fill_(1.0)
    optimizer = row_optimizer("adagrad", 400, 8).to(DEVICE)
    for _ in range(4):
        rows = table.fetch(torch.arange(400, device=DEVICE), grad=True)
        rows.values.sum().backward()
        table.update(rows, optimizer, lr=1e-3)  # a quarter of what bfloat16 can tell from 1
    wanted = 1 - 1e-3 * sum(1 / np.sqrt(step) for step in (1, 2, 3, 4))
    spread = 0.0039 / np.sqrt(400 * 8)
    assert abs(float(table.weight.float().mean()) - wanted) < 6 * spread


def test_what_bfloat16_holds_is_not_changed_by_rounding() -> None:
    value = torch.randn(1000).to(torch.bfloat16)
    assert torch.equal(rounded(value.float()), value)
    assert torch.equal(rounded(torch.tensor([0.0, -0.0])).float(), torch.zeros(2))


def _losses(path: Path, *options: str) -> list[float]:
    setup = Setup.of(recipes.load("tin", ["train.device=cpu", "model.quiet=false", *options]), Store.open(path))
    model, feed, losses = setup.model(), Feed(setup, "train"), []
    index = np.arange(200)
    model.fit_numbers(model.numbers(feed.batch(index, model)))
    for _ in range(40):
        batch = feed.batch(index, model)
        rows = model.fetch(batch)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(model(batch, rows)[:, 0], batch.labels[:, 0])
        loss.backward()
        model.update(rows, 0.05)
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("optimizer", ["adagrad", "adam"])
def test_a_model_learns_as_much_on_narrow_tables(small_store: Path, optimizer: str) -> None:
    wide, narrow = (
        _losses(small_store, f"train.table_dtype={dtype}", f"train.table_optimizer={optimizer}")
        for dtype in ("fp32", "bf16")
    )
    assert wide != narrow and narrow[-1] < narrow[0] - 0.05
    assert abs(narrow[-1] - wide[-1]) < 0.1 * (wide[0] - wide[-1])
