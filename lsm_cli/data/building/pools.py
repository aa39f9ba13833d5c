"""What negatives are drawn from: items that somebody had met before, and the events that say how popular each was."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lsm_cli.data.building.baskets import SHIFT, Baskets
from lsm_cli.data.building.radix import radix_order

_TRIES = 16


def by_domain(domain: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Each domain that occurs, and its rows in order."""
    order = np.argsort(domain, kind="stable")
    codes, starts = np.unique(domain[order], return_index=True)
    return zip(codes.tolist(), np.split(order, starts[1:]), strict=True)


class FirstMet:
    """When each item is first met in each domain.

    Attributes:
        key: int64 [pairs], domain << bits | item, ascending.
        time: int64 [pairs], ticks.
    """

    def __init__(self, items: int) -> None:
        self.bits = items.bit_length()
        self.key, self.time = np.zeros(0, np.int64), np.zeros(0, np.int64)

    def add(self, domain: np.ndarray, item: np.ndarray, time: np.ndarray) -> None:
        """Take in events, [n] each, in any order."""
        key, first = _earliest(domain.astype(np.int64) << self.bits | item, time)
        at = self.key.searchsorted(key)
        known = self.key.searchsorted(key, side="right") > at
        self.time[at[known]] = np.minimum(self.time[at[known]], first[known])
        self.key = np.insert(self.key, at[~known], key[~known])
        self.time = np.insert(self.time, at[~known], first[~known])

    @property
    def choice(self) -> bool:
        """Whether any domain has a second item."""
        domain = self.key >> self.bits
        return bool((domain[1:] == domain[:-1]).any())

    def items_of(self, domain: int) -> tuple[np.ndarray, np.ndarray]:
        """A domain's items, int32 ascending, and when each is first met."""
        here = slice(*self.key.searchsorted([domain << self.bits, domain + 1 << self.bits]))
        return (self.key[here] & (1 << self.bits) - 1).astype(np.int32), self.time[here]


