"""Learning rate over the course of a run."""

from __future__ import annotations

import math

from lsm_cli.options import TrainOptions


def factor(step: int, total: int, options: TrainOptions) -> float:
    """Share of the peak learning rate at a step (0-based) of `total`: linear warm-up, then the recipe's decay."""
    warmup = int(options.warmup * total)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    done = (step - warmup) / max(total - warmup, 1)
    if options.decay == "none":
        return 1.0
    shape = 1 - done if options.decay == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return options.final_lr + (1 - options.final_lr) * shape
