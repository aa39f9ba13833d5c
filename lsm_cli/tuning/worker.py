"""The loop of one worker: take a trial, train it, until there is none to take; and the process that runs it.

`python -m lsm_cli.tuning.worker` reads one JSON object from stdin (see `Job`) and needs nothing but the study's folder,
its storage and the store. It writes what ended it, if that was an error, as one JSON object on stdout.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import torch

from lsm_cli.data.store import Store
from lsm_cli.engine.run import NotWrittenError
from lsm_cli.engine.train import InterruptedRunError
from lsm_cli.errors import LsmError
from lsm_cli.tuning import storage
from lsm_cli.tuning.objective import perform
from lsm_cli.tuning.plan import Plan
from lsm_cli.tuning.study import Tuning


@dataclass(frozen=True)
class Job:
    """What a worker process is told."""

    folder: str
    data: str
    url: str
    total: int
    deadline: float | None  # seconds of the system's clock
    begun: str
    threads: int  # 0 = as torch decides
    once: bool  # end after one trial, so that the next has a process of its own
    parent: int  # process that watches; when it is gone, the worker saves its state and ends


def work(tuning: Tuning, store: Store, stop: Callable[[], bool], once: bool = False) -> bool:
    """Run trials until none is left, or until asked to stop.

    Returns:
        whether it was stopped.

    Raises:
        LsmError: the same failure came again and again, or the disk is full.
    """
    while not stop():
        tuning.check_hope()
        trial = tuning.take()
        if trial is None:
            return False
        try:
            perform(tuning, trial, store, stop)
        except InterruptedRunError:
            return True
        except NotWrittenError as error:
            text = str(error).partition("; free")[0]
            raise LsmError(f"{text}; free space, then go on with the same command") from None
        except OSError as error:
            raise LsmError(
                f"{tuning.folder}: trial {trial.number} could not go on ({error.strerror or error}); when that is "
                "mended, go on with the same command"
            ) from None
        if once:
            return False
    return True


def main() -> None:
    """One worker process; it ends with its parent."""
    job = Job(**json.loads(sys.stdin.read()))
    asked: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda got, frame: asked.append(got))
    if job.threads:
        torch.set_num_threads(job.threads)

    def stop() -> bool:
        late = job.deadline is not None and time.time() > job.deadline
        return bool(asked) or late or os.getppid() != job.parent

    try:
        folder = Path(job.folder)
        tuning = Tuning(Plan.load(folder), folder, job.url, job.total)
        tuning.begun = datetime.fromisoformat(job.begun)
        with storage.reached(job.url):
            work(tuning, Store.open(Path(job.data)), stop, once=job.once)
    except LsmError as error:
        print(json.dumps({"error": str(error), "exit_code": error.exit_code}), flush=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
