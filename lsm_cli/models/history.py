"""A batch of histories as models see it: embedded parts that are never written out unless a model asks for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lsm_cli.data.batches import Batch
from lsm_cli.kernels import fused, ragged
from lsm_cli.kernels.ragged import Part, Segments, Shared
from lsm_cli.models.heads import Head
from lsm_cli.search.soft import Request

FEW = 1 / 64  # share of matches up to which they are added one by one
NARROW = 8  # torch's sampled product takes seven times as long for narrower rows


@dataclass
class History:
    """ẽ, the fused representation of every behaviour [N, width], in factored form.

    Attributes:
        fields: side information; their rows stand side by side and fill the width.
        added: temporal encodings; each spans the whole width and is added.
        heads: what attention looks at; none where it is nobody's keys.
        keys: the representation that attention goes by, where it has one of its own (DARE); None = this one.
        age: [M], seconds from behaviour to request, for readers with a clock of their own; None = not told.
        watched: where every attention leaves its weights, a list of [N] for the heads; None = nowhere.
    """

    segments: Segments
    fields: list[Part]
    added: list[Part]
    heads: list[Head]
    keys: History | None = None
    age: Tensor | None = None
    watched: list[list[Tensor]] | None = None

    @property
    def width(self) -> int:
        return sum(part.table.shape[1] for part in self.fields)

    def scores(self, query: Tensor, added: bool = True) -> Tensor:
        """⟨ẽ_i, query[row_i]⟩, or ⟨e_i, query[row_i]⟩ without what is added: query [B, width] -> [N]."""
        return _total(self._by_field(query, range(len(self.fields))) + (self._by_time(query) if added else []))

    def logits(self, query: Tensor) -> list[Tensor]:
        """Head by head ⟨ẽ_i, query⟩ / √width + bias_i, over its fields: query [B, width] or [B, heads, width] -> [N]
        each."""
        seen = sorted({place for head in self.heads for place in head.fields})
        terms = dict(zip(seen, self._by_field(query, seen), strict=True)) if query.dim() == 2 else None
        found = []
        for head in self.heads:
            asked = head.asks(query)
            side = self._by_field(asked, head.fields) if terms is None else [terms[place] for place in head.fields]
            logits = _total(side + self._by_time(asked))
            logits = logits / head.width**0.5
            found.append(logits if head.bias is None else logits + head.bias)
        return found

    def combined(self, query: Tensor) -> Tensor:
        """The mean of all heads' logits, by which to search: query [B, width] or [B, heads, width] -> [N]."""
        one_pass = fused.chosen(query.device.type)
        if len(self.heads) == 1 and not one_pass:
            return self.logits(query)[0]
        for_fields, for_time = combined_queries(self.heads, query)
        biases = [head.bias for head in self.heads if head.bias is not None]
        bias = _total(biases) / len(self.heads) if biases else None
        if one_pass:
            wanted, row = (for_fields.unsqueeze(1), for_time.unsqueeze(1)), None if bias is None else bias.unsqueeze(0)
            return fused.scores(self.side, *wanted, self.segments.reads, row).squeeze(0)
        total = _total(self._by_field(for_fields, range(len(self.fields))) + self._by_time(for_time))
        return total if bias is None else total + bias

    def compare(self, near: Callable[[Tensor, Tensor], Tensor], ours: Tensor, wanted: Tensor) -> Tensor:
        """near(ours[i], wanted[row_i]), elementwise: codes of the behaviours [N, …] and candidates [B, …] -> [N]."""
        return near(ours, wanted.index_select(0, self.segments.row))

    def attend(self, query: Tensor) -> list[Tensor]:
        """Softmax of every head's logits within each sample: query as for `logits`, of the attention -> [N] each."""
        weights = [ragged.softmax(logits, self.segments) for logits in (self.keys or self).logits(query)]
        if self.watched is not None:
            self.watched.append(weights)
        return weights

    def read(self, query: Tensor) -> Tensor:
        """What the heads find, side by side: query as for `logits`, of the attention -> [B, heads * width]."""
        if self.watched is None and fused.chosen(query.device.type):
            return self._read_in_one_pass(query)
        return torch.cat([self.pool(weight) for weight in self.attend(query)], 1)

    def _read_in_one_pass(self, query: Tensor) -> Tensor:
        """The same by `fused`, a few heads at a time."""
        keys, found = self.keys or self, []
        for start in range(0, len(keys.heads), fused.MOST_HEADS):
            heads = keys.heads[start : start + fused.MOST_HEADS]
            parts = [head.asks(query) / head.width**0.5 for head in heads]
            seen = [part if head.fields else torch.zeros_like(part) for part, head in zip(parts, heads, strict=True)]
            side, asked, for_fields = keys.side, torch.stack(parts, 1), torch.stack(seen, 1)
            if keys is not self:  # keys that no head looks at are not read
                places = sorted({place for head in heads for place in head.fields})
                columns = for_fields.split([part.table.shape[1] for part in keys.fields], 2)
                side = fused.Side([keys.fields[place] for place in places], keys.added)
                for_fields = torch.cat([columns[place] for place in places] or [for_fields[..., :0]], 2)
            bias = None
            if any(head.bias is not None for head in heads):
                nothing = torch.zeros(self.segments.total, device=query.device)
                bias = torch.stack([nothing if head.bias is None else ragged.full(head.bias) for head in heads])
            values = None if keys is self else self.side
            found.append(fused.attend(side, for_fields, asked, self.segments.reads, bias, values).flatten(1))
        return torch.cat(found, 1)

    @property
    def side(self) -> fused.Side:
        return fused.Side(self.fields, self.added)

    def pool(self, weight: Tensor) -> Tensor:
        """Σ_i weight_i ẽ_i per sample: [N] -> [B, width]; zero for an empty history."""
        pooled = torch.cat([ragged.pool(part.table, weight, part.at) for part in self.fields], 1)
        for part in self.added:
            pooled = pooled + ragged.pool(part.table, weight, part.at)
        return pooled

    def positions(self) -> Tensor:
        """ẽ written out, [N, width]: for models that need every position by itself."""
        return self.segments.each(self.lying())

    def lying(self) -> Tensor:
        """The same of the behaviours that lie there, each once however many samples read it: [M, width]."""
        written = torch.cat([ragged.take(part.table, part.at) for part in self.fields], 1)
        for part in self.added:
            written = written + ragged.take(part.table, part.at)
        return written

    def _by_field(self, query: Tensor, places: Iterable[int]) -> list[Tensor]:
        slices = query.split([part.table.shape[1] for part in self.fields], 1)
        return [ragged.dot(*_padded(self.fields[at], slices[at]), self.fields[at].at) for at in places]

    def _by_time(self, query: Tensor) -> list[Tensor]:
        return [ragged.dot(part.table, query, part.at) for part in self.added]


