"""`lsm tune` as a user meets it: what it finds, shows, writes, refuses and survives."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from optuna.trial import TrialState
from typer.testing import CliRunner

from lsm_cli import recipe as recipes
from lsm_cli.commands.tune import parse_seconds
from lsm_cli.engine.train import Trainer
from lsm_cli.errors import InputError
from lsm_cli.main import app
from lsm_cli.tuning.worker import Job
from tests.small import write_store
from tests.tuning.helpers import SPACE, TINY, found, kill, opened, outcome, start, trials, tune, wait_for


@pytest.fixture(autouse=True)
def no_matplotlib(study: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Charts are drawn for one study; the other tests do without, as where the extra `plots` is missing."""
    monkeypatch.setattr("lsm_cli.report.png.available", lambda: False)


@pytest.fixture(scope="module")
def study(small_store: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Ten trials that are trained to their end, one worker."""
    out = tmp_path_factory.mktemp("tune") / "study"
    return out, found(tune(small_store, out, "--trials", 10, "--pruner", "none", "--json"))


def test_the_best_trial_is_the_best_and_its_recipe_trains_as_it_is(
    study: tuple[Path, dict[str, Any]], small_store: Path, tmp_path: Path
) -> None:
    out, value = study
    assert value["trials"]["complete"] == 10 and value["trials"]["pruned"] == value["trials"]["failed"] == 0
    assert value["best"]["value"] == max(trial.value for trial in trials(out))
    assert value["baseline"]["trial"] == 0 and value["baseline"]["params"]["model.layers"] == 2
    assert sum(value["importances"].values()) == pytest.approx(1)
    run = tmp_path / "run"
    result = CliRunner().invoke(
        app, ["train", "-r", str(out / "best.toml"), "--data", str(small_store), "--out", str(run), "--json"]
    )
    assert result.exit_code == 0, result.output
    # the same weights as in the trial, so the same validation; and a test, which the study never looked at
    assert json.loads(result.stdout)["best_validation"] == pytest.approx(value["best"]["value"], rel=1e-6)
    assert "test" in json.loads(result.stdout)
    raw = recipes.load(str(out / "best.toml")).model_dump(by_alias=True)
    for key, wanted in value["best"]["params"].items():
        assert raw[key.split(".")[0]][key.split(".")[1]] == wanted


def test_the_best_of_each_choice_is_told(study: tuple[Path, dict[str, Any]]) -> None:
    out, value = study
    assert value["choices"]
    for key in {one["key"] for one in value["choices"]}:
        mine = [one for one in value["choices"] if one["key"] == key]
        having = [trial for trial in trials(out) if key in trial.params]
        assert sum(one["complete"] for one in mine) == sum(one["tried"] for one in mine) == len(having)
        assert max(one["best"] for one in mine if one["complete"]) == max(trial.value for trial in having)
    assert "of each choice" in (out / "report.html").read_text()


def test_what_a_study_leaves(study: tuple[Path, dict[str, Any]]) -> None:
    out, value = study
    page = (out / "report.html").read_text()
    assert "<script" not in page and "http" not in page.split("</style>")[1].replace("arXiv", "")
    assert page.count("<svg") == 3 and "the recipe as it is" in page
    for name in ("history", "parallel", "importances"):
        assert (out / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
    weights = {int(file.parent.name) for file in out.glob("trials/*/model.safetensors")}
    ranked = sorted(trials(out), key=lambda trial: -trial.value)
    assert weights == {trial.number for trial in ranked[:3]}
    assert not list(out.glob("trials/*/state.pt"))
    assert len(list(out.glob("trials/*/result.json"))) == 10
    assert value["storage"].endswith("journal.log")
    best = out / "trials" / f"{value['best']['trial']:04d}"
    assert CliRunner().invoke(app, ["eval", str(best), "--json"]).exit_code == 0, "a trial is a run"
    listed = json.loads(CliRunner().invoke(app, ["runs", str(out), "--json"]).stdout)["runs"]
    (same,) = [run for run in listed if run["name"] == f"trials/{best.name}"]
    gauc = [entry["gauc"] for entry in same["metrics"].values()]
    assert sum(gauc) / len(gauc) == pytest.approx(value["best"]["value"]) and same["peak_memory_bytes"] > 0


def test_trials_of_other_loss_weights_are_judged_alike(small_store: Path, tmp_path: Path) -> None:
    out = tmp_path / "study"
    space = ["--space", "train.weights={},{order=5}"]
    assert tune(small_store, out, "--trials", 2, space=space).exit_code == 0
    for trial in trials(out):
        best = json.loads((out / "trials" / f"{trial.number:04d}" / "result.json").read_text())
        gauc = [entry["gauc"] for entry in best["valid"].values()]
        assert trial.value == pytest.approx(sum(gauc) / 2), "the mean by the weights of the study's recipe"


def test_the_same_seed_repeats_and_another_does_not(
    study: tuple[Path, dict[str, Any]], small_store: Path, tmp_path: Path
) -> None:
    assert tune(small_store, tmp_path / "b", "--trials", 10, "--pruner", "none").exit_code == 0
    assert outcome(tmp_path / "b") == outcome(study[0])
    assert tune(small_store, tmp_path / "c", "--trials", 2, "--pruner", "none", "--seed", 1).exit_code == 0
    assert [entry[2] for entry in outcome(tmp_path / "c")[1:]] != [entry[2] for entry in outcome(study[0])[1:2]]


def test_a_finished_study_is_not_repeated_and_goes_on_to_more_trials(
    study: tuple[Path, dict[str, Any]], small_store: Path
) -> None:
    out, _ = study
    before = outcome(out)
    assert tune(small_store, out, "--trials", 4, "--pruner", "none").exit_code == 0
    assert outcome(out) == before
    result = tune(small_store, out, "--trials", 11, "--pruner", "none")
    assert "10 of 11 trials have ended already" in result.stderr
    assert outcome(out)[:10] == before and len(outcome(out)) == 11


def test_kill_nine_and_the_same_command_equal_an_unbroken_study(
    study: tuple[Path, dict[str, Any]], small_store: Path, tmp_path: Path
) -> None:
    out = tmp_path / "study"
    more = ("--trials", 6, "--pruner", "none")
    process = start(small_store, out, *more)
    wait_for(lambda: sum(trial.state.is_finished() for trial in trials(out)) >= 2, process)
    time.sleep(random.uniform(0, 0.4))
    kill(process, out)
    done = [entry for entry in outcome(out) if entry[1].is_finished()]
    assert 2 <= len(done) < 6
    assert tune(small_store, out, *more).exit_code == 0
    assert outcome(out)[: len(done)] == done
    assert outcome(out) == outcome(study[0])[:6]


def test_two_workers_killed_and_resumed_lose_and_repeat_nothing(small_store: Path, tmp_path: Path) -> None:
    out = tmp_path / "study"
    more = ("--trials", 6, "--workers", 2, "--pruner", "halving")
    process = start(small_store, out, *more)
    wait_for(lambda: sum(trial.state.is_finished() for trial in trials(out)) >= 2, process)
    kill(process, out)
    ended = {trial.number: trial for trial in trials(out) if trial.state.is_finished()}
    running = [trial for trial in trials(out) if trial.state == TrialState.RUNNING]
    value = found(tune(small_store, out, *more, "--json"))
    assert value["trials"]["complete"] + value["trials"]["pruned"] == 6
    after = trials(out)
    assert [trial.number for trial in after] == list(range(6))
    for number, trial in ended.items():
        assert after[number] == trial, "finished trials stay as they were"
    for trial in running:
        assert after[trial.number].state.is_finished() and after[trial.number].params.items() >= trial.params.items()
    assert {trial.user_attrs["owner"]["pid"] for trial in after} - {os.getpid()}, "processes of their own"


def test_interrupting_saves_and_says_how_to_go_on(small_store: Path, tmp_path: Path) -> None:
    out = tmp_path / "study"

    def press() -> None:
        while not any(trial.state.is_finished() for trial in trials(out)):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press, daemon=True).start()
    result = tune(small_store, out, "--trials", 50)
    assert result.exit_code == 130 and "Traceback" not in result.output
    assert "go on with the same command" in result.stderr
    assert TrialState.RUNNING not in {trial.state for trial in trials(out)}
    ended = sum(trial.state.is_finished() for trial in trials(out))
    assert 1 <= ended < 50
    assert found(tune(small_store, out, "--trials", ended + 1, "--json"))["trials"]["waiting"] == 0


def test_time_runs_out_and_the_trial_goes_on_later(small_store: Path, tmp_path: Path) -> None:
    out = tmp_path / "study"
    result = tune(small_store, out, "--trials", 500, "--timeout", "2s")
    assert result.exit_code == 0 and "trials are left; go on with the same command" in result.stdout
    assert all(trial.state != TrialState.RUNNING for trial in trials(out))


def test_failed_trials_are_recorded_with_their_reason(
    small_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Trainer._step

    def fragile(self: Trainer, batch: Any) -> Any:
        if self.setup.recipe.model.dim == 16 and self.at.step == 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB")
        loss = step(self, batch)
        return loss * float("nan") if self.setup.recipe.model.layers == 3 else loss

    monkeypatch.setattr(Trainer, "_step", fragile)
    out = tmp_path / "study"
    space = [*SPACE, "--space", "model.layers=1,3"]
    value = found(tune(small_store, out, "--trials", 8, "--sampler", "random", "--json", space=space))
    assert value["trials"]["complete"] + value["trials"]["pruned"] + value["trials"]["failed"] == 8
    reasons = {failure["reason"] for failure in value["failures"]}
    assert any("out of memory" in reason for reason in reasons)
    assert any("the loss became nan" in reason for reason in reasons)
    assert value["best"]["params"]["model.dim"] == 8
    for failure in value["failures"]:
        assert not list((out / "trials" / f"{failure['trial']:04d}").glob("*.safetensors"))


def test_the_same_failure_again_and_again_ends_the_study(
    small_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Trainer, batch: Any) -> Any:
        raise RuntimeError(f"the matrix of step {self.at.step} is singular")

    monkeypatch.setattr(Trainer, "_step", broken)
    out = tmp_path / "study"
    result = tune(small_store, out, "--trials", 30)
    assert result.exit_code == 1 and "Traceback" not in result.output
    assert "5 trials in a row failed for the same reason" in result.stderr and "is singular" in result.stderr
    assert len(trials(out)) == 5
    monkeypatch.undo()  # mended: the same command goes on
    assert found(tune(small_store, out, "--trials", 6, "--json"))["trials"]["complete"] == 1


def test_combinations_that_recipes_refuse_are_set_aside_and_do_not_count(small_store: Path, tmp_path: Path) -> None:
    out = tmp_path / "study"
    space = ["--space", "model.sequence=din,tin", "--space", "model.attention_dim=2,4"]
    value = found(tune(small_store, out, "--trials", 4, "--sampler", "random", "--json", space=space))
    assert value["trials"]["complete"] + value["trials"]["pruned"] == 4
    assert value["trials"]["infeasible"] >= 1
    assert all("only tin and stacked_tin" in failure["reason"] for failure in value["failures"])
    for trial in trials(out):
        if "infeasible" in trial.user_attrs:
            assert trial.state == TrialState.PRUNED and not (out / "trials" / f"{trial.number:04d}").exists()


@pytest.mark.parametrize("pruner", ["median", "halving"])
def test_pruning_stops_trials_between_validations(small_store: Path, tmp_path: Path, pruner: str) -> None:
    out = tmp_path / "study"
    more = ["--trials", 8, "--pruner", pruner, "--sampler", "random", "--json"]
    value = found(tune(small_store, out, *more, "train.evaluations=3"))
    assert value["trials"]["pruned"] >= 1
    for trial in trials(out):
        lines = len((out / "trials" / f"{trial.number:04d}" / "metrics.jsonl").read_text().splitlines())
        assert lines == len(trial.intermediate_values) == (3 if trial.state == TrialState.COMPLETE else lines)
        assert 1 <= lines <= 3
    pruned = [trial for trial in trials(out) if trial.state == TrialState.PRUNED]
    assert min(len(trial.intermediate_values) for trial in pruned) < 3
    assert value["baseline"]["trial"] == 0, "what the others are compared with is trained to its end"


def test_several_objectives_give_the_pareto_set(small_store: Path, tmp_path: Path) -> None:
    out = tmp_path / "study"
    value = found(tune(small_store, out, "--trials", 5, "--objective", "gauc,parameters", "--json", "model.hidden=[8]"))
    points = [trial.values for trial in trials(out)]
    front = [
        (gauc, size)
        for gauc, size in points
        if not any((g >= gauc and s <= size) and (g > gauc or s < size) for g, s in points)
    ]
    assert {(entry["values"]["gauc"], entry["values"]["parameters"]) for entry in value["pareto"]} == set(front)
    assert value["best"]["value"] == max(gauc for gauc, _ in points)
    for entry in value["pareto"]:
        made = recipes.load(str(out / "pareto" / f"{entry['trial']:04d}.toml"))
        assert made.model.dim == entry["params"]["model.dim"]
    assert 'cx="' in (out / "report.html").read_text() and not (out / "pareto.png").exists()


def test_a_lower_log_loss_is_better(small_store: Path, tmp_path: Path) -> None:
    out = tmp_path / "study"
    value = found(tune(small_store, out, "--trials", 3, "--pruner", "none", "--objective", "logloss", "--json"))
    assert value["best"]["value"] == min(trial.value for trial in trials(out)) > 0
    assert recipes.load(str(out / "best.toml")).train.metric == "logloss"


def test_another_recipe_space_store_or_search_is_refused_in_the_same_folder(
    study: tuple[Path, dict[str, Any]], small_store: Path, tmp_path: Path
) -> None:
    out, _ = study
    before = (out / "journal.log").read_bytes()

    def refused(words: str, *more: str | Path, data: Path = small_store, space: list[str] = SPACE) -> None:
        result = tune(data, out, "--pruner", "none", *more, space=space)
        assert result.exit_code == 2 and "Traceback" not in result.output
        assert words in result.stderr and "choose another --out" in result.stderr
        assert (out / "journal.log").read_bytes() == before

    refused("model.windows = [10, 50], not [5]", "model.windows=[5]")
    refused("another space (model.dim over other values)", space=[*SPACE[:-1], "model.dim=8,32"])
    refused("another space (model.dim only there", space=SPACE[:-2])
    refused("another store", data=write_store(tmp_path / "other", seed=3))
    refused("--seed 0", "--seed", "7")
    refused("--sampler tpe", "--sampler", "random")
    refused("--objective gauc", "--objective", "gauc,memory")
    refused("go on with that --storage", "--storage", tmp_path / "other.log")
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "thesis.txt").write_text("precious")
    result = tune(small_store, taken)
    assert result.exit_code == 2 and "holds no study" in result.stderr and len(list(taken.iterdir())) == 1


BAD = {
    "sampler": (["--sampler", "tpee"], "did you mean 'tpe'"),
    "pruner": (["--pruner", "medium"], "did you mean 'median'"),
    "objective": (["--objective", "gaucc"], "there is gauc ="),
    "no quality": (["--objective", "memory"], "name a validation metric as well"),
    "timeout": (["--timeout", "soon"], "write seconds, or 90m"),
    "storage": (["--storage", "mysql://me:secret@host/db"], "mysql://me:***@host/db"),
    "set and varied": (["model.dim=4"], "model.dim is both set and in --space"),
    "space": (["--space", "model.dimm=4,8"], "did you mean 'model.dim'"),
    "recipe": (["model.dimm=4"], "did you mean 'model.dim'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence(case: str, small_store: Path, tmp_path: Path) -> None:
    more, words = BAD[case]
    result = tune(small_store, tmp_path / "study", *more)
    assert result.exit_code == 2, result.output
    assert words in result.stderr and "secret" not in result.stderr and "Traceback" not in result.output
    assert not (tmp_path / "study").exists(), "nothing half-written"


def test_mistakes_in_space_and_recipe_are_told_together(small_store: Path, tmp_path: Path) -> None:
    result = tune(small_store, tmp_path / "s", "--space", "model.dimm=4,8", "model.layrs=3", "--objective", "gaucc")
    assert result.exit_code == 2 and len(result.stderr.splitlines()) == 3


def test_a_recipe_brings_its_space_and_what_is_set_does_not_vary(small_store: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text('[tune]\nmodel.dim = [4, 8]\n"train.lr" = "1e-3:1e-2:log"\n')
    out = tmp_path / "study"
    command = ["tune", "-r", str(mine), "--data", str(small_store), "--out", str(out), "--trials", "2", *TINY]
    result = CliRunner().invoke(app, [*command, "model.dim=8"])
    assert result.exit_code == 0, result.output
    assert "left out: it is set" in result.stderr
    assert all(trial.params.keys() == {"train.lr"} for trial in trials(out))
    assert CliRunner().invoke(app, ["recipes", "check", str(mine)]).exit_code == 0
    mine.write_text('[tune]\nmodel.dim = [4, "wide"]\n')
    checked = CliRunner().invoke(app, ["recipes", "check", str(mine)])
    assert checked.exit_code == 2 and "model.dim: wide" in checked.stderr


def test_a_full_disk_is_one_sentence_and_loses_nothing(small_store: Path, tmp_path: Path) -> None:
    """Files may not grow beyond 64 KiB: what a full disk looks like to a program."""
    out, before = tmp_path / "study", resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    try:
        result = tune(small_store, out, "--trials", 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert result.exit_code == 1 and "Traceback" not in result.output
    assert "free space, then go on with the same command" in result.stderr
    assert found(tune(small_store, out, "--trials", 2, "--json"))["trials"]["complete"] == 2


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("45s", 45), ("1.5h", 5400), ("1h30m", 5400), ("2 d", 172_800)]
)
def test_times_are_read(text: str, seconds: float) -> None:
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "-3", "h", "2 weeks", "1h 3x"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="is no time"):
        parse_seconds(text)


def test_a_study_can_live_in_sqlite(small_store: Path, tmp_path: Path) -> None:
    out = tmp_path / "study"
    result = tune(small_store, out, "--trials", 3, "--storage", tmp_path / "trials.db", "--json")
    assert "no PNG charts: matplotlib is not installed" in result.stderr
    value = found(result)
    assert value["trials"]["complete"] + value["trials"]["pruned"] == 3
    assert (tmp_path / "trials.db").exists() and not (out / "journal.log").exists()
    assert len(opened(out).trials()) == 3


def test_a_worker_whose_command_is_gone_takes_no_trial(study: tuple[Path, dict[str, Any]], small_store: Path) -> None:
    """The command may be killed before its workers have begun."""
    out, _ = study
    before = outcome(out)
    job = Job(
        str(out), str(small_store), str(out / "journal.log"), len(before) + 1, None, datetime.now().isoformat(), 1,
        once=False, parent=2**22 + 1,
    )  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "lsm_cli.tuning.worker"], input=json.dumps(asdict(job)), text=True, check=True
    )
    assert done.returncode == 0 and outcome(out) == before
