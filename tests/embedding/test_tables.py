"""A step reads and moves only the rows that it touches, and moves them as the textbook says."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lsm_cli.embedding.optimizer import row_optimizer
from lsm_cli.embedding.tables import RowMap, Table

IDS = st.lists(st.integers(0, 30), min_size=1, max_size=60)


@settings(deadline=None, max_examples=50)
@given(IDS, IDS, st.sampled_from([31, 5000]), st.sampled_from([torch.int32, torch.int64]))
def test_fetch_returns_each_row_once(history: list[int], target: list[int], rows: int, dtype: torch.dtype) -> None:
    table = Table(rows, 3, 0.1, seed=0)
    ids = [torch.tensor(history, dtype=dtype), torch.tensor(target, dtype=dtype)]
    for _ in range(2):  # the scratch column is reused
        found = table.fetch(*ids, grad=False)
        assert found.index.tolist() == sorted(set(history) | set(target))
        for local, asked in zip(found.local, ids, strict=True):
            assert found.index[local].tolist() == asked.tolist()
            assert torch.equal(found.values[local], table.weight[asked])


@pytest.mark.parametrize("name", ["adagrad", "adam"])
def test_untouched_rows_stay(name: str) -> None:
    table = Table(100, 4, 0.1, seed=0)
    optimizer = row_optimizer(name, 100, 4)
    before = table.weight.clone()
    rows = table.fetch(torch.tensor([3, 3, 7]), grad=True)
    rows.values.square().sum().backward()
    table.update(rows, optimizer, lr=0.1)
    moved = (table.weight != before).any(1).nonzero().squeeze(1).tolist()
    assert moved == [3, 7]
    for state in optimizer.buffers():
        assert not state[[0, 1, 2, 50]].any()


def test_lazy_adam_equals_adam_when_every_row_is_touched() -> None:
    table = Table(20, 4, 0.5, seed=1)
    optimizer = row_optimizer("adam", 20, 4)
    twin = nn.Parameter(table.weight.clone())
    adam = torch.optim.Adam([twin], lr=0.01, eps=1e-8)
    ids = torch.arange(20).repeat(3)
    for step in range(10):
        factor = torch.randn(60, 4, generator=torch.Generator().manual_seed(step))
        rows = table.fetch(ids, grad=True)
        (rows.values[rows.local[0]] * factor).sum().backward()
        table.update(rows, optimizer, lr=0.01)
        adam.zero_grad()
        (twin[ids] * factor).sum().backward()
        adam.step()
    torch.testing.assert_close(table.weight, twin.data, rtol=1e-4, atol=1e-5)


def test_rowwise_adagrad_by_hand() -> None:
    table = Table(5, 2, 0.5, seed=1)
    optimizer = row_optimizer("adagrad", 5, 2)
    weight, total = table.weight.clone(), torch.zeros(5)
    for grad in ([3.0, 4.0], [1.0, 0.0]):
        rows = table.fetch(torch.tensor([2]), grad=True)
        (rows.values * torch.tensor(grad)).sum().backward()
        table.update(rows, optimizer, lr=0.1)
        total[2] += torch.tensor(grad).square().mean()
        weight[2] -= 0.1 * torch.tensor(grad) / total[2].sqrt()
    torch.testing.assert_close(table.weight, weight)


def test_untrained_ids_share_the_unknown_row() -> None:
    assert RowMap(10)(torch.tensor([0, 1, 8, 9, 10, 4000])).tolist() == [0, 1, 8, 9, 9, 9]
    table = Table(10, 3, 1.0, seed=0)
    assert not table.weight[[0, 1, 9]].any(), "padding, missing and unknown start at zero"
