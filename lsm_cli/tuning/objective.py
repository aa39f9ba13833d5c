"""One trial: options drawn, a recipe of them, trained in a run folder of its own, judged on the validation samples.

The training loop, the model and the run folder are those of `lsm train`; nothing here looks at the test samples.
"""

from __future__ import annotations

import gc
import math
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import Trial

from lsm_cli.data.store import Store
from lsm_cli.engine import metrics
from lsm_cli.engine.device import Compute, peak_memory
from lsm_cli.engine.evaluate import check_metric
from lsm_cli.engine.run import STATE, WEIGHTS, NotWrittenError, RunFolder
from lsm_cli.engine.setup import Setup, parameters
from lsm_cli.engine.trail import TRIALS
from lsm_cli.engine.train import InterruptedRunError, Trainer
from lsm_cli.errors import InputError, LsmError
from lsm_cli.options import Recipe
from lsm_cli.tuning import results
from lsm_cli.tuning.space import Option, applied
from lsm_cli.tuning.study import Tuning

KEEP = 3  # runs of a study that keep their weights, the best


def perform(tuning: Tuning, trial: Trial, store: Store, stop: Callable[[], bool]) -> None:
    """Run one trial and record how it ended.

    Args:
        stop: asked after every step; True saves the run's state and gives the trial back.

    Raises:
        InterruptedRunError: it was stopped.
        NotWrittenError: the disk is full; the trial is given back.
    """
    try:
        with tuning.beating(trial):
            _perform(tuning, trial, store, stop)
        tidy(tuning)
    except UpdateFinishedTrialError:  # this process was silent for so long that another has run the trial
        tuning.notes.append(f"trial {trial.number}: another process has ended it meanwhile")
    except BaseException:
        with suppress(Exception):  # a storage that is away; the trial is found again by its process being gone
            if tuning.owns(trial._trial_id):
                tuning.give_back(trial._trial_id)
        raise
    finally:
        if torch.cuda.is_available():  # the next trial may need every byte
            gc.collect()
            torch.cuda.empty_cache()


def _perform(tuning: Tuning, trial: Trial, store: Store, stop: Callable[[], bool]) -> None:
    plan = tuning.plan
    if "pruned" in trial.user_attrs:  # decided, and killed before it was recorded
        return tuning.prune(trial)
    chosen = plan.space.draw(plan.recipe, lambda option: _suggest(trial, option))
    try:
        recipe = applied(plan.recipe, chosen, name=f"{plan.recipe.name}-{trial.number:04d}")
        setup = Setup.of(recipe, store)
        check_metric(setup)
    except InputError as error:
        return tuning.refuse(trial, "; ".join(line.removeprefix("recipe: ") for line in str(error).splitlines()))
    run = _opened(folder_of(tuning.folder, trial.number), recipe, store)
    try:
        _train(tuning, trial, setup, run, chosen, stop)
    finally:
        run.close()


