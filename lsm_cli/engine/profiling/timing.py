"""How long a step takes, and which of its parts takes it."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch

from lsm_cli.engine import tiers, trace
from lsm_cli.engine.profiling.work import Work
from lsm_cli.report.console import Progress, Silent


@dataclass
class Timing:
    """Steps that were timed.

    Attributes:
        parts: seconds by part, for each step.
        samples, behaviours: int64 [steps].
    """

    parts: list[dict[str, float]]
    samples: np.ndarray
    behaviours: np.ndarray

    @property
    def seconds(self) -> np.ndarray:
        """float64 [steps]."""
        return np.array([sum(step.values()) for step in self.parts])

    @property
    def typical(self) -> np.ndarray:
        """The middle half of the steps by time: their means are as robust as medians, and those of the parts still add
        up to that of the whole."""
        quarter = len(self.parts) // 4
        return np.sort(np.argsort(self.seconds, kind="stable")[quarter : len(self.parts) - quarter])

    def summary(self) -> dict[str, object]:
        """Rates of the typical steps, milliseconds of a step by part, and the spread over all steps."""
        typical, seconds = self.typical, self.seconds
        spent = float(seconds[typical].sum())
        names = [name for name in trace.MEANING if any(name in step for step in self.parts)]
        means = {name: sum(self.parts[k].get(name, 0.0) for k in typical) / len(typical) * 1e3 for name in names}
        low, middle, high = np.percentile(seconds * 1e3, (10, 50, 90))
        return {
            "samples_per_second": float(self.samples[typical].sum()) / spent,
            "behaviours_per_second": float(self.behaviours[typical].sum()) / spent,
            "step_ms": {"total": spent / len(typical) * 1e3, **means},
            "step_ms_spread": {"p10": float(low), "median": float(middle), "p90": float(high)},
            "steps": len(seconds),
            "samples_per_step": float(self.samples[typical].mean()),
            "behaviours_per_step": float(self.behaviours[typical].mean()),
        }


def time_steps(work: Work, steps: int, warmup: int, progress: Progress | None = None) -> Timing:
    """Time `steps` steps after `warmup` others that bring memory and code in. Nothing waits for a GPU in between."""
    progress = progress or Silent()
    groups = work.some(warmup + steps)
    clock = trace.Clock(work.setup.compute.device)
    bounds: list[int] = []
    with trace.following(clock, work.model), closing(work.steps(groups)) as running:
        for number in range(warmup + steps):
            if number == warmup:
                clock.marks.clear()
                tiers.restart(work.model)
            if number >= warmup:
                bounds.append(len(clock.marks))
            next(running)
            progress.advance()
        bounds.append(len(clock.marks))
        parts = clock.spent(bounds)
    groups = groups[warmup:]
    return Timing(
        parts, np.array([len(group) for group in groups]), np.array([work.behaviours(group) for group in groups])
    )


def plainly(work: Work, groups: list[np.ndarray]) -> tuple[float, float]:
    """Seconds for these steps by the clock and of the process's CPU, with nothing measured inside."""
    device = work.setup.compute.device
    with closing(work.steps(groups)) as running:
        _wait(device)
        started, worked = time.perf_counter(), time.process_time()
        for _ in running:
            pass
        _wait(device)
        return time.perf_counter() - started, time.process_time() - worked


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
