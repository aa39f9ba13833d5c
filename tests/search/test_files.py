"""Pointers written by a search are what training reads."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from lsm_cli import recipe as recipes
from lsm_cli.data.batches import Pointers
from lsm_cli.data.building.orders import add_orders
from lsm_cli.data.store import Store
from lsm_cli.engine.feed import Feed
from lsm_cli.engine.setup import Setup
from lsm_cli.errors import InputError, LsmError
from lsm_cli.main import app
from lsm_cli.search.files import FoundFile, writing
from tests.small import write_store


def _lsm(*arguments: object) -> dict:
    done = CliRunner().invoke(app, [*map(str, arguments), "--json", "-q"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def found(small_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("search") / "found"
    _lsm("search", "-r", "hier_hard", "--data", small_store, "--split", "all", "--out", out, "search.top_k=5")
    return out


@pytest.fixture(scope="module")
def dare_run(small_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "dare"
    _lsm("train", "-r", "dare", "--data", small_store, "--out", out, "train.epochs=1", "search.top_k=5")
    return out


def test_training_from_the_file_reads_what_a_live_search_finds(small_store: Path, found: Path) -> None:
    store = Store.open(small_store)
    live = Setup.of(recipes.load("hier_hard", ["search.top_k=5"]), store)
    filed = Setup.of(recipes.load("hier_hard", ["search.top_k=5", f"search.from={found}"]), store)
    index = np.random.default_rng(0).permutation(200)
    for split in ("train", "valid", "test"):
        one = Feed(live, split).batch(index, live.model())
        two = Feed(filed, split).batch(index, filed.model())
        assert torch.equal(one.offsets, two.offsets) and torch.equal(one.age, two.age)
        assert torch.equal(one.history["item"], two.history["item"])


def test_a_frozen_soft_search_feeds_another_model(small_store: Path, dare_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "frozen"
    report = _lsm("search", "--run", dare_run, "--data", small_store, "--split", "all", "--out", out)
    assert report["recall_at_k"] == pytest.approx(1.0) and report["ndcg_at_k"] == pytest.approx(1.0)
    trained = _lsm(
        "train", "-r", "tin", "--data", small_store, "--out", tmp_path / "run", "train.epochs=1", f"search.from={out}"
    )
    assert trained["test"]["click"]["auc"] > 0.5
    refused = CliRunner().invoke(app, ["eval", str(tmp_path / "run"), "--shuffle-history", "-q"])
    assert refused.exit_code == 2 and "no shuffled control" in refused.stderr


def test_hard_search_is_judged_by_attention(small_store: Path, dare_run: Path) -> None:
    command = ["search", "-r", "hier_hard", "--data", small_store, "--run", dare_run]
    few, many = (_lsm(*command, f"search.top_k={k}") for k in (2, 1000))
    assert 0 < few["recall_at_k"] < 1 and many["recall_at_k"] == pytest.approx(1.0)
    assert sum(many["levels"].values()) == pytest.approx(1.0) and few["filled"] > many["filled"]


def test_levels_and_reach_are_those_of_the_finds(small_store: Path) -> None:
    leaf = _lsm("search", "-r", "sim_hard", "--data", small_store, "search.top_k=1000")
    assert set(leaf["levels"]) == {"category2", "any"} and leaf["levels"]["category2"] == 1.0
    recent = _lsm("search", "-r", "tin", "--data", small_store, "model.max_len=1")
    assert recent["reach_rank"] == 1.0


BAD = {
    "no run for a soft search": (["-r", "twin"], "give --run RUN"),
    "neither recipe nor run": ([], "--recipe is missing"),
    "split that is not there": (["-r", "hier_hard", "--split", "later"], "no split 'later'"),
    "unknown level": (["-r", "hier_hard", 'search.levels=["brand"]'], "has no field 'brand'"),
    "run that is none": (["-r", "hier_hard", "--run", "nowhere"], "not a run"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence(case: str, small_store: Path, tmp_path: Path) -> None:
    arguments, words = BAD[case]
    out = tmp_path / "found"
    done = CliRunner().invoke(app, ["search", "--data", str(small_store), "--out", str(out), *arguments])
    assert done.exit_code == 2 and words in done.stderr and "Traceback" not in done.output, done.output
    assert not out.exists() and not list(tmp_path.iterdir())


def test_results_are_not_overwritten_unasked(small_store: Path, found: Path, tmp_path: Path) -> None:
    command = ["search", "-r", "sim_hard", "--data", str(small_store), "--out", str(found), "-q"]
    assert "--overwrite" in CliRunner().invoke(app, command).stderr
    (tmp_path / "notes").write_text("mine")
    other = CliRunner().invoke(app, [*command[:-2], str(tmp_path), "--overwrite"])
    assert other.exit_code == 2 and (tmp_path / "notes").read_text() == "mine"


def test_a_file_of_another_store_or_split_is_refused(found: Path, tmp_path: Path) -> None:
    other = write_store(tmp_path / "other", seed=3)
    add_orders(other)
    with pytest.raises(InputError, match="another store"):
        FoundFile(found, Store.open(other), "train")
    store = Store.open(write_store(tmp_path / "same"))  # the same seed as the store of the file
    assert FoundFile(found, store, "train").take(np.array([0])).offsets[0] == 0
    with pytest.raises(InputError, match="holds no dev samples"):
        FoundFile(found, store, "dev")
    with pytest.raises(InputError, match="not a result"):
        FoundFile(tmp_path, store, "train")


def _shuffled(store: Store, recipe: str, *overrides: str) -> torch.Tensor:
    setup = Setup.of(recipes.load(recipe, [*overrides, "model.evidence_from=read"]), store)
    return Feed(setup, "test", shuffle_seed=1).batch(np.arange(100), setup.model()).age


def test_the_shuffled_control_searches_as_the_file_was_searched(
    small_store: Path, dare_run: Path, found: Path, tmp_path: Path
) -> None:
    store = Store.open(small_store)
    live = _shuffled(store, "hier_hard", "search.top_k=5")
    for recipe in ("hier_hard", "tin", "twin"):  # whatever the recipe of the run itself would search
        assert torch.equal(_shuffled(store, recipe, f"search.from={found}"), live)
    recent, frozen = tmp_path / "recent", tmp_path / "frozen"
    _lsm("search", "-r", "tin", "--data", small_store, "--out", recent, "model.max_len=4")
    assert torch.equal(_shuffled(store, "twin", f"search.from={recent}"), _shuffled(store, "tin", "model.max_len=4"))
    _lsm("search", "--run", dare_run, "--out", frozen)
    with pytest.raises(InputError, match="no shuffled control"):
        _shuffled(store, "hier_hard", f"search.from={frozen}")


def test_damage_is_one_sentence(small_store: Path, found: Path, tmp_path: Path) -> None:
    store = Store.open(small_store)

    def fails(words: str, name: str, data: bytes) -> None:
        broken = shutil.copytree(found, tmp_path / "broken")
        (broken / name).write_bytes(data)
        with pytest.raises(InputError, match=words) as error:
            FoundFile(broken, store, "train").take(np.arange(50))
        assert "\n" not in str(error.value)
        shutil.rmtree(broken)

    pointer = (found / "train" / "pointer.npy").read_bytes()
    fails("damaged", "train/pointer.npy", pointer[:-8])
    fails("damaged", "train/pointer.npy", b"oops")
    fails("damaged .not a|damaged", "train/level.npy", b"")
    fails("outside the user's past", "train/pointer.npy", pointer[:128] + b"\x7f" * (len(pointer) - 128))
    fails("outside the user's past", "train/pointer.npy", pointer[:128] + b"\xff" * (len(pointer) - 128))
    fails("not a result", "manifest.json", b"{")
    fails("not a result", "manifest.json", b"[]")
    fails("not a result of this version", "manifest.json", b'{"format": 99}')


def test_a_behaviour_after_the_request_is_never_read(small_store: Path, found: Path, tmp_path: Path) -> None:
    store = Store.open(small_store)
    broken = shutil.copytree(found, tmp_path / "broken")
    file = np.load(broken / "train" / "pointer.npy", mmap_mode="r+")
    offsets, end = np.load(broken / "train" / "offsets.npy"), store.samples("train").column("end")
    sample = int(np.flatnonzero(np.diff(offsets))[0])
    file[offsets[sample + 1] - 1] = end[sample]  # the first event that the request must not see
    file.flush()
    with pytest.raises(InputError, match="outside the user's past"):
        FoundFile(broken, store, "train").take(np.array([sample]))


def test_pieces_of_any_size_make_the_same_file(small_store: Path, found: Path, tmp_path: Path) -> None:
    store = Store.open(small_store)
    whole = FoundFile(found, store, "valid")
    with writing(tmp_path / "again", store) as writer:
        with writer.split("valid") as part:
            for index in np.array_split(np.arange(200), 7):
                read = whole.take(index)
                start = whole.offsets[index[0]]
                part.add(read, whole.level[start : start + len(read.pointer)])
        writer.finish(whole.search, whole.manifest["levels"])
    for name in ("offsets", "pointer", "level"):
        same = (folder / "valid" / f"{name}.npy" for folder in (found, tmp_path / "again"))
        assert next(same).read_bytes() == next(same).read_bytes()


def test_a_search_that_finds_nothing_can_be_written(small_store: Path, tmp_path: Path) -> None:
    store = Store.open(small_store)
    with writing(tmp_path / "none", store) as writer:
        with writer.split("test") as part:
            part.add(Pointers(np.zeros(201, np.int64), np.empty(0, np.int64)), np.empty(0, np.uint8))
        writer.finish(recipes.load("tin").search, ["any"])
    assert not len(FoundFile(tmp_path / "none", store, "test").take(np.arange(9)).pointer)


def test_only_one_writes_and_a_failure_leaves_the_old_result(small_store: Path, found: Path, tmp_path: Path) -> None:
    store, out = Store.open(small_store), tmp_path / "found"
    shutil.copytree(found, out)
    before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    with pytest.raises(RuntimeError), writing(out, store, overwrite=True) as writer:
        with pytest.raises(LsmError, match="another search is writing"), writing(out, store, overwrite=True):
            pass
        with writer.split("test"):
            raise RuntimeError
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before
    _lsm("search", "-r", "sim_hard", "--data", small_store, "--out", out, "--overwrite")
    assert FoundFile(out, store, "test").search.levels == ["category2"] and len(list(tmp_path.iterdir())) == 1


def test_a_full_disk_is_one_sentence(small_store: Path, tmp_path: Path) -> None:
    """Files may not grow beyond 1 KiB: what a full disk looks like to a program."""
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 10, 1 << 10)); "
        "from lsm_cli.main import main; sys.argv[0] = 'lsm'; main()"
    )
    command = ["search", "-r", "hier_hard", "--data", small_store, "--out", tmp_path / "found", "-q"]
    result = subprocess.run(
        [sys.executable, "-c", code, *map(str, command)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 1 and "could not be written" in result.stderr
    assert len(result.stderr.splitlines()) == 1 and not list(tmp_path.iterdir())
