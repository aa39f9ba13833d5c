"""A run whose tables lie in host memory or in a file is the run whose tables lie on the device: to the bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lsm_cli import recipe as recipes
from lsm_cli.commands import evaluation, train
from lsm_cli.commands.profile import profile
from lsm_cli.data.store import Store
from lsm_cli.engine import tiers
from lsm_cli.engine.evaluate import score
from lsm_cli.engine.feed import Feed
from lsm_cli.engine.profiling.estimate import estimate
from lsm_cli.engine.run import RunFolder
from lsm_cli.engine.setup import Setup, parameters
from lsm_cli.engine.train import Trainer
from lsm_cli.errors import InputError
from lsm_cli.report.console import Console
from tests.small import write_store

SMALL = ["train.batch_size=64", "train.threads=1", "model.max_len=20", "model.hidden=[16]", "train.epochs=2"]
SMALL += ["train.device=cpu", "model.quiet=false", "train.unknown=0.05"]
LEARNS = {
    "adagrad": ["stacked_tin"],
    "adam, bf16": ["tin", "train.table_optimizer=adam", "train.table_dtype=bf16"],
    "bf16": ["din", "train.table_dtype=bf16", "train.table_decay=true"],
    "tables go on, no average": ["stacked_tin", "train.fresh_tables=false", "train.ema=0", "train.clip=0"],
    "soft search": ["stacked_tin", "search.method=soft", "search.top_k=5", "model.attention_dim=4"],
    "item graph": ["tin", "model.graph_dim=4"],
    "two towers": ["sasrec"],
}


def _trainer(path: Path, out: Path, name: str, *overrides: str, resume: bool = False) -> Trainer:
    recipe, store = recipes.load(name, [*SMALL, *overrides]), Store.open(path)
    run = RunFolder.start(out, recipe, store, resume)
    trainer = Trainer(Setup.of(recipe, store), run)
    run.close()
    return trainer


def _state(trainer: Trainer) -> list[torch.Tensor]:
    dense = [value for state in trainer.dense.optimizer.state.values() for value in state.values()]
    return [*trainer.model.state_dict().values(), *trainer.dense.average, *dense, *trainer.run.load_weights().values()]


def _same(one: Trainer, other: Trainer) -> None:
    for a, b in zip(_state(one), _state(other), strict=True):
        assert torch.equal(a, b)
    for trainer in (one, other):
        trainer.best()
    index = np.arange(len(one.valid))
    found = [score(t.model, t.valid, t.setup.compute, index) for t in (one, other)]
    assert np.array_equal(*found)


@pytest.mark.parametrize("case", LEARNS)
def test_training_and_scoring_are_the_same(small_store: Path, tmp_path: Path, case: str) -> None:
    name, *more = LEARNS[case]
    whole = _trainer(small_store, tmp_path / "whole", name, *more)
    whole.fit()
    for number, tier in enumerate((["file", "engine.cache_rows=30"], ["host", "engine.cache_rows=3"])):
        kept = [f"engine.table_tier={tier[0]}", tier[1], f"engine.prefetch={2 - 2 * number}"]
        one = _trainer(small_store, tmp_path / str(number), name, *more, *kept)
        one.fit()
        assert one.model.cached and parameters(one.model) == parameters(whole.model)
        learned = tiers.record(one.model, learns=True)["item"]
        assert learned["asked"] and (learned["in_pieces"] or number == 0)
        assert learned["hit"] + learned["ahead"] + learned["waited"] == pytest.approx(1)
        _same(one, whole)
        whole.fit()  # `_same` left the best weights in it; a finished run is only restored


def test_a_run_killed_within_a_step_goes_on_as_if_it_had_not(small_store: Path, tmp_path: Path) -> None:
    whole = _trainer(small_store, tmp_path / "whole", "stacked_tin")
    whole.fit()
    kept = ["engine.table_tier=file", "engine.cache_rows=12", "engine.prefetch=1"]
    killed = _trainer(small_store, tmp_path / "killed", "stacked_tin", *kept, "train.checkpoint_seconds=0")
    steps, step = iter(range(1 << 20)), killed._step

    def dies(batch: Any) -> torch.Tensor:
        loss = step(batch)
        if next(steps) == 13:
            raise KeyboardInterrupt
        return loss

    killed._step = dies  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        killed.fit()
    again = _trainer(small_store, tmp_path / "killed", "stacked_tin", *kept, "train.checkpoint_seconds=0", resume=True)
    again.fit()
    _same(again, whole)


def test_rows_of_coming_batches_are_brought_ahead(tmp_path: Path) -> None:
    store = write_store(tmp_path / "store", items=900)
    kept = ["engine.table_tier=host", "engine.cache_rows=200", "train.batch_size=8", "model.max_len=3"]
    plain = _trainer(store, tmp_path / "a", "tin", *kept)
    ahead = _trainer(store, tmp_path / "b", "tin", *kept, "engine.prefetch=1")
    for trainer in (plain, ahead):
        for _ in trainer.updates(trainer.plan.batches(0)[:10]):
            pass
    found, better = (tiers.record(trainer.model, learns=True)["item"] for trainer in (plain, ahead))
    assert found["ahead"] == 0 and found["waited"] > 0
    assert better["ahead"] > 0 and better["waited"] < found["waited"]


def test_what_a_user_reads(small_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = [*SMALL, "engine.table_tier=file", "engine.cache_rows=20", "train.epochs=1"]
    result = train.train(Console(), "tin", small_store, tmp_path / "run", kept)
    said = capsys.readouterr()
    assert "tier       item: 46 rows and their optimiser in a scratch file" in said.err
    assert "of the rows that steps asked for" in said.out
    saved = json.loads((tmp_path / "run" / "result.json").read_text())
    assert saved["tiers"] == result["tiers"] and list(result["tiers"]) == ["item"]
    evaluated = evaluation.eval_run(Console(), tmp_path / "run", None, "test", False)
    assert evaluated["test"] == result["test"] and evaluated["tiers"]["item"]["asked"]
    found = profile(
        Console(), "tin", small_store, kept, steps=3, swept=["engine.cache_rows=20,1.0"], out=tmp_path / "p"
    )
    said = capsys.readouterr()
    assert "rows hit" in said.out and found["tiers"]["item"]["held"] == 20 and "tiers" not in found["sweep"][1]
    assert "of the rows that steps asked for" in (tmp_path / "p" / "report.html").read_text()


def test_a_share_keeps_small_tables_whole(small_store: Path) -> None:
    setup = Setup.of(recipes.load("tin", [*SMALL, "engine.table_tier=host"]), Store.open(small_store))
    assert not setup.model().cached
    assert "no table is larger than its cache" in "\n".join(setup.decisions())


def test_an_estimate_counts_what_the_device_holds(small_store: Path) -> None:
    def found(*more: str) -> dict[str, Any]:
        setup = Setup.of(recipes.load("tin", [*SMALL, *more]), Store.open(small_store))
        return estimate(setup, "train")

    whole, some = found(), found("engine.table_tier=file", "engine.cache_rows=20")
    assert whole["tables"] - some["tables"] == (46 - 20) * (4 * 16 + 4)


def test_whole_tables_in_a_step_must_be_on_the_device() -> None:
    with pytest.raises(InputError, match=r"engine.table_tier.*sparse_rows"):
        recipes.load("tin", ["engine.table_tier=host", "engine.sparse_rows=false"])
    with pytest.raises(InputError, match=r"engine.cache_rows"):
        recipes.load("tin", ["engine.cache_rows=0"])


def test_feeds_made_ahead_expect_only_their_own_models_rows(small_store: Path) -> None:
    """A batch that is asked for directly brings nothing nearer: nobody may be about to read it."""
    kept = ["engine.table_tier=host", "engine.cache_rows=20", "engine.prefetch=2"]
    setup = Setup.of(recipes.load("tin", [*SMALL, *kept]), Store.open(small_store))
    model = setup.model()
    Feed(setup, "train").batch(np.arange(5), model)
    assert not model.cached["item"].expects
