"""Is one model better than another? Paired differences on the same samples, with intervals by a bootstrap of users.

Users are drawn with replacement, not rows: the rows of one user stand and fall together. Every metric is a function of
sums over users, so a replicate costs no sort: 1000 of them are one product of user counts with per-user sums.

- Log loss and GAUC are ratios of such sums as they are.
- AUC is one in first order: the mean placement of the positives among the negatives plus that of the negatives among
  the positives, minus the AUC (the projection of the two-sample U-statistic: DeLong et al., Biometrics 44, 1988; for
  clustered data Obuchowski, Biometrics 53, 1997). What is left out is of order 1 / users.
- Intervals are percentiles, widened as Student's t is for few users (Hesterberg, The American Statistician 69, 2015).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from lsm_cli.engine.certainty import FEWEST
from lsm_cli.engine.metrics import grouped_auc, placements

LEVEL = 0.95
CELLS = 1 << 23  # user counts at once
METRICS = {"auc": 1, "gauc": 1, "logloss": -1}  # the sign of what is better
WORDS = {"auc": "AUC", "gauc": "GAUC", "logloss": "log loss"}


@dataclass(frozen=True)
class Difference:
    """One metric of two models on the same rows; None where it is not defined.

    Attributes:
        ours, theirs: the metric of each.
        low, high: interval of `ours - theirs` (of `ours / theirs - 1` for a lift); None with too few users.
        sign: 1 where more is better, -1 where less is.
        users: how many took part.
        relative: a lift, as a share of theirs.
    """

    ours: float | None
    theirs: float | None
    low: float | None
    high: float | None
    sign: int
    users: int
    relative: bool = False

    @property
    def value(self) -> float | None:
        if self.ours is None or self.theirs is None:
            return None
        if self.relative:
            return self.ours / self.theirs - 1 if self.theirs else None
        return self.ours - self.theirs

    @property
    def told(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)

    @property
    def verdict(self) -> str:
        """In words."""
        value, low, high = self.value, self.low, self.high
        if value is None:
            return "not defined here"
        if low is None or high is None:
            return f"too few users ({self.users:,}) to tell"
        if self.ours == self.theirs and low == high == 0:
            return "no difference"
        span = f"{LEVEL:.0%}: {self._say(low)} to {self._say(high)}"
        if not self.told:
            return f"no difference can be told ({span})"
        return f"{self.word} by {self._say(abs(value)).lstrip('+')} ({span})"

    @property
    def word(self) -> str:
        """The verdict beside its numbers."""
        if self.low is None or self.value is None:
            return "not defined" if self.value is None else "few users"
        return ("better" if (self.value > 0) == (self.sign > 0) else "worse") if self.told else "unclear"

    def _say(self, number: float) -> str:
        return f"{number:+.2%}" if self.relative else f"{number:+.4f}"

    def entry(self) -> dict[str, Any]:
        """As JSON."""
        name = "lift" if self.relative else "difference"
        return {
            "run": self.ours,
            "other": self.theirs,
            name: self.value,
            "low": self.low,
            "high": self.high,
            "users": self.users,
            "word": self.word,
            "verdict": self.verdict,
        }


class Resampling:
    """Users drawn with replacement.

    Args:
        user: int [n], whose each row is.
        replicates: draws.
        seed: the same seed gives the same draws.
    """

    def __init__(self, user: np.ndarray, replicates: int = 1000, seed: int = 0) -> None:
        ids, self.user = np.unique(user, return_inverse=True)
        self.users, self.replicates, self.seed = len(ids), replicates, seed

    def sums(self, values: np.ndarray, rows: np.ndarray | None = None) -> np.ndarray:
        """Sum per user of values [n] of some rows (int [n]; all if not given): float64 [users]."""
        return np.bincount(self.user if rows is None else self.user[rows], values, self.users)

    def draw(self, columns: np.ndarray) -> np.ndarray:
        """Sums over all users, replicate by replicate: [users, k] -> [replicates, k]."""
        return np.concatenate([counts @ columns for counts in self._counts()])

    def _counts(self) -> Iterator[np.ndarray]:
        """How often each user was drawn: float64 [some replicates, users]."""
        rng = np.random.default_rng([self.seed, 95])
        step = max(1, CELLS // max(self.users, 1))
        for start in range(0, self.replicates, step):
            many = min(step, self.replicates - start)
            counts = np.empty((many, self.users))
            for row in counts:
                row[:] = np.bincount(rng.integers(0, self.users, self.users), minlength=self.users)
            yield counts


def interval(samples: np.ndarray, users: int) -> tuple[float | None, float | None]:
    """The middle 95 % of replicates [R], wider for few users; (None, None) where they are not to be had."""
    samples = samples[np.isfinite(samples)]
    if users < FEWEST or len(samples) < 100:
        return None, None
    tail = _tail(users)
    low, high = np.quantile(samples, [tail, 1 - tail])
    return float(low), float(high)


def _tail(users: int) -> float:
    """Share to leave out at each end: what a t interval of `users` independent values leaves out of their bootstrap."""
    normal = NormalDist()
    z, free = normal.inv_cdf(0.5 + LEVEL / 2), users - 1
    student = z + (z**3 + z) / (4 * free) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * free**2)  # Fisher's expansion
    return normal.cdf(-student * (users / free) ** 0.5)


def compare(
    label: np.ndarray,
    user: np.ndarray,
    ours: np.ndarray,
    theirs: np.ndarray,
    slices: Mapping[str, Mapping[str, np.ndarray]] | None = None,
    replicates: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Differences of AUC, GAUC and log loss between two models, overall and by slice.

    Args:
        label: 0 or 1 [n], rows where the target was observed.
        user: int [n].
        ours, theirs: logits [n].
        slices: kind -> name -> rows, bool [n].

    Returns:
        {metric: `Difference`, "slices": {kind: {name: {metric: Difference}}}}.
    """
    resampling = Resampling(user, replicates, seed)
    groups = [("", "", np.arange(len(label)))]
    for kind, named in (slices or {}).items():
        groups += [(kind, name, rows) for name, mask in named.items() if (rows := np.flatnonzero(mask)).size]
    parts = [_Part.of(resampling, label, (ours, theirs), rows) for _, _, rows in groups]
    drawn = resampling.draw(np.concatenate([part.columns for part in parts], 1)) if len(label) else None
    found: dict[str, Any] = {"slices": {}}
    for number, ((kind, name, _), part) in enumerate(zip(groups, parts, strict=True)):
        width = part.columns.shape[1]
        entry = part.differences(None if drawn is None else drawn[:, number * width : (number + 1) * width])
        if kind:
            found["slices"].setdefault(kind, {})[name] = entry
        else:
            found |= entry
    return found


