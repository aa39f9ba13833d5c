"""lsm simulate: two policies serve a synthetic world; who earns more, and whether the log foretold it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lsm_cli.data.store import Store
from lsm_cli.data.synth.again import redraw
from lsm_cli.engine.run import RunFolder
from lsm_cli.errors import InputError
from lsm_cli.judging.compare import LEVEL, Difference
from lsm_cli.judging.contenders import Contender
from lsm_cli.judging.gmv import sentences, worth
from lsm_cli.judging.simulate import SPLIT, Outcome, Policy, Simulation
from lsm_cli.report.console import Console

KNOWN = ("random", "popularity", "truth")


@dataclass(frozen=True)
class _Side:
    """One of the two: how it ranks in the world, and its scores of the log's test samples."""

    name: str
    policy: Policy
    logged: np.ndarray


def simulate(
    console: Console,
    run: str,
    baseline: str,
    world_dir: Path,
    data: Path | None,
    replicates: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Closed-loop A/B test of two runs, or of a run and random, popularity or truth."""
    runs = [Path(name) for name in (run, baseline) if name not in KNOWN]
    if data is None and not runs:
        raise InputError("--data is missing: name the store that was built from the world")
    drawn = redraw(world_dir)
    store = Store.open(data or Path(RunFolder.open(runs[0]).data()["path"]))
    simulation = Simulation(drawn, store, seed)
    paid, requests = drawn.world.paid, simulation.size
    console.say(f"world      {world_dir}: {drawn.world.name}, {requests:,} requests of {simulation.width} candidates")
    console.say(f"store      {store.path}")
    console.say(f"policies   {run} and {baseline}, ranking by the probability of {paid}")
    console.say("luck       the same for both; what users do enters the history that both world and model see next")
    sides = [_side(console, simulation, name, store, seed) for name in (run, baseline)]
    outcomes: list[Outcome] = []
    for side in sides:
        with console.progress(f"serve {side.name}", requests, "requests") as bar:
            outcomes.append(simulation.live(side.policy, bar))
    real = simulation.lifts(outcomes[0], outcomes[1], replicates, seed)
    logged = (sides[0].logged, sides[1].logged)
    offline = worth(store, SPLIT, paid, logged, replicates=replicates, seed=seed)
    foretold: Difference = offline["lift"]
    truth = real["expected"]
    result: dict[str, Any] = {
        "run": run,
        "baseline": baseline,
        "world": str(world_dir),
        "requests": requests,
        "candidates": simulation.width,
        "alike": float(np.mean(outcomes[0].shown == outcomes[1].shown)),
        "real": {name: one.entry() for name, one in real.items()},
        "offline": {name: one.entry() if isinstance(one, Difference) else one for name, one in offline.items()},
        "sign_agrees": _sign(foretold, truth),
        "within": _within(foretold, truth),
    }
    rows = [
        ["earned, as drawn", *_cells(real["earned"])],
        ["earned, expected", *_cells(truth)],
        ["foretold by the log", *_cells(foretold)],
    ]
    console.table(
        f"GMV of {sides[0].name} against {sides[1].name}, {requests:,} requests",
        ["", "run", "other", "lift", f"{LEVEL:.0%} interval", ""],
        rows,
        note=f"Both showed the same candidate in {result['alike']:.0%} of the requests; money in all, or a request "
        "from the log.",
    )
    for line in sentences(result["offline"]):
        console.text(line)
    console.text(_judgement(result))
    return result


def _side(console: Console, simulation: Simulation, name: str, store: Store, seed: int) -> _Side:
    if name in KNOWN:
        policy, logged = simulation.known(name, seed)
        return _Side(name, policy, logged)
    contender, paid = Contender.of(Path(name), store), simulation.drawn.world.paid
    if paid not in contender.targets:
        raise InputError(f"{name}: does not predict {paid}, which is what this world pays for")
    with console.progress(f"score {contender.name}", len(store.samples(SPLIT)), "samples") as bar:
        logged = contender.scores(SPLIT, progress=bar).by_target[paid]
    return _Side(contender.name, simulation.ranked_by(contender, paid), logged)


def _sign(foretold: Difference, truth: Difference) -> bool | None:
    if foretold.value is None or truth.value is None:
        return None
    return bool(np.sign(foretold.value) == np.sign(truth.value))


def _within(foretold: Difference, truth: Difference) -> bool | None:
    if foretold.low is None or foretold.high is None or truth.value is None:
        return None
    return foretold.low <= truth.value <= foretold.high


def _judgement(result: dict[str, Any]) -> str:
    if result["within"] is None:
        return "The log cannot foretell this lift: too few requests speak for one of the policies."
    sign = "agrees in sign with" if result["sign_agrees"] else "has not the sign of"
    inside = "holds it" if result["within"] else "does not hold it"
    return f"The estimate from the log {sign} the lift in the world, and its interval {inside}."


def _cells(one: Difference) -> list[str | None]:
    span = None if one.low is None or one.high is None else f"{one.low:+.1%}…{one.high:+.1%}"
    money = [None if number is None else f"{number:,.4g}" for number in (one.ours, one.theirs)]
    return [*money, None if one.value is None else f"{one.value:+.1%}", span, one.word]