def segments_of(batch: Batch) -> Segments:
    """Which behaviours each sample of a batch reads."""
    histories = Segments(batch.offsets, batch.behaviours)
    return histories if batch.sharing is None else Shared(histories, batch.sharing.of, batch.sharing.reads)


def combined_queries(heads: list[Head], query: Tensor) -> tuple[Tensor, Tensor]:
    """What side information and time are to be compared with, so that their scores are the mean of all heads' logits
    without the biases: query [B, width] or [B, heads, width] -> [B, width] both."""
    asked = [head.asks(query) / (head.width**0.5 * len(heads)) for head in heads]
    with_fields = [part for part, head in zip(asked, heads, strict=True) if head.fields]
    return _total(with_fields) if with_fields else torch.zeros_like(asked[0]), _total(asked)


def _total(terms: list[Tensor]) -> Tensor:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def _padded(part: Part, query: Tensor) -> tuple[Tensor, Tensor]:
    """Table and query of one part, filled up with zeros where rows are too narrow to be read fast."""
    lack = NARROW - part.table.shape[1]
    if lack <= 0 or part.at.method != "compiled":
        return part.table, query
    return F.pad(part.table, (0, lack)), F.pad(query, (0, lack))


@dataclass
class Match:
    """One field by which behaviours may match candidates, and what a match adds to the attention logit.

    Attributes:
        ids: int [M], of the behaviours; wanted: int [B], of the candidates, -1 = matches nothing.
        weight: scalar, in the mean over the heads.
    """

    ids: Tensor
    wanted: Tensor
    weight: Tensor


