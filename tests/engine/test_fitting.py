"""Work that does not fit in memory: the same result, in smaller pieces."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lsm_cli import recipe as recipes
from lsm_cli.commands.train import train_one
from lsm_cli.data.batches import Batch
from lsm_cli.data.store import Store
from lsm_cli.data.tiny import write_store
from lsm_cli.engine import evaluate
from lsm_cli.engine.feed import Feed
from lsm_cli.engine.fitting import Pieces, out_of_memory
from lsm_cli.engine.run import RunFolder
from lsm_cli.engine.setup import Setup
from lsm_cli.engine.train import InterruptedRunError, Trainer
from lsm_cli.errors import LsmError
from lsm_cli.report.console import Console, Silent

CPU = torch.device("cpu")
SMALL = ["train.batch_size=64", "train.threads=1", "train.device=cpu", "model.max_len=20", "model.hidden=[16]"]
SMALL += ["train.epochs=1", "train.unknown=0.1", "train.checkpoint_seconds=0"]


def _trainer(store: Path, out: Path, *more: str, recipe: str = "tin", **options: Any) -> Trainer:
    opened = Store.open(store)
    setup = Setup.of(recipes.load(recipe, [*SMALL, *more]), opened)
    return Trainer(setup, RunFolder.start(out, setup.recipe, opened, resume=out.is_dir()), **options)


def _fails(trainer: Trainer, when: Callable[[Batch], bool]) -> None:
    """Let the model run out of memory, in the midst of a step's random draws."""
    learn = trainer.model.learn

    def failing(batch: Batch, rows: Any) -> Any:
        if when(batch):
            torch.rand(7)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return learn(batch, rows)

    trainer.model.learn = failing  # type: ignore[method-assign]


def _state(trainer: Trainer) -> list[torch.Tensor]:
    return [*trainer.dense.parameters, *(value for _, value in trainer.model.named_buffers())]


