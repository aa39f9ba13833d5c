"""Slates: what the test days' requests of a world could have shown, and the policy that chose from it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from lsm_cli.data.synth.rows import Events, Requests
from lsm_cli.data.synth.world import Catalogue, Drawn, aim
from lsm_cli.data.synth.worlds import DAY, World

POLICY = "a fifth of the time any of the candidates, else in proportion to their ads' popularity"


@dataclass(frozen=True)
class Slates:
    """What the test days' requests could have shown, of which a known policy chose.

    Attributes:
        request: int [n], rows of the requests.
        item: int [n, K], ads.
        propensity: float [n, K], probability with which the policy shows each.
        shown: int [n], which of the K it showed.
    """

    request: np.ndarray
    item: np.ndarray
    propensity: np.ndarray
    shown: np.ndarray


def choose(
    world: World,
    requests: Requests,
    ads: Catalogue,
    events: Events,
    crowd: np.ndarray,
    size: int,
    rng: np.random.Generator,
) -> tuple[Requests, Slates]:
    """Give the test days' requests a slate of `size`, of which `POLICY` shows one."""
    rows = np.flatnonzero(requests.time >= world.test * DAY)
    user, time = np.repeat(requests.user[rows], size - 1), np.repeat(requests.time[rows], size - 1)
    others = aim(world, user, time, ads, events, crowd, rng).reshape(len(rows), size - 1)
    item = np.concatenate([requests.item[rows, None], others], 1)
    propensity = 0.8 * ads.weight[item] / ads.weight[item].sum(1, keepdims=True) + 0.2 / size
    shown = (propensity.cumsum(1) < rng.random((len(rows), 1))).sum(1).clip(max=size - 1)
    chosen = requests.item.copy()
    chosen[rows] = item[np.arange(len(rows)), shown]
    changed = replace(requests, item=chosen, brand=ads.brand[chosen], leaf=ads.leaf[chosen])
    return changed, Slates(rows, item, propensity, shown)


def candidates(drawn: Drawn) -> Requests:
    """Every candidate of the slates as if it were shown: [n * K], slate by slate."""
    slates, ads = drawn.slates, drawn.catalogues["ad"]
    assert slates is not None
    item, rows = slates.item.ravel(), drawn.requests.take(np.repeat(slates.request, slates.item.shape[1]))
    return replace(rows, item=item, brand=ads.brand[item], leaf=ads.leaf[item])
