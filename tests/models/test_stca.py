"""Stacked target-to-history cross attention against its equation, keys and values written out."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lsm_cli.models.stca import STCA, CrossAttention, SwiGLU
from tests.models.test_interest import FIELDS, WIDTH, Drawn, agree


def _swiglu(layer: SwiGLU, value: Tensor) -> Tensor:
    if isinstance(layer.join, torch.nn.Linear):
        value = value @ layer.join.weight.T
    gate = value @ layer.gate.weight.T
    value = (gate * torch.sigmoid(gate) * (value @ layer.up.weight.T)) @ layer.down.weight.T
    centred = value - value.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + layer.norm.eps).sqrt()
    return scaled * layer.norm.weight + layer.norm.bias


def _attention(layer: CrossAttention, query: Tensor, behaviours: Tensor, bias: Tensor) -> Tensor:
    heads, size, _ = layer.key.shape
    asked, found = (query @ layer.query.weight.T).view(heads, size), []
    for head in range(heads):
        keys, values = behaviours @ layer.key[head].T, behaviours @ layer.value[head].T
        logits = keys @ asked[head] / math.sqrt(size) + bias
        found.append((torch.softmax(logits, 0).unsqueeze(1) * values).sum(0))
    return torch.cat(found) @ layer.mix.weight.T


def _stca(reader: STCA, behaviours: Tensor, candidate: Tensor, bias: Tensor) -> Tensor:
    found = [candidate]
    for refine, attend, fuse in zip(reader.refine, reader.attend, reader.fuse[:-1], strict=True):
        found.append(_attention(attend, _swiglu(fuse, torch.cat(found)), _swiglu(refine, behaviours), bias))
    return _swiglu(reader.fuse[-1], torch.cat(found))


@settings(max_examples=10, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 6), min_size=1, max_size=6),
    layers=st.integers(1, 3),
    heads=st.sampled_from([1, 3]),
    seed=st.integers(0, 100),
)
def test_stca_equals_its_equation(lengths: list[int], layers: int, heads: int, seed: int) -> None:
    """Samples of any length, none and many behaviours, side by side in one batch."""
    drawn = Drawn(lengths, [FIELDS], seed)
    history, candidate, query = drawn.history()
    reader = STCA(WIDTH, layers, heads).double()
    ours = reader(history, candidate, query)
    again = drawn.history()[0]  # a graph of its own
    own = zip(again.positions().split(lengths), candidate, again.heads[0].bias.split(lengths), strict=True)
    literal = torch.stack([_stca(reader, *parts) for parts in own])
    biases = [bias.weight for bias in drawn.space["heads"].bias]
    agree(ours, literal, drawn.leaves, [*biases, *reader.parameters()])
