"""Scoring a split and reporting on it: per target, and by slice."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from lsm_cli.data.assembling import Assembler
from lsm_cli.data.batches import Batch
from lsm_cli.engine import certainty, metrics, trace
from lsm_cli.engine.calibration import curve
from lsm_cli.engine.device import Compute
from lsm_cli.engine.feed import Feed
from lsm_cli.engine.replay import Replay
from lsm_cli.engine.setup import Setup
from lsm_cli.engine.slices import slices
from lsm_cli.errors import InputError
from lsm_cli.models.ranking import RankingModel
from lsm_cli.models.scorer import Scorer
from lsm_cli.report.console import Progress, Silent

BEHAVIOURS, SAMPLES = 1 << 18, 1 << 12  # per scoring batch, at most


@torch.no_grad()
def score(
    model: Scorer, feed: Feed, compute: Compute, index: np.ndarray, progress: Progress | None = None
) -> np.ndarray:
    """Logits of samples `index`, in that order: float32 [n, targets]."""
    progress = progress or Silent()
    feed.tell(progress.warn)
    groups, logits = list(scoring_batches(feed, index)), list[Tensor]()
    for found in scores(model, feed, compute, groups):
        progress.advance(len(groups[len(logits)]))
        logits.append(found)
    return torch.cat(logits).cpu().numpy() if logits else np.empty((0, 0), np.float32)


def scoring_batches(feed: Feed, index: np.ndarray) -> Iterator[np.ndarray]:
    """Samples `index` in groups of bounded size."""
    ends = np.cumsum(feed.lengths(index)) if len(index) else np.empty(0, np.int64)
    start = 0
    while start < len(index):
        used = ends[start - 1] if start else 0
        stop = max(start + 1, min(start + SAMPLES, int(np.searchsorted(ends, used + BEHAVIOURS, side="right"))))
        yield index[start:stop]
        start = stop


@torch.no_grad()
def scores(model: Scorer, feed: Feed, compute: Compute, groups: Iterable[np.ndarray]) -> Generator[Tensor, None, None]:
    """Logits of each group of samples, float32 [n, targets], on the device; scoring and profiling alike."""
    model.eval()
    replay = _replay(feed, model, compute) if feed.replays else None
    with closing(feed.batches(groups, model)) as made:
        while True:
            with trace.part(trace.DATA):
                batch = next(made, None)
            if batch is None:
                return
            found = feed.scoring.run(batch.size, partial(_scored, model, compute, replay, batch))
            del batch
            yield found


def _replay(feed: Feed, model: Scorer, compute: Compute) -> Replay:
    """The graphs of a model, kept with the feed that they score: they stay right while it is trained."""
    if feed.replay is None or feed.replay.model is not model:
        feed.replay = Replay(cast(RankingModel, model), compute)
    return feed.replay


def _scored(
    model: Scorer, compute: Compute, replay: Replay | None, batch: Batch, bounds: Sequence[tuple[int, int]]
) -> Tensor:
    """Logits of a batch, piece by piece."""
    found = []
    for low, high in bounds:
        part = batch if high - low == batch.size else batch.part(low, high)
        if replay is not None:
            with trace.part(trace.ATTENTION):
                found.append(replay(part))
            continue
        with trace.part(trace.FETCH):
            rows = model.fetch(part)
        with trace.part(trace.NUMBERS), compute.autocast():
            logits = model(part, rows)
        with trace.part(trace.LOSS):
            found.append(logits.float())
        del part, rows, logits
    return found[0] if len(found) == 1 else torch.cat(found)


def validated(setup: Setup) -> np.ndarray:
    """The validation samples that are scored while training, the same every time: int64 [n], ascending."""
    samples, most = len(setup.store.samples("valid")), setup.recipe.train.valid_samples
    if samples <= most:
        return np.arange(samples)
    return np.sort(np.random.default_rng(0).permutation(samples)[:most])


def validate(logits: np.ndarray, feed: Feed | Assembler, index: np.ndarray, targets: list[str]) -> dict[str, Any]:
    """Metrics per target on some samples."""
    user = np.asarray(feed.user[index])
    found = {}
    for column, target in enumerate(targets):
        label = np.asarray(feed.labels[column][index])
        seen = label >= 0
        found[target] = metrics.summary(label[seen], logits[seen, column], user[seen])
    return found


def quality(setup: Setup, found: dict[str, Any]) -> float:
    """The recipe's metric in the mean over targets, as they weigh in its loss; larger is better.

    Args:
        found: of `validate`.

    Raises:
        InputError: it is not known for any target that weighs.
    """
    name, weights = setup.recipe.train.metric, setup.recipe.train.weights
    value = metrics.over_targets(found, name, weights)
    if value is None:
        why = f"{'no user has' if name == 'gauc' else 'they have not'} both classes; use train.metric=logloss"
        if not any(entry["n"] and weights.get(target, 1.0) for target, entry in found.items()):
            why = "no target that is trained was observed there; name another in data.targets"
        raise InputError(
            f"{setup.store.path}: train.metric = {name!r} cannot be computed on the validation samples: {why}"
        )
    return value * (-1 if name == "logloss" else 1)


def check_metric(setup: Setup) -> None:
    """Raise InputError if the recipe's metric is known of no scores at all: the validation labels say so beforehand."""
    labels, index = setup.assembler("valid"), validated(setup)
    blank = np.zeros((len(index), len(setup.targets)), np.float32)
    quality(setup, validate(blank, labels, index, setup.targets))


