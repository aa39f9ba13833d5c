"""Do predicted probabilities come true? Equal-mass bins of predictions beside what was observed."""

from __future__ import annotations

from typing import Any

import numpy as np

BINS = 10


def curve(label: np.ndarray, logit: np.ndarray, bins: int = BINS) -> dict[str, Any]:
    """The calibration curve, and the expected calibration error (Naeini et al., AAAI 2015, with bins of equal mass).

    Args:
        label: 0 or 1 [n]. logit: [n].

    Returns:
        {"bins": [{"predicted", "observed", "n"}], lowest predictions first; "ece": mean distance of the two over the
        samples, None without samples}.
    """
    order = np.argsort(logit, kind="stable")
    predicted = (0.5 * (1 + np.tanh(logit[order].astype(np.float64) / 2)), label[order].astype(np.float64))
    found, error = [], 0.0
    for p, y in zip(*(np.array_split(values, min(bins, max(len(label), 1))) for values in predicted), strict=True):
        if len(p):
            found.append({"predicted": float(p.mean()), "observed": float(y.mean()), "n": len(p)})
            error += abs(float(p.sum() - y.sum()))
    return {"bins": found, "ece": error / len(label) if len(label) else None}
