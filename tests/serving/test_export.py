"""Exported models score as the runs that they come from, without lsm."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from typer.testing import CliRunner

from lsm_cli import recipe as recipes
from lsm_cli.data.store import Store
from lsm_cli.engine import evaluate
from lsm_cli.engine.feed import Feed
from lsm_cli.engine.run import RunFolder
from lsm_cli.engine.setup import Setup
from lsm_cli.engine.train import Trainer, weights
from lsm_cli.errors import InputError
from lsm_cli.kernels import ragged
from lsm_cli.main import app
from lsm_cli.serving import folder, program
from lsm_cli.serving.scorer import Scorer

OPTIONS = ["train.device=cpu", "train.threads=1", "model.max_len=15", "model.hidden=[16]", "model.bins=4"]
OPTIONS += ["model.quiet=false", "search.top_k=8"]
ITEMS = 200  # more than a table has that is multiplied out


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from lsm_cli.data.tiny import write_store

    path = write_store(tmp_path_factory.mktemp("serving") / "store", items=ITEMS, index=True)
    (path / "vocab").mkdir()
    for name, first, last in (("item", 2, ITEMS), ("scenario", 2, 5), ("action", 2, 4)):
        values = {"id": np.arange(first, last), "value": [f"{name}-{number}" for number in range(first, last)]}
        pl.DataFrame(values).write_parquet(path / "vocab" / f"{name}.parquet")
    nodes = {2 + 3 * root + leaf: f"r{root}" + (f"/l{leaf}" if leaf else "") for root in range(3) for leaf in range(3)}
    pl.DataFrame({"node": list(nodes), "path": list(nodes.values())}).write_parquet(path / "vocab" / "category.parquet")
    return path


@pytest.fixture(scope="module")
def run_of(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Runs after some steps, made once."""
    made: dict[tuple[str, ...], Path] = {}

    @torch.enable_grad()
    def of(recipe: str, *more: str) -> Path:
        key = (recipe, *more)
        if key not in made:
            opened = Store.open(store)
            setup = Setup.of(recipes.load(recipe, [*OPTIONS, *more]), opened)
            made[key] = tmp_path_factory.mktemp("runs") / "run"
            run = RunFolder.start(made[key], setup.recipe, opened, resume=False)
            trainer = Trainer(setup, run)
            trainer.fit_scales()
            trainer.model.start(trainer.rates(), setup.item_vectors)
            for _ in trainer.updates(np.array_split(np.arange(600), 6)):
                pass
            run.save_weights(weights(trainer.model))
            run.close()
        return made[key]

    return of


def _setup(run: RunFolder, store: Path) -> Setup:
    return Setup.of(folder.on_cpu(run.recipe()), Store.open(store))


def _pair(path: Path, store: Path) -> tuple[Setup, Any, Any]:
    run = RunFolder.open(path)
    setup = _setup(run, store)
    models = [setup.model() for _ in range(2)]
    for model in models:
        run.fill(model)
        model.eval()
    return setup, *models


RECIPES = {
    "tin": [],
    "stacked_tin": [],
    "dnn": [],
    "din": [],
    "dsi_tin": [],
    "td_tin": [],
    "stca": [],
    "mean_pool": [],
    "graph": ["model.graph_dim=4"],
    "sim_hard": [],
    "hier_hard": [],  # a hard search, and matches of the whole history
    "dare": ["search.method=none"],
}


@pytest.mark.parametrize("name", ["tin", "stacked_tin", "dnn", "din"])
def test_exported_equals_eager(store: Path, run_of: Callable[..., Path], name: str) -> None:
    """Any number of samples and behaviours, also none at all."""
    _equal(store, run_of(name, *RECIPES[name]))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in RECIPES if name not in ("tin", "stacked_tin", "dnn", "din")])
def test_exported_equals_eager_for_other_models(store: Path, run_of: Callable[..., Path], name: str) -> None:
    _equal(store, run_of(name, *RECIPES[name]))


