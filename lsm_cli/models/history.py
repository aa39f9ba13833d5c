"""A batch of histories as models see it: embedded parts that are never written out unless a model asks for it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lsm_cli.kernels import ragged
from lsm_cli.kernels.ragged import Occurrences, Segments


@dataclass
class Part:
    """One embedded property of the behaviours: behaviour i shows row `at.ids[i]` of table [R, d]."""

    table: Tensor
    at: Occurrences


@dataclass
class History:
    """ẽ, the fused representation of every behaviour [N, width], in factored form.

    Attributes:
        fields: side information; their rows stand side by side and fill the width.
        added: temporal encodings; each spans the whole width and is added.
        bias: [N], added to every attention logit; None = 0.
        keys: the representation that attention goes by, where it has one of its own (DARE); None = this one.
    """

    segments: Segments
    fields: list[Part]
    added: list[Part]
    bias: Tensor | None = None
    keys: History | None = None

    @property
    def width(self) -> int:
        return sum(part.table.shape[1] for part in self.fields)

    def scores(self, query: Tensor, added: bool = True) -> Tensor:
        """⟨ẽ_i, query[row_i]⟩, or ⟨e_i, query[row_i]⟩ without what is added: query [B, width] -> [N]."""
        slices = query.split([part.table.shape[1] for part in self.fields], 1)
        terms = [ragged.dot(part.table, piece, part.at) for part, piece in zip(self.fields, slices, strict=True)]
        terms += [ragged.dot(part.table, query, part.at) for part in self.added if added]
        return torch.stack(terms).sum(0)

    def logits(self, query: Tensor) -> Tensor:
        """⟨ẽ_i, query⟩ / √width + bias_i, in the space of the attention: query [B, width] -> [N]."""
        if self.keys is not None:
            return self.keys.logits(query)
        logits = self.scores(query) / self.width**0.5
        return logits if self.bias is None else logits + self.bias

    def attend(self, query: Tensor) -> Tensor:
        """Softmax of the logits within each sample: query [B, width of the attention] -> [N]."""
        return ragged.softmax(self.logits(query), self.segments)

    def pool(self, weight: Tensor) -> Tensor:
        """Σ_i weight_i ẽ_i per sample: [N] -> [B, width]; zero for an empty history."""
        pooled = torch.cat([ragged.pool(part.table, weight, part.at) for part in self.fields], 1)
        for part in self.added:
            pooled = pooled + ragged.pool(part.table, weight, part.at)
        return pooled

    def positions(self) -> Tensor:
        """ẽ written out, [N, width]: for models that need every position by itself."""
        written = torch.cat([ragged.take(part.table, part.at) for part in self.fields], 1)
        for part in self.added:
            written = written + ragged.take(part.table, part.at)
        return written
