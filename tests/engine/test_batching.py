"""Steps by count or by behaviours, assembled in line or ahead: every sample once, and the same run in the end."""

from __future__ import annotations

import threading
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lsm_cli import recipe as recipes
from lsm_cli.data.store import Store
from lsm_cli.engine.ahead import ahead
from lsm_cli.engine.batching import MOST, Plan
from lsm_cli.engine.run import RunFolder
from lsm_cli.engine.setup import Setup
from lsm_cli.engine.train import InterruptedRunError, Trainer

OPTIONS = ["train.batch_size=16", "train.epochs=2", "model.max_len=10", "model.hidden=[8]", "train.threads=1"]


@given(st.lists(st.integers(0, 50), min_size=1, max_size=200), st.integers(1, 300), st.integers(0, 5))
def test_a_token_budget_bounds_every_step_and_keeps_every_sample(lengths: list[int], budget: int, seed: int) -> None:
    recipe = recipes.load("tin", [*OPTIONS, f"engine.token_budget={budget}", f"train.seed={seed}"])
    behaviours = np.array(lengths)
    plan = Plan(recipe, len(lengths), behaviours)
    for epoch in range(2):
        groups = plan.batches(epoch)
        assert sorted(np.concatenate(groups).tolist()) == list(range(len(lengths)))
        assert all(behaviours[group].sum() <= budget or len(group) == 1 for group in groups)
        assert all(0 < len(group) <= MOST * 16 for group in groups)
        assert plan.steps(epoch) == len(groups)
        again = Plan(recipe, len(lengths), behaviours).batches(epoch)
        assert all((one == other).all() for one, other in zip(groups, again, strict=True))
    assert plan.total == plan.steps(0) + plan.steps(1)


def test_things_are_made_ahead_in_order() -> None:
    made: list[int] = []
    third = threading.Event()

    def make(item: int) -> int:
        made.append(item)
        if item == 2:
            third.set()
        return item * item

    with closing(ahead(make, range(10), 2)) as squares:
        assert next(squares) == 0
        assert third.wait(5)  # before anybody asked for it
        assert list(squares) == [number * number for number in range(1, 10)]
    made.clear()
    with closing(ahead(make, range(1000), 2)) as squares:
        next(squares)
    assert len(made) <= 4  # what nobody wants is not made


def test_an_error_ahead_is_raised_where_it_is_asked_for() -> None:
    def make(item: int) -> float:
        return 1 / (item - 2)

    with closing(ahead(make, range(5), 3)) as made:
        assert [next(made), next(made)] == [-0.5, -1.0]
        with pytest.raises(ZeroDivisionError):
            next(made)


@pytest.mark.parametrize("engine", ["prefetch", "token_budget", "shuffle"])
def test_a_stopped_run_goes_on_as_if_it_had_not_been(small_store: Path, tmp_path: Path, engine: str) -> None:
    options = {
        "prefetch": ["engine.prefetch=2"],
        "token_budget": ["engine.token_budget=120"],
        "shuffle": ["train.shuffle=requests"],
    }[engine]
    plain = [] if engine == "prefetch" else options
    whole = _trained(small_store, tmp_path / "whole", plain)
    out, steps = tmp_path / "stopped", iter(range(1000))
    with pytest.raises(InterruptedRunError):
        _trained(small_store, out, options, lambda: next(steps) >= 5)
    resumed = _trained(small_store, out, options)
    assert resumed.at.step == whole.at.step == whole.plan.total
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


def _trained(store: Path, out: Path, options: list[str], stop=lambda: False) -> Trainer:  # type: ignore[no-untyped-def]
    recipe = recipes.load("tin", [*OPTIONS, *options])
    run = RunFolder.start(out, recipe, Store.open(store), resume=out.exists())
    try:
        trainer = Trainer(Setup.of(recipe, Store.open(store)), run, stop=stop)
        trainer.fit()
    finally:
        run.close()
    return trainer
