"""Numbers as the head sees them, and how it crosses them."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch
from torch import Tensor, nn

from lsm_cli.models.numeric import Numeric
from lsm_cli.models.tower import Cross, Tower
from lsm_cli.options import ModelOptions
from tests.models.test_interest import agree

OPTIONS = [
    {},
    {"cross": 0},
    {"target_hidden": [5]},
    {"experts": 3},
    {"experts": 3, "cross": 0, "target_hidden": [5, 4]},
]
FORMS = pytest.mark.parametrize("options", OPTIONS, ids=str)


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
    assert shown[0, 2:3].tolist() == [1] and shown.sum() == 1  # the other was always known
    assert not _fitted(torch.full((10, 1), -1.0))(torch.full((1, 1), 3.0)).any()  # never known in training


def test_numbers_that_never_vary_say_nothing() -> None:
    assert not _fitted(torch.full((50, 1), 7.0))(torch.tensor([[3.0], [9.0]])).any()


@FORMS
def test_leaving_out_what_no_sample_moves_changes_no_logit(options: dict) -> None:
    torch.manual_seed(0)
    values = torch.stack([torch.randint(0, 3, (500,)).float(), torch.rand(500) * 9, torch.full((500,), 2.0)], 1)
    values[::2, 0] = -1
    numeric = Numeric(3, 4)
    tower = _tower({**options, "quiet": False}, common=numeric.out + 5)
    whole, before = _tower({**options, "quiet": False}, common=numeric.out + 5), numeric.out
    places = numeric.fit(values)
    tower.keep(places, before)
    beside, found = torch.randn(500, 5), torch.randn(500, 3)
    shown = numeric(values)
    assert places.tolist() == numeric.kept.tolist() and shown.shape[1] < before
    assert all(column.any() for column in shown.t())
    spread = shown.new_zeros(500, before).index_copy_(1, places, shown)
    torch.testing.assert_close(tower([shown, beside], [found]), whole([spread, beside], [found]))
    assert sum(p.numel() for p in tower.parameters()) < sum(p.numel() for p in whole.parameters())


def _crossed(cross: Cross, first: Tensor) -> Tensor:
    """x_{l+1} = x_0 ⊙ (U_l V_l x_l + b_l) + x_l (arXiv 2008.13535, eq. 2)."""
    value = first
    for down, up in zip(cross.down, cross.up, strict=True):
        value = first * (up.weight @ (down.weight @ value) + up.bias) + value
    return value


def _fed(layers: Iterable[nn.Module], value: Tensor) -> Tensor:
    for layer in layers:
        if isinstance(layer, nn.Linear):
            value = torch.relu(layer.weight @ value + layer.bias)
    return value


def _written(tower: Tower, value: Tensor, target: int) -> Tensor:
    """A target's logit for one row. Experts: f^τ(x) = Σ_k softmax(W^τ x)_k f_k(x) (KDD'18, eq. 6 and 7)."""
    for part in tower.shared:
        value = _crossed(part, value) if isinstance(part, Cross) else _fed([part], value)
    if tower.experts is not None:
        gate = torch.softmax(tower.experts.gates.weight[3 * target : 3 * target + 3] @ value, 0)
        value = sum(share * _fed(expert, value) for share, expert in zip(gate, tower.experts.experts, strict=True))
    if tower.own:
        value = _fed(tower.own[target], value)
    return tower.heads.weight[target] @ value + tower.heads.bias[target]


def _tower(options: dict, common: int = 7, found: int = 3, targets: int = 2) -> Tower:
    torch.manual_seed(0)
    return Tower(common, found, ModelOptions(cross_rank=4, hidden=[8, 6], **options), targets)


@FORMS
def test_quiet_features_have_no_say_at_first_but_learn(options: dict) -> None:
    tower, common = _tower(options), torch.randn(6, 7)
    found = torch.randn(6, 3, requires_grad=True)
    logits = tower([common], [found])
    torch.testing.assert_close(logits, tower([common], [torch.randn(6, 3)]))
    logits.sum().backward()
    assert not found.grad.any()
    firsts = [p for p in tower.parameters() if p.ndim == 2 and p.shape[1] == 10]
    assert firsts and all(not first[:, -3:].any() and first.grad[:, -3:].any() for first in firsts)


@FORMS
def test_readings_of_their_own_change_only_their_targets(options: dict) -> None:
    tower = _tower({**options, "quiet": False}, targets=3)
    common, parts = torch.randn(6, 7), [torch.randn(6, 3) for _ in range(3)]
    logits = tower([common], parts)
    for target, part in enumerate(parts):
        torch.testing.assert_close(logits[:, target], tower([common], [part])[:, target])
    changed = tower([common], [parts[0], torch.randn(6, 3), parts[2]])
    assert [torch.equal(logits[:, t], changed[:, t]) for t in range(3)] == [True, False, True]


@FORMS
def test_without_a_history_there_is_only_what_all_see(options: dict) -> None:
    assert _tower(options, found=0)([torch.randn(6, 7)], []).shape == (6, 2)


@FORMS
@pytest.mark.parametrize("readings", [1, 2])
def test_towers_equal_their_equation(options: dict, readings: int) -> None:
    """Row by row, target by target, of one reading of the history for all or one for each."""
    tower = _tower({**options, "quiet": False}).double()
    common, *found = (torch.randn(5, n, dtype=torch.float64, requires_grad=True) for n in (7, *[3] * readings))
    each = found if readings == 2 else found * 2
    rows = [[_written(tower, torch.cat([common[b], each[t][b]]), t) for t in range(2)] for b in range(5)]
    literal = torch.stack([torch.stack(row) for row in rows])
    agree(tower([common], found), literal, [common, *found], list(tower.parameters()))


def test_towers_of_their_own_share_nothing_above_the_bottom() -> None:
    tower = _tower({"target_hidden": [5]})
    tower([torch.randn(6, 7)], [torch.randn(6, 3)])[:, 0].sum().backward()
    assert not any(p.grad.any() for p in tower.own[1].parameters())
    assert any(p.grad.any() for p in tower.own[0].parameters())
