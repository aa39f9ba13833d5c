"""What is profiled: the training steps or the scoring of a recipe on a store, exactly as `train` and `eval` do them."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import Literal

import numpy as np
from torch import Tensor

from lsm_cli.engine import evaluate
from lsm_cli.engine.feed import Feed
from lsm_cli.engine.run import RunFolder
from lsm_cli.engine.setup import Setup
from lsm_cli.engine.train import Trainer
from lsm_cli.errors import InputError
from lsm_cli.models.scorer import Scorer

Phase = Literal["train", "infer"]
SCALED = 4096  # samples from which the scale of numeric features is taken: values do not matter here


class Work:
    """Steps of one recipe.

    Args:
        setup: recipe, store and device.
        phase: `train` = updates, `infer` = scoring.
        model: works on with this one instead of a fresh one.

    Attributes:
        groups: the samples of each step of an epoch.

    Raises:
        InputError: the store has no samples for it.
    """

    def __init__(self, setup: Setup, phase: Phase, model: Scorer | None = None) -> None:
        self.setup, self.phase = setup, phase
        splits = ["train"] if phase == "train" else ["test", "valid", "train"]
        self.split = next((name for name in splits if setup.store.splits.get(name)), "")
        if not self.split:
            raise InputError(f"{setup.store.path}: no {splits[0]} samples; rebuild the store with [split] set")
        if phase == "train":
            # its run is a folder that nobody writes to: only updates are asked for
            self.trainer = Trainer(setup, RunFolder("."), model=model)
            self.feed, self.model = self.trainer.train, self.trainer.model
            if model is None:
                self.trainer.fit_scales(SCALED)
            self.groups = self.trainer.plan.batches(0)
        else:
            self.feed = Feed(setup, self.split)
            self.model = setup.model() if model is None else model
            self.groups = list(evaluate.scoring_batches(self.feed, np.arange(len(self.feed))))

    def some(self, count: int) -> list[np.ndarray]:
        """That many steps, spread over the epoch; again from the start where it has fewer."""
        if self.phase == "infer" and count < len(self.groups):
            return [self.groups[place] for place in np.linspace(0, len(self.groups) - 1, count).astype(int)]
        return [self.groups[number % len(self.groups)] for number in range(count)]

    def heaviest(self) -> np.ndarray:
        """The step of the epoch that reads most behaviours."""
        lengths = self.feed.lengths(np.arange(len(self.feed)))
        return max(self.groups, key=lambda group: (int(lengths[group].sum()), len(group)))

    def behaviours(self, group: np.ndarray) -> int:
        """Behaviours that a step reads, or that its soft search scores."""
        return int(self.feed.lengths(group).sum())

    def steps(self, groups: Iterable[np.ndarray]) -> Generator[Tensor, None, None]:
        """One step after the other: yields its loss or its logits, on the device."""
        self.setup.activate(self.model)
        if self.phase == "train":
            return self.trainer.updates(groups)
        return evaluate.scores(self.model, self.feed, self.setup.compute, groups)
