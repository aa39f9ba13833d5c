"""What a ranking is worth in money: value captured when each request's candidates are ranked anew.

- Value-weighted AUC: the chance that a unit of value lies above a random negative.
- Captured value: the first `shown` candidates of each request by the model's score, as a share of what the best order
  would have captured, beside the logged order.
- Lift over another model. Where the log has the propensity of what was shown, by self-normalised inverse propensity
  scoring (Swaminathan & Joachims, NIPS 2015): a request speaks for a policy when the policy would have shown what was
  shown, and weighs 1 / propensity, clipped. Else by replay of the outcomes as they were logged.

Intervals as in `compare`: users are drawn, every figure is a ratio of sums over users.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lsm_cli.data.batches import SECONDS_PER_DAY
from lsm_cli.data.store import Samples, Store
from lsm_cli.engine.metrics import placements
from lsm_cli.judging.compare import Difference, Resampling, interval

CLIP = 100.0  # largest weight of one request
SEVERAL = 0.5  # share of the samples that must have company for requests to be the unit
ASSUMPTIONS = {
    "replay": (
        "an outcome is the same wherever and beside whatever a candidate is shown",
        "the logged candidates are all that could have been shown, and each was seen by the user",
    ),
    "snips": (
        "propensities are the true probabilities with which the log's own policy showed what it showed",
        "every candidate could be shown, and what a user does depends on this request alone",
    ),
}


@dataclass(frozen=True)
class Requests:
    """Samples grouped into requests.

    Attributes:
        group: int [n], request of each sample, 0 … size - 1.
        size: number of requests.
        unit: "request" or "day".
    """

    group: np.ndarray
    size: int
    unit: str

    @property
    def how(self) -> str:
        what = "same user and time" if self.unit == "request" else "same user and UTC day, as most have one candidate"
        return f"requests: {what}; {len(self.group) / max(self.size, 1):.1f} candidates each"

    @classmethod
    def of(cls, store: Store, samples: Samples) -> Requests:
        """By user and time; by user and day where most requests have a single candidate."""
        user, time = np.asarray(samples.column("user"), np.int64), np.asarray(samples.column("time"), np.int64)
        group, sizes = _groups(user, time)
        if not len(group) or np.mean(sizes[group] > 1) >= SEVERAL:
            return cls(group, len(sizes), "request")
        group, sizes = _groups(user, (time + store.base) // (SECONDS_PER_DAY * store.ticks_per_second))
        return cls(group, len(sizes), "day")

    def first(self, score: np.ndarray, shown: int = 1, seed: int = 0) -> np.ndarray:
        """Is a sample among the `shown` of its request that score highest? Ties are broken by lot: bool [n]."""
        lot = np.random.default_rng([seed, 17]).permutation(len(score))
        order = np.lexsort((lot, -score, self.group))
        grouped = self.group[order]
        start = np.flatnonzero(np.r_[True, grouped[1:] != grouped[:-1]]) if len(order) else np.empty(0, np.int64)
        place = np.arange(len(order)) - np.repeat(start, np.diff(np.r_[start, len(order)]))
        found = np.zeros(len(order), bool)
        found[order] = place < shown
        return found


def _groups(user: np.ndarray, moment: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(group of each row, rows of each group)."""
    order = np.lexsort((moment, user))
    new = np.r_[True, (np.diff(user[order]) != 0) | (np.diff(moment[order]) != 0)][: len(user)]
    group = np.empty(len(user), np.int64)
    group[order] = np.cumsum(new) - 1
    return group, np.bincount(group)


def paid_target(labels: dict[str, np.ndarray], value: np.ndarray) -> str | None:
    """The target whose positives are what value is paid for: the rarest that holds all the valued rows.

    Where negatives have a value too, it is what is at stake, and the rarest target earns it. None without any value.
    """
    worth = value > 0
    if not worth.any():
        return None
    positives = {name: int((label == 1).sum()) for name, label in labels.items()}
    fits = [name for name, label in labels.items() if (label[worth] == 1).all()]
    return min(fits or positives, key=lambda name: positives[name])


