"""lsm eval RUN --baseline RUN2, and the controls that hide behaviours: is it really better, where, what is it worth."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lsm_cli.commands.comparison_page import make_room, write_page
from lsm_cli.data.store import Store
from lsm_cli.data.views import View, ads_only, without
from lsm_cli.engine import slices as slicing
from lsm_cli.engine.run import RunFolder
from lsm_cli.errors import InputError
from lsm_cli.judging.compare import LEVEL, METRICS, WORDS, Difference
from lsm_cli.judging.contenders import Contender, Scores, differences, summaries
from lsm_cli.judging.gmv import CLIP, paid_target, sentences, worth
from lsm_cli.report.console import Console, count, size

COLUMNS = ("run", "other", "differ by", f"{LEVEL:.0%} interval", "")
ALONE = "Each interval stands for itself: among twenty lines one is expected to miss."
ABLATION = "an ablation of the input of the same trained model, not a model retrained without it"


@dataclass(frozen=True)
class Asked:
    """What `lsm eval` was asked for beside the run."""

    baseline: Path | None = None
    shuffle_history: bool = False
    ads_only: bool = False
    drop_domain: list[str] = field(default_factory=list)
    replicates: int = 1000
    seed: int = 0
    out: Path | None = None
    shown: int = 1
    clip: float = CLIP
    gmv_target: str | None = None

    @property
    def compares(self) -> bool:
        return self.baseline is not None or self.ads_only or bool(self.drop_domain)


@dataclass(frozen=True)
class Rival:
    """What the run is compared with."""

    key: str
    title: str
    scores: Scores
    contender: Contender
    ablation: str | None = None  # what was hidden, in words


def compare_runs(console: Console, run_path: Path, data: Path | None, split: str, asked: Asked) -> dict[str, Any]:
    """Score one split with a run and its rivals and tell them apart."""
    if asked.ads_only and asked.drop_domain:
        raise InputError("--ads-only and --drop-domain both say which behaviours to hide: give one of them")
    store = Store.open(data or Path(RunFolder.open(run_path).data()["path"]))
    ours = Contender.of(run_path, store)
    other = Contender.of(asked.baseline, store) if asked.baseline else None
    if not len(store.samples(split)):
        raise InputError(f"{store.path}: no {split} samples to compare on; name another --split")
    view = None
    if asked.ads_only or asked.drop_domain:
        view = ads_only(store, split) if asked.ads_only else without(store, asked.drop_domain)
    shared = [name for name in ours.targets if other is None or name in other.targets]
    if other and not shared:
        raise InputError(
            f"{other.path}: predicts {', '.join(other.targets)} and {run_path} predicts {', '.join(ours.targets)}; "
            "there is no target to compare"
        )
    paid = _paid(store, split, shared, asked) if other else None
    folder = asked.out or run_path
    make_room(folder)
    console.say(f"run        {run_path}: {ours.name}")
    if other:
        console.say(f"baseline   {other.path}: {other.name}")
    console.say(f"store      {store.path} ({store.name}), split {split}: {len(store.samples(split)):,} samples")
    console.say(f"device     {ours.setup.compute.describe()}")
    console.say(f"intervals  {LEVEL:.0%}, {asked.replicates:,} bootstrap replicates of users, seed {asked.seed}")
    mine = _score(console, ours, split)
    rivals = _rivals(console, ours, other, view, split, asked)
    result: dict[str, Any] = {
        "run": str(run_path),
        "recipe": ours.name,
        "store": str(store.path),
        "split": split,
        split: summaries(store, split, mine),
        "samples_per_second": mine.rate,
        "cost": ours.cost(mine),
        "replicates": asked.replicates,
        "seed": asked.seed,
        "level": LEVEL,
        "against": {},
    }
    sliced = slicing.slices(store, split)
    told = {
        rival.key: differences(store, split, mine, rival.scores, sliced, asked.replicates, asked.seed)
        for rival in rivals
    }
    for rival in rivals:
        result["against"][rival.key] = {
            "title": rival.title,
            "run": str(rival.contender.path),
            "recipe": rival.contender.name,
            split: summaries(store, split, rival.scores),
            "cost": rival.contender.cost(rival.scores),
            "differences": {target: _entries(one) for target, one in told[rival.key].items()},
            **({"ablation": rival.ablation} if rival.ablation else {}),
        }
        if rival.key == "baseline" or not other:
            show_slices(console, f"of {ours.name} against {rival.title}, by slice", told[rival.key])
    named = {"run": result[split]}
    if other:
        named["baseline"] = result["against"]["baseline"][split]
    for target in shared:
        show_calibration(console, target, {name: one[target] for name, one in named.items()})
    for rival in rivals:  # last, where the reader looks first: what it comes to
        show_differences(console, f"{ours.name} against {rival.title}, {split} samples", told[rival.key])
        if rival.ablation:
            for target, one in told[rival.key].items():
                console.text(f"{target}: AUC with what is hidden, against without: {one['auc'].verdict}")
        if rival.key == "baseline" and paid:
            logits = (mine.by_target[paid], rival.scores.by_target[paid])
            money = worth(store, split, paid, logits, asked.shown, asked.clip, asked.replicates, asked.seed)
            show_money(console, ours.name, rival.contender.name, money)
            result["gmv"] = _json(money)
    result["page"] = str(write_page(result, folder))
    console.text(
        f"{count(mine.rate)} scored samples/s, {count(result['cost']['parameters'])} parameters, peak memory "
        f"{size(result['cost']['peak_memory_bytes'])}; page in {result['page']}"
    )
    if other and not asked.shuffle_history:
        console.next(f"lsm eval {run_path} --baseline {asked.baseline} --shuffle-history")
    return result


def _rivals(
    console: Console, ours: Contender, other: Contender | None, view: View | None, split: str, asked: Asked
) -> list[Rival]:
    """Scores of all that the run is compared with."""
    found = []
    if other:
        found.append(Rival("baseline", f"baseline {other.name}", _score(console, other, split), other))
    if asked.shuffle_history:
        console.say("control    every user gets another user's history, cut at the same request time")
        scores = _score(console, ours, split, "shuffled histories", seed=asked.seed)
        found.append(Rival("shuffled", "shuffled histories", scores, ours))
    if view is not None:
        console.say(f"control    {view.said}; {ABLATION}; popularity of the candidates stays as it was counted")
        scores = _score(console, ours, split, view.said, view)
        key = "ads_only" if asked.ads_only else "without " + ", ".join(asked.drop_domain)
        found.append(Rival(key, key.replace("_", " "), scores, ours, f"{view.said}; {ABLATION}"))
    return found


def _paid(store: Store, split: str, targets: list[str], asked: Asked) -> str | None:
    """The target that ranks by value, if there is money in the log."""
    samples = store.samples(split)
    if not samples.has("value"):
        if asked.gmv_target:
            raise InputError(f"--gmv-target: {store.path} has no value column; name one as samples.value and rebuild")
        return None
    if asked.gmv_target:
        if asked.gmv_target not in targets:
            raise InputError(f"--gmv-target {asked.gmv_target}: not a common target; there is {', '.join(targets)}")
        return asked.gmv_target
    return paid_target({name: samples.column(f"label.{name}") for name in targets}, samples.column("value"))


def _score(
    console: Console, who: Contender, split: str, label: str = "", view: Store | None = None, seed: int | None = None
) -> Scores:
    size_ = len(who.setup.store.samples(split))
    with console.progress(f"score {split} {label or who.name}", size_, "samples") as bar:
        return who.scores(split, view, seed, bar)


def _json(found: dict[str, Any]) -> dict[str, Any]:
    return {name: one.entry() if isinstance(one, Difference) else one for name, one in found.items()}


def _entries(found: dict[str, Any]) -> dict[str, Any]:
    """Differences as JSON, slices included."""
    sliced = {kind: {name: _json(part) for name, part in groups.items()} for kind, groups in found["slices"].items()}
    return {**_json(found), "slices": sliced}


def show_differences(console: Console, title: str, found: dict[str, Any]) -> None:
    rows = []
    for target, one in found.items():
        for metric in METRICS:
            rows.append([f"{target} {WORDS[metric]}", *_cells(one[metric])])
    console.table(title, ["", *COLUMNS], rows)


def show_slices(console: Console, title: str, found: dict[str, Any]) -> None:
    """Where it is better: AUC by slice, one table a target; GAUC and log loss of the slices are in page and JSON."""
    for target, one in found.items():
        rows = []
        for kind, groups in one["slices"].items():
            parts = [(name, part["auc"]) for name, part in groups.items() if part["auc"].value is not None]
            if len(parts) > 1:
                rows.append([slicing.short(kind), None, None, None, None, None])
                rows += [[f"  {name}", *_cells(auc)] for name, auc in parts]
        if rows:
            cells = [["" if cell is None and row[-1] is None else cell for cell in row] for row in rows]
            console.table(f"{target}: AUC {title}", ["", *COLUMNS], cells, note=ALONE)


def show_calibration(console: Console, target: str, named: dict[str, Any]) -> None:
    """Predicted beside observed share of positives, in bins of equal mass."""
    bins = {name: entry["calibration_curve"]["bins"] for name, entry in named.items()}
    rows = []
    for place in range(max(map(len, bins.values()))):
        row: list[str | None] = [f"{place + 1}"]
        for of in bins.values():
            row += [f"{of[place]['predicted']:.4f}", f"{of[place]['observed']:.4f}"] if place < len(of) else [None] * 2
        rows.append(row)
    errors = {name: entry["calibration_curve"]["ece"] for name, entry in named.items()}
    said = ", ".join(f"{name} {error:.4f}" for name, error in errors.items() if error is not None)
    console.table(
        f"{target}: calibration, from the least to the most likely samples, parts of equal size",
        ["part", *(f"{name} {what}" for name in named for what in ("predicted", "observed"))],
        rows,
        note=f"expected calibration error: {said}",
    )


def show_money(console: Console, ours: str, theirs: str, money: dict[str, Any]) -> None:
    rows = [["value-weighted AUC", *_cells(money["value_auc"])]]
    lift: Difference = money["lift"]
    value = None if lift.value is None else f"{lift.value:+.1%}"
    span = None if lift.low is None or lift.high is None else f"{lift.low:+.1%}…{lift.high:+.1%}"
    if money["method"] == "replay":
        mine, other, log = (_percent(money["captured"][name]) for name in ("run", "other", "logged order"))
        last = "  the same by the logged order"
    else:
        each = money["value_per_request"]
        mine, other, log = (None if each[name] is None else f"{each[name]:.4g}" for name in ("run", "other", "log"))
        last = "  the same by the log's own policy"
    rows += [[money["what"], mine, other, value, span, lift.word], [last, log, None, None, None, None]]
    title = f"GMV of {ours} against {theirs}, ranked by {money['target']}"
    console.table(title, ["", *COLUMNS], rows, note=money["how"])
    for line in sentences(_json(money), (ours, theirs)):
        console.text(line)


def _cells(one: Difference) -> list[str | None]:
    span = None if one.low is None or one.high is None else f"{one.low:+.4f}…{one.high:+.4f}"
    numbers = [None if number is None else f"{number:.4f}" for number in (one.ours, one.theirs)]
    return [*numbers, None if one.value is None else f"{one.value:+.4f}", span, one.word]


def _percent(share: float | None) -> str | None:
    return None if share is None else f"{share:.1%}"
