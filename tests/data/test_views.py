"""A view is what a store built from those behaviours would be, orders and pointers included."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from lsm_cli import recipe as recipes
from lsm_cli.data.building.orders import ordered
from lsm_cli.data.orders import EventValues
from lsm_cli.data.store import Store
from lsm_cli.data.views import Grown, Hidden, View, ads_only, without
from lsm_cli.engine.evaluate import score
from lsm_cli.engine.feed import Feed
from lsm_cli.engine.setup import Setup
from lsm_cli.errors import InputError
from lsm_cli.main import app

FIELDS = ("item", "category", "scenario", "action")
SMALL = ["train.threads=1", "model.hidden=[16]", "model.bins=0", "train.device=cpu"]


def check(view: View, owner: np.ndarray, columns: dict[str, np.ndarray]) -> None:
    """The view against rows sorted by hand."""
    order = np.lexsort((columns["time"], owner))
    owner = owner[order]
    assert np.array_equal(np.diff(view.offsets), np.bincount(owner, minlength=view.users))
    for name, values in columns.items():
        assert np.array_equal(view.column(name), values[order])
    for field in view.index:
        value = EventValues(view, field).at(np.arange(len(owner)))
        assert np.array_equal(view.order(field), ordered(owner, value) - view.offsets[owner])
    samples = view.samples("test")
    for row in range(0, len(samples), 7):
        user, time = samples.column("user")[row], samples.column("time")[row]
        seen = (owner == user) & (columns["time"][order] < time)
        assert samples.column("end")[row] == view.offsets[user] + seen.sum()


def rows_of(store: Store) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    owner = np.repeat(np.arange(store.users), np.diff(store.offsets))
    return owner, {name: np.array(store.column(name)) for name in ("time", *FIELDS)}


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([0.05, 0.5, 0.95]))
def test_hidden_behaviours_were_never_there(small_store: Path, seed: int, share: float) -> None:
    store = Store.open(small_store)
    owner, columns = rows_of(store)
    keep = np.random.default_rng(seed).random(store.events) < share
    keep[0] = True
    check(Hidden(store, keep, ""), owner[keep], {name: values[keep] for name, values in columns.items()})


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.integers(0, 300))
def test_added_behaviours_were_always_there(small_store: Path, seed: int, more: int) -> None:
    store = Store.open(small_store)
    owner, columns = rows_of(store)
    rng = np.random.default_rng(seed)
    again = rng.integers(0, store.events, more)
    columns = {name: np.concatenate([values, values[again]]) for name, values in columns.items()}
    owner = np.concatenate([owner, rng.integers(0, store.users, more)])
    check(Grown(store, owner, columns, ""), owner, columns)


@pytest.mark.parametrize(
    "options",
    [
        ["tin"],
        ["hier_hard", "search.top_k=5"],
        ["sim_soft", "search.top_k=5"],
        ["hybrid", "search.top_k=6", "search.hard_k=3"],
        ["eta", "search.top_k=5"],
        ["tin", "model.evidence_from=history"],
    ],
    ids=lambda options: "-".join(options[:2]),
)
def test_every_search_reads_what_is_left(small_store: Path, options: list[str]) -> None:
    """Hiding nothing changes nothing; hiding the older half is the same as not reaching so far."""
    store = Store.open(small_store)
    recipe = recipes.load(options[0], [*options[1:], *SMALL])
    setup = Setup.of(recipe, store)
    torch.manual_seed(0)
    model = setup.model()
    with torch.no_grad():
        for weights in model.parameters():
            weights += 0.3 * torch.randn_like(weights)

    def scored(view: Store) -> np.ndarray:
        made = Setup.of(recipe, view)
        feed = Feed(made, "test")
        return score(model, feed, made.compute, np.arange(len(feed)))

    whole = scored(store)
    assert np.allclose(whole, scored(Hidden(store, np.ones(store.events, bool), "")), atol=1e-5)
    lengths = np.diff(store.offsets)
    age = np.repeat(store.offsets[1:], lengths) - np.arange(store.events)
    assert np.abs(whole - scored(Hidden(store, age > np.repeat(lengths, lengths) // 2, ""))).max() > 0.01


def test_pointers_found_beforehand_are_found_again(small_store: Path, tmp_path: Path) -> None:
    """They point at behaviours that may be hidden: the search is done anew, where the store alone can do it."""
    store, found = Store.open(small_store), tmp_path / "found"
    small = ["search.top_k=5", *SMALL]
    done = CliRunner().invoke(
        app, ["search", "-r", "hier_hard", "--data", str(small_store), "--split", "all", "--out", str(found), *small]
    )
    assert done.exit_code == 0, done.output
    view = Hidden(store, np.arange(store.events) % 2 == 0, "")
    live, file = (recipes.load("hier_hard", [*small, *more]) for more in ([], [f"search.from={found}"]))
    read = [Feed(Setup.of(recipe, view), "test").find(np.arange(100)) for recipe in (live, file)]
    assert np.array_equal(read[0].pointer, read[1].pointer) and len(read[0].pointer)
    manifest = json.loads((found / "manifest.json").read_text())
    manifest["search"]["method"] = "soft"
    (found / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="no look without them"):
        Feed(Setup.of(file, view), "test")


def test_domains_that_are_not_there(small_store: Path) -> None:
    with pytest.raises(InputError, match="have no domain"):
        without(Store.open(small_store), ["video"])
    with pytest.raises(InputError, match="have no domain"):
        ads_only(Store.open(small_store), "test")
