"""Ranking and probability metrics, vectorised: a million rows in a fraction of a second."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np


def grouped_auc(label: np.ndarray, score: np.ndarray, group: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """AUC within every group that has both classes; ties count half.

    Args:
        label: bool or 0/1 [n].
        score: float [n].
        group: non-negative int [n].

    Returns:
        (group ids, AUC of each, rows of each), groups without both classes left out.
    """
    if not len(label):
        return np.empty(0, np.int64), np.empty(0), np.empty(0, np.int64)
    _, rank = np.unique(score, return_inverse=True)
    # one 64-bit key sorts by group, then score, and carries the label in its lowest bit
    key = np.sort((group.astype(np.int64) << 32) | (rank.astype(np.int64) << 1) | np.asarray(label, np.int64))
    hit = (key & 1).astype(np.float64)
    tied = key >> 1
    tie_start = np.flatnonzero(np.r_[True, tied[1:] != tied[:-1]])
    tie_size = np.diff(np.r_[tie_start, len(key)])
    place = np.repeat(tie_start + (tie_size + 1) / 2, tie_size)  # average 1-based position among equals
    groups = key >> 32
    start = np.flatnonzero(np.r_[True, groups[1:] != groups[:-1]])
    rows = np.diff(np.r_[start, len(key)])
    positive = np.add.reduceat(hit, start)
    place_sum = np.add.reduceat(hit * (place - np.repeat(start, rows)), start)
    both = (positive > 0) & (positive < rows)
    positive, rows = positive[both], rows[both]
    auc = (place_sum[both] - positive * (positive + 1) / 2) / (positive * (rows - positive))
    return groups[start[both]], auc, rows


def placements(
    positive: np.ndarray, negative: np.ndarray, score: np.ndarray
) -> tuple[np.ndarray, np.ndarray] | tuple[None, None]:
    """Where every row's score lies among those of the other class; ties count half.

    Args:
        positive, negative: weight of each row in its class, 0 in the other; float [n].
        score: float [n].

    Returns:
        share of the negatives' weight below each row, share of the positives' weight above it: float64 [n] both. The
        weighted mean of the first over the positives is the AUC, and so is that of the second over the negatives.
        None where a class is missing.
    """
    if not (positive.sum() > 0 and negative.sum() > 0):
        return None, None
    order = np.argsort(score)
    ranked = score[order]
    start = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])
    size = np.diff(np.r_[start, len(ranked)])
    shares = []
    for weight in (negative, positive):
        tied = np.add.reduceat(weight[order].astype(np.float64), start)
        below = np.cumsum(tied) - tied / 2
        share = np.empty(len(score))
        share[order] = np.repeat(below / tied.sum(), size)
        shares.append(share)
    return shares[0], 1 - shares[1]


def auc(label: np.ndarray, score: np.ndarray) -> float | None:
    """Area under the ROC curve; None when only one class is present."""
    _, value, _ = grouped_auc(label, score, np.zeros(len(label), np.int64))
    return float(value[0]) if len(value) else None


def gauc(label: np.ndarray, score: np.ndarray, user: np.ndarray) -> float | None:
    """AUC within each user, weighted by the user's rows; users with one class do not count. None when all are such."""
    _, value, rows = grouped_auc(label, score, user)
    return float(np.average(value, weights=rows)) if len(value) else None


def log_loss(label: np.ndarray, logit: np.ndarray) -> float | None:
    """Mean negative log-likelihood, nats, from logits."""
    if not len(label):
        return None
    logit = logit.astype(np.float64)
    return float(np.mean(np.logaddexp(0.0, logit) - label * logit))


def calibration(label: np.ndarray, logit: np.ndarray) -> float | None:
    """Predicted over observed positives; 1 is perfect. None without positives."""
    observed = float(np.sum(label))
    return float(np.sum(0.5 * (1 + np.tanh(logit.astype(np.float64) / 2)))) / observed if observed else None


def summary(label: np.ndarray, logit: np.ndarray, user: np.ndarray) -> dict[str, float | int | None]:
    """All metrics of one target on rows where it was observed."""
    return {
        "auc": auc(label, logit),
        "gauc": gauc(label, logit, user),
        "logloss": log_loss(label, logit),
        "calibration": calibration(label, logit),
        "n": len(label),
        "positives": int(np.sum(label)),
    }


def over_targets(found: Mapping[str, Mapping[str, Any]], name: str, weights: Mapping[str, float]) -> float | None:
    """A metric in the weighted mean over the targets for which it is known; None = for none that counts.

    Args:
        found: target -> its `summary`.
        weights: target -> weight, at least 0; 1 where not named.
    """
    known = {target: entry[name] for target, entry in found.items() if entry[name] is not None}
    weight = [weights.get(target, 1.0) for target in known]
    return float(np.average([*known.values()], weights=weight)) if any(weight) else None
