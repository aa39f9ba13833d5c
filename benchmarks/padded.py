"""Stacked TIN (or TIN) as one writes it first: histories padded to the longest of the batch, every tensor written out,
nn.Embedding tables under Adam. What the engine is compared with; the same numbers come out (see `copied`).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from lsm_cli.data.batches import Batch
from lsm_cli.embedding.tables import RowMap, Table
from lsm_cli.models.evidence import wanted
from lsm_cli.models.interest import StackedTIN
from lsm_cli.models.ranking import RankingModel
from lsm_cli.models.temporal import LONGEST_RANK, LONGEST_SECONDS, log_bucket


@dataclass
class PaddedBatch:
    """[B, L] per field; `real` is False on the padding."""

    history: dict[str, Tensor]
    real: Tensor
    age: Tensor
    rank: Tensor
    batch: Batch

    @classmethod
    def of(cls, batch: Batch) -> PaddedBatch:
        lengths = batch.offsets.diff()
        longest = max(int(lengths.max()), 1)
        real = torch.arange(longest, device=lengths.device) < lengths.unsqueeze(1)

        def pad(values: Tensor) -> Tensor:
            return values.new_zeros(real.shape).masked_scatter_(real, values)

        history = {name: pad(ids) for name, ids in batch.history.items()}
        return cls(history, real, pad(batch.age), pad(batch.rank), batch)


class PaddedModel(nn.Module):
    """The network of a recipe with sequence tin or stacked_tin (output `found`), one head, no evidence.

    Args:
        model: whose shapes and first weights it takes.
    """

    def __init__(self, model: RankingModel) -> None:
        super().__init__()
        space, reader = model.space, copy.deepcopy(cast(nn.Module, model.reader))
        self.maps = nn.ModuleDict(dict(zip(space.bank.names, space.bank.maps, strict=True)))
        self.tables = nn.ModuleDict()
        for name, table in zip(space.bank.names, space.bank.tables, strict=True):
            rows = cast(Table, table).weight
            self.tables[name] = nn.Embedding(*rows.shape, _weight=rows.detach().float().clone())
        temporal = space.temporal
        assert temporal is not None and space.heads is not None and model.evidence is None, "see the docstring"
        self.times = nn.ModuleDict(
            {
                kind: nn.Embedding(*table.shape[1:], _weight=table.detach()[0].clone())
                for kind, table in temporal.tables.items()
            }
        )
        self.behaviour, self.candidate = space.behaviour, space.candidate
        self.constants = copy.deepcopy(space.constants)
        self.matching = space.heads.matching[0]
        self.bias = copy.deepcopy(space.heads.bias[0])
        self.steps = reader.steps if isinstance(reader, StackedTIN) else nn.ModuleList()
        self.layers = reader.layers if isinstance(reader, StackedTIN) else 1
        self.calendar, self.tower, self.width = copy.deepcopy(model.calendar), copy.deepcopy(model.tower), space.width

    def forward(self, padded: PaddedBatch) -> Tensor:
        """Logits [B, targets]."""
        batch = padded.batch
        keys = torch.cat([self._embed(name, padded.history[name]) for name in self.behaviour], 2)
        for kind, table in self.times.items():
            value, longest = (padded.age, LONGEST_SECONDS) if kind == "interval" else (padded.rank, LONGEST_RANK)
            keys = keys + table(log_bucket(value, table.num_embeddings - 1, longest) + 1)
        own = {name: self._embed(name, batch.target[name]) for name in self.candidate}
        parts = [own[name] if name in own else self.constants[name].expand(batch.size, -1) for name in self.behaviour]
        state = torch.cat(parts, 1) + sum(table.weight[0] for table in self.times.values())
        equal = [padded.history[name] == wanted(batch.target[name]).unsqueeze(1) for name in self.matching]
        bias = torch.stack(equal, 2).float() @ self.bias.weight if equal else 0.0
        found = []
        for layer in range(self.layers):
            logits = (keys * state.unsqueeze(1)).sum(2) / self.width**0.5 + bias
            weight = torch.softmax(logits.masked_fill(~padded.real, -torch.inf).float(), 1).nan_to_num(0.0)
            found.append((weight.unsqueeze(2) * (keys * state.unsqueeze(1))).sum(1))
            if layer < len(self.steps):
                state = self.steps[layer](state, found[-1])
        features = [table(batch.calendar[:, place]) for place, table in enumerate(self.calendar or [])]
        return self.tower([*features, *own.values()], [torch.cat(found, 1)])

    def _embed(self, name: str, ids: Tensor) -> Tensor:
        return self.tables[name](cast(RowMap, self.maps[name])(ids.reshape(-1)).view(ids.shape))


def copied(model: RankingModel, batch: Batch) -> tuple[PaddedModel, float]:
    """The padded model with the same weights, and the largest difference between both models' scores of a batch."""
    padded = PaddedModel(model).to(batch.offsets.device)
    training = model.training
    model.eval(), padded.eval()
    with torch.no_grad():
        apart = float((model(batch, model.fetch(batch)) - padded(PaddedBatch.of(batch))).abs().max())
    model.train(training), padded.train(training)
    return padded, apart
