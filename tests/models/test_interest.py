"""Readers against slow, literal forms of their equations: forward and gradient, head by head, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lsm_cli.data.store import Field
from lsm_cli.errors import InputError
from lsm_cli.kernels.ragged import Occurrences, Segments
from lsm_cli.models.heads import Heads, groups
from lsm_cli.models.history import History, Part
from lsm_cli.models.interest import DIN, TIN, StackedTIN, _groups

FIELDS, SHARED, DIM = ["item", "category1", "scenario", "action"], ["item", "category1", "scenario"], 4
WIDTH = DIM * len(FIELDS)
GROUPS = [["item", "action"], ["category1"], ["item", "category1", "scenario", "action"], []]


class Drawn:
    """Random ragged histories: what a space would hand to a reader, and the same written out."""

    def __init__(
        self,
        lengths: Sequence[int],
        wanted: list[list[str]],
        seed: int = 0,
        decoupled: int = 0,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        torch.manual_seed(seed)
        self.dtype = dtype
        self.lengths, total = list(lengths), sum(lengths)
        self.segments = Segments(torch.tensor([0, *lengths]).cumsum(0))
        self.masks = {name: torch.rand(total) < 0.3 for name in SHARED}
        self.leaves: list[Tensor] = []
        self.wanted = wanted
        self.space = self._space(DIM)
        self.own = self._space(decoupled) if decoupled else None

    def leaf(self, *shape: int) -> Tensor:
        made = torch.randn(*shape, dtype=self.dtype, requires_grad=True)
        self.leaves.append(made)
        return made

    def _space(self, dim: int) -> dict[str, object]:
        total, width = sum(self.lengths), dim * len(FIELDS)
        parts = [
            Part(self.leaf(7, dim), Occurrences(torch.randint(7, (total,)), 7, self.segments, "reference"))
            for _ in FIELDS
        ]
        time = Part(self.leaf(5, width), Occurrences(torch.randint(1, 5, (total,)), 5, self.segments, "reference"))
        heads = Heads(self.wanted, FIELDS, dim, SHARED, True).to(self.dtype)
        for bias in heads.bias:
            bias.weight.data = torch.randn_like(bias.weight)
        query = self.leaf(len(self.lengths), width)
        return {"dim": dim, "parts": parts, "time": time, "heads": heads, "query": query, "width": width}

    def history(self) -> tuple[History, Tensor, Tensor]:
        made = []
        for space in (self.space, self.own or self.space):
            time = space["time"]
            heads = space["heads"](self.masks, time.table[0])
            made.append(History(self.segments, space["parts"], [time], heads))
        if self.own is not None:
            made[0].keys = made[1]
        return made[0], self.space["query"], (self.own or self.space)["query"]

    def written(self, space: dict, sample: int) -> Tensor:
        start = sum(self.lengths[:sample])
        rows = slice(start, start + self.lengths[sample])
        fields = torch.cat([part.table[part.at.ids[rows]] for part in space["parts"]], 1)
        return fields + space["time"].table[space["time"].at.ids[rows]]

    def attention(self, sample: int, query: Tensor) -> list[Tensor]:
        """Softmax of the logits of every head, one behaviour after the other."""
        space = self.own or self.space
        behaviours, start = self.written(space, sample), sum(self.lengths[:sample])
        found = []
        for number, names in enumerate(self.wanted):
            dim = space["dim"]
            columns = [FIELDS.index(name) * dim + k for name in names for k in range(dim)]
            logits = []
            for i, behaviour in enumerate(behaviours):
                if names:
                    logit = (behaviour[columns] * query[columns]).sum() / len(columns) ** 0.5
                    for place, name in enumerate([name for name in SHARED if name in names]):
                        logit = logit + space["heads"].bias[number].weight[place] * self.masks[name][start + i]
                else:  # only time: p(Δt) against p(0)
                    ids = space["time"].at.ids[start + i]
                    logit = (space["time"].table[ids] * space["time"].table[0]).sum() / space["width"] ** 0.5
                logits.append(logit)
            found.append(torch.softmax(torch.stack(logits), 0) if logits else behaviours.new_zeros(0))
        return found

    def found(self, sample: int, query: Tensor, state: Tensor) -> Tensor:
        """Σ_i α_i (ẽ_i ⊙ u) of every head, side by side."""
        behaviours = self.written(self.space, sample)
        parts = []
        for weight in self.attention(sample, query):
            total = 0 * state
            for alpha, behaviour in zip(weight, behaviours, strict=True):
                total = total + alpha * (behaviour * state)
            parts.append(total)
        return torch.cat(parts)


def agree(ours: Tensor, literal: Tensor, leaves: list[Tensor], parameters: list[Tensor]) -> None:
    """Value and gradient."""
    loose = 1 if ours.dtype == torch.float64 else 10_000
    torch.testing.assert_close(ours, literal, rtol=1e-9 * loose, atol=1e-9 * loose)
    weight = torch.randn_like(ours)
    inputs = [*leaves, *parameters]
    for mine, other, leaf in zip(
        torch.autograd.grad((ours * weight).sum(), inputs, allow_unused=True),
        torch.autograd.grad((literal * weight).sum(), inputs, allow_unused=True),
        inputs,
        strict=True,
    ):
        zero = torch.zeros_like(leaf)
        found = (zero if gradient is None else gradient for gradient in (mine, other))
        torch.testing.assert_close(*found, rtol=1e-7 * loose, atol=1e-8 * loose)


def _din(reader: DIN, behaviours: Tensor, candidate: Tensor, bias: Tensor) -> Tensor:
    found = 0 * candidate
    for behaviour, match in zip(behaviours, bias, strict=True):
        value = torch.cat([behaviour, candidate, behaviour - candidate, behaviour * candidate])
        value = reader.first.weight @ value + reader.first.bias
        for leak, linear in zip(reader.rest[::2], reader.rest[1::2], strict=True):
            value = linear.weight @ torch.where(value > 0, value, leak.weight * value) + linear.bias
        found = found + value * torch.exp(match) * behaviour
    return found


@pytest.mark.parametrize("lengths", [[3, 0, 1, 5], [2], [0, 0]], ids=str)
@pytest.mark.parametrize("hidden", [[8], [8, 4], [6, 3]], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_din_equals_its_equation(lengths: list[int], hidden: list[int], dtype: torch.dtype) -> None:
    """u = Σ_i a([ẽ_i, ṽ, ẽ_i - ṽ, ẽ_i ⊙ ṽ]) ẽ_i (arXiv 1706.06978), by groups of rows in float32 and by pairs."""
    drawn = Drawn(lengths, [FIELDS], dtype=dtype)
    history, candidate, query = drawn.history()
    reader = DIN(WIDTH, hidden).to(dtype)
    for parameter in reader.parameters():  # slopes of their own, of either sign
        parameter.data += 0.3 * torch.randn_like(parameter)
    grouped = dtype == torch.float32 and hidden[0] % 4 == 0 and sum(lengths) > 0
    assert _groups(history.positions(), reader.first.weight.chunk(4, 1)[0]) == grouped
    ours = reader(history, candidate, query)
    again = drawn.history()[0]  # a graph of its own
    own = zip(again.positions().split(lengths), candidate, again.heads[0].bias.split(lengths), strict=True)
    literal = torch.stack([_din(reader, *parts) for parts in own])
    agree(ours, literal, drawn.leaves, [*(bias.weight for bias in drawn.space["heads"].bias), *reader.parameters()])


@settings(max_examples=15, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 6), min_size=1, max_size=4),
    chosen=st.lists(st.sampled_from(range(4)), min_size=1, max_size=4),
    decoupled=st.sampled_from([0, 2]),
    seed=st.integers(0, 100),
)
def test_heads_equal_their_equation(lengths: list[int], chosen: list[int], decoupled: int, seed: int) -> None:
    """Head g: softmax over ⟨ẽ_i[G_g], ṽ[G_g]⟩/√|G_g| + bias of G_g; every head pools the full ẽ (arXiv 2510.21714)."""
    drawn = Drawn(lengths, [GROUPS[place] for place in chosen], seed, decoupled)
    history, candidate, query = drawn.history()
    ours = TIN(WIDTH, len(chosen))(history, candidate, query)
    literal = torch.stack([drawn.found(b, query[b], candidate[b]) for b in range(len(lengths))])
    biases = [bias.weight for bias in (drawn.own or drawn.space)["heads"].bias]
    agree(ours, literal, drawn.leaves, biases)


@pytest.mark.parametrize("output", ["found", "states", "last"])
@pytest.mark.parametrize(("residual", "feed_forward"), [("norm", 0), ("gate", 0), ("norm", 2), ("gate", 1)])
@pytest.mark.parametrize("decoupled", [0, 2])
def test_stack_equals_its_equation(output: str, residual: str, feed_forward: int, decoupled: int) -> None:
    """u^l = LayerNorm(u^{l-1} + W_l f^l) or through a gate; then the feed-forward network (arXiv 2510.21714)."""
    drawn = Drawn([3, 0, 1, 5], GROUPS[:2], decoupled=decoupled)
    history, candidate, query = drawn.history()
    stack = StackedTIN(WIDTH, 3, output, residual, feed_forward, query.shape[1] if decoupled else 0, 2).double()
    literal = []
    for b in range(4):
        state, asked, found, states = candidate[b], query[b], [], []
        for layer in range(3):
            if layer:
                asked = query[b] + stack.ask[layer - 1].weight @ state if decoupled else state
            found.append(drawn.found(b, asked, state))
            if layer == 2 and output == "found":
                break
            step = stack.steps[layer]
            moved = step.mix.weight @ found[-1]
            if residual == "gate":
                both = torch.cat([state, found[-1]])
                moved = torch.sigmoid(step.gate.weight @ both + step.gate.bias) * moved
            state = state + moved
            if residual == "norm":
                state = F.layer_norm(state, (WIDTH,), step.norm.weight, step.norm.bias)
            if feed_forward:
                normed = F.layer_norm(state, (WIDTH,), step.network[0].weight, step.network[0].bias)
                hidden = torch.relu(step.network[1].weight @ normed + step.network[1].bias)
                state = state + step.network[3].weight @ hidden + step.network[3].bias
            states.append(state)
        literal.append(torch.cat({"found": found, "states": states, "last": states[-1:]}[output]))
    ours = stack(history, candidate, query)
    assert ours.shape[1] == stack.out
    agree(ours, torch.stack(literal), drawn.leaves, list(stack.parameters()))


@pytest.mark.parametrize("layers", [1, 2, 3, 4])
def test_layer_l_carries_interactions_of_order_l_plus_one(layers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With attention held still, what layer l finds is a polynomial of degree l in the behaviours: its differences of
    order l + 1 vanish and those of order l do not; and it holds the candidate once."""
    drawn = Drawn([4, 2, 6], [FIELDS])
    history, candidate, query = drawn.history()
    weight = torch.softmax(torch.randn(history.segments.total, dtype=torch.float64), 0)
    monkeypatch.setattr(History, "attend", lambda self, query: [weight])
    stack = StackedTIN(WIDTH, layers).double()
    for step in stack.steps:
        step.norm = None  # a norm is no polynomial

    @torch.no_grad()
    def last(behaviours: float, own: float = 1.0) -> Tensor:
        fields = [Part(part.table * behaviours, part.at) for part in history.fields]
        added = [Part(part.table * behaviours, part.at) for part in history.added]
        scaled = History(history.segments, fields, added, history.heads)
        return stack(scaled, candidate * own, query)[:, -WIDTH:]

    def differences(order: int) -> float:
        values = [last(float(step)) for step in range(order + 1)]
        for _ in range(order):
            values = [after - before for before, after in pairwise(values)]
        return values[0].abs().max().item()

    assert differences(layers) > 1e-3
    assert differences(layers + 1) < 1e-9 * max(1.0, last(float(layers + 1)).abs().max().item())
    torch.testing.assert_close(last(1.0, 3.0), 3 * last(1.0), rtol=1e-9, atol=1e-12)


