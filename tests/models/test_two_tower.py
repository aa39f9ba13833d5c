"""Two towers: what each side may know, what each target owns, and what they learn from."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from lsm_cli import recipe as recipes
from lsm_cli.data.batches import Batch
from lsm_cli.data.store import Store
from lsm_cli.engine.setup import Setup
from lsm_cli.errors import InputError
from lsm_cli.models.history import segments_of
from lsm_cli.models.successors import NEGATIVES
from lsm_cli.models.two_tower import TwoTower


def _model(path: Path, *overrides: str) -> tuple[Setup, TwoTower]:
    options = recipes.load("sasrec", ["model.max_len=20", "model.init_std=0.5", "model.quiet=false", *overrides])
    setup = Setup.of(options, Store.open(path))
    model = setup.model()
    model.fit_numbers(model.numbers(setup.assembler("train").batch(np.arange(200))))
    return setup, model.eval()


@torch.no_grad()
def _users(model: TwoTower, batch: Batch) -> torch.Tensor:
    return model.users(batch, model.fetch(batch))


@torch.no_grad()
def _score(model: TwoTower, batch: Batch) -> torch.Tensor:
    return model(batch, model.fetch(batch))


def _other_candidates(batch: Batch) -> Batch:
    target = {name: ids if name == "scenario" else ids.flip(0) for name, ids in batch.target.items()}
    return replace(batch, target=target, statistics=batch.statistics.flip(0))


def test_the_users_vector_never_sees_the_candidate(small_store: Path) -> None:
    setup, model = _model(small_store)
    batch = setup.assembler("valid").batch(np.arange(60))
    other = _other_candidates(batch)
    torch.testing.assert_close(_users(model, other), _users(model, batch), rtol=0, atol=0)
    assert not torch.allclose(_score(model, other), _score(model, batch))


def test_the_users_vector_sees_the_request_and_the_past(small_store: Path) -> None:
    setup, model = _model(small_store)
    batch = setup.assembler("valid").batch(np.arange(60))
    before = _users(model, batch)
    shifted = [
        replace(batch, target={**batch.target, "scenario": 2 + (batch.target["scenario"] - 1) % 3}),
        replace(batch, calendar=(batch.calendar + 1) % 7),
        replace(batch, age=batch.age * 50),
        replace(batch, history={**batch.history, "item": 2 + batch.history["item"] % 40}),
    ]
    for number, other in enumerate(shifted):
        after, seen = _users(model, other), batch.offsets.diff() > 0
        assert not torch.allclose(after[seen], before[seen]), number


def test_the_score_is_the_product_of_the_towers_and_what_is_known_without_the_other(small_store: Path) -> None:
    setup, model = _model(small_store)
    batch = setup.assembler("valid").batch(np.arange(40))
    with torch.no_grad():
        rows = model.fetch(batch)
        users, items = model.users(batch, rows), model.items(rows)
        own = model.tower([model.numeric(batch.statistics), *model._hours(batch), items], [])
        for b in range(40):
            for target in range(2):
                literal = (users[b, target, :-1] * items[b]).sum() + users[b, target, -1] + own[b, target]
                torch.testing.assert_close(model(batch, rows)[b, target], literal, rtol=1e-4, atol=1e-4)
        bare = ["data.statistics=false", "data.calendar=false", "model.candidate=false"]
        setup, plain = _model(small_store, *bare)
        assert plain.tower is None and plain.numeric.size == 0
        rows = plain.fetch(batch)
        users = plain.users(batch, rows)
        expected = torch.einsum("btv,bv->bt", users[..., :-1], plain.items(rows)) + users[..., -1]
        torch.testing.assert_close(plain(batch, rows), expected)


def test_other_rows_of_the_batch_never_change_a_score(small_store: Path) -> None:
    setup, model = _model(small_store)
    assembler = setup.assembler("valid")
    together = _score(model, assembler.batch(np.arange(60)))
    for row in (0, 7, 59):
        torch.testing.assert_close(
            _score(model, assembler.batch(np.array([row])))[0], together[row], rtol=1e-4, atol=1e-5
        )
    backwards = _score(model, assembler.batch(np.arange(60)[::-1].copy()))
    torch.testing.assert_close(backwards.flip(0), together, rtol=1e-4, atol=1e-5)


def test_an_empty_history_leaves_what_the_request_says(small_store: Path) -> None:
    setup, model = _model(small_store)
    assembler = setup.assembler("valid")
    empty = np.flatnonzero(assembler.lengths(np.arange(len(assembler))) == 0)
    assert len(empty) > 2
    batch = assembler.batch(empty)
    assert batch.behaviours == 0
    alike = {**batch.target, "scenario": torch.full_like(batch.target["scenario"], 2)}
    found = _users(model, replace(batch, target=alike, calendar=torch.zeros_like(batch.calendar)))
    torch.testing.assert_close(found, found[:1].expand_as(found))


@pytest.mark.parametrize("tables", ["own", "residual", "shared"])
def test_each_target_has_its_own_sense_of_time(small_store: Path, tables: str) -> None:
    setup, model = _model(small_store, f"model.time_tables={tables}")
    assert model.readings == ([None] if tables == "shared" else [0, 1])
    batch = setup.assembler("valid").batch(np.arange(40))
    before = _users(model, batch)
    with torch.no_grad():
        times = model.space.temporal.residuals if tables == "residual" else model.space.temporal.tables
        for table in times.values():
            table[-1] += torch.randn_like(table[-1])
    after = _users(model, batch)
    assert torch.equal(after[:, 0], before[:, 0]) == (tables != "shared")
    assert not torch.allclose(after[:, 1], before[:, 1])


def test_tokens_read_apart_as_together(small_store: Path) -> None:
    """With the same tables for all, one reading with all tokens equals one reading per target."""
    _, together = _model(small_store, "model.time_tables=shared")
    setup, apart = _model(small_store, "model.time_tables=own")
    state = {
        name: value.expand(2, -1, -1) if "temporal" in name else value for name, value in together.state_dict().items()
    }
    apart.load_state_dict(state)
    batch = setup.assembler("valid").batch(np.arange(40))
    torch.testing.assert_close(_users(apart, batch), _users(together, batch), rtol=1e-4, atol=1e-5)


def test_the_softmax_equals_its_equation(small_store: Path) -> None:
    """-log softmax of ⟨z, v_j⟩ - log q_j over the batch, without other places of the positive's own item."""
    setup, model = _model(small_store, "train.softmax=0.7", "train.next_item=0")
    samples = setup.store.samples("train")
    item = np.asarray(samples.column("item"))
    batch = setup.assembler("train").batch(np.arange(64))
    with torch.no_grad():
        rows = model.fetch(batch)
        logits, extra = model.learn(batch, rows)
        torch.testing.assert_close(logits, model(batch, rows))
        users, items = model.users(batch, rows), model.items(rows)
        unknown = model.space.bank.tables[0].rows - 1
        known = np.minimum(item, unknown)
        for target in range(2):
            losses = []
            for b in np.flatnonzero(batch.labels[:, target].numpy() == 1):
                scores = []
                for j in range(64):
                    if j == b or known[j] != known[b]:
                        share = (known == known[j]).mean()
                        scores.append(float(users[b, target, :-1] @ items[j]) - np.log(share))
                own = float(users[b, target, :-1] @ items[b]) - np.log((known == known[b]).mean())
                losses.append(np.log(np.exp(np.array(scores)).sum()) - own)
            assert float(extra[target]) == pytest.approx(0.7 * np.mean(losses), rel=1e-4)


