"""Trials shared by workers and machines: taken once, given back when their process is gone, never one too many."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import TrialState

from lsm_cli import recipe as recipes
from lsm_cli.data.store import Store
from lsm_cli.errors import InputError, LsmError
from lsm_cli.tuning import results, space, storage, study
from lsm_cli.tuning.objective import perform
from lsm_cli.tuning.plan import OBJECTIVES, Plan
from lsm_cli.tuning.study import Process, Tuning, kind


def _plan(*objectives: str, sampler: str = "random", seed: int = 0) -> Plan:
    return Plan(
        recipes.load("stacked_tin"),
        space.parse({}, ["train.lr=1e-3:1e-2:log", "model.dim=8,16"]),
        tuple(OBJECTIVES[name] for name in objectives or ("gauc",)),
        sampler,
        "none",
        seed,
        "digest",
    )


def _tuning(folder: Path, total: int = 5, plan: Plan | None = None, url: str | None = None) -> Tuning:
    plan, url = plan or _plan(), url or str(folder / "journal.log")
    return Tuning(plan, folder, url, total)


@pytest.fixture(params=["journal", "sqlite"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "j.log") if request.param == "journal" else f"sqlite:///{tmp_path}/s.db"


def test_the_last_trial_is_taken_once_however_many_ask(tmp_path: Path, url: str) -> None:
    first = _tuning(tmp_path / "study", 6, url=url)
    others = [Tuning(first.plan, first.folder, url, 6) for _ in range(3)]
    taken: list[int] = []

    def loop(tuning: Tuning) -> None:
        while (trial := tuning.take()) is not None:
            taken.append(trial.number)
            trial.suggest_float("train.lr", 1e-3, 1e-2, log=True)
            tuning.complete(trial, [0.5])

    threads = [threading.Thread(target=loop, args=(tuning,)) for tuning in (first, *others)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    counted = first.counted()
    assert len(taken) == len(set(taken)) == len(counted) == 6
    assert all(trial.state == TrialState.COMPLETE for trial in counted)


def test_a_trial_of_a_dead_process_goes_back_with_its_options(tmp_path: Path, url: str) -> None:
    tuning = _tuning(tmp_path / "study", url=url)
    tuning.me = replace(tuning.me, pid=2**22 + 1, started="1")  # a process that does not exist
    lost = tuning.take()
    assert lost is not None
    lost.suggest_int("model.dim", 8, 16)
    lost.report(0.4, 1)
    tuning.me = Process.this()
    assert tuning.open() == 4
    assert tuning.recover() == [lost.number] and tuning.recover() == []
    assert tuning.open() == 5 and "goes on from its last checkpoint" in tuning.notes[0]
    again = tuning.take()
    assert again is not None and again.number == lost.number
    now = tuning.trials()[lost.number]
    assert now.params == lost.params and now.intermediate_values == {1: 0.4}
    assert tuning.recover() == [], "its process lives"
    tuning.give_back(again._trial_id)
    taken = tuning.study.ask()  # taken by somebody who has not signed yet
    assert taken.number == lost.number and tuning.recover() == []


def test_a_process_id_that_was_given_to_another_program_is_not_ours() -> None:
    me = Process.this()
    assert me.alive() and not replace(me, started="12345").alive() and not replace(me, pid=2**22 + 1).alive()


def test_another_machine_is_gone_when_it_gives_no_sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tuning = _tuning(tmp_path / "study")
    tuning.me = Process("elsewhere", 1, "1")
    lost = tuning.take()
    assert lost is not None
    tuning.me = Process.this()
    clock = [1000.0]
    monkeypatch.setattr("lsm_cli.tuning.study.time.monotonic", lambda: clock[0])
    assert tuning.recover() == []
    clock[0] += study.SILENT - 1
    tuning.study._storage.set_trial_user_attr(lost._trial_id, "beat", 1)
    assert tuning.recover() == []
    clock[0] += study.SILENT - 1
    assert tuning.recover() == [], "it gave a sign in between"
    clock[0] += 2
    assert tuning.recover() == [lost.number]


def test_signs_of_life_are_given_while_a_trial_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "BEAT", 0.01)
    tuning = _tuning(tmp_path / "study")
    trial = tuning.take()
    assert trial is not None
    with tuning.beating(trial):
        while tuning.trials()[trial.number].user_attrs.get("beat", 0) < 2:
            pass
    tuning.complete(trial, [0.5])
    assert threading.active_count() == 1 or not any(t.name == "beat" for t in threading.enumerate())


def test_a_trial_whose_process_dies_again_and_again_has_failed(tmp_path: Path) -> None:
    tuning = _tuning(tmp_path / "study", 2)
    for attempt in range(study.ATTEMPTS):
        tuning.me = Process(Process.this().host, 2**22 + 1, "1")
        trial = tuning.take()
        assert trial is not None and trial.number == 0, attempt
        tuning.me = Process.this()
        assert tuning.recover() == [0]
    lost = tuning.trials()[0]
    assert kind(lost) == "failed" and "ended 3 times" in lost.user_attrs["reason"]
    other = tuning.take()
    assert other is not None and other.number == 1 and tuning.take() is None


def test_a_study_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/s.db"
    theirs = optuna.create_study(storage=url, study_name="study", direction="maximize")
    theirs.add_trial(optuna.create_trial(value=1.0))
    with pytest.raises(InputError, match="is not of lsm; choose another --out"):
        _tuning(tmp_path / "study", url=url)
    assert len(theirs.trials) == 1 and theirs.user_attrs == {}


def test_a_study_goes_on_when_recipes_have_learnt_new_options(tmp_path: Path) -> None:
    plan = _tuning(tmp_path / "study", url=f"sqlite:///{tmp_path}/s.db").plan
    begun = plan.to_json()
    del begun["recipe"]["engine"]["prefetch"]
    plan.check(begun, "here")
    begun["recipe"]["engine"]["prefetch"] = plan.recipe.engine.prefetch + 1
    with pytest.raises(InputError, match="another recipe"):
        plan.check(begun, "here")


def test_two_machines_with_different_plans_do_not_share_a_study(tmp_path: Path) -> None:
    url = str(tmp_path / "shared.log")
    _tuning(tmp_path / "one" / "study", url=url)
    with pytest.raises(InputError, match=r"another recipe \(model.layers = 2, not 3\)"):
        plan = replace(_plan(), recipe=recipes.load("stacked_tin", ["model.layers=3"]))
        _tuning(tmp_path / "two" / "study", plan=plan, url=url)
    assert _tuning(tmp_path / "three" / "study", url=url).open() == 5


@pytest.mark.parametrize("torn", ['{"op_code":4', '{"op_code":4,"worker_id":"a"}', "\x00" * 5000])
def test_a_torn_last_line_of_the_journal_is_cut_off(tmp_path: Path, torn: str) -> None:
    tuning = _tuning(tmp_path / "study")
    trial = tuning.take()
    assert trial is not None
    tuning.complete(trial, [0.25])
    journal = tmp_path / "study" / "journal.log"
    whole = journal.read_bytes()
    with open(journal, "a") as file:
        file.write(torn)
    reader = _tuning(tmp_path / "study")
    assert reader.trials()[0].value == 0.25
    other = reader.take()
    assert other is not None and other.number == 1
    assert journal.read_bytes().startswith(whole)
    for line in journal.read_text().splitlines():
        assert {"op_code", "worker_id"} < json.loads(line).keys(), "whole lines"
    assert len(tuning.trials()) == 2, "who was there before reads on"


@pytest.mark.parametrize("sampler", ["tpe", "random", "nsga2"])
def test_draws_depend_on_seed_and_number_alone(tmp_path: Path, sampler: str) -> None:
    """One process or one for each trial: the same trials, and never one twice."""

    def drawn(folder: Path, seed: int, anew: bool) -> list[dict[str, object]]:
        plan = _plan(sampler=sampler, seed=seed)
        tuning = _tuning(folder, 15, plan)
        while (trial := tuning.take()) is not None:
            lr = trial.suggest_float("train.lr", 1e-3, 1e-2, log=True)
            trial.suggest_categorical("model.dim", [8, 16])
            tuning.complete(trial, [-((lr - 0.004) ** 2)])
            if anew:
                tuning = Tuning(plan, folder, tuning.url, 15)
        return [trial.params for trial in tuning.trials()]

    one, again, other = drawn(tmp_path / "a", 0, False), drawn(tmp_path / "b", 0, True), drawn(tmp_path / "c", 1, False)
    assert one == again != other
    assert len({params["train.lr"] for params in one}) == 15


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=25),
    st.sampled_from([("gauc", "memory"), ("logloss", "samples_per_second"), ("gauc", "samples_per_second")]),
)
def test_the_pareto_set_is_what_nothing_beats(points: list[tuple[int, int]], names: tuple[str, str]) -> None:
    plan = _plan(*names)
    frozen = []
    for number, values in enumerate(points):
        trial = optuna.create_trial(values=[float(value) for value in values])
        trial.number = number
        frozen.append(trial)
    signs = [1 if objective.larger else -1 for objective in plan.objectives]
    front = {trial.number for trial in results.pareto(plan, frozen)}
    for mine, (a, b) in enumerate(points):
        better = [signs[0] * c >= signs[0] * a and signs[1] * d >= signs[1] * b and (a, b) != (c, d) for c, d in points]
        assert (mine in front) == (not any(better))


def test_hope_is_lost_only_for_failures_of_this_command(tmp_path: Path) -> None:
    tuning = _tuning(tmp_path / "study", 20)
    for _ in range(study.SAME_FAILURES):
        trial = tuning.take()
        assert trial is not None
        tuning.fail(trial, "out of memory (4 GiB)", "out of memory")
    with pytest.raises(LsmError, match="5 trials in a row failed for the same reason: out of memory"):
        tuning.check_hope()
    _tuning(tmp_path / "study", 20).check_hope()
    trial = tuning.take()
    assert trial is not None
    tuning.fail(trial, "the loss became nan", "the loss became nan")
    tuning.check_hope()


def test_storages_are_told_apart_and_passwords_hidden(tmp_path: Path) -> None:
    assert storage.resolve(None, tmp_path) == str(tmp_path / "journal.log")
    assert storage.resolve("a.log", tmp_path) == "a.log"
    assert storage.resolve("b.db", tmp_path) == "sqlite:///b.db"
    assert storage.hidden("postgresql://me:secret@host:5432/db") == "postgresql://me:***@host:5432/db"
    assert storage.hidden("postgresql://me@host/db") == "postgresql://me@host/db"
    with pytest.raises(InputError, match="give a journal file"):
        storage.resolve("redis://host", tmp_path)
    (tmp_path / "no.db").write_text("not a database, but long enough to be taken for one" * 50)
    with pytest.raises(LsmError, match="cannot be opened"):
        storage.connect(f"sqlite:///{tmp_path}/no.db")


def test_a_storage_that_goes_away_is_one_sentence(tmp_path: Path) -> None:
    tuning = _tuning(tmp_path / "study", url=f"sqlite:///{tmp_path}/s.db")
    (tmp_path / "s.db").write_bytes(b"")
    words = r"could not be read or written \(no such table.*go on with the same command"
    with pytest.raises(LsmError, match=words), storage.reached(tuning.url):
        tuning.take()
    with pytest.raises(ZeroDivisionError), storage.reached(tuning.url):
        print(1 / 0)


def test_a_trial_that_another_machine_has_rescued_is_left_to_it(tmp_path: Path, small_store: Path) -> None:
    """This process slept so long that its trial was given to somebody else."""
    tuning = _tuning(tmp_path / "study")
    trial = tuning.take()
    assert trial is not None
    assert tuning.owns(trial._trial_id)
    tuning.study._storage.set_trial_user_attr(trial._trial_id, "owner", {"host": "elsewhere", "pid": 1, "started": "1"})

    def stop() -> bool:
        raise KeyboardInterrupt

    with pytest.raises((KeyboardInterrupt, InputError)):
        perform(tuning, trial, Store.open(small_store), stop)
    assert tuning.trials()[trial.number].state == TrialState.RUNNING, "not given back by us"
    tuning.complete(trial, [0.7])
    perform(tuning, trial, Store.open(small_store), lambda: False)
    assert tuning.trials()[trial.number].values == [0.7] and "another process" in tuning.notes[-1]
