"""What the model gets to read, for every search."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lsm_cli import recipe as recipes
from lsm_cli.data.store import Store
from lsm_cli.engine.feed import Feed
from lsm_cli.engine.run import RunFolder
from lsm_cli.engine.setup import Setup
from lsm_cli.engine.train import Trainer
from lsm_cli.errors import InputError

SDIM = "tin search.method=sdim search.hashes=12 search.hash_bits=3"
SEARCHES = ["sim_hard", "hier_hard", "sim_soft", "twin", "eta", SDIM, "dare", "hybrid"]


def _setup(path: Path, name: str, *overrides: str) -> Setup:
    recipe, *own = name.split()
    options = recipes.load(recipe, ["search.top_k=6", "train.batch_size=64", *own, *overrides])
    return Setup.of(options, Store.open(path))


def _pointers(feed: Feed, setup: Setup, index: np.ndarray) -> list[set[int]]:
    """The behaviours of each sample as places back from the request."""
    model = setup.model()
    model.fit_numbers(torch.rand(10, model.numeric.size))
    batch = feed.batch(index, model)
    return [
        set(batch.rank[a:b].tolist())
        for a, b in zip(batch.offsets[:-1].tolist(), batch.offsets[1:].tolist(), strict=True)
    ]


@pytest.mark.parametrize("name", SEARCHES)
def test_reads_only_the_past_once_and_within_the_budget(small_store: Path, name: str) -> None:
    setup = _setup(small_store, name, "search.recent=2", "search.hard_k=3")
    feed, model = Feed(setup, "train"), setup.model()
    batch = feed.batch(np.arange(200), model)
    assert (batch.age > 0).all()
    reach = feed.assembler.lengths(np.arange(200))
    for b, (start, stop) in enumerate(zip(batch.offsets[:-1].tolist(), batch.offsets[1:].tolist(), strict=True)):
        ranks = batch.rank[start:stop].tolist()
        assert ranks == sorted(set(ranks), reverse=True) and len(ranks) <= 8
        assert all(1 <= rank <= reach[b] for rank in ranks)
        assert set(range(1, min(2, reach[b]) + 1)) <= set(ranks)  # the recent ones, whatever was found


@pytest.mark.parametrize("name", ["twin", "dare", "sim_soft"])
def test_soft_search_takes_the_highest_scores(small_store: Path, name: str) -> None:
    setup = _setup(small_store, name)
    feed, model = Feed(setup, "train"), setup.model()
    index = np.arange(150)
    everything = feed.assembler.batch(index)
    scores = feed.scores(everything, model)
    batch = feed.batch(index, model)
    for b in range(len(index)):
        start, stop = int(everything.offsets[b]), int(everything.offsets[b + 1])
        kept = set(batch.rank[int(batch.offsets[b]) : int(batch.offsets[b + 1])].tolist())
        assert len(kept) == min(6, stop - start)
        inside = [r in kept for r in everything.rank[start:stop].tolist()]
        chosen, rest = scores[start:stop][inside], scores[start:stop][[not x for x in inside]]
        assert not len(rest) or (chosen.min() >= rest.max() - 1e-5).item()


@pytest.mark.parametrize("name", SEARCHES)
def test_a_large_budget_finds_everything(small_store: Path, name: str) -> None:
    setup = _setup(small_store, name, "search.top_k=1000", "search.hashes=64", "search.hash_bits=1")
    whole = Feed(setup, "valid").assembler.lengths(np.arange(100))
    found = _pointers(Feed(setup, "valid"), setup, np.arange(100))
    if name not in ("sim_hard", SDIM):  # these leave out what does not match at all
        assert [len(ranks) for ranks in found] == whole.tolist()
    else:
        assert all(len(ranks) <= length for ranks, length in zip(found, whole, strict=True))


def test_another_history_is_searched_in_the_shuffled_control(small_store: Path) -> None:
    setup = _setup(small_store, "hier_hard")
    own = Feed(setup, "test").batch(np.arange(100), setup.model())
    other = Feed(setup, "test", shuffle_seed=1).batch(np.arange(100), setup.model())
    assert own.matches is not None and other.matches is not None
    assert not torch.equal(own.matches, other.matches) and (other.age > 0).all()


@pytest.mark.parametrize("name", ["hier_hard", "dare", "hybrid"])
def test_trains_and_learns_from_what_was_found(small_store: Path, name: str, tmp_path: Path) -> None:
    own = ["search.top_k=10", "search.hard_k=5", "train.epochs=3", "train.lr=5e-3", "model.evidence=true"]
    setup = _setup(small_store, name, *own)
    run = RunFolder.start(tmp_path / "run", setup.recipe, setup.store, resume=False)
    trainer = Trainer(setup, run)
    before = [space.bank.tables[0].weight.clone() for space in trainer.model.spaces]
    trainer.fit()
    run.close()
    assert trainer.at.best is not None and trainer.at.best > 0.6
    for space, table in zip(trainer.model.spaces, before, strict=True):
        assert not torch.equal(space.bank.tables[0].weight, table)  # the attention learns by what it weighs


BAD = {
    "unknown level": ('search.levels=["categry1"]', "did you mean 'category1'?"),
    "any is not last": ('search.levels=["any", "category1"]', "finds nothing"),
    "twice": ('search.levels=["item", "item"]', "twice"),
    "unknown minimum": ("search.min_level=category9", "not one of the levels"),
    "budget of no level": ("search.budgets.brand=3", "not one of the levels"),
    "unknown scenario": ('search.scenarios=["feed"]', "knows no names of scenarios"),
    "no such file": ("search.from=nowhere", "not a result of `lsm search`"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_search_options_are_one_sentence(small_store: Path, case: str) -> None:
    override, words = BAD[case]
    with pytest.raises(InputError, match=words.replace("?", r"\?")) as error:
        Feed(_setup(small_store, "hier_hard", override), "train")
    assert "\n" not in str(error.value)


def test_attention_cannot_be_decoupled_where_there_is_none() -> None:
    with pytest.raises(InputError, match="attention to decouple"):
        recipes.load("mean_pool", ["model.attention_dim=4"])
    with pytest.raises(InputError, match="goes by the attention"):
        recipes.load("dnn", ["search.method=soft"])


@pytest.mark.parametrize("name", ["twin", "eta", "hybrid"])
@pytest.mark.parametrize("limit", ["search.within_days=1", 'search.scenarios=["feed"]', 'search.domains=["ad"]'])
def test_a_search_by_attention_refuses_limits_that_it_does_not_keep(name: str, limit: str) -> None:
    with pytest.raises(InputError, match="only a hard search leaves behaviours out"):
        recipes.load(name, [limit])
