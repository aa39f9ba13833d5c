"""Soft search: the behaviours that score highest under the candidate, in whatever space the scores were taken."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lsm_cli.data.batches import Pointers, Queries, Spans
from lsm_cli.data.epochs import changes
from lsm_cli.data.orders import ragged_arange
from lsm_cli.errors import InputError
from lsm_cli.kernels import topk
from lsm_cli.kernels.ragged import Segments

PAYS = 2048  # scores per request, on average, from which a matrix product for each costs less than look-ups
GROUPS = 4  # groups for each of the k best, from which the k-th is bounded
READ = 1024  # behaviours read that cost as much as a request


@torch.no_grad()
def top_k(scores: Tensor, segments: Segments, k: int, keep: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The k best behaviours of each sample; of equal scores the most recent.

    Args:
        scores: float [N], -inf = never.
        keep: bool [N], behaviours that stay in any case and do not count; None = none.

    Returns:
        offsets int64 [B + 1] and positions int64 [n], ascending (oldest first, as behaviours lie), on the device of
        the scores.

    Raises:
        InputError: a score is not a number.
    """
    value = scores.float()
    if value.numel() and bool(value.max().isnan()):
        raise InputError(
            "search.method: the attention's scores are not numbers, so nothing can be found by them; train with a "
            "smaller train.lr or train.table_lr"
        )
    if keep is not None:
        value = value.masked_fill(keep, -torch.inf)
    if value.is_cuda:
        place = topk.best(value, segments, k).nonzero().squeeze(1)
    else:
        place = torch.from_numpy(by_threshold(value.numpy(), segments.offsets.numpy(), k))
    if keep is not None:
        place = torch.cat([place, keep.nonzero().squeeze(1)]).sort().values  # never the same: kept ones score -inf
    return torch.searchsorted(place, segments.offsets), place


def by_threshold(value: np.ndarray, offsets: np.ndarray, k: int) -> np.ndarray:
    """Positions of the k best of each sample, int64 ascending: those from its k-th best score on; CPU."""
    if k <= 0:
        return np.empty(0, np.int64)
    lengths = np.diff(offsets)
    bar = np.full(len(lengths), -np.inf, np.float32)
    enough = np.ones(len(value), bool)
    for sample in np.flatnonzero(lengths > k).tolist():  # slices: faster than samples side by side, padded
        own = slice(offsets[sample], offsets[sample + 1])
        bar[sample] = kth_best(value[own], k)
        np.greater_equal(value[own], bar[sample], out=enough[own])
    place = np.flatnonzero(enough)
    score, row = value[place], np.searchsorted(offsets, place, side="right") - 1
    above, tied = score > bar[row], np.flatnonzero((score == bar[row]) & (score > -np.inf))
    # fill up with behaviours that score as the k-th best does, the most recent first
    room = k - np.bincount(row[above], minlength=len(lengths))
    after = np.searchsorted(row[tied], row[tied], side="right") - np.arange(len(tied))  # 1 = the last of its sample
    above[tied[after <= room[row[tied]]]] = True
    return place[above]


def kth_best(value: np.ndarray, k: int) -> np.float32:
    """The k-th largest of more than k numbers.

    The largest of each of some disjoint groups are read off in one pass; k of them bound the answer from below, so that
    only the few numbers from there on have to be partitioned: 5 to 8 times as fast as to partition all of 10,000.
    """
    groups = GROUPS * k
    size = len(value) // groups
    if size >= 8:
        largest = value[: groups * size].reshape(size, groups).max(0)
        largest.partition(groups - k)
        value = value.take(np.flatnonzero(value >= largest[groups - k]))
    return np.partition(value, len(value) - k)[len(value) - k]


@dataclass
class Request:
    """Candidates that see the same behaviours at the same time.

    Attributes:
        candidates: of the B candidates.
        history: a user's, of the M behaviours of all histories.
        seen: of this history, what came before the request.
        places: the same behaviours among those of all requests, one request after the other.
    """

    candidates: slice
    history: slice
    seen: slice
    places: slice

    @property
    def behaviours(self) -> slice:
        """Those seen, of the M behaviours of all histories."""
        return slice(self.history.start + self.seen.start, self.history.start + self.seen.stop)

    @property
    def shape(self) -> tuple[int, int]:
        """Candidates, behaviours."""
        return self.candidates.stop - self.candidates.start, self.seen.stop - self.seen.start


