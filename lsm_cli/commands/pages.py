"""report.html of a run and of a sweep: what was tried, on what, how sure the result is, and what it cost."""

from __future__ import annotations

from typing import Any

from lsm_cli.commands.comparison_page import calibration
from lsm_cli.data.store import Store
from lsm_cli.engine import slices
from lsm_cli.engine.certainty import Z, interval
from lsm_cli.engine.setup import EVERYTHING, Setup
from lsm_cli.engine.trail import Finished, code_name
from lsm_cli.options import Recipe
from lsm_cli.report.console import count, size
from lsm_cli.report.html import Page

COLUMNS = ["", "AUC", "GAUC", "log loss", "calibration", "samples", "positives"]
METRICS = ("auc", "gauc", "logloss")
GLOSSARY = (
    "AUC: how often a positive is ranked above a negative. GAUC: the same within each user, averaged over users by "
    "their samples. Log loss: mean negative log-likelihood of what happened, less is better. Calibration: predicted "
    "positives over observed ones, 1 is right."
)


def run_page(setup: Setup, done: Finished, machine: dict[str, Any]) -> Page:
    """The page of one run.

    Args:
        machine: its environment.json.
    """
    recipe, result = setup.recipe, done.result
    page = Page(f"{recipe.name} on {setup.store.name}")
    page.note(f"Run {done.folder}, started {_time(machine.get('started'))}, split “{done.split}”.")
    for target, entry in done.targets.items():
        page.paragraph(_in_words(target, entry, done.split, setup.store))
    page.tiles(
        [*(_tile(target, entry) for target, entry in done.targets.items() if entry["auc"] is not None), *_cost(result)]
    )
    _tried(page, setup)
    _data(page, setup.store)
    rows = []
    for target, entry in done.targets.items():
        rows.append([target, *_sure(entry), *_counts(entry)])
        if "truth" in entry:
            rows.append(["the truth (probabilities that drew the labels)", *_plain(entry["truth"])])
    known = any(error is not None for entry in done.targets.values() for error in (entry.get("error") or {}).values())
    sure = "with 95% intervals" if known else "too few users for intervals"
    page.table(f"How sure: {done.split} samples, {sure}", COLUMNS, rows)
    page.note(
        f"{GLOSSARY} Intervals say what another draw of users would give this model (errors clustered by user). What "
        "another seed gives, `lsm train --seeds 3` tells; whether a run is better than another, `lsm eval --baseline`, "
        "which compares sample by sample and so tells apart what these intervals do not."
    )
    _curves(page, recipe, {"": done.history})
    calibration(page, {recipe.name: done.targets})
    for target, entry in done.targets.items():
        for kind, groups in entry["slices"].items():
            table = [[name, *_plain(part)] for name, part in groups.items()]
            page.table(f"{target} by {slices.title(kind)}", [slices.short(kind), *COLUMNS[1:]], table)
    page.facts("Where and by what it was made", _made(result, machine, setup))
    page.code("All options (recipe.toml)", recipe.to_toml())
    return page


def sweep_page(setup: Setup, done: list[Finished], result: dict[str, Any]) -> Page:
    """The page of several seeds.

    Args:
        result: as in summary.json.
    """
    split, recipe, seeds = done[0].split, setup.recipe, result["seeds"]
    page = Page(f"{recipe.name} on {setup.store.name}, {len(seeds)} seeds")
    page.note(f"Runs in {result['run']}: {', '.join(run.folder.name for run in done)}, split “{split}”.")
    for target, means in result[split].items():
        page.paragraph(_spread_in_words(target, means, result["sd"][target], len(seeds)))
    tiles = [
        (f"{target} {name.upper()}", f"{means[name]:.4f}", _deviation(result["sd"][target][name]))
        for target, means in result[split].items()
        for name in ("auc", "gauc")
        if means[name] is not None
    ]
    page.tiles([*tiles, *_cost(result)])
    _tried(page, setup, sweep=", ".join(map(str, seeds)))
    _data(page, setup.store)
    rows: list[list[Any]] = []
    for target, means in result[split].items():
        spread = result["sd"][target]
        mean = [with_margin(means[name], spread[name]) for name in METRICS]
        rows.append(
            [f"{target}, mean ± sd", *mean, with_margin(means["calibration"], spread["calibration"]), *_counts(means)]
        )
        for seed, run in zip(seeds, done, strict=True):
            rows.append([f"{target}, seed {seed}", *_plain(run.targets[target])])
    page.table(f"How sure: {split} samples, mean ± standard deviation over seeds", COLUMNS, rows)
    page.note(
        f"{GLOSSARY} The standard deviation is that of one run about the mean (n − 1 in the denominator): two variants "
        "whose means lie closer than that are not told apart by a run each."
    )
    _curves(page, recipe, {f"seed {seed}": run.history for seed, run in zip(seeds, done, strict=True)})
    page.code("All options (recipe.toml, but the seed)", recipe.to_toml())
    return page


