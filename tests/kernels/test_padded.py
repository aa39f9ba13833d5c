"""Rectangles of ragged sequences: nothing is lost, nothing is invented, little is padding."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lsm_cli.kernels import padded
from lsm_cli.kernels.padded import Layout
from lsm_cli.kernels.ragged import Segments

LENGTHS = st.lists(st.integers(0, 40), min_size=1, max_size=30)


def _segments(lengths: list[int]) -> Segments:
    return Segments(torch.tensor([0, *lengths]).cumsum(0))


@settings(max_examples=50, deadline=None)
@given(lengths=LENGTHS, extra=st.integers(0, 1), cells=st.sampled_from([0, 1, 500]))
def test_every_behaviour_has_one_cell_in_the_row_of_its_sample(lengths: list[int], extra: int, cells: int) -> None:
    segments = _segments(lengths)
    values = torch.arange(1.0, segments.total + 1).unsqueeze(1)
    layout = Layout(segments, extra, cells)
    seen = []
    for group, cell in zip(layout.groups, layout.pad(values), strict=True):
        for row, real, line in zip(group.rows.tolist(), group.real, cell.squeeze(2), strict=True):
            start = int(segments.offsets[row])
            assert line[real].tolist() == [float(start + k + 1) for k in range(lengths[row])]
            assert not line[~real].any()
            assert real.tolist() == sorted(real.tolist(), reverse=True), "padding comes last"
            seen.append(row)
        assert group.full == bool(group.real.all())
        if cells and len(group.rows) > 1:
            assert len(group.rows) * (group.real.shape[1] + extra) ** 2 <= cells
    assert sorted(seen) == list(range(len(lengths)))


@settings(max_examples=50, deadline=None)
@given(lengths=LENGTHS, extra=st.integers(0, 1))
def test_a_quarter_of_a_group_is_padding_at_most(lengths: list[int], extra: int) -> None:
    for group in Layout(_segments(lengths), extra).groups:
        cells = group.real.numel() + extra * len(group.rows)
        assert cells - int(group.real.sum()) - extra * len(group.rows) <= padded.WASTE * cells


@settings(max_examples=50, deadline=None)
@given(lengths=LENGTHS)
def test_gradients_return_and_samples_find_their_order(lengths: list[int]) -> None:
    segments = _segments(lengths)
    values = torch.randn(segments.total, 3, requires_grad=True)
    layout = Layout(segments)
    sums = layout.join([cell.sum(1) for cell in layout.pad(values)])
    expected = torch.stack([part.sum(0) for part in values.split(lengths)])
    torch.testing.assert_close(sums, expected)
    weight = torch.randn_like(sums)
    (ours,) = torch.autograd.grad((sums * weight).sum(), values)
    torch.testing.assert_close(ours, weight.repeat_interleave(torch.tensor(lengths), 0))


@settings(max_examples=50, deadline=None)
@given(lengths=LENGTHS, cells=st.sampled_from([0, 500]))
def test_the_way_back_is_the_inverse_for_values_and_gradients(lengths: list[int], cells: int) -> None:
    segments = _segments(lengths)
    values = torch.randn(segments.total, 3, requires_grad=True)
    layout = Layout(segments, cells=cells)
    back = layout.lay([cell * 2 + 1 for cell in layout.pad(values)])
    torch.testing.assert_close(back, values * 2 + 1)
    weight = torch.randn_like(back)
    (ours,) = torch.autograd.grad((back * weight).sum(), values)
    torch.testing.assert_close(ours, weight * 2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_the_gpu_too() -> None:
    lengths = [3, 0, 7, 7, 1]
    values = torch.randn(18, 2)
    here, there = (Layout(Segments(_segments(lengths).offsets.to(device))) for device in ("cpu", "cuda"))
    for ours, theirs in zip(here.pad(values), there.pad(values.cuda()), strict=True):
        torch.testing.assert_close(theirs.cpu(), ours)