def test_a_target_without_positives_in_a_batch_adds_nothing(small_store: Path) -> None:
    setup, model = _model(small_store, "train.softmax=1", "train.next_item=0")
    batch = setup.assembler("train").batch(np.arange(32))
    batch.labels[:, 1] = torch.nan
    _, extra = model.learn(batch, model.fetch(batch))
    assert extra[0] > 0 and extra[1] == 0


@pytest.mark.parametrize("tables", ["own", "shared"])
def test_the_guess_at_what_follows_equals_its_equation(small_store: Path, tables: str) -> None:
    """log(1 + Σ_j exp⟨z_i, v_j - v_{i+1}⟩) over the behaviours of the batch, history by history, target by target."""
    setup, model = _model(small_store, "train.softmax=0", "train.next_item=0.7", f"model.time_tables={tables}")
    batch = setup.assembler("train").batch(np.arange(400, 408))
    with torch.no_grad():
        rows, segments = model.fetch(batch), segments_of(batch)
        logits, extra = model.learn(batch, rows)
        torch.testing.assert_close(logits, model(batch, rows))
        unknown = model.space.bank.tables[0].rows - 1
        item = np.minimum(batch.history["item"].numpy(), unknown)
        looked_up = [model.space.bank.look(name, batch.history[name]) for name in model.item]
        vectors = torch.cat([table[place] for table, place in looked_up], 1)
        assert 50 < len(item) <= NEGATIVES
        for target in range(2):
            parts, places = model.space.parts(segments, rows[0]), model.space.places(batch, segments)
            seen_by = None if tables == "shared" else target
            written = model.space.history(segments, parts, places, {}, seen_by).positions()
            readout = (model.readout.mean(0) if tables == "shared" else model.readout[target])[:, :-1]
            losses = []
            for start, end in pairwise(batch.offsets.tolist()):
                alone, token = written[start:end].unsqueeze(0), torch.zeros(1, 1, model.space.width)
                states = model.encoder(alone, token, torch.ones(1, end - start, dtype=torch.bool), whole=True)[0][0]
                for i in range(end - start - 1):
                    wanted, scores = start + i + 1, vectors @ (states[i] @ readout)
                    told_from = torch.from_numpy((item != unknown) & (item != item[wanted]))
                    told_from[wanted] = True
                    if item[wanted] != unknown:
                        losses.append(float(scores[told_from].logsumexp(0) - scores[wanted]))
            assert len(losses) > 30
            assert float(extra[target]) == pytest.approx(0.7 * np.mean(losses), rel=1e-4)


