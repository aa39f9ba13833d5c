"""Files for other tools: a Chrome trace of some steps, and PyTorch's memory snapshot of a GPU."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path

import torch

from lsm_cli.engine import trace
from lsm_cli.engine.profiling.work import Work
from lsm_cli.errors import LsmError

STEPS = 2


def chrome_trace(work: Work, file: Path) -> None:
    """Write some steps, operation by operation and part by part, for chrome://tracing or ui.perfetto.dev."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # its progress is nobody's
    device = work.setup.compute.device
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    clock = trace.Clock(device, annotate=True)
    with (
        torch.profiler.profile(activities=activities) as profiler,
        trace.following(clock, work.model),
        closing(work.steps(work.some(STEPS))) as running,
    ):
        for _ in running:
            pass
    try:
        profiler.export_chrome_trace(str(file))
    except (OSError, RuntimeError) as error:
        raise LsmError(f"{file}: could not be written ({error})") from None


def memory_snapshot(work: Work, file: Path) -> bool:
    """Write PyTorch's record of every allocation of some steps, for pytorch.org/memory_viz; False on the CPU."""
    if work.setup.compute.device.type != "cuda":
        return False
    torch.cuda.memory._record_memory_history()
    try:
        for _ in work.steps(work.some(STEPS)):
            pass
        torch.cuda.memory._dump_snapshot(str(file))
    finally:
        torch.cuda.memory._record_memory_history(enabled=None)
    return True
