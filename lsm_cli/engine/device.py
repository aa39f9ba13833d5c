"""Where and in which precision to compute."""

from __future__ import annotations

import resource
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from lsm_cli.errors import InputError
from lsm_cli.options import TrainOptions


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
        threads = torch.get_num_threads()
        return f"CPU, {threads} thread{'s' * (threads != 1)}, {self.precision}"


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
        has_it = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        precision = "bf16" if has_it else "fp32"
    if precision == "fp16" and device.type == "cpu":
        raise InputError("train.precision = 'fp16' needs a GPU; use bf16 or fp32 on the CPU")
    if options.threads:
        torch.set_num_threads(options.threads)
    return Compute(device, precision)


def peak_memory(device: torch.device) -> int:
    """Bytes: of the device's allocator on a GPU, of the whole process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
