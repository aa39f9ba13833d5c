"""How memory is kept from step to step: what the allocators are told, and a pool of its own for what stays."""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import AbstractContextManager, nullcontext
from functools import cache

import torch

from lsm_cli.options import EngineOptions

ALLOCATOR = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")  # the user's own word on PyTorch's allocator
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4  # glibc malloc.h


def pool_memory(device: torch.device, options: EngineOptions) -> None:
    """Let the allocator of a device keep freed memory as the recipe says."""
    if device.type == "cuda":
        if (asked := settings(options, next(filter(None, map(os.environ.get, ALLOCATOR)), ""))) is not None:
            _tell(asked)
    elif options.memory_pool:
        keep_freed_memory()
    else:
        return_freed_memory()


def settings(options: EngineOptions, own: str = "") -> str | None:
    """What PyTorch's allocator is told, in its own words; None = nothing, as the user has chosen another allocator.

    Args:
        own: what the user says of it in the environment, which is the last word.
    """
    if "backend" in own and "native" not in own:
        return None
    said = [f"expandable_segments:{options.memory_pool}"]
    if options.size_classes:
        said.append(f"roundup_power2_divisions:{options.size_classes}")
    return ",".join([*said, *filter(None, [own])])


def _tell(said: str) -> None:
    """What was said before is forgotten."""
    if hasattr(torch._C, "_accelerator_setAllocatorSettings"):
        torch._C._accelerator_setAllocatorSettings(said)
    else:  # torch 2.11
        torch.cuda.memory._set_allocator_settings(said)


def lasting(device: torch.device, options: EngineOptions) -> AbstractContextManager[None]:
    """Inside, what is allocated on a GPU goes to the pool of what stays, so that no block of a step ever lies between
    two of a table."""
    if device.type != "cuda" or not options.lasting_pool:
        return nullcontext()
    index = torch.cuda.current_device() if device.index is None else device.index
    return torch.cuda.use_mem_pool(_pool(index), index)


@cache
def _pool(device: int) -> torch.cuda.MemPool:
    """One for each GPU, as long as the process lives."""
    return torch.cuda.MemPool()


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