def test_what_follows_is_guessed_without_the_candidates(small_store: Path) -> None:
    setup, model = _model(small_store, "train.softmax=0", "train.next_item=1")
    batch = setup.assembler("train").batch(np.arange(64))
    with torch.no_grad():
        _, one = model.learn(batch, model.fetch(batch))
        other = _other_candidates(batch)
        _, two = model.learn(other, model.fetch(other))
    torch.testing.assert_close(one, two)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model.evidence=true"], "model.evidence to false"),
        (["search.method=hard"], "search.method to none"),
        (["model.max_len=0"], "set model.max_len"),
        (['model.item_fields=["brand"]'], "'brand' is no field of the candidates"),
        (['model.request_fields=["action"]'], "'action' is no field of the candidates"),
        (['model.item_fields=["scenario"]', 'model.request_fields=["scenario"]'], "already"),
        (['model.request_fields=["item"]'], "model.request_fields: `item` is what the request is answered with"),
        (['data.fields=["category1","scenario"]'], "add `item` to data.fields"),
    ],
)
def test_what_would_break_the_towers_is_refused(small_store: Path, overrides: list[str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Setup.of(recipes.load("sasrec", overrides), Store.open(small_store))


@pytest.mark.parametrize("key", ["train.softmax", "train.next_item"])
def test_what_teaches_towers_needs_towers(key: str) -> None:
    with pytest.raises(InputError, match=rf"{key}: only sasrec"):
        recipes.load("tin", [f"{key}=1"])


@pytest.mark.parametrize("key", ["model.item_fields", "model.request_fields"])
def test_what_tells_the_sides_apart_needs_sides(key: str) -> None:
    with pytest.raises(InputError, match=rf"{key}: only sasrec"):
        recipes.load("tin", [f'{key}=["scenario"]'])


def test_sides_are_said(small_store: Path) -> None:
    setup, _ = _model(small_store)
    (line,) = [line for line in setup.decisions() if line.startswith("towers")]
    assert "item: item, category1, category2; request: scenario" in line
