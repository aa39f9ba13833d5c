"""Readers that write every position down, against slow literal forms of their equations: forward and gradient."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lsm_cli.kernels import padded
from lsm_cli.models import hstu
from lsm_cli.models.bst import BST, Block
from lsm_cli.models.history import History
from lsm_cli.models.hstu import HSTU, Unit
from lsm_cli.models.sasrec import Encoder, Layer
from lsm_cli.models.temporal import LONGEST_RANK, LONGEST_SECONDS
from tests.models.test_interest import FIELDS, WIDTH, Drawn, agree

BUCKETS = 6
EDGES = [[0], [1], [0, 1, 9], [4, 4], [9, 0, 2, 1, 8, 3]]


def _drawn(lengths: list[int], seed: int = 0) -> tuple[Drawn, History, Tensor, Tensor]:
    drawn = Drawn(lengths, [FIELDS], seed)
    history, candidate, query = drawn.history()
    ages = [torch.rand(n, dtype=torch.float64).mul(16).exp().sort(descending=True).values for n in lengths]
    history.age = torch.cat(ages)
    return drawn, history, candidate, query


def _stirred(module: nn.Module) -> nn.Module:
    """In float64, with nothing left at zero or one."""
    module.double()
    for parameter in module.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return module


def _bst(reader: BST, history: History, candidate: Tensor, rows: slice, sample: int) -> Tensor:
    states = torch.cat([candidate[sample : sample + 1], history.positions()[rows]])
    matches = torch.cat([candidate.new_zeros(1), history.heads[0].bias[rows]])
    for block in reader.blocks:
        states = _block(block, states, matches)
    mean = states[1:].mean(0) if len(states) > 1 else torch.zeros_like(states[0])
    return torch.cat([states[0], mean])


def _block(block: Block, states: Tensor, matches: Tensor) -> Tensor:
    queries, keys, values = (states @ part.T for part in block.project.weight.chunk(3))
    size, attended = queries.shape[1] // block.heads, []
    for i in range(len(states)):
        found = []
        for head in range(block.heads):
            own = slice(head * size, (head + 1) * size)
            logits = torch.stack([queries[i, own] @ key[own] / math.sqrt(size) for key in keys])
            weight = torch.softmax(logits + matches if i == 0 else logits, 0)
            found.append(sum(w * value[own] for w, value in zip(weight, values, strict=True)))
        attended.append(torch.cat(found) @ block.mix.weight.T)
    first, second = block.norm
    states = _norm(states + torch.stack(attended), first)
    inner, outer = block.network[0], block.network[2]
    fed = F.leaky_relu(states @ inner.weight.T + inner.bias) @ outer.weight.T + outer.bias
    return _norm(states + fed, second)


def _norm(states: Tensor, norm: nn.LayerNorm) -> Tensor:
    centred = states - states.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt()
    return scaled if norm.weight is None else scaled * norm.weight + norm.bias


def _hstu(reader: HSTU, history: History, candidate: Tensor, rows: slice, sample: int) -> Tensor:
    states = torch.cat([history.positions()[rows], candidate[sample : sample + 1]])
    ages = [*history.age[rows].tolist(), 0.0]
    matches = [*history.heads[0].bias[rows], candidate.new_zeros(())]
    for layer in reader.layers:
        states = _unit(layer, states, ages, matches)
    return states[-1]


def _unit(unit: Unit, states: Tensor, ages: list[float], matches: list[Tensor]) -> Tensor:
    made = _norm(states, unit.norm) @ unit.project.weight.T + unit.project.bias
    gate, value, query, key = (made * torch.sigmoid(made)).chunk(4, 1)
    size, attended, last = value.shape[1] // unit.heads, [], len(states) - 1
    for i in range(len(states)):
        found = []
        for head in range(unit.heads):
            own, total = slice(head * size, (head + 1) * size), value.new_zeros(size)
            for j in range(i + 1):
                bias = unit.by_distance[_bucket(i - j + 1, BUCKETS, LONGEST_RANK)]
                bias = bias + unit.by_time[_bucket(ages[j] - ages[i], BUCKETS, LONGEST_SECONDS)]
                logit = query[i, own] @ key[j, own] + bias + (matches[j] if i == last else 0)
                total = total + logit * torch.sigmoid(logit) / (i + 1) * value[j, own]
            found.append(total)
        attended.append(torch.cat(found))
    return states + (_norm(torch.stack(attended), unit.attended) * gate) @ unit.mix.weight.T + unit.mix.bias


def _bucket(value: float, buckets: int, longest: float) -> int:
    return min(int(math.log(max(value, 1.0)) * buckets / math.log(longest)), buckets - 1)


READERS: dict[str, tuple[Callable[[], nn.Module], Callable[..., Tensor]]] = {
    "bst": (lambda: BST(WIDTH, 2, 3, 0.0), _bst),
    "hstu": (lambda: HSTU(WIDTH, 2, 3, BUCKETS, BUCKETS, 0.0), _hstu),
}


@pytest.mark.parametrize("name", READERS)
@settings(max_examples=6, deadline=None)
@given(lengths=st.lists(st.integers(0, 4), min_size=1, max_size=3), seed=st.integers(0, 100))
def test_readers_equal_their_equations(name: str, lengths: list[int], seed: int) -> None:
    drawn, history, candidate, query = _drawn(lengths, seed)
    make, literal = READERS[name]
    reader = _stirred(make())
    again = drawn.history()[0]  # a graph of its own
    again.age = history.age
    offsets = history.segments.offsets.tolist()
    expected = [
        literal(reader, again, candidate, slice(*offsets[sample : sample + 2]), sample)
        for sample in range(len(lengths))
    ]
    biases = [bias.weight for bias in drawn.space["heads"].bias]
    agree(reader(history, candidate, query), torch.stack(expected), drawn.leaves, [*biases, *reader.parameters()])


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("lengths", EDGES, ids=str)
def test_padding_and_grouping_change_nothing(name: str, lengths: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    _, history, candidate, query = _drawn(lengths)
    reader = _stirred(READERS[name][0]())
    found = []
    for waste, cells in ((0.0, 1 << 20), (1.0, 1 << 20), (0.25, 1)):  # no padding; one group; row by row
        monkeypatch.setattr(padded, "WASTE", waste)
        monkeypatch.setattr(hstu, "CELLS", cells)
        found.append(reader(history, candidate, query))
    assert found[0].shape == (len(lengths), reader.out) and found[0].isfinite().all()
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-10, atol=1e-10)


def _encode(encoder: Encoder, behaviours: Tensor, token: Tensor) -> Tensor:
    """Final states of one history and of one token behind it, position by position."""
    states = torch.cat([behaviours, token.unsqueeze(0)])
    for layer in encoder.layers:
        made = _norm(states, layer.norm)
        queries, keys, values = (made @ part.T for part in layer.project.weight.chunk(3))
        size, attended = queries.shape[1] // layer.heads, []
        for i in range(len(states)):
            found = []
            for head in range(layer.heads):
                own = slice(head * size, (head + 1) * size)
                logits = torch.stack([queries[i, own] @ keys[j, own] / math.sqrt(size) for j in range(i + 1)])
                weight = torch.softmax(logits, 0)
                found.append(sum(weight[j] * values[j, own] for j in range(i + 1)))
            attended.append(torch.cat(found) @ layer.mix.weight.T)
        states = states + torch.stack(attended)
        norm, inner, _, _, outer = layer.network
        hidden = torch.relu(_norm(states, norm) @ inner.weight.T + inner.bias)
        states = states + hidden @ outer.weight.T + outer.bias
    return _norm(states, encoder.norm)


@settings(max_examples=6, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 4), min_size=1, max_size=3),
    tokens=st.integers(1, 3),
    layers=st.integers(1, 2),
    seed=st.integers(0, 100),
)
def test_the_encoder_equals_its_equation(lengths: list[int], tokens: int, layers: int, seed: int) -> None:
    torch.manual_seed(seed)
    encoder = _stirred(Encoder(WIDTH, layers, 3, 0.0))
    asked = torch.randn(len(lengths), tokens, WIDTH, dtype=torch.float64, requires_grad=True)
    states = torch.randn(len(lengths), max(lengths), WIDTH, dtype=torch.float64, requires_grad=True)
    real = torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)
    behaviours, told = encoder(states, asked, real, whole=True)
    literal = [
        [_encode(encoder, states[row, :length], token) for token in asked[row]] for row, length in enumerate(lengths)
    ]
    expected = torch.cat([own[0][:-1] for own in literal] + [found[-1:] for own in literal for found in own])
    agree(torch.cat([behaviours[real], told.flatten(0, 1)]), expected, [states, asked], list(encoder.parameters()))
    torch.testing.assert_close(encoder(states, asked, real)[1], told)


def test_no_state_sees_a_later_behaviour_and_no_token_sees_padding() -> None:
    torch.manual_seed(0)
    layer = Layer(WIDTH, 2, 0.0).double()
    states, tokens = torch.randn(1, 8, WIDTH).double(), torch.randn(1, 2, WIDTH).double()
    real = torch.arange(8).unsqueeze(0) < 6
    seen = torch.cat([real.unsqueeze(1).expand(-1, 2, -1), torch.eye(2, dtype=torch.bool).unsqueeze(0)], 2)
    before, asked = layer(states, tokens, seen, False)
    for place in range(8):
        other = states.clone()
        other[:, place] = torch.randn(WIDTH)
        after, answer = layer(other, tokens, seen, False)
        assert torch.equal(after[:, :place], before[:, :place])
        assert not torch.equal(after[:, place:], before[:, place:])
        assert torch.equal(answer, asked) == (place >= 6)
