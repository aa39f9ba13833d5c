"""One recipe on one store, measured: speed, parts, memory, distance from what the device can do."""

from __future__ import annotations

from typing import Any

from lsm_cli.engine import tiers
from lsm_cli.engine.profiling import memory, roofline
from lsm_cli.engine.profiling.timing import time_steps
from lsm_cli.engine.profiling.work import Work
from lsm_cli.report.console import Progress

WARMUP = 3


def measure(work: Work, steps: int, before: int, progress: Progress | None = None, roof: bool = True) -> dict[str, Any]:
    """Time some steps, then watch the memory of the heaviest and count what a typical one moves.

    Args:
        steps: timed, after `WARMUP` others.
        before: bytes allocated before the work existed, see `memory.baseline`.
        roof: also measure the device's peaks.

    Returns:
        what `lsm profile --json` prints: see `Timing.summary`, `memory.watch_step`, `roofline.measure`, and
        `tiers.record` where tables are larger than the device.
    """
    timing = time_steps(work, steps, WARMUP, progress)
    found: dict[str, Any] = {"phase": work.phase, "split": work.split, **timing.summary()}
    if work.model.cached:
        found["tiers"] = tiers.record(work.model, work.phase == "train")
    found["memory"] = memory.watch_step(work, before)
    if roof:
        middle = timing.typical[len(timing.typical) // 2]
        group = work.some(WARMUP + steps)[WARMUP + int(middle)]
        found["roofline"] = roofline.measure(work, float(timing.seconds[middle]), group)
    return found
