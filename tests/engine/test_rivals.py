"""The rivals through the one training loop."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lsm_cli import recipe as recipes
from lsm_cli.data.store import Store
from lsm_cli.engine.evaluate import evaluate
from lsm_cli.engine.run import RunFolder
from lsm_cli.engine.setup import Setup
from lsm_cli.engine.train import InterruptedRunError, Trainer
from lsm_cli.judging.retrieval import Catalogue, retrieve
from tests.small import write_store

SMALL = ["train.batch_size=32", "train.threads=1", "model.max_len=10", "model.hidden=[16]", "model.dim=8"]


def trained(path: Path, out: Path, recipe: str, *overrides: str) -> Trainer:
    store = Store.open(path)
    options = recipes.load(recipe, [*SMALL, *overrides])
    run = RunFolder.start(out, options, store, resume=False)
    trainer = Trainer(Setup.of(options, store), run)
    trainer.fit()
    run.close()
    return trainer


def auc(trainer: Trainer, target: str = "click") -> float:
    return evaluate(trainer.setup, trainer.best(), "test")["targets"][target]["auc"]


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Few items, many samples: enough to learn from embeddings alone who is whose."""
    return write_store(tmp_path_factory.mktemp("stores") / "planted", users=300, samples=3000, items=20)


@pytest.mark.parametrize(
    ("recipe", "least"),
    [("bst", 0.57), ("hstu", 0.57), ("stca", 0.57), ("twin", 0.57), ("sdim", 0.57), ("sasrec", 0.6)],
)
def test_rivals_learn_from_the_history(planted: Path, tmp_path: Path, recipe: str, least: float) -> None:
    """The label is whether the candidate occurs in the last ten behaviours, so that chance is one half without them."""
    trainer = trained(planted, tmp_path, recipe, "train.epochs=4", "train.batch_size=128")
    assert auc(trainer) > least


def test_no_sequence_stays_at_chance(planted: Path, tmp_path: Path) -> None:
    assert auc(trained(planted, tmp_path, "dcnv2", "train.epochs=2")) < 0.57


def test_the_softmax_makes_for_recall(planted: Path, tmp_path: Path) -> None:
    without, with_it = (
        trained(
            planted, tmp_path / weight, "sasrec", "train.epochs=2", "train.batch_size=128", f"train.softmax={weight}"
        )
        for weight in ("0", "1")
    )
    catalogue = Catalogue.of(without.setup.store)
    low, high = (
        retrieve(trainer.setup, trainer.best(), catalogue, "test")["click"]["ndcg"]["10"]
        for trainer in (without, with_it)
    )
    assert high > low


@pytest.mark.parametrize(
    ("recipe", "overrides"), [("hstu", ["model.dropout=0.2"]), ("sasrec", ["train.softmax=1", "model.dropout=0.2"])]
)
def test_a_stopped_run_goes_on_to_the_bit(small_store: Path, tmp_path: Path, recipe: str, overrides: list[str]) -> None:
    overrides = [*overrides, "train.epochs=2", "train.batch_size=64"]
    whole = trained(small_store, tmp_path / "whole", recipe, *overrides)
    store, options = Store.open(small_store), recipes.load(recipe, [*SMALL, *overrides])
    run = RunFolder.start(tmp_path / "cut", options, store, resume=False)
    setup = Setup.of(options, store)
    cut = Trainer(setup, run)
    cut.stop = lambda: cut.at.step == 7
    with pytest.raises(InterruptedRunError):
        cut.fit()
    again = Trainer(setup, run)
    again.fit()
    run.close()
    for ours, theirs in zip(again.dense.parameters, whole.dense.parameters, strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(again.model.space.bank.tables[0].weight, whole.model.space.bank.tables[0].weight)