@torch.no_grad()
def _equal(store: Path, path: Path) -> None:
    setup, eager, other = _pair(path, store)
    feed = Feed(setup, "test")
    tables = program.tables(eager, "fp32")
    made = program.export(other, program.inputs_of(feed.batch(np.arange(20), eager)), tables).module()
    empty = np.flatnonzero(feed.assembler.lengths(np.arange(len(feed))) == 0)[:2]
    for index in (np.arange(1), np.arange(2), np.arange(3, 130), empty[:1], empty):
        batch = feed.batch(index, eager)
        expected = eager(batch, eager.fetch(batch))
        found = made(program.padded(program.inputs_of(batch)), tables)[:-1]
        assert expected.shape == found.shape and (expected - found).abs().max() <= 1e-5
    assert expected.shape == (2, 2)
    assert ragged.preferred() == "auto" and not ragged.shapes_are_fixed()


@pytest.mark.parametrize("name", ["tin", "stacked_tin", "din", "stca", "graph", "sim_hard", "hier_hard"])
@torch.no_grad()
def test_models_score_the_same_where_shapes_are_fixed(store: Path, run_of: Callable[..., Path], name: str) -> None:
    """Without an export: what it, and a captured graph, rest on."""
    setup, eager, other = _pair(run_of(name, *RECIPES[name]), store)
    feed, tables = Feed(setup, "test"), program.tables(eager, "fp32")
    frozen = program.Program(other)
    for index in (np.arange(50), np.arange(50, 51)):
        batch = feed.batch(index, eager)
        expected = eager(batch, eager.fetch(batch))
        with program.plainly():
            found = frozen(program.padded(program.inputs_of(batch)), tables)[:-1]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_narrow_tables_are_smaller_and_close(store: Path, run_of: Callable[..., Path]) -> None:
    setup, eager, _ = _pair(run_of("tin"), store)
    batch = Feed(setup, "test").batch(np.arange(100), eager)
    expected = eager(batch, eager.fetch(batch))
    exact = program.tables(eager, "fp32")
    sizes = {}
    for dtype, close in (("fp32", 1e-5), ("bf16", 0.1), ("int8", 0.1)):
        setup, _, other = _pair(run_of("tin"), store)
        tables = program.tables(eager, dtype)
        frozen = program.Program(other)
        with program.plainly():
            found = frozen(program.padded(program.inputs_of(batch)), tables)[:-1]
        assert (found - expected).abs().max() < close
        sizes[dtype] = sum(table.nbytes for table in tables.values())
    assert sizes["bf16"] * 2 == sizes["fp32"] and sizes["int8"] < 0.4 * sizes["fp32"]
    narrow = program.tables(eager, "int8")
    for name, weight in exact.items():
        again = narrow[name].float() * narrow[f"{name}.scale"].unsqueeze(1)
        assert ((again - weight).abs() <= weight.abs().amax(1, keepdim=True) / 254 + 1e-7).all()


