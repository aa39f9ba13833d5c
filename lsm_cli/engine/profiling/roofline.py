"""How near a step comes to what the device can do: bytes against its bandwidth, arithmetic against its peak.

`moved` is what the operations of a step read and write, each counted by itself; a fused kernel moves less. `needed` is
what no implementation gets around: the batch once in and out, the distinct rows and their optimisers' state once in and
out, the dense weights and theirs.
"""

from __future__ import annotations

import time
from contextlib import closing
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from lsm_cli.engine.device import Compute
from lsm_cli.engine.profiling.memory import batch_bytes, statics
from lsm_cli.engine.profiling.work import Work

COPY_BYTES = 1 << 28  # larger than any cache
MATRIX = {"cpu": 1024, "cuda": 8192}
ROUNDS = 5

aten = torch.ops.aten
READS = {"index_select", "embedding", "index", "gather", "_embedding_bag", "_embedding_bag_forward_only"}
WRITES = {"index_copy_", "index_add_", "scatter_add_", "index_fill", "index_put_", "scatter_reduce_"}


class Traffic(TorchDispatchMode):
    """Bytes that operations read and write; of what they index, only the rows that they touch."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.bytes += _touched(func._schema.name.split("::")[1], _tensors(args), _tensors(found))
        return found


def _touched(name: str, given: list[Tensor], made: list[Tensor]) -> int:
    if name == "sparse_sampled_addmm":  # a row of the table and one of the query for every behaviour
        nonzeros, wide = made[0].values().numel(), given[1].shape[1]
        return nonzeros * (2 * wide + 2) * made[0].element_size()
    if name.startswith("_embedding_bag"):
        table, ids = given[0], given[1]
        return ids.numel() * table.shape[1] * table.element_size() + ids.nbytes + _size(made[:1])
    if name in READS:
        return 2 * _size(made) + _size(given[1:])
    if name in WRITES:  # read, changed and written back
        return 3 * _size(given[2:]) + _size(given[1:2])
    return _size(given) + _size(made)


def _size(tensors: list[Tensor]) -> int:
    return sum(tensor.nbytes if tensor.layout == torch.strided else tensor.values().nbytes for tensor in tensors)


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [tensor for item in value for tensor in _tensors(item)] if isinstance(value, list | tuple) else []


def _sampled(_: Any, rows: Any, columns: Any, *args: Any, out_shape: Any = None, out_val: Any, **more: Any) -> int:
    return 2 * out_val.values().numel() * rows.shape[1]


def _bag(weight: Any, indices: Any, *args: Any, out_shape: Any = None, **more: Any) -> int:
    return 2 * indices.numel() * weight.shape[1]


_sampled._get_raw = _bag._get_raw = True  # type: ignore[attr-defined]  # given tensors, not their shapes
FLOPS = {
    aten.sparse_sampled_addmm.default: _sampled,
    aten._embedding_bag.default: _bag,
    aten._embedding_bag_forward_only.default: _bag,
}


def measure(work: Work, seconds: float, group: np.ndarray) -> dict[str, float | None]:
    """One step against the device.

    Args:
        seconds: of a typical step.
        group: the samples of such a step.
    """
    moved, flops = tally(work, group)
    bandwidth, peak = copy_bandwidth(work.setup.compute.device), matrix_peak(work.setup.compute)
    return {
        "bandwidth": bandwidth,
        "peak_flops": peak,
        "moved_bytes": moved,
        "needed_bytes": needed_bytes(work, group),
        "flops": flops,
        "bandwidth_share": moved / seconds / bandwidth,
        "flops_share": flops / seconds / peak,
        "flops_per_byte": flops / max(moved, 1),
        "gpu_utilisation": utilisation(work.setup.compute.device),
    }


def tally(work: Work, group: np.ndarray) -> tuple[int, int]:
    """Bytes moved and floating-point operations of one step, not of the replay of a graph, which shows none; what it
    reads of the store's columns is in the batch."""
    traffic, counter = Traffic(), FlopCounterMode(display=False, custom_mapping=FLOPS)
    replays, work.feed.replays = work.feed.replays, False
    try:
        with closing(work.steps([group])) as running, counter, traffic:
            next(running)
    finally:
        work.feed.replays = replays
    return traffic.bytes + 2 * batch_bytes(work, group), counter.get_total_flops()


def needed_bytes(work: Work, group: np.ndarray) -> int:
    """Bytes that a step on these samples has to move, whatever the implementation."""
    training = work.phase == "train"
    with torch.no_grad():
        batch = work.feed.batch(group, work.model)
        rows = work.model.fetch(batch)
    tables = 0
    for leaf in work.model.leaves(rows):
        state = leaf.shape[0] * (4 if work.setup.recipe.train.table_optimizer == "adagrad" else 8 * leaf.shape[1] + 4)
        tables += 2 * (leaf.nbytes + state) if training else leaf.nbytes
    fixed = statics(work)
    dense = fixed["dense weights"] + fixed["dense optimiser"]
    return 2 * batch_bytes(work, group) + tables + (2 * dense if training else dense)


def copy_bandwidth(device: torch.device) -> float:
    """Bytes per second read and written by a large copy, the best of some."""
    source = torch.zeros(COPY_BYTES // 4, device=device)
    target = torch.zeros_like(source)
    return 2 * source.nbytes / _best(lambda: target.copy_(source), device)


def matrix_peak(compute: Compute) -> float:
    """FLOP per second of a large matrix product in the precision of the dense layers, the best of some."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[compute.precision]
    size = MATRIX[compute.device.type]
    left = torch.ones(size, size, device=compute.device, dtype=dtype)
    out = torch.empty_like(left)
    return 2 * size**3 / _best(lambda: torch.mm(left, left, out=out), compute.device)


def _best(work: Any, device: torch.device) -> float:
    best = float("inf")
    for _ in range(ROUNDS):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - started)
    return best


def utilisation(device: torch.device) -> float | None:
    """Share of the last moments in which the GPU was busy; None on the CPU and where NVIDIA's library is missing."""
    if device.type != "cuda":
        return None
    try:
        return torch.cuda.utilization(device) / 100
    except Exception:  # pynvml is no part of torch, and its errors are its own
        return None
