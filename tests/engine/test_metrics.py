from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss as sk_log_loss
from sklearn.metrics import roc_auc_score

from lsm_cli.engine import metrics


@settings(deadline=None, max_examples=80)
@given(st.integers(0, 1 << 30), st.integers(2, 300), st.sampled_from([2, 5, 1000]), st.booleans())
def test_auc_and_gauc_equal_scikit_learn(seed: int, size: int, levels: int, narrow: bool) -> None:
    rng = np.random.default_rng(seed)
    score = rng.integers(0, levels, size) / 7 - 3  # few levels: many ties
    score = score.astype(np.float32) if narrow else score
    label = (rng.random(size) < 0.4).astype(np.int8)
    group = rng.integers(0, 9, size)
    if 0 < label.sum() < size:
        assert metrics.auc(label, score) == pytest.approx(roc_auc_score(label, score), abs=1e-9)
    else:
        assert metrics.auc(label, score) is None
    parts = [(group == g) for g in range(9)]
    parts = [rows for rows in parts if 0 < label[rows].sum() < rows.sum()]
    if parts:
        values = [roc_auc_score(label[rows], score[rows]) for rows in parts]
        expected = np.average(values, weights=[rows.sum() for rows in parts])
        assert metrics.gauc(label, score, group) == pytest.approx(expected, abs=1e-9)
    else:
        assert metrics.gauc(label, score, group) is None


def test_probability_metrics() -> None:
    rng = np.random.default_rng(0)
    logit = rng.normal(size=5000)
    label = (rng.random(5000) < 1 / (1 + np.exp(-logit))).astype(np.int8)
    p = 1 / (1 + np.exp(-logit))
    assert metrics.log_loss(label, logit) == pytest.approx(sk_log_loss(label, p), abs=1e-9)
    assert metrics.calibration(label, logit) == pytest.approx(p.sum() / label.sum(), abs=1e-9)
    assert metrics.log_loss(np.array([1]), np.array([-800.0])) == pytest.approx(800.0)  # no overflow


def test_a_million_rows_are_no_wait() -> None:
    """Ten times the second that users are promised: machines differ, quadratic code does not hide."""
    rng = np.random.default_rng(0)
    score, label = rng.normal(size=1_000_000), rng.integers(0, 2, 1_000_000)
    user = rng.integers(0, 100_000, 1_000_000)
    started = time.perf_counter()
    assert 0.49 < metrics.gauc(label, score, user) < 0.51
    assert time.perf_counter() - started < 10
