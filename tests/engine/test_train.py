"""What the options of the training loop do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lsm_cli import recipe as recipes
from lsm_cli.data.batches import Batch
from lsm_cli.data.store import Store
from lsm_cli.data.tiny import write_store
from lsm_cli.engine import schedule
from lsm_cli.engine.dense import Dense
from lsm_cli.engine.device import Compute
from lsm_cli.engine.evaluate import evaluate
from lsm_cli.engine.run import RunFolder
from lsm_cli.engine.setup import Setup
from lsm_cli.engine.train import InterruptedRunError, Trainer
from lsm_cli.errors import InputError

SMALL = ["train.batch_size=64", "train.threads=1", "model.max_len=20", "model.hidden=[16]", "train.epochs=2"]


def _trained(path: Path, out: Path, *overrides: str, recipe: str = "tin") -> Trainer:
    store = Store.open(path)
    options = recipes.load(recipe, [*SMALL, *overrides])
    run = RunFolder.start(out, options, store, resume=False)
    trainer = Trainer(Setup.of(options, store), run)
    trainer.fit()
    run.close()
    return trainer


def _auc(trainer: Trainer) -> float:
    return evaluate(trainer.setup, trainer.best(), "test")["targets"]["click"]["auc"]


@pytest.mark.parametrize("recipe", ["din", "tin", "stacked_tin"])
def test_readers_learn_the_planted_rule_that_no_sequence_cannot(small_store: Path, tmp_path: Path, recipe: str) -> None:
    """The label is whether the candidate occurs in the last ten behaviours."""
    longer = ["train.epochs=12", "train.batch_size=32", "model.match_bias=true", "model.evidence=true"]
    assert _auc(_trained(small_store, tmp_path / "a", *longer, recipe=recipe)) > 0.75
    assert _auc(_trained(small_store, tmp_path / "b", *longer, "model.evidence=false", recipe="dnn")) < 0.65


def test_same_seed_same_run_other_seed_other_run(small_store: Path, tmp_path: Path) -> None:
    a, b, c = (
        _trained(small_store, tmp_path / name, f"train.seed={seed}")
        for name, seed in zip("abc", (1, 1, 2), strict=True)
    )
    for one, same, other in zip(a.dense.parameters, b.dense.parameters, c.dense.parameters, strict=True):
        assert torch.equal(one, same)
        assert one.numel() < 4 or not torch.equal(one, other) or not one.any()


@pytest.mark.parametrize("clip", ["5", "0"])
def test_an_overflow_in_the_rows_alone_skips_the_step(small_store: Path, clip: str) -> None:
    setup = Setup.of(recipes.load("tin", [*SMALL, f"train.clip={clip}"]), Store.open(small_store))
    model = setup.model()
    dense = Dense(model, setup.recipe.train, Compute(torch.device("cpu"), "fp16"))
    before, scale = [p.detach().clone() for p in model.parameters()], dense.scaler
    for value, moved in ((torch.inf, False), (1.0, True)):
        leaf = torch.zeros(2, 3, requires_grad=True)
        dense.backward(sum(p.sum() for p in model.parameters()) + leaf.sum())
        leaf.grad[0, 0] *= value
        kept = scale.get_scale()
        assert dense.move([leaf], 1.0) is moved
        assert (scale.get_scale() < kept) is not moved
        same = all(torch.equal(one, other) for one, other in zip(model.parameters(), before, strict=True))
        assert same is not moved
        dense.optimizer.zero_grad()


def test_bf16_stays_close_to_fp32(small_store: Path, tmp_path: Path) -> None:
    full, half = (
        _trained(small_store, tmp_path / p, f"train.precision={p}", "train.epochs=6", recipe="stacked_tin")
        for p in ("fp32", "bf16")
    )
    assert _auc(half) == pytest.approx(_auc(full), abs=0.03)


def test_whoever_reads_a_run_reads_its_weights(small_store: Path, tmp_path: Path) -> None:
    _trained(small_store, tmp_path / "run", "train.epochs=1")
    modes = {file.name: file.stat().st_mode & 0o444 for file in (tmp_path / "run").iterdir() if file.is_file()}
    assert modes["model.safetensors"] == modes["recipe.toml"]


def test_a_split_without_samples_is_refused(tmp_path: Path) -> None:
    store, samples = Store.open(write_store(tmp_path / "store", samples=60)), "samples/test"
    for file in (store.path / samples).iterdir():
        np.save(file, np.load(file)[:0])
    store.manifest["counts"]["samples"]["test"] = 0
    setup = Setup.of(recipes.load("tin", SMALL), store)
    with pytest.raises(InputError, match="has no test samples; name another --split"):
        evaluate(setup, setup.model(), "test")


def test_early_stopping(small_store: Path, tmp_path: Path) -> None:
    trainer = _trained(small_store, tmp_path / "run", "train.epochs=60", "train.patience=2", "train.lr=0.05")
    assert trainer.at.finished and trainer.at.step < trainer.total
    quality = [line["metric"] for line in trainer.history]
    assert max(quality) == quality[-3], "the best validation, then two that were not better"


def test_a_stop_at_the_last_step_is_the_end(small_store: Path, tmp_path: Path) -> None:
    store, options = Store.open(small_store), recipes.load("tin", [*SMALL, "train.epochs=1"])
    run = RunFolder.start(tmp_path / "run", options, store, resume=False)
    trainer = Trainer(Setup.of(options, store), run, stop=lambda: trainer.at.step == trainer.total)
    trainer.fit()
    state = run.load_state()
    assert state["position"]["finished"]
    run.save_state(state | {"position": state["position"] | {"finished": False}})  # as it was written before
    again = Trainer(Setup.of(options, store), run)
    again.fit()
    assert again.at.finished and again.at.step == trainer.total
    run.close()


@pytest.mark.parametrize("metric", ["auc", "gauc", "logloss"])
def test_the_best_validation_picks_the_weights(small_store: Path, tmp_path: Path, metric: str) -> None:
    trainer = _trained(small_store, tmp_path / "run", f"train.metric={metric}", "train.ema=0.9", "train.epochs=4")
    found = evaluate(trainer.setup, trainer.best(), "valid")["targets"]
    mean = np.mean([entry[metric] for entry in found.values()])
    assert mean == pytest.approx(abs(trainer.at.best), rel=1e-5)
    best = min if metric == "logloss" else max
    assert abs(trainer.at.best) == best(abs(line["metric"]) for line in trainer.history)


@pytest.mark.parametrize(("weights", "order"), [("{order=0}", 0.0), ("{order=3}", 0.75), ("{}", 0.5)])
def test_targets_pick_the_weights_as_they_weigh(small_store: Path, tmp_path: Path, weights: str, order: float) -> None:
    trainer = _trained(small_store, tmp_path / "run", f"train.weights={weights}", "train.metric=auc")
    for line in trainer.history:
        found = {target: entry["auc"] for target, entry in line["valid"].items()}
        assert line["metric"] == pytest.approx((1 - order) * found["click"] + order * found["order"])


def test_train_loss_is_the_mean_since_the_last_validation(
    small_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lsm_cli.engine.train.CHECK_STEPS", 2)
    store, options = Store.open(small_store), recipes.load("tin", [*SMALL, "train.epochs=1"])
    run = RunFolder.start(tmp_path / "run", options, store, resume=False)
    losses, trainer = list[float](), Trainer(Setup.of(options, store), run)
    step = Trainer._step

    def kept(self: Trainer, batch: Batch) -> torch.Tensor:
        loss = step(self, batch)
        losses.append(float(loss))
        return loss

    monkeypatch.setattr(Trainer, "_step", kept)
    trainer.stop = lambda: trainer.at.step == 8  # between a look and a validation
    with pytest.raises(InterruptedRunError):
        trainer.fit()
    again = Trainer(Setup.of(options, store), run)
    again.fit()
    run.close()
    assert len(losses) == 10 and [line["step"] for line in again.history] == [5, 10]
    for line in again.history:
        assert line["train_loss"] == pytest.approx(np.mean(losses[line["step"] - 5 : line["step"]]))


def test_a_target_with_weight_zero_teaches_nothing(small_store: Path, tmp_path: Path) -> None:
    trainer = _trained(small_store, tmp_path / "run", "train.weights={order=0}", "train.weight_decay=0")
    fresh = trainer.setup.model()
    fresh.tower.start(trainer.rates())
    assert torch.equal(trainer.model.tower.heads.bias[1], fresh.tower.heads.bias[1])
    assert not torch.equal(trainer.model.tower.heads.bias[0], fresh.tower.heads.bias[0])


def test_the_unknown_row_learns(small_store: Path, tmp_path: Path) -> None:
    learned, kept = (_trained(small_store, tmp_path / s, f"train.unknown={s}") for s in ("0.1", "0.0"))
    assert learned.model.space.bank.tables[0].weight[-1].any()
    item = kept.setup.store.samples("train").column("item")
    unknown_occurs = (np.asarray(item) >= kept.model.space.bank.tables[0].rows - 1).any()
    assert unknown_occurs or not kept.model.space.bank.tables[0].weight[-1].any()


def test_tensorboard_is_an_option(small_store: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra `tensorboard` is not installed")
    _trained(small_store, tmp_path / "run", "train.tensorboard=true")
    assert list((tmp_path / "run" / "tensorboard").glob("events.*"))


@pytest.mark.parametrize("decay", ["none", "linear", "cosine"])
def test_learning_rate_rises_then_falls(decay: str) -> None:
    options = recipes.load("tin", ["train.warmup=0.1", f"train.decay={decay}", "train.final_lr=0.1"]).train
    rates = [schedule.factor(step, 1000, options) for step in range(1000)]
    assert all(0 < rate <= 1 for rate in rates)
    assert rates[:100] == sorted(rates[:100]) and rates[100] == pytest.approx(1)
    assert rates[-1] == pytest.approx(1.0 if decay == "none" else 0.1, abs=0.01)
    assert rates[100:] == sorted(rates[100:], reverse=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_gpu_agrees_with_cpu(small_store: Path, tmp_path: Path, precision: str) -> None:
    cpu = _trained(small_store, tmp_path / "cpu", "train.device=cpu", "train.epochs=6")
    gpu = _trained(small_store, tmp_path / "gpu", "train.device=cuda", f"train.precision={precision}", "train.epochs=6")
    assert _auc(gpu) == pytest.approx(_auc(cpu), abs=0.03)
