"""Pools and baskets against a slow and literal reading of the events."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st

from lsm_cli.data.building.baskets import Baskets
from lsm_cli.data.building.pools import FirstMet, Packing, Remembered, Urn, by_domain

ITEMS = 9
Event = tuple[int, int, int, int, bool]  # domain, user, item, time, positive
events = st.lists(
    st.tuples(st.integers(1, 3), st.integers(0, 2), st.integers(2, ITEMS - 1), st.integers(-4, 4), st.booleans()),
    min_size=2,
    max_size=40,
)


def columns(rows: list[Event]) -> tuple[np.ndarray, ...]:
    domain, user, item, time, _ = zip(*rows, strict=True)
    return np.array(domain, np.int8), np.array(user, np.int32), np.array(item, np.int8), np.array(time, np.int64)


def urn_of(rows: list[Event], baskets: Baskets, most: int, batch: int, popularity: bool) -> Urn:
    """Everything taken in, `batch` events at a time."""
    packing, met = Packing.of(-4, 4, ITEMS), FirstMet(ITEMS)
    remembered = Remembered(packing, Counter(row[0] for row in rows), most)
    for start in range(0, len(rows), batch):
        domain, _, item, time = columns(rows[start : start + batch])
        met.add(domain, item, time)
        remembered.add(domain, item, time)
    return Urn(met, packing, remembered if popularity else None, baskets)


@given(events, st.integers(1, 40), st.integers(1, 40), st.booleans())
def test_negatives_are_what_was_met_and_not_taken(rows: list[Event], most: int, batch: int, popularity: bool) -> None:
    positive = [row for row in rows if row[4]]
    assume(positive and len({row[2] for row in rows}) > 1)
    domain, user, item, time = columns(positive)
    baskets = Baskets.gather(user, time, item)
    urn = urn_of(rows, baskets, most, batch, popularity)
    for code, mine in by_domain(domain):
        known, free = urn.pool(code).weigh(item[mine], time[mine], baskets.of[mine])
        kept = known & (free > 0)
        drawn = urn.pool(code).draw(
            np.random.default_rng(0), item[mine[kept]], time[mine[kept]], baskets.of[mine[kept]], free[kept], 200
        )
        found = iter(drawn.tolist())
        for row, met, choice in zip(mine, known, free, strict=True):
            here, who, what, when, _ = positive[row]
            before = {e[2] for e in rows if e[3] < when and e[0] == here}
            taken = {e[2] for e in positive if (e[1], e[3]) == (who, when)}
            assert met == (what in before) and choice == len(before - taken)
            if met and choice:
                negatives = set(next(found))
                assert negatives <= before - taken
                assert popularity or negatives == before - taken
        assert next(found, None) is None


def test_popularity_is_the_share_of_events_before() -> None:
    items = [2] * 10 + [3] * 20 + [4] * 30 + [5] * 40
    rows: list[Event] = [(1, 0, item, -1, False) for item in items]
    rows += [(1, 0, 6, 3, False), (1, 1, 2, 2, True), (1, 1, 4, 2, True)]
    _, user, item, time = columns(rows[-2:])
    baskets = Baskets.gather(user, time, item)
    pool = urn_of(rows, baskets, len(rows), 7, True).pool(1)
    _, free = pool.weigh(item, time, baskets.of)
    drawn = pool.draw(np.random.default_rng(0), item, time, baskets.of, free, 20_000)
    assert free.tolist() == [2, 2] and set(drawn.ravel().tolist()) == {3, 5}
    assert abs((drawn == 5).mean() - 2 / 3) < 0.01


@given(st.lists(st.integers(1, 3), min_size=1, max_size=60), st.integers(1, 60), st.integers(1, 60))
def test_events_are_remembered_at_equal_distances(domains: list[int], most: int, batch: int) -> None:
    packing, domain = Packing.of(0, len(domains), ITEMS), np.array(domains, np.int8)
    remembered, counts = Remembered(packing, dict(Counter(domains)), most), Counter(domains)
    for start in range(0, len(domains), batch):
        part = slice(start, start + batch)
        time = np.arange(len(domains))[part]
        remembered.add(domain[part], np.full(len(time), 2), time)
    kept = 0
    for code, number in counts.items():
        packed = remembered.events_of(code)
        place = np.flatnonzero(domain == code).searchsorted(packed >> packing.bits)
        share = min(most, len(domains)) / len(domains)
        assert place[0] == 0 and (packed & 7 == 2).all()
        assert (
            len(place) == number
            if share == 1
            else all(int(1 / share) <= gap <= -int(-1 // share) for gap in np.diff([*place.tolist()]))
        )
        kept += len(place)
    assert abs(kept - min(most, len(domains))) < len(counts)


@given(
    st.lists(st.tuples(st.integers(0, 1 << 61), st.integers(2, 1000)), min_size=1, max_size=30),
    st.integers(0, 1 << 61),
    st.integers(10, 31),
)
def test_a_packed_event_is_never_of_a_later_time(rows: list[tuple[int, int]], now: int, bits: int) -> None:
    time, item = (np.array(values, np.int64) for values in zip(*rows, strict=True))
    packing = Packing.of(int(time.min()), max(int(time.max()), now), (1 << bits) - 1)
    packed = np.sort(packing.pack(time, item))
    reach = int(packed.searchsorted(packing.pack(np.array([max(now, int(time.min()))]), 0))[0])
    found = sorted(packing.item(packed[:reach]).tolist())
    surely = [i for t, i in sorted(rows) if t < now - (1 << packing.coarse) + 1]
    before = [i for t, i in sorted(rows) if t < now]
    assert Counter(surely) <= Counter(found) <= Counter(before)


def test_a_day_counts_in_seconds_beside_any_item() -> None:
    assert Packing.of(0, 86_400 * 3650, 1 << 30).coarse == 0
    assert Packing.of(0, 86_400 * 3650 * 1_000_000, 1 << 30).coarse == 17  # a tenth of a second of microseconds
    assert list(itertools.chain(*(rows for _, rows in by_domain(np.array([2, 1, 2], np.int8))))) == [1, 0, 2]
