"""Candidates of one request that share its history: the same scores and gradients as with histories of their own."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
from torch import Tensor

from lsm_cli import recipe as recipes
from lsm_cli.data.batches import Batch
from lsm_cli.data.epochs import Requests
from lsm_cli.data.resident import Resident
from lsm_cli.data.store import Store
from lsm_cli.engine.feed import Feed
from lsm_cli.engine.profiling.estimate import _draw
from lsm_cli.engine.profiling.work import Work
from lsm_cli.engine.setup import Setup
from lsm_cli.kernels import fused, ragged
from lsm_cli.kernels.ragged import Shared
from lsm_cli.models.history import segments_of
from lsm_cli.models.scorer import Scorer
from lsm_cli.models.two_tower import TwoTower

needs_triton = pytest.mark.skipif(
    not fused.available("cpu"), reason="the fused kernels need the package triton (extra `triton`)"
)

HEADS = "model.heads=[['item'], ['category', 'scenario'], ['time']]"
VARIANTS = {
    "mean_pool": [],
    "din": [],
    "tin": [],
    "stacked_tin": ["model.action_bias=true"],
    "dsi_tin": [HEADS],
    "td_tin": ["model.attention_dim=3", HEADS],
    "hstu": ["model.layers=1"],
    "bst": ["model.block_heads=2"],
    "stca": ["model.block_heads=2"],
    "sim_hard": ["search.method=none"],
    "sdim": ["model.temporal=['rank']"],
    "sasrec": ["train.softmax=1", "train.next_item=0"],
    "graph": ["model.graph_dim=4"],
}
SIZES = [4, 1, 6, 3, 5, 2, 7, 4]  # candidates of the requests


@pytest.fixture(autouse=True)
def as_before() -> object:
    yield
    ragged.prefer("auto")


def _feed(path: Path, name: str, *more: str) -> tuple[Feed, Scorer]:
    """The first samples of the store as candidates of few requests, the first of which has no history."""
    overrides = ["model.max_len=12", "model.dim=4", "model.quiet=false", "train.threads=1", *more]
    setup = Setup.of(recipes.load(name, overrides), Store.open(path))
    feed, model = Feed(setup, "train"), setup.model()
    asked = np.arange(len(feed))
    asked[: sum(SIZES)] = np.repeat(np.linspace(sum(SIZES), len(feed) - 1, len(SIZES)).astype(int), SIZES)
    of = feed.assembler
    of.user, of.end, of.time = (np.asarray(column)[asked] for column in (of.user, of.end, of.time))
    of.end[:4] = of.store.offsets[of.user[:4]]
    if model.numeric.size:
        model.fit_numbers(model.numbers(feed.batch(np.arange(64), model)))
    return feed, model


def _learnt(model: Scorer, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits of a batch, and the gradients of the dense weights and of the rows, row by row of the tables."""
    model.zero_grad()
    rows = model.fetch(batch)
    logits, extra = model.learn(batch, rows)
    (logits.square().sum() + (0 if extra is None else extra.sum())).backward()
    grads = {key: value.grad.clone() for key, value in model.named_parameters() if value.grad is not None}
    for space, found in enumerate(rows):
        for name, item in found.items():
            if item.rows.values.grad is not None:
                learnt = zip(item.rows.index.tolist(), item.rows.values.grad, strict=False)
                grads |= {f"table {space} {name} {row}": grad for row, grad in learnt}
    return logits.detach(), grads


@pytest.mark.parametrize("name", VARIANTS)
def test_a_step_is_the_same(small_store: Path, name: str) -> None:
    feed, model = _feed(small_store, name, *VARIANTS[name], "train.unknown=0")
    index = np.arange(sum(SIZES))
    apart, shared = feed.batch(index, model), feed.batch(index, model, share=True)
    assert apart.sharing is None and shared.sharing is not None
    assert shared.sharing.reads == apart.behaviours > 2 * shared.behaviours
    logits, grads = _learnt(model, apart)
    others, other_grads = _learnt(model, shared)
    torch.testing.assert_close(others, logits, rtol=1e-4, atol=1e-5)
    assert other_grads.keys() == grads.keys()
    for key, grad in grads.items():
        torch.testing.assert_close(other_grads[key], grad, rtol=1e-3, atol=1e-4, msg=key)


@needs_triton
@pytest.mark.parametrize("name", ["stacked_tin", "dsi_tin", "td_tin"])
def test_a_step_in_one_pass_is_the_same(small_store: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "FEW", 8)  # the tables of a small world are small, and some are to be gathered
    feed, model = _feed(small_store, name, *VARIANTS[name], "train.unknown=0")
    index = np.arange(sum(SIZES))
    ragged.prefer("eager")
    logits, grads = _learnt(model, feed.batch(index, model))
    ragged.prefer("triton")
    others, other_grads = _learnt(model, feed.batch(index, model, share=True))
    torch.testing.assert_close(others, logits, rtol=1e-4, atol=1e-5)
    for key, grad in grads.items():
        torch.testing.assert_close(other_grads[key], grad, rtol=1e-3, atol=1e-4, msg=key)