@dataclass
class Shared:
    """Who reads the same histories: a request asks for several candidates, a user has several requests.

    Attributes:
        order: int64 [B], the samples request by request.
        candidates: int64 [G + 1]; request g owns the places candidates[g]:candidates[g + 1] of `order`.
        owner: int64 [G], whose history it reads.
        histories: what all requests of an owner see together, M behaviours.
        start, stop: int64 [G]; request g sees the behaviours start[g]:stop[g] of the histories.
    """

    order: np.ndarray
    candidates: np.ndarray
    owner: np.ndarray
    histories: Spans
    start: np.ndarray
    stop: np.ndarray

    @property
    def scores(self) -> int:
        """How many behaviours are scored, over all candidates."""
        return int(((self.stop - self.start) * np.diff(self.candidates)).sum())

    def pays(self, narrow: bool) -> bool:
        """Whether scoring request by request costs less than behaviour by behaviour.

        Args:
            narrow: keys are, so that to write them out costs less than to look them up, even for a single candidate.
        """
        reading = 0 if narrow else int(self.histories.offsets[-1]) / READ
        return self.scores >= PAYS * max(len(self.owner), reading, 1)

    @property
    def offsets(self) -> np.ndarray:
        """int64 [B + 1]: where the scores of each sample lie, in `order`."""
        return _summed(np.repeat(self.stop - self.start, np.diff(self.candidates)))

    @property
    def begin(self) -> np.ndarray:
        """int64 [G]: the first event that each request sees."""
        return (self.histories.first - self.histories.offsets[:-1])[self.owner] + self.start

    @property
    def leaders(self) -> tuple[np.ndarray, np.ndarray]:
        """A sample of each request, int64 [G], and the first request of each owner, int64 [U]."""
        return self.order[self.candidates[:-1]], np.flatnonzero(changes(self.owner))

    def seen(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What the requests see, one after the other: int64 [G + 1] offsets, int64 [R] event pointers, int32 [R] ranks.

        Rank 1 is the most recent behaviour of a request.
        """
        lengths = self.stop - self.start
        offsets = _summed(lengths)
        rank = np.repeat(offsets[1:], lengths) - np.arange(offsets[-1])
        return offsets, ragged_arange(self.begin, lengths)[1], rank.astype(np.int32)

    def requests(self) -> list[Request]:
        """Request by request, what a matrix product needs to know."""
        begin, until = self.histories.offsets[self.owner], self.histories.offsets[self.owner + 1]
        places = _summed(self.stop - self.start)
        columns = (
            (self.candidates[:-1], self.candidates[1:]),
            (begin, until),
            (self.start - begin, self.stop - begin),
            (places[:-1], places[1:]),
        )
        slices = (map(slice, low.tolist(), high.tolist()) for low, high in columns)
        return [Request(*parts) for parts in zip(*slices, strict=True)]

    def pointers(self, offsets: np.ndarray, place: np.ndarray) -> Pointers:
        """Selected scores as behaviours, in the order of the batch.

        Args:
            offsets: int64 [B + 1], and place: int64 [n], positions among the scores, both in `order`.
        """
        sizes = np.diff(self.candidates)
        first = np.repeat(self.begin, sizes) - self.offsets[:-1]  # from a score to its behaviour
        found = place + np.repeat(first, np.diff(offsets))
        back = np.empty_like(self.order)
        back[self.order] = np.arange(len(back))
        lengths = np.diff(offsets)[back]
        return Pointers(_summed(lengths), found[ragged_arange(offsets[back], lengths)[1]])


def share(queries: Queries) -> Shared:
    """Group the samples of a batch by request, and the requests by user."""
    order = np.lexsort((queries.time, queries.end, queries.user))
    user, end, time = queries.user[order], queries.end[order], queries.time[order]
    begins = np.flatnonzero(changes(user, end, time))
    user, end, first = user[begins], end[begins], queries.first[order][begins]
    new = changes(user)
    low, high = _spans(new, first, end)
    if (high - low).sum() > (end - first).sum():  # requests far apart: what lies between is seen by none of them
        new = np.ones(len(begins), bool)
        low, high = first, end
    owner = np.cumsum(new) - 1
    offsets = _summed(high - low)
    start = offsets[owner] + first - low[owner]
    return Shared(order, np.append(begins, len(order)), owner, Spans(offsets, low), start, start + end - first)


def _spans(new: np.ndarray, first: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The smallest `first` and the largest `end` of each group; a group begins where `new` is set."""
    at = np.flatnonzero(new)
    return (np.minimum.reduceat(first, at), np.maximum.reduceat(end, at)) if len(at) else (first, end)


def _summed(lengths: np.ndarray) -> np.ndarray:
    """int64 [n + 1]: 0 and the running sums."""
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets
