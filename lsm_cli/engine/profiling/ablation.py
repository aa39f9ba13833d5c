"""What each of the engine's techniques is worth: the same steps with it and without it, in turns.

All variants share one model, and take turns within every round, so that a busy machine slows all of them. A technique's
ratio is the time without it over the time with it, its median over the rounds; above 1 it pays.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lsm_cli import recipe as recipes
from lsm_cli.engine import evaluate, fitting, replay
from lsm_cli.engine.profiling import memory
from lsm_cli.engine.profiling.timing import plainly
from lsm_cli.engine.profiling.work import Phase, Work
from lsm_cli.engine.setup import Setup
from lsm_cli.kernels import fused
from lsm_cli.options import BY_ATTENTION, Recipe
from lsm_cli.report.console import Progress, Silent

PAPER = {  # Tencent, arXiv 2510.21714, §4: training, inference, utilisation of GPU memory
    "train": {"speed": 1.547, "techniques": "data prefetching, kernel fusion, parameter prefetching"},
    "infer": {"speed": 1.625, "techniques": "mixed precision, GPU embedding cache"},
    "memory_utilisation": 0.058,
}
COMPARED = 256  # samples whose scores are compared


@dataclass(frozen=True)
class Technique:
    """An option of the engine that can be switched.

    Attributes:
        what: in words.
        key: of the recipe.
        on, off: its values; `on` may depend on the setup and the behaviours of a sample.
        where: whether it means anything for a setup and phase.
    """

    name: str
    what: str
    key: str
    on: Callable[[Setup, float], Any]
    off: Any
    where: Callable[[Setup, Phase], bool]


def _reads(setup: Setup, phase: Phase) -> bool:
    return setup.recipe.model.sequence != "none"


def _one_pass(setup: Setup) -> bool:
    return setup.compute.device.type == "cuda" and fused.available("cuda")


def _hard(setup: Setup) -> bool:
    return setup.recipe.search.method in ("hard", "hybrid") and not setup.recipe.search.source


def _on_device(setup: Setup) -> bool:
    return setup.recipe.engine.table_tier == "device"


def _soft(setup: Setup) -> bool:
    return setup.recipe.search.method in BY_ATTENTION and not setup.recipe.search.source


def _side_by_side(setup: Setup, phase: Phase) -> bool:
    """Whether the candidates of a request stand side by side and read the same."""
    options = setup.recipe
    reads = options.search.method == "none" and not options.search.source and _reads(setup, phase)
    return reads and not setup.replays and (phase == "infer" or options.train.shuffle == "requests")


TECHNIQUES = (
    Technique(
        "kernels", "fused gathers and sums over ragged histories", "engine.kernels", lambda s, n: "auto", "eager",
        _reads,
    ),
    Technique(
        "small_tables", "matrix products for tables of few rows", "engine.kernels", lambda s, n: "auto", "compiled",
        lambda s, p: _reads(s, p) and s.recipe.engine.kernels == "auto" and not _one_pass(s),
    ),
    Technique(
        "one_pass", "Triton kernels that read a history once", "engine.kernels", lambda s, n: "auto", "compiled",
        lambda s, p: _reads(s, p) and s.recipe.engine.kernels in ("auto", "triton") and _one_pass(s),
    ),
    Technique(
        "sparse_rows", "optimiser touches the rows of the step only", "engine.sparse_rows", lambda s, n: True, False,
        lambda s, p: p == "train" and s.recipe.train.table_optimizer == "adagrad" and _on_device(s),
    ),
    Technique(
        "memory_pool", "freed memory kept for the next step", "engine.memory_pool", lambda s, n: True, False,
        lambda s, p: True,
    ),
    Technique(
        "size_classes", "memory blocks of few sizes, so that freed ones fit again", "engine.size_classes",
        lambda s, n: s.recipe.engine.size_classes or 8, 0, lambda s, p: s.compute.device.type == "cuda",
    ),
    Technique(
        "share_histories", "a history read once for all candidates of a request", "engine.share_histories",
        lambda s, n: True, False, lambda s, p: _soft(s) or _side_by_side(s, p),
    ),
    Technique(
        "search_index", "hard search by the store's index", "engine.search_index", lambda s, n: True, False,
        lambda s, p: _hard(s) and bool(s.store.index),
    ),
    Technique(
        "precision", "bf16 in the dense layers", "train.precision",
        lambda s, n: s.compute.precision if s.compute.precision != "fp32" else "bf16", "fp32", lambda s, p: True,
    ),
    Technique(
        "prefetch", "batches assembled on a thread", "engine.prefetch",
        lambda s, n: s.recipe.engine.prefetch or 2, 0, lambda s, p: not _soft(s),
    ),
    Technique(
        "trajectories", "histories gathered on the device, from columns that lie there", "engine.trajectories",
        lambda s, n: "device", "host", _reads,
    ),
    Technique(
        "pinned", "one copy a batch, by pinned buffers beside the computing", "engine.pinned", lambda s, n: True, False,
        lambda s, p: s.compute.device.type == "cuda",
    ),
    Technique(
        "cuda_graphs", "scoring replayed at few sizes", "engine.cuda_graphs", lambda s, n: True, False,
        lambda s, p: p == "infer" and s.compute.device.type == "cuda" and replay.obstacle(s.recipe) is None,
    ),
    Technique(
        "token_budget", "steps of equal behaviours instead of equal samples", "engine.token_budget",
        lambda s, n: s.recipe.engine.token_budget or max(1, round(n * s.recipe.train.batch_size)), 0,
        lambda s, p: p == "train" and _reads(s, p),
    ),
)  # fmt: skip


def ablate(work: Work, steps: int, rounds: int, before: int, progress: Progress | None = None) -> dict[str, Any]:
    """Switch every technique that applies.

    Args:
        work: the recipe as it is.
        steps: of each variant in each round.
        before: bytes allocated before the work existed, see `memory.baseline`.

    Returns:
        techniques: {name: {what, key, on, off, in_recipe, ratio, low, high (quartiles over the rounds), cpu_ratio
        (of the CPU seconds, which other processes disturb less), difference (the largest change of a score, relative to
        their spread)}}; together: time with all off to that of the recipe, together_cpu; load, cpus;
        memory_utilisation: allocated over reserved at the peak {with, without} the pool; paper.
    """
    progress = progress or Silent()
    setup, phase = work.setup, work.phase
    groups = work.some(min(64, len(work.groups)))
    each = sum(work.behaviours(group) for group in groups) / sum(len(group) for group in groups)
    used = [technique for technique in TECHNIQUES if technique.where(setup, phase)]
    variants: dict[str, Work] = {"": work}
    ends: dict[str, tuple[Any, Any]] = {}
    for technique in used:
        on = technique.on(setup, each)
        ends[technique.name] = on, technique.off
        for side, value in (("on", on), ("off", technique.off)):
            if _value(setup.recipe, technique.key) != _resolved(setup, technique.key, value):
                variants[f"{technique.name}.{side}"] = _variant(work, {technique.key: value})
    everything = {technique.key: technique.off for technique in used if f"{technique.name}.off" in variants}
    everything |= {"engine.kernels": "eager"} if "engine.kernels" in everything else {}
    if everything:
        variants["together"] = _variant(work, everything)
    pool = {}  # looked at before others have stretched the heap
    for name, variant in (
        ("with", variants.get("memory_pool.on", work)),
        ("without", variants.get("memory_pool.off", work)),
    ):
        variant.setup.activate(variant.model)
        fitting.free(setup.compute.device)  # what was reserved under other settings
        pool[name] = 1 - memory.watch_step(variant, before)["fragmentation"]
    difference = _differences(variants)
    pace = _rounds(variants, steps, rounds, progress)
    found = {}
    for technique in used:
        with_it, without = (pace.get(f"{technique.name}.{side}", pace[""]) for side in ("on", "off"))
        changed = [name for name in (f"{technique.name}.on", f"{technique.name}.off") if name in variants]
        low, ratio, high = np.percentile(without[:, 0] / with_it[:, 0], (25, 50, 75))
        worked = without[:, 1] / with_it[:, 1]
        on, off = ends[technique.name]
        found[technique.name] = {
            "what": technique.what, "key": technique.key, "on": on, "off": off,
            "in_recipe": f"{technique.name}.on" not in variants,
            "ratio": float(ratio), "cpu_ratio": float(np.median(worked)), "low": float(low), "high": float(high),
            "difference": max((difference[name] for name in changed), default=0.0),
        }  # fmt: skip
    together = np.median(pace.get("together", pace[""]) / pace[""], axis=0).tolist()
    setup.activate(work.model)
    return {
        "techniques": found, "together": together[0], "together_cpu": together[1], "memory_utilisation": pool,
        "paper": PAPER, "rounds": rounds, "load": os.getloadavg()[0], "cpus": os.cpu_count() or 1,
    }  # fmt: skip


def _variant(work: Work, options: dict[str, Any]) -> Work:
    raw = work.setup.recipe.model_dump(by_alias=True)
    for key, value in options.items():
        section, name = key.split(".")
        raw[section][name] = value
    setup = Setup.of(recipes.parse(raw, work.setup.recipe.name), work.setup.store)
    return Work(setup, work.phase, work.model)


def _value(recipe: Recipe, key: str) -> Any:
    section, name = key.split(".")
    return getattr(getattr(recipe, section), name)


def _resolved(setup: Setup, key: str, value: Any) -> Any:
    """`auto` stands for whatever it was resolved to."""
    means = {
        "train.precision": setup.compute.precision,
        "engine.trajectories": "device" if setup.on_device else "host",
    }
    return "auto" if _value(setup.recipe, key) == "auto" and value == means.get(key) else value


def _rounds(variants: dict[str, Work], steps: int, rounds: int, progress: Progress) -> dict[str, np.ndarray]:
    """variant -> seconds by the clock and of the CPU, per behaviour (or sample), in each round: float64 [rounds, 2]."""
    names, taken = list(variants), {name: list[list[float]]() for name in variants}
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            work = variants[name]
            groups = [work.groups[(number * (steps + 1) + step) % len(work.groups)] for step in range(steps + 1)]
            plainly(work, groups[:1])  # what switching costs is no part of it
            spent = plainly(work, groups[1:])
            amount = sum(work.behaviours(group) for group in groups[1:]) or sum(len(group) for group in groups[1:])
            taken[name].append([seconds / amount for seconds in spent])
            progress.advance()
    return {name: np.array(values) for name, values in taken.items()}


@torch.no_grad()
def _differences(variants: dict[str, Work]) -> dict[str, float]:
    """variant -> largest change of a score on some samples, relative to the standard deviation of the scores."""
    base = variants[""]
    index = np.sort(np.concatenate(base.groups[:4]))[:COMPARED]
    expected = _scores(base, index)
    spread = float(expected.std()) or 1.0
    return {name: float((_scores(work, index) - expected).abs().max()) / spread for name, work in variants.items()}


def _scores(work: Work, index: np.ndarray) -> torch.Tensor:
    work.setup.activate(work.model)
    return torch.cat(list(evaluate.scores(work.model, work.feed, work.setup.compute, [index]))).float().cpu()
