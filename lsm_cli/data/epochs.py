"""In which order an epoch takes the samples: each by itself, or request by request."""

from __future__ import annotations

import numpy as np

from lsm_cli.data.orders import ragged_arange


def changes(*columns: np.ndarray) -> np.ndarray:
    """bool [n]: differs from the one before in one of the columns; the first does."""
    new = np.ones(len(columns[0]), bool)
    new[1:] = np.logical_or.reduce([column[1:] != column[:-1] for column in columns])
    return new


def epoch_order(size: int, seed: int, epoch: int) -> np.ndarray:
    """The order of the samples in one epoch, a function of (seed, epoch) only: a resumed run finds its place."""
    return np.random.default_rng([seed, epoch]).permutation(size)


class Requests:
    """The samples of a split, request by request: int64 [n + 1] `offsets` of each into `order` [samples]."""

    def __init__(self, user: np.ndarray, end: np.ndarray, time: np.ndarray) -> None:
        self.order = np.lexsort((time, end, user))
        begins = np.flatnonzero(changes(*(column[self.order] for column in (user, end, time))))
        self.offsets = np.append(begins, len(user))

    def epoch_order(self, seed: int, epoch: int) -> np.ndarray:
        """As `epoch_order`, of whole requests, whose samples stand side by side."""
        requests = epoch_order(len(self.offsets) - 1, seed, epoch)
        first = self.offsets[requests]
        lengths = self.offsets[requests + 1] - first
        return self.order[ragged_arange(first, lengths)[1]]
