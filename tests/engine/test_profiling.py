"""Profiling measures the very steps of training and scoring, and its parts add up."""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

from lsm_cli import recipe as recipes
from lsm_cli.data.building.orders import add_orders
from lsm_cli.data.store import Store
from lsm_cli.engine import trace
from lsm_cli.engine.profiling import memory, roofline, sweep
from lsm_cli.engine.profiling.ablation import TECHNIQUES, ablate
from lsm_cli.engine.profiling.capture import memory_snapshot
from lsm_cli.engine.profiling.estimate import estimate
from lsm_cli.engine.profiling.measure import measure
from lsm_cli.engine.profiling.timing import time_steps
from lsm_cli.engine.profiling.work import Work
from lsm_cli.engine.setup import Setup
from lsm_cli.errors import InputError
from tests.small import write_store

SMALL = ["train.batch_size=64", "train.threads=1", "train.device=cpu", "model.max_len=20", "model.hidden=[16]"]


def _work(store: Path, *overrides: str, recipe: str = "stacked_tin", phase: str = "train") -> Work:
    return Work(Setup.of(recipes.load(recipe, [*SMALL, *overrides]), Store.open(store)), phase)  # type: ignore[arg-type]


def _losses(work: Work, steps: int = 5) -> np.ndarray:
    torch.manual_seed(7)  # which ids are shown as unknown
    return np.array([float(loss.mean()) for loss in work.steps(work.some(steps))])


@pytest.mark.parametrize("phase", ["train", "infer"])
def test_parts_add_up_to_the_step(small_store: Path, phase: str) -> None:
    def measured() -> tuple[float, dict[str, float]]:
        work = _work(small_store, phase=phase)
        clock, bounds = trace.Clock(torch.device("cpu")), [0]
        with trace.following(clock, work.model), closing(work.steps(work.some(12))) as running:
            next(running)
            clock.marks.clear()
            started = time.perf_counter()
            for _ in range(11):
                next(running)
            spent = time.perf_counter() - started
            bounds.append(len(clock.marks))
            (parts,) = clock.spent(bounds)
        assert abs(sum(parts.values()) - spent) < 0.05 * spent
        return parts[trace.OTHER] / spent, parts

    other, parts = min(
        (measured() for _ in range(5)), key=lambda pair: pair[0]
    )  # the least disturbed, on a busy machine
    assert other < 0.1
    wanted = {trace.DATA, trace.FETCH, trace.NUMBERS, trace.ATTENTION, trace.TOWER}
    wanted |= {trace.BACKWARD, trace.OPTIMISER, trace.ROWS} if phase == "train" else set()
    assert wanted <= parts.keys() <= trace.MEANING.keys()


def test_summary_adds_up_and_counts_what_the_steps_read(small_store: Path) -> None:
    work = _work(small_store)
    timing = time_steps(work, 8, 2)
    found = timing.summary()
    parts = dict(found["step_ms"])  # type: ignore[call-overload]
    assert sum(parts.values()) - parts["total"] == pytest.approx(parts["total"], rel=1e-6)
    assert timing.samples.tolist() == [len(group) for group in work.some(10)[2:]]
    assert timing.behaviours.sum() == sum(int(work.feed.batch(g, work.model).behaviours) for g in work.some(10)[2:])


def test_nothing_is_measured_unless_asked(small_store: Path) -> None:
    assert trace.part(trace.DATA) is trace.part(trace.ROWS)
    plain, followed = _work(small_store), _work(small_store)
    expected = _losses(plain)
    with trace.following(trace.Clock(torch.device("cpu")), followed.model):
        assert (_losses(followed) == expected).all()
    hooks = [module for module in followed.model.modules() if module._forward_hooks or module._forward_pre_hooks]
    assert not hooks and trace.part(trace.DATA) is trace.part(trace.ROWS)


