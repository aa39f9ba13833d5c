"""Sets of bits are the sets that they stand for."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lsm_cli.search import bits

WIDTHS = st.sampled_from([1, 7, 63, 64, 65, 130, 200])


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 1 << 30), width=WIDTHS, share=st.sampled_from([0.0, 0.02, 0.5, 1.0]))
def test_counting_choosing_and_naming_members(seed: int, width: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    match = rng.random((9, width)) < share
    sets = bits.pack(match)
    held = [np.flatnonzero(row).tolist() for row in match]
    assert sets.shape == (bits.words(width), 9)
    assert bits.count(sets).tolist() == [len(places) for places in held]
    assert bits.last(sets).tolist() == [places[-1] if places else -1 for places in held]
    row, level, place = bits.members(np.stack([sets, sets & bits.since(np.full(9, width // 2), len(sets))], 1))
    expected = [
        (r, which, p) for r in range(9) for which in range(2) for p in held[r][::-1] if not which or p >= width // 2
    ]
    assert list(zip(row.tolist(), level.tolist(), place.tolist(), strict=True)) == expected
    some = [r for r in range(9) if held[r]]
    most = np.array([rng.integers(1, len(held[r]) + 1) for r in some], np.int64)
    kept = bits.latest(sets[:, some], most)
    row, _, place = bits.members(kept[:, None])
    expected_places = [p for r, m in zip(some, most.tolist(), strict=True) for p in held[r][::-1][:m]]
    assert place.tolist() == expected_places
