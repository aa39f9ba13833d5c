"""Decoupled side information: attention heads that each see only their own fields (DSI-TIN, arXiv 2510.21714).

Fields that tell nothing (a scenario that half of all behaviours share) drown those that do when one attention sees
them all. Here head g compares behaviours and candidate by its own fields alone, in the attention's space:

    α^g_i = softmax_i(⟨ẽ_i[G_g], ṽ[G_g]⟩ / √|G_g| + match bias of the fields in G_g)

while every head pools the full representation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn

from lsm_cli.data.store import Field
from lsm_cli.errors import InputError
from lsm_cli.models.evidence import MatchBias

TIME = "time"


@dataclass
class Head:
    """What one head sees.

    Attributes:
        number: among the heads.
        fields: positions of its fields among those of the history; empty = only where in time behaviours lie.
        columns: float [width], 1 where its fields lie; None = everywhere.
        width: of its fields together.
        origin: p(0) [width], the query of a head without fields; None = the head asks with the candidate.
        bias: [N], added to its logits; None = 0.
    """

    number: int
    fields: list[int]
    columns: Tensor | None
    width: int
    origin: Tensor | None
    bias: Tensor | None

    def asks(self, query: Tensor) -> Tensor:
        """What the head compares behaviours with, zero beside its fields: a query for all heads [B, width], or one for
        each [B, heads, width] -> [B, width]."""
        query = query if query.dim() == 2 else query[:, self.number]
        if self.origin is not None:
            return self.origin.expand(query.shape[0], -1)
        return query if self.columns is None else query * self.columns


def groups(
    wanted: Literal["auto"] | Sequence[Sequence[str]], fields: Sequence[Field], temporal: bool
) -> list[list[str]]:
    """Resolve the fields of every head.

    Args:
        wanted: `auto`, or names for each head: fields, `category` for all its levels, `time` for a head that sees only
            where in time behaviours lie; empty = one head that sees everything.
        fields: side information of behaviours.
        temporal: whether the attention knows any time.

    Returns:
        names of the fields of each head; a head without names is the one of time.

    Raises:
        InputError: a name that behaviours do not have, or `time` beside fields.
    """
    names = [field.name for field in fields]
    levels = [field.name for field in fields if field.level]
    places, actions = ["scenario", "domain"], ["action"]
    if wanted == "auto":
        others = {*levels, *places, *actions}
        kinds = ([name for name in names if name not in others], levels, places, actions)
        found = [[name for name in kind if name in names] for kind in kinds]
        return [kind for kind in found if kind] + [[]] * temporal
    resolved: list[list[str]] = []
    for number, head in enumerate(wanted, start=1):
        if list(head) == [TIME]:
            if not temporal:
                raise InputError(f"model.heads: head {number} sees only time, but model.temporal is empty")
            resolved.append([])
            continue
        unknown = [name for name in head if name not in {*names, *(["category"] if levels else [])}]
        if unknown or not head:
            what = f"{unknown[0]!r} is no field of the behaviours" if unknown and unknown[0] != TIME else (
                "`time` makes a head of its own" if unknown else "the head has no fields"
            )  # fmt: skip
            raise InputError(f"model.heads: head {number}: {what}; there are {', '.join(names)}, category and time")
        chosen = {level for name in head for level in (levels if name == "category" else [name])}
        resolved.append([name for name in names if name in chosen])
    return resolved or [names]


class Heads(nn.Module):
    """The heads of one attention.

    Args:
        groups: fields of each, see `groups`.
        fields: names of the behaviours' fields, in order; each `dim` wide.
        shared: those that candidates have too, so that behaviours can match in them.
        match_bias: whether matches add to the logits.
    """

    def __init__(self, groups: list[list[str]], fields: list[str], dim: int, shared: list[str], match_bias: bool):
        super().__init__()
        self.fields = [[fields.index(name) for name in group] for group in groups]
        self.matching = [[name for name in shared if name in group] if match_bias else [] for group in groups]
        self.widths = [dim * (len(group) or len(fields)) for group in groups]
        self.bias = nn.ModuleList(MatchBias(names) for names in self.matching)
        columns = torch.zeros(len(groups), dim * len(fields))
        for head, places in enumerate(self.fields):
            for place in places:
                columns[head, place * dim : (place + 1) * dim] = 1
        self.whole = [bool(row.all()) for row in columns]
        self.register_buffer("columns", columns, persistent=False)

    columns: Tensor

    def __len__(self) -> int:
        return len(self.fields)

    def forward(self, masks: dict[str, Tensor], origin: Tensor | None, extra: Tensor | None = None) -> list[Head]:
        """The heads for one batch.

        Args:
            masks: field -> bool [N], where behaviours share it with their candidate; none = no matches.
            origin: p(0) [width] of the attention's space; None = it knows no time.
            extra: [N], added to the logits of every head.
        """
        found = []
        for number, (fields, names) in enumerate(zip(self.fields, self.matching, strict=True)):
            bias = self.bias[number]({name: masks[name] for name in names}) if names and masks else None
            if extra is not None:
                bias = extra if bias is None else bias + extra
            columns = None if self.whole[number] or not fields else self.columns[number]
            asks = None if fields else origin
            found.append(Head(number, fields, columns, self.widths[number], asks, bias))
        return found

    def match_weights(self) -> dict[str, Tensor]:
        """field -> what a match in it adds to a behaviour's logit, in the mean over the heads: scalars."""
        found: dict[str, Tensor] = {}
        for names, bias in zip(self.matching, self.bias, strict=True):
            for place, name in enumerate(names):
                weight = cast(MatchBias, bias).weight[place] / len(self)
                found[name] = found[name] + weight if name in found else weight
        return found
