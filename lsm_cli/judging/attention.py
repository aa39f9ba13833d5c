"""Where attention goes: how much of it falls on behaviours of an age, a rank, a match with the candidate, a scenario.

Every sample counts the same. Beside the attention stands the share of behaviours that lie there, which is what
attention would be if it weighed all alike: their ratio, the lift, says what the model looks for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch

from lsm_cli.data.batches import Batch
from lsm_cli.data.store import MISSING
from lsm_cli.engine.evaluate import scoring_batches
from lsm_cli.engine.feed import Feed
from lsm_cli.engine.setup import Setup
from lsm_cli.errors import InputError
from lsm_cli.models.ranking import RankingModel
from lsm_cli.models.scorer import Scorer
from lsm_cli.options import SEARCHING, Recipe
from lsm_cli.report.console import Progress, Silent

MINUTE, HOUR, DAY = 60, 3600, 86_400
AGES = {
    "< 1 min": MINUTE, "1 – 10 min": 10 * MINUTE, "10 – 60 min": HOUR, "1 – 6 h": 6 * HOUR, "6 – 24 h": DAY,
    "1 – 3 d": 3 * DAY, "3 – 7 d": 7 * DAY, "7 – 30 d": 30 * DAY, "30 – 90 d": 90 * DAY, "90 d – 1 y": 365 * DAY,
    "> 1 y": np.inf,
}  # fmt: skip
RANKS = (1, 2, 3, 6, 11, 21, 51, 101, 201, 501, 1001, 10_001)  # where the buckets begin
NO_MATCH, ALL = "none", "all"


@dataclass(frozen=True)
class Series:
    """One attention: of a target (`all` where one reading serves every target), a layer (from 1), and a head."""

    target: str
    layer: int
    head: str


class View:
    """Attention by one property of the behaviours.

    Args:
        names: of the buckets.
        series: number of attentions.

    Attributes:
        behaviours: float64 [buckets], share of the behaviours, summed over samples.
        attention: float64 [series, buckets].
    """

    def __init__(self, names: Sequence[str], series: int) -> None:
        self.names = list(names)
        self.behaviours = np.zeros(len(names))
        self.attention = np.zeros((series, len(names)))

    def add(self, bucket: np.ndarray, lengths: np.ndarray, weights: Sequence[np.ndarray]) -> None:
        """Count the behaviours of some samples.

        Args:
            bucket: int [N], of each behaviour.
            lengths: int [B], behaviours of each sample; N = their sum.
            weights: float [N] per series, summing to 1 over each sample that has behaviours.
        """
        size = len(self.names)
        alike = np.repeat(1 / np.maximum(lengths, 1), lengths)
        self.behaviours += np.bincount(bucket, alike, size)
        for total, weight in zip(self.attention, weights, strict=True):
            total += np.bincount(bucket, weight, size)


def age_bucket(age: np.ndarray) -> np.ndarray:
    """Seconds [N] -> place in `AGES`."""
    return np.searchsorted(np.array(list(AGES.values())[:-1]), age, side="right")


def rank_bucket(rank: np.ndarray) -> np.ndarray:
    """Rank from 1 [N] -> place in `RANKS`."""
    return np.searchsorted(np.array(RANKS), rank, side="right") - 1


def rank_names() -> list[str]:
    last = [low - 1 for low in RANKS[1:]]
    spans = [str(low) if low == high else f"{low:,} – {high:,}" for low, high in zip(RANKS, last, strict=False)]
    return [*spans, f"{RANKS[-1]:,}+"]


def match_level(history: dict[str, np.ndarray], target: dict[str, np.ndarray], lengths: np.ndarray) -> np.ndarray:
    """int64 [N]: the first of the fields (of both, finest first) that a behaviour shares with its candidate, or their
    number where it shares none; missing values match nothing."""
    level = np.full(int(lengths.sum()), len(target), np.int64)
    for place, name in reversed(list(enumerate(target))):
        wanted = np.repeat(np.where(target[name] > MISSING, target[name], -1), lengths)
        level[history[name] == wanted] = place
    return level


def effective(weight: np.ndarray, lengths: np.ndarray) -> float:
    """How many behaviours attention is spread over, exp(entropy), summed over the samples that have any."""
    row = np.repeat(np.arange(len(lengths)), lengths)
    terms = -weight * np.log(np.maximum(weight, 1e-30))
    return float(np.exp(np.bincount(row, terms, len(lengths)))[lengths > 0].sum())


def check(recipe: Recipe) -> None:
    """Raise InputError where a recipe has no attention to look at."""
    options = recipe.model
    if options.sequence not in SEARCHING or not options.max_len:
        why = "reads no behaviours" if not options.max_len else f"reads its histories by {options.sequence!r}"
        raise InputError(
            f"--attention: {recipe.name} {why}, which has no attention that sums to one; give it a run of "
            f"{' or '.join(SEARCHING)}"
        )


class Attention:
    """Counts the attention of a model over the samples that it is shown."""

    def __init__(self, setup: Setup, model: RankingModel) -> None:
        options = setup.recipe.model
        self.model = model
        heads, names = model.spaces[-1].heads, model.spaces[-1].behaviour
        assert heads is not None
        labels = [_label([names[place] for place in fields], names) for fields in heads.fields]
        if len(set(labels)) < len(labels):  # heads that see the same are told apart by their number
            labels = [f"{number}: {label}" for number, label in enumerate(labels, start=1)]
        targets = [ALL if target is None else setup.targets[target] for target in model.readings]
        layers = options.layers if options.sequence == "stacked_tin" else 1
        self.series = [
            Series(target, layer, label) for target in targets for layer in range(1, layers + 1) for label in labels
        ]
        both = [field for field in setup.fields if field.in_history and field.in_sample]
        levels = sorted((field for field in both if field.level), key=lambda field: -field.level)
        self.matching = [*(field.name for field in both if field.name == "item"), *(field.name for field in levels)]
        buckets: dict[str, list[str]] = {"age": list(AGES), "rank": rank_names(), "match": [*self.matching, NO_MATCH]}
        known = [field.name for field in setup.fields if field.in_history]
        self.values = [name for name in ("scenario", "domain", "action") if name in known]
        for name in self.values:
            info = setup.store.manifest["fields"][name]
            given: dict[str, str] = {"1": "missing"} | info.get("names", {})
            buckets[name] = [given.get(str(value), f"#{value}") for value in range(info["ids"])]
        self.views = {name: View(entries, len(self.series)) for name, entries in buckets.items()}
        self.spread = np.zeros(len(self.series))
        self.samples = self.empty = self.behaviours = 0

    def add(self, batch: Batch) -> None:
        """Count one batch."""
        found = self.model.weights(batch)
        weights = [head.double().cpu().numpy() for reading in found for layer in reading for head in layer]
        lengths = batch.offsets.diff().cpu().numpy()
        history = {name: ids.cpu().numpy() for name, ids in batch.history.items()}
        target = {name: batch.target[name].cpu().numpy() for name in self.matching}
        places: dict[str, np.ndarray] = {
            "age": age_bucket(batch.age.cpu().numpy()),
            "rank": rank_bucket(batch.rank.cpu().numpy()),
            "match": match_level(history, target, lengths),
            **{name: history[name] for name in self.values},
        }
        for name, place in places.items():
            self.views[name].add(place, lengths, weights)
        self.spread += [effective(weight, lengths) for weight in weights]
        self.samples += len(lengths)
        self.empty += int((lengths == 0).sum())
        self.behaviours += int(lengths.sum())

    def result(self) -> dict[str, Any]:
        """Means over the samples that have behaviours.

        Returns:
            {"samples", "empty": without behaviours, "behaviours": mean, "series": [{"target", "layer", "head",
            "effective": behaviours that it is spread over}], "views": {name: {"buckets", "behaviours": share of each,
            "attention": a list of shares per series}}}, buckets without behaviours left out.
        """
        read = max(self.samples - self.empty, 1)
        views = {}
        for name, view in self.views.items():
            there = view.behaviours > 0
            views[name] = {
                "buckets": [bucket for bucket, some in zip(view.names, there, strict=True) if some],
                "behaviours": (view.behaviours[there] / read).tolist(),
                "attention": (view.attention[:, there] / read).tolist(),
            }
        series = [
            {**vars(one), "effective": spread / read} for one, spread in zip(self.series, self.spread, strict=True)
        ]
        return {
            "samples": self.samples,
            "empty": self.empty,
            "behaviours": self.behaviours / read,
            "series": series,
            "views": views,
        }


@torch.no_grad()
def attention(
    setup: Setup, model: Scorer, split: str, sample: int, seed: int = 0, progress: Progress | None = None
) -> dict[str, Any]:
    """Look at the attention on `sample` samples of a split, drawn at random: see `Attention.result`."""
    progress, found, feed = progress or Silent(), Attention(setup, cast(RankingModel, model)), Feed(setup, split)
    model.eval()
    index = np.arange(len(feed))
    if sample < len(index):
        index = np.sort(np.random.default_rng(seed).permutation(len(index))[:sample])
    for part in scoring_batches(feed, index):
        found.add(feed.batch(part, model))
        progress.advance(len(part))
    return found.result()


def _label(fields: list[str], every: list[str]) -> str:
    """A head's name: its fields, levels of the category as one."""
    if not fields:
        return "time"
    if len(fields) == len(every):
        return "all fields"
    levels = [name for name in every if name.removeprefix("category").isdigit()]
    whole = len(levels) > 1 and set(levels) <= set(fields)
    short = ["category" if whole and name == levels[0] else name for name in fields]
    return " + ".join(name for name in short if not (whole and name in levels))
