"""What there is to compute with: libraries, devices, memory, disk, allocator, and the kernels that follow from it."""

from __future__ import annotations

import os
import platform
import re
import shutil
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from lsm_cli.engine.device import decide
from lsm_cli.engine.environment import PACKAGE, environment, version
from lsm_cli.kernels import fused
from lsm_cli.kernels.ragged import Occurrences, Segments
from lsm_cli.options import TrainOptions

OPTIONAL = {
    "polars": "needed to build stores and synthetic worlds, not to train on a store built elsewhere",
    "optuna": "needed by `lsm tune`",
    "triton": "GPU kernels; comes with torch's CUDA builds",
    "matplotlib": "plots as PNG: extra `plots`",
    "tensorboard": "extra `tensorboard`",
    "mlflow": "extra `mlflow`",
}
DISTRIBUTIONS = {"mlflow": ("mlflow", "mlflow-skinny")}  # package -> distributions that bring it
SETTINGS = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "CUDA_VISIBLE_DEVICES", "PYTORCH_ALLOC_CONF",
            "PYTORCH_CUDA_ALLOC_CONF", "LD_PRELOAD", "MALLOC_ARENA_MAX", "GLIBC_TUNABLES")  # fmt: skip
WHY = {
    "small": "one matrix product",
    "compiled": "each row is read once, by torch's sampled product and embedding bags",
    "reference": "plain gathers: no compiled kernel is written for this device",
}


def machine() -> dict[str, Any]:
    """Everything that `lsm doctor` knows without testing anything; sizes in bytes, None = not known or not there."""
    known = environment()
    del known["command"], known["started"]
    total, available = memory()
    return {
        **known,
        "libraries": {name: installed(name) for name in dict.fromkeys([*requirements(), *OPTIONAL])},
        "cpu": _cpu(),
        "cpus_usable": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory": {"total": total, "available": available},
        "disk": {"path": str(Path.cwd()), "free": shutil.disk_usage(".").free},
        "cuda": {"built_for": torch.version.cuda, "available": torch.cuda.is_available(), "devices": _devices()},
        "allocator": allocator(),
        "settings": {name: os.environ[name] for name in SETTINGS if name in os.environ},
        "kernels": kernels(),
    }


def requirements() -> dict[str, str]:
    """Library -> least version, of the installed package or of the checkout's pyproject.toml."""
    file = PACKAGE.parent / "pyproject.toml"
    try:
        if file.is_file():
            lines = tomllib.loads(file.read_text())["project"]["dependencies"]
        else:
            lines = metadata.requires("lsm-cli") or []
    except (metadata.PackageNotFoundError, KeyError, ValueError):
        return {}
    found = (re.fullmatch(r"([\w-]+)\s*>=\s*([\d.]+)", line) for line in lines)  # an extra's have a condition behind
    return {match[1]: match[2] for match in found if match}


def installed(name: str) -> str | None:
    """Version of a library; None = not there."""
    if name == "torch":
        return torch.__version__
    return next((found for one in DISTRIBUTIONS.get(name, (name,)) if (found := version(one))), None)


def too_old(have: str, least: str) -> bool:
    """Whether a version is below another, by their leading numbers."""

    def numbers(text: str) -> list[int]:
        return [int(part) for part in re.findall(r"\d+", text.split("+")[0])[:3]]

    return numbers(have) < numbers(least)


def memory() -> tuple[int | None, int | None]:
    """(total, available) bytes of main memory, within what the container may use."""
    try:
        lines = re.findall(r"(MemTotal|MemAvailable):\s+(\d+) kB", Path("/proc/meminfo").read_text())
    except OSError:
        lines = []
    found = {name: int(number) * 1024 for name, number in lines}
    total, available = found.get("MemTotal"), found.get("MemAvailable")
    limit, used = _number("/sys/fs/cgroup/memory.max"), _number("/sys/fs/cgroup/memory.current")
    if limit is not None and total is not None and limit < total:
        total, available = limit, min(available or limit, limit - (used or 0))
    return total, available


def allocator() -> str:
    """How freed memory is kept between steps."""
    if torch.cuda.is_available():
        return f"torch's CUDA allocator ({torch.cuda.get_allocator_backend()})"
    preloaded = os.environ.get("LD_PRELOAD", "")
    for name in ("jemalloc", "tcmalloc", "mimalloc"):
        if name in preloaded:
            return f"{name}, preloaded"
    if platform.libc_ver()[0] == "glibc":
        return "glibc malloc, told to keep freed blocks"
    return "the system's malloc as it is"


def kernels() -> list[dict[str, str]]:
    """Which kernels attention over histories would use on the default device, as chosen for two tables of a batch."""
    device = decide(TrainOptions()).device
    segments = Segments(torch.arange(0, 65 * 50, 50, device=device), 64 * 50)
    found = []
    for table, rows in (("few rows", 32), ("many rows", 100_000)):
        ids = torch.zeros(segments.total, dtype=torch.int64, device=device)
        method = Occurrences(ids, rows, segments).method
        found.append({"table": table, "kernel": method, "why": WHY.get(method, "")})
    if fused.chosen(device.type):
        told = "triton", "attention as a whole in one kernel; the two above serve what it does not"
    else:
        told = "none", "compiled for GPUs only" if installed("triton") else "Triton is not installed"
    return [*found, {"table": "fused attention", "kernel": told[0], "why": told[1]}]


def _devices() -> list[dict[str, Any]]:
    found = []
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        major, minor = torch.cuda.get_device_capability(number)
        found.append(
            {
                "name": torch.cuda.get_device_name(number),
                "capability": f"{major}.{minor}",
                "memory_total": total,
                "memory_free": free,
                "bf16": torch.cuda.is_bf16_supported(including_emulation=False),
            }
        )
    return found


def _cpu() -> str:
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def _number(file: str) -> int | None:
    try:
        return int(Path(file).read_text())
    except (OSError, ValueError):  # no such limit, or "max"
        return None
