"""Sorting by digits equals sorting by comparing, whatever the size, the number of bits and the ties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lsm_cli.data.building import radix
from lsm_cli.data.building.orders import ordered
from lsm_cli.data.building.radix import radix_order
from lsm_cli.data.building.trajectories import sort_bucket


@given(st.integers(0, 62), st.integers(0, 400), st.integers(0, 1 << 32), st.sampled_from([1, 7, 64, 1 << 16]))
def test_equals_a_stable_sort(bits: int, rows: int, seed: int, piece: int) -> None:
    rng = np.random.default_rng(seed)
    few = rng.integers(0, 1 << bits, 5)  # ties, and digits that are all the same
    key = np.where(rng.random(rows) < 0.5, rng.choice(few, rows), rng.integers(0, 1 << bits, rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(radix, "PIECE", piece)
        np.testing.assert_array_equal(radix_order(key, bits), np.argsort(key, kind="stable"))


@given(st.integers(0, 40), st.integers(0, 30), st.integers(0, 200), st.integers(0, 1 << 32))
def test_orders_of_any_ids(value_bits: int, owner_bits: int, rows: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    owner = np.sort(rng.integers(0, 1 << owner_bits, rows))
    value = rng.integers(0, 1 << value_bits, rows)
    np.testing.assert_array_equal(ordered(owner, value), np.lexsort((value, owner)))


@pytest.mark.parametrize("last", [9, 1 << 20, 1 << 62])  # the last leaves no bits for the user: ranks of times
def test_buckets_are_sorted_and_searched(last: int) -> None:
    rng = np.random.default_rng(0)
    user, time = rng.integers(3, 8, 500), rng.integers(0, last, 500)
    time[:2] = 0, last
    bucket = sort_bucket({"user": user, "time": time, "row": np.arange(500)}, 3, 5)
    np.testing.assert_array_equal(bucket.columns["row"], np.lexsort((time, user)))
    assert (bucket.times is None) == (last < 1 << 62)
    who, when = rng.integers(3, 8, 200), rng.choice(np.append(time, [last // 3, last]), 200)
    expected = [((user < u) | ((user == u) & (time < t))).sum() for u, t in zip(who, when, strict=True)]
    np.testing.assert_array_equal(bucket.before(who, when), expected)
