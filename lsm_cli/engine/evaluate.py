"""Scoring a split and reporting on it: per target, and by domain, scenario and history length."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from lsm_cli.data.store import Samples, Store
from lsm_cli.engine import metrics
from lsm_cli.engine.device import Compute
from lsm_cli.engine.feed import Feed
from lsm_cli.engine.setup import Setup, visible_lengths
from lsm_cli.errors import InputError
from lsm_cli.models.scorer import Scorer
from lsm_cli.report.console import Progress, Silent

BEHAVIOURS, SAMPLES = 1 << 18, 1 << 12  # per scoring batch, at most
LENGTH_EDGES = (0, 1, 11, 51, 201, 1001)


@torch.no_grad()
def score(
    model: Scorer, feed: Feed, compute: Compute, index: np.ndarray, progress: Progress | None = None
) -> np.ndarray:
    """Logits of samples `index`, in that order: float32 [n, targets]."""
    progress = progress or Silent()
    model.eval()
    logits = []
    for piece in chunks(feed, index):
        batch = feed.batch(index[piece], model)
        with compute.autocast():
            logits.append(model(batch, model.fetch(batch)).float())
        progress.advance(batch.size)
    return torch.cat(logits).cpu().numpy() if logits else np.empty((0, 0), np.float32)


def chunks(feed: Feed, index: np.ndarray) -> Iterator[slice]:
    """Pieces of `index` that are scored at once: `SAMPLES` and `BEHAVIOURS` at most, but one sample at least."""
    ends = np.cumsum(feed.lengths(index)) if len(index) else np.empty(0, np.int64)
    start = 0
    while start < len(index):
        used = ends[start - 1] if start else 0
        stop = max(start + 1, min(start + SAMPLES, int(np.searchsorted(ends, used + BEHAVIOURS, side="right"))))
        yield slice(start, stop)
        start = stop


def validate(logits: np.ndarray, feed: Feed, index: np.ndarray, targets: list[str]) -> dict[str, Any]:
    """Metrics per target on some samples."""
    user = np.asarray(feed.user[index])
    found = {}
    for column, target in enumerate(targets):
        label = np.asarray(feed.labels[column][index])
        seen = label >= 0
        found[target] = metrics.summary(label[seen], logits[seen, column], user[seen])
    return found


def evaluate(
    setup: Setup, model: Scorer, split: str, shuffle_seed: int | None = None, progress: Progress | None = None
) -> dict[str, Any]:
    """Score a whole split.

    Returns:
        {target: {auc, gauc, logloss, calibration, n, positives, slices: {scenario|domain|history: {name: …}},
        truth: {auc, gauc, logloss} where the world's own probabilities are known}, "samples_per_second"}.
    """
    feed = Feed(setup, split, shuffle_seed)
    index = np.arange(len(feed))
    started = time.perf_counter()
    logits = score(model, feed, setup.compute, index, progress)
    seconds = time.perf_counter() - started
    if not np.isfinite(logits).all():
        raise InputError(f"{split}: the model's scores are not finite; train it with a smaller train.lr or table_lr")
    samples = setup.store.samples(split)
    user = np.asarray(samples.column("user"))
    slices = _slices(setup.store, split, samples)
    targets: dict[str, Any] = {}
    for column, target in enumerate(setup.targets):
        label = np.asarray(samples.column(f"label.{target}"))
        seen = label >= 0
        entry: dict[str, Any] = metrics.summary(label[seen], logits[seen, column], user[seen])
        entry["slices"] = {
            kind: {
                name: metrics.summary(label[rows & seen], logits[rows & seen, column], user[rows & seen])
                for name, rows in groups.items()
                if (rows & seen).any()
            }
            for kind, groups in slices.items()
        }
        if samples.has(f"truth.{target}"):
            p = np.clip(samples.column(f"truth.{target}")[seen].astype(np.float64), 1e-9, 1 - 1e-9)
            entry["truth"] = metrics.summary(label[seen], np.log(p / (1 - p)), user[seen])
        targets[target] = entry
    return {"targets": targets, "samples_per_second": len(index) / max(seconds, 1e-9)}


def _slices(store: Store, split: str, samples: Samples) -> dict[str, dict[str, np.ndarray]]:
    """kind -> name -> rows (bool [n])."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for kind in ("domain", "scenario"):
        if samples.has(kind):
            ids = np.asarray(samples.column(kind))
            names = store.manifest["fields"][kind].get("names", {})
            found[kind] = {names.get(str(i), f"#{i}"): ids == i for i in np.unique(ids)}
    visible = visible_lengths(store, split)
    bucket = np.searchsorted(LENGTH_EDGES, visible, side="right") - 1
    found["history"] = {name: bucket == place for place, name in enumerate(length_names())}
    return found


def length_names() -> list[str]:
    """Names of the history-length buckets."""
    upper = [edge - 1 for edge in LENGTH_EDGES[1:]]
    names = ["0", *(f"{low}–{high}" for low, high in zip(LENGTH_EDGES[1:], upper[1:], strict=False))]
    return [*names, f"{LENGTH_EDGES[-1]}+"]
