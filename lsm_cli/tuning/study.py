"""A study as its workers share it: who runs which trial, what was given up, and when there is nothing left to do.

A trial keeps its number for life. A worker that takes one signs it (host, process, start of the process) and, while
it trains, counts up a beat; a trial whose process is gone goes back into the queue with its options, and its run goes
on from its last checkpoint. So a killed study neither loses nor repeats a finished trial, and with one worker and a
fixed seed it ends as if it had never been killed.
"""

from __future__ import annotations

import fcntl
import os
import platform
import threading
import time
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import DuplicatedStudyError, UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, Trial, TrialState

from lsm_cli.errors import InputError, LsmError
from lsm_cli.tuning import sampling, storage
from lsm_cli.tuning.plan import Plan

BEAT = 20.0  # seconds between signs of life
SILENT = 200.0  # seconds without one before a process on another machine counts as gone
UNSIGNED = 30.0  # seconds that a trial may be without a signature
ATTEMPTS = 3  # times that the process of one trial may end before the trial counts as failed
SAME_FAILURES, SAME_REFUSALS = 5, 20  # in a row, before the study ends


@dataclass(frozen=True)
class Process:
    """A process that cannot be taken for another one that has its id today."""

    host: str
    pid: int
    started: str

    @classmethod
    def this(cls) -> Process:
        return cls(_host(), os.getpid(), _started(os.getpid()))

    def alive(self) -> bool:
        """Whether it still runs; only for processes of this host."""
        return _started(self.pid) == self.started


def _host() -> str:
    """Name of the machine; containers that share a name differ in their process numbering."""
    try:
        return f"{platform.node()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return platform.node()


def _started(pid: int) -> str:
    """When a process began, in the kernel's ticks; "" where it has ended, "?" where the system does not tell."""
    if not Path("/proc/self/stat").exists():
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return ""
        except PermissionError:
            pass
        return "?"
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def kind(trial: FrozenTrial) -> str:
    """complete, pruned, infeasible, failed, surplus, running or waiting."""
    if trial.state == TrialState.PRUNED and "infeasible" in trial.user_attrs:
        return "infeasible"
    if trial.state == TrialState.FAIL:
        return "surplus" if "surplus" in trial.user_attrs else "failed"
    return trial.state.name.lower()