@pytest.fixture(scope="module")
def exported(store: Path, run_of: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exported") / "tin"
    done = CliRunner().invoke(app, ["export", str(run_of("tin")), "--out", str(out), "--no-compile", "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["difference"] <= 1e-5 and set(found["bytes"]) >= {"program.pt2", "tables.safetensors", "scorer.py"}
    return out


@pytest.fixture(scope="module")
def scorer(exported: Path) -> Scorer:
    return Scorer(exported)


def test_score_says_what_eval_says(exported: Path, run_of: Callable[..., Path]) -> None:
    mine = json.loads(CliRunner().invoke(app, ["score", str(exported), "--json", "-q"]).stdout)
    theirs = json.loads(CliRunner().invoke(app, ["eval", str(run_of("tin")), "--json", "-q"]).stdout)
    for target in ("click", "order"):
        for metric in ("auc", "gauc", "logloss", "calibration"):
            assert mine["test"][target][metric] == pytest.approx(theirs["test"][target][metric], abs=1e-5)


def _requests(store: Path, number: int) -> list[dict[str, Any]]:
    """Samples of the store as raw values, as a service has them."""
    opened = Store.open(store)
    samples, base = opened.samples("test"), opened.base
    paths = dict(pl.read_parquet(store / "vocab" / "category.parquet").select("node", "path").iter_rows())

    def raw(name: str, value: int) -> Any:
        if value < 2:
            return None
        return paths[value] if name == "category" else f"{name}-{value}"

    found = []
    for row in range(number):
        user, end = int(samples.column("user")[row]), int(samples.column("end")[row])
        events = slice(int(opened.offsets[user]), min(end + 3, int(opened.offsets[user + 1])))  # some of the future
        names = ("item", "category", "scenario", "action")
        history = {name: [raw(name, int(value)) for value in opened.column(name)[events]] for name in names}
        statistic = float(samples.column("stat.popularity.item.1d")[row])
        found.append(
            {
                "time": int(samples.column("time")[row]) + base,
                "candidate": {name: raw(name, int(samples.column(name)[row])) for name in names[:3]},
                "history": {"time": [int(time) + base for time in opened.column("time")[events]], **history},
                "statistics": {"popularity/item/1d": statistic} if statistic >= 0 else {},
            }
        )
    return found


def test_a_folder_scores_requests_by_itself(
    store: Path, exported: Path, run_of: Callable[..., Path], tmp_path: Path
) -> None:
    """scorer.py, elsewhere, where there is no lsm."""
    moved = tmp_path / "served"
    shutil.copytree(exported, moved)
    code = "import sys; sys.modules['lsm_cli'] = sys.modules['polars'] = sys.modules['pydantic'] = None; "
    code += f"import runpy; runpy.run_path({str(moved / 'scorer.py')!r}, run_name='__main__')"
    lines = "\n".join(json.dumps(request) for request in _requests(store, 40))
    done = subprocess.run([sys.executable, "-c", code], input=lines, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    setup, eager, _ = _pair(run_of("tin"), store)
    logits = evaluate.score(eager, Feed(setup, "test"), setup.compute, np.arange(40))
    expected = 1 / (1 + np.exp(-logits))
    np.testing.assert_allclose([[row["click"], row["order"]] for row in found], expected, atol=1e-5)


def test_candidates_of_one_request_score_as_those_of_many(exported: Path, store: Path) -> None:
    setup = folder.setup_of(folder.opened(exported), exported, Store.open(store))
    alone, together = Feed(setup, "test"), Feed(setup, "test")
    asked, of = np.repeat(np.arange(5), 6), together.assembler
    for feed in (alone, together):
        of = feed.assembler
        of.user, of.end, of.time = (np.asarray(column)[asked] for column in (of.user, of.end, of.time))
    model = folder.Exported(exported)
    found = evaluate.score(model, together, setup.compute, np.arange(30))
    one_by_one = [evaluate.score(model, alone, setup.compute, np.array([row])) for row in range(30)]
    np.testing.assert_allclose(found, np.concatenate(one_by_one), atol=1e-5)


def test_what_a_search_found_comes_with_its_ranks(store: Path, run_of: Callable[..., Path], tmp_path: Path) -> None:
    done = CliRunner().invoke(
        app, ["export", str(run_of("hier_hard")), "--out", str(tmp_path / "out"), "--no-compile", "--json"]
    )
    assert done.exit_code == 0, done.output
    setup, eager, _ = _pair(run_of("hier_hard"), store)
    feed, index = Feed(setup, "test"), np.arange(40)
    pointers, statistics = feed.find(index, eager), setup.match_statistics()
    assert statistics is not None
    matches = statistics(feed.assembler.queries(index))
    first = Store.open(store).offsets
    requests = _requests(store, 40)
    for row, request in enumerate(requests):
        found = pointers.pointer[pointers.offsets[row] : pointers.offsets[row + 1]]
        samples = Store.open(store).samples("test")
        end, own = int(samples.column("end")[row]), int(first[samples.column("user")[row]])
        request["history"] = {name: [values[at - own] for at in found] for name, values in request["history"].items()}
        request["history"]["rank"] = [end - int(at) for at in found]
        request["matches"] = dict(zip(statistics.names, matches[row].tolist(), strict=True))
    served = Scorer(tmp_path / "out")
    logits = evaluate.score(eager, feed, setup.compute, index)
    scores = [[row["click"], row["order"]] for row in served.score(requests)]
    np.testing.assert_allclose(scores, 1 / (1 + np.exp(-logits)), atol=1e-5)
    held = next(row for row, request in enumerate(requests) if request["history"]["time"])
    del requests[held]["history"]["rank"]
    with pytest.raises(ValueError, match=f"request {held + 1}: 'rank' is missing"):
        served.score(requests)


def test_values_that_nobody_has_seen_match_each_other(store: Path, scorer: Scorer) -> None:
    request = _requests(store, 1)[0]
    request["history"] |= {"time": [request["time"] - 5], "item": ["new"], "category": [["r1", "l2"]]}
    request["history"] |= {"scenario": [None], "action": ["action-2"]}
    same, other = ({**request, "candidate": {"item": item, "category": "r1/nowhere"}} for item in ("new", "newer"))
    inputs = scorer.inputs([same, other])
    seen, wanted = inputs["history"]["item"].tolist(), inputs["target"]["item"].tolist()
    assert seen == [ITEMS, ITEMS] and wanted == [ITEMS, ITEMS + 1]
    assert inputs["history"]["category2"].tolist() == [7, 7] and inputs["target"]["category2"].tolist() == [1, 1]
    assert inputs["target"]["category1"].tolist() == [5, 5] and inputs["target"]["scenario"].tolist() == [1, 1]
    first, second = scorer.score([same, other])
    assert first != second
    assert scorer.score([same])[0] == pytest.approx(first, abs=1e-6) and scorer.score([]) == []


BAD = {
    "no time": ({"candidate": {}}, "request 2: 'time' is missing"),
    "lengths": (
        {"time": 9, "candidate": {}, "history": {"time": [1, 2], "item": ["a"]}},
        "request 2: history.item and",
    ),
    "no object": ([], "request 2: list indices"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_requests_are_named(scorer: Scorer, case: str) -> None:
    request, words = BAD[case]
    with pytest.raises(ValueError, match=words):
        scorer.score([{"time": 5, "candidate": {}}, request])


REFUSED = {
    "bst": ([], "sorts what it reads"),
    "hstu": ([], "sorts what it reads"),
    "sdim": ([], "sorts what it reads"),
    "sasrec": ([], "--user-vectors"),
    "twin": ([], "scores whole histories"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_exported_form_is_refused(name: str) -> None:
    more, words = REFUSED[name]
    with pytest.raises(InputError, match=words) as caught:
        program.check(recipes.load(name, more))
    assert "\n" not in str(caught.value)


def test_mistakes_are_one_sentence(store: Path, exported: Path, run_of: Callable[..., Path], tmp_path: Path) -> None:
    run = str(run_of("tin"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("x")
    for arguments, words in (
        (["export", run, "--out", str(tmp_path / "x"), "--tables", "int4"], "choose fp32, bf16, int8"),
        (["export", run, "--out", str(exported)], "add --overwrite"),
        (["export", run, "--out", str(tmp_path / "mine"), "--overwrite"], "choose another --out"),
        (["export", str(tmp_path), "--out", str(tmp_path / "x")], "not a run"),
        (["score", str(tmp_path)], "not an exported model"),
        (["score", str(exported), "--compiled"], "has no compiled program"),
    ):
        done = CliRunner().invoke(app, [*arguments, "-q"])
        assert done.exit_code == 2 and words in done.stderr.replace("\n", " "), done.stderr
    assert not (tmp_path / "x").exists() and (tmp_path / "mine" / "file").read_text() == "x"


@pytest.mark.slow
@pytest.mark.skipif(not folder.has_compiler(), reason="needs a C++ compiler")
def test_compiled_equals_eager(store: Path, run_of: Callable[..., Path], tmp_path: Path) -> None:
    run = RunFolder.open(run_of("stacked_tin"))
    for dtype in ("fp32", "int8"):
        found = folder.write(run, _setup(run, store), tmp_path / dtype, dtype, True, False, lambda text: None)
        assert found["difference"] <= (1e-5 if dtype == "fp32" else 0.1)
        assert (tmp_path / dtype / "compiled.pt2").is_file()