@pytest.mark.parametrize("technique", TECHNIQUES, ids=lambda technique: technique.name)
def test_a_technique_changes_the_path_and_not_the_result(small_store: Path, technique) -> None:  # type: ignore[no-untyped-def]
    if technique.name in ("token_budget", "one_pass", "pinned", "cuda_graphs", "size_classes"):
        return  # other steps: see test_batching; a GPU's alone: see test_fused, test_ring, test_replay, test_pools
    recipe = {"share_histories": "dare", "search_index": "hier_hard"}.get(technique.name, "stacked_tin")
    tolerance = 0.05 if technique.name == "precision" else 2e-4
    with_it = _work(
        small_store, f"{technique.key}={_toml(technique.on(_work(small_store).setup, 10.0))}", recipe=recipe
    )
    assert technique.where(with_it.setup, "train")
    expected = _losses(with_it)
    without = _work(small_store, f"{technique.key}={_toml(technique.off)}", recipe=recipe)
    np.testing.assert_allclose(_losses(without), expected, rtol=tolerance)
    for (name, one), (_, other) in zip(with_it.model.named_buffers(), without.model.named_buffers(), strict=True):
        if ".tables." in name and technique.name != "precision":
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3, msg=name)
    Setup.of(recipes.load("dnn", SMALL), Store.open(small_store))  # leaves the process as it was


def _toml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def test_options_of_the_engine_reach_what_they_switch(small_store: Path) -> None:
    from lsm_cli.kernels.ragged import Occurrences, Segments

    segments = Segments(torch.tensor([0, 2, 4]))
    ids = torch.tensor([0, 1, 1, 0])
    methods = {}
    for kernels in ("eager", "compiled", "auto"):
        _work(small_store, f"engine.kernels={kernels}")
        methods[kernels] = Occurrences(ids, 2, segments).method
    assert methods == {"eager": "reference", "compiled": "compiled", "auto": "small"}
    dense = _work(small_store, "engine.sparse_rows=false")
    batch = dense.feed.batch(dense.groups[0], dense.model)
    dense.model.train()
    assert [len(leaf) for leaf in dense.model.leaves(dense.model.fetch(batch))] == [
        table.rows for table in dense.model.space.bank.tables
    ]
    assert not _work(small_store, "engine.search_index=false", recipe="hier_hard").feed.hard.indexed
    assert _work(small_store, recipe="hier_hard").feed.hard.indexed
    assert not _work(small_store, "engine.share_histories=false", recipe="dare").feed.shares
    assert _work(small_store, "engine.prefetch=3").feed.depth == 3
    assert _work(small_store, "engine.prefetch=3", recipe="dare").feed.depth == 0  # its search follows the model


def test_memory_of_a_step_is_accounted_for(small_store: Path) -> None:
    device = torch.device("cpu")
    before = memory.baseline(device)
    work = _work(small_store)
    found = memory.watch_step(work, before)
    assert sum(found["categories"].values()) == found["peak_allocated"]
    assert found["peak_allocated"] == max(found["parts"].values()) == max(value for _, value, _ in found["timeline"])
    assert found["behaviours"] == max(work.behaviours(group) for group in work.groups)
    tables = sum(table.weight.nbytes for table in work.model.space.bank.tables)
    assert found["categories"]["tables"] == tables
    assert 0 <= found["fragmentation"] < 1
    assert not memory_snapshot(work, Path("none"))


def test_bytes_and_flops_are_counted(small_store: Path) -> None:
    table, ids = torch.randn(1000, 8), torch.randint(1000, (50,))
    with roofline.Traffic() as traffic:
        table.index_select(0, ids)
    assert traffic.bytes == 2 * 50 * 8 * 4 + 50 * 8  # the rows, not the table
    work = _work(small_store)
    moved, flops = roofline.tally(work, work.groups[0])
    dense = sum(p.numel() for p in work.model.tower.parameters() if p.ndim == 2)
    assert flops > 4 * dense * len(work.groups[0])  # forward and backward of the tower at the very least
    assert moved > roofline.needed_bytes(work, work.groups[0]) > 0


