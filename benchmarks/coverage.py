"""Do the intervals of `lsm eval --baseline` hold what they promise? Replicated experiments whose truth is known.

Each replication draws new users (some act more, some like more), two models that see the true probability through
different noise, and requests with slates, of which a policy with known propensities shows one. Counted is

- coverage: how often the 95 % interval holds the true difference (or lift);
- power: how often two models that differ by a known amount are told apart, beside what the spread of the differences
  themselves predicts for a test at 5 %;
- false alarms: how often two equally good models are told apart.

    python benchmarks/coverage.py --replications 400 --out benchmarks/results/coverage.json
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

from lsm_cli.judging.compare import METRICS, Difference, compare
from lsm_cli.judging.gmv import Requests, replay, snips, value_auc

SLATE = 4
METHODS = (*METRICS, "value_auc", "replay", "snips")


@dataclass
class Drawn:
    """One experiment: slates one after the other, [requests * SLATE] all."""

    user: np.ndarray
    p: np.ndarray
    label: np.ndarray
    value: np.ndarray
    propensity: np.ndarray
    shown: np.ndarray
    ours: np.ndarray
    theirs: np.ndarray

    @property
    def requests(self) -> Requests:
        size = len(self.user) // SLATE
        return Requests(np.repeat(np.arange(size), SLATE), size, "request")


def draw(rng: np.random.Generator, users: int, noise: tuple[float, float]) -> Drawn:
    """New users; the models' logits are the true ones with noise of these standard deviations."""
    requests = 1 + rng.poisson(8 * rng.gamma(1.5, 1 / 1.5, users))
    owner = np.repeat(np.arange(users), requests)
    user = np.repeat(owner, SLATE)
    logit = rng.normal(-2.0, 0.7, users)[user] + rng.normal(0, 1.0, len(user))
    p = 1 / (1 + np.exp(-logit))
    label = (rng.random(len(user)) < p).astype(np.int8)
    value = label * rng.lognormal(0, 0.8, len(user))
    taste = rng.normal(0, 1, (len(owner), SLATE))
    share = np.exp(taste) / np.exp(taste).sum(1, keepdims=True)
    propensity = 0.8 * share + 0.2 / SLATE
    place = (propensity.cumsum(1) < rng.random((len(owner), 1))).sum(1).clip(max=SLATE - 1)
    shown = (np.arange(SLATE) == place[:, None]).ravel()
    ours, theirs = (logit + rng.normal(0, sd, len(user)) for sd in noise)
    return Drawn(user, p, label, value, propensity.ravel(), shown, ours, theirs)


def estimates(drawn: Drawn, seed: int, replicates: int) -> dict[str, Difference]:
    """Everything that `lsm eval --baseline` puts an interval on."""
    scores, user = (drawn.ours, drawn.theirs), drawn.user
    found: dict[str, Any] = compare(drawn.label, user, *scores, replicates=replicates, seed=seed)
    found.pop("slices")
    found["value_auc"] = value_auc(drawn.label, drawn.value, user, scores, replicates, seed)
    found["replay"] = replay(drawn.requests, drawn.value, user, scores, 1, replicates, seed)["lift"]
    value = np.where(drawn.shown, drawn.value, 0.0)
    found["snips"] = snips(
        drawn.requests, value, drawn.shown, drawn.propensity, user, scores, replicates=replicates, seed=seed
    )["lift"]
    return found


def truth(rng: np.random.Generator, noise: tuple[float, float]) -> dict[str, float]:
    """The same for so many users that chance has no say; lifts by the true probabilities."""
    drawn = draw(rng, 40_000, noise)
    found = estimates(drawn, 0, 2)
    first = [drawn.p[drawn.requests.first(score)].sum() for score in (drawn.ours, drawn.theirs)]
    lift = first[0] / first[1] - 1
    return {**{name: found[name].value for name in (*METRICS, "value_auc")}, "replay": lift, "snips": lift}


def replicate(
    users: int, noise: tuple[float, float], replications: int, replicates: int = 300, seed: int = 0,
    tick: Callable[[], None] = lambda: None,
) -> dict[str, dict[str, float]]:  # fmt: skip
    """Per metric: the true difference, coverage, the rate at which the models are told apart, and what to expect."""
    goal = truth(np.random.default_rng([seed, 1]), noise)
    every: list[dict[str, Difference]] = []
    for number in range(replications):
        every.append(estimates(draw(np.random.default_rng([seed, 2, number]), users, noise), number, replicates))
        tick()
    found = {}
    for name in METHODS:
        one = [entry[name] for entry in every]
        values = np.array([entry.value for entry in one])
        covered = np.mean([entry.low <= goal[name] <= entry.high for entry in one])
        shift, z = goal[name] / values.std(ddof=1), NormalDist().inv_cdf(0.975)
        found[name] = {
            "truth": goal[name],
            "mean": float(values.mean()),
            "coverage": float(covered),
            "told_apart": float(np.mean([entry.told for entry in one])),
            "expected": NormalDist().cdf(shift - z) + NormalDist().cdf(-shift - z),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--replications", type=int, default=400)
    parser.add_argument("--users", nargs="+", type=int, default=[40, 200])
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    found: dict[str, Any] = {"command": " ".join(["python", *sys.argv]), "results": {}}
    print("| users | models | metric | true difference | coverage | told apart | expected |\n|" + "---|" * 7)
    for users in arguments.users:
        for title, noise in (("differ", (1.0, 1.15)), ("equally good", (1.0, 1.0))):
            result = replicate(users, noise, arguments.replications)
            found["results"][f"{users} users, {title}"] = result
            for name, one in result.items():
                cells = f"{one['truth']:+.4f} | {one['coverage']:.1%} | {one['told_apart']:.1%} | {one['expected']:.1%}"
                print(f"| {users} | {title} | {name} | {cells} |", flush=True)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
