"""Target-decoupled SASRec (Tencent, arXiv 2510.21714): two towers, for retrieval and pre-ranking."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lsm_cli.data.batches import Batch
from lsm_cli.data.store import Field
from lsm_cli.errors import InputError
from lsm_cli.kernels import ragged
from lsm_cli.kernels.padded import Layout
from lsm_cli.kernels.ragged import Segments, Shared
from lsm_cli.models.history import Part, segments_of
from lsm_cli.models.numeric import Numeric
from lsm_cli.models.ranking import CALENDAR_DIM, HOURS, WEEKDAYS
from lsm_cli.models.sasrec import Encoder
from lsm_cli.models.scorer import Scorer
from lsm_cli.models.space import Rows, Space
from lsm_cli.models.successors import Successors
from lsm_cli.models.tower import Tower
from lsm_cli.options import ModelOptions, Recipe

NAMED = ("scenario",)  # fields that describe the request wherever they occur


class TwoTower(Scorer):
    """logit^τ = ⟨z^τ, v⟩ + b^τ + g^τ.

    z^τ (user, request) is what the token of target τ finds behind the user's behaviours by a causal encoder (see
    `Encoder`), with temporal encodings p^τ of the target's own if the recipe says so, and a readout of its own; the
    token knows where and when the request is made, never the candidate. v (item) stands in the tables of the
    behaviours: the item's own fields side by side. b^τ (user, request) moves the probability and no order. g^τ (item,
    time) is a small tower on the item's point-in-time statistics, its fields and the hour: no user is in it, so that it
    is kept beside the item and refreshed with its counts. Retrieval goes by ⟨z^τ, v⟩ alone.

    With `train.softmax` the loss adds, for each positive, a softmax of ⟨z^τ, v⟩ over the candidates of the batch, each
    corrected by the logarithm of its share among all candidates (Yi et al., RecSys'19, §3): then exp ⟨z^τ, v⟩ goes with
    the probability of the item among all, not only among those shown. One seed, last 30, width 8, weight 1 against 0:
    recall@10 .104 / .017 and GAUC .548 / .534 on retail (1 epoch); on the base world of 1,200 users recall@10 .20 / .01
    (click) and .33 / .08 (order), GAUC .678 / .635 and .666 / .701 (3 epochs). It is on in the recipe: recall is what
    two towers are for.

    With `train.next_item` the loss adds what each behaviour loses by guessing its successor with the readout of the
    target (the mean of all, where targets share one reading), see `Successors`. One seed, last 50 on retail, whole
    requests, weight 1 against 0: GAUC .636 / .576, recall@10 .116 / .107.

    Written out: the behaviours, [b, length, width], one group of similar lengths after the other, once or, with own
    encodings, once per target.

    Args:
        recipe: options.
        fields: side-information fields in order.
        targets: number of optimisation targets.
        statistics: number of point-in-time statistics per sample.
        category_rows: see `Bank`.
        shown: how often each row of the item table is a candidate in training, [rows]; for `train.softmax`.
    """

    share: Tensor | None

    def __init__(
        self,
        recipe: Recipe,
        fields: list[Field],
        targets: int,
        statistics: int,
        category_rows: np.ndarray | None,
        shown: np.ndarray | None = None,
    ) -> None:
        super().__init__()
        options, train = recipe.model, recipe.train
        torch.manual_seed(train.seed)
        self.item, self.request, _ = sides(options, fields)
        kept = [replace(field, in_sample=field.name in {*self.item, *self.request}) for field in fields]
        self.space = Space(recipe, kept, category_rows, options.dim, True, train.seed, targets)
        self.space.constants = nn.ParameterDict()  # candidates do not stand among the behaviours here
        self.spaces = [self.space]
        width, self.width = self.space.width, options.dim * len(self.item)
        own_times = options.time_tables != "shared" and self.space.temporal is not None
        self.readings: list[int | None] = list(range(targets)) if own_times and targets > 1 else [None]
        self.token = nn.Parameter(torch.randn(targets, width) * options.init_std)
        self.calendar = (
            nn.ModuleList(nn.Embedding(size, CALENDAR_DIM) for size in (HOURS, WEEKDAYS))
            if recipe.data.calendar
            else None
        )
        hours = 2 * CALENDAR_DIM if self.calendar else 0
        context = options.dim * len(self.request) + hours
        self.context = nn.Linear(context, width, bias=False) if context else None
        self.encoder = Encoder(width, options.layers, options.block_heads, options.dropout)
        first = torch.randn(targets, width, self.width + 1) * (0.0 if options.quiet else width**-0.5)
        self.readout = nn.Parameter(first)
        self.numeric = Numeric(statistics if recipe.data.statistics else 0, options.bins)
        self.feed_candidate = options.candidate
        moment = self.numeric.out + hours + (self.width if options.candidate else 0)
        self.tower = Tower(moment, 0, options, targets) if moment else None
        self.softmax, self.next_item = train.softmax, train.next_item
        self.unknown = next(field.rows for field in fields if field.name == "item") - 1
        share = None if shown is None else torch.from_numpy(np.log(np.maximum(shown, 1) / max(shown.sum(), 1)))
        self.register_buffer("share", None if share is None else share.float(), persistent=False)

    def start(self, rates: Tensor, item_vectors: Callable[[], Tensor]) -> None:
        if self.tower is not None:
            self.tower.start(rates)

    def forward(self, batch: Batch, rows: list[Rows]) -> Tensor:
        """Logits [B, targets]."""
        return self._score(batch, rows, self.users(batch, rows), self.items(rows))

    def learn(self, batch: Batch, rows: list[Rows]) -> tuple[Tensor, Tensor | None]:
        (users, extra), items = self._read(batch, rows, guess=self.next_item > 0), self.items(rows)
        if self.softmax:
            retrieval = self._retrieval(batch, rows, users, items)
            extra = retrieval if extra is None else extra + retrieval
        return self._score(batch, rows, users, items), extra

    def users(self, batch: Batch, rows: list[Rows]) -> Tensor:
        """z^τ and b^τ behind it, of every sample: [B, targets, width of v + 1]."""
        return self._read(batch, rows, guess=False)[0]

    def _read(self, batch: Batch, rows: list[Rows], guess: bool) -> tuple[Tensor, Tensor | None]:
        """The same, and what is lost by guessing each behaviour's successor as each target sees it, [targets]."""
        space = self.space
        asks, segments = self._asks(batch)
        parts, places = space.parts(segments, rows[0]), space.places(batch, segments)
        layout = Layout(segments)
        tokens = self.token.expand(segments.size, -1, -1)
        known = [space.own(rows[0], name) for name in self.request] + self._hours(batch)
        known = known if asks is None else [values.index_select(0, asks[0]) for values in known]
        if self.context is not None:
            tokens = tokens + self.context(torch.cat(known, 1)).unsqueeze(1)
        successors = self._successors(segments, parts, rows) if guess else None
        found, lost = [], []
        for target in self.readings:
            behaviours = layout.pad(space.history(segments, parts, places, {}, target).positions())
            asked = space.placed(tokens if target is None else tokens[:, target : target + 1], target)
            encoded = [
                self.encoder(padded, asked.index_select(0, group.rows), group.real, guess)
                for group, padded in zip(layout.groups, behaviours, strict=True)
            ]
            found.append(layout.join([told for _, told in encoded]))
            if successors is not None:
                readout = self.readout.mean(0) if target is None else self.readout[target]
                lost.append(successors.loss(layout.lay([states for states, _ in encoded]), readout[:, :-1]))
        users = torch.einsum("btw,twv->btv", torch.cat(found, 1), self.readout).float()
        extra = self.next_item * torch.stack(lost).expand(users.shape[1]) if lost else None
        return users if asks is None else users.index_select(0, asks[1]), extra

    def _successors(self, segments: Segments, parts: list[Part], rows: list[Rows]) -> Successors:
        """What the behaviours are followed by; fields that only candidates have count as zero."""
        item, known = rows[0]["item"], dict(zip(self.space.behaviour, parts, strict=True))
        behaviour = item.rows.index.index_select(0, cast(Tensor, item.history))
        nothing = parts[0].table.new_zeros(len(behaviour), self.space.dim)
        vectors = [ragged.take(known[name].table, known[name].at) if name in known else nothing for name in self.item]
        return Successors.of(segments, behaviour, torch.cat(vectors, 1), self.unknown)

    def _asks(self, batch: Batch) -> tuple[tuple[Tensor, Tensor] | None, Segments]:
        """Where samples share histories: those that stand for all whose user and request are the same, as int64 [U],
        and which of them does for each sample, [B]; and what the former read. No candidate is in a user's vector."""
        segments = segments_of(batch)
        if not isinstance(segments, Shared):
            return None, segments
        new = torch.ones(batch.size, dtype=torch.bool, device=segments.of.device)
        new[1:] = segments.of.diff() != 0
        for name in self.request:
            new[1:] |= batch.target[name].diff() != 0
        first = new.nonzero().squeeze(1)
        of = segments.of.index_select(0, first)
        if len(of) == segments.histories.size:
            return (first, new.cumsum(0) - 1), segments.histories
        reads = int(segments.histories.lengths.index_select(0, of).sum())
        return (first, new.cumsum(0) - 1), Shared(segments.histories, of, reads)

    def items(self, rows: list[Rows]) -> Tensor:
        """v of every candidate: [B, width of v]."""
        return torch.cat([self.space.own(rows[0], name) for name in self.item], 1)

    def _hours(self, batch: Batch) -> list[Tensor]:
        if self.calendar is None:
            return []
        return [table(batch.calendar[:, place]) for place, table in enumerate(self.calendar)]

    def _score(self, batch: Batch, rows: list[Rows], users: Tensor, items: Tensor) -> Tensor:
        logits = torch.einsum("btv,bv->bt", users[..., :-1], items) + users[..., -1]
        if self.tower is None:
            return logits
        known = [self.numeric(self.numbers(batch)), *self._hours(batch), *([items] if self.feed_candidate else [])]
        return logits + self.tower(known, [])

    def numbers(self, batch: Batch) -> Tensor:
        return batch.statistics[:, : self.numeric.size]

    def _retrieval(self, batch: Batch, rows: list[Rows], users: Tensor, items: Tensor) -> Tensor:
        """The softmax over the candidates of the batch, mean over the positives of each target: [targets]."""
        fetched = rows[0]["item"]
        item = fetched.rows.index.index_select(0, cast(Tensor, fetched.target))
        prior = cast(Tensor, self.share).index_select(0, item)
        losses = []
        with torch.autocast(items.device.type, enabled=False):
            for target in range(users.shape[1]):
                positive = (batch.labels[:, target] == 1).nonzero().squeeze(1)
                logits = users[:, target, :-1].index_select(0, positive) @ items.t() - prior
                other = item.index_select(0, positive).unsqueeze(1) == item  # the same item, shown to somebody else
                other.scatter_(1, positive.unsqueeze(1), False)
                found = F.cross_entropy(logits.masked_fill(other, -torch.inf), positive, reduction="sum")
                losses.append(found / max(len(positive), 1))
        return self.softmax * torch.stack(losses)


def sides(options: ModelOptions, fields: Sequence[Field]) -> tuple[list[str], list[str], list[str]]:
    """Which of the candidates' fields describe the item, which the request, and which are left out.

    Raises:
        InputError: a name that candidates do not have, or one on both sides; nothing describes the item.
    """
    present = [field for field in fields if field.in_sample]
    names = [field.name for field in present]
    for key, asked in (("item_fields", options.item_fields), ("request_fields", options.request_fields)):
        for name in asked:
            if name not in names:
                raise InputError(f"model.{key}: {name!r} is no field of the candidates; there are {', '.join(names)}")
    if "item" in options.request_fields:
        raise InputError("model.request_fields: `item` is what the request is answered with; take it out")
    both = set(options.item_fields) & set(options.request_fields)
    if both:
        raise InputError(
            f"model.request_fields: {min(both)!r} is in model.item_fields already; leave it in one of them"
        )
    of_item = {"item", *options.item_fields, *(field.name for field in present if field.level)}
    item = [name for name in names if name in of_item and name not in options.request_fields]
    request = [name for name in names if name in {*NAMED, *options.request_fields} and name not in item]
    if "item" not in item:
        raise InputError("model.sequence = 'sasrec' scores items by their own embedding: add `item` to data.fields")
    return item, request, [name for name in names if name not in {*item, *request}]