@dataclass
class SharedHistory:
    """Histories embedded once and scored for many candidates: one matrix product per request instead of look-ups.

    What depends on the time of the request or on the candidate comes as scalars: temporal encodings are scored bucket
    by bucket, matches by their weight. To search with; no gradient passes.

    Attributes:
        keys: the histories, M behaviours; what is added to them occurs in what the requests see, request by request.
        matches: what makes the bias of the logits.
        requests: in order of their candidates; N is the sum over them of candidates times behaviours.
        extra: [M], what else is added to the logits of the behaviours, whatever the candidate; None = nothing.
    """

    keys: History
    matches: list[Match]
    requests: list[Request]
    extra: Tensor | None = None

    @torch.no_grad()
    def scores(self, query: Tensor, added: bool = True) -> Tensor:
        """⟨ẽ_i, query⟩, or ⟨e_i, query⟩ without what is added: query [B, width] -> [N], candidate by candidate."""
        return self._score(query, query if added else None, [], None)

    @torch.no_grad()
    def combined(self, query: Tensor) -> Tensor:
        """The mean of all heads' logits, see `History.combined`: [N], candidate by candidate."""
        return self._score(*combined_queries(self.keys.heads, query), self.matches, self.extra)

    def _score(self, query: Tensor, for_time: Tensor | None, matches: list[Match], extra: Tensor | None) -> Tensor:
        buckets = None if for_time is None else [for_time @ part.table.float().t() for part in self.keys.added]
        equals = [_Equal(match) for match in matches]
        beside = _SideBySide(self.fields)
        longest = max((request.history.stop - request.history.start for request in self.requests), default=0)
        own, keys = slice(0, 0), query.new_empty(longest, query.shape[1])

        def block(request: Request, out: Tensor) -> None:
            nonlocal own
            asked, seen = request.candidates, request.behaviours
            if request.history != own:
                own = request.history
                beside.write(own, keys[: own.stop - own.start])
            if buckets:
                in_time = self._in_time([score[asked] for score in buckets], request.places)
                torch.addmm(in_time, query[asked], keys[request.seen].t(), out=out)
            else:
                torch.mm(query[asked], keys[request.seen].t(), out=out)
            for equal in equals:
                equal.add(asked, seen, out)
            if extra is not None:
                out += extra[seen]

        return self.blocks(block, query)

    def _in_time(self, scores: list[Tensor], places: slice) -> Tensor:
        """What behaviours score by their places in time, of the scores of each added table's rows: [C, R] each ->
        [C, behaviours]."""
        added = self.keys.added
        if scores[0].is_cuda:
            return _total([_take(score, part.at.ids[places], 1) for score, part in zip(scores, added, strict=True)])
        starts, lengths = self.runs
        own = slice(*starts.searchsorted((places.start, places.stop)).tolist())
        rows = [part.at.ids.numpy().take(starts[own]) for part in added]
        found = _total([torch.from_numpy(score.numpy().take(ids, 1)) for score, ids in zip(scores, rows, strict=True)])
        return torch.from_numpy(found.numpy().repeat(lengths[own], 1))

    @cached_property
    def runs(self) -> tuple[np.ndarray, np.ndarray]:
        """Where runs of behaviours with the same places in time begin among what the requests see, and how many each
        has: time is in buckets and behaviours lie in its order, so there are few."""
        total = self.requests[-1].places.stop
        new = np.zeros(total + 1, bool)
        new[[request.places.start for request in self.requests]] = True
        for part in self.keys.added:
            ids = part.at.ids.numpy()
            new[1:total] |= ids[1:] != ids[:-1]
        starts = np.flatnonzero(new[:total])
        return starts, np.diff(starts, append=total)

    @property
    def fields(self) -> list[Part]:
        return self.keys.fields

    def compare(self, near: Callable[[Tensor, Tensor], Tensor], ours: Tensor, wanted: Tensor) -> Tensor:
        """near(ours[i], wanted[candidate]) for all pairs: codes of behaviours [M, …] and candidates [B, …] -> [N]."""

        def block(request: Request, out: Tensor) -> None:
            out.copy_(near(ours[None, request.behaviours], wanted[request.candidates, None]))

        return self.blocks(block, ours)

    def blocks(self, fill: Callable[[Request, Tensor], None], like: Tensor) -> Tensor:
        """[N], filled in request by request, [candidates, behaviours] each: float32 on the device of `like`."""
        total = sum(candidates * behaviours for candidates, behaviours in (request.shape for request in self.requests))
        out = torch.empty(total, dtype=torch.float32, device=like.device)
        at = 0
        for request in self.requests:
            candidates, behaviours = request.shape
            until = at + candidates * behaviours
            if until > at:
                fill(request, out[at:until].view(candidates, behaviours))
            at = until
        return out


