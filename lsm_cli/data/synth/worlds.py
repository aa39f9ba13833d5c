"""Specifications of synthetic advertising worlds: what makes a user click or order, as data.

The truth of every world has one form. For a request of user u at time t for ad a, target k has

    logit p_k = b_k + scenario_k(s) + ad_k(a) + Σ_j weight_j · sign(S_j) · log(1 + |S_j|)
    S_j = Σ_i strength(action_i) · 2^(−(t − t_i) / half_life_j)

where i runs over the user's behaviours strictly before t that share the kernel's field with the ad. A world is
therefore a `World` value: another planted cause is another list of kernels, not another generator. A kernel may also

    share     take the mean that attention takes in place of the sum: S_j = Σ_i w_i s_i / Σ_i w_i, where w_i says how
              much behaviour i counts (half_life, rhythm, near) and s_i what it says (strength, meaning)
    near      let behaviours count `times` as much if they share this field with the ad
    rhythm    multiply each term by ((1 + cos(2π (t − t_i) / rhythm)) / 2)²
    meaning   multiply each term by M[value of the behaviour's field, value of the ad's], a hidden table of both signs
    through   let the behaviours i only point: S_j = Σ_i w_i / Σ w · Σ_k strength(action_k), w_i = 2^(−(t − t_i) /
              half_life_j), where k runs over the behaviours before t in the channel of i that do not match

The worlds with a planted cause are small, and frequent and simple in everything but their cause, so that what an idea
is worth there can be measured in minutes (`benchmarks/worlds.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lsm_cli.errors import InputError

DAY = 86_400  # seconds


@dataclass(frozen=True)
class Kernel:
    """One reason why the past matters: behaviours that share `match` with the ad, decayed by age."""

    match: str  # item, brand, category1 (coarsest) … category3 (leaf)
    weight: float  # logit per unit of log(1 + S)
    half_life: float  # days
    domains: tuple[str, ...] = ("ad", "video", "article")  # behaviours elsewhere do not count
    rhythm: float = 0.0  # days; a behaviour counts in full at whole multiples of it, half-way between not at all
    meaning: str = ""  # field by which a hidden table decides whether a behaviour speaks for the ad or against it
    share: bool = False  # the mean of what behaviours say: how many there are tells nothing
    near: str = ""  # field; behaviours that share it with the ad count more than others
    times: float = 0.0  # how much more
    through: str = ""  # field of the matching behaviours by which others are found, and these count (two steps)


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
    last_ad: int = 0  # day to which ad behaviours that no impression explains go on; 0 = first_request
    shared_scenarios: bool = False  # content is seen in the ads' scenarios, too, and its logs say in which
    video_brands: float = 0.2  # share of the videos of which a brand is known
    brands: int = 0  # that sell in every category; 0 = many, each in one middle category
    channels: int = 0  # of the content; 0 = it has none
    ads_only: bool = False  # describe the ads' log by itself, too

    @property
    def ad_actions(self) -> list[str]:
        """What users do with ads: the background's clicks and orders, and every target."""
        return list(dict.fromkeys(["click", "order", *(target.name for target in self.targets)]))


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

CONTENT = ("video", "article")
ALIKE = {"view": 1.0, "click": 1.0, "like": 1.0, "share": 1.0, "order": 1.0, "install": 1.0}
MOOD = {**ALIKE, "view": -1.0, "click": -1.0}


def _target(name: str, rate: float, *kernels: Kernel, strength: dict[str, float] = ALIKE) -> Target:
    """A frequent target of which ads and scenarios say little: what there is to learn is in the kernels."""
    return Target(
        name,
        rate=rate,
        delay=600,
        scenario={"feed": -0.1, "search": 0.1, "moments": 0.0},
        brand_sd=0.1,
        ad_sd=0.0,
        popularity=0.1,
        strength=strength,
        kernels=kernels,
    )


def _planted(name: str, summary: str, *targets: Target, **others: Any) -> World:
    """A small dense world: four weeks, 36 leaves, requests in its second half."""
    shape = {
        "days": 28,
        "first_request": 12,
        "valid": 22,
        "test": 23,
        "branching": (4, 3, 3),
        "behaviours": 50.0,
        "ad_behaviours": 2.0,
        "impressions": 45.0,
        "interests": 5.0,
        "paid": targets[-1].name,
        "ads_only": True,
    }
    return World(name, summary, targets, **{**shape, **others})


WORLDS = {
    world.name: world
    for world in (
        World(
            "base",
            "Three ad scenarios beside two content domains; clicks follow the last days, orders the last weeks.",
            targets=(CLICK, ORDER),
        ),
        _planted(
            "tempos",
            "Installs follow the interests of the last hours, orders those of this weekday in the last weeks.",
            _target("install", 0.35, Kernel("any", 4.0, 0.25, share=True, meaning="category1")),
            _target("order", 0.35, Kernel("any", 6.0, 7.0, share=True, rhythm=7.0, meaning="category1")),
            interests=12.0,
            first_request=18,
            valid=24,
            test=25,
        ),
        _planted(
            "noise",
            "Likes in the ad's segment speak for it, likes of its brand against it; scenarios match by accident.",
            _target(
                "click",
                0.35,
                Kernel("any", 6.0, 1000.0, share=True, near="category2", times=50.0),
                Kernel("any", -6.0, 1000.0, share=True, near="brand", times=50.0),
                strength=MOOD,
            ),
            shared_scenarios=True,
            explicit=0.5,
            focus=1.0,
            video_brands=1.0,
            brands=12,
        ),
        _planted(
            "third_order",
            "Clicks follow what users like of other things in the channel where they meet the ad's segment.",
            _target(
                "click",
                0.35,
                Kernel("any", 0.3, 1000.0, CONTENT),
                Kernel("category2", 0.5, 1000.0, CONTENT),
                Kernel("category2", 2.5, 1000.0, CONTENT, through="channel"),
                strength=MOOD,
            ),
            channels=3,
            explicit=0.5,
            focus=1.0,
        ),
        _planted(
            "disagree",
            "What counts is the industry of the ad, what it says its segments: the likest, the most frequent, nothing.",
            _target(
                "click",
                0.35,
                Kernel("any", 12.0, 1000.0, share=True, near="category1", times=50.0, meaning="category2"),
            ),
            branching=(4, 4, 2),
        ),
        _planted(
            "domains",
            "Hardly anybody has done anything with an ad; videos and articles, whose taxonomy is their own, tell.",
            _target("click", 0.3, Kernel("category2", 2.5, 7.0, CONTENT)),
            ad_behaviours=1.0,
        ),
        _planted(
            "control",
            "Nothing is planted: what users have done with ads of the same segment tells, for both targets alike.",
            _target("click", 0.3, Kernel("category2", 1.5, 7.0, ("ad",))),
            _target("order", 0.3, Kernel("category2", 1.5, 7.0, ("ad",))),
            behaviours=20.0,
            ad_behaviours=30.0,
            last_ad=28,
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
