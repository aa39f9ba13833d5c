"""How sure a metric is: standard errors when users, not rows, are drawn at random.

Every metric here is, in first order, a sum of one term per user, so its variance is that of such a sum and nothing has
to be resampled. For AUC the terms are placements (DeLong et al., Biometrics 44, 1988), summed within users as
Obuchowski (Biometrics 53, 1997) does for clustered data; GAUC and log loss are ratios of sums over users.
"""

from __future__ import annotations

import math

import numpy as np

from lsm_cli.engine.metrics import grouped_auc, placements

Z = 1.959964  # half width of a 95% interval, in standard errors
FEWEST = 10  # users below which nothing is said


def errors(label: np.ndarray, logit: np.ndarray, user: np.ndarray) -> dict[str, float | None]:
    """Standard errors of {"auc", "gauc", "logloss"}; None with fewer than `FEWEST` users or one class.

    Args:
        label: 0/1 [n]. logit: [n]. user: int [n].
    """
    _, who = np.unique(user, return_inverse=True)
    _, within, rows = grouped_auc(label, logit, who)
    label, logit = np.asarray(label, np.float64), logit.astype(np.float64)
    loss = np.logaddexp(0.0, logit) - label * logit
    return {
        "auc": _spread(_auc_terms(label, logit, who)),
        "gauc": _spread((within - np.average(within, weights=rows)) * rows / rows.sum() if len(rows) else None),
        "logloss": _spread(np.bincount(who, loss - loss.mean()) / len(loss) if len(loss) else None),
    }


def interval(value: float | None, error: float | None) -> tuple[float, float] | None:
    """The 95% interval."""
    return None if value is None or error is None else (value - Z * error, value + Z * error)


def _auc_terms(label: np.ndarray, logit: np.ndarray, who: np.ndarray) -> np.ndarray | None:
    """What each user adds to the AUC's distance from its expectation: float64 [users]; None with one class."""
    below, above = placements(label, 1 - label, logit)
    if below is None or above is None:
        return None
    place = np.where(label == 1, below, above)  # share of the other class on the right side of the row
    rows = np.where(label == 1, label.sum(), len(label) - label.sum())
    return np.bincount(who, (place - below[label == 1].mean()) / rows)


def _spread(terms: np.ndarray | None) -> float | None:
    """Standard error of a sum with one term, of mean zero, per user."""
    if terms is None or len(terms) < FEWEST:
        return None
    return math.sqrt(float(np.square(terms).sum()) * len(terms) / (len(terms) - 1))
