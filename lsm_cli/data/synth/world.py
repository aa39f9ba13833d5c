"""Drawing a synthetic world: catalogue, crowd, behaviours, impressions, and the true probability of each label.

Everything is drawn in whole seconds since the world's start, in numpy, from generators seeded per part, so that one
part's size does not move another's numbers. Labels feed back: a click or an order on an impression becomes an ad
behaviour that later requests see. Requests are therefore drawn in rounds (the first of every user, the second …),
each vectorised over users; the part of the history that no label touches is summed once for all.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from lsm_cli.data.synth.reasons import draw_meanings, history_logit, history_sums
from lsm_cli.data.synth.rows import CLOCK, CODE, DOMAINS, NONE, Events, Requests, ancestor
from lsm_cli.data.synth.worlds import DAY, Target, World

if TYPE_CHECKING:
    from lsm_cli.data.synth.slates import Slates


@dataclass(frozen=True)
class Catalogue:
    """The items of one domain, ordered by (leaf, birth). All arrays are [items]."""

    leaf: np.ndarray
    brand: np.ndarray  # NONE where untagged
    born: np.ndarray  # second of its first appearance; half the items are there from the start
    reach: np.ndarray  # cumulative popularity, to draw from a leaf's living items in proportion
    weight: np.ndarray  # popularity, Zipf

    def draw(self, leaf: np.ndarray, time: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """One living item of each leaf at each time, by popularity; [n] int64."""
        low = np.searchsorted(self.leaf, leaf, side="left")
        high = np.searchsorted(self.leaf * CLOCK + self.born, leaf * CLOCK + time, side="right")
        before = np.where(low > 0, self.reach[low - 1], 0.0)
        aim = before + rng.random(len(leaf)) * (self.reach[high - 1] - before)
        return np.clip(np.searchsorted(self.reach, aim, side="right"), low, high - 1)


@dataclass(frozen=True)
class Drawn:
    """A whole world. `visible` is the logit without history; `label`, `p` and `visible` are keyed by target."""

    world: World
    users: int
    seed: int
    catalogues: dict[str, Catalogue]
    events: Events  # ordered by (user, time)
    requests: Requests
    value: np.ndarray  # [impressions] money, 0 where nothing was bought
    label: dict[str, np.ndarray]
    p: dict[str, np.ndarray]
    visible: dict[str, np.ndarray]
    intercept: dict[str, float]
    ad_effect: dict[str, np.ndarray]  # [ads] logit
    price: np.ndarray  # [ads] money, of an order of average size
    meanings: dict[str, np.ndarray]  # field -> what a behaviour's value says about an ad's, [values, values]
    slates: Slates | None = None  # what else could have been shown


def draw_world(world: World, users: int, seed: int, slate: int = 1) -> Drawn:
    """Draw a world of `users` users; the same arguments give the same arrays.

    Args:
        slate: ads that every request of the test days could show; one of them is shown, by a policy that is known.
    """
    part = iter(np.random.default_rng([seed, number]) for number in range(100))
    leaves = int(np.prod(world.branching))
    rng = next(part)
    crowd = zipf(leaves, 0.7)[rng.permutation(leaves)]
    brands = world.brands or max(30, 3 * leaves // world.branching[-1])
    home = rng.integers(0, leaves // world.branching[-1], brands)  # the middle category that a brand sells in
    sizes = {"ad": 4 * leaves + users // 10, "video": 8 * leaves + users, "article": 4 * leaves + users // 2}
    tagged = {"ad": 1.0, "video": world.video_brands, "article": 0.0}
    catalogues = {
        domain: _catalogue(world, sizes[domain], crowd, home, tagged[domain], next(part)) for domain in DOMAINS
    }
    events = _behaviours(world, users, catalogues, crowd, next(part))
    requests = _requests(world, users, catalogues["ad"], events, crowd, next(part))
    slates = None
    if slate > 1:
        from lsm_cli.data.synth.slates import choose  # which rests on this module

        own = np.random.default_rng([seed, 300])
        requests, slates = choose(world, requests, catalogues["ad"], events, crowd, slate, own)
    effect = {target.name: _ad_effect(target, catalogues["ad"], brands, next(part)) for target in world.targets}
    life, secret = next(part), next(part)
    meanings = draw_meanings(world, secret)
    return replace(_live(world, users, seed, catalogues, events, requests, effect, meanings, life), slates=slates)


def zipf(size: int, exponent: float) -> np.ndarray:
    """Popularity of ranks 1 … size, summing to one."""
    weight = np.arange(1, size + 1, dtype=np.float64) ** -exponent
    return weight / weight.sum()


def _catalogue(
    world: World, size: int, crowd: np.ndarray, home: np.ndarray, tagged: float, rng: np.random.Generator
) -> Catalogue:
    leaves = len(crowd)
    # every leaf keeps at least two items from the start, so that there is always something to show
    leaf = np.concatenate([np.repeat(np.arange(leaves), 2), rng.choice(leaves, size - 2 * leaves, p=crowd)])
    born = np.where(rng.random(size) < 0.5, 0, rng.integers(0, world.days * DAY, size))
    born[: 2 * leaves] = 0
    order = np.lexsort((born, leaf))
    leaf, born = leaf[order], born[order]
    weight = zipf(size, 0.8)[rng.permutation(size)]
    by_home = np.argsort(home, kind="stable")
    middle = leaf // world.branching[-1]
    low, high = (np.searchsorted(home[by_home], middle, side=side) for side in ("left", "right"))
    pick = low + (rng.random(size) * (high - low)).astype(np.int64)
    sells = (high > low) & (rng.random(size) < tagged)
    brand = np.where(sells, by_home[np.minimum(pick, len(home) - 1)], NONE)
    if world.brands:
        brand = np.where(rng.random(size) < tagged, rng.integers(0, world.brands, size), NONE)
    return Catalogue(leaf, brand, born, np.cumsum(weight), weight)


def _behaviours(
    world: World, users: int, catalogues: dict[str, Catalogue], crowd: np.ndarray, rng: np.random.Generator
) -> Events:
    """Content behaviours over all days and ad behaviours before the impression log starts."""
    end = world.days * DAY
    episodes = 1 + rng.poisson(world.interests - 1, users)
    owner = np.repeat(np.arange(users), episodes)
    first = np.cumsum(episodes) - episodes
    begin = rng.uniform(-10 * DAY, end, len(owner))
    length = rng.lognormal(np.log(5 * DAY), 0.8, len(owner))
    begin, finish = np.maximum(begin, 0.0), np.clip(begin + length, 3600.0, end)
    topic = rng.choice(len(crowd), len(owner), p=crowd)

    activity = rng.gamma(3.0, 1 / 3.0, users)
    content = rng.poisson(world.behaviours * activity) + 3
    sparse = rng.poisson(world.ad_behaviours * activity)
    user = np.repeat(np.tile(np.arange(users), 2), np.concatenate([content, sparse]))
    size = len(user)
    is_ad = np.arange(size) >= content.sum()
    of_interest = rng.random(size) < world.focus
    episode = first[user] + (rng.random(size) * episodes[user]).astype(np.int64)
    inside = begin[episode] + rng.random(size) * (finish[episode] - begin[episode])
    time = np.where(of_interest, inside, rng.random(size) * end).astype(np.int64)
    time = np.where(is_ad, time * (world.last_ad or world.first_request) // world.days, time)
    # most behaviours of an episode are on its topic, some beside it: a sibling leaf, or a cousin
    spread = rng.random(size)
    width = np.select([spread < 0.65, spread < 0.88], [1, world.branching[2]], world.branching[1] * world.branching[2])
    near = topic[episode] // width * width + (rng.random(size) * width).astype(np.int64)
    leaf = np.where(of_interest, near, rng.choice(len(crowd), size, p=crowd))

    domain = np.where(is_ad, 0, np.where(rng.random(size) < world.article_share, 2, 1))
    item, brand = np.empty(size, np.int64), np.empty(size, np.int64)
    for code, name in enumerate(DOMAINS):
        at = np.flatnonzero(domain == code)
        item[at] = catalogues[name].draw(leaf[at], time[at], rng)
        brand[at] = catalogues[name].brand[item[at]]
    implicit = np.where(rng.random(size) < world.clicks, CODE["click"], CODE["view"])
    explicit = np.where(rng.random(size) < 0.7, CODE["like"], CODE["share"])
    liked = rng.random(size) < np.where(of_interest, world.explicit, world.explicit / 4)
    on_ad = np.where(rng.random(size) < 0.2, CODE["order"], CODE["click"])
    action = np.where(is_ad, on_ad, np.where(liked, explicit, implicit))
    scenario = rng.integers(0, 3, size)  # content scenarios are a matter of the files, unless the world shares them
    channel = np.full(size, NONE)
    if world.channels:
        # every user meets a segment in one channel
        segment = ancestor(leaf, 2, world.branching)
        channel = np.where(is_ad, NONE, (user * 7919 + segment * 104_729) % 1_000_003 % world.channels)
    order = np.lexsort((time, user))
    return Events(user, time, domain, scenario, action, item, brand, leaf, channel).take(order)


def _requests(
    world: World, users: int, ads: Catalogue, events: Events, crowd: np.ndarray, rng: np.random.Generator
) -> Requests:
    """When which ad is shown to whom: partly aimed at what the user has looked at, partly at anyone."""
    count = np.maximum(rng.poisson(world.impressions * rng.gamma(6.0, 1 / 6.0, users)), 1)
    user = np.repeat(np.arange(users), count)
    size = len(user)
    time = rng.integers(world.first_request * DAY, world.days * DAY, size)
    time = time[np.lexsort((time, user))]
    item = aim(world, user, time, ads, events, crowd, rng)
    scenario = rng.choice(3, size, p=[0.5, 0.2, 0.3])
    return Requests(user, time, scenario, item, ads.brand[item], ads.leaf[item])


def aim(
    world: World,
    user: np.ndarray,
    time: np.ndarray,
    ads: Catalogue,
    events: Events,
    crowd: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """An ad for each user and time: [n]."""
    size = len(user)
    packed = events.user * CLOCK + events.time
    low = np.searchsorted(packed, user * CLOCK, side="left")
    seen = np.searchsorted(packed, user * CLOCK + time, side="left") - low
    # half of the aimed impressions follow the latest behaviours, the other half any of them
    recent = np.minimum(seen, np.where(rng.random(size) < 0.5, 12, 1 << 30))
    follow = low + seen - 1 - (rng.random(size) * recent).astype(np.int64)
    aimed = (rng.random(size) < world.aimed) & (seen > 0)
    leaf = np.where(aimed, events.leaf[np.maximum(follow, 0)], rng.choice(len(crowd), size, p=crowd))
    return ads.draw(leaf, time, rng)


def _ad_effect(target: Target, ads: Catalogue, brands: int, rng: np.random.Generator) -> np.ndarray:
    """What an ad adds to the logit whoever sees it: its advertiser, its own quality, its popularity. [ads]"""
    advertiser = np.append(rng.normal(0, target.brand_sd, brands), 0.0)  # NONE reads the last
    own = rng.normal(0, target.ad_sd, len(ads.leaf))
    fame = np.log(ads.weight)
    return advertiser[ads.brand] + own + target.popularity * (fame - fame.mean()) / fame.std()


def _live(
    world: World,
    users: int,
    seed: int,
    catalogues: dict[str, Catalogue],
    events: Events,
    requests: Requests,
    effect: dict[str, np.ndarray],
    meanings: dict[str, np.ndarray],
    rng: np.random.Generator,
) -> Drawn:
    """Draw the labels in rounds; each positive leaves an ad behaviour that the rounds after it can see."""
    size = len(requests.user)
    # in slices, because a category may meet hundreds of behaviours per request
    slices = [requests.take(rows) for rows in np.array_split(np.arange(size), size // 100_000 + 1)]
    parts = [history_sums(world, events, rows, meanings) for rows in slices]
    past = {target.name: np.concatenate([part[target.name] for part in parts], axis=-1) for target in world.targets}
    visible, intercept = {}, {}
    for target in world.targets:
        place = np.array(list(target.scenario.values()))[requests.scenario]
        rest = place + effect[target.name][requests.item]
        intercept[target.name] = _intercept(rest + history_logit(target, past[target.name]), target.rate)
        visible[target.name] = rest + intercept[target.name]

    # luck and delays are drawn for every request, so that a label's outcome moves no other number
    luck = {name: rng.random(size) for name in visible}
    wait = {target.name: 1 + rng.exponential(target.delay, size).astype(np.int64) for target in world.targets}
    p = {name: np.zeros(size) for name in visible}
    label = {name: np.zeros(size, bool) for name in visible}
    trail = events.take(np.arange(0))
    for now in rounds(requests.user):
        shown = requests.take(now)
        fresh = history_sums(world, trail, shown, meanings)
        for target in world.targets:
            name = target.name
            p[name][now] = sigmoid(visible[name][now] + history_logit(target, past[name][..., now] + fresh[name]))
            label[name][now] = luck[name][now] < p[name][now]
            done = now[label[name][now]]
            trail = Events.join([trail, trace(requests.take(done), wait[name][done], name)])
    events = Events.join([events, trail])
    inside = np.flatnonzero(events.time < world.days * DAY)  # an order may arrive after the logs end
    events = events.take(inside[np.lexsort((events.time[inside], events.user[inside]))])
    price = rng.lognormal(3.5, 0.8, len(catalogues["ad"].leaf))
    basket = rng.lognormal(0.0, 0.2, size)
    value = np.where(label[world.paid], np.round(price[requests.item] * basket, 2), 0.0)
    return Drawn(
        world, users, seed, catalogues, events, requests, value, label, p, visible, intercept, effect, price, meanings
    )


def rounds(user: np.ndarray) -> list[np.ndarray]:
    """Rows of the first request of every user, of the second …; `user` is sorted."""
    turn = np.arange(len(user)) - np.searchsorted(user, user, side="left")
    return np.split(np.argsort(turn, kind="stable"), np.cumsum(np.bincount(turn))[:-1])


def trace(shown: Requests, wait: np.ndarray, action: str) -> Events:
    """The ad behaviours that positive labels leave behind, `wait` seconds after their requests."""
    return Events(
        user=shown.user,
        time=shown.time + wait,
        domain=np.full(len(wait), DOMAINS.index("ad")),
        scenario=shown.scenario,
        action=np.full(len(wait), CODE[action]),
        item=shown.item,
        brand=shown.brand,
        leaf=shown.leaf,
        channel=np.full(len(wait), NONE),
    )


def _intercept(logit: np.ndarray, rate: float) -> float:
    """The constant that gives the mean probability `rate`, by bisection."""
    low, high = -20.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if sigmoid(logit + middle).mean() > rate else (middle, high)
    return round((low + high) / 2, 6)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def past(drawn: Drawn, events: Events, shown: Requests) -> dict[str, np.ndarray]:
    """`history_sums` of any number of requests, in slices, because a category may meet hundreds of behaviours each."""
    slices = [shown.take(rows) for rows in np.array_split(np.arange(len(shown.user)), len(shown.user) // 50_000 + 1)]
    parts = [history_sums(drawn.world, events, rows, drawn.meanings) for rows in slices]
    return {target.name: np.concatenate([part[target.name] for part in parts], -1) for target in drawn.world.targets}


def chances(drawn: Drawn, shown: Requests, sums: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """True probability of every target for any requests, given the sums of their `past`: {name: [requests]}."""
    found = {}
    for target in drawn.world.targets:
        place = np.array(list(target.scenario.values()))[shown.scenario]
        rest = place + drawn.ad_effect[target.name][shown.item] + drawn.intercept[target.name]
        found[target.name] = sigmoid(rest + history_logit(target, sums[target.name]))
    return found
