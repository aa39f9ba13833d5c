"""Numbers as the head sees them, and how it crosses them."""

from __future__ import annotations

import pytest
import torch

from lsm_cli.models.numeric import Numeric
from lsm_cli.models.tower import Cross, Tower


def _fitted(values: torch.Tensor, bins: int = 8) -> Numeric:
    numeric = Numeric(values.shape[1], bins)
    numeric.fit(values)
    return numeric


def test_whole_counts_and_decayed_counts_both_keep_their_spread() -> None:
    torch.manual_seed(0)
    counts = torch.randint(0, 50, (2000,)).float()
    decayed = torch.exp2(-30 * torch.rand(2000))
    numeric = _fitted(torch.stack([counts, decayed], 1))
    assert numeric.offset[0] == 1  # log(1 + x)
    assert numeric.offset[1] < 1e-3
    small = torch.tensor([[0.0, 0.001], [0.0, 0.01]])
    shown = numeric(small)[:, 1]
    assert shown[1] - shown[0] > 0.3  # standard deviations


def test_larger_numbers_never_look_smaller_and_extremes_never_run_away() -> None:
    torch.manual_seed(0)
    numeric = _fitted(torch.rand(1000, 1) * 100)
    shown = numeric(torch.linspace(0, 100, 300).unsqueeze(1))
    assert (shown.diff(dim=0) >= 0).all()
    torch.testing.assert_close(numeric(torch.tensor([[1e9]])), numeric(torch.tensor([[100.0]])), rtol=0, atol=1e-2)


def test_unknown_numbers_are_a_flag_and_nothing_else() -> None:
    values = torch.rand(500, 2) * 10
    values[::2, 0] = -1
    numeric = _fitted(values)
    shown = numeric(torch.full((1, 2), -1.0))
    assert shown[0, 2:4].tolist() == [1, 1] and shown.sum() == 2
    assert not _fitted(torch.full((10, 1), -1.0))(torch.full((1, 1), 3.0)).any()  # never known in training


def test_numbers_that_never_vary_say_nothing() -> None:
    assert not _fitted(torch.full((50, 1), 7.0))(torch.tensor([[3.0], [9.0]])).any()


def test_cross_equals_its_equation() -> None:
    """x_{l+1} = x_0 ⊙ (U_l V_l x_l + b_l) + x_l (arXiv 2008.13535, eq. 2)."""
    torch.manual_seed(0)
    cross, first = Cross(width=12, layers=2, rank=3), torch.randn(5, 12)
    value = first
    for down, up in zip(cross.down, cross.up, strict=True):
        value = first * (value @ down.weight.T @ up.weight.T + up.bias) + value
    torch.testing.assert_close(cross(first), value)


@pytest.mark.parametrize("cross", [0, 2])
def test_quiet_features_have_no_say_at_first_but_learn(cross: int) -> None:
    torch.manual_seed(0)
    tower = Tower(width=10, cross=cross, rank=4, hidden=[8], targets=2, dropout=0.0, quiet=3)
    features = torch.randn(6, 10)
    other = torch.cat([features[:, :7], torch.randn(6, 3)], 1)
    torch.testing.assert_close(tower(features), tower(other))
    tower(features).sum().backward()
    first = next(layer for layer in tower.shared if isinstance(layer, torch.nn.Linear))
    assert first.weight.grad[:, -3:].any()