@dataclass(frozen=True)
class _Part:
    """Some rows as sums per user.

    Attributes:
        columns: float64 [users, 8]: positives, negatives, rows of users with both, rows; then ours less theirs: the
            placements of the positives, those of the negatives, AUC within the user times rows, loss.
        points: AUC, GAUC and log loss of ours and of theirs.
    """

    columns: np.ndarray
    points: dict[str, tuple[float, float] | None]

    @classmethod
    def of(
        cls, resampling: Resampling, label: np.ndarray, logits: tuple[np.ndarray, np.ndarray], rows: np.ndarray
    ) -> _Part:
        label = label[rows].astype(np.float64)
        positive, negative = resampling.sums(label, rows), resampling.sums(1 - label, rows)
        both, scored = np.zeros(resampling.users), []
        for model in logits:
            logit = model[rows].astype(np.float64)
            below, above = placements(label, 1 - label, logit)
            group, auc, size = grouped_auc(label, logit, resampling.user[rows])
            within, nothing = np.zeros(resampling.users), np.zeros(resampling.users)
            within[group], both[group] = auc * size, size
            placed = [nothing, nothing]
            if below is not None and above is not None:
                placed = [resampling.sums(below * label, rows), resampling.sums(above * (1 - label), rows)]
            scored.append([*placed, within, resampling.sums(np.logaddexp(0.0, logit) - label * logit, rows)])
        counts = [positive, negative, both, positive + negative]
        columns = [*counts, *(ours - theirs for ours, theirs in zip(*scored, strict=True))]
        points: dict[str, tuple[float, float] | None] = dict.fromkeys(METRICS)
        for name, place in (("auc", 0), ("gauc", 2), ("logloss", 3)):  # of its sum, and of what it is divided by
            total = counts[place].sum()
            if total > 0 and (place > 0 or negative.sum() > 0):
                ours, theirs = (float(one[place].sum() / total) for one in scored)
                points[name] = ours, theirs
        return cls(np.stack(columns, 1), points)

    def differences(self, drawn: np.ndarray | None) -> dict[str, Difference]:
        """Metric -> difference; `drawn` is [replicates, 8]."""
        positive, negative, both, rows = (int((self.columns[:, place] > 0).sum()) for place in range(4))
        users = {"auc": min(positive, negative), "gauc": both, "logloss": rows}
        found = {}
        for name, sign in METRICS.items():
            point = self.points[name]
            if drawn is None or point is None:
                found[name] = Difference(None, None, None, None, sign, users[name])
                continue
            with np.errstate(invalid="ignore", divide="ignore"):
                if name == "auc":  # the projection: what both placements make together, less the AUC itself
                    spread = drawn[:, 4] / drawn[:, 0] + drawn[:, 5] / drawn[:, 1] - (point[0] - point[1])
                else:
                    spread = drawn[:, 6] / drawn[:, 2] if name == "gauc" else drawn[:, 7] / drawn[:, 3]
            low, high = interval(spread, users[name])
            found[name] = Difference(*point, low, high, sign, users[name])
        return found