def _train(
    tuning: Tuning,
    trial: Trial,
    setup: Setup,
    run: RunFolder,
    chosen: dict[str, Any],
    stop: Callable[[], bool],
) -> None:
    plan, evaluations = tuning.plan, setup.recipe.train.evaluations

    def watch(line: dict[str, Any]) -> None:
        """Report a validation; a run that is resumed comes by the last one again."""
        validation = round(line["epoch"] * evaluations)
        if plan.several:
            return
        if validation not in trial.storage.get_trial(trial._trial_id).intermediate_values:
            trial.report(_mean(line, plan.recipe.train.metric, plan.recipe), validation)
        if trial.should_prune() and "origin" not in trial.user_attrs:  # what all are compared with runs to its end
            trial.set_user_attr("pruned", validation)
            raise optuna.TrialPruned

    try:
        _reset_peak(setup.compute)
        try:
            trainer = Trainer(setup, run, None, stop, watch=watch)
        except InputError as error:
            shutil.rmtree(run.path, ignore_errors=True)
            return tuning.refuse(trial, str(error))
        ended: dict[str, Any] | None = None
        try:
            trainer.fit()
            ended = {"parameters": parameters(trainer.model)}
        finally:
            trainer.tracking.finish(ended)
        found = judged(trainer, plan.recipe)
        found["memory"] = peak_memory(setup.compute.device)
        values = [found[objective.name] for objective in plan.objectives]
        if not all(map(math.isfinite, values)):
            raise LsmError(f"the validation metric became {values}")
        about = {"trial": trial.number, "params": chosen, "steps": trainer.at.step}
        run.write_json("result.json", found | {"peak_memory_bytes": found["memory"]} | about)
        trial.set_user_attr("costs", {name: found[name] for name in ("samples_per_second", "memory", "parameters")})
        tuning.complete(trial, values)
    except optuna.TrialPruned:
        tuning.prune(trial)
    except (NotWrittenError, InterruptedRunError):
        raise
    except Exception as error:
        if isinstance(error, OSError) or type(error).__module__.startswith(("sqlalchemy", "optuna")):
            raise  # the storage or the disk, not the trial
        tuning.fail(trial, *_reason(error))


def _suggest(trial: Trial, option: Option) -> Any:
    if option.choices:
        return option.value(trial.suggest_categorical(option.key, option.labels()))
    if option.whole:
        low, high, step = int(option.low), int(option.high), int(option.step or 1)
        return trial.suggest_int(option.key, low, high, step=step, log=option.log)
    return trial.suggest_float(option.key, option.low, option.high, step=option.step, log=option.log)


def folder_of(study: Path, number: int) -> Path:
    """The run folder of a trial."""
    return study / TRIALS / f"{number:04d}"


def _opened(folder: Path, recipe: Recipe, store: Store) -> RunFolder:
    """The run of a trial, taken up where it stands; what a study of the same name left before is removed."""
    if (folder / "recipe.toml").is_file() and RunFolder(folder).recipe() != recipe:
        shutil.rmtree(folder)
    return RunFolder.start(folder, recipe, store, resume=True)


def judged(trainer: Trainer, recipe: Recipe) -> dict[str, Any]:
    """Quality at the best validation, and what the run cost.

    Args:
        recipe: of the study; targets count as they weigh in its loss, whatever they weigh in the trial's.
    """
    best = next(line for line in reversed(trainer.history) if line["best"])
    found: dict[str, Any] = {name: _mean(best, name, recipe) for name in ("gauc", "auc", "logloss")}
    found["valid"] = best["valid"]
    found["samples_per_second"] = trainer.at.samples / max(trainer.at.seconds, 1e-9)
    found["parameters"] = parameters(trainer.model)
    return found


def _mean(line: dict[str, Any], name: str, recipe: Recipe) -> float:
    """A metric of a validation, nan where it is not known."""
    value = metrics.over_targets(line["valid"], name, recipe.train.weights)
    return math.nan if value is None else value


def _reset_peak(compute: Compute) -> None:
    if compute.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(compute.device)


def _reason(error: Exception) -> tuple[str, str]:
    """(sentence, cause) of a failure; the cause leaves out what differs from trial to trial."""
    text = str(error).strip() or type(error).__name__
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "not enough memory" in text:
        return f"out of memory ({text.splitlines()[0][:200]})", "out of memory"
    if not isinstance(error, LsmError):
        text = f"{type(error).__name__}: {text}"
    return text.splitlines()[0][:500], re.sub(r"[\d.]+", "#", text.splitlines()[0])


def tidy(tuning: Tuning) -> None:
    """Keep the weights of the best runs alone, and no state of a run that has ended."""
    kept = {trial.number for trial in results.leading(tuning.plan, tuning.trials(), KEEP)}
    for trial in tuning.trials():
        if trial.state.is_finished():
            folder = folder_of(tuning.folder, trial.number)
            (folder / STATE).unlink(missing_ok=True)
            if trial.number not in kept:
                (folder / WEIGHTS).unlink(missing_ok=True)
