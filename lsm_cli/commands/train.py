"""lsm train: a recipe on a store becomes a run."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lsm_cli import recipe as recipes
from lsm_cli.commands import evaluation
from lsm_cli.data.store import Store
from lsm_cli.engine.device import peak_memory
from lsm_cli.engine.evaluate import evaluate
from lsm_cli.engine.run import RunFolder, environment
from lsm_cli.engine.setup import Setup, parameters
from lsm_cli.engine.train import Trainer
from lsm_cli.errors import InputError
from lsm_cli.report.console import Console, count, size


def train(
    console: Console,
    recipe: str,
    data: Path,
    out: Path,
    overrides: list[str],
    resume: bool = False,
    seed: int | None = None,
) -> dict[str, Any]:
    """Train (or resume), test the best weights, write report and ledger line."""
    if seed is not None:
        overrides = [*overrides, f"train.seed={seed}"]
    options = recipes.load(recipe, overrides)
    store = Store.open(data)
    for split in ("train", "valid"):
        if not store.splits.get(split):
            raise InputError(
                f"{data}: no {split} samples; set [split] in the dataset description and rebuild the store"
            )
    setup = Setup.of(options, store)
    console.say(f"recipe     {options.name}: {options.description}")
    console.say(f"store      {data} ({store.name}): " + ", ".join(f"{n:,} {name}" for name, n in store.splits.items()))
    for line in setup.decisions():
        console.say(line)
    run = RunFolder.start(out, options, store, resume)
    try:
        total = store.splits["train"] * options.train.epochs
        with stoppable() as stop, console.progress("train", total, "samples") as bar:
            trainer = Trainer(setup, run, bar, stop)
            console.say(f"model      {count(parameters(trainer.model))} parameters; {trainer.total:,} steps")
            trainer.fit()
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
            "best_validation": None if trainer.at.best is None else abs(trainer.at.best),
        }
        run.write_json("result.json", result)
        evaluation.write_report(run, options, trainer.history, split, found["targets"], result)
        run.append_ledger(
            {
                "at": datetime.now(UTC).isoformat(timespec="seconds"),
                "run": str(run.path),
                "command": environment()["command"],
                "recipe": options.name,
                "store": str(data),
                "seed": options.train.seed,
                split: {target: evaluation.headline(entry) for target, entry in found["targets"].items()},
                **{key: result[key] for key in ("samples_per_second", "peak_memory_bytes", "parameters", "steps")},
            }
        )
    finally:
        run.close()
    evaluation.show_curve(console, options, trainer.history)
    evaluation.show(console, f"{options.name} on the {split} samples of {store.name}", found["targets"])
    console.text(
        f"{count(result['samples_per_second'])} training samples/s, "
        f"{count(result['scoring_samples_per_second'])} scored samples/s, "
        f"peak memory {size(result['peak_memory_bytes'])}; run in {out}, report in {out / 'report.html'}"
    )
    console.next(f"lsm eval {out} --shuffle-history")
    return result


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
