"""Specifications of synthetic advertising worlds: what makes a user click or order, as data.

The truth of every world has one form. For a request of user u at time t for ad a, target k has

    logit p_k = b_k + scenario_k(s) + ad_k(a) + Σ_j weight_j · log(1 + S_j)
    S_j = Σ_i strength(action_i) · 2^(−(t − t_i) / half_life_j)

where i runs over the user's behaviours strictly before t that share the kernel's field with the ad. A world is
therefore a `World` value: another planted cause is another list of kernels, not another generator.
"""

from __future__ import annotations

from dataclasses import dataclass

from lsm_cli.errors import InputError

DAY = 86_400  # seconds


@dataclass(frozen=True)
class Kernel:
    """One reason why the past matters: behaviours that share `match` with the ad, decayed by age."""

    match: str  # item, brand, category1 (coarsest) … category3 (leaf)
    weight: float  # logit per unit of log(1 + S)
    half_life: float  # days
    domains: tuple[str, ...] = ("ad", "video", "article")  # behaviours elsewhere do not count


@dataclass(frozen=True)
class Target:
    """One thing that a user may do with an ad."""

    name: str
    rate: float  # share of positives that the intercept aims at
    delay: float  # mean seconds from the request to the ad behaviour that a positive leaves behind
    scenario: dict[str, float]  # logit per scenario
    brand_sd: float  # logit; how far advertisers differ
    ad_sd: float  # logit; how far the ads of one advertiser differ
    popularity: float  # logit per standard deviation of the ad's log popularity
    strength: dict[str, float]  # action -> how much one such behaviour counts
    kernels: tuple[Kernel, ...]


@dataclass(frozen=True)
class World:
    """A world: its calendar, catalogue, crowd and targets."""

    name: str
    summary: str
    targets: tuple[Target, ...]
    paid: str = "order"  # the target whose positives are worth money
    start: str = "2024-03-01"
    days: int = 60  # of behaviours
    first_request: int = 39  # day; impressions are logged from here to the end
    valid: int = 54  # day on which the validation split starts
    test: int = 57
    branching: tuple[int, int, int] = (10, 5, 5)  # children per category node, coarse to fine
    behaviours: float = 130  # content behaviours per user, mean
    ad_behaviours: float = 6  # ad behaviours per user before the impression log starts, mean
    impressions: float = 36  # per user, mean
    article_share: float = 0.3  # of the content behaviours
    explicit: float = 0.12  # share of likes and shares among behaviours of interest; a quarter of that elsewhere
    clicks: float = 0.25  # share of clicks among the other, implicit, behaviours; the rest are views
    interests: float = 7  # episodes of interest per user, mean
    focus: float = 0.75  # share of behaviours inside an episode of interest
    aimed: float = 0.6  # share of impressions aimed at something the user has looked at


CLICK = Target(
    "click",
    rate=0.10,
    delay=20,
    scenario={"feed": -0.15, "search": 0.35, "moments": 0.0},
    brand_sd=0.3,
    ad_sd=0.15,
    popularity=0.2,
    strength={"view": 1.0, "click": 1.5, "like": 2.0, "share": 2.0, "order": 1.0},
    kernels=(
        Kernel("category3", 1.0, 1.5),
        Kernel("category2", 0.45, 2.5),
        Kernel("category1", 0.15, 2.5),
        Kernel("brand", 0.6, 4.0),
        Kernel("item", -0.8, 1.0, ("ad",)),  # who has just clicked an ad has seen it
    ),
)

ORDER = Target(
    "order",
    rate=0.03,
    delay=6 * 3600,
    scenario={"feed": 0.0, "search": 0.25, "moments": -0.3},
    brand_sd=0.3,
    ad_sd=0.15,
    popularity=0.15,
    strength={"view": 0.5, "click": 1.5, "like": 2.0, "share": 2.0, "order": 3.0},
    kernels=(
        Kernel("category3", 0.6, 14.0),
        Kernel("category2", 0.25, 20.0),
        Kernel("brand", 0.4, 20.0),
        Kernel("item", 0.6, 5.0, ("ad",)),
    ),
)

WORLDS = {
    world.name: world
    for world in (
        World(
            "base",
            "Three ad scenarios beside two content domains; clicks follow the last days, orders the last weeks.",
            targets=(CLICK, ORDER),
        ),
    )
}


def find_world(name: str) -> World:
    """The world of that name.

    Raises:
        InputError: there is none.
    """
    if name not in WORLDS:
        raise InputError(f"--world {name}: no such world; there is {', '.join(WORLDS)}")
    return WORLDS[name]
