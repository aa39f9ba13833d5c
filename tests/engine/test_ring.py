"""Where batches are gathered and how they reach the device changes nothing in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lsm_cli import recipe as recipes
from lsm_cli.data.batches import Batch
from lsm_cli.data.store import Store
from lsm_cli.data.tiny import write_store
from lsm_cli.engine.feed import Feed
from lsm_cli.engine.ring import Ring
from lsm_cli.engine.run import RunFolder
from lsm_cli.engine.setup import Setup
from lsm_cli.engine.train import Trainer
from lsm_cli.errors import InputError

SMALL = ["train.batch_size=64", "train.threads=1", "train.device=cpu", "train.epochs=1", "model.max_len=20"]
SMALL += ["model.hidden=[16]", "search.top_k=6"]
CPU = torch.device("cpu")
gpu = pytest.mark.gpu
no_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def _setup(store: Path, *more: str, recipe: str = "tin") -> Setup:
    return Setup.of(recipes.load(recipe, [*SMALL, *more]), Store.open(store))


def _equal(one: Batch, other: Batch) -> None:
    for name, value in vars(one).items():
        theirs = getattr(other, name)
        pairs = [(value, theirs)] if not isinstance(value, dict) else [(value[key], theirs[key]) for key in value]
        if isinstance(value, dict):
            assert list(value) == list(theirs)
        for a, b in pairs:
            if a is None:
                assert b is None
                continue
            assert a.dtype == b.dtype and a.shape == b.shape, name
            torch.testing.assert_close(a.cpu(), b.cpu(), rtol=0, atol=0, equal_nan=True)


SEARCHES = {"tin": [], "dnn": [], "hier_hard": ["search.recent=2"], "twin": [], "hybrid": ["search.hard_k=3"]}


@pytest.mark.parametrize("recipe", SEARCHES)
def test_batches_gathered_on_the_device_are_the_same(small_store: Path, recipe: str) -> None:
    host, device = (
        _setup(small_store, f"engine.trajectories={where}", *SEARCHES[recipe], recipe=recipe)
        for where in ("host", "device")
    )
    model = host.model()
    one, other = Feed(host, "train"), Feed(device, "train")
    assert one.resident is None and other.resident is not None
    other.ring = Ring(CPU, 2)
    for index in (np.arange(150), np.array([7]), np.random.default_rng(0).permutation(600)[:300]):
        _equal(one.batch(index, model), other.batch(index, model))


@pytest.mark.parametrize("per_second", [1, 1000])
def test_other_clocks_and_histories(tmp_path: Path, per_second: int) -> None:
    """Ticks of a millisecond; other users' histories; another split shares the columns of the events."""
    path = write_store(tmp_path / "store", index=True)
    setups = [_setup(path, f"engine.trajectories={where}") for where in ("host", "device")]
    for setup in setups:
        setup.store.manifest["time"]["ticks_per_second"] = per_second
    model = setups[0].model()
    kept = setups[1].store.resident
    for split, seed in (("train", None), ("test", None), ("test", 3)):
        one, other = (Feed(setup, split, seed) for setup in setups)
        _equal(one.batch(np.arange(120), model), other.batch(np.arange(120), model))
        assert other.resident is not None and other.resident.time is kept["time on cpu"]


def test_training_is_the_same(small_store: Path, tmp_path: Path) -> None:
    """To the bit: from the device's columns or the host's, by a ring or not, ahead or in line."""
    found = []
    for number, (more, slots) in enumerate(
        (([], 0), ([], 2), (["engine.trajectories=device"], 0), (["engine.prefetch=3"], 5))
    ):
        setup = _setup(small_store, *more)
        trainer = Trainer(setup, RunFolder.start(tmp_path / str(number), setup.recipe, setup.store, resume=False))
        trainer.train.ring = Ring(CPU, slots) if slots else None
        trainer.fit()
        found.append([*trainer.dense.parameters, *(value for _, value in trainer.model.named_buffers())])
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


DTYPES = [torch.float32, torch.int64, torch.int32, torch.int8, torch.bool, torch.float64, torch.int16]
shapes = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 3), st.sampled_from(DTYPES)), max_size=6)


@given(st.lists(shapes, min_size=1, max_size=6))
def test_a_ring_moves_what_it_is_given(batches: list[Any]) -> None:
    """Whatever was moved before stays as it is while buffers are written again."""
    ring, kept = Ring(CPU, 2), []
    for batch in batches:
        tensors = [(torch.randn(rows, columns) * 9).to(dtype) for rows, columns, dtype in batch]
        kept.append((tensors, ring.move(tensors)))
    for tensors, moved in kept:
        assert len(tensors) == len(moved)
        for one, other in zip(tensors, moved, strict=True):
            assert one.dtype == other.dtype and torch.equal(one, other)


def test_buffers_are_used_again() -> None:
    ring = Ring(CPU, 3)
    places = []
    for number in range(9):
        ring.move([torch.ones(100 - number), torch.ones(7, 3, dtype=torch.int64)])
        places.append([slot.bytes.data_ptr() for slot in ring.slots])
    assert all(now == places[2] for now in places[2:])
    ring.move([torch.ones(1000)])
    assert sum(slot.bytes.numel() >= 4000 for slot in ring.slots) == 1


def test_the_decision_is_printed(small_store: Path) -> None:
    said = "\n".join(_setup(small_store, "engine.trajectories=device").decisions())
    assert "gathering  on the device" in said and "MiB of the store" in said
    assert "gathering" not in "\n".join(_setup(small_store).decisions())
    with pytest.raises(InputError, match=r"engine\.trajectories"):
        recipes.load("tin", ["engine.trajectories=disk"])


@gpu
@no_gpu
@pytest.mark.parametrize("recipe", SEARCHES)
@pytest.mark.parametrize("more", [["engine.pinned=true"], ["engine.pinned=false"]])
@pytest.mark.parametrize("where", ["host", "device"])
def test_batches_reach_a_gpu_unchanged(small_store: Path, recipe: str, more: list[str], where: str) -> None:
    plain = _setup(small_store, *SEARCHES[recipe], recipe=recipe)
    other = _setup(
        small_store, "train.device=cuda", "train.precision=fp32", f"engine.trajectories={where}", "engine.prefetch=2",
        *more, *SEARCHES[recipe], recipe=recipe,
    )  # fmt: skip
    model, theirs = plain.model(), other.model()
    groups = np.array_split(np.random.default_rng(0).permutation(600), 12)
    if recipe in ("twin", "hybrid"):  # scores differ in the last bit, so that the search may
        groups = groups[:1]
    made = Feed(other, "train").batches(groups, theirs)
    for index, batch in zip(groups, made, strict=True):
        torch.randn(2048, 2048, device="cuda").mm(torch.randn(2048, 2048, device="cuda"))  # the device is busy
        if recipe in ("twin", "hybrid"):
            assert batch.size == len(index) and batch.offsets.is_cuda
        else:
            _equal(Feed(plain, "train").batch(index, model), batch)


@gpu
@no_gpu
def test_a_ring_waits_for_its_copies() -> None:
    """Many large batches by few buffers, while the device is busy: none arrives as another."""
    device = torch.device("cuda")
    ring, kept = Ring(device, 2), []
    for number in range(40):
        (moved,) = ring.move([torch.full((1 << 20,), float(number))])
        kept.append((number, moved.sum()))
    for number, total in kept:
        assert float(total) == number * (1 << 20)
