"""Several workers on one study: processes that are started, watched and replaced."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path

import torch

from lsm_cli.data.store import Store
from lsm_cli.errors import InputError, LsmError
from lsm_cli.tuning.study import Tuning
from lsm_cli.tuning.worker import Job, work

POLL = 0.3  # seconds between looks at the workers
PATIENCE = 60.0  # seconds in which workers that were asked to stop may save their state
EARLY_DEATHS = 3  # workers that may die one after the other without having taken a trial


def supervise(tuning: Tuning, job: Job, workers: int, stop: Callable[[], bool], tick: Callable[[], None]) -> None:
    """Keep up to `workers` processes busy until no trial is left, or until asked to stop.

    Args:
        tick: called often, to show how things stand.

    Raises:
        LsmError: a worker ended with an error, or workers die before they begin.
    """
    with ExitStack() as stack:
        team = _Team(tuning, job, workers)
        stack.callback(team.end)
        while not stop():
            tuning.recover()
            team.look()
            tuning.check_hope()
            open_trials = tuning.open()
            for _ in range(min(workers - len(team.members), open_trials - team.idle())):
                team.start()
            if not team.members and not open_trials and not tuning.running():
                return
            tick()
            time.sleep(POLL)


def alone(tuning: Tuning, store: Store, stop: Callable[[], bool], tick: Callable[[], None]) -> None:
    """The one worker, in this process; the same promises as `supervise`."""
    while not stop():
        tuning.recover()
        if work(tuning, store, stop, once=True):
            return
        if not tuning.open():
            if not tuning.running():
                return
            time.sleep(POLL)  # other commands still run the last ones
        tick()


class _Team:
    def __init__(self, tuning: Tuning, job: Job, workers: int) -> None:
        self.tuning, self.job = tuning, job
        self.members: dict[int, subprocess.Popen[str]] = {}  # place -> process
        self.places = range(workers)
        self.early = 0
        (tuning.folder / "workers").mkdir(exist_ok=True)

    def start(self) -> None:
        place = next(place for place in self.places if place not in self.members)
        with open(self._log(place), "a") as log:
            member = subprocess.Popen(
                [sys.executable, "-m", "lsm_cli.tuning.worker"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=_environment(place),
                start_new_session=True,  # Ctrl-C reaches them through us, once
            )  # fmt: skip
        assert member.stdin is not None
        member.stdin.write(json.dumps(asdict(self.job)))
        member.stdin.close()
        self.members[place] = member

    def _log(self, place: int) -> Path:
        return self.tuning.folder / "workers" / f"{place}.log"

    def idle(self) -> int:
        """Workers that have no trial yet."""
        busy = {(trial.user_attrs.get("owner") or {}).get("pid") for trial in self.tuning.running()}
        return sum(member.pid not in busy for member in self.members.values())

    def look(self) -> None:
        """Take note of the workers that have ended."""
        for place, member in list(self.members.items()):
            if member.poll() is None:
                continue
            assert member.stdout is not None
            said = member.stdout.read()
            member.stdout.close()
            del self.members[place]
            recovered = self.tuning.recover()
            if member.returncode == 0:
                self.early = 0
            elif said.strip():
                told = json.loads(said.strip().splitlines()[-1])
                raise (InputError if told["exit_code"] == 2 else LsmError)(told["error"])
            elif member.returncode > 0:
                log = self._log(place)
                lines = log.read_text().strip().splitlines() or ["no message"]
                raise LsmError(f"a worker ended with a fault of lsm or of the machine: {lines[-1]} (the rest in {log})")
            else:
                self.early = 0 if recovered else self.early + 1
                if self.early >= EARLY_DEATHS:
                    raise LsmError(
                        f"{self.early} workers were killed (signal {-member.returncode}) before they began a trial; is "
                        "there enough memory for so many?"
                    )

    def end(self) -> None:
        """Ask all to save their state and end; then make sure that they have."""
        for member in self.members.values():
            member.terminate()
        until = time.monotonic() + PATIENCE
        for member in self.members.values():
            try:
                member.wait(max(0.1, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                member.kill()
                member.wait()
        self.tuning.recover()


def _environment(place: int) -> dict[str, str]:
    """Each worker sees a GPU of its own, as far as there are several."""
    environment = os.environ | {"OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE")}
    count = torch.cuda.device_count()
    if count > 1:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))
        environment["CUDA_VISIBLE_DEVICES"] = visible.split(",")[place % count]
    return environment


def split(job: Job, workers: int, threads: int) -> Job:
    """The job of one of several workers: the CPU is shared out unless the recipe says how many threads."""
    return job if threads else replace(job, threads=max(1, (os.cpu_count() or 1) // workers))