class Tuning:
    """One study and its folder.

    Args:
        plan: what it is about.
        folder: of the study.
        url: see `storage.resolve`.
        total: trials that the study shall have; combinations that recipes refuse do not count.
    """

    def __init__(self, plan: Plan, folder: Path, url: str, total: int) -> None:
        self.plan, self.folder, self.url, self.total = plan, folder, url, total
        self.me = Process.this()
        self.begun = datetime.now()
        self.notes: list[str] = []  # what happened that the user should know
        self._seen: dict[int, tuple[Any, float]] = {}
        shown = storage.hidden(url)
        if url == storage.resolve(None, folder):
            plan.write(folder, shown)
            self._storage = storage.connect(url)
        else:  # a storage elsewhere that cannot be reached leaves no folder behind
            plan.matches(folder, shown)
            self._storage = storage.connect(url)
            plan.write(folder, shown)
        with self._alone():
            self.study = self._opened(self._storage)

    def _opened(self, held: BaseStorage) -> optuna.Study:
        name = self.folder.resolve().name
        options: dict[str, Any] = {"sampler": sampling.Numbered(self.plan.sampler, self.plan.seed)}
        options["pruner"] = sampling.pruner(self.plan)
        directions: list[Any] = [objective.direction for objective in self.plan.objectives]
        try:
            study = optuna.create_study(storage=held, study_name=name, directions=directions, **options)
        except DuplicatedStudyError:
            study = optuna.load_study(storage=held, study_name=name, **options)
            for _ in range(50):  # whoever makes it writes its plan at once
                if "plan" in study.user_attrs:
                    break
                time.sleep(0.1)
        where = f"{self.folder}: {storage.hidden(self.url)}"
        if "plan" in study.user_attrs:
            self.plan.check(study.user_attrs["plan"], where)
            return study
        if study.get_trials(deepcopy=False) or [one.name.lower() for one in study.directions] != directions:
            raise InputError(f"{where}: holds a study called {name!r} that is not of lsm; choose another --out")
        with warnings.catch_warnings(action="ignore"):
            study.set_metric_names([objective.name for objective in self.plan.objectives])
        at = self.plan.space.of(self.plan.recipe)
        if at is not None:
            options_at = [option for option in self.plan.space.options if option.key in at]
            stored = {option.key: option.stored(at[option.key]) for option in options_at}
            study.enqueue_trial(stored, user_attrs={"origin": "the recipe as it is"})
        study.set_user_attr("plan", self.plan.to_json())
        return study

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One process of this machine at a time."""
        with open(self.folder / ".lock", "a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def trials(self) -> list[FrozenTrial]:
        """All trials, by number; not to be changed."""
        return self.study.get_trials(deepcopy=False)

    def counted(self) -> list[FrozenTrial]:
        """Trials that count towards the total."""
        return [trial for trial in self.trials() if kind(trial) not in ("infeasible", "surplus")]

    def open(self) -> int:
        """Trials that nobody has taken yet."""
        counted = self.counted()[: self.total]
        waiting = sum(trial.state == TrialState.WAITING for trial in counted)
        return waiting + self.total - len(counted)

    def running(self) -> list[FrozenTrial]:
        return [trial for trial in self.trials() if trial.state == TrialState.RUNNING]

    # taking and giving back

    def take(self) -> Trial | None:
        """The next trial, signed; None when there is none to take."""
        counted = self.counted()
        waiting = [place for place, trial in enumerate(counted) if trial.state == TrialState.WAITING]
        if (waiting[0] if waiting else len(counted)) >= self.total:
            return None
        trial = self.study.ask()
        trial.set_user_attr("owner", vars(self.me))
        if sum(other.number < trial.number for other in self.counted()) >= self.total:
            trial.set_user_attr("surplus", True)  # another worker took the last one at the same moment
            self.study.tell(trial, state=TrialState.FAIL)
            return None
        return trial

    @contextmanager
    def beating(self, trial: Trial) -> Iterator[None]:
        """Signs of life while a trial is trained."""
        ended = threading.Event()

        def beat() -> None:
            count = 0
            while not ended.wait(BEAT):
                count += 1
                try:
                    self._storage.set_trial_user_attr(trial._trial_id, "beat", count)
                except Exception:  # a storage that is away for a while: the trial itself will say so
                    continue

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def owns(self, trial_id: int) -> bool:
        """Whether a trial still bears this process's signature."""
        return self._storage.get_trial(trial_id).user_attrs.get("owner") == vars(self.me)

    def give_back(self, trial_id: int) -> None:
        """Queue a trial again that was not finished; unsigned, so that its next owner is not taken for its last."""
        with suppress(UpdateFinishedTrialError):
            self._storage.set_trial_user_attr(trial_id, "owner", None)
            self._storage.set_trial_state_values(trial_id, TrialState.WAITING)

    def recover(self) -> list[int]:
        """Queue the trials again whose process is gone; their numbers."""
        running = self.running()
        self._seen = {trial.number: self._seen[trial.number] for trial in running if trial.number in self._seen}
        gone = [trial for trial in running if self._is_gone(trial)]
        if not gone:
            return []
        with self._alone():
            return [trial.number for trial in gone if self._release(trial)]

    def _is_gone(self, trial: FrozenTrial) -> bool:
        owner = trial.user_attrs.get("owner")
        if owner is not None and owner["host"] == self.me.host:
            process = Process(**owner)
            return process != self.me and not process.alive()
        now, sign = time.monotonic(), (owner, trial.user_attrs.get("beat"))
        if self._seen.get(trial.number, (None, 0.0))[0] != sign:
            self._seen[trial.number] = (sign, now)
        return now - self._seen[trial.number][1] > (UNSIGNED if owner is None else SILENT)

    def _release(self, trial: FrozenTrial) -> bool:
        """Queue one trial again, unless somebody else has just done so."""
        id_, held = trial._trial_id, self._storage
        try:
            now = held.get_trial(id_)
            if now.state != TrialState.RUNNING or now.user_attrs.get("owner") != trial.user_attrs.get("owner"):
                return False
            claim = str(uuid.uuid4())
            held.set_trial_user_attr(id_, "rescue", claim)
            owner = now.user_attrs.get("owner")
            if owner is None or owner["host"] != self.me.host:
                time.sleep(0.5)  # another machine may have seen the same
            now = held.get_trial(id_)
            if now.state != TrialState.RUNNING or now.user_attrs.get("rescue") != claim:
                return False
            ended = int(now.user_attrs.get("ended", 0)) + 1
            held.set_trial_user_attr(id_, "ended", ended)
            if ended >= ATTEMPTS:
                self._record(id_, f"its process ended {ended} times (killed, perhaps for its memory)")
                held.set_trial_state_values(id_, TrialState.FAIL)
            else:
                self.give_back(id_)
        except UpdateFinishedTrialError:
            return False
        self.notes.append(
            f"trial {trial.number}: its process is gone; "
            + ("recorded as failed" if ended >= ATTEMPTS else "it goes on from its last checkpoint")
        )
        return True

    # outcomes

    def _record(self, trial_id: int, reason: str) -> None:
        self._storage.set_trial_user_attr(trial_id, "reason", reason)

    def complete(self, trial: Trial, values: list[float]) -> None:
        self._tell(trial, TrialState.COMPLETE, values)

    def prune(self, trial: Trial) -> None:
        self._tell(trial, TrialState.PRUNED)

    def refuse(self, trial: Trial, reason: str) -> None:
        """Record a combination that recipes or this store refuse."""
        trial.set_user_attr("infeasible", reason)
        self._tell(trial, TrialState.PRUNED)

    def fail(self, trial: Trial, reason: str, cause: str) -> None:
        """Record a failure; `cause` is the same for failures of one kind."""
        self._record(trial._trial_id, reason)
        trial.set_user_attr("cause", cause)
        self._tell(trial, TrialState.FAIL)

    def _tell(self, trial: Trial, state: TrialState, values: list[float] | None = None) -> None:
        self.study.tell(trial, values, state, skip_if_finished=True)

    def check_hope(self) -> None:
        """Raise LsmError when trial after trial of this command ends for one and the same cause."""
        ended = [trial for trial in self.trials() if trial.datetime_complete and trial.datetime_complete >= self.begun]
        ended = [trial for trial in ended if kind(trial) != "surplus"]
        ended.sort(key=lambda trial: (trial.datetime_complete, trial.number))
        for name, shown, most in (("cause", "reason", SAME_FAILURES), ("infeasible", "infeasible", SAME_REFUSALS)):
            causes = {trial.user_attrs.get(name) for trial in ended[-most:]}
            if len(ended) >= most and len(causes) == 1 and None not in causes:
                verb = "failed" if name == "cause" else "was refused"
                raise LsmError(
                    f"{self.folder}: {most} trials in a row {verb} for the same reason: "
                    f"{ended[-1].user_attrs[shown]}; change the space or the recipe, in another --out"
                )