def value_auc(
    label: np.ndarray, value: np.ndarray, user: np.ndarray, scores: tuple[np.ndarray, np.ndarray],
    replicates: int = 1000, seed: int = 0,
) -> Difference:  # fmt: skip
    """Value-weighted AUC of two models on observed rows: positives weigh their value, negatives one each."""
    resampling = Resampling(user, replicates, seed)
    positive, negative = np.where(label == 1, np.maximum(value, 0.0), 0.0), (label == 0).astype(np.float64)
    worth, others = resampling.sums(positive), resampling.sums(negative)
    points: list[float] = []
    placed: list[np.ndarray] = []
    for logit in scores:
        below, above = placements(positive, negative, logit)
        if below is None or above is None:
            return Difference(None, None, None, None, 1, 0)
        placed += [resampling.sums(below * positive), resampling.sums(above * negative)]
        points.append(float((below * positive).sum() / positive.sum()))
    drawn = resampling.draw(np.stack([worth, others, placed[0] - placed[2], placed[1] - placed[3]], 1))
    with np.errstate(invalid="ignore", divide="ignore"):
        spread = drawn[:, 2] / drawn[:, 0] + drawn[:, 3] / drawn[:, 1]
    users = int(min((worth > 0).sum(), (others > 0).sum()))
    low, high = interval(spread - (points[0] - points[1]), users)
    return Difference(points[0], points[1], low, high, 1, users)