def _same(one: Trainer, other: Trainer) -> None:
    for a, b in zip(_state(one), _state(other), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("recipe", ["tin", "stacked_tin", "din", "dare", "graph", "sasrec"])
def test_pieces_make_the_same_gradients(small_store: Path, tmp_path: Path, recipe: str) -> None:
    more = ["train.softmax=0", "train.next_item=0"] if recipe == "sasrec" else []
    trainer = _trainer(small_store, tmp_path / "run", "model.quiet=false", *more, recipe=recipe)
    trainer.fit_scales()
    trainer.model.train()
    batch = trainer.train.batch(trainer.plan.batches(0)[0], trainer.model)
    found = []
    for bounds in ([(0, 64)], [(0, 20), (20, 21), (21, 64)]):
        torch.manual_seed(0)  # which ids are hidden
        rows, loss = trainer._learn(batch, bounds)
        grads = [p.grad for p in trainer.dense.parameters if p.grad is not None]
        found.append([loss, *grads, *(leaf.grad for leaf in trainer.model.leaves(rows) if leaf.grad is not None)])
    assert len(found[0]) > 8 and sum(bool(grad.any()) for grad in found[0]) > 8
    for whole, pieces in zip(*found, strict=True):
        torch.testing.assert_close(whole, pieces, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_a_failed_step_is_that_of_smaller_pieces(small_store: Path, tmp_path: Path, seed: int) -> None:
    """Failures at random steps; then the same pieces from the same steps on, without any failure: equal to the bit."""
    fatal = set(np.random.default_rng(seed).choice(8, 2, replace=False).tolist())
    told: list[str] = []
    failing = _trainer(small_store, tmp_path / "a", "model.dropout=0.2", progress=Silent(told.append))
    known = _trainer(small_store, tmp_path / "b", "model.dropout=0.2")
    pending = set(fatal)

    def once(batch: Batch) -> bool:
        step = failing.at.step
        if step in pending:
            pending.remove(step)
            return True
        return False

    _fails(failing, once)
    groups = failing.plan.batches(0)[:8]
    for trainer in (failing, known):
        trainer.fit_scales()
    torch.manual_seed(seed)
    for _ in failing.updates(groups):
        pass
    torch.manual_seed(seed)
    running = known.updates(groups)
    for step in range(8):
        known.pieces.count *= 2 if step in fatal else 1
        next(running)
    _same(failing, known)
    assert failing.at.pieces == 4 and len(told) == 2
    assert told[0] == "the batch of 64 samples did not fit in memory; goes on in pieces of 32"


def test_a_run_that_fails_is_resumed_in_its_pieces(small_store: Path, tmp_path: Path) -> None:
    """Stopped after the failure and resumed without it: as if never stopped."""
    too_large = {"a": True, "b": True}

    def started(name: str, **options: Any) -> Trainer:
        trainer = _trainer(small_store, tmp_path / name, **options)
        _fails(trainer, lambda batch: too_large[name] and batch.size > 40)
        return trainer

    whole = started("a")
    whole.fit()
    whole.run.close()
    steps = iter([False] * 4)
    stopped = started("b", stop=lambda: next(steps, True))
    with pytest.raises(InterruptedRunError):
        stopped.fit()
    stopped.run.close()
    too_large["b"] = False
    resumed = started("b")
    resumed.fit()
    resumed.run.close()
    assert whole.at.pieces == resumed.at.pieces == 2 and resumed.at.finished
    _same(whole, resumed)


def test_the_record_of_a_run_tells(small_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    setup = Setup.of(recipes.load("tin", SMALL), Store.open(small_store))
    original = Trainer._learn
    with pytest.MonkeyPatch.context() as patch:

        def failing(self: Trainer, batch: Batch, bounds: Any) -> Any:
            if bounds[0][1] > 20:
                raise torch.OutOfMemoryError("out of memory")
            return original(self, batch, bounds)

        patch.setattr(Trainer, "_learn", failing)
        train_one(Console(quiet=True), setup, tmp_path / "run", resume=False)
    assert json.loads((tmp_path / "run" / "result.json").read_text())["pieces"] == 4
    heard = capsys.readouterr().err
    assert heard.count("pieces of 32") == heard.count("pieces of 16") == 1


def test_one_sample_that_does_not_fit_is_an_error(small_store: Path, tmp_path: Path) -> None:
    trainer = _trainer(small_store, tmp_path / "run", "train.batch_size=2")
    _fails(trainer, lambda batch: True)
    with pytest.raises(LsmError, match=r"not even one sample at a time; lower train\.batch_size") as caught:
        trainer.fit()
    trainer.run.close()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("recipe", ["tin", "dare", "din"])
def test_scoring_goes_on_in_pieces(small_store: Path, recipe: str) -> None:
    """Of a soft search too, which scores whole histories."""
    setup = Setup.of(recipes.load(recipe, [*SMALL, "search.top_k=5"]), Store.open(small_store))
    model, index, told = setup.model(), np.arange(200), list[str]()
    expected = evaluate.score(model, Feed(setup, "test"), setup.compute, index)
    feed = Feed(setup, "test")
    forward, gather = model.forward, feed._batch

    def small(batch: Batch, rows: Any) -> torch.Tensor:
        if batch.size > 60:
            raise torch.OutOfMemoryError("out of memory")
        return forward(batch, rows)

    def few(samples: np.ndarray, *others: Any) -> Batch:
        if len(samples) > 150:
            raise MemoryError
        return gather(samples, *others)

    model.forward, feed._batch = small, few  # type: ignore[method-assign]
    found = evaluate.score(model, feed, setup.compute, index, Silent(told.append))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert feed.scoring.count == 4 and feed.gathering.count == 2 and len(told) == 3


@given(size=st.integers(0, 300), count=st.integers(1, 64))
def test_pieces_cover_a_batch(size: int, count: int) -> None:
    pieces = Pieces("batch", CPU)
    pieces.count = count
    bounds = pieces.bounds(size)
    assert [place for low, high in bounds for place in range(low, high)] == list(range(size))
    assert len(bounds) <= count and (not size or all(low < high for low, high in bounds))
    assert max(high - low for low, high in bounds) <= -(-size // min(count, max(size, 1)))


def test_batches_are_cut_and_joined(small_store: Path) -> None:
    setup = Setup.of(recipes.load("hier_hard", SMALL), Store.open(small_store))
    batch = Feed(setup, "train").batch(np.arange(50), setup.model())
    again = Batch.join([batch.part(low, high) for low, high in ((0, 7), (7, 8), (8, 8), (8, 50))])
    for name, value in vars(batch).items():
        other = getattr(again, name)
        for key in value if isinstance(value, dict) else [None]:
            a, b = (value, other) if key is None else (value[key], other[key])
            torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


def test_only_memory_that_ran_out_counts() -> None:
    assert out_of_memory(torch.OutOfMemoryError("x")) and out_of_memory(MemoryError())
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60)
    assert out_of_memory(caught.value)
    assert not out_of_memory(RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes"):
        Pieces("batch", CPU).run(4, lambda bounds: (_ for _ in ()).throw(RuntimeError("shapes")))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_that_is_too_small(tmp_path: Path) -> None:
    """A limit between what a step rests on and what it needs; then the whole step by itself."""
    store = write_store(tmp_path / "store", users=300, longest=800, samples=3000)
    more = ["train.device=cuda", "train.precision=fp32", "train.batch_size=3000", "model.max_len=800"]
    more.append("train.unknown=0")
    found, needed = [], 0
    for limited in (False, True):
        trainer = _trainer(store, tmp_path / str(limited), *more, recipe="din")
        trainer.fit_scales()
        batch = trainer.train.batch(np.arange(3000), trainer.model)
        trainer.model.train()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        resting = torch.cuda.memory_reserved()
        if limited:
            total = torch.cuda.get_device_properties(0).total_memory
            torch.cuda.set_per_process_memory_fraction((resting + 0.5 * (needed - resting)) / total)
        torch.manual_seed(0)
        try:
            rows, loss = trainer.pieces.run(batch.size, lambda bounds, t=trainer, b=batch: t._learn(b, bounds))
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
        needed = torch.cuda.max_memory_reserved()
        grads = [p.grad.cpu() for p in trainer.dense.parameters if p.grad is not None]
        leaves = [leaf.grad.cpu() for leaf in trainer.model.leaves(rows) if leaf.grad is not None]
        found.append([loss.cpu(), *grads, *leaves])
        assert (trainer.pieces.count > 1) == limited
        del trainer, batch, rows, loss
    for whole, pieces in zip(*found, strict=True):
        torch.testing.assert_close(whole, pieces, rtol=1e-3, atol=1e-5)