# what happened, in words


def _in_words(target: str, entry: dict[str, Any], split: str, store: Store) -> str:
    dates = (store.manifest.get("split", {}).get("dates") or {}).get(split)
    when = f" from {dates[0][:10]} to {dates[1][:10]}" if dates else ""
    text = f"{target}: {entry['n']:,} samples{when}, {entry['positives']:,} of them positive."
    if entry["auc"] is None:
        return f"{text} Only one outcome occurs, so no ranking can be judged."
    text += f" In {entry['auc']:.1%} of all pairs the positive sample is ranked above the negative one"
    known = interval(entry["auc"], entry.get("error", {}).get("auc"))
    if known:
        sure = known[0] > 0.5
        text += f" (95% interval {known[0]:.1%} to {known[1]:.1%}; " + (
            "50% would be chance)" if sure else "chance, 50%, is not excluded)"
        )
    if entry.get("truth", {}).get("auc"):
        text += f", where the best possible ranking has {entry['truth']['auc']:.1%}"
    if entry["calibration"] is not None:
        text += f". It predicts {entry['calibration']:.2f} times as many positives as there were"
    return f"{text}."


def _spread_in_words(target: str, means: dict[str, Any], spread: dict[str, Any], seeds: int) -> str:
    text = f"{target}: {means['n']:,} samples, {means['positives']:,} of them positive."
    if means["auc"] is None:
        return f"{text} The ranking could not be judged in every run."
    text += f" Over {seeds} seeds the AUC is {means['auc']:.4f}"
    return text + ("." if spread["auc"] is None else f" ± {spread['auc']:.4f} (standard deviation).")


def _tile(target: str, entry: dict[str, Any]) -> tuple[str, str, str]:
    error = entry.get("error", {}).get("auc")
    return f"{target} AUC", f"{entry['auc']:.4f}", f"± {Z * error:.4f} (95%)" if error is not None else ""


def _deviation(sd: float | None) -> str:
    return "" if sd is None else f"± {sd:.4f} between seeds"


def _cost(result: dict[str, Any]) -> list[tuple[str, str, str]]:
    seconds = result.get("training_seconds")
    tiles = [] if seconds is None else [("training time", duration(seconds), "without validation")]
    return [
        *tiles,
        ("speed", f"{count(result['samples_per_second'])}/s", "training samples"),
        ("peak memory", size(result["peak_memory_bytes"]), "of the process, or of the GPU"),
        ("size", count(result["parameters"]), "parameters"),
    ]