def evaluate(
    setup: Setup, model: Scorer, split: str, shuffle_seed: int | None = None, progress: Progress | None = None
) -> dict[str, Any]:
    """Score a whole split.

    Returns:
        {"targets": {target: {auc, gauc, logloss, calibration, n, positives, error: {auc, gauc, logloss}, standard
        errors, calibration_curve, slices: {kind: {name: …}}, truth: {auc, gauc, logloss} where the world's own
        probabilities are known}}, "samples_per_second"}.

    Raises:
        InputError: there are no samples, or scores are not finite.
    """
    feed = Feed(setup, split, shuffle_seed)
    if not len(feed):
        raise InputError(f"{setup.store.path}: has no {split} samples; name another --split")
    index = np.arange(len(feed))
    started = time.perf_counter()
    logits = score(model, feed, setup.compute, index, progress)
    seconds = time.perf_counter() - started
    if not np.isfinite(logits).all():
        raise InputError(f"{split}: the model's scores are not finite; train it with a smaller train.lr or table_lr")
    samples = setup.store.samples(split)
    user = np.asarray(samples.column("user"))
    sliced = slices(setup.store, split)
    targets: dict[str, Any] = {}
    for column, target in enumerate(setup.targets):
        label = np.asarray(samples.column(f"label.{target}"))
        seen = label >= 0
        entry: dict[str, Any] = metrics.summary(label[seen], logits[seen, column], user[seen])
        entry["error"] = certainty.errors(label[seen], logits[seen, column], user[seen])
        entry["calibration_curve"] = curve(label[seen], logits[seen, column])
        entry["slices"] = {
            kind: {
                name: metrics.summary(label[rows & seen], logits[rows & seen, column], user[rows & seen])
                for name, rows in groups.items()
                if (rows & seen).any()
            }
            for kind, groups in sliced.items()
        }
        if samples.has(f"truth.{target}"):
            p = np.clip(samples.column(f"truth.{target}")[seen].astype(np.float64), 1e-9, 1 - 1e-9)
            entry["truth"] = metrics.summary(label[seen], np.log(p / (1 - p)), user[seen])
        targets[target] = entry
    return {"targets": targets, "samples_per_second": len(index) / max(seconds, 1e-9)}
