"""Scores of the same samples by whatever is compared: two runs, or one run that sees other histories."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lsm_cli.data.store import Store
from lsm_cli.engine import metrics
from lsm_cli.engine.calibration import curve
from lsm_cli.engine.device import peak_memory
from lsm_cli.engine.evaluate import score
from lsm_cli.engine.feed import Feed
from lsm_cli.engine.run import RunFolder
from lsm_cli.engine.setup import Setup, parameters
from lsm_cli.engine.slices import Slices
from lsm_cli.errors import InputError
from lsm_cli.judging.compare import compare
from lsm_cli.models.scorer import Scorer
from lsm_cli.report.console import Progress


@dataclass
class Contender:
    """A trained model, ready to score one store."""

    path: Path
    setup: Setup
    model: Scorer
    trained: dict[str, Any]  # the run's result.json, empty without one

    @classmethod
    def of(cls, path: Path, store: Store) -> Contender:
        """Load a run.

        Raises:
            InputError: it is none, or was trained on a store whose ids mean other things.
        """
        run = RunFolder.open(path)
        run.check_store(store)
        setup = Setup.of(run.recipe(), store)
        model = setup.model()
        run.fill(model)
        file = path / "result.json"
        return cls(path, setup, model, json.loads(file.read_text()) if file.is_file() else {})

    @property
    def name(self) -> str:
        return self.setup.recipe.name

    @property
    def targets(self) -> list[str]:
        return self.setup.targets

    def scores(
        self, split: str, view: Store | None = None, shuffle_seed: int | None = None, progress: Progress | None = None
    ) -> Scores:
        """Logits of a whole split.

        Args:
            view: the store with other behaviours.
            shuffle_seed: see `Assembler`.
        """
        setup = self.setup if view is None else Setup.of(self.setup.recipe, view)
        feed = Feed(setup, split, shuffle_seed)
        started = time.perf_counter()
        logits = score(self.model, feed, setup.compute, np.arange(len(feed)), progress)
        seconds = time.perf_counter() - started
        if not np.isfinite(logits).all():
            raise InputError(
                f"{self.path}: scores of the {split} samples are not finite; train it with a smaller train.lr or "
                "train.table_lr"
            )
        return Scores(dict(zip(self.targets, logits.T, strict=False)), len(feed) / max(seconds, 1e-9))

    def cost(self, scores: Scores) -> dict[str, Any]:
        """What the model costs: while it was trained, as its folder says, and here."""
        training = {
            "training_samples_per_second": self.trained.get("samples_per_second"),
            "training_peak_memory_bytes": self.trained.get("peak_memory_bytes"),
        }
        return {
            "parameters": parameters(self.model),
            "scored_samples_per_second": scores.rate,
            "peak_memory_bytes": peak_memory(self.setup.compute.device),
            **training,
        }


@dataclass(frozen=True)
class Scores:
    """Target -> logits [n], and how many samples a second it took."""

    by_target: dict[str, np.ndarray]
    rate: float


def summaries(store: Store, split: str, scores: Scores) -> dict[str, dict[str, Any]]:
    """target -> metrics and calibration curve."""
    samples = store.samples(split)
    user = np.asarray(samples.column("user"))
    found = {}
    for target, logit in scores.by_target.items():
        label = np.asarray(samples.column(f"label.{target}"))
        seen = label >= 0
        found[target] = {
            **metrics.summary(label[seen], logit[seen], user[seen]),
            "calibration_curve": curve(label[seen], logit[seen]),
        }
    return found


def differences(
    store: Store, split: str, ours: Scores, theirs: Scores, sliced: Slices, replicates: int, seed: int
) -> dict[str, dict[str, Any]]:
    """target -> what `compare` finds, for the targets that both have."""
    samples = store.samples(split)
    user = np.asarray(samples.column("user"))
    found = {}
    for target in (name for name in ours.by_target if name in theirs.by_target):
        label = np.asarray(samples.column(f"label.{target}"))
        rows = np.flatnonzero(label >= 0)
        found[target] = compare(
            label[rows],
            user[rows],
            ours.by_target[target][rows],
            theirs.by_target[target][rows],
            {kind: {name: mask[rows] for name, mask in groups.items()} for kind, groups in sliced.items()},
            replicates,
            seed,
        )
    return found
