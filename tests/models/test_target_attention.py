"""Multi-head target attention and attention by hash collisions against their equations, sample by sample."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lsm_cli.kernels.ragged import Shared
from lsm_cli.models.history import History
from lsm_cli.models.mhta import MHTA
from lsm_cli.models.sdim import SDIM
from lsm_cli.search.hashing import planes
from tests.models.test_interest import FIELDS, WIDTH, Drawn, agree

LENGTHS = st.lists(st.integers(0, 6), min_size=1, max_size=6)


def _mhta(reader: MHTA, behaviours: Tensor, candidate: Tensor, biases: list[Tensor]) -> Tensor:
    found = []
    for own, key, value, bias in zip(reader.query, reader.key, reader.value, biases, strict=True):
        logits = (behaviours @ key.T) @ (own @ candidate) / math.sqrt(len(own)) + bias
        found.append((torch.softmax(logits, 0).unsqueeze(1) * (behaviours @ value.T)).sum(0))
    return reader.mix.weight @ torch.cat(found)


@settings(max_examples=15, deadline=None)
@given(lengths=LENGTHS, heads=st.sampled_from([1, 3, 4]), seed=st.integers(0, 100))
def test_mhta_equals_its_equation(lengths: list[int], heads: int, seed: int) -> None:
    """Samples of any length, none and many behaviours, keys and values written out."""
    drawn = Drawn(lengths, [FIELDS] * heads, seed)
    reader = MHTA(WIDTH, heads).double()
    for weight in reader.parameters():
        weight.data += torch.randn_like(weight) / 4  # queries and keys start alike
    ours = reader(*drawn.history())
    again, candidate, _ = drawn.history()  # a graph of its own
    biases = zip(*(head.bias.split(lengths) for head in again.heads), strict=True)
    own = zip(again.positions().split(lengths), candidate, biases, strict=True)
    literal = torch.stack([_mhta(reader, *parts) for parts in own])
    agree(ours, literal, drawn.leaves, [*(bias.weight for bias in drawn.space["heads"].bias), *reader.parameters()])


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_at_first_the_search_goes_by_the_inner_product(heads: int) -> None:
    drawn = Drawn([3, 0, 5], [FIELDS] * heads)
    history, candidate, query = drawn.history()
    for head in history.heads:
        head.bias = None
    found = history.combined(MHTA(WIDTH, heads).double().asks(query))
    plain = (history.positions() * candidate.index_select(0, history.segments.row)).sum(1)
    torch.testing.assert_close(found, plain * (found @ plain) / plain.square().sum(), rtol=1e-4, atol=1e-5)
    assert found @ plain > 0


def _sdim(reader: SDIM, behaviours: Tensor, candidate: Tensor) -> Tensor:
    through = planes(WIDTH, reader.hashes * reader.bits, candidate.device).split(reader.bits, 1)
    found = 0 * candidate
    for plane in through:
        bucket = torch.zeros_like(candidate)
        for behaviour in behaviours:
            if torch.equal(behaviour.float() @ plane > 0, candidate.float() @ plane > 0):
                bucket = bucket + behaviour
        found = found + bucket / bucket.norm().clamp(min=1e-12) / reader.hashes if bucket.any() else found
    return found


@settings(max_examples=15, deadline=None)
@given(lengths=LENGTHS, hashes=st.integers(1, 4), bits=st.integers(1, 3), seed=st.integers(0, 100))
def test_sdim_equals_its_equation(lengths: list[int], hashes: int, bits: int, seed: int) -> None:
    drawn = Drawn(lengths, [FIELDS], seed)
    history, candidate, query = drawn.history()
    reader = SDIM(WIDTH, hashes, bits)
    own = zip(drawn.history()[0].positions().split(lengths), candidate, strict=True)
    agree(reader(history, candidate, query), torch.stack([_sdim(reader, *parts) for parts in own]), drawn.leaves, [])


def test_sdim_reads_a_shared_history_as_if_it_were_each_samples_own() -> None:
    drawn = Drawn([3, 0, 5, 2], [FIELDS])
    history, candidate, query = drawn.history()
    reader, of = SDIM(WIDTH, 4, 2), torch.tensor([0, 0, 1, 2, 2, 2, 3])
    shared = Shared(history.segments, of, 23)
    asked = torch.randn(7, WIDTH, dtype=torch.float64)
    together = reader(History(shared, history.fields, history.added, []), asked, asked)
    for sample, owner in enumerate(of.tolist()):
        own = candidate.clone()
        own[owner] = asked[sample]
        torch.testing.assert_close(together[sample], reader(history, own, query)[owner])
