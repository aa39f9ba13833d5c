"""What the engine asks of a model, whatever it is made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from lsm_cli.data.batches import Batch
from lsm_cli.embedding.cached import CachedTable
from lsm_cli.models.numeric import Numeric
from lsm_cli.models.space import Rows, Space
from lsm_cli.models.tower import Tower


class Scorer(nn.Module):
    """Scores candidates for every target: `forward(batch, rows)` gives logits [B, targets].

    Attributes:
        spaces: the embedding spaces, whose rows are fetched and updated step by step.
        numeric: scales the numbers of a batch; fitted before training.
        tower: sees them first of all; None = nothing does.
    """

    spaces: Sequence[Space]
    numeric: Numeric
    tower: Tower | None

    def fetch(self, batch: Batch) -> list[Rows]:
        """The embedding rows of a batch, space by space; in training mode they are leaves that collect gradients."""
        return [space.fetch(batch) for space in self.spaces]

    def expect(self, batch: Batch, ahead: int) -> None:
        """Bring the embedding rows of a batch nearer that is still on the host, so many batches before it is read."""
        for space in self.spaces:
            space.expect(batch, ahead)

    @property
    def cached(self) -> dict[str, CachedTable]:
        """The tables that the device holds in part, by field; those of the attention's own space say so."""
        found: dict[str, CachedTable] = {}
        for number, space in enumerate(self.spaces):
            found |= {name + " (attention)" * number: table for name, table in space.bank.cached.items()}
        return found

    def part(self, batch: Batch, rows: list[Rows], low: int, high: int) -> tuple[Batch, list[Rows]]:
        """Some samples of a batch whose rows were fetched: their gradients meet in the same leaves."""
        first, last = batch.span(low, high)
        return batch.part(low, high), [
            {name: fetched.part(slice(first, last), slice(low, high)) for name, fetched in found.items()}
            for found in rows
        ]

    def leaves(self, rows: list[Rows]) -> list[Tensor]:
        """The leaf tensors of a step, for gradient scaling and clipping."""
        return [leaf for space, found in zip(self.spaces, rows, strict=True) for leaf in space.bank.leaves(found)]

    def update(self, rows: list[Rows], lr: float) -> None:
        """Move the rows of one step against their gradients."""
        for space, found in zip(self.spaces, rows, strict=True):
            space.bank.update(found, lr)

    def reset_tables(self) -> None:
        """All tables as they were before the first step."""
        for space in self.spaces:
            space.bank.reset()

    def numbers(self, batch: Batch) -> Tensor:
        """The raw numeric features of a batch [B, n], to fit their scale before training."""
        return batch.statistics

    def fit_numbers(self, values: Tensor) -> None:
        """Take the scale of numeric features from those of training samples [n, …], before an optimiser holds any
        weight: those of features that no sample moves are left out."""
        before = self.numeric.out
        self._keep(self.numeric.fit(values), before)

    def _keep(self, places: Tensor, of: int) -> None:
        if self.tower is not None:
            self.tower.keep(places, of)

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *others: Any) -> None:
        """A fresh model takes the form of the fitted one before it takes its weights; old ones left nothing out."""
        kept = state.setdefault(f"{prefix}numeric.kept", self.numeric.kept)
        if set(kept.tolist()) <= set(self.numeric.kept.tolist()):
            before = self.numeric.out
            self._keep(self.numeric.keep(kept), before)
        super()._load_from_state_dict(state, prefix, *others)

    def start(self, rates: Tensor, item_vectors: Callable[[], Tensor]) -> None:
        """Before the first step.

        Args:
            rates: share of positives of every target, in (0, 1), [targets].
            item_vectors: makes the item graph's vectors, for models that have a place for them.
        """

    def learn(self, batch: Batch, rows: list[Rows]) -> tuple[Tensor, Tensor | None]:
        """Logits [B, targets] to learn from, and what to add to the loss of each target [targets]; None = nothing."""
        return self(batch, rows), None
