"""Match evidence: whether, how often and how recently a behaviour shares something with the candidate.

The strongest signal in behaviour logs, and the one that embeddings are slowest to learn. Identities are compared, not
embeddings, so that items nobody trained on count too. Missing values match nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lsm_cli.data.batches import Batch
from lsm_cli.data.store import MISSING
from lsm_cli.kernels import ragged
from lsm_cli.kernels.ragged import Segments

DAY = 86_400.0


def match_mask(batch: Batch, segments: Segments, field: str) -> Tensor:
    """bool [N]: does the behaviour share this field with its sample's candidate?"""
    return segments.each(batch.history[field]) == wanted(batch.target[field]).index_select(0, segments.row)


def wanted(target: Tensor) -> Tensor:
    """Ids that behaviours may match: missing values match nothing (-1)."""
    return torch.where(target > MISSING, target, -1)


class MatchBias(nn.Module):
    """A learned addition to the attention logit for each field that a behaviour shares with the candidate."""

    def __init__(self, fields: list[str]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((len(fields),), 0.5))

    def forward(self, masks: dict[str, Tensor]) -> Tensor:
        """field -> bool [N], in the order of the fields -> [N]."""
        return torch.stack(list(masks.values()), 1).to(self.weight.dtype) @ self.weight


class ActionBias(nn.Module):
    """A learned addition to the attention logit for each action: an order may say more than a view, or less.

    Zero at the start. Actions that nobody trained on share the last row, as in the tables.
    """

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(rows))

    def forward(self, actions: Tensor) -> Tensor:
        """int [N] -> [N]."""
        return self.weight.index_select(0, actions.clamp(max=self.weight.numel() - 1))


class Evidence:
    """Pooled match statistics, a fixed function of the batch: numbers for the head, nothing to learn.

    Args:
        fields: fields that behaviours and candidates share.
        half_lives: of the decayed counts, days.
        windows: counts over the last n behaviours.
    """

    def __init__(self, fields: list[str], half_lives: list[float], windows: list[int]) -> None:
        self.fields, self.half_lives, self.windows = fields, half_lives, windows
        kinds = ["count", *(f"decay_{h:g}d" for h in half_lives), *(f"last_{w}" for w in windows), "age", "rank"]
        self.names = [f"{field}.{kind}" for field in fields for kind in kinds] + ["length", "last_age", "first_age"]

    def __call__(self, batch: Batch, segments: Segments, masks: dict[str, Tensor]) -> Tensor:
        """float32 [B, len(names)].

        Per field: counts, decayed counts, age (seconds) and rank of the last match (-1 = none). For the whole: its
        length and the ages of its ends, which say how much a count is worth: of 200 behaviours in a month, or a year.
        """
        days = batch.age / DAY
        weights = [torch.ones_like(days)]
        weights += [torch.exp2(days / -half_life) for half_life in self.half_lives]
        weights += [(batch.rank <= window).to(days.dtype) for window in self.windows]
        stacked = torch.stack(weights, 1)
        if ragged.shapes_are_fixed():
            return self._of_fixed_shape(batch, segments, masks, stacked)
        columns = []
        for field in self.fields:
            where = masks[field].nonzero().squeeze(1)
            lies = segments.lies(where)
            row = segments.row.index_select(0, where)
            matches = torch.bincount(row, minlength=segments.size)
            matched = Segments(torch.cat([matches.new_zeros(1), matches.cumsum(0)]), total=where.numel())
            columns.append(ragged.segment_sum(stacked.index_select(0, lies), matched))
            last = matched.offsets[1:] - 1  # histories run from old to new: the last match is the most recent
            for value in (batch.age, batch.rank.to(days.dtype)):
                found = value.index_select(0, lies)
                safe = found[last.clamp(min=0)] if where.numel() else value.new_zeros(segments.size)
                columns.append(torch.where(matches > 0, safe, -1.0).unsqueeze(1))
        return torch.cat([*columns, *self._whole(batch, segments)], 1)

    def _of_fixed_shape(self, batch: Batch, segments: Segments, masks: dict[str, Tensor], stacked: Tensor) -> Tensor:
        """The same over all behaviours instead of those that match, whose number is not known beforehand."""
        place = torch.arange(segments.total, device=stacked.device)
        columns = []
        for field in self.fields:
            mask = masks[field]
            columns.append(ragged.segment_sum(stacked * mask.unsqueeze(1), segments))
            none = place.new_full((segments.size,), -1)
            last = none.scatter_reduce(0, segments.row, torch.where(mask, place, -1), "amax")
            for value in (batch.age, batch.rank.to(stacked.dtype)):
                found = value.index_select(0, last.clamp(min=0))
                columns.append(torch.where(last >= 0, found, -1.0).unsqueeze(1))
        return torch.cat([*columns, *self._whole(batch, segments)], 1)

    def _whole(self, batch: Batch, segments: Segments) -> list[Tensor]:
        """Of the whole history: how long it is, and the ages of its ends."""
        columns = [segments.lengths.to(batch.age.dtype).unsqueeze(1)]
        for end in (segments.offsets[1:] - 1, segments.offsets[:-1]):  # the newest, the oldest
            some = ragged.shapes_are_fixed() or segments.total
            place = segments.lies(end.clamp(0, segments.total - 1)) if some else None
            age = batch.age.new_zeros(segments.size) if place is None else batch.age[place]
            columns.append(torch.where(segments.lengths > 0, age, -1.0).unsqueeze(1))
        return columns
