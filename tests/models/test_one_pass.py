"""Whole models with the one-pass attention equal the same models with plain gathers: scores, gradients and search."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from lsm_cli import recipe as recipes
from lsm_cli.data.store import Store
from lsm_cli.engine.feed import Feed
from lsm_cli.engine.setup import Setup
from lsm_cli.errors import InputError
from lsm_cli.kernels import fused, ragged

needs_triton = pytest.mark.skipif(
    not fused.available("cpu"), reason="the fused kernels need the package triton (extra `triton`)"
)

HEADS = "model.heads=[['item'], ['category', 'scenario'], ['time']]"
VARIANTS = {
    "tin": [],
    "dsi_tin": [HEADS],
    "stacked_tin": ["model.temporal=['rank']"],
    "dare": ["search.method=none", "model.match_bias=false"],
    "td_tin": ["model.attention_dim=3", HEADS],
    "twin": ["search.method=none", "model.match_bias=true"],
}


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.setattr(fused, "FEW", 8)  # the tables of a small world are small, and some are to be gathered
    yield
    ragged.prefer("auto")


def _setup(path: Path, name: str, kernels: str, *more: str) -> Setup:
    overrides = ["model.max_len=12", "model.dim=4", "model.quiet=false", f"engine.kernels={kernels}", *more]
    return Setup.of(recipes.load(name, overrides), Store.open(path))


def _step(path: Path, name: str, kernels: str, more: list[str]) -> tuple[Tensor, dict[str, Tensor], int]:
    """Logits of a batch, gradients of everything, and how often the fused kernels were called."""
    setup = _setup(path, name, kernels, *more)
    model = setup.model()
    feed = Feed(setup, "train")
    model.fit_numbers(model.numbers(feed.batch(np.arange(64), model)))
    batch = feed.batch(np.arange(5), model)
    calls, attend = 0, fused.attend

    def counted(*arguments: object) -> Tensor:
        nonlocal calls
        calls += 1
        return attend(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "attend", counted)
        torch.manual_seed(1)
        rows = model.fetch(batch)
        logits = model(batch, rows)
    logits.square().sum().backward()
    grads = {key: value.grad for key, value in model.named_parameters() if value.grad is not None}
    grads |= {f"table {place}": leaf.grad for place, leaf in enumerate(model.leaves(rows))}
    return logits.detach(), grads, calls


@needs_triton
@pytest.mark.parametrize("name", VARIANTS)
def test_a_step_is_the_same(small_store: Path, name: str) -> None:
    plain, plain_grads, none = _step(small_store, name, "eager", VARIANTS[name])
    fast, fast_grads, calls = _step(small_store, name, "triton", VARIANTS[name])
    assert calls == {"stacked_tin": 2, "td_tin": 2}.get(name, 1) and none == 0  # once a layer, or once a target
    torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-5)
    assert fast_grads.keys() == plain_grads.keys()
    for key, grad in plain_grads.items():
        torch.testing.assert_close(fast_grads[key], grad, rtol=1e-3, atol=1e-4, msg=key)


@needs_triton
def test_soft_search_finds_the_same(small_store: Path) -> None:
    found = []
    for kernels in ("eager", "triton"):
        setup = _setup(small_store, "dare", kernels, HEADS, "search.top_k=4", "engine.share_histories=false")
        model = setup.model()
        batch = Feed(setup, "train").batch(np.arange(12), model)
        found.append((batch.offsets, batch.history["item"], batch.rank))
    for plain, fast in zip(*found, strict=True):
        assert torch.equal(plain, fast)


def test_where_triton_cannot_run_it_is_refused(small_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(InputError, match=r"engine\.kernels = 'triton' needs a GPU"):
        _setup(small_store, "tin", "triton", "train.device=cpu")
    assert not fused.chosen("cpu")
