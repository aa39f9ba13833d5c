"""The worlds with a planted cause: reproducible, true to their specification, and the cause is really there."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from lsm_cli.commands.synth import synth
from lsm_cli.data.building.pipeline import build_store
from lsm_cli.data.description import load_description
from lsm_cli.data.store import Store
from lsm_cli.data.synth.reasons import history_logit, history_sums, kernel_values, matches
from lsm_cli.data.synth.rows import ACTIONS, DOMAINS, NONE, Events, Requests, ancestor
from lsm_cli.data.synth.world import Drawn, draw_world, sigmoid
from lsm_cli.data.synth.worlds import DAY, WORLDS, Kernel, Target, World
from lsm_cli.engine.metrics import auc
from lsm_cli.main import app
from lsm_cli.report.console import Console

PLANTED = [name for name in WORLDS if name != "base"]


@pytest.fixture(scope="module")
def drawn() -> dict[str, Drawn]:
    return {name: draw_world(WORLDS[name], 400, 2) for name in PLANTED}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


@pytest.mark.parametrize("name", PLANTED)
def test_same_seed_same_bytes(name: str, tmp_path: Path) -> None:
    made = []
    for number, seed in enumerate((3, 3, 4)):
        synth(Console(quiet=True, json=True), tmp_path / str(number), name, users=30, seed=seed)
        made.append(contents(tmp_path / str(number)))
    assert made[0] == made[1]
    assert made[0]["impressions.parquet"] != made[2]["impressions.parquet"]
    truth = json.loads(made[0]["truth.json"])
    assert truth["world"] == name and set(truth["scores"]) == {target.name for target in WORLDS[name].targets}


@pytest.mark.parametrize("name", PLANTED)
def test_labels_are_drawn_from_the_truth(name: str, drawn: dict[str, Drawn]) -> None:
    world = drawn[name]
    for target, p in world.p.items():
        label = world.label[target]
        group = np.argsort(np.argsort(p)) * 10 // len(p)
        sd = np.sqrt(np.bincount(group, p * (1 - p)))
        assert np.abs((np.bincount(group, label) - np.bincount(group, p)) / sd).max() < 4
        assert abs(label.sum() - p.sum()) < 4 * math.sqrt((p * (1 - p)).sum())


def visible_field(name: str, rows: Events | Requests, place: int, domain: int, world: World) -> int | None:
    """What the logs say of one row: articles have two category levels, content no ad's identity."""
    if name == "any":
        return 0
    if name == "brand":
        return None if rows.brand[place] == NONE else int(rows.brand[place])
    level = int(name.removeprefix("category"))
    if domain == DOMAINS.index("article") and level == 3:
        return None
    return int(ancestor(rows.leaf[place], level, world.branching))


def slow_sum(kernel: Kernel, target: Target, world: Drawn, row: int) -> float:
    """S of one kernel for one request, event by event, from those strictly before it."""
    events, requests, spec = world.events, world.requests, world.world
    now = requests.time[row]
    past = [int(i) for i in np.flatnonzero((events.user == requests.user[row]) & (events.time < now))]
    wanted = visible_field(kernel.match, requests, row, 0, spec)
    total, weights, counted = 0.0, 0.0, 0.0

    def counts(i: int) -> bool:
        domain = int(events.domain[i])
        return visible_field(kernel.match, events, i, domain, spec) == wanted and DOMAINS[domain] in kernel.domains

    for i in past:
        domain = int(events.domain[i])
        if not counts(i):
            continue
        age = (now - events.time[i]) / DAY
        weight = 2 ** (-age / kernel.half_life)
        if kernel.rhythm:
            weight *= ((1 + math.cos(2 * math.pi * age / kernel.rhythm)) / 2) ** 2
        if kernel.near:
            ours, wants = (
                visible_field(kernel.near, *place, spec) for place in ((events, i, domain), (requests, row, 0))
            )
            weight *= kernel.times if ours == wants else 1.0
        said = target.strength[ACTIONS[events.action[i]]]
        counted += weight
        if kernel.meaning:
            ours = visible_field(kernel.meaning, events, i, domain, spec)
            about = visible_field(kernel.meaning, requests, row, 0, spec)
            said *= 0.0 if ours is None else float(world.meanings[kernel.meaning][ours, about])
        if not kernel.through:
            total += weight * said
        elif events.channel[i] != NONE:
            there = [k for k in past if events.channel[k] == events.channel[i] and not counts(k)]
            total += weight * sum(target.strength[ACTIONS[events.action[k]]] for k in there)
            weights += weight
    if kernel.share:
        return total / counted if counted else 0.0
    return total / weights if weights else total


@pytest.mark.parametrize("name", PLANTED)
def test_truth_is_a_function_of_the_visible_history(name: str, drawn: dict[str, Drawn]) -> None:
    """Kernel by kernel, summed slowly from what the logs show before a request; only the tables are hidden."""
    world = drawn[name]
    moved = 0
    for row in np.random.default_rng(0).choice(len(world.requests.user), 60, replace=False):
        for target in world.world.targets:
            logit = world.visible[target.name][row]
            for kernel in target.kernels:
                total = slow_sum(kernel, target, world, int(row))
                logit += kernel.weight * math.copysign(math.log1p(abs(total)), total)
                moved += total != 0
            assert sigmoid(logit) == pytest.approx(world.p[target.name][row], rel=1e-9)
    assert moved > 30


def test_the_future_changes_nothing(drawn: dict[str, Drawn]) -> None:
    """Sums of requests in the first half stay when every later behaviour is taken away."""
    for world in drawn.values():
        middle = (world.world.first_request + world.world.days) * DAY // 2
        early = world.requests.take(world.requests.time <= middle)
        before = world.events.take(world.events.time < middle)
        whole = history_sums(world.world, world.events, early, world.meanings)
        cut = history_sums(world.world, before, early, world.meanings)
        for name in whole:
            assert np.allclose(whole[name], cut[name], rtol=1e-12, atol=1e-9)