def duration(seconds: float) -> str:
    """75 -> '1 min 15 s'."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s"
    hours, rest = divmod(whole, 3600)
    return f"{hours} h {rest // 60} min" if hours else f"{rest // 60} min {rest % 60} s"


# sections


def _tried(page: Page, setup: Setup, sweep: str | None = None) -> None:
    recipe = setup.recipe
    model, train = recipe.model, recipe.train
    if setup.reach == 0:
        history = "none" if not model.evidence else "match counts only"
    elif recipe.search.source or recipe.search.method != "none":
        what = f"pointers of {recipe.search.source}" if recipe.search.source else recipe.search.method
        reach = "the whole history" if setup.reach >= EVERYTHING else f"the most recent {setup.reach:,}"
        history = f"up to {recipe.search.top_k:,} behaviours out of {reach}, by search ({what})"
    else:
        history = f"the most recent {setup.reach:,} behaviours"
    page.facts(
        "What was tried",
        [
            ("recipe", recipe.name),
            ("idea", recipe.description or None),
            ("history read", history),
            ("read by", model.sequence),
            ("side information", ", ".join(field.name for field in setup.fields)),
            ("targets", ", ".join(setup.targets)),
            (
                "training",
                f"{train.epochs} pass{'es' * (train.epochs > 1)} over the data, {train.batch_size:,} samples a step",
            ),
            ("chosen by", f"the best of the validations by {train.metric}"),
            ("seeds" if sweep else "seed", sweep or train.seed),
        ],
    )


def _data(page: Page, store: Store) -> None:
    manifest = store.manifest
    dates = manifest.get("split", {}).get("dates") or {}
    rows: list[tuple[str, Any]] = [
        ("store", f"{store.name} ({store.path.resolve()})"),
        ("behaviours", f"{store.events:,} of {store.users:,} users"),
        ("from, to", " to ".join(manifest["events"]) if manifest.get("events") else None),
    ]
    for split, number in store.splits.items():
        when = f", {dates[split][0]} to {dates[split][1]}" if dates.get(split) else ""
        rows.append((f"{split} samples", f"{number:,}{when}"))
    rows.append(("split", manifest.get("split", {}).get("how")))
    page.facts("On what", rows)


def _curves(page: Page, recipe: Recipe, histories: dict[str, list[dict[str, Any]]]) -> None:
    """Learning curves: one line per target, or with several runs per run and target."""
    metric, valid = recipe.train.metric, dict[str, list[tuple[float, float]]]()
    for name, lines in histories.items():
        for line in lines:
            for target, entry in line["valid"].items():
                if entry[metric] is not None:
                    label = f"{name} {target}".strip() if len(line["valid"]) > 1 or not name else name
                    valid.setdefault(label, []).append((line["epoch"], entry[metric]))
    named = {"auc": "AUC", "gauc": "GAUC", "logloss": "log loss"}[metric]
    page.lines(f"Learning curve: validation {named} by pass over the data", valid)
    loss = {name: [(line["epoch"], line["train_loss"]) for line in lines] for name, lines in histories.items()}
    page.lines("Learning curve: training loss by pass over the data", loss)


def _made(result: dict[str, Any], machine: dict[str, Any], setup: Setup) -> list[tuple[str, Any]]:
    return [
        ("code", code_name(machine)),
        ("device", setup.compute.describe()),
        ("libraries", f"Python {machine.get('python')}, torch {machine.get('torch')}, numpy {machine.get('numpy')}"),
        ("machine", machine.get("platform")),
        ("steps", f"{result['steps']:,}"),
        ("scoring", f"{count(result['scoring_samples_per_second'])} samples/s"),
        ("command", machine.get("command")),
        ("again", f"lsm train --from {result['run']} --out NEW"),
    ]


# cells


def _sure(entry: dict[str, Any]) -> list[str | None]:
    errors = entry.get("error") or {}
    cells = [with_margin(entry[name], None if errors.get(name) is None else Z * errors[name]) for name in METRICS]
    return [*cells, with_margin(entry["calibration"], None, 3)]


def _plain(entry: dict[str, Any]) -> list[str | None]:
    return [
        *(with_margin(entry[name], None) for name in METRICS),
        with_margin(entry["calibration"], None, 3),
        *_counts(entry),
    ]


def _counts(entry: dict[str, Any]) -> list[str]:
    return [f"{entry['n']:,}", f"{entry['positives']:,}"]


def with_margin(value: float | None, margin: float | None, digits: int = 4) -> str | None:
    """'0.8123 ± 0.0012'."""
    if value is None:
        return None
    return f"{value:.{digits}f}" + ("" if margin is None else f" ± {margin:.{digits}f}")


def _time(iso: str | None) -> str:
    return "at an unknown time" if iso is None else f"{iso[:10]} {iso[11:16]} UTC"
