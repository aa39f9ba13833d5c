"""Standard errors agree with a bootstrap of users, and their intervals cover at the stated rate."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lsm_cli.engine import metrics
from lsm_cli.engine.certainty import errors, interval


def _world(rng: np.random.Generator, users: int, rows: int = 30) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of one user share a taste that moves label and score alike, so they are far from independent."""
    user = np.repeat(np.arange(users), rng.integers(1, rows, users))
    taste = rng.normal(size=users)[user]
    signal = rng.normal(size=len(user))
    label = (rng.random(len(user)) < 1 / (1 + np.exp(1 - taste - signal))).astype(np.int8)
    return label, (taste + 0.5 * signal - 1).astype(np.float32), user


def _bootstrap(label: np.ndarray, logit: np.ndarray, user: np.ndarray, draws: int) -> dict[str, float]:
    rng, starts = np.random.default_rng(1), np.flatnonzero(np.diff(user, prepend=-1))
    parts = np.split(np.arange(len(user)), starts[1:])
    found = []
    for _ in range(draws):
        chosen = rng.integers(0, len(parts), len(parts))
        rows = np.concatenate([parts[one] for one in chosen])
        whose = np.repeat(np.arange(len(parts)), [len(parts[one]) for one in chosen])  # drawn twice = two users
        found.append([*metrics.summary(label[rows], logit[rows], whose).values()][:3])
    return dict(zip(("auc", "gauc", "logloss"), np.std(found, axis=0), strict=True))


def test_errors_agree_with_a_bootstrap_of_users() -> None:
    world = _world(np.random.default_rng(0), 300)
    found, resampled = errors(*world), _bootstrap(*world, draws=400)
    for name, value in resampled.items():
        assert found[name] == pytest.approx(value, rel=0.12), name


def test_intervals_cover_at_the_stated_rate() -> None:
    rng = np.random.default_rng(2)
    label, logit, user = _world(rng, 40_000, 8)
    truth = metrics.summary(label, logit, user)
    hits = dict.fromkeys(("auc", "gauc", "logloss"), 0)
    for _ in range(300):
        world = _world(rng, 150, 8)
        found, error = metrics.summary(*world), errors(*world)
        for name in hits:
            low, high = interval(found[name], error[name])
            hits[name] += low <= truth[name] <= high
    for name, count in hits.items():  # 95% of 300 is 285; 271 and 296 are 3.7 standard deviations away
        assert 271 <= count <= 298, (name, count)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 1 << 30), st.integers(1, 30))
def test_errors_depend_on_neither_order_nor_names(seed: int, users: int) -> None:
    rng = np.random.default_rng(seed)
    label, logit, user = _world(rng, users, 5)
    order = rng.permutation(len(label))
    one, two = errors(label, logit, user), errors(label[order], logit[order], 7 * user[order] + 3)
    for name, value in one.items():
        assert two[name] == (None if value is None else pytest.approx(value, rel=1e-6, abs=1e-9))


def test_nothing_is_said_of_few_users_or_one_outcome() -> None:
    label, logit, user = _world(np.random.default_rng(0), 9)
    assert set(errors(label, logit, user).values()) == {None}
    user = np.arange(50)
    found = errors(np.zeros(50, np.int8), np.linspace(-1, 1, 50), user)
    assert found["auc"] is None and found["gauc"] is None and found["logloss"] > 0
    assert errors(label[:0], logit[:0], user[:0]) == {"auc": None, "gauc": None, "logloss": None}
