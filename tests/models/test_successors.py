"""What comes next, against a literal form of its equation: value and gradient, shared histories, ragged edges."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lsm_cli.kernels.ragged import Segments, Shared
from lsm_cli.models import successors
from lsm_cli.models.successors import Successors
from tests.models.test_interest import agree

UNKNOWN, WIDTH, SPACE = 6, 5, 3


def _offsets(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0)


def _drawn(lengths: list[int], seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of the behaviours' items, a vector for every row, a readout."""
    draw = torch.Generator().manual_seed(seed)
    item = torch.randint(2, UNKNOWN + 1, (sum(lengths),), generator=draw)
    table = torch.randn(UNKNOWN + 1, SPACE, generator=draw, dtype=torch.float64, requires_grad=True)
    return item, table, torch.randn(WIDTH, SPACE, generator=draw, dtype=torch.float64, requires_grad=True)


def _literal(histories: list[list[int]], item: Tensor, table: Tensor, states: list[Tensor], readout: Tensor) -> Tensor:
    known = [one for one in item.tolist() if one != UNKNOWN]
    lost = []
    for places, state in zip(histories, states, strict=True):
        for i in range(len(places) - 1):
            right = int(item[places[i + 1]])
            if right != UNKNOWN:
                asked = state[i] @ readout
                every = torch.stack([asked @ table[right], *(asked @ table[one] for one in known if one != right)])
                lost.append(every.logsumexp(0) - asked @ table[right])
    return torch.stack(lost).mean() if lost else torch.zeros((), dtype=torch.float64)


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 5), min_size=1, max_size=4),
    readers=st.lists(st.integers(0, 2), min_size=4, max_size=4),
    shared=st.booleans(),
    seed=st.integers(0, 100),
)
def test_the_loss_equals_its_equation(lengths: list[int], readers: list[int], shared: bool, seed: int) -> None:
    item, table, readout = _drawn(lengths, seed)
    lying = Segments(_offsets(lengths))
    of = torch.arange(len(lengths))
    if shared:
        of = of.repeat_interleave(torch.tensor(readers[: len(lengths)]))
    segments = Shared(lying, of, sum(lengths[one] for one in of.tolist())) if shared else lying
    states = [torch.randn(lengths[one], WIDTH, dtype=torch.float64) for one in of.tolist()]
    every = torch.cat([*states, torch.zeros(0, WIDTH, dtype=torch.float64)])
    histories = [list(range(int(lying.offsets[one]), int(lying.offsets[one + 1]))) for one in of.tolist()]
    found = Successors.of(segments, item, table[item], UNKNOWN).loss(every, readout)
    expected = _literal(histories, item, table, states, readout)
    if expected.requires_grad:
        agree(found, expected, [table, readout], [])
    else:
        assert float(found) == 0


def test_of_many_behaviours_some_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(successors, "NEGATIVES", 3)
    item = torch.arange(20) % 10
    segments = Segments(torch.tensor([0, 20]))
    drawn = set()
    for seed in range(50):
        torch.manual_seed(seed)
        found = Successors.of(segments, item, item.unsqueeze(1).double(), unknown=9)
        others = found.others.squeeze(1)
        assert len(others) == 3 and 9 not in others
        assert torch.equal(found.same, found.own == others)
        drawn |= {*others.tolist()}
    assert drawn == set(range(9))