def ranked(world: Drawn, target: Target, kernels: tuple[Kernel, ...]) -> float:
    """AUC of a target's labels by the true logit with other kernels in place of its own."""
    other = replace(target, kernels=kernels)
    spec = replace(world.world, targets=(other,))
    sums = history_sums(spec, world.events, world.requests, world.meanings)[target.name]
    return auc(world.label[target.name], world.visible[target.name] + history_logit(other, sums))


def truth(world: Drawn, target: Target) -> float:
    return auc(world.label[target.name], world.p[target.name])


def test_tempos_need_a_kernel_per_target(drawn: dict[str, Drawn]) -> None:
    """One temporal kernel for both targets, whichever of the two, loses much on the other."""
    world = drawn["tempos"]
    install, order = world.world.targets
    for target, others in ((install, order), (order, install)):
        assert truth(world, target) - ranked(world, target, others.kernels) > 0.02


def test_noise_needs_two_comparisons(drawn: dict[str, Drawn]) -> None:
    """Behaviours of the segment and of the brand speak in opposite senses: no one positive weighting of both tells."""
    world = drawn["noise"]
    (target,) = world.world.targets
    category, brand = target.kernels
    assert category.weight > 0 > brand.weight
    mixtures = [ranked(world, target, (category,)), ranked(world, target, (brand,))]
    mixtures.append(ranked(world, target, (category, replace(brand, weight=-brand.weight))))
    assert truth(world, target) - max(mixtures) > 0.03


def test_third_order_is_in_no_single_behaviour(drawn: dict[str, Drawn]) -> None:
    """Most of the truth is in the two steps; neither the behaviours that point nor all of the channels tell it."""
    world = drawn["third_order"]
    (target,) = world.world.targets
    *plain, steps = target.kernels
    assert steps.through and truth(world, target) - ranked(world, target, tuple(plain)) > 0.08
    sums = history_sums(world.world, world.events, world.requests, world.meanings)[target.name]
    pointing, two = kernel_values(target, sums)[-2:]
    assert abs(np.corrcoef(np.sign(two), np.sign(pointing))[0, 1]) < 0.35


def test_disagree_punishes_attending_to_the_likest(drawn: dict[str, Drawn]) -> None:
    """The ad's own segment is what behaviours of its industry are most often about, and says nothing."""
    world = drawn["disagree"]
    (click,) = world.world.targets
    (kernel,) = click.kernels
    assert (kernel.near, kernel.meaning) == ("category1", "category2")
    assert not np.diag(world.meanings["category2"]).any()
    nearest = replace(kernel, near="category2")
    everything = replace(kernel, near="", times=0.0)
    for other in (nearest, everything):
        assert truth(world, click) - ranked(world, click, (other,)) > 0.05
    shape = world.world.branching
    row, event = matches("category1", world.world, world.events, world.requests)
    same = ancestor(world.events.leaf[event], 2, shape) == ancestor(world.requests.leaf[row], 2, shape)
    assert same.mean() > 1.5 / shape[1]


@pytest.mark.parametrize("name", ["tempos", "noise", "disagree"])
def test_sums_of_two_sets_of_events_add_up(name: str, drawn: dict[str, Drawn]) -> None:
    """So labels can leave behaviours behind that later requests see."""
    world = drawn[name]
    spec, events, requests = world.world, world.events, world.requests
    some = np.random.default_rng(1).random(len(events.user)) < 0.3
    parts = [history_sums(spec, events.take(part), requests, world.meanings) for part in (some, ~some)]
    for target, whole in history_sums(spec, events, requests, world.meanings).items():
        assert np.allclose(whole, parts[0][target] + parts[1][target])


def test_domains_tell_nothing_in_the_ads_log(drawn: dict[str, Drawn], tmp_path: Path) -> None:
    world = drawn["domains"]
    (target,) = world.world.targets
    in_ads = tuple(replace(kernel, domains=("ad",)) for kernel in target.kernels)
    assert truth(world, target) - ranked(world, target, in_ads) > 0.05
    synth(Console(quiet=True, json=True), tmp_path / "w", "domains", users=40)
    stores = {}
    for name in ("dataset", "ads_only"):
        build_store(load_description(tmp_path / "w" / f"{name}.toml"), tmp_path / name)
        stores[name] = Store.open(tmp_path / name)
    assert stores["ads_only"].splits == stores["dataset"].splits
    assert 0 < stores["ads_only"].events < stores["dataset"].events / 2


def test_the_command_line_lists_the_worlds(tmp_path: Path) -> None:
    runner = CliRunner()
    wrong = runner.invoke(app, ["synth", "--out", str(tmp_path / "w"), "--world", "tempo"])
    assert wrong.exit_code == 2 and all(name in wrong.output for name in WORLDS)
    made = runner.invoke(app, ["synth", "--out", str(tmp_path / "w"), "--world", "tempos", "--users", "30", "--json"])
    scores = json.loads(made.stdout)["scores"]["install"]["train"]
    assert scores["true"]["auc"] > scores["without_history"]["auc"] > 0.5


def test_control_has_no_cause(drawn: dict[str, Drawn]) -> None:
    """Both targets have one and the same plain kernel on what the ads' own log shows."""
    world = drawn["control"]
    click, order = world.world.targets
    assert click.kernels == order.kernels and len(click.kernels) == 1
    (kernel,) = click.kernels
    assert kernel.domains == ("ad",) and not (kernel.rhythm or kernel.meaning or kernel.through)
    assert truth(world, click) - auc(world.label["click"], world.visible["click"]) > 0.1
