"""From recipe and store to a model and its batches; the same for training, evaluation and profiling."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

import numpy as np
import torch

from lsm_cli.data.assembling import Assembler
from lsm_cli.data.epochs import changes
from lsm_cli.data.graph import item_graph
from lsm_cli.data.resident import resident_bytes
from lsm_cli.data.store import Field, Store
from lsm_cli.embedding.tables import Table
from lsm_cli.engine import replay, tiers
from lsm_cli.engine.device import Compute, decide
from lsm_cli.engine.pools import lasting, pool_memory
from lsm_cli.errors import InputError
from lsm_cli.kernels import fused, ragged
from lsm_cli.models.graph import item_vectors, with_graph
from lsm_cli.models.heads import groups
from lsm_cli.models.ranking import RankingModel
from lsm_cli.models.scorer import Scorer
from lsm_cli.models.two_tower import TwoTower, sides
from lsm_cli.options import BY_ATTENTION, ENCODED, HEADED, LAYERED, SEARCHING, Recipe
from lsm_cli.search.hard import ANY, HardOptions
from lsm_cli.search.matches import MatchStatistics
from lsm_cli.search.plan import hard_options

RESIDENT_SHARE = 0.25  # of a GPU's memory, that a store's columns may take
EVERYTHING = 1 << 40  # behaviours, more than anybody has


@dataclass(frozen=True)
class Setup:
    """Everything that recipe and store decide together."""

    recipe: Recipe
    store: Store
    compute: Compute
    fields: list[Field]
    targets: list[str]
    statistics: list[str]

    @classmethod
    def of(cls, recipe: Recipe, store: Store) -> Setup:
        """Resolve field and target names against the store.

        Raises:
            InputError: a name that the store does not have or that is there twice, or nothing to train.
        """
        names = _known(recipe.data.fields, list(store.fields), "data.fields", store)
        targets = _known(recipe.data.targets, store.targets, "data.targets", store)
        _known(list(recipe.train.weights), targets, "train.weights", store)
        if not any(recipe.train.weights.get(target, 1.0) for target in targets):
            raise InputError("train.weights: every target that is trained has weight 0; give one of them more")
        statistics = store.statistics if recipe.data.statistics else []
        seen = [store.fields[name] for name in names if store.fields[name].in_history]
        groups(recipe.model.heads, with_graph(seen, recipe.model.graph_dim), bool(recipe.model.temporal))
        if recipe.model.action_bias and "action" not in [field.name for field in seen]:
            raise InputError(
                f"model.action_bias: the behaviours of {store.path} that data.fields names have no `action`; set it to "
                "false"
            )
        fields = [store.fields[name] for name in names]
        if recipe.model.sequence == "sasrec":
            sides(recipe.model, fields)
        setup = cls(recipe, store, decide(recipe.train), fields, targets, statistics)
        setup.activate()
        return setup

    def activate(self, model: Scorer | None = None) -> None:
        """Make this process, and a model, work as the recipe's [engine] says: kernels and the allocator are shared by
        all setups of a process, so whoever turns from one to another says so."""
        engine = self.recipe.engine
        if engine.kernels == "triton" and not fused.available(self.compute.device.type):
            raise InputError(
                "engine.kernels = 'triton' needs a GPU and the package triton, or TRITON_INTERPRET=1 to try it slowly "
                "on the CPU; use auto"
            )
        ragged.prefer(engine.kernels)
        pool_memory(self.compute.device, engine)
        for part in model.modules() if model is not None else ():
            if isinstance(part, Table):
                part.sparse = engine.sparse_rows

    def model(self) -> Scorer:
        model = self._towers() if self.recipe.model.sequence == "sasrec" else self._ranking()
        self.activate(model)
        with lasting(self.compute.device, self.recipe.engine):
            return model.to(self.compute.device)

    def _towers(self) -> Scorer:
        shown = self._shown() if self.recipe.train.softmax else None
        return TwoTower(self.recipe, self.fields, len(self.targets), len(self.statistics), self._category_rows, shown)

    def _ranking(self) -> Scorer:
        found = self.match_statistics()
        matches = len(found.names) if found else 0
        return RankingModel(
            self.recipe, self.fields, len(self.targets), len(self.statistics), self._category_rows, matches
        )

    @property
    def _category_rows(self) -> np.ndarray | None:
        return self.store.category_rows if self.store.depth else None

    def item_vectors(self) -> torch.Tensor:
        """The item graph's vectors, float32 [item rows, graph_dim], from the training trajectories."""
        options = self.recipe.model
        return item_vectors(item_graph(self.store, options.graph_window), options.graph_dim, self.recipe.train.seed)

    def _shown(self) -> np.ndarray:
        """How often each row of the item table is a candidate in training: int64 [rows]."""
        rows = self.store.fields["item"].rows
        return np.bincount(np.minimum(self.store.samples("train").column("item"), rows - 1), minlength=rows)

    def assembler(self, split: str, shuffle_seed: int | None = None) -> Assembler:
        return Assembler(
            self.store,
            split,
            self.fields,
            self.targets,
            self.reach,
            self.statistics,
            shuffle_seed,
        )

    def _request_decisions(self) -> list[str]:
        """Whether candidates of a request share its history in training, or could where that is worth most."""
        search, each = self.recipe.search, candidates_per_request(self.store, "train")
        together, shares = self.recipe.train.shuffle == "requests", self.recipe.engine.share_histories
        if search.source or search.method != "none":
            scored = shares and not search.source and search.method in BY_ATTENTION
            gain = "a history is scored for all of them at once" if scored else "only the order is another"
            found = f"requests   stay together, and each candidate reads what is found for it: {gain}"
            return [found] if together else []
        if each < 2 or not shares:
            return []
        if together:
            return [f"requests   stay together: {each:.1f} candidates read one history"]
        if self.recipe.model.sequence in ENCODED:
            return [f"requests   of {each:.1f} candidates: with train.shuffle=requests they share one reading"]
        return []

    def _ignored(self) -> list[str]:
        """Options of the model that the recipe sets and that change nothing in it."""
        model, search, standard = self.recipe.model, self.recipe.search, type(self.recipe.model)()
        reasons: dict[str, str] = {}
        if search.source or search.method != "none":
            reasons["max_len"] = "a search reads what it finds; search.reach says how far back"
        if model.sequence == "none" or not model.temporal:
            reasons["time_tables"] = "no time is encoded"
        if model.sequence not in LAYERED:
            reasons["layers"] = f"{model.sequence} has none"
        if model.sequence not in HEADED:
            reasons["block_heads"] = f"{model.sequence} has none of these"
        if model.sequence != "stacked_tin":
            stack = ("stack_output", "stack_residual", "stack_feed_forward")
            reasons |= dict.fromkeys(stack, f"{model.sequence} is no stack")
        return [
            f"ignored    model.{key} = {getattr(model, key)}: {why}"
            for key, why in reasons.items()
            if getattr(model, key) != getattr(standard, key)
        ]

    def _search_decisions(self) -> list[str]:
        model, search = self.recipe.model, self.recipe.search
        lines = []
        if search.source:
            lines.append(f"search     pointers in {search.source}")
        elif search.method != "none":
            parts = []
            if search.method in ("hard", "hybrid"):
                options = self.hard_options()
                indexed = all(level in self.store.index for level in options.levels if level != ANY)
                how = "long histories by the store's index"
                if not indexed:
                    how = "scanning every history: the store has no index of them"
                if not self.recipe.engine.search_index:
                    how = "scanning every history: engine.search_index is off"
                parts.append(f"{options.top_k} by {' > '.join(options.levels)}, {how}")
            if search.method != "hard":
                k = search.top_k - (self.hard_options().top_k if search.method == "hybrid" else 0)
                own = f"embeddings of its own, {model.attention_dim} wide" if model.attention_dim else "the shared ones"
                what = search.score if search.method in ("soft", "hybrid") else search.method.upper()
                parts.append(f"{k} by {what}, {own}")
            recent = f"; the last {search.recent:,} besides" if search.recent else ""
            lines.append(f"search     {search.method}: {' and '.join(parts)}{recent}")
        if model.evidence and model.evidence_from == "history":
            lacking = [name for name in self.matched if name not in self.store.index]
            how = ", if it is long by the store's index"
            if lacking:
                how = f" by looking at it: the store has no index of {', '.join(lacking)}"
            lines.append(f"matches    counted over the whole history{how}")
        return lines

    @property
    def reach(self) -> int:
        """Most recent behaviours that a sample may see."""
        model, search = self.recipe.model, self.recipe.search
        if model.sequence == "none" and not (model.evidence and model.evidence_from == "read"):
            return 0
        if search.method == "none" and not search.source:
            return model.max_len
        return search.reach or EVERYTHING

    @property
    def on_device(self) -> bool:
        """Whether histories are gathered on the device."""
        where, device = self.recipe.engine.trajectories, self.compute.device
        if where != "auto" or device.type != "cuda":
            return where == "device"
        if self.recipe.engine.table_tier != "device":
            return False  # rows are brought nearer by the ids of the coming batches, which the host then must know
        return self.resident_bytes <= RESIDENT_SHARE * torch.cuda.get_device_properties(device).total_memory

    @property
    def replays(self) -> bool:
        """Whether scoring goes by CUDA graphs."""
        asked = self.recipe.engine.cuda_graphs and self.compute.device.type == "cuda"
        return asked and replay.obstacle(self.recipe) is None

    @property
    def resident_bytes(self) -> int:
        """What the columns that this recipe reads take, of all splits (the events' counted once for each)."""
        return sum(resident_bytes(self.assembler(split)) for split, samples in self.store.splits.items() if samples)

    def match_statistics(self) -> MatchStatistics | None:
        """Evidence from the whole history, if the recipe wants it."""
        model = self.recipe.model
        if not model.evidence or model.evidence_from == "read":
            return None
        return MatchStatistics(self.store, self.matched, model.days, model.windows) if self.matched else None

    @property
    def matched(self) -> list[str]:
        """Fields by which behaviours match candidates."""
        return [field.name for field in self.fields if field.in_history and field.in_sample]

    def hard_options(self) -> HardOptions:
        """The hard search of the recipe."""
        options = self.recipe.search
        top_k = options.hard_k if options.method == "hybrid" else options.top_k
        return hard_options(options, self.store, [field.name for field in self.fields], top_k)

    @property
    def reads_history(self) -> bool:
        """Whether behaviours enter the model in any way."""
        return self.recipe.model.sequence != "none" or self.recipe.model.evidence

    def decisions(self) -> list[str]:
        """What was decided and why, a line each."""
        model, train = self.recipe.model, self.recipe.train
        lines = [f"device     {self.compute.describe()}"]
        if model.sequence != "none":
            plain = "plain gathers" if self.recipe.engine.kernels == "eager" else "fused gathers and sums"
            one_pass = fused.chosen(self.compute.device.type) and model.sequence in SEARCHING
            lines.append(f"kernels    {'Triton, in one pass over each history' if one_pass else plain}")
        standard = type(self.recipe.engine)()
        changed = [f"{key} = {value}" for key, value in self.recipe.engine if value != getattr(standard, key)]
        if changed:
            lines.append(f"engine     {', '.join(changed)}")
        if self.recipe.engine.cuda_graphs:
            why = replay.obstacle(self.recipe) or ("" if self.replays else "there is no GPU")
            lines.append(
                f"graphs     {f'none: {why}' if why else 'scoring is captured once for each size and replayed'}"
            )
        if self.on_device:
            held = f"{self.resident_bytes / 2**20:,.1f} MiB"
            lines.append(f"gathering  on the device, from {held} of the store's columns there")
        lines.append(f"fields     {', '.join(field.name for field in self.fields)}")
        if model.graph_dim:
            lines.append(
                f"item graph {model.graph_dim} directions of what occurs within {model.graph_window} behaviours "
                "before the last training request, and each user's first held-out one"
            )
        lines.append(f"targets    {', '.join(self.targets)}")
        if not self.reads_history:
            lines.append("history    not read by this recipe")
        else:
            visible = visible_lengths(self.store, "train")
            cut = float(np.mean(visible > self.reach)) if len(visible) else 0.0
            known = f"median {int(np.median(visible)) if len(visible) else 0:,} visible"
            if self.reach >= EVERYTHING:
                lines.append(f"history    all behaviours before the request ({known})")
            else:
                lines.append(
                    f"history    the most recent {self.reach:,} behaviours; the older ones of {cut:.0%} of the "
                    f"training samples are dropped ({known})"
                )
            lines += self._search_decisions() + self._request_decisions()
        if model.sequence == "sasrec":
            item, request, unused = sides(model, self.fields)
            left = f"; not used: {', '.join(unused)} (model.item_fields, model.request_fields)" if unused else ""
            lines.append(f"towers     item: {', '.join(item)}; request: {', '.join(request) or 'nothing'}{left}")
        lines.append(
            f"tables     {sum(field.rows for field in self.fields):,} rows x {model.dim}, {train.table_optimizer}, "
            f"lr {train.table_lr:g}; dense lr {train.lr:g}"
        )
        return lines + tiers.decisions(self.recipe, self.fields) + self._ignored()


def candidates_per_request(store: Store, split: str) -> float:
    """Samples of a request that stand side by side, on average; at least 1."""
    samples = store.samples(split)
    requests = changes(*(np.asarray(samples.column(name)) for name in ("user", "end", "time"))).sum()
    return len(samples) / max(int(requests), 1)


def visible_lengths(store: Store, split: str) -> np.ndarray:
    """Behaviours before the request, untruncated: int64 [samples]."""
    samples = store.samples(split)
    return samples.column("end") - store.offsets[samples.column("user")]


def parameters(model: torch.nn.Module) -> int:
    """Numbers that training can change: dense parameters and table rows."""
    dense = sum(parameter.numel() for parameter in model.parameters())
    return dense + sum(part.rows * part.dim for part in model.modules() if isinstance(part, Table))


def _known(asked: list[str], available: list[str], key: str, store: Store) -> list[str]:
    for place, name in enumerate(asked):
        if name in asked[:place]:
            raise InputError(f"{key}: {name!r} is there twice; name it once")
        if name not in available:
            near = difflib.get_close_matches(name, available, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise InputError(f"{key}: {store.path} has no {name!r}; {hint}it has {', '.join(available)}")
    return asked or available
