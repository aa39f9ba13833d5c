"""What a score may and may not depend on, for every recipe."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lsm_cli import recipe as recipes
from lsm_cli.data.batches import Batch
from lsm_cli.data.store import Store
from lsm_cli.engine.setup import Setup
from lsm_cli.errors import InputError
from lsm_cli.models.ranking import RankingModel

ATTENTION = ["din", "tin", "stacked_tin", "dsi_tin", "td_tin", "twin", "sdim"]
RECIPES = ["dnn", "dcnv2", "mean_pool", *ATTENTION, "bst", "hstu", "stca"]


def _model(path: Path, name: str, *overrides: str) -> tuple[Setup, RankingModel]:
    options = recipes.load(name, ["model.max_len=20", "model.init_std=0.5", "model.quiet=false", *overrides])
    setup = Setup.of(options, Store.open(path))
    model = setup.model()
    index = np.arange(200)
    model.fit_numbers(model.numbers(setup.assembler("train").batch(index)))
    return setup, model.eval()


@torch.no_grad()
def _score(model: RankingModel, batch: Batch) -> torch.Tensor:
    return model(batch, model.fetch(batch))


@pytest.mark.parametrize("name", RECIPES)
def test_other_rows_of_the_batch_never_change_a_score(small_store: Path, name: str) -> None:
    setup, model = _model(small_store, name)
    assembler = setup.assembler("valid")
    together = _score(model, assembler.batch(np.arange(60)))
    for row in (0, 7, 59):
        alone = _score(model, assembler.batch(np.array([row])))
        torch.testing.assert_close(alone[0], together[row], rtol=1e-4, atol=1e-5)
    backwards = _score(model, assembler.batch(np.arange(60)[::-1].copy()))
    torch.testing.assert_close(backwards.flip(0), together, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["mean_pool", "din", "tin", "stacked_tin", "dsi_tin", "bst", "stca", "twin", "sdim"])
def test_order_of_behaviours_is_nothing_without_temporal_encoding(small_store: Path, name: str) -> None:
    setup, model = _model(small_store, name, "model.temporal=[]", "model.evidence=false")
    batch = setup.assembler("valid").batch(np.arange(40))
    order = torch.arange(batch.behaviours)
    for start, stop in zip(batch.offsets[:-1].tolist(), batch.offsets[1:].tolist(), strict=True):
        order[start:stop] = order[start:stop].flip(0)
    turned = replace(batch, history={name: ids[order] for name, ids in batch.history.items()})  # in others' places
    torch.testing.assert_close(_score(model, turned), _score(model, batch), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["interval", "rank"])
def test_temporal_encodings_see_time(small_store: Path, kind: str) -> None:
    setup, model = _model(small_store, "tin", f'model.temporal=["{kind}"]', "model.evidence=false")
    batch = setup.assembler("valid").batch(np.arange(40))
    moved = replace(batch, age=batch.age * 50, rank=batch.rank * 50)
    assert not torch.allclose(_score(model, moved), _score(model, batch))


def test_tin_equals_the_literal_sum(small_store: Path) -> None:
    """u = Σ_i α_i (ẽ_i ⊙ ṽ), position by position (arXiv 2308.08487)."""
    setup, model = _model(small_store, "tin", "model.evidence=false")
    batch = setup.assembler("valid").batch(np.arange(30))
    rows = model.fetch(batch)
    seen = {}
    model.reader.register_forward_hook(lambda module, inputs, output: seen.update(inputs=inputs, output=output))
    with torch.no_grad():
        model(batch, rows)
        history, candidate, _query = seen["inputs"]
        behaviours = history.positions()
        for sample in range(30):
            start, stop = int(batch.offsets[sample]), int(batch.offsets[sample + 1])
            own = behaviours[start:stop]
            logits = own @ candidate[sample] / history.width**0.5 + history.heads[0].bias[start:stop]
            literal = (torch.softmax(logits, 0).unsqueeze(1) * own * candidate[sample]).sum(0)
            torch.testing.assert_close(seen["output"][sample], literal, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", RECIPES)
def test_candidates_nobody_trained_on_are_scored(small_store: Path, name: str) -> None:
    setup, model = _model(small_store, name)
    batch = setup.assembler("valid").batch(np.arange(10))
    new = {**batch.target, "item": torch.full_like(batch.target["item"], 10_000)}
    assert _score(model, replace(batch, target=new)).isfinite().all()


def test_new_items_still_match_by_identity(small_store: Path) -> None:
    """Two untrained items share an embedding row, but only the one in the history is a match."""
    setup, model = _model(small_store, "tin")
    batch = setup.assembler("valid").batch(np.arange(30))
    history = {**batch.history, "item": torch.full_like(batch.history["item"], 10_000)}
    same = replace(
        batch, history=history, target={**batch.target, "item": torch.full_like(batch.target["item"], 10_000)}
    )
    other = replace(same, target={**batch.target, "item": torch.full_like(batch.target["item"], 10_001)})
    full = batch.offsets.diff() > 0
    assert ((_score(model, same) - _score(model, other)).abs().sum(1) > 1e-6)[full].all()


def test_missing_values_match_nothing(small_store: Path) -> None:
    setup, model = _model(small_store, "tin")
    batch = setup.assembler("valid").batch(np.arange(30))
    blank = {**batch.history, "item": torch.ones_like(batch.history["item"])}
    found = model.numbers(
        replace(batch, history=blank, target={**batch.target, "item": torch.ones(30, dtype=torch.int64)})
    )
    column = len(setup.statistics) + model.evidence.names.index("item.count")
    assert not found[:, column].any()


def test_evidence_equals_brute_force(small_store: Path) -> None:
    setup, model = _model(small_store, "tin", "model.half_lives=[0.01]", "model.windows=[5]")
    batch = setup.assembler("valid").batch(np.arange(50))
    numbers = model.numbers(batch)[:, len(setup.statistics) :]
    names = model.evidence.names
    for sample in range(50):
        span = range(int(batch.offsets[sample]), int(batch.offsets[sample + 1]))
        for field in ("item", "category2", "scenario"):
            hits = [i for i in span if batch.history[field][i] == batch.target[field][sample]]
            expected = {
                "count": len(hits),
                "decay_0.01d": sum(2 ** -(float(batch.age[i]) / 86_400 / 0.01) for i in hits),
                "last_5": sum(int(batch.rank[i]) <= 5 for i in hits),
                "age": min((float(batch.age[i]) for i in hits), default=-1),
                "rank": min((int(batch.rank[i]) for i in hits), default=-1),
            }
            for kind, value in expected.items():
                got = float(numbers[sample, names.index(f"{field}.{kind}")])
                assert got == pytest.approx(value, rel=1e-4, abs=1e-5), (field, kind)
        ages = [float(batch.age[i]) for i in span] or [-1.0]
        whole = {"length": len(span), "last_age": min(ages), "first_age": max(ages)}
        assert {name: float(numbers[sample, names.index(name)]) for name in whole} == whole


@pytest.mark.parametrize("sequence", ["tin", "stacked_tin", "mean", "din"])
@pytest.mark.parametrize("heads", ["[]", "auto"])
def test_every_target_owns_its_sense_of_time(small_store: Path, sequence: str, heads: str) -> None:
    """p^τ: what one target's tables hold moves that target's score and no other's (arXiv 2510.21714)."""
    if heads == "auto" and sequence in ("mean", "din"):
        pytest.skip("has no attention heads")
    keys = [f"model.sequence={sequence}", f"model.heads={heads}", 'model.temporal=["interval","rank"]']
    _, shared = _model(small_store, "tin", *keys)
    setup, model = _model(small_store, "tin", *keys, "model.time_tables=own")
    batch = setup.assembler("valid").batch(np.arange(40))
    before = _score(model, batch)
    torch.testing.assert_close(before, _score(shared, batch), rtol=1e-4, atol=1e-5)  # they start alike
    with torch.no_grad():
        for table in model.space.temporal.tables.values():
            table[1] += torch.randn_like(table[1])
    after = _score(model, batch)
    torch.testing.assert_close(after[:, 0], before[:, 0])
    assert (after[:, 1] - before[:, 1]).abs()[batch.offsets.diff() > 0].min() > 0


