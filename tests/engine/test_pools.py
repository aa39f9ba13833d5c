"""What the allocators are told, and what lies in a pool of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lsm_cli import recipe as recipes
from lsm_cli.data.store import Store
from lsm_cli.engine import pools
from lsm_cli.engine.profiling import memory
from lsm_cli.engine.profiling.work import Work
from lsm_cli.engine.setup import Setup
from lsm_cli.errors import InputError
from lsm_cli.options import EngineOptions


@pytest.mark.skipif(memory._mallinfo() is None, reason="no glibc")
def test_the_memory_pool_keeps_what_is_freed() -> None:
    program = """
import torch
from lsm_cli.engine.pools import pool_memory
from lsm_cli.options import EngineOptions
from lsm_cli.engine.profiling.memory import in_use, resident

device, kept = torch.device("cpu"), []
for pool in (False, True):
    pool_memory(device, EngineOptions(memory_pool=pool))
    held = torch.ones(1 << 25)
    assert in_use(device)[0] >= held.nbytes
    del held
    kept.append(resident())
pool_memory(device, EngineOptions(memory_pool=False))
assert kept[1] - kept[0] > 1 << 26 and kept[1] - resident() > 1 << 26, (kept, resident())
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_what_the_user_says_of_the_allocator_is_the_last_word() -> None:
    assert pools.settings(EngineOptions()) == "expandable_segments:True"
    both = EngineOptions(memory_pool=False, size_classes=8)
    assert pools.settings(both) == "expandable_segments:False,roundup_power2_divisions:8"
    own = "garbage_collection_threshold:0.8,expandable_segments:False"
    assert pools.settings(EngineOptions(), own) == f"expandable_segments:True,{own}"
    assert pools.settings(both, "backend:cudaMallocAsync") is None
    assert pools.settings(EngineOptions(), "backend:native") == "expandable_segments:True,backend:native"


def test_the_allocator_is_told_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    pools._tell("expandable_segments:True")
    assert not recwarn.list


def test_size_classes_are_powers_of_two() -> None:
    with pytest.raises(InputError, match=r"engine\.size_classes: 6 is no power of two"):
        recipes.load("tin", ["engine.size_classes=6"])
    assert recipes.load("tin", ["engine.size_classes=8"]).engine.size_classes == 8


def test_on_the_cpu_nothing_has_a_pool_of_its_own() -> None:
    with pools.lasting(torch.device("cpu"), EngineOptions(lasting_pool=True)):
        assert torch.ones(2).sum() == 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_what_stays_lies_apart_from_what_comes_and_goes(small_store: Path) -> None:
    overrides = ["train.device=cuda", "train.threads=1", "engine.lasting_pool=true", "engine.trajectories=device"]
    work = Work(Setup.of(recipes.load("tin", overrides), Store.open(small_store)), "train")
    logits = next(iter(work.steps(work.groups[:1])))
    segments = pools._pool(torch.cuda.current_device()).snapshot()
    spans = [range(part["address"], part["address"] + part["total_size"]) for part in segments]
    columns = work.feed.resident.events.values()
    for tensor in (*(state for space in work.model.spaces for state in space.bank.buffers()), *columns):
        if tensor.numel():
            assert any(tensor.data_ptr() in span for span in spans)
    assert not any(logits.data_ptr() in span for span in spans)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_sizes_between_two_powers_are_few() -> None:
    program = """
import torch
from lsm_cli.engine.pools import pool_memory
from lsm_cli.options import EngineOptions

pool_memory(torch.device("cuda"), EngineOptions(size_classes=4))
held = [torch.empty((16 << 20) + 12_345 * k, dtype=torch.uint8, device="cuda") for k in range(8)]
blocks = [block for part in torch.cuda.memory_snapshot() for block in part["blocks"]]
sizes = {block["size"] for block in blocks if block["state"] == "active_allocated"}
assert sizes <= {16 << 20, 20 << 20}, sizes
"""
    subprocess.run([sys.executable, "-c", program], check=True)