def replay(
    requests: Requests, value: np.ndarray, user: np.ndarray, scores: tuple[np.ndarray, np.ndarray], shown: int = 1,
    replicates: int = 1000, seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """Value captured by ranking the logged candidates anew.

    Args:
        value: money [n] that each sample brought.
        scores: of the run and of the other, [n] each.

    Returns:
        {"captured": {"run", "other", "logged order": share of the oracle}, "oracle": money, "lift": Difference}.
    """
    several = np.bincount(requests.group, minlength=requests.size)[requests.group] > shown
    counted = np.where(several, value, 0.0)  # requests without a choice say nothing
    resampling = Resampling(user, replicates, seed)
    logged = -np.arange(len(value), dtype=np.float64)
    orders = {"run": scores[0], "other": scores[1], "logged order": logged, "oracle": value}
    columns = {name: resampling.sums(counted * requests.first(s, shown, seed)) for name, s in orders.items()}
    sums = {name: float(column.sum()) for name, column in columns.items()}
    oracle = sums.pop("oracle")
    return {
        "captured": {name: captured / oracle if oracle else None for name, captured in sums.items()},
        "oracle": oracle,
        "requests_with_a_choice": int(np.unique(requests.group[several]).size),
        "lift": lift(resampling, columns["run"], columns["other"]),
    }


def snips(
    requests: Requests, value: np.ndarray, observed: np.ndarray, propensity: np.ndarray, user: np.ndarray,
    scores: tuple[np.ndarray, np.ndarray], clip: float = CLIP, replicates: int = 1000, seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """Value per request of two policies that show the candidate which scores highest, from what another one showed.

    Args:
        observed: bool [n], whether a sample was shown, so that its value is known.
        propensity: [n], probability with which the log's policy shows it.
        clip: largest weight.

    Returns:
        {"lift": Difference, "value_per_request": {"run", "other", "log"}, and for each policy the requests that speak
        for it, their effective number (Kish: (sum w)^2 / sum w^2) and the share of weights that were clipped}.
    """
    resampling = Resampling(user, replicates, seed)
    weight = np.minimum(1 / propensity, clip)
    columns, sizes = [], {}
    for name, score in zip(("run", "other"), scores, strict=True):
        speaks = requests.first(score, 1, seed) & observed
        w = np.where(speaks, weight, 0.0)
        columns += [resampling.sums(w * value), resampling.sums(w)]
        total = float(w.sum())
        sizes[name] = {
            "requests": int(speaks.sum()),
            "effective": total**2 / float((w**2).sum()) if total else 0.0,
            "clipped": float(np.mean(1 / propensity[speaks] > clip)) if speaks.any() else 0.0,
        }
    return {
        "lift": lift(resampling, *columns),
        "value_per_request": {
            "run": _ratio(columns[0].sum(), columns[1].sum()),
            "other": _ratio(columns[2].sum(), columns[3].sum()),
            "log": float(value[observed].mean()) if observed.any() else None,
        },
        "support": sizes,
        "clip": clip,
    }


def lift(resampling: Resampling, *columns: np.ndarray) -> Difference:
    """Ours over theirs, less one, with its interval.

    Args:
        columns: sums [users] of ours and theirs, or of (ours, its weights, theirs, their weights).
    """
    table = np.stack(columns, 1)
    drawn = np.concatenate([resampling.draw(table), table.sum(0, keepdims=True)])
    if len(columns) == 4:
        with np.errstate(invalid="ignore", divide="ignore"):
            drawn = np.stack([drawn[:, 0] / drawn[:, 1], drawn[:, 2] / drawn[:, 3]], 1)
    ours, theirs = (float(number) for number in drawn[-1])
    users = int(((columns[0] > 0) | (columns[len(columns) // 2] > 0)).sum())
    if not (np.isfinite([ours, theirs]).all() and theirs > 0):
        return Difference(None, None, None, None, 1, users, relative=True)
    half = len(columns) // 2
    if all(np.array_equal(*pair) for pair in zip(columns[:half], columns[half:], strict=True)):
        drawn[:, 0] = drawn[:, 1]  # the same to the last digit
    with np.errstate(invalid="ignore", divide="ignore"):
        low, high = interval(drawn[:-1, 0] / drawn[:-1, 1] - 1, users)
    return Difference(ours, theirs, low, high, 1, users, relative=True)


def _ratio(above: float, below: float) -> float | None:
    return float(above / below) if below else None


def worth(
    store: Store, split: str, target: str, scores: tuple[np.ndarray, np.ndarray], shown: int = 1, clip: float = CLIP,
    replicates: int = 1000, seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """All of the above for one split of a store with a value column.

    Args:
        target: whose probability ranks.
        scores: logits of it by the run and by the other, [n] each.
    """
    samples = store.samples(split)
    user, label = np.asarray(samples.column("user")), np.asarray(samples.column(f"label.{target}"))
    at_stake = np.nan_to_num(np.asarray(samples.column("value"), np.float64))
    value, observed = np.where(label == 1, at_stake, 0.0), label >= 0
    requests = Requests.of(store, samples)
    seen = (scores[0][observed], scores[1][observed])
    found: dict[str, Any] = {
        "target": target,
        "requests": requests.size,
        "unit": requests.unit,
        "how": f"{requests.how}; value counts where {target} is 1",
        "value": float(value[observed].sum()),
        "value_auc": value_auc(label[observed], value[observed], user[observed], seen, replicates, seed),
    }
    propensity = np.asarray(samples.column("propensity"), np.float64) if samples.has("propensity") else None
    whole = bool(observed.all())
    if propensity is not None and requests.unit == "request":
        found |= snips(requests, value, observed, propensity, user, scores, clip, replicates, seed)
        method, found["what"] = "snips", "GMV per request"
    else:
        rows = np.flatnonzero(observed)
        part = requests if whole else Requests(requests.group[rows], requests.size, requests.unit)
        found |= replay(part, value[rows], user[rows], seen, shown, replicates, seed)
        method, found["shown"] = "replay", shown
        first = "first" if shown == 1 else f"first {shown}"
        found["what"] = f"GMV of the {first} in a {requests.unit}, share of the best order's"
        if propensity is not None:
            found["note"] = (
                "the log has propensities, but not what else could have been shown (most requests have one candidate), "
                "so they say nothing about another ranking; log the whole slate to use them"
            )
    return found | {"method": method, "assumptions": ASSUMPTIONS[method]}


def sentences(money: dict[str, Any], names: Sequence[str] = ("run", "other")) -> list[str]:
    """How the estimate was made and what it takes for granted, from `worth` as JSON.

    Args:
        names: of the run and of the other.
    """
    how = {"replay": "replay of the logged outcomes", "snips": "self-normalised inverse propensity"}[money["method"]]
    lines = [f"GMV lift over the baseline by {how}: {money['lift']['verdict']}."]
    if money["method"] == "snips":
        lines += [
            f"{name}: {part['requests']:,} requests speak for it, worth {part['effective']:,.0f} equal ones; "
            f"{part['clipped']:.1%} of the weights clipped at {money['clip']:g}."
            for name, part in zip(names, (money["support"][who] for who in ("run", "other")), strict=True)
        ]
    lines.append("It assumes that " + ", and that ".join(money["assumptions"]) + ".")
    return lines + ([money["note"] + "."] if "note" in money else [])