def test_residuals_of_targets_start_at_zero_and_learn(small_store: Path) -> None:
    _, shared = _model(small_store, "tin")
    setup, model = _model(small_store, "tin", "model.time_tables=residual")
    batch = setup.assembler("valid").batch(np.arange(40))
    rows = model.fetch(batch)
    logits = model(batch, rows)
    torch.testing.assert_close(logits, _score(shared, batch), rtol=1e-4, atol=1e-5)
    logits[:, 1].sum().backward()
    for kind, residual in model.space.temporal.residuals.items():
        assert residual.grad[1].any() and not residual.grad[0].any(), kind
        assert model.space.temporal.tables[kind].grad.any()  # what all share learns from everybody


def test_attention_can_be_looked_at(small_store: Path) -> None:
    """For every reading, layer and head weights that sum to one over each history."""
    setup, model = _model(small_store, "stacked_tin", "model.heads=auto", "model.time_tables=own", "model.layers=3")
    batch = setup.assembler("valid").batch(np.arange(40))
    found = model.weights(batch)
    heads = len(model.spaces[-1].heads)
    assert len(found) == 2 and all([len(layer) for layer in reading] == [heads] * 3 for reading in found)
    for weight in (weight for reading in found for layer in reading for weight in layer):
        sums = torch.zeros(40).index_add_(0, torch.repeat_interleave(torch.arange(40), batch.offsets.diff()), weight)
        torch.testing.assert_close(sums, (batch.offsets.diff() > 0).float())


