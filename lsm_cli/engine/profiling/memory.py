"""What a step holds in memory, by category and over the course of the step.

On a GPU the figures are those of PyTorch's allocator. On the CPU they are glibc's own: `mallinfo2` says what is in use
and what the heap has taken from the system, for tensors and numpy arrays alike, so that `allocated`, `reserved` and
`fragmentation` mean the same on both. Where there is no glibc the process's resident memory stands for both.

One step is watched after every operation; workspace inside an operation is not seen on the CPU.
"""

from __future__ import annotations

import ctypes
import gc
import resource
import sys
from contextlib import closing
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lsm_cli.engine import trace
from lsm_cli.engine.profiling.work import Work

POINTS = 400  # of a timeline, at most


class _Mallinfo(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keep",
        )
    ]


@cache
def _mallinfo() -> Any:
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallinfo2"):  # glibc before 2.33, or another C library
        return None
    libc.mallinfo2.restype = _Mallinfo
    return libc.mallinfo2


def in_use(device: torch.device) -> tuple[int, int]:
    """Bytes (allocated, reserved)."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)
    if (info := _mallinfo()) is not None:
        found = info()
        return found.uordblks + found.hblkhd, found.arena + found.hblkhd
    return (resident(),) * 2


def resident() -> int:
    """Bytes of the process in physical memory now."""
    if sys.platform.startswith("linux"):
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def baseline(device: torch.device) -> int:
    """Bytes allocated by a process that has all code loaded and no model yet.

    The first optimiser of a process makes torch load its compiler, some 30 MB of code that is no part of any model.
    """
    weight = torch.zeros(1, requires_grad=True)
    optimiser = torch.optim.AdamW([weight])
    weight.sum().backward()
    optimiser.step()
    gc.collect()
    return in_use(device)[0]


class Watch(TorchDispatchMode):
    """Looks at the memory after every operation of a step, and whenever another part begins."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device, self.part = device, trace.OTHER
        self.seen: list[tuple[str, int, int]] = []  # part, allocated, reserved

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        self.look()
        return found

    def turn(self, part: str) -> None:
        self.look()
        self.part = part

    def look(self) -> None:
        self.seen.append((self.part, *in_use(self.device)))


def watch_step(work: Work, before: int, group: np.ndarray | None = None, warmup: int = 2) -> dict[str, Any]:
    """Memory of the epoch's heaviest step.

    Args:
        before: bytes allocated before the work existed, see `baseline`.
        group: the samples of another step.

    Returns:
        peak_allocated, peak_reserved (bytes), fragmentation (share of what is reserved at the peak and not allocated),
        categories: {name: bytes at the peak}, parts: {part: peak bytes}, resting (bytes between steps),
        timeline: [[operation, bytes, part]].
    """
    device, group = work.setup.compute.device, work.heaviest() if group is None else group
    for _ in work.steps([group] * warmup):
        pass
    resting = in_use(device)[0]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    watch = Watch(device)
    clock = trace.Clock(device, watch=watch.turn)
    with trace.following(clock, work.model), watch, closing(work.steps([group])) as running:
        watch.look()
        next(running)
    parts = [part for part, _, _ in watch.seen]
    allocated, reserved = np.array([seen[1:] for seen in watch.seen], np.int64).T
    allocated = allocated - before
    at = int(allocated.argmax())
    peak, held = int(allocated[at]), int(reserved[at])
    if device.type == "cuda":  # knows of workspace inside operations too
        peak, held = torch.cuda.max_memory_allocated(device) - before, torch.cuda.max_memory_reserved(device)
    forward = _before(parts, allocated, trace.BACKWARD)
    static = statics(work)
    static["other fixed"] = max(resting - before - sum(static.values()), 0)
    batch = batch_bytes(work, group)
    saved = max((forward if forward is not None else peak) - sum(static.values()) - batch, 0)
    rest = max(peak - sum(static.values()) - batch - saved, 0)
    return {
        "peak_allocated": peak,
        "peak_reserved": held - min(before, held),
        "fragmentation": 1 - min((peak + before) / max(held, 1), 1.0),
        "resting": resting - before,
        "peak_part": parts[at],
        "behaviours": work.behaviours(group),
        "samples": len(group),
        "categories": {**static, "batch": batch, "activations": saved, "gradients and workspace": rest},
        "parts": {
            name: int(max(value for part, value in zip(parts, allocated, strict=True) if part == name))
            for name in trace.MEANING
            if name in parts
        },
        "timeline": _thinned(parts, allocated),
        **_of_device(device),
    }


def statics(work: Work) -> dict[str, int]:
    """Bytes that stay from step to step: tables, the optimisers of their rows, dense weights and theirs."""
    tables = states = 0
    for name, buffer in work.model.named_buffers():
        if ".optimizers." in name:
            states += buffer.nbytes
        elif ".tables." in name:
            tables += buffer.nbytes
    for table in work.model.cached.values():
        if work.setup.compute.device.type == "cpu" and table.tier.kind == "host":  # then device and host are one memory
            tables += table.homes[0].nbytes
            states += sum(home.nbytes for home in table.homes[1:])
    weights = list(work.model.parameters())
    dense, optimiser = sum(weight.nbytes for weight in weights), 0
    gradients = sum(weight.grad.nbytes for weight in weights if weight.grad is not None)
    if work.phase == "train":
        held = [value for state in work.trainer.dense.optimizer.state.values() for value in state.values()]
        optimiser = sum(value.nbytes for value in held if isinstance(value, torch.Tensor))
        optimiser += sum(value.nbytes for value in work.trainer.dense.average)
    return {
        "tables": tables,
        "row optimisers": states,
        "dense weights": dense,
        "dense gradients": gradients,
        "dense optimiser": optimiser,
    }


def batch_bytes(work: Work, group: np.ndarray) -> int:
    """Bytes of a batch, all its columns."""
    batch = work.feed.batch(group, work.model)
    total = 0
    for value in vars(batch).values():
        for tensor in value.values() if isinstance(value, dict) else [value]:
            total += tensor.nbytes if isinstance(tensor, torch.Tensor) else 0
    return total


def _before(parts: list[str], allocated: np.ndarray, part: str) -> int | None:
    """What was allocated when a part began."""
    return int(allocated[parts.index(part)]) if part in parts else None


def _thinned(parts: list[str], allocated: np.ndarray) -> list[list[Any]]:
    """The largest value of each of at most `POINTS` equal stretches."""
    edges = np.unique(np.linspace(0, len(allocated), POINTS + 1).astype(int)).tolist()
    places = [low + int(allocated[low:high].argmax()) for low, high in pairwise(edges)]
    return [[place, int(allocated[place]), parts[place]] for place in places]


def _of_device(device: torch.device) -> dict[str, Any]:
    if device.type != "cuda":
        return {"process_peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
    found = torch.cuda.memory_stats(device)
    names = {"active": "active_bytes.all.peak", "inactive_split": "inactive_split_bytes.all.peak"}
    return {name: found.get(key, 0) for name, key in names.items()} | {"retries": found.get("num_alloc_retries", 0)}
