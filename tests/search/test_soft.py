"""Soft search takes the best scores and nothing else, and reading a history once for all is only a matter of cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lsm_cli import recipe as recipes
from lsm_cli.data.batches import Batch, Queries
from lsm_cli.data.orders import ragged_arange
from lsm_cli.data.store import Store
from lsm_cli.engine.feed import Feed
from lsm_cli.engine.setup import Setup
from lsm_cli.errors import InputError
from lsm_cli.kernels import topk
from lsm_cli.kernels.ragged import Segments
from lsm_cli.models.history import Match, _Equal
from lsm_cli.models.ranking import RankingModel
from lsm_cli.models.temporal import LONGEST_RANK, log_bucket, rank_bucket
from lsm_cli.search import soft

LENGTHS = st.lists(st.integers(0, 40), min_size=0, max_size=8)


def ragged(lengths: list[int], seed: int, values: int) -> tuple[torch.Tensor, Segments]:
    """Scores with many ties, some of them -inf."""
    rng = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    scores = rng.integers(-values, values + 1, int(offsets[-1])).astype(np.float32) / 2
    scores[rng.random(len(scores)) < 0.1] = -np.inf
    return torch.from_numpy(scores), Segments(torch.from_numpy(offsets))


def brute(scores: torch.Tensor, segments: Segments, k: int, keep: torch.Tensor) -> list[list[int]]:
    found = []
    for a, b in zip(segments.offsets[:-1].tolist(), segments.offsets[1:].tolist(), strict=True):
        free = [i for i in range(a, b) if not keep[i] and scores[i] > -np.inf]
        best = sorted(free, key=lambda i: (-float(scores[i]), -i))[:k]
        found.append(sorted(best + [i for i in range(a, b) if keep[i]]))
    return found


def split(offsets: torch.Tensor, place: torch.Tensor) -> list[list[int]]:
    assert offsets[-1] == len(place)
    return [part.tolist() for part in place.tensor_split(offsets[1:-1])] if len(offsets) > 1 else []


@settings(max_examples=200, deadline=None)
@given(
    lengths=LENGTHS,
    seed=st.integers(0, 1 << 30),
    k=st.integers(0, 50),
    values=st.sampled_from([0, 1, 5, 1000]),
    kept=st.sampled_from([0.0, 0.2, 1.0]),
)
def test_equals_brute_force(lengths: list[int], seed: int, k: int, values: int, kept: float) -> None:
    scores, segments = ragged(lengths, seed, values)
    keep = torch.from_numpy(np.random.default_rng(seed + 1).random(len(scores)) < kept)
    expected = brute(scores, segments, k, keep)
    assert split(*soft.top_k(scores, segments, k, keep)) == expected
    if not kept:
        assert split(*soft.top_k(scores, segments, k)) == expected
    value = scores.masked_fill(keep, -torch.inf)
    by_sorting = topk.by_sorting(value, segments, k).numpy()
    assert np.array_equal(np.flatnonzero(by_sorting), soft.by_threshold(value.numpy(), segments.offsets.numpy(), k))


@settings(max_examples=100, deadline=None)
@given(
    size=st.integers(2, 400), k=st.integers(1, 12), kinds=st.sampled_from([2, 5, 1000]), seed=st.integers(0, 1 << 30)
)
def test_the_kth_best_is_the_kth_best(size: int, k: int, kinds: int, seed: int) -> None:
    """Whatever the order, with ties and with behaviours that may never be found."""
    rng = np.random.default_rng(seed)
    value = rng.integers(0, kinds, size).astype(np.float32)
    value[rng.random(size) < 0.2] = -np.inf
    k = min(k, size - 1)
    assert soft.kth_best(value, k) == np.sort(value)[-k]


@settings(max_examples=60, deadline=None)
@given(lengths=LENGTHS.filter(bool), seed=st.integers(0, 1 << 30), k=st.integers(1, 30))
def test_other_samples_and_their_order_change_nothing(lengths: list[int], seed: int, k: int) -> None:
    scores, segments = ragged(lengths, seed, 3)
    alone = list(scores.tensor_split(segments.offsets[1:-1]))
    together = split(*soft.top_k(scores, segments, k))
    order = np.random.default_rng(seed).permutation(len(lengths))
    turned = Segments(torch.from_numpy(np.concatenate([[0], np.cumsum(np.array(lengths)[order])])))
    permuted = split(*soft.top_k(torch.cat([alone[b] for b in order]), turned, k))
    for place, b in enumerate(order):
        single = split(*soft.top_k(alone[b], Segments(torch.tensor([0, lengths[b]])), k))[0]
        assert [i - int(segments.offsets[b]) for i in together[b]] == single
        assert [i - int(turned.offsets[place]) for i in permuted[place]] == single


def test_what_may_never_be_found_makes_no_room_for_others() -> None:
    """A worse behaviour appended to a history, or one that is -inf, does not disturb what is best."""
    scores = torch.tensor([3.0, 1.0, 2.0, -torch.inf, 0.5])
    assert split(*soft.top_k(scores[:3], Segments(torch.tensor([0, 3])), 2)) == [[0, 2]]
    assert split(*soft.top_k(scores, Segments(torch.tensor([0, 5])), 2)) == [[0, 2]]
    assert split(*soft.top_k(scores, Segments(torch.tensor([0, 5])), 5)) == [[0, 1, 2, 4]]


@pytest.mark.parametrize("length", [3, 100])
def test_a_score_that_is_no_number_is_an_error(length: int) -> None:
    scores = torch.arange(float(length))
    scores[1] = torch.nan
    with pytest.raises(InputError, match=r"smaller train\.lr"):
        soft.top_k(scores, Segments(torch.tensor([0, length])), 2)


def queries(seed: int, users: int, size: int, reach: int) -> Queries:
    """Requests at a few times, so that some are shared by several candidates."""
    rng = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(rng.integers(0, 30, users))])
    user = rng.integers(0, users, size)
    end = offsets[user] + ((offsets[user + 1] - offsets[user]) * rng.integers(0, 4, size) // 3)
    return Queries(user, np.maximum(offsets[user], end - reach), end, end + rng.integers(0, 2, size), {})


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 1 << 30),
    users=st.integers(1, 6),
    size=st.integers(1, 30),
    reach=st.sampled_from([1, 5, 1000]),
)
def test_shared_scores_stand_for_each_samples_own_behaviours(seed: int, users: int, size: int, reach: int) -> None:
    asked = queries(seed, users, size, reach)
    shared = soft.share(asked)
    lengths = asked.end - asked.first
    assert sorted(shared.order) == list(range(size)) and shared.scores == lengths.sum() == shared.offsets[-1]
    assert np.array_equal(np.diff(shared.offsets), lengths[shared.order])
    everything = shared.pointers(shared.offsets, np.arange(shared.scores))
    for b in range(size):
        own = everything.pointer[everything.offsets[b] : everything.offsets[b + 1]]
        assert own.tolist() == list(range(asked.first[b], asked.end[b]))
    _, pointer, rank = shared.seen()
    histories = shared.histories
    whole = ragged_arange(histories.first, np.diff(histories.offsets))[1]
    for request, owner in zip(shared.requests(), shared.owner, strict=True):
        seen = pointer[request.places]
        assert np.array_equal(seen, whole[request.behaviours])
        assert np.array_equal(np.diff(histories.offsets)[owner], request.history.stop - request.history.start)
        for b in shared.order[request.candidates]:
            assert seen.tolist() == list(range(asked.first[b], asked.end[b]))
            assert rank[request.places].tolist() == list(range(len(seen), 0, -1))
    requests = len(set(zip(asked.user.tolist(), asked.end.tolist(), asked.time.tolist(), strict=True)))
    assert len(shared.owner) == requests
    if reach > 30:  # whole histories: each is read once
        longest = {user: int(lengths[asked.user == user].max()) for user in asked.user.tolist()}
        assert len(whole) == sum(longest.values())
    assert len(whole) <= shared.scores


@pytest.mark.parametrize(
    ("candidates", "length", "narrow", "pays"),
    [
        (16, 1000, False, True), (4, 1000, False, True), (1, 10_000, False, False), (1, 10_000, True, True),
        (1, 1000, True, False), (16, 10, False, False),
    ],
)  # fmt: skip
def test_histories_are_shared_where_it_pays(candidates: int, length: int, narrow: bool, pays: bool) -> None:
    user = np.repeat(np.arange(8), candidates)
    asked = Queries(user, user * length, (user + 1) * length, np.full(len(user), 5), {})
    assert soft.share(asked).pays(narrow) == pays


def feed(store: Path, name: str, *overrides: str) -> tuple[Feed, RankingModel]:
    recipe, *own = name.split()
    setup = Setup.of(recipes.load(recipe, ["search.top_k=6", *own, *overrides]), Store.open(store))
    model = setup.model()
    with torch.no_grad():
        for weight in model.spaces[-1].heads.bias.parameters():
            weight.copy_(torch.linspace(0.2, 1.5, len(weight)))
        if model.actions is not None:
            model.actions.weight.normal_()
        if model.items is not None:
            model.items.fill(torch.randn_like(model.items.vectors))
        for space in model.spaces:
            for table in space.temporal.parameters() if space.temporal is not None else ():
                table.add_(0.3 * torch.randn_like(table))
    return Feed(setup, "train"), model


def value(chosen: Batch, scores: torch.Tensor, everything: Batch) -> list[list[float]]:
    """The scores of what was chosen, by sample, the best first."""
    found = []
    for b in range(chosen.size):
        ranks = chosen.rank[int(chosen.offsets[b]) : int(chosen.offsets[b + 1])].long()
        found.append(sorted(scores[int(everything.offsets[b + 1]) - ranks].tolist(), reverse=True))
    return found


SDIM = "tin search.method=sdim search.hashes=12 search.hash_bits=3"


@pytest.mark.parametrize("reach", [0, 7])
@pytest.mark.parametrize("name", ["twin", "dare", "sim_soft", "eta", SDIM, "hybrid"])
@pytest.mark.parametrize("by_user", [True, False])
def test_reading_a_history_once_finds_the_same(
    small_store: Path, name: str, reach: int, by_user: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, model = feed(small_store, name, f"search.reach={reach}", "search.hard_k=2", "search.recent=1")
    index = np.arange(200)
    if by_user:
        index = index[np.argsort(reader.user[index], kind="stable")]
    index = np.concatenate([index, index[:20]])  # several candidates of the same request
    everything = reader.assembler.batch(index)
    scores = reader.scores(everything, model)
    monkeypatch.setattr(soft, "PAYS", 1 << 60)
    single = reader.batch(index, model)
    monkeypatch.setattr(soft, "PAYS", 0)
    joint = reader.batch(index, model)
    assert torch.equal(joint.offsets, single.offsets) and joint.behaviours > 500
    for mine, other in zip(value(joint, scores, everything), value(single, scores, everything), strict=True):
        assert mine == pytest.approx(other, abs=1e-5)  # only scores that are equal but for rounding may change places
    other = everything.rank.new_zeros(0)
    for b in range(joint.size):  # and all of a behaviour is what the history holds at its place
        ranks = joint.rank[int(joint.offsets[b]) : int(joint.offsets[b + 1])].long()
        other = torch.cat([other, int(everything.offsets[b + 1]) - ranks])
    expected = everything.select(joint.offsets, other)
    assert torch.equal(joint.age, expected.age) and torch.equal(joint.labels.nan_to_num(), expected.labels.nan_to_num())
    assert all(torch.equal(ids, expected.history[name]) for name, ids in joint.history.items())
    assert all(torch.equal(ids, expected.target[name]) for name, ids in joint.target.items())


@pytest.mark.parametrize(
    "overrides",
    [
        ["model.temporal=[]"],
        ["model.match_bias=false"],
        ["model.sequence=mhta"],
        ['model.temporal=["rank"]', "model.attention_dim=3"],
        ["model.heads=auto"],
        ['model.heads=[["item","scenario"],["category","item"],["time"]]', "model.attention_dim=3"],
        ["model.time_tables=own"],
        ["model.time_tables=residual", "model.heads=auto"],
        ["model.action_bias=true", "model.heads=auto"],
        ["model.graph_dim=4", "model.attention_dim=3"],
    ],
)
def test_joint_logits_equal_those_of_single_histories(small_store: Path, overrides: list[str]) -> None:
    """The mean over heads of ⟨ẽ_i, ṽ⟩/√d and bias, with the behaviour's age and rank for each of its candidates."""
    reader, model = feed(small_store, "tin", "search.method=soft", *overrides)
    index = np.sort(np.random.default_rng(0).permutation(len(reader))[:150])
    asked = reader.assembler.queries(index)
    shared = soft.share(asked)
    assert len(shared.histories.offsets) - 1 < len(shared.owner)  # several requests read one history
    history, query = reader._jointly(index, shared, asked, model)
    keys, single = model.keys(reader.assembler.batch(index[shared.order]))
    torch.testing.assert_close(query, single)
    torch.testing.assert_close(history.combined(query), keys.combined(single), rtol=1e-4, atol=1e-5)
    if query.dim() == 2:
        torch.testing.assert_close(history.scores(query, False), keys.scores(single, False), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dim", [3, 8])
def test_looking_into_the_tables_finds_what_fetching_does(small_store: Path, dim: int) -> None:
    reader, model = feed(small_store, "tin", "search.method=soft", f"model.attention_dim={dim}")
    batch = reader.assembler.batch(np.arange(100))
    segments = Segments(batch.offsets, batch.behaviours)
    looked, fetched = (model.spaces[-1].looked_up(batch, segments, distinct) for distinct in (False, True))
    for mine, other in zip(looked, fetched, strict=True):
        assert torch.equal(mine.table[mine.at.ids], other.table[other.at.ids])
    (keys, query), (other, asked) = model.keys(batch), model.keys(batch, distinct=True)
    torch.testing.assert_close(keys.combined(query), other.combined(asked), rtol=1e-5, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(kinds=st.sampled_from([[2, 2], [1000, 1000], [1000, 2, 1000]]), seed=st.integers(0, 1 << 30))
def test_matches_add_the_same_whether_few_or_many(kinds: list[int], seed: int) -> None:
    """Request by request, as the share of matches changes from one to the next."""
    rng = np.random.default_rng(seed)
    ids = torch.from_numpy(np.concatenate([rng.integers(0, kind, 50) for kind in kinds]))
    wanted = torch.from_numpy(rng.integers(-1, 1000, 4 * len(kinds)) % np.repeat(kinds, 4))
    equal = _Equal(Match(ids, wanted, torch.tensor(0.7)))
    for place in range(len(kinds)):
        asked, seen = slice(4 * place, 4 * place + 4), slice(50 * place, 50 * place + 50)
        out = torch.from_numpy(rng.random((4, 50), np.float32))
        expected = out + 0.7 * (ids[None, seen] == wanted[asked, None])
        equal.add(asked, seen, out)
        torch.testing.assert_close(out, expected)


@settings(max_examples=60, deadline=None)
@given(lengths=LENGTHS, buckets=st.sampled_from([1, 8, 32]))
def test_ranks_have_the_buckets_of_their_logarithms(lengths: list[int], buckets: int) -> None:
    ranks = [torch.arange(length, 0, -1, dtype=torch.int32) for length in lengths]
    rank = torch.cat([*ranks, torch.zeros(0, dtype=torch.int32)])
    assert torch.equal(rank_bucket(rank, buckets), log_bucket(rank, buckets, LONGEST_RANK))


def test_rows_are_fetched_once_per_history(small_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixteen candidates cost the reads of one."""
    reader, model = feed(small_store, "dare")
    monkeypatch.setattr(soft, "PAYS", 0)
    read = []
    gather = reader.assembler.batch

    def counted(*arguments: Any) -> Batch:
        made = gather(*arguments)
        read.append(made.behaviours)
        return made

    monkeypatch.setattr(reader.assembler, "batch", counted)
    sample = int(np.argmax(reader.assembler.lengths(np.arange(len(reader)))))
    chosen = reader.batch(np.full(16, sample), model)
    length = int(reader.assembler.lengths(np.array([sample]))[0])
    assert sum(read) - chosen.behaviours == length


def fresh(store: Path, name: str, *overrides: str) -> tuple[RankingModel, Batch]:
    setup = Setup.of(recipes.load(name, ["model.match_bias=false", *overrides]), Store.open(store))
    return setup.model(), setup.assembler("train").batch(np.arange(200))


@pytest.mark.parametrize("name", ["tin", "dare"])
def test_a_fresh_attention_goes_by_side_information_alone(small_store: Path, name: str) -> None:
    """Random encodings of time would drown the matches of narrow fields; from zero they are learned all the same.
    A representation that no attention goes by keeps its random ones."""
    scattered, batch = fresh(small_store, name, "model.temporal_start=random")
    keys, query = scattered.keys(batch)
    assert not torch.allclose(keys.scores(query), keys.scores(query, added=False))
    model, _ = fresh(small_store, name, "model.temporal_start=zero", "model.quiet=false")
    keys, query = model.keys(batch)
    torch.testing.assert_close(keys.scores(query), keys.scores(query, added=False))
    model.fit_numbers(model.numbers(batch))
    model(batch, model.fetch(batch)).sum().backward()
    for space in model.spaces:
        for table in space.temporal.tables.values():
            assert table.grad is not None and table.grad.any()
            assert bool(table.any()) == (space is not model.spaces[-1])


def test_the_attentions_own_rows_may_start_wider(small_store: Path) -> None:
    """Twice as wide, four times the scores; the representation and the fresh tables of later epochs stay what they
    were."""
    narrow, batch = fresh(small_store, "dare", "model.temporal_start=zero", "model.attention_std=0")
    wide, _ = fresh(small_store, "dare", "model.temporal_start=zero", "model.attention_std=0.6")
    for table in wide.spaces[-1].bank.tables:
        table.weight.zero_()
    wide.reset_tables()
    scores = [keys.scores(query) for keys, query in (model.keys(batch) for model in (narrow, wide))]
    torch.testing.assert_close(scores[1], 4 * scores[0], rtol=1e-4, atol=1e-4)
    for ours, theirs in zip(narrow.space.bank.tables, wide.space.bank.tables, strict=True):
        assert torch.equal(ours.weight, theirs.weight)
