"""Samplers and pruners by name; every draw is a function of the study's seed, the trial's number and the option.

Optuna's samplers own one random generator for the life of a process, so a study that is resumed with the same seed
would begin with the draws that it has made already, and workers with one seed would propose the same trials. Here each
draw has a generator of its own, so one worker repeats exactly, killed in between or not, and several never draw alike.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

from optuna import Study, pruners, samplers
from optuna.distributions import BaseDistribution
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from lsm_cli.errors import InputError
from lsm_cli.tuning.plan import Plan

MAKERS: dict[str, Callable[[int], BaseSampler]] = {
    "tpe": lambda seed: samplers.TPESampler(seed=seed),
    "random": lambda seed: samplers.RandomSampler(seed=seed),
    "cmaes": lambda seed: samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False),
    "gp": lambda seed: samplers.GPSampler(seed=seed, warn_independent_sampling=False),
    "nsga2": lambda seed: samplers.NSGAIISampler(seed=seed, population_size=16),
}
NEEDS = {"cmaes": "cmaes", "gp": "scipy"}


def check_sampler(name: str) -> None:
    """Raise InputError if a sampler's library is missing."""
    if name in NEEDS and importlib.util.find_spec(NEEDS[name]) is None:
        raise InputError(f"--sampler {name} needs a library that is not installed; pip install {NEEDS[name]}")


class Numbered(BaseSampler):
    """A sampler whose generator is made anew for every draw.

    Args:
        name: one of `MAKERS`.
        seed: of the study.
    """

    def __init__(self, name: str, seed: int) -> None:
        self.name, self.seed = name, seed

    def _inner(self, number: int, what: str) -> BaseSampler:
        drawn = hashlib.sha256(f"{self.seed}/{number}/{what}".encode()).digest()
        return MAKERS[self.name](int.from_bytes(drawn[:4]))

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._inner(trial.number, "together").infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._inner(trial.number, "together").sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._inner(trial.number, param_name).sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        self._inner(trial.number, "before").before_trial(study, trial)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        self._inner(trial.number, "after").after_trial(study, trial, state, values)


def pruner(plan: Plan) -> BasePruner:
    """The pruner of a plan; one unit of its resource is one validation.

    Sources: asynchronous successive halving, arXiv 1810.05934; Hyperband, JMLR 18 (2018).
    """
    match "none" if plan.several else plan.pruner:
        case "median":
            return pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=0, n_min_trials=3)
        case "halving":
            return pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=3)
        case "hyperband":
            return pruners.HyperbandPruner(min_resource=1, max_resource=max(plan.validations, 1), reduction_factor=3)
        case _:
            return pruners.NopPruner()


def pruning(plan: Plan) -> str:
    """What the pruner does, in words."""
    if plan.several:
        return "none: trials are judged by several objectives"
    return {
        "median": "stops a trial that is worse than the median of the others after as many validations; the first five "
        "are let run",
        "halving": f"lets the best third go on after 1, 3, 9 … of {plan.validations} validations",
        "hyperband": f"halvings that begin later and later, over {plan.validations} validations",
        "none": "every trial is trained to its end",
    }[plan.pruner]
