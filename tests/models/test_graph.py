"""The item graph as a field: its vectors, and what they are worth where ids alone cannot tell."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lsm_cli import recipe as recipes
from lsm_cli.data.graph import Graph, item_graph
from lsm_cli.data.store import Store
from lsm_cli.engine.evaluate import evaluate
from lsm_cli.engine.feed import Feed
from lsm_cli.engine.run import RunFolder
from lsm_cli.engine.setup import Setup
from lsm_cli.engine.train import InterruptedRunError, Trainer
from lsm_cli.errors import InputError
from lsm_cli.models.graph import item_vectors
from tests.small import write_store

ITEMS, COMMUNITIES = 400, 8


def _dense(graph: Graph) -> np.ndarray:
    rows = len(graph.offsets) - 1
    dense = np.zeros((rows, rows))
    dense[np.repeat(np.arange(rows), np.diff(graph.offsets)), graph.neighbour] = graph.count - 1
    return dense


def _planted(path: Path) -> Path:
    """Users stay in one community of items, which nothing but their trajectories tells; few behaviours an item."""
    write_store(path, users=400, longest=20, samples=1200, items=ITEMS)
    rng = np.random.default_rng(1)
    community = rng.permutation(np.arange(ITEMS) % COMMUNITIES)
    mine = rng.integers(0, COMMUNITIES, 400)
    members = [np.flatnonzero((community == c) & (np.arange(ITEMS) >= 2) & (np.arange(ITEMS) < ITEMS - 5))
               for c in range(COMMUNITIES)]  # fmt: skip
    offsets = np.load(path / "events/offsets.npy")
    owner = np.repeat(np.arange(400), np.diff(offsets))
    item = np.array([rng.choice(members[mine[user]]) for user in owner], np.int16)
    np.save(path / "events/item.npy", item)
    for split in ("train", "valid", "test"):
        folder = path / "samples" / split
        user = np.load(folder / "user.npy")
        inside = rng.random(len(user)) < 0.5
        chosen = np.where(inside, mine[user], rng.integers(0, COMMUNITIES, len(user)))
        target = np.array([rng.choice(members[c]) for c in chosen], np.int16)
        np.save(folder / "item.npy", target)
        label = rng.random(len(user)) < np.where(community[target] == mine[user], 0.9, 0.1)
        np.save(folder / "label.click.npy", label.astype(np.int8))
        if split != "train":  # a split by time
            np.save(folder / "time.npy", np.load(folder / "time.npy") + 6_000)
    return path


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _planted(tmp_path_factory.mktemp("planted") / "store")


def test_vectors_are_the_leading_eigenvectors(planted: Path) -> None:
    graph = item_graph(Store.open(planted), 5)
    count = _dense(graph)
    mass = count.sum(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        matrix = np.nan_to_num(np.log(count * count.sum() / np.outer(mass, mass)).clip(min=0), neginf=0)
    strength, vectors = np.linalg.eigh(matrix)
    wanted = vectors[:, strength.argsort()[::-1][:COMMUNITIES]]
    found = item_vectors(graph, COMMUNITIES, seed=0).double().numpy()
    length = np.linalg.norm(wanted, axis=1, keepdims=True)
    wanted = wanted / np.maximum(length, 0.1 * np.sqrt(np.mean(length**2)))
    wanted[mass == 0] = 0
    np.testing.assert_allclose(found @ found.T, wanted @ wanted.T, atol=0.05)  # whatever the signs
    assert (np.abs(found).sum(1) > 0).tolist() == (mass > 0).tolist()
    assert torch.equal(item_vectors(graph, COMMUNITIES, seed=0), item_vectors(graph, COMMUNITIES, seed=0))


def _trained(path: Path, out: Path, *overrides: str) -> Trainer:
    store = Store.open(path)
    small = ["train.threads=1", "model.hidden=[16]", "data.targets=['click']"]
    options = recipes.load("graph", [*small, *overrides])
    run = RunFolder.start(out, options, store, resume=False)
    trainer = Trainer(Setup.of(options, store), run)
    trainer.fit()
    run.close()
    return trainer


def _auc(trainer: Trainer) -> float:
    return evaluate(trainer.setup, trainer.best(), "test")["targets"]["click"]["auc"]


def test_the_graph_tells_what_ids_cannot(planted: Path, tmp_path: Path) -> None:
    fields = [
        "data.fields=['item']",
        "model.dim=8",
        "model.cross=0",
        "train.epochs=8",
        "train.batch_size=32",
        "train.lr=5e-3",
    ]
    without = _auc(_trained(planted, tmp_path / "a", *fields, "model.graph_dim=0"))
    with_it = _auc(_trained(planted, tmp_path / "b", *fields, "model.graph_dim=16"))
    assert with_it > without + 0.1 and with_it > 0.75, (with_it, without)


def test_eval_needs_no_graph_and_the_run_keeps_it(
    planted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = _trained(planted, tmp_path / "run", "model.graph_dim=8", "train.epochs=1", "model.attention_dim=4")
    wanted = trainer.best().items.vectors.clone()
    assert torch.equal(wanted, trainer.setup.item_vectors()), "training leaves it as it is"
    monkeypatch.setattr(Setup, "item_vectors", lambda self: pytest.fail("not again"))
    fresh = trainer.setup.model()
    RunFolder.open(tmp_path / "run").fill(fresh)
    assert torch.equal(fresh.items.vectors, wanted)
    assert sum("vectors" in name for name in fresh.state_dict()) == 1, "both spaces read one table"


def test_a_run_goes_on_exactly_and_without_a_second_graph(
    planted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ["model.graph_dim=8", "train.epochs=2", "model.max_len=10", "train.ema=0.9"]
    whole = _trained(planted, tmp_path / "whole", *settings)
    options, out = whole.setup.recipe, tmp_path / "stopped"
    run = RunFolder.start(out, options, whole.setup.store, resume=False)
    first = Trainer(whole.setup, run)
    first.stop = lambda: first.at.step == 3
    with pytest.raises(InterruptedRunError):
        first.fit()
    run.close()
    monkeypatch.setattr(Setup, "item_vectors", lambda self: pytest.fail("not again"))
    second = Trainer(whole.setup, RunFolder.start(out, options, whole.setup.store, resume=True))
    second.fit()
    for (name, one), other in zip(whole.model.state_dict().items(), second.model.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


@pytest.mark.parametrize("sequence", ["none", "mean", "din", "tin", "stacked_tin"])
def test_new_items_have_no_vector_and_training_learns_how_to_read_it(planted: Path, sequence: str) -> None:
    store = Store.open(planted)
    options = recipes.load("graph", [f"model.sequence={sequence}", "train.threads=1", "model.quiet=false"])
    setup = Setup.of(options, store)
    model = setup.model()
    model.items.fill(torch.randn_like(model.items.vectors))
    feed = Feed(setup, "train")
    batch = feed.batch(np.arange(64), model)
    model.train()
    with torch.autocast("cpu", torch.bfloat16):
        model(batch, model.fetch(batch)).sum().backward()
    assert model.space.graph.project.grad.any()
    assert not setup.item_vectors()[[0, 1, -1]].any()


def test_the_graph_needs_items(small_store: Path) -> None:
    options = recipes.load("graph", ["data.fields=['scenario','action']"])
    with pytest.raises(InputError, match="needs the field `item`"):
        Setup.of(options, Store.open(small_store))


def test_a_head_may_see_the_graph_alone(planted: Path) -> None:
    store = Store.open(planted)
    options = recipes.load("graph", ["model.heads=[['graph'],['item','category'],['time']]", "train.threads=1"])
    setup = Setup.of(options, store)
    model = setup.model()
    model.items.fill(setup.item_vectors())
    batch = Feed(setup, "test").batch(np.arange(50), model)
    assert model(batch, model.fetch(batch)).shape == (50, 2)
