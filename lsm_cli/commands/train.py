"""lsm train: a recipe on a store becomes a run."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lsm_cli import recipe as recipes
from lsm_cli.commands import evaluation, pages
from lsm_cli.commands.runs import show_curve
from lsm_cli.data.store import Store
from lsm_cli.engine import tiers, tracking
from lsm_cli.engine.device import peak_memory
from lsm_cli.engine.environment import command, environment, now
from lsm_cli.engine.evaluate import check_metric, evaluate
from lsm_cli.engine.run import RunFolder
from lsm_cli.engine.setup import Setup, parameters
from lsm_cli.engine.trail import ENVIRONMENT, RECIPE, RESULT, Finished, code_name, is_run
from lsm_cli.engine.train import Trainer
from lsm_cli.errors import InputError
from lsm_cli.options import Recipe
from lsm_cli.report.console import Console, count, size


def train(
    console: Console,
    recipe: str | None,
    data: Path | None,
    out: Path,
    overrides: list[str],
    resume: bool = False,
    again: Path | None = None,
) -> dict[str, Any]:
    """Train (or resume), test the best weights, write report and ledger line; see `prepare` for what.

    Returns:
        what --json prints.
    """
    setup = prepare(console, recipe, data, overrides, again)
    done = train_one(console, setup, out, resume)
    show_curve(console, setup.recipe.train.metric, done.history)
    evaluation.show(console, f"{setup.recipe.name} on the {done.split} samples of {setup.store.name}", done.targets)
    for line in tiers.sentences(done.result.get("tiers", {})):
        console.text(line)
    console.text(
        f"{count(done.result['samples_per_second'])} training samples/s, "
        f"{count(done.result['scoring_samples_per_second'])} scored samples/s, "
        f"peak memory {size(done.result['peak_memory_bytes'])}; run in {out}, report in {out / 'report.html'}"
    )
    console.next(f"lsm eval {out}{' --shuffle-history' if setup.reads_history else ''}")
    return done.result


def prepare(
    console: Console, recipe: str | None, data: Path | None, overrides: list[str], again: Path | None = None
) -> Setup:
    """Decide what is trained, and on what, and say so.

    Args:
        recipe: shipped name or file; None = that of the run `again`.
        data: the store; None = that of the run `again`, which must not have changed.
        again: folder of a run to be repeated.

    Raises:
        InputError: none of these, both, or one that cannot be trained.
    """
    if (recipe is None) == (again is None):
        raise InputError("give exactly one of --recipe NAME|FILE and --from RUN")
    if again is not None:
        options, store = _again(console, again, data, overrides)
    elif data is None:
        raise InputError("--data is missing: name the store to train on; `lsm build-sequences` makes one")
    else:
        options, store = recipes.load(str(recipe), overrides), Store.open(data)
    for split in ("train", "valid"):
        if not store.splits.get(split):
            raise InputError(
                f"{store.path}: no {split} samples; set [split] in the dataset description and rebuild the store"
            )
    if options.search.source:  # a run must be repeatable from elsewhere
        source = str(Path(options.search.source).resolve())
        options = options.model_copy(update={"search": options.search.model_copy(update={"source": source})})
    tracking.check(options.train)
    setup = Setup.of(options, store)
    check_metric(setup)
    console.say(f"recipe     {options.name}: {options.description}")
    splits = ", ".join(f"{n:,} {name}" for name, n in store.splits.items())
    console.say(f"store      {store.path} ({store.name}): {splits}")
    for line in setup.decisions():
        console.say(line)
    return setup


def train_one(console: Console, setup: Setup, out: Path, resume: bool) -> Finished:
    """Train one model to the end, from wherever its run stands, test it, and write all there is to say about it."""
    options, store = setup.recipe, setup.store
    run, trainer, result = RunFolder.start(out, options, store, resume), None, None
    try:
        total = store.splits["train"] * options.train.epochs
        with stoppable() as stop, console.progress("train", total, "samples") as bar:
            trainer = Trainer(setup, run, bar, stop)
            trainer.prepare()
            console.say(f"model      {count(parameters(trainer.model))} parameters; {trainer.total:,} steps")
            trainer.fit()
        learned = tiers.record(trainer.model, learns=True)
        split = "test" if store.splits.get("test") else "valid"
        model = trainer.best()
        with console.progress(f"score {split}", store.splits[split], "samples") as bar:
            found = evaluate(setup, model, split, progress=bar)
        result = {
            "run": str(out),
            split: found["targets"],
            "samples_per_second": trainer.at.samples / max(trainer.at.seconds, 1e-9),
            "scoring_samples_per_second": found["samples_per_second"],
            "peak_memory_bytes": peak_memory(setup.compute.device),
            "parameters": parameters(trainer.model),
            "steps": trainer.at.step,
            "pieces": trainer.at.pieces,
            "training_seconds": round(trainer.at.seconds, 3),
            "best_validation": None if trainer.at.best is None else abs(trainer.at.best),
        } | ({"tiers": learned} if learned else {})
        machine = run.read_json(ENVIRONMENT)
        done = Finished(out, split, result, trainer.history)
        run.write_text("report.html", pages.run_page(setup, done, machine).render())
        run.append_ledger(
            {
                "at": now(),
                "started": machine.get("started"),
                "run": str(run.path),
                "command": command(),
                "recipe": options.name,
                "store": str(store.path),
                "store_name": store.name,
                "seed": options.train.seed,
                split: {target: evaluation.headline(entry) for target, entry in found["targets"].items()},
                **{key: result[key] for key in ("samples_per_second", "peak_memory_bytes", "parameters", "steps")},
                "training_seconds": result["training_seconds"],
                "lsm": machine.get("lsm"),
                "code": machine.get("code"),
            }
        )
        run.write_json(RESULT, result)  # last: a run with a result is finished
    finally:
        if trainer is not None:
            trainer.tracking.finish(result)
        run.close()
    for name, reason in trainer.tracking.lost:
        console.warn(f"train.track: {name} failed on the way and misses what came after ({reason})")
    return done


def _again(console: Console, path: Path, data: Path | None, overrides: list[str]) -> tuple[Recipe, Store]:
    """Recipe and store of an earlier run."""
    if not is_run(path):
        raise InputError(f"--from {path}: not a run; `lsm runs` lists those there are")
    run = RunFolder(path)
    options = recipes.load(str(path / RECIPE), overrides)
    recorded = Path(run.data()["path"])
    if data is None and not (recorded / "manifest.json").is_file():
        raise InputError(f"--from {path}: its store {recorded} is gone; give --data STORE to train on another one")
    store = Store.open(recorded if data is None else data)
    console.say(f"from       {path}" + (f", with {' '.join(overrides)}" if overrides else ""))
    changed = run.differs_from(store)
    if changed and data is None:
        raise InputError(
            f"--from {path}: {store.path} is not as it was when that run was trained ({changed} differ); add "
            f"--data {store.path} to train on it all the same"
        )
    if changed:
        console.say(f"note       other data than that run's: {changed} differ")
    then, today = run.read_json(ENVIRONMENT), environment()
    here = {"code": code_name(today), **{key: today[key] for key in ("torch", "threads", "gpu")}}
    there = {"code": code_name(then), **{key: then.get(key) for key in ("torch", "threads", "gpu")}}
    if options.train.threads:  # set by the recipe, in both
        here["threads"] = there["threads"]
    for key in here:
        if here[key] != there[key]:
            console.say(f"note       {key} was {there[key]}, is {here[key]}: the result may differ")
    return options, store


@contextmanager
def stoppable() -> Iterator[Any]:
    """The first Ctrl-C (or SIGTERM) asks for a clean stop, the second one ends at once."""
    asked: list[int] = []

    def ask(number: int, frame: Any) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    try:
        before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread: nobody can press keys there
        before = {}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
