"""Where attention goes, against literal loops."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from lsm_cli import recipe as recipes
from lsm_cli.commands.attention import marginals
from lsm_cli.data.store import Store
from lsm_cli.engine.feed import Feed
from lsm_cli.engine.setup import Setup
from lsm_cli.judging.attention import (
    AGES,
    RANKS,
    Attention,
    View,
    age_bucket,
    attention,
    effective,
    match_level,
    rank_bucket,
    rank_names,
)  # fmt: skip
from lsm_cli.main import app

SMALL = ["train.threads=1", "train.epochs=1", "model.max_len=20", "model.hidden=[16]"]


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(0, 5), min_size=1, max_size=6), seed=st.integers(0, 1000))
def test_shares_equal_literal_loops(lengths: list[int], seed: int) -> None:
    rng, sizes = np.random.default_rng(seed), np.array(lengths)
    bucket = rng.integers(0, 4, sizes.sum())
    raw = [rng.random(sizes.sum()) + 0.01 for _ in range(2)]
    row = np.repeat(np.arange(len(sizes)), sizes)
    weights = [weight / np.bincount(row, weight, len(sizes))[row] for weight in raw]
    view = View(list("abcd"), 2)
    cut = int(rng.integers(0, len(sizes) + 1))  # in two batches
    for part in (slice(0, cut), slice(cut, None)):
        inside = np.isin(row, np.arange(len(sizes))[part])
        view.add(bucket[inside], sizes[part], [weight[inside] for weight in weights])
    behaviours, attended, spread = [0.0] * 4, [[0.0] * 4 for _ in range(2)], 0.0
    at = 0
    for length in lengths:
        entropy = 0.0
        for i in range(at, at + length):
            behaviours[bucket[i]] += 1 / length
            for series in range(2):
                attended[series][bucket[i]] += weights[series][i]
            entropy -= weights[0][i] * np.log(weights[0][i])
        spread += np.exp(entropy) if length else 0
        at += length
    np.testing.assert_allclose(view.behaviours, behaviours)
    np.testing.assert_allclose(view.attention, attended)
    assert effective(weights[0], sizes) == pytest.approx(spread)


@given(seconds=st.floats(1, 1e9), rank=st.integers(1, 100_000))
def test_buckets_hold_what_their_names_say(seconds: float, rank: int) -> None:
    place = int(age_bucket(np.array([seconds]))[0])
    ends = list(AGES.values())
    assert (place == 0 or ends[place - 1] <= seconds) and seconds < ends[place]
    place = int(rank_bucket(np.array([rank]))[0])
    assert RANKS[place] <= rank and (place + 1 == len(RANKS) or rank < RANKS[place + 1])
    assert len(rank_names()) == len(RANKS) and rank_names()[3] == "6 – 10" and rank_names()[0] == "1"


def test_the_finest_match_counts_and_missing_matches_nothing() -> None:
    history = {"item": np.array([5, 6, 1, 5]), "category1": np.array([9, 9, 1, 8])}
    target = {"item": np.array([5, 1]), "category1": np.array([9, 8])}
    assert match_level(history, target, np.array([3, 1])).tolist() == [0, 1, 2, 1]
    assert match_level(history, {}, np.array([3, 1])).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("recipe", "overrides", "targets", "layers", "heads"),
    [
        ("tin", [], ["all"], [1], ["all fields"]),
        ("stacked_tin", ["model.time_tables=own", "model.layers=3"], ["click", "order"], [1, 2, 3], ["all fields"]),
        ("dsi_tin", [], ["all"], [1], ["item", "category", "scenario", "action", "time"]),
        ("tin", ["model.heads=[['item','category'],['category1']]"], ["all"], [1], ["item + category", "category1"]),
        ("tin", ["search.method=soft", "search.top_k=5", "model.attention_dim=4"], ["all"], [1], ["all fields"]),
        ("twin", ["model.block_heads=2"], ["all"], [1], ["1: all fields", "2: all fields"]),
    ],
)
def test_every_view_shares_out_the_whole_attention(
    small_store: Path, recipe: str, overrides: list[str], targets: list[str], layers: list[int], heads: list[str]
) -> None:
    setup = Setup.of(recipes.load(recipe, [*SMALL, *overrides]), Store.open(small_store))
    model = setup.model()
    found = attention(setup, model, "test", sample=150)
    wanted = [{"target": t, "layer": i, "head": h} for t in targets for i in layers for h in heads]
    assert [{key: one[key] for key in ("target", "layer", "head")} for one in found["series"]] == wanted
    assert found["samples"] == 150 and set(found["views"]) == {"age", "rank", "match", "scenario", "action"}
    for name, view in found["views"].items():
        assert sum(view["behaviours"]) == pytest.approx(1)
        assert np.array(view["attention"]).shape == (len(wanted), len(view["buckets"]))
        np.testing.assert_allclose(np.sum(view["attention"], 1), 1, rtol=1e-5)
        kinds = marginals(found, name)
        assert set(kinds) == {"attention"} | {
            kind for kind, entries in (("target", targets), ("layer", layers), ("head", heads)) if len(entries) > 1
        }
        for entries in kinds.values():
            np.testing.assert_allclose([sum(values) for values in entries.values()], 1, rtol=1e-5)
    assert all(1 <= one["effective"] <= found["behaviours"] + 1e-6 for one in found["series"])


def test_attention_that_is_known_is_found(small_store: Path) -> None:
    """A match bias far above all else draws the attention to where the candidate was seen."""
    setup = Setup.of(recipes.load("tin", SMALL), Store.open(small_store))
    model = setup.model()
    bias = model.space.heads.bias[0].weight
    bias.data.zero_()
    bias.data[0] = 50.0  # of the item
    counted = Attention(setup, model)
    feed = Feed(setup, "train")
    index = np.arange(300)
    batch = feed.batch(index, model.eval())
    row = np.repeat(np.arange(300), batch.offsets.diff().numpy())
    hit = np.bincount(row, batch.history["item"].numpy() == batch.target["item"].numpy()[row], 300) > 0
    counted.add(feed.batch(index[hit], model))
    view = counted.result()["views"]["match"]
    assert view["attention"][0][view["buckets"].index("item")] == pytest.approx(1, abs=1e-6)
    assert view["behaviours"][view["buckets"].index("item")] < 0.5


def test_the_command_shows_tables_and_writes_a_page(small_store: Path, tmp_path: Path) -> None:
    run, call = tmp_path / "run", CliRunner().invoke
    made = call(app, ["train", "-r", "td_tin", "--data", str(small_store), "-o", str(run), "-q", *SMALL])
    assert made.exit_code == 0, made.output
    shown = call(app, ["eval", str(run), "--attention", "--sample", "50"])
    assert shown.exit_code == 0, shown.output
    for text in ("Attention by time from the behaviour", "lift", "category2", "click", "order", "attention.html"):
        assert text in shown.output
    page = (run / "attention.html").read_text()
    assert "<svg" in page and "<script" not in page and "http" not in page
    colours = set(re.findall(r'color:(#[0-9a-f]+)"', page))
    assert colours and set(re.findall(r'<rect [^>]*fill="(#[0-9a-f]+)"', page)) <= colours, "as the legend says"
    both = call(app, ["eval", str(run), "--attention", "--ads-only"])
    assert both.exit_code == 2 and "one run by itself" in both.output
    found = json.loads(call(app, ["eval", str(run), "--attention", "--sample", "50", "--json"]).stdout)
    assert found["attention"]["samples"] == 50 and "auc" in found["test"]["click"]


def test_no_attention_no_pictures(small_store: Path, tmp_path: Path) -> None:
    run, call = tmp_path / "run", CliRunner().invoke
    call(app, ["train", "-r", "mean_pool", "--data", str(small_store), "-o", str(run), "-q", *SMALL])
    refused = call(app, ["eval", str(run), "--attention"])
    assert refused.exit_code == 2 and "has no attention that sums to one" in refused.output
    assert not (run / "attention.html").exists()
