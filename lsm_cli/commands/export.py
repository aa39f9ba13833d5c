"""lsm export and lsm score: a run as a folder that scores requests without lsm, and the test of such a folder."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from lsm_cli.commands import evaluation
from lsm_cli.data.store import Store
from lsm_cli.engine.evaluate import evaluate
from lsm_cli.engine.run import RunFolder
from lsm_cli.engine.setup import Setup
from lsm_cli.errors import InputError
from lsm_cli.report.console import Console, count, size
from lsm_cli.serving import folder, program


def export(
    console: Console, run_path: Path, out: Path, data: Path | None, tables: str, compiled: bool | None, overwrite: bool
) -> dict[str, Any]:
    """Write the exported model of a run and check it against the run.

    Args:
        data: the store; None = the run's own.
        compiled: also by AOTInductor; None = where there is a C++ compiler.
    """
    if tables not in program.DTYPES:
        raise InputError(f"--tables {tables}: choose {', '.join(program.DTYPES)}")
    run = RunFolder.open(run_path)
    recipe = folder.on_cpu(run.recipe())
    program.check(recipe)
    store = Store.open(data or Path(run.data()["path"]))
    run.check_store(store)
    there = folder.has_compiler()
    if compiled and not there:
        raise InputError("--compile needs a C++ compiler (g++ or clang++): install one, or leave it out")
    compiles = there if compiled is None else compiled
    console.say(f"run        {run_path}: {recipe.name}")
    console.say(f"store      {store.path} ({store.name})")
    console.say(f"tables     {tables}")
    how = (
        "and compiled for this processor" if compiles else "not compiled" + ("" if there else ": no C++ compiler here")
    )
    console.say(f"program    torch.export, {how}")
    started = time.perf_counter()
    found = folder.write(run, Setup.of(recipe, store), out, tables, compiles, overwrite, console.say)
    result = {"out": str(out), "run": str(run_path), "tables": tables, "compiled": compiles, **found}
    result["seconds"] = round(time.perf_counter() - started, 1)
    console.table(f"{out}", ["file", "size"], [[name, size(taken)] for name, taken in found["bytes"].items()])
    console.text(
        f"largest difference from the run, of {found['checked']:,} samples: {found['difference']:.2g} in the log-odds"
    )
    console.next(f"lsm score {out}")
    return result


def score(console: Console, path: Path, data: Path | None, split: str, compiled: bool | None) -> dict[str, Any]:
    """Test an exported model on one split of a store, as `lsm eval` tests a run.

    Args:
        data: the store; None = that of the run.
        compiled: run the compiled program; None = where there is one.
    """
    about = folder.opened(path)
    store = Store.open(data or Path(about["data"]["path"]))
    setup = folder.setup_of(about, path, store)
    if compiled and not (path / "compiled.pt2").is_file():
        raise InputError(f"{path}: has no compiled program; export with --compile, or leave out --compiled")
    model = folder.Exported(path, compiled)
    console.say(f"model      {path}: {setup.recipe.name}, tables in {about['tables']}, from {about['run']}")
    console.say(f"program    {'compiled' if model.scorer.compiled else 'torch.export'}")
    console.say(f"store      {store.path} ({store.name}), split {split}: {len(store.samples(split)):,} samples")
    console.say(f"device     {setup.compute.describe()}")
    with console.progress(f"score {split}", len(store.samples(split)), "samples") as bar:
        found = evaluate(setup, model, split, progress=bar)
    result = {"model": str(path), split: found["targets"], "samples_per_second": found["samples_per_second"]}
    evaluation.show(console, f"{setup.recipe.name} on the {split} samples of {store.name}", found["targets"])
    console.text(f"{count(found['samples_per_second'])} scored samples/s")
    console.next(f"python {path / 'scorer.py'} < requests.jsonl")
    return result
