"""What a ranking is worth: by hand, against other implementations, and without bias where propensities are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from lsm_cli.data.store import Store
from lsm_cli.judging.gmv import Requests, paid_target, replay, snips, value_auc


def slates(requests: int, size: int) -> Requests:
    return Requests(np.repeat(np.arange(requests), size), requests, "request")


def test_captured_value_by_hand() -> None:
    value = np.array([0, 5, 1, 2, 0, 0, 9.0])  # three requests: 0 5 1 | 2 0 | 0 9
    requests = Requests(np.array([0, 0, 0, 1, 1, 2, 2]), 3, "request")
    ours, theirs = np.array([1, 3, 2, 5, 4, 1, 0.0]), np.array([1, 2, 3, 5, 4, 0, 1.0])
    found = replay(requests, value, np.arange(7), (ours, theirs), replicates=200)
    assert found["oracle"] == 16 and found["requests_with_a_choice"] == 3
    assert found["captured"] == {"run": 7 / 16, "other": 12 / 16, "logged order": 2 / 16}
    assert found["lift"].value == pytest.approx(7 / 12 - 1)
    two = replay(requests, value, np.arange(7), (ours, theirs), shown=2, replicates=200)
    assert two["oracle"] == 6 and two["captured"]["run"] == 1  # only the first request has more than two
    same = replay(requests, value, np.arange(7) % 2, (ours, ours.copy()), replicates=200)["lift"]
    assert same.value == 0


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 3))
def test_nothing_beats_the_oracle_and_values_find_it(seed: int, shown: int) -> None:
    rng = np.random.default_rng(seed)
    requests = Requests(np.sort(rng.integers(0, 15, 60)), 15, "request")
    value = rng.lognormal(size=60) * (rng.random(60) < 0.5)
    found = replay(requests, value, rng.integers(0, 9, 60), (value, rng.normal(size=60)), shown, replicates=200)
    assert found["captured"]["run"] == pytest.approx(1)
    assert found["captured"]["other"] <= 1 + 1e-12
    assert requests.first(value, shown).sum() == np.minimum(np.bincount(requests.group), shown).sum()


def test_ties_are_broken_by_lot_and_not_by_the_log() -> None:
    first = slates(3000, 3).first(np.zeros(9000)).reshape(-1, 3)
    assert (first.sum(1) == 1).all() and np.abs(first.mean(0) - 1 / 3).max() < 0.04


def test_requests_are_seconds_or_days(small_store: Path) -> None:
    store = Store.open(small_store)
    samples = store.samples("test")
    days = Requests.of(store, samples)
    user, time = samples.column("user"), samples.column("time") + store.base
    pairs = {(u, t // 86_400) for u, t in zip(user.tolist(), time.tolist(), strict=True)}
    assert days.unit == "day" and days.size == len(pairs)
    samples._columns["time"] = time // 4000 * 4000 - store.base  # now most have company
    seconds = Requests.of(store, samples)
    assert seconds.unit == "request"
    where = {}
    for group, u, t in zip(seconds.group.tolist(), user.tolist(), samples.column("time").tolist(), strict=True):
        assert where.setdefault(group, (u, t)) == (u, t)
    assert len(set(where.values())) == seconds.size


def test_propensities_undo_what_the_log_preferred() -> None:
    """Showing at random is worth 1 a request, the good candidate 2; the log shows the bad ones nine times of ten."""
    rng = np.random.default_rng(0)
    size = 40_000
    good = np.tile([1.0, 0.0], size)
    propensity = np.tile([0.1, 0.9], size)
    shown = rng.random(size) < 0.1
    observed = np.stack([shown, ~shown], 1).ravel()
    value = np.where(good == 1, 2.0, 0.5) * observed
    user = np.repeat(np.arange(size), 2) // 20
    found = snips(slates(size, 2), value, observed, propensity, user, (good, rng.random(2 * size)), replicates=300)
    assert found["value_per_request"]["run"] == pytest.approx(2.0)
    assert found["value_per_request"]["other"] == pytest.approx(1.25, rel=0.05)
    assert found["value_per_request"]["log"] == pytest.approx(0.65, rel=0.05)
    assert found["lift"].low < 0.6 < found["lift"].high and found["lift"].told
    assert found["support"]["run"]["effective"] == pytest.approx(found["support"]["run"]["requests"])
    clipped = snips(slates(size, 2), value, observed, propensity, user, (good, -good), clip=5, replicates=200)
    assert clipped["support"]["run"]["clipped"] == 1 and clipped["support"]["other"]["clipped"] == 0
    same = snips(slates(size, 2), value, observed, propensity, user, (good, good), replicates=200)["lift"]
    assert same.value == same.low == same.high == 0


def test_a_policy_that_nothing_speaks_for_is_not_judged() -> None:
    observed = np.tile([True, False], 50)
    score = np.tile([0.0, 1.0], 50)
    found = snips(slates(50, 2), 1.0 * observed, observed, np.full(100, 0.5), np.arange(100), (score, -score))
    assert found["lift"].value is None and found["support"]["run"]["requests"] == 0


def test_value_weighs_the_positives() -> None:
    rng = np.random.default_rng(2)
    label, score = (rng.random(500) < 0.3).astype(np.int8), rng.normal(size=500)
    value = label * rng.lognormal(size=500)
    found = value_auc(label, value, rng.integers(0, 60, 500), (score, -score))
    truth = roc_auc_score(label, score, sample_weight=np.where(label, value, 1.0))
    assert found.ours == pytest.approx(truth) and found.theirs == pytest.approx(1 - truth)
    assert found.low <= found.value <= found.high


def test_money_is_paid_for_the_rarest_label_that_explains_it() -> None:
    click, order = np.array([1, 1, 1, 0, -1]), np.array([1, 0, 1, 0, -1])
    assert paid_target({"click": click, "order": order}, np.array([3.0, 0, 2, 0, 0])) == "order"
    assert paid_target({"click": click, "order": order}, np.array([3.0, 1, 2, 0, 0])) == "click"
    assert paid_target({"click": click}, np.zeros(5)) is None
    every = np.ones(5)  # what is at stake, whatever happened
    assert paid_target({"click": click, "order": order}, every) == "order"
