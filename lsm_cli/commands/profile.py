"""lsm profile: what a recipe costs on a store, where time and memory go, what the engine's techniques are worth."""

from __future__ import annotations

import gc
import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

from lsm_cli.commands import profile_report
from lsm_cli.data.aside import replacing
from lsm_cli.data.store import Store
from lsm_cli.engine.environment import environment
from lsm_cli.engine.profiling import memory, sweep
from lsm_cli.engine.profiling.ablation import TECHNIQUES, ablate
from lsm_cli.engine.profiling.capture import chrome_trace, memory_snapshot
from lsm_cli.engine.profiling.estimate import estimate
from lsm_cli.engine.profiling.measure import WARMUP, measure
from lsm_cli.engine.profiling.work import Phase, Work
from lsm_cli.engine.setup import Setup
from lsm_cli.errors import InputError
from lsm_cli.options import Recipe
from lsm_cli.report.console import Console

RESULT, REPORT, TRACE, SNAPSHOT = "profile.json", "report.html", "trace.json", "memory_snapshot.pickle"
Combination = tuple[dict[str, str], Recipe]


def profile(
    console: Console,
    recipe: str,
    data: Path,
    overrides: list[str],
    phase: str = "train",
    steps: int = 20,
    swept: Sequence[str] = (),
    ablation: bool = False,
    estimate_only: bool = False,
    out: Path | None = None,
    rounds: int = 7,
) -> dict[str, Any]:
    """Measure (or estimate) a recipe, or every combination of swept options; write report, JSON and traces to `out`."""
    if phase not in ("train", "infer"):
        raise InputError(f"--phase {phase}: choose train or infer")
    listed = [text for text in overrides if swept and sweep.is_axis(text)]  # `--sweep a=1,2 b=3,4`
    plain = [text for text in overrides if text not in listed]
    combinations = sweep.combinations(recipe, plain, sweep.axes([*swept, *listed]))
    store = Store.open(data)
    if out is not None:
        _check(out)
    console.say(f"recipe     {combinations[0][1].name}, phase {phase}")
    console.say(f"store      {data} ({store.name}): " + ", ".join(f"{n:,} {name}" for name, n in store.splits.items()))
    for line in Setup.of(combinations[0][1], store).decisions():
        console.say(line)
    if len(combinations) > 1:
        console.say(f"sweep      {len(combinations)} combinations; the decisions above are those of the first")
    kind = cast(Phase, phase)
    with replacing(out, "profile", lambda: _check(out)) if out else nullcontext() as folder:
        if estimate_only:
            result = _estimated(console, combinations, store, kind)
        else:
            result = _measured(console, combinations, store, kind, steps, ablation, rounds, folder)
        result = {"recipe": combinations[0][1].name, "store": str(data), "phase": phase, **result}
        result["environment"] = environment()
        if folder is not None:
            (folder / RESULT).write_text(json.dumps(result, indent=1) + "\n")
            if not estimate_only:
                (folder / REPORT).write_text(profile_report.page(result, combinations[0][1]))
    if estimate_only:
        profile_report.show_estimates(console, result.get("sweep", [result["estimate"]]), phase)
    else:
        profile_report.show(console, result)
    if out is not None:
        console.text(f"written to {out}: " + ", ".join(sorted(file.name for file in out.iterdir())))
    more = "" if estimate_only else " --ablate"
    if estimate_only or not ablation:
        console.next(" ".join(["lsm profile --recipe", recipe, "--data", str(data), "--phase", phase, *plain]) + more)
    return result


def _measured(
    console: Console,
    combinations: list[Combination],
    store: Store,
    phase: Phase,
    steps: int,
    ablation: bool,
    rounds: int,
    folder: Path | None,
) -> dict[str, Any]:
    result: dict[str, Any] = {}
    points = []
    total = len(combinations) * (steps + WARMUP) + (ablation and rounds * (len(TECHNIQUES) + 2))
    with console.progress("profile", total, "steps") as bar:
        for number, (options, recipe) in enumerate(combinations):
            setup = Setup.of(recipe, store)
            before = memory.baseline(setup.compute.device)
            work = Work(setup, phase)
            found = measure(work, steps, before, bar, roof=not number)
            points.append({"options": options, **found})
            if not number:
                result = {"device": setup.compute.describe(), **found}
                if folder is not None:
                    chrome_trace(work, folder / TRACE)
                    memory_snapshot(work, folder / SNAPSHOT)
                if ablation:
                    detail = ablate(work, 2, rounds, before, bar)
                    ratios = {name: entry["ratio"] for name, entry in detail["techniques"].items()}
                    result |= {"ablation": ratios, "ablation_detail": detail}
            del work, setup  # the tables of one combination go before the next one's come
            gc.collect()
    if len(combinations) > 1:
        result["sweep"] = [{**point, "memory": _without_timeline(point["memory"])} for point in points]
    return result


def _without_timeline(found: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in found.items() if name != "timeline"}


def _estimated(console: Console, combinations: list[Combination], store: Store, phase: Phase) -> dict[str, Any]:
    found = []
    with console.progress("estimate", len(combinations), "recipes") as bar:
        for options, recipe in combinations:
            found.append({"options": options, **estimate(Setup.of(recipe, store), phase)})
            bar.advance()
    return {"estimate": found[0]} | ({"sweep": found} if len(found) > 1 else {})


def _check(out: Path) -> None:
    """Raise InputError unless `out` is new, empty or an earlier profile."""
    if out.is_file() or (out.is_dir() and any(out.iterdir()) and not (out / RESULT).is_file()):
        raise InputError(f"{out}: holds something else than a profile; choose another --out")
