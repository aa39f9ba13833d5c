"""Where and in which precision to compute, and how the allocator behaves."""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from lsm_cli.errors import InputError
from lsm_cli.options import TrainOptions

ALLOCATOR = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")  # the user's own word on PyTorch's allocator
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4  # glibc malloc.h


@dataclass(frozen=True)
class Compute:
    """The decided device and precision."""

    device: torch.device
    precision: str  # fp32, bf16 or fp16

    def autocast(self, keep_casts: bool = True) -> Any:
        if self.precision == "fp32":
            return nullcontext()
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float16
        return torch.autocast(self.device.type, dtype=dtype, cache_enabled=keep_casts)

    def describe(self) -> str:
        if self.device.type == "cuda":
            return f"{torch.cuda.get_device_name(self.device)}, {self.precision}"
        return f"CPU, {torch.get_num_threads()} threads, {self.precision}"


def decide(options: TrainOptions) -> Compute:
    """Pick device and precision.

    Raises:
        InputError: a GPU or a precision was asked for that this machine does not have.
    """
    available = torch.cuda.is_available()
    if options.device == "cuda" and not available:
        raise InputError("train.device = 'cuda': no CUDA device is visible; use train.device=cpu or auto")
    device = torch.device("cuda" if available and options.device != "cpu" else "cpu")
    precision: str = options.precision
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    if precision == "fp16" and device.type == "cpu":
        raise InputError("train.precision = 'fp16' needs a GPU; use bf16 or fp32 on the CPU")
    if options.threads:
        torch.set_num_threads(options.threads)
    return Compute(device, precision)


def pool_memory(device: torch.device, pool: bool) -> None:
    """Keep freed memory from step to step, or let the allocator do as it does by itself."""
    if device.type == "cuda":
        asked = any("expandable_segments" in os.environ.get(name, "") for name in ALLOCATOR)
        if not asked and hasattr(torch.cuda.memory, "_set_allocator_settings"):
            torch.cuda.memory._set_allocator_settings(f"expandable_segments:{pool}")
    elif pool:
        keep_freed_memory()
    else:
        return_freed_memory()


_pooled = False


def keep_freed_memory() -> None:
    """Let glibc keep freed blocks instead of returning them to the system after every step.

    Batch-sized tensors are otherwise mapped and zeroed anew each time, which costs as much as computing on them.
    """
    global _pooled
    if (libc := _glibc()) is not None:
        _pooled = True
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)  # mallopt takes a C int


def return_freed_memory() -> None:
    """As glibc does by itself once its thresholds have grown to where they stop (DEFAULT_MMAP_THRESHOLD_MAX): larger
    blocks are mapped, a free end of the heap goes back. Before they have grown it returns more, so this is the cautious
    side to compare `keep_freed_memory` with. A process that never pooled is left alone.
    """
    global _pooled
    if _pooled and (libc := _glibc()) is not None:
        _pooled = False  # once: trimming over and over would cost more than not pooling does
        libc.mallopt(M_MMAP_MAX, 65_536)
        libc.mallopt(M_MMAP_THRESHOLD, 32 << 20)
        libc.mallopt(M_TRIM_THRESHOLD, 64 << 20)
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    libc = ctypes.CDLL(None) if sys.platform.startswith("linux") else None
    return libc if hasattr(libc, "mallopt") else None


def peak_memory(device: torch.device) -> int:
    """Bytes: of the device's allocator on a GPU, of the whole process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
