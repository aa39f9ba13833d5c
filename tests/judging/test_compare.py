"""Differences of two models: right to the last digit where they can be, and intervals that hold what they promise."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from lsm_cli.engine import metrics
from lsm_cli.judging.compare import METRICS, Difference, Resampling, compare, interval


def sample(
    rng: np.random.Generator, users: int, rows: int, taste: float = 0.8
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(label, user, logit that drew the label): some users act more often than others."""
    user = rng.integers(0, users, rows)
    logit = rng.normal(0, taste, users)[user] + rng.normal(0, 1, rows) - 1
    return (rng.random(rows) < 1 / (1 + np.exp(-logit))).astype(np.int8), user, logit


def exact(label: np.ndarray, user: np.ndarray, logit: np.ndarray, counts: np.ndarray) -> dict[str, float]:
    """The metrics when every user's rows occur as often as the user was drawn: what the sums stand for."""
    rows = np.repeat(np.arange(len(label)), counts[user])
    clone = np.concatenate([np.arange(n) for n in counts[user]]) if len(rows) else rows
    return {
        "auc": metrics.auc(label[rows], logit[rows]),
        "gauc": metrics.gauc(label[rows], logit[rows], user[rows] * 1000 + clone),
        "logloss": metrics.log_loss(label[rows], logit[rows]),
    }


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 12), st.booleans())
def test_the_point_is_the_metric_itself(seed: int, users: int, tied: bool) -> None:
    rng = np.random.default_rng(seed)
    label, user, logit = sample(rng, users, 80)
    ours, theirs = (np.round(score) if tied else score for score in (logit, rng.normal(size=80)))
    found = compare(label, user, ours, theirs, {"half": {"even": np.arange(80) % 2 == 0}}, replicates=200)
    for part, rows in ((found, slice(None)), (found["slices"]["half"]["even"], slice(None, None, 2))):
        for name in METRICS:
            for said, score in ((part[name].ours, ours), (part[name].theirs, theirs)):
                truth = metrics.summary(label[rows], score[rows], user[rows])[name]
                assert (said is None) == (truth is None)
                if said is not None:
                    assert said == pytest.approx(truth, abs=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 60))
def test_placements_average_to_the_auc(seed: int, distinct: int) -> None:
    rng = np.random.default_rng(seed)
    label, score = rng.random(70) < 0.4, rng.integers(0, distinct, 70).astype(float)
    weight = rng.random(70)
    if not 0 < label.sum() < 70:
        return
    below, above = metrics.placements(label * weight, 1.0 - label, score)
    truth = roc_auc_score(label, score, sample_weight=np.where(label, weight, 1.0))
    assert np.average(below[label], weights=weight[label]) == pytest.approx(truth, abs=1e-12)
    assert above[~label].mean() == pytest.approx(truth, abs=1e-12)


def test_replicates_are_what_repeating_the_users_gives() -> None:
    """Ratios exactly; the AUC, of which only the first order is taken, nearly."""
    rng = np.random.default_rng(3)
    label, user, logit = sample(rng, 200, 3_000)
    other = logit + rng.normal(0, 1.5, len(logit))
    resampling = Resampling(user, 50, seed=5)
    spread = {name: [] for name in METRICS}
    for counts in (row.astype(int) for block in resampling._counts() for row in block):
        ours, theirs = (exact(label, user, score, counts) for score in (logit, other))
        for name in METRICS:
            spread[name].append(ours[name] - theirs[name])
    found = compare(label, user, logit, other, replicates=200, seed=5)
    for name in METRICS:
        draws = np.array(spread[name])
        half = (found[name].high - found[name].low) / 2
        assert draws.std(ddof=1) * 1.96 == pytest.approx(half, rel=0.25)
        assert draws.mean() == pytest.approx(found[name].value, abs=half / 3)


def test_a_model_against_itself_is_no_difference() -> None:
    label, user, logit = sample(np.random.default_rng(0), 50, 2_000)
    for one in (found := compare(label, user, logit, logit.copy()))["auc"], found["gauc"], found["logloss"]:
        assert one.value == one.low == one.high == 0 and one.verdict == "no difference" and not one.told


def test_swapping_the_models_turns_the_answer_round() -> None:
    rng = np.random.default_rng(1)
    label, user, logit = sample(rng, 200, 5_000)
    other = logit + rng.normal(0, 2, len(logit))
    there, back = compare(label, user, logit, other, seed=4), compare(label, user, other, logit, seed=4)
    for name in METRICS:
        assert there[name].low == pytest.approx(-back[name].high, abs=1e-9)
        assert "better by" in there[name].verdict and "worse by" in back[name].verdict


def test_the_same_seed_the_same_interval_and_rows_in_any_order() -> None:
    rng = np.random.default_rng(2)
    label, user, logit = sample(rng, 80, 1_000)
    other, order = logit + rng.normal(size=1_000), rng.permutation(1_000)
    one = compare(label, user, logit, other, seed=1)
    again = compare(label[order], user[order] + 7, logit[order], other[order], seed=1)
    for name in METRICS:
        assert one[name].low == pytest.approx(again[name].low, abs=1e-9)
    assert one["auc"].low != compare(label, user, logit, other, seed=2)["auc"].low


def test_what_cannot_be_told_is_not() -> None:
    label, user, logit = sample(np.random.default_rng(0), 5, 500)
    few = compare(label, user, logit, -logit)["auc"]
    assert few.low is None and few.verdict == "too few users (5) to tell"
    one_class = compare(np.zeros(50, np.int8), np.arange(50), np.zeros(50), np.ones(50))
    assert one_class["auc"].verdict == "not defined here" and one_class["logloss"].told
    nothing = compare(np.empty(0, np.int8), np.empty(0, int), np.empty(0), np.empty(0))
    assert nothing["logloss"].value is None
    assert interval(np.full(1000, np.nan), 500) == (None, None)
    assert Difference(0.5, 0.4, -0.1, 0.3, 1, 50).verdict.startswith("no difference can be told")


def test_few_users_get_wider_intervals() -> None:
    draws = np.random.default_rng(0).normal(size=200_000)
    wide, narrow = interval(draws, 12), interval(draws, 100_000)
    assert narrow[1] == pytest.approx(1.96, abs=0.03)
    assert wide[1] == pytest.approx(2.201 * (12 / 11) ** 0.5, abs=0.05)  # Student's t with 11 degrees of freedom


def test_a_hundred_thousand_rows_take_seconds() -> None:
    rng = np.random.default_rng(0)
    label, user, logit = sample(rng, 10_000, 100_000)
    slices = {"tenth": {str(n): rng.integers(0, 10, 100_000) == 0 for n in range(10)}}
    started = time.process_time()
    compare(label, user, logit, logit + rng.normal(size=100_000), slices, replicates=1000)
    assert time.process_time() - started < 12  # 2 seconds on a quiet core
