"""`lsm synth`: draw a small advertising world whose truth is known."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lsm_cli.data.synth.files import check_free, write_world
from lsm_cli.data.synth.world import Drawn, draw_world
from lsm_cli.data.synth.worlds import DAY, find_world
from lsm_cli.engine.metrics import auc, gauc
from lsm_cli.errors import InputError
from lsm_cli.report.console import Console, count, size

USERS = 5000
LIMITS = {
    "users": (20, 100_000),
    "seed": (0, 2**32),
    "behaviours": (1, 2000),
    "impressions": (1, 1000),
    "slate": (2, 20),
}


def synth(
    console: Console,
    out: Path,
    world: str = "base",
    users: int = USERS,
    seed: int = 0,
    overwrite: bool = False,
    behaviours: float | None = None,
    impressions: float | None = None,
    slate: int | None = None,
) -> dict[str, Any]:
    """Draw a world, write it, and report what its true probabilities score.

    Args:
        behaviours: content behaviours per user, mean; None = the world's own.
        impressions: impressions per user, mean; None = the world's own.
        slate: candidates of each request in the test days, of which a known policy shows one; None = no slates.
    """
    spec = find_world(world)
    given = {"users": users, "seed": seed, "behaviours": behaviours, "impressions": impressions}
    given["slate"] = slate
    for name, value in given.items():
        low, high = LIMITS[name]
        if value is not None and not low <= value <= high:
            raise InputError(f"--{name} {value}: must be between {low} and {high}")
    spec = replace(
        spec,
        behaviours=spec.behaviours if behaviours is None else behaviours,
        impressions=spec.impressions if impressions is None else impressions,
    )
    check_free(out, overwrite)
    began = time.monotonic()
    console.say(f"world `{world}`: {spec.summary}")
    drawn = draw_world(spec, users, seed, slate or 1)
    scores = score(drawn)
    options = "".join(f" --{name} {value:g}" for name, value in given.items() if value is not None)
    command = f"lsm synth --out DIR --world {world}{options}"
    written = write_world(drawn, out, scores, command, overwrite)

    events, requests = len(drawn.events.user), len(drawn.requests.user)
    rows = [
        [
            target,
            split,
            count(s["n"]),
            f"{s['positives'] / s['n']:.1%}" if s["n"] else None,
            *(_three(s[of][by]) for by in ("auc", "gauc") for of in ("without_history", "true")),
        ]
        for target, splits in scores.items()
        for split, s in splits.items()
    ]
    console.table(
        f"{out}: {count(users)} users, {count(events)} behaviours, {count(requests)} impressions, {size(written)}",
        ["target", "split", "rows", "positive", "AUC, no history", "AUC, truth", "GAUC, no history", "GAUC, truth"],
        rows,
        note="No model can rank better than the truth; what lies above `no history` only a sequence can tell.",
    )
    console.next(f"lsm build-sequences {out / 'dataset.toml'} --out stores/{out.name}")
    result = {
        "out": str(out),
        "world": world,
        "users": users,
        "events": events,
        "impressions": requests,
        "bytes": written,
        "seconds": round(time.monotonic() - began, 3),
        "scores": scores,
    }
    return result


def score(drawn: Drawn) -> dict[str, Any]:
    """{target: {split: {n, positives, true: {auc, gauc}, without_history: {auc, gauc}}}}."""
    time, user = drawn.requests.time, drawn.requests.user
    split = np.searchsorted([drawn.world.valid * DAY, drawn.world.test * DAY], time, side="right")
    found: dict[str, Any] = {}
    for target, label in drawn.label.items():
        found[target] = {}
        for number, name in enumerate(("train", "valid", "test")):
            rows = split == number
            by = {"true": drawn.p[target], "without_history": drawn.visible[target]}
            found[target][name] = {
                "n": int(rows.sum()),
                "positives": int(label[rows].sum()),
                **{
                    key: {"auc": auc(label[rows], value[rows]), "gauc": gauc(label[rows], value[rows], user[rows])}
                    for key, value in by.items()
                },
            }
    return found


def _three(value: float | None) -> str | None:
    return None if value is None else f"{value:.3f}"
