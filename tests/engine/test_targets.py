"""Several targets: observed on a part of the samples, weighted, and of very different rates."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lsm_cli import recipe as recipes
from lsm_cli.data.store import Store
from lsm_cli.engine.run import RunFolder
from lsm_cli.engine.setup import Setup
from lsm_cli.engine.train import Trainer
from tests.small import write_store

SMALL = ["train.threads=1", "model.max_len=10", "model.hidden=[16]", "train.batch_size=64", "train.epochs=1"]
FORMS = [[], ["model.target_hidden=[8]"], ["model.experts=3"], ["model.experts=2", "model.target_hidden=[8]"]]


def _trainer(path: Path, out: Path, *overrides: str) -> Trainer:
    store, options = Store.open(path), recipes.load("tin", [*SMALL, *overrides])
    return Trainer(Setup.of(options, store), RunFolder.start(out, options, store, resume=False))


def _gradients(trainer: Trainer, target: int, rows: np.ndarray) -> dict[str, torch.Tensor]:
    """Of all dense parameters, when one target alone is trained on some rows of a batch."""
    trainer.model.zero_grad()
    trainer.weights = torch.nn.functional.one_hot(torch.tensor(target), 2).float()
    batch = trainer.train.batch(np.arange(64), trainer.model)
    batch.labels[np.setdiff1d(np.arange(64), rows)] = torch.nan
    trainer._loss(trainer.model(batch, trainer.model.fetch(batch)), batch.labels).backward()
    return {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in trainer.model.named_parameters()}


@pytest.mark.parametrize("overrides", FORMS, ids=str)
def test_samples_without_a_target_teach_it_nothing(small_store: Path, tmp_path: Path, overrides: list[str]) -> None:
    trainer = _trainer(small_store, tmp_path / "run", *overrides)
    order = np.asarray(trainer.train.labels[1][:64])
    seen = np.flatnonzero(order >= 0)
    assert 0 < len(seen) < 64
    every, part = _gradients(trainer, 1, np.arange(64)), _gradients(trainer, 1, seen)
    none = _gradients(trainer, 1, np.flatnonzero(order < 0))
    assert any(grad.any() for grad in every.values())
    for name in every:
        torch.testing.assert_close(every[name], part[name])
        assert not none[name].any()


def test_weights_scale_what_a_target_teaches(small_store: Path, tmp_path: Path) -> None:
    trainer = _trainer(small_store, tmp_path / "run", "train.weights={order=2.5}")
    logits = torch.randn(32, 2, requires_grad=True)
    labels = torch.randint(2, (32, 2)).float()
    labels[:10, 1] = torch.nan
    trainer._loss(logits, labels).backward()
    weighted, logits.grad = logits.grad.clone(), None
    trainer.weights = torch.ones(2)
    trainer._loss(logits, labels).backward()
    torch.testing.assert_close(weighted, logits.grad * torch.tensor([1.0, 2.5]))
    wanted = (torch.sigmoid(logits[10:, 1]) - labels[10:, 1]) / 22  # the mean is over those that were observed
    torch.testing.assert_close(logits.grad[10:, 1], wanted.detach())


@pytest.mark.parametrize("overrides", FORMS, ids=str)
def test_heads_start_at_the_rates_of_their_targets(tmp_path: Path, overrides: list[str]) -> None:
    path = write_store(tmp_path / "store")
    file = path / "samples/train/label.order.npy"
    labels = np.load(file)
    labels[labels == 1] = 0
    labels[:4] = (1, 1, -1, -1)  # 2 of some 300
    np.save(file, labels)
    trainer = _trainer(path, tmp_path / "run", *overrides, "train.lr=1e-9", "train.table_lr=1e-9")
    trainer.fit()
    with torch.no_grad():
        trainer.model.eval()
        batch = trainer.train.batch(np.arange(600), trainer.model)
        mean = torch.sigmoid(trainer.model(batch, trainer.model.fetch(batch))).mean(0)
    click = np.load(path / "samples/train/label.click.npy").mean()
    assert mean[0] == pytest.approx(click, abs=0.15)
    assert mean[1] == pytest.approx(3 / ((labels >= 0).sum() + 2), rel=0.3)


def test_a_target_without_labels_does_not_break_a_run(tmp_path: Path) -> None:
    path = write_store(tmp_path / "store")
    np.save(path / "samples/train/label.order.npy", np.full(600, -1, np.int8))
    trainer = _trainer(path, tmp_path / "run")
    trainer.fit()
    assert torch.isfinite(trainer.model.tower.heads.bias).all()