@pytest.fixture(scope="module")
def wide_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = write_store(tmp_path_factory.mktemp("stores") / "wide", 300, 400, 3000, 20_000, seed=3)
    add_orders(path)
    return path


@pytest.mark.parametrize(
    ("recipe", "phase", "overrides"),
    [
        ("stacked_tin", "train", ["train.table_optimizer=adam"]),
        ("hier_hard", "train", ["train.batch_size=1024"]),
        ("tin", "infer", []),
    ],
)
def test_estimate_is_close_to_what_is_measured(wide_store: Path, recipe: str, phase: str, overrides: list[str]) -> None:
    options = ["train.batch_size=512", "train.threads=1", "train.device=cpu", *overrides]
    setup = Setup.of(recipes.load(recipe, options), Store.open(wide_store))
    expected = estimate(setup, phase)  # type: ignore[arg-type]
    before = memory.baseline(setup.compute.device)
    work = Work(setup, phase)  # type: ignore[arg-type]
    found = memory.watch_step(work, before)
    assert expected["behaviours"] == found["behaviours"]
    assert expected["peak_allocated"] == pytest.approx(found["peak_allocated"], rel=0.15)
    moved, _ = roofline.tally(work, work.heaviest())
    assert expected["moved_bytes"] == pytest.approx(moved, rel=0.3)


def test_ablation_measures_both_sides(small_store: Path) -> None:
    before = memory.baseline(torch.device("cpu"))
    work = _work(small_store)
    found = ablate(work, 1, 2, before)
    names = set(found["techniques"])
    assert {"kernels", "sparse_rows", "memory_pool", "prefetch", "token_budget", "precision"} <= names
    assert not {"share_histories", "search_index"} & names  # this recipe searches nothing
    for name, entry in found["techniques"].items():
        assert entry["ratio"] > 0 and entry["low"] <= entry["ratio"] <= entry["high"]
        assert entry["difference"] < (0.5 if name == "precision" else 1e-3), name
    assert not found["techniques"]["prefetch"]["in_recipe"] and found["techniques"]["kernels"]["in_recipe"]
    assert found["together"] > 0 and set(found["memory_utilisation"]) == {"with", "without"}


def test_measure_covers_a_soft_search(small_store: Path) -> None:
    work = _work(small_store, recipe="dare")
    found = measure(work, 4, memory.baseline(torch.device("cpu")))
    assert found["step_ms"]["search"] > 0
    assert found["roofline"]["bandwidth_share"] > 0 and found["roofline"]["flops"] > 0


def test_axes_and_combinations() -> None:
    axes = sweep.axes(["model.max_len=5,10", "model.hidden=[8],[8,4]"])
    assert axes == {"model.max_len": ["5", "10"], "model.hidden": ["[8]", "[8,4]"]}
    made = sweep.combinations("tin", ["train.lr=0.01"], axes)
    assert [(o["model.max_len"], recipe.model.max_len, recipe.model.hidden) for o, recipe in made] == [
        ("5", 5, [8]), ("5", 5, [8, 4]), ("10", 10, [8]), ("10", 10, [8, 4]),
    ]  # fmt: skip
    assert all(recipe.train.lr == 0.01 for _, recipe in made)


@pytest.mark.parametrize(
    ("texts", "named"),
    [
        (["model.max_lem=5,10"], "model.max_len"),
        (["model.max_len=5,-1"], "model.max_len"),
        (["model.max_len"], "--sweep"),
        (["model.max_len=5,"], "--sweep"),
        (["model.max_len=5", "model.max_len=6"], "twice"),
    ],
)
def test_a_wrong_sweep_is_named(texts: list[str], named: str) -> None:
    with pytest.raises(InputError, match=named):
        sweep.combinations("tin", [], sweep.axes(texts))
