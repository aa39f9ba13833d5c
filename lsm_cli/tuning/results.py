"""What a study found: counts, the best trials, importances, the best recipe; plain data for tables, pages and JSON."""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from lsm_cli.options import Recipe
from lsm_cli.tuning.plan import Plan, write_text
from lsm_cli.tuning.space import applied
from lsm_cli.tuning.study import Tuning, kind

BEST = "best.toml"
APART = 10  # different trials, whose best tenth is one


@dataclass(frozen=True)
class Row:
    """One trial."""

    number: int
    kind: str
    values: list[float] | None  # one per objective; of a trial that was stopped, the last validation
    params: dict[str, Any]  # recipe key -> value
    reason: str
    seconds: float | None
    validations: int
    origin: str
    costs: dict[str, float]  # samples_per_second, memory (bytes) and parameters of a trial that was trained to its end


def row(plan: Plan, trial: FrozenTrial) -> Row:
    options = {option.key: option for option in plan.space.options}
    params = {key: options[key].value(value) for key, value in trial.params.items() if key in options}
    values = trial.values
    if values is None and trial.intermediate_values and not plan.several:
        values = [trial.intermediate_values[max(trial.intermediate_values)]]
    attributes = trial.user_attrs
    return Row(
        trial.number,
        kind(trial),
        values,
        {key: params[key] for key in options if key in params},
        attributes.get("infeasible") or attributes.get("reason", ""),
        trial.duration.total_seconds() if trial.duration else None,
        len(trial.intermediate_values),
        attributes.get("origin", ""),
        attributes.get("costs", {}),
    )


def counts(trials: list[FrozenTrial]) -> dict[str, int]:
    """How many trials of each kind."""
    found = Counter(map(kind, trials))
    return {name: found[name] for name in ("complete", "pruned", "infeasible", "failed", "running", "waiting")}


def pareto(plan: Plan, trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """Complete trials that no other beats in one objective without losing in another; best first objective first."""
    done = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    signs = [1 if objective.larger else -1 for objective in plan.objectives]
    points = {trial.number: [sign * value for sign, value in zip(signs, trial.values, strict=True)] for trial in done}

    def beaten(mine: list[float]) -> bool:
        return any(
            other != mine and all(theirs >= ours for theirs, ours in zip(other, mine, strict=True))
            for other in points.values()
        )

    front = [trial for trial in done if not beaten(points[trial.number])]
    return sorted(front, key=lambda trial: ([-value for value in points[trial.number]], trial.number))


def ranked(plan: Plan, trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """Complete trials by the first objective, best first; of equals the earlier."""
    sign = -1 if plan.objectives[0].larger else 1
    done = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    return sorted(done, key=lambda trial: (sign * trial.values[0], trial.number))


@dataclass(frozen=True)
class Choice:
    """What one choice of an option came to."""

    key: str
    value: Any
    tried: int  # trials that ended, stopped early or not
    complete: int  # of them trained to their end
    best: float | None  # of the first objective, over these
    trial: int | None


def choices(plan: Plan, trials: list[FrozenTrial]) -> list[Choice]:
    """The best of every choice, option by option; of options that are ranges there is none.

    Importances do not say this: what the search settled early sets none of the later trials apart from the others.
    """
    ended = [one for trial in trials if (one := row(plan, trial)).kind in ("complete", "pruned")]
    order = {trial.number: place for place, trial in enumerate(ranked(plan, trials))}
    found = []
    for option in plan.space.options:
        for value in option.choices if len(option.choices) > 1 else ():
            here = [one for one in ended if option.key in one.params and one.params[option.key] == value]
            whole = sorted((one for one in here if one.number in order), key=lambda one: order[one.number])
            best = whole[0] if whole else None
            score = best.values[0] if best and best.values else None
            found.append(Choice(option.key, value, len(here), len(whole), score, best.number if best else None))
    return found


def leading(plan: Plan, trials: list[FrozenTrial], most: int) -> list[FrozenTrial]:
    """The trials worth keeping: the best few, or the Pareto set."""
    return pareto(plan, trials) if plan.several else ranked(plan, trials)[:most]


def importances(tuning: Tuning) -> dict[str, float]:
    """Share of each option in what sets the best tenth of the trials apart (PED-ANOVA, arXiv 2304.10255).

    By the first objective, over the trials that were trained to their end; empty until `APART` of them have differed.
    """
    ended = tuning.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len({repr(sorted(trial.params.items())) for trial in ended}) < APART:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = optuna.importance.get_param_importances(
                tuning.study,
                evaluator=optuna.importance.PedAnovaImportanceEvaluator(),
                target=(lambda trial: trial.values[0]) if tuning.plan.several else None,
            )
        except (ValueError, RuntimeError, ZeroDivisionError):
            return {}
    return {name: float(share) for name, share in found.items()}


def recipe_of(plan: Plan, trial: FrozenTrial) -> Recipe:
    """The recipe of a trial, ready for `lsm train`."""
    one = row(plan, trial)
    shown = ", ".join(
        f"{objective.name} {value:.6g}" for objective, value in zip(plan.objectives, trial.values, strict=True)
    )
    name = plan.recipe.name if plan.recipe.name.endswith("_tuned") else f"{plan.recipe.name}_tuned"
    return applied(plan.recipe, one.params, name=name, description=f"Tuned: trial {trial.number}, validation {shown}")


def write_recipes(tuning: Tuning) -> list[Path]:
    """best.toml, and with several objectives a recipe for each trial of the Pareto set; what was written."""
    trials = tuning.trials()
    best = ranked(tuning.plan, trials)
    if not best:
        return []
    files = {tuning.folder / BEST: best[0]}
    if tuning.plan.several:
        folder = tuning.folder / "pareto"
        files |= {folder / f"{trial.number:04d}.toml": trial for trial in pareto(tuning.plan, trials)}
        for old in folder.glob("*.toml"):
            if old not in files:
                old.unlink(missing_ok=True)
    for file, trial in files.items():
        write_text(file, recipe_of(tuning.plan, trial).to_toml())
    return list(files)