def _earliest(key: np.ndarray, time: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each key once, ascending, and the earliest of its times."""
    order = radix_order(key, int(key.max()).bit_length())
    key = key.take(order)
    starts = np.flatnonzero(np.diff(key, prepend=-1))
    return key[starts], np.minimum.reduceat(time.take(order), starts)


@dataclass
class Packing:
    """Time and item of an event as one number, which sorts by time.

    Attributes:
        start: the earliest time, ticks.
        bits: of an item.
        coarse: bits of the time that are left out, as 63 hold no more. What happens in the same 2 ** coarse ticks as a
            request is then not before it.
    """

    start: int
    bits: int
    coarse: int

    @classmethod
    def of(cls, start: int, last: int, items: int) -> Packing:
        """For times from `start` to `last` and items below `items`."""
        bits = items.bit_length()
        return cls(start, bits, max((last - start).bit_length() + bits - 63, 0))

    def pack(self, time: np.ndarray, item: np.ndarray | int) -> np.ndarray:
        return (time.astype(np.int64) - self.start) >> self.coarse << self.bits | item

    def item(self, packed: np.ndarray) -> np.ndarray:
        return packed & (1 << self.bits) - 1


class Remembered:
    """The events that popularity is drawn from: all, or as many as fit, at equal distances.

    Attributes:
        kept, events: of so many events so many are remembered, in each domain.
    """

    def __init__(self, packing: Packing, counts: dict[int, int], most: int) -> None:
        """
        Args:
            counts: events of each domain.
            most: events to remember, give or take one for each domain.
        """
        self.packing, self.events = packing, sum(counts.values())
        self.kept = min(most, self.events)
        self._packed = {code: np.empty(self._share(number), np.int64) for code, number in counts.items()}
        self._seen = dict.fromkeys(counts, 0)

    def _share(self, number: int) -> int:
        """How many of a domain's first events are remembered; the very first always is."""
        return (number - 1) * self.kept // self.events + 1

    def add(self, domain: np.ndarray, item: np.ndarray, time: np.ndarray) -> None:
        """Take in events in the order of the logs, [n] each."""
        for code, rows in by_domain(domain):
            seen, upto = self._seen[code], self._seen[code] + len(rows)
            phase = seen * self.kept % self.events + self.kept * np.arange(len(rows))
            picked = rows[phase % self.events < self.kept]
            here = slice(self._share(seen), self._share(upto))
            self._packed[code][here] = self.packing.pack(time[picked], item[picked])
            self._seen[code] = upto

    def events_of(self, domain: int) -> np.ndarray:
        """A domain's events, packed, and now ascending: int64."""
        self._packed[domain].sort()
        return self._packed[domain]


class Pool:
    """What negatives of a domain are drawn from.

    Attributes:
        items: int32 [items], ascending.
        place: int32 [items], where each comes in the order in which they are first met.
        ordered: int32 [items], the items in that order. met: int64 [items], when that was; ticks.
        popular: the events that popularity is drawn from, packed by `packing`; None draws all items alike.
        gaps: int64, ascending; of the items of a basket that come at the places p0 < p1 < …, basket << SHIFT | pk - k.
    """

    def __init__(
        self, items: np.ndarray, met: np.ndarray, popular: np.ndarray | None, packing: Packing, baskets: Baskets
    ) -> None:
        order = np.argsort(met, kind="stable")
        self.items, self.ordered, self.met = items, items[order], met[order]
        self.place = np.empty(len(items), np.int32)
        self.place[order] = np.arange(len(items))
        self.popular, self.packing, self.baskets = popular, packing, baskets
        self.gaps = np.zeros(0, np.int64)

    def places(self, item: np.ndarray) -> np.ndarray:
        """Where items come in the order in which they are first met, [n]; behind all where they never are."""
        at = self.items.searchsorted(item.astype(self.items.dtype, copy=False))
        return np.where(self.items.take(at, mode="clip") == item, self.place.take(at, mode="clip"), len(self.items))

    def weigh(self, item: np.ndarray, time: np.ndarray, basket: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Look at all positives whose negatives come from here, [n] each; `basket` as in `Baskets.of`.

        Returns:
            bool [n], whether the item had been met before; int64 [n], how many others there were to choose from.
        """
        choice = self.met.searchsorted(time)
        known = self.places(item) < choice
        free = choice - known
        many = np.flatnonzero(basket >= 0)
        start, keys = basket[many].astype(np.int64) << SHIFT, self.baskets.only(basket[many])
        place = self.places(keys & (1 << SHIFT) - 1)
        spots = np.sort((keys >> SHIFT << SHIFT | place)[place < len(self.items)])
        free[many] = choice[many] - (spots.searchsorted(start | choice[many]) - spots.searchsorted(start))
        self.gaps = spots - (np.arange(len(spots)) - spots.searchsorted(spots >> SHIFT << SHIFT))
        return known, free

    def draw(
        self, rng: np.random.Generator, item: np.ndarray, time: np.ndarray, basket: np.ndarray, free: np.ndarray,
        each: int,
    ) -> np.ndarray:  # fmt: skip
        """Negatives for each positive, [n, each]: met before it, and not in its basket.

        Args:
            free: as from `weigh`, which has seen these positives; 1 and more.
        """
        drawn = np.zeros(len(item) * each, item.dtype)
        left = np.arange(len(drawn))
        if self.popular is not None:
            reach = self.popular.searchsorted(self.packing.pack(time, 0))
            for _ in range(_TRIES):
                row = left // each
                event = (rng.random(len(row)) * reach[row]).astype(np.int64)
                drawn[left] = self.packing.item(self.popular[event])
                taken = (drawn[left] == item[row]) | self.baskets.hold(basket[row], drawn[left])
                left = left[taken | (reach[row] == 0)]
                if not len(left):
                    break
        row = left // each  # where the basket is nearly all there is, or nothing else is popular yet: any other
        drawn[left] = self._others(rng, item[row], basket[row], free[row])
        return drawn.reshape(-1, each)

    def _others(self, rng: np.random.Generator, item: np.ndarray, basket: np.ndarray, free: np.ndarray) -> np.ndarray:
        """One of the items met before, all alike, but for those of the basket: [n].

        A number below `free` becomes a place by stepping over the basket's: over pk if it is at least pk - k.
        """
        number = (rng.random(len(free)) * free).astype(np.int64)
        start = basket.astype(np.int64) << SHIFT
        over = self.gaps.searchsorted(start | number, side="right") - self.gaps.searchsorted(start)
        over = np.where(basket < 0, number >= self.places(item), over)
        return self.ordered[number + over]


class Urn:
    """The pools of all domains."""

    def __init__(self, met: FirstMet, packing: Packing, remembered: Remembered | None, baskets: Baskets) -> None:
        self.met, self.packing, self.remembered, self.baskets = met, packing, remembered, baskets
        self._pools: dict[int, Pool] = {}

    def pool(self, domain: int) -> Pool:
        if domain not in self._pools:
            popular = None if self.remembered is None else self.remembered.events_of(domain)
            self._pools[domain] = Pool(*self.met.items_of(domain), popular, self.packing, self.baskets)
        return self._pools[domain]
