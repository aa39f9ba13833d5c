"""Two towers over a whole catalogue: where the right item ranks among all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lsm_cli.data.batches import Pointers
from lsm_cli.data.store import MISSING, Store
from lsm_cli.engine.evaluate import scoring_batches
from lsm_cli.engine.feed import Feed
from lsm_cli.engine.setup import Setup
from lsm_cli.models.two_tower import TwoTower
from lsm_cli.report.console import Progress, Silent

CUTS = (10, 50, 100)
CELLS = 1 << 24  # scores held at a time
ITEMS = 1 << 14  # items embedded at a time


@dataclass
class Catalogue:
    """The items that can be found: those of the training vocabulary that were a candidate in training.

    Attributes:
        item: int64 [m], ids, ascending.
        sample: int64 [m], the latest training sample of each; the item's fields are read there.
    """

    item: np.ndarray
    sample: np.ndarray

    @classmethod
    def of(cls, store: Store) -> Catalogue:
        samples = store.samples("train")
        latest = np.full(store.fields["item"].rows, -1, np.int64)  # its last row stands for items nobody trained on
        order = np.argsort(samples.column("time"), kind="stable")
        latest[np.minimum(np.asarray(samples.column("item"))[order], len(latest) - 1)] = order
        item = np.flatnonzero(latest[:-1] >= 0)
        item = item[item > MISSING]
        return cls(item, latest[item])

    def places(self, item: np.ndarray) -> np.ndarray:
        """Where items stand in the catalogue, -1 = not there: int64 [n]."""
        if not len(self.item):
            return np.full(len(item), -1)
        place = np.minimum(np.searchsorted(self.item, item), len(self.item) - 1)
        return np.where(self.item[place] == item, place, -1)


@torch.no_grad()
def item_vectors(setup: Setup, model: TwoTower, catalogue: Catalogue) -> Tensor:
    """v of the catalogue: float32 [m, width], on the device."""
    assembler, device = setup.assembler("train"), setup.compute.device
    vectors = torch.empty(len(catalogue.item), model.width, device=device)
    for start in range(0, len(vectors), ITEMS):
        index = catalogue.sample[start : start + ITEMS]
        nothing = Pointers(np.zeros(len(index) + 1, np.int64), np.empty(0, np.int64))
        batch = assembler.batch(index, nothing).to(device)
        vectors[start : start + ITEMS] = model.items(model.fetch(batch))
    return vectors


@torch.no_grad()
def user_vectors(
    setup: Setup, model: TwoTower, feed: Feed, index: np.ndarray, progress: Progress
) -> Iterator[tuple[slice, Tensor]]:
    """z of the samples `index`, piece by piece: places in `index` and float32 [n, targets, width]."""
    start = 0
    for part in scoring_batches(feed, index):
        batch = feed.batch(part, model)
        with setup.compute.autocast():
            vectors = model.users(batch, model.fetch(batch))[..., :-1].float()
        yield slice(start, start + len(part)), vectors
        start += len(part)
        progress.advance(len(part))


def retrieve(
    setup: Setup, model: TwoTower, catalogue: Catalogue, split: str, progress: Progress | None = None
) -> dict[str, Any]:
    """Every positive of a split is to be found in the whole catalogue by ⟨z, v⟩ as of its request.

    Exact: one matrix product of some users with all items after the other, at most `CELLS` scores at a time. An item
    counts as ranked behind all that score as high. Items known to the user already are not left out: people come back.

    Returns:
        {target: {"recall": {k: …}, "ndcg": {k: …}, "n": positives, "outside": how many of them are not in the
        catalogue, and so never found, "popularity": {"recall": …, "ndcg": …} of the same list for everybody, by
        positives in training}}.
    """
    model.eval()
    store = setup.store
    vectors = item_vectors(setup, model, catalogue)
    samples, feed = store.samples(split), Feed(setup, split)
    labels = np.stack([np.asarray(samples.column(f"label.{target}")) == 1 for target in setup.targets], 1)
    index = np.flatnonzero(labels.any(1))
    wanted = catalogue.places(np.asarray(samples.column("item"))[index])
    ranks = np.zeros((len(index), len(setup.targets)), np.int64)  # 0 = never found
    step = max(CELLS // max(len(vectors), 1), 1)
    for piece, users in user_vectors(setup, model, feed, index, progress or Silent()):
        for column in range(len(setup.targets)):
            rows = np.flatnonzero(labels[index[piece], column] & (wanted[piece] >= 0))
            for start in range(0, len(rows), step):
                some = rows[start : start + step]
                place = torch.from_numpy(wanted[piece][some]).to(vectors.device)
                scores = users[torch.from_numpy(some).to(users.device), column] @ vectors.t()
                own = scores.gather(1, place.unsqueeze(1))
                ranks[piece.start + some, column] = (scores >= own).sum(1).cpu().numpy()
    found: dict[str, Any] = {}
    for column, target in enumerate(setup.targets):
        mine = labels[index, column]
        popular = _popularity(store, catalogue, target)
        by_popularity = np.where(wanted >= 0, popular[np.maximum(wanted, 0)], 0) if len(popular) else wanted * 0
        found[target] = {
            **_hits(ranks[mine, column]),
            "n": int(mine.sum()),
            "outside": int((wanted[mine] < 0).sum()),
            "popularity": _hits(by_popularity[mine]),
        }
    return found


def _popularity(store: Store, catalogue: Catalogue, target: str) -> np.ndarray:
    """Rank of every item of the catalogue by its positives in training, equal ones behind each other: int64 [m]."""
    samples = store.samples("train")
    positive = np.asarray(samples.column("item"))[np.asarray(samples.column(f"label.{target}")) == 1]
    place = catalogue.places(positive)
    counts = np.bincount(place[place >= 0], minlength=len(catalogue.item))
    return len(counts) - np.searchsorted(np.sort(counts), counts, side="left")


def _hits(rank: np.ndarray) -> dict[str, dict[str, float | None]]:
    """Recall and NDCG of one wanted item each, from its rank (1 = first, 0 = never found)."""
    recall: dict[str, float | None] = {}
    ndcg: dict[str, float | None] = {}
    for cut in CUTS:
        hit = (rank > 0) & (rank <= cut)
        recall[str(cut)] = float(hit.mean()) if len(rank) else None
        gain = np.where(hit, 1 / np.log2(np.maximum(rank, 1) + 1), 0)
        ndcg[str(cut)] = float(gain.mean()) if len(rank) else None
    return {"recall": recall, "ndcg": ndcg}
