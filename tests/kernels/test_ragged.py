"""The three methods of the trilinear form agree, forward and backward, on every ragged edge."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lsm_cli.kernels import ragged
from lsm_cli.kernels.ragged import Occurrences, Segments

SHAPES = st.tuples(
    st.lists(st.integers(0, 9), min_size=1, max_size=7), st.integers(1, 40), st.integers(1, 5), st.integers(0, 1 << 16)
)


def _case(
    lengths: list[int], rows: int, dim: int, seed: int
) -> tuple[Segments, torch.Tensor, torch.Tensor, torch.Tensor]:
    make = torch.Generator().manual_seed(seed)
    segments = Segments(torch.tensor([0, *lengths]).cumsum(0))
    ids = torch.randint(rows, (segments.total,), generator=make)
    table = torch.randn(rows, dim, generator=make, dtype=torch.float32)
    query = torch.randn(len(lengths), dim, generator=make, dtype=torch.float32)
    return segments, ids, table, query


def _attention(table: torch.Tensor, query: torch.Tensor, at: Occurrences) -> torch.Tensor:
    weight = ragged.softmax(ragged.dot(table, query, at), at.segments)
    return ragged.pool(table, weight, at) * query


@settings(deadline=None, max_examples=60)
@given(SHAPES)
@pytest.mark.parametrize("method", ["small", "compiled"])
def test_attention_equals_reference(method: str, shape: tuple[list[int], int, int, int]) -> None:
    segments, ids, table, query = _case(*shape)
    if method == "compiled":  # chosen for tables much larger than the batch; needs N <= B R
        assume(segments.total <= segments.size * len(table))
    results = []
    for name in (method, "reference"):
        inputs = [table.clone().requires_grad_(), query.clone().requires_grad_()]
        out = _attention(*inputs, Occurrences(ids, len(table), segments, name))
        (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
        results.append([out.detach(), *(tensor.grad for tensor in inputs)])
    for fast, reference in zip(*results, strict=True):
        torch.testing.assert_close(fast, reference, rtol=1e-4, atol=1e-5)


@settings(deadline=None, max_examples=40)
@given(SHAPES)
def test_attention_equals_a_loop_over_samples(shape: tuple[list[int], int, int, int]) -> None:
    segments, ids, table, query = _case(*shape)
    out = _attention(table, query, Occurrences(ids, len(table), segments))
    for sample, (start, stop) in enumerate(zip(segments.offsets[:-1], segments.offsets[1:], strict=True)):
        own = table[ids[start:stop]]
        weight = torch.softmax(own @ query[sample], 0)
        torch.testing.assert_close(out[sample], (weight @ own) * query[sample], rtol=1e-4, atol=1e-5)


@settings(deadline=None, max_examples=30)
@given(SHAPES)
def test_take_and_its_gradient(shape: tuple[list[int], int, int, int]) -> None:
    segments, ids, table, _ = _case(*shape)
    table.requires_grad_()
    out = ragged.take(table, Occurrences(ids, len(table), segments))
    assert torch.equal(out, table[ids])
    factor = torch.arange(out.numel(), dtype=torch.float32).view_as(out)
    (out * factor).sum().backward()
    expected = torch.zeros_like(table).index_add_(0, ids, factor)
    torch.testing.assert_close(table.grad, expected)


def test_gradients_are_true_derivatives() -> None:
    segments, ids, table, query = _case([3, 0, 4], 5, 3, 1)
    at = Occurrences(ids, 5, segments, "reference")
    inputs = (table.double().requires_grad_(), query.double().requires_grad_())
    assert torch.autograd.gradcheck(lambda t, q: _attention(t, q, at), inputs)


def test_no_behaviours_at_all() -> None:
    segments, ids, table, query = _case([0, 0], 5, 3, 1)
    for method in ("small", "compiled", "reference"):
        inputs = [table.clone().requires_grad_(), query.clone().requires_grad_()]
        out = _attention(*inputs, Occurrences(ids, 5, segments, method))
        out.sum().backward()
        assert torch.equal(out, torch.zeros(2, 3))
        assert all(not tensor.grad.any() for tensor in inputs)


def test_large_scores_do_not_overflow() -> None:
    segments = Segments(torch.tensor([0, 3]))
    weight = ragged.softmax(torch.tensor([1e4, 1e4, -1e4]), segments)
    torch.testing.assert_close(weight, torch.tensor([0.5, 0.5, 0.0]))
