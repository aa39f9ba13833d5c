"""The control that a sequence model has to beat: LightGBM on match counts and point-in-time popularity.

The counts are those of `lsm_cli.models.evidence` over the same last L behaviours that a recipe would see (or those of
`lsm_cli.search.matches` over all of them, --max-len 0), beside the store's statistics, hour, weekday and the
candidate's scenario. Rounds are chosen on the validation samples.

    python benchmarks/control.py --data STORE --max-len 200
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from lsm_cli import recipe as recipes
from lsm_cli.data.store import Store
from lsm_cli.engine import metrics
from lsm_cli.engine.feed import Feed
from lsm_cli.engine.setup import Setup


def features(setup: Setup, split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(numbers [n, features], labels [n, targets], -1 = not observed, user [n])."""
    import torch

    feed, model = Feed(setup, split), setup.model()
    parts = []
    for start in range(0, len(feed), 2048):
        batch = feed.batch(np.arange(start, min(start + 2048, len(feed))), model)
        columns = [model.numbers(batch), batch.calendar.float()]
        columns += [
            batch.target[name].float().unsqueeze(1)
            for name in ("scenario", "device", "referrer")
            if name in batch.target
        ]
        parts.append(torch.cat(columns, 1).numpy())
    return np.concatenate(parts), np.stack(feed.labels, 1), np.asarray(feed.user)


def control(store: Path, max_len: int, threads: int) -> dict[str, Any]:
    """Fit the control to each target and test it; max_len 0 = the whole history, counted by the store's index.

    Metrics of the first target, and of each where there are several.
    """
    import lightgbm as lgb

    reach = [f"model.max_len={max_len}"] if max_len else ["model.evidence_from=history"]
    options = recipes.load("dnn", ["model.evidence=true", *reach, f"train.threads={threads}", "train.device=cpu"])
    setup = Setup.of(options, Store.open(store))
    started = time.perf_counter()
    parts = [features(setup, split) for split in ("train", "valid", "test")]
    prepared = time.perf_counter()
    parameters = {
        "objective": "binary",
        "metric": "auc",
        "learning_rate": 0.1,
        "num_leaves": 63,
        "min_data_in_leaf": 100,
        "num_threads": threads,
        "seed": 0,
        "verbose": -1,
    }
    targets: dict[str, dict[str, Any]] = {}
    for place, name in enumerate(setup.targets):
        (x, y), (xv, yv), (xt, yt) = ((x[y[:, place] >= 0], y[y[:, place] >= 0, place]) for x, y, _ in parts)
        stop = lgb.early_stopping(50, verbose=False)
        booster = lgb.train(parameters, lgb.Dataset(x, y), 2000, [lgb.Dataset(xv, yv)], callbacks=[stop])
        user = parts[2][2][parts[2][1][:, place] >= 0]
        targets[name] = metrics.summary(yt, booster.predict(xt, raw_score=True), user)
        targets[name]["rounds"] = booster.best_iteration
    found = dict(next(iter(targets.values())))
    if len(targets) > 1:
        found["targets"] = targets
    return {
        **found,
        "features": parts[0][0].shape[1],
        "seconds": {"features": prepared - started, "fit": time.perf_counter() - prepared},
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--max-len", type=int, default=200)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    print(json.dumps(control(arguments.data, arguments.max_len, arguments.threads)))