def test_stack_of_one_layer_is_tin() -> None:
    drawn = Drawn([3, 0, 5], GROUPS)
    inputs = drawn.history()
    torch.testing.assert_close(StackedTIN(WIDTH, 1, heads=4)(*inputs), TIN(WIDTH, 4)(*inputs))


def test_the_mean_of_the_heads_leads_the_search() -> None:
    drawn = Drawn([3, 0, 5], GROUPS)
    history, _, query = drawn.history()
    torch.testing.assert_close(history.combined(query), torch.stack(history.logits(query)).mean(0))


def test_what_a_head_does_not_see_moves_its_attention_nowhere() -> None:
    drawn = Drawn([4, 3], [["category1"]])
    history, _, query = drawn.history()
    before = history.attend(query)[0]
    for place in (0, 2, 3):
        history.fields[place].table.data.add_(torch.randn_like(history.fields[place].table))
        query.data[:, place * DIM : (place + 1) * DIM] += 1
    for name in ("item", "scenario"):
        drawn.masks[name].logical_not_()
    torch.testing.assert_close(drawn.history()[0].attend(query)[0], before)


# names


def field(name: str, level: int = 0) -> Field:
    return Field(name, 5, True, True, level)


EVERY = [
    field("item"),
    field("category1", 1),
    field("category2", 2),
    *map(field, ("scenario", "domain", "action", "brand")),
]


def test_groups_by_kind() -> None:
    assert groups("auto", EVERY, True) == [
        ["item", "brand"], ["category1", "category2"], ["scenario", "domain"], ["action"], [],
    ]  # fmt: skip
    assert groups("auto", EVERY[:2], False) == [["item"], ["category1"]]
    assert groups([], EVERY, True) == [[entry.name for entry in EVERY]]
    assert groups([["category", "item"], ["time"]], EVERY, True) == [["item", "category1", "category2"], []]


@pytest.mark.parametrize(
    ("wanted", "temporal", "says"),
    [
        ([["itm"]], True, "head 1: 'itm' is no field"),
        ([["item"], []], True, "head 2: the head has no fields"),
        ([["item", "time"]], True, "`time` makes a head of its own"),
        ([["time"]], False, "model.temporal is empty"),
    ],
)
def test_groups_that_cannot_be(wanted: list[list[str]], temporal: bool, says: str) -> None:
    with pytest.raises(InputError, match=says):
        groups(wanted, EVERY, temporal)