def _take(values: Tensor, ids: Tensor, dim: int) -> Tensor:
    """values.index_select(dim, ids); numpy copies short rows twice as fast."""
    if values.is_cuda:
        return values.index_select(dim, ids)
    return torch.from_numpy(values.numpy().take(ids.numpy(), dim))


class _SideBySide:
    """Fields of one width, written out as keys."""

    def __init__(self, fields: list[Part]) -> None:
        self.tables = [part.table.float().contiguous() for part in fields]
        self.ids = [part.at.ids for part in fields]
        if not self.ids[0].is_cuda:
            self.cell = np.dtype((np.void, 4 * self.tables[0].shape[1]))  # a row is copied as one thing
            self.cells = [table.numpy().view(self.cell)[:, 0] for table in self.tables]
            self.rows = [ids.numpy() for ids in self.ids]

    def write(self, own: slice, out: Tensor) -> None:
        """Those of some behaviours: [n, width]."""
        if out.is_cuda:
            parts = (table.index_select(0, ids[own]) for table, ids in zip(self.tables, self.ids, strict=True))
            torch.cat([*parts], 1, out=out)
            return
        into = out.numpy().view(self.cell)
        for place, (cells, rows) in enumerate(zip(self.cells, self.rows, strict=True)):
            into[:, place] = cells.take(rows[own])


class _Equal:
    """What one match adds. Where matches are few they are added one by one."""

    def __init__(self, match: Match) -> None:
        self.ids, self.wanted, self.weight = match.ids, match.wanted.unsqueeze(1), float(match.weight)
        self.few = not match.ids.is_cuda
        if self.few:
            self.scalar = np.float32(self.weight)
            self.ids_array, self.wanted_array = self.ids.numpy(), self.wanted.numpy()

    def add(self, asked: slice, seen: slice, out: Tensor) -> None:
        """Of candidates and behaviours, to their scores [C, n]."""
        if self.few:
            place = np.equal(self.ids_array[seen], self.wanted_array[asked]).ravel().nonzero()[0]
            scores = out.view(-1).numpy()
            scores[place] += self.scalar
            self.few = len(place) < FEW * len(scores)  # the next request's are likely to be as many
        else:
            equal = torch.eq(self.ids[seen], self.wanted[asked], out=torch.empty_like(out))
            out.add_(equal, alpha=self.weight)