def test_pieces_of_a_batch_and_batches_joined_are_the_same(small_store: Path) -> None:
    feed, model = _feed(small_store, "tin")
    model.eval()
    index = np.arange(sum(SIZES))
    whole = feed.batch(index, model, share=True)
    assert whole.sharing is not None
    with torch.no_grad():
        rows = model.fetch(whole)
        logits = model(whole, rows)
        for low, high in ((0, 2), (2, 11), (11, 12), (12, len(index))):  # edges amid the candidates of a request
            part, own = model.part(whole, rows, low, high)
            torch.testing.assert_close(model(part, own), logits[low:high], rtol=1e-5, atol=1e-6)
        parts = [whole.part(0, 6), feed.batch(index[6:9], model), whole.part(9, len(index))]
        joined = Batch.join(parts)
        assert joined.sharing is not None and joined.sharing.reads == whole.sharing.reads
        assert joined.size == whole.size
        torch.testing.assert_close(model(joined, model.fetch(joined)), logits, rtol=1e-5, atol=1e-6)


def test_what_is_gathered_on_a_device_is_the_same(small_store: Path) -> None:
    feed, _ = _feed(small_store, "tin")
    resident = Resident(feed.assembler, torch.device("cpu"), lambda tensors: tensors)
    index = np.arange(sum(SIZES))
    one, other = feed.assembler.batch(index, share=True), resident.batch(index, share=True)
    assert one.sharing is not None and other.sharing is not None and one.sharing.reads == other.sharing.reads
    for mine, theirs in ((vars(one), vars(other)), (one.history, other.history), (one.target, other.target)):
        for name, value in mine.items():
            if isinstance(value, Tensor):
                torch.testing.assert_close(theirs[name], value, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(one.sharing.of, other.sharing.of)


def test_histories_are_shared_where_that_halves_them_only(small_store: Path) -> None:
    feed, model = _feed(small_store, "tin")
    far = np.arange(sum(SIZES), sum(SIZES) + 40)  # everyone asks for one candidate
    assert feed.batch(far, model, share=True).sharing is None
    assert feed.batch(np.array([5, 6, 0, 7, 8]), model, share=True).sharing is not None
    assert feed.batch(np.array([5, 12, 6, 13, 7, 14]), model, share=True).sharing is None  # never side by side


def test_users_of_other_requests_are_told_apart(small_store: Path) -> None:
    """A user's vector serves all candidates of a request, but not those of another scenario."""
    feed, model = _feed(small_store, "sasrec")
    assert isinstance(model, TwoTower) and "scenario" in model.request
    model.eval()
    index = np.arange(sum(SIZES))
    batch = feed.batch(index, model, share=True)
    scenarios = batch.target["scenario"].unique()
    assert len(scenarios) > 1
    asks, segments = model._asks(batch)
    assert asks is not None and isinstance(segments, Shared)
    assert len(asks[0]) > len(SIZES)  # there are requests with candidates of several scenarios
    with torch.no_grad():
        users = model.users(batch, model.fetch(batch))
        apart = feed.batch(index, model)
        torch.testing.assert_close(users, model.users(apart, model.fetch(apart)), rtol=1e-4, atol=1e-5)
    assert segments_of(batch).total == apart.behaviours


def test_whole_requests_are_shuffled(small_store: Path) -> None:
    feed, _ = _feed(small_store, "tin")
    requests = feed.requests()
    assert isinstance(requests, Requests)
    of = feed.assembler
    name = {key: place for place, key in enumerate({*zip(of.user, of.end, of.time, strict=True)})}
    request = np.array([name[key] for key in zip(of.user, of.end, of.time, strict=True)])
    first, again, other = (requests.epoch_order(seed, 0) for seed in (0, 0, 1))
    assert (first == again).all() and (first != other).any()
    for order in (first, other):
        assert sorted(order) == list(range(len(feed)))
        assert (np.diff(request[order]) != 0).sum() + 1 == len(name)  # each request in one piece


def test_a_rehearsal_takes_whole_requests(small_store: Path) -> None:
    """Memory is predicted from parts of a step that share histories as the whole does."""
    feed, _ = _feed(small_store, "tin")
    index = np.arange(sum(SIZES))
    drawn = _draw(cast(Work, SimpleNamespace(feed=feed)), index, 8)
    assert 0 < len(drawn) < len(index)
    request = np.repeat(np.arange(len(SIZES)), SIZES)
    for one in set(request[drawn].tolist()):
        assert (request[drawn] == one).sum() == SIZES[one]


def test_what_is_shared_is_said(small_store: Path, tmp_path: Path) -> None:
    def said(store: Path, *options: str) -> list[str]:
        setup = Setup.of(recipes.load(options[0], ["train.threads=1", *options[1:]]), Store.open(store))
        return [line for line in setup.decisions() if line.startswith("requests")]

    together = "train.shuffle=requests"
    assert not said(small_store, "stca") and not said(small_store, "stca", together)  # one candidate a request
    slates = tmp_path / "slates"
    shutil.copytree(small_store, slates)
    for name in ("user", "end", "time"):
        file = slates / "samples" / "train" / f"{name}.npy"
        np.save(file, np.repeat(np.load(file)[::3], 3))
    assert said(slates, "stca") == ["requests   of 3.0 candidates: with train.shuffle=requests they share one reading"]
    assert not said(slates, "tin") and not said(slates, "hier_hard")
    found = "requests   stay together, and each candidate reads what is found for it"
    alone = f"{found}: only the order is another"
    assert said(slates, "hier_hard", together) == said(slates, "tin", together, "search.from=found") == [alone]
    assert said(slates, "twin", together, "engine.share_histories=false") == [alone]
    assert said(slates, "twin", together) == [f"{found}: a history is scored for all of them at once"]
    assert said(slates, "tin", together) == ["requests   stay together: 3.0 candidates read one history"]
    assert not said(slates, "tin", together, "engine.share_histories=false")
