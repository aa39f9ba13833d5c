"""The intervals hold what they promise; a few hundred experiments, about a minute."""

from __future__ import annotations

import pytest

from benchmarks.coverage import METHODS, replicate

REPLICATIONS = 300


@pytest.mark.slow
def test_intervals_cover_and_models_are_told_apart_as_often_as_expected() -> None:
    known, equal = (replicate(100, noise, REPLICATIONS, seed=7) for noise in ((1.0, 1.4), (1.0, 1.0)))
    for name in METHODS:
        for result in (known, equal):  # three standard deviations of a share of 95 %
            assert abs(result[name]["coverage"] - 0.95) < 0.038, (name, result[name])
        assert abs(known[name]["told_apart"] - known[name]["expected"]) < 0.1, (name, known[name])
        assert equal[name]["told_apart"] < 0.09, (name, equal[name])
    assert known["auc"]["told_apart"] > 0.6 > 0.09 > equal["auc"]["told_apart"]
