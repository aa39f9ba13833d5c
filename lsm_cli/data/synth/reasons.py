"""What the past adds to the logit of a request: the kernels of a world, summed over the behaviours before it."""

from __future__ import annotations

import numpy as np

from lsm_cli.data.synth.rows import ACTIONS, CLOCK, DOMAINS, NONE, Events, Requests, ancestor
from lsm_cli.data.synth.worlds import DAY, Target, World


def history_logit(target: Target, sums: np.ndarray) -> np.ndarray:
    """Σ_j weight_j · sign(S_j) · log(1 + |S_j|): [kernels, 2, requests], as `history_sums` has it -> [requests]."""
    weight = np.array([kernel.weight for kernel in target.kernels])
    found = kernel_values(target, sums)
    # not BLAS: its sums depend on the number of threads
    return (weight[:, None] * np.sign(found) * np.log1p(np.abs(found))).sum(axis=0)


def kernel_values(target: Target, sums: np.ndarray) -> np.ndarray:
    """S of every kernel: [kernels, 2, requests], as `history_sums` has it -> [kernels, requests]."""
    share = np.array([kernel.share for kernel in target.kernels])[:, None]
    said, counted = sums[:, 0], sums[:, 1]
    return np.divide(said, counted, out=np.where(share, 0.0, said), where=share & (counted > 0))


def history_sums(
    world: World, events: Events, requests: Requests, meanings: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Σ w_i s_i and Σ w_i of every kernel, target by target: {name: [kernels, 2, requests]}.

    Those of two sets of events add up. Events meet requests once per field; the kernels on that field share the pairs.
    """
    size = len(requests.user)
    sums = {target.name: np.zeros((len(target.kernels), 2, size)) for target in world.targets}
    for match in sorted({kernel.match for target in world.targets for kernel in target.kernels}):
        row, index = matches(match, world, events, requests)
        age = (requests.time[row] - events.time[index]) / DAY
        domain, action = events.domain[index], events.action[index]
        for target in world.targets:
            strength = np.array([target.strength.get(action, 0.0) for action in ACTIONS])
            for number, kernel in enumerate(target.kernels):
                if kernel.match != match:
                    continue
                weight = np.isin(DOMAINS, kernel.domains)[domain] * np.exp2(-age / kernel.half_life)
                if kernel.rhythm:
                    weight *= ((1 + np.cos(2 * np.pi * age / kernel.rhythm)) / 2) ** 2
                if kernel.near:
                    ours, wanted = _pairs(kernel.near, row, index, world, events, requests)
                    weight *= np.where((ours == wanted) & (ours != NONE), kernel.times, 1.0)
                said = strength[action]
                if kernel.meaning:
                    ours, wanted = _pairs(kernel.meaning, row, index, world, events, requests)
                    said = said * np.where(ours == NONE, 0.0, meanings[kernel.meaning][ours, wanted])
                if kernel.through:
                    found = _through(strength, weight, row, index, events, requests)
                else:
                    found = np.bincount(row, said * weight, size)
                sums[target.name][number] = found, np.bincount(row, weight, size)
    return sums


def _pairs(
    field: str, row: np.ndarray, index: np.ndarray, world: World, events: Events, requests: Requests
) -> tuple[np.ndarray, np.ndarray]:
    """Values of a field in pairs of request and behaviour: the behaviour's and the ad's, [pairs] both."""
    ours = field_values(field, events, events.domain, world)[index]
    return ours, field_values(field, requests, 0, world)[row]


def _through(
    strength: np.ndarray, weight: np.ndarray, row: np.ndarray, index: np.ndarray, events: Events, requests: Requests
) -> np.ndarray:
    """Σ_i weight_i / Σ weight · Σ_k strength(action_k): [requests].

    i runs over the matching behaviours (pairs `row`, `index`) that have a channel, k over those in the channel of i
    that do not match, strictly before the request.
    """
    known = events.channel[index] != NONE
    row, index, weight = row[known], index[known], weight[known]
    total = np.bincount(row, weight, len(requests.user))[row]
    share = np.divide(weight, total, out=np.zeros_like(weight), where=total > 0)
    channels = int(events.channel.max(initial=0)) + 1
    known = np.flatnonzero(events.channel != NONE)
    packed = (events.user[known] * channels + events.channel[known]) * CLOCK + events.time[known]
    order = np.argsort(packed, kind="stable")
    packed = packed[order]
    said = np.append(0.0, np.cumsum(strength[events.action[known[order]]]))
    key = (requests.user[row] * channels + events.channel[index]) * CLOCK
    low = np.searchsorted(packed, key, side="left")
    high = np.searchsorted(packed, key + requests.time[row], side="left")
    place = row * channels + events.channel[index]
    others = said[high] - said[low] - np.bincount(place, strength[events.action[index]])[place]
    return np.bincount(row, share * others, len(requests.user))


def matches(match: str, world: World, events: Events, requests: Requests) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (request, event) of one user, equal in `match`, the event strictly before the request."""
    value, wanted = field_values(match, events, events.domain, world), field_values(match, requests, 0, world)
    known = np.flatnonzero(value != NONE)
    span = int(max(value.max(initial=0), wanted.max(initial=0))) + 1
    packed = (events.user[known] * span + value[known]) * CLOCK + events.time[known]
    order = np.argsort(packed, kind="stable")
    packed = packed[order]
    key = (requests.user * span + wanted) * CLOCK
    low = np.searchsorted(packed, key, side="left")
    high = np.searchsorted(packed, key + requests.time, side="left")  # strictly before: a tie is the future
    size = np.where(wanted == NONE, 0, high - low)
    row = np.repeat(np.arange(len(size)), size)
    rank = np.arange(len(row)) - np.repeat(np.cumsum(size) - size, size)
    return row, known[order[low[row] + rank]]


def field_values(name: str, rows: Events | Requests, domain: np.ndarray | int, world: World) -> np.ndarray:
    """Values of a field that kernels match on, [rows]; NONE where absent. Articles know two category levels only."""
    if name == "brand":
        return rows.brand
    if name == "item":
        return np.where(np.asarray(domain) == 0, rows.item, NONE)  # only ads are shown again as ads
    if name == "any":
        return np.zeros_like(rows.item)
    level = int(name.removeprefix("category"))
    value = ancestor(rows.leaf, level, world.branching)
    return np.where((np.asarray(domain) == 2) & (level == 3), NONE, value)


def draw_meanings(world: World, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """For every field that kernels go by: what a behaviour's value of it says about an ad's, [values, values].

    Symmetric, of mean square 1, and of rank 4 with both signs: a product of few hidden traits, so that embeddings can
    learn it, but not the likeness of the two values. The traits stand at right angles, so that no value says it all.
    Below its first level a category says nothing about itself.
    """
    found = {}
    for field in sorted({kernel.meaning for target in world.targets for kernel in target.kernels} - {""}):
        size = int(np.prod(world.branching[: int(field.removeprefix("category"))]))
        traits = np.linalg.qr(rng.normal(size=(size, 4)))[0]
        table = (traits * np.array([1.0, -1.0, 1.0, -1.0])) @ traits.T
        if field != "category1":
            np.fill_diagonal(table, 0.0)
        found[field] = np.round(table / np.sqrt((table**2).mean()), 3)
    return found
