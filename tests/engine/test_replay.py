"""Scoring at fixed shapes gives the scores of scoring as batches come."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lsm_cli import recipe as recipes
from lsm_cli.data.store import Store
from lsm_cli.engine import evaluate, replay
from lsm_cli.engine.feed import Feed
from lsm_cli.engine.profiling.ablation import TECHNIQUES
from lsm_cli.engine.replay import Replay, size_class
from lsm_cli.engine.setup import Setup
from lsm_cli.kernels import ragged

SMALL = ["train.threads=1", "model.max_len=20", "model.hidden=[16]", "search.top_k=6", "model.quiet=false"]
RECIPES = {
    "dnn": [],
    "mean_pool": [],
    "din": [],
    "tin": ["train.table_dtype=bf16"],
    "stacked_tin": [],
    "dare": [],
    "td_tin": [],
    "stca": [],
    "graph": ["model.graph_dim=4"],
    "hier_hard": [],
    "sim_hard": [],
}


def _setup(store: Path, name: str, device: str, *more: str) -> Setup:
    options = [*SMALL, f"train.device={device}", *RECIPES.get(name, []), *more]
    return Setup.of(recipes.load(name, options), Store.open(store))


def _scores(setup: Setup, replays: bool, groups: list[np.ndarray], passes: int = 1) -> torch.Tensor:
    model, feed = setup.model(), Feed(setup, "test")
    model.fit_numbers(torch.rand(100, model.numeric.size).to(setup.compute.device) * 20)
    feed.replays = replays
    return torch.cat(list(evaluate.scores(model, feed, setup.compute, groups * passes))).cpu()


@pytest.mark.parametrize("name", RECIPES)
def test_scores_are_those_of_any_shape(small_store: Path, name: str) -> None:
    """Groups of many sizes, so that larger and smaller batches use buffers again; also without behaviours."""
    setup = _setup(small_store, name, "cpu")
    order = np.random.default_rng(0).permutation(200)
    empty = np.flatnonzero(Feed(setup, "test").assembler.lengths(np.arange(200)) == 0)
    groups = [*np.split(order, [50, 51, 60, 110, 150]), order[:49], empty[:1], empty]
    torch.manual_seed(0)
    expected = _scores(setup, False, groups)
    torch.manual_seed(0)
    torch.testing.assert_close(_scores(setup, True, groups), expected, rtol=1e-4, atol=1e-5)
    assert not ragged.shapes_are_fixed()


def test_few_shapes_are_kept(small_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setup = _setup(small_store, "tin", "cpu")
    model, feed = setup.model(), Feed(setup, "test")
    model.eval()
    scorer = Replay(model, setup.compute)
    monkeypatch.setattr(replay, "MOST", 3)
    with torch.no_grad():
        for size in (*range(1, 60), 3):
            batch = feed.batch(np.arange(size), model)
            found = scorer(batch)
            torch.testing.assert_close(found, model(batch, model.fetch(batch)), rtol=1e-4, atol=1e-5)
    assert len(scorer.made) == 3


def test_shapes_are_made_once_for_a_feed_and_a_model(small_store: Path) -> None:
    setup = _setup(small_store, "tin", "cpu")
    feed, groups = Feed(setup, "test"), [np.arange(9), np.arange(9, 30)]
    feed.replays = True
    model = setup.model()
    first = list(evaluate.scores(model, feed, setup.compute, groups))
    made = dict(feed.replay.made)
    with torch.no_grad():  # as training does, in place
        for parameter in model.parameters():
            parameter += 0.1
    second = list(evaluate.scores(model, feed, setup.compute, groups))
    assert feed.replay.made == made and not torch.equal(first[0], second[0])
    feed.replays = False
    torch.testing.assert_close(second, list(evaluate.scores(model, feed, setup.compute, groups)), rtol=1e-4, atol=1e-5)
    other = setup.model()
    feed.replays = True
    list(evaluate.scores(other, feed, setup.compute, groups))
    assert feed.replay.model is other


@given(st.integers(0, 1 << 24))
def test_classes_hold_their_sizes(size: int) -> None:
    held = size_class(size)
    assert held >= size and held <= max(8, 1.25 * size) and size_class(held) == held


@pytest.mark.parametrize("name", ["bst", "hstu", "sasrec"])
def test_what_takes_the_host_is_said(small_store: Path, name: str) -> None:
    setup = _setup(small_store, name, "cpu", "engine.cuda_graphs=true")
    assert not setup.replays
    assert any(line.startswith(f"graphs     none: {name} sorts") for line in setup.decisions())
    assert (
        "graphs     none: there is no GPU" in _setup(small_store, "tin", "cpu", "engine.cuda_graphs=true").decisions()
    )


def test_profile_switches_how_batches_reach_the_device_and_are_scored() -> None:
    assert {"trajectories", "pinned", "cuda_graphs"} <= {technique.name for technique in TECHNIQUES}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kernels", ["auto", "eager"])
@pytest.mark.parametrize("name", RECIPES)
def test_a_replayed_graph_scores_the_same(small_store: Path, name: str, kernels: str, precision: str) -> None:
    more = [f"train.precision={precision}", f"engine.kernels={kernels}", "engine.prefetch=2"]
    setup = _setup(small_store, name, "cuda", "engine.cuda_graphs=true", *more)
    assert setup.replays
    groups = np.split(np.random.default_rng(0).permutation(200), [50, 51, 60, 110, 150])
    torch.manual_seed(0)
    expected = _scores(setup, False, groups, 2)
    torch.manual_seed(0)
    close = 1e-4 if precision == "fp32" else 3e-2
    torch.testing.assert_close(_scores(setup, True, groups, 2), expected, rtol=close, atol=close)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_graph_follows_the_weights(small_store: Path) -> None:
    """Weights and tables that are trained in place after the capture."""
    setup = _setup(small_store, "stacked_tin", "cuda", "train.precision=bf16")
    model, feed = setup.model(), Feed(setup, "test")
    model.eval()
    scorer, batch = Replay(model, setup.compute), feed.batch(np.arange(100), model)
    before = scorer(batch)
    with torch.no_grad():
        for weight in [*model.parameters(), *(value for name, value in model.named_buffers() if ".tables." in name)]:
            weight.mul_(1.1)
        with setup.compute.autocast():
            expected = model(batch, model.fetch(batch)).float()
    assert not torch.allclose(before, expected, atol=1e-3)
    torch.testing.assert_close(scorer(batch), expected, rtol=3e-2, atol=3e-2)