@pytest.mark.parametrize("blank", ["history", "target"])
def test_missing_side_information_everywhere_is_no_obstacle(small_store: Path, blank: str) -> None:
    setup, model = _model(small_store, "tencent_ads", "search.method=none", "model.evidence_from=read")
    batch = setup.assembler("valid").batch(np.arange(20))
    masked = {name: torch.ones_like(ids) for name, ids in getattr(batch, blank).items()}
    batch = replace(batch, **{blank: masked})
    rows = model.train().fetch(batch)
    logits = model(batch, rows)
    logits.sum().backward()
    assert logits.isfinite().all() and all(leaf.grad.isfinite().all() for leaf in model.leaves(rows))


@pytest.mark.parametrize("name", ["tin", "dsi_tin", "td_tin"])
def test_every_action_adds_its_own_to_the_logits(small_store: Path, name: str) -> None:
    """α_i ∝ exp(logit_i + w[action_i]); zero at the start; unknown actions share the last row."""
    setup, plain = _model(small_store, name)
    _, model = _model(small_store, name, "model.action_bias=true")
    batch = setup.assembler("valid").batch(np.arange(40))
    torch.testing.assert_close(_score(model, batch), _score(plain, batch), rtol=0, atol=0)
    batch.history["action"][::7] = 100  # never seen in training
    rows = model.actions.weight.numel()
    with torch.no_grad():
        model.actions.weight.copy_(torch.linspace(-1, 1, rows))
    factor = torch.linspace(-1, 1, rows)[batch.history["action"].clamp(max=rows - 1).long()].exp()
    for before, after in zip(plain.weights(batch), model.weights(batch), strict=True):
        for one, other in zip(before[0], after[0], strict=True):
            for start, stop in zip(batch.offsets[:-1].tolist(), batch.offsets[1:].tolist(), strict=True):
                wanted = one[start:stop] * factor[start:stop]
                torch.testing.assert_close(other[start:stop], wanted / wanted.sum())
    model.train()
    model(batch, model.fetch(batch)).sum().backward()
    assert model.actions.weight.grad[[2, 3, -1]].all()


@pytest.mark.parametrize(
    ("overrides", "says"),
    [(["data.fields=['item','scenario']"], "have no `action`"), (["model.sequence=mean"], "no attention to add to")],
)
def test_a_bias_of_actions_needs_actions_and_attention(small_store: Path, overrides: list[str], says: str) -> None:
    with pytest.raises(InputError, match=says):
        _model(small_store, "tin", "model.action_bias=true", *overrides)


@pytest.mark.parametrize("name", ["tin", "sasrec"])
def test_weights_are_loaded_whatever_features_they_left_out(small_store: Path, name: str) -> None:
    setup, fitted = _model(small_store, name, "model.bins=64")
    whole = setup.model().eval()  # not fitted: as weights were before features were left out
    batch = setup.assembler("valid").batch(np.arange(60))
    assert fitted.numeric.out < whole.numeric.out
    for model in (fitted, whole):
        state, again = model.state_dict(), setup.model().eval()
        if model is whole:
            del state["numeric.kept"]
        again.load_state_dict(state)
        assert torch.equal(_score(again, batch), _score(model, batch))
        again.load_state_dict(state)  # and onto one that has the form already
        assert torch.equal(_score(again, batch), _score(model, batch))
