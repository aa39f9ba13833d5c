"""One tree for all domains: depth-first ranges, ancestors, alignment."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lsm_cli.data.building.taxonomy import PathEncoder, Tree, meeting, read_alignment, unmapped
from lsm_cli.data.description import Taxonomy
from lsm_cli.errors import InputError
from tests.data.building import DESCRIPTION, EVENTS, SAMPLES, anchors, build, event, write

NAMES = st.sampled_from(["a", "b", "a b", "b/c", "é", None])
PATHS = st.lists(
    st.tuples(st.sampled_from(["ad", "video", None]), NAMES, NAMES, NAMES), min_size=1, max_size=25, unique=True
)
COLUMNS = ["domain", "category1", "category2", "category3"]


def frame(paths: list[tuple[str | None, ...]]) -> pl.DataFrame:
    return pl.DataFrame(paths, schema=dict.fromkeys(COLUMNS, pl.String), orient="row")


def real(path: tuple[str | None, ...]) -> tuple[str, ...]:
    """A path ends before its first missing part."""
    found: list[str] = []
    for part in path[1:]:
        if part is None:
            break
        found.append(part)
    return tuple(found)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(PATHS)
def test_a_subtree_is_one_range_and_every_node_knows_its_ancestors(paths: list[tuple[str | None, ...]]) -> None:
    tree = Tree(frame(paths), 3, None, shared=True)
    node = {tuple(row): n for row, n in zip(tree.raw.rows(), tree.node_of_path.tolist(), strict=True)}
    prefixes = {real(path)[:depth] for path in paths for depth in range(1, 4) if len(real(path)) >= depth}
    assert tree.nodes == 2 + len(prefixes)
    for path in paths:
        mine, parts = node[path], real(path)
        assert tree.level[mine] == len(parts) and (mine == 1) == (not parts)
        for other in paths:
            inside = bool(parts) and real(other)[: len(parts)] == parts
            low, high = tree.range[mine]
            assert (low <= node[other] < high) == inside or not parts
            for level in range(min(len(parts), len(real(other)))):
                same = tree.ancestors[mine, level] == tree.ancestors[node[other], level]
                assert same == (parts[: level + 1] == real(other)[: level + 1])
        assert (tree.ancestors[mine, len(parts) :] == 1).all()
    encoder = PathEncoder(tree, {})
    shown = frame(paths)
    assert tree.node_of_path[encoder.places(shown, None)].tolist() == [node[path] for path in paths]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(PATHS, st.lists(st.booleans(), min_size=25, max_size=25))
def test_trained_nodes_own_rows_level_by_level(paths: list[tuple[str | None, ...]], seen: list[bool]) -> None:
    tree = Tree(frame(paths), 3, None, shared=True)
    trained = np.zeros(tree.nodes, bool)
    trained[tree.node_of_path[np.array(seen[: tree.raw.height])]] = True
    rows, levels = tree.rows(trained)
    assert rows[:2].tolist() == [0, 1]
    for number, level in enumerate(levels, start=1):
        here = np.flatnonzero(tree.level == number)
        known = np.unique(tree.ancestors[np.flatnonzero(trained), number - 1])
        known = known[known > 1]
        assert level["trained"] == 2 + len(known) and level["nodes"] == 2 + len(here)
        assert sorted(rows[known].tolist()) == list(range(2, 2 + len(known)))
        assert (rows[np.setdiff1d(here, known)] == level["trained"]).all()


def aligned(rows: list[tuple[str, str, str]]) -> pl.DataFrame:
    table = pl.DataFrame(rows, schema=["domain", "path", "shared"], orient="row")
    return table.with_columns(pl.col("path", "shared").str.replace_all("/", "\0", literal=True))


def test_alignment_hangs_a_node_on_its_nearest_aligned_ancestor() -> None:
    paths = [
        ("ad", "sport", "ball", None),
        ("video", "ballgames", "football", "cup"),
        ("video", "ballgames", None, None),
        ("video", "news", None, None),
        ("ad", "news", None, None),
    ]
    tree = Tree(
        frame(paths), 3, aligned([("video", "ballgames", "sport/ball"), ("video", "ballgames/football", "sport")]), True
    )
    node = dict(zip(tree.raw.rows(), tree.node_of_path.tolist(), strict=True))
    ad, cup, games, video_news, ad_news = (node[path] for path in paths)
    assert games == ad  # aligned with a node two levels deep
    assert tree.ancestors[cup, 0] == tree.ancestors[ad, 0] and tree.level[cup] == 2  # below the one nearest above
    assert tree.ancestors[cup, 1] != ad
    assert video_news != ad_news  # the video's own: nothing aligns it
    counts = np.ones(len(paths), np.int64)
    met = {(row["domain"], row["level"]): row["events_meeting"] for row in meeting(tree, counts, counts)}
    assert met["video", 1] == 2 and met["video", 2] == 1 and met["ad", 1] == 1


def test_without_alignment_the_same_path_is_the_same_node_unless_told_otherwise() -> None:
    paths = [("ad", "a", None, None), ("video", "a", None, None)]
    assert len(set(Tree(frame(paths), 3, None, shared=True).node_of_path.tolist())) == 1
    assert len(set(Tree(frame(paths), 3, None, shared=False).node_of_path.tolist())) == 2


def test_domains_that_the_alignment_does_not_mention_speak_the_shared_names() -> None:
    paths = [("ad", "a", None, None), ("video", "a", None, None), ("text", "x", None, None), ("text", "a", None, None)]
    tree = Tree(frame(paths), 3, aligned([("text", "x", "a")]), shared=True)
    node = dict(zip(tree.raw.rows(), tree.node_of_path.tolist(), strict=True))
    assert node[paths[0]] == node[paths[1]] == node[paths[2]] != node[paths[3]]


def test_what_is_unmapped_is_named_where_it_parts_from_the_others() -> None:
    paths = [
        ("ad", "sport", "ball", None),
        ("ad", "home", "sofa", "red"),
        ("ad", "home", "sofa", "blue"),
        ("video", "ballgames", "football", "cup"),
        ("video", "ballgames", None, None),
        ("video", "news", "local", None),
        (None, "odd", None, None),
        ("video", None, "lost", None),
    ]
    tree = Tree(frame(paths), 3, aligned([("video", "ballgames", "sport/ball")]), True)
    count = {path: 10**place for place, path in enumerate(paths)}
    events = np.array([count[path] for path in tree.raw.rows()])
    samples = np.where(np.arange(len(events)) % 2, 3, 0)

    def named(most: int = 10) -> list[tuple[object, ...]]:
        found = unmapped(tree, events, samples, Taxonomy(align="map.csv", separator=" > "), most)
        return [(row["domain"], row["path"], row["events"]) for row in found]

    whole = [("video", "news", 100_000), ("video", "ballgames > football", 1_000), ("ad", "home", 110)]
    assert named() == whole and named(2) == whole[:2]


def test_one_domain_is_unmapped_where_the_alignment_does_not_speak_of_it() -> None:
    paths = [("ad", "a", "b", None), ("ad", "c", "d", None)]
    ones = np.ones(2, np.int64)
    tree = Tree(frame(paths), 3, aligned([("ad", "a", "x")]), True)
    found = unmapped(tree, ones, ones, Taxonomy(align="map.csv"))
    assert [(row["path"], row["events"], row["samples"]) for row in found] == [("a/b", 1, 1), ("c", 1, 1)]
    assert not unmapped(Tree(frame(paths), 3, None, True), ones, ones, Taxonomy())


@settings(max_examples=60, deadline=None, derandomize=True)
@given(PATHS, st.booleans())
def test_what_is_not_unmapped_meets_at_every_level(paths: list[tuple[str | None, ...]], shared: bool) -> None:
    tree = Tree(frame(paths), 3, None, shared)
    ones = np.ones(len(paths), np.int64)
    found = unmapped(tree, ones, ones, Taxonomy(separator="|"), most=100)
    named = [(row["domain"], tuple(str(row["path"]).split("|"))) for row in found]
    if len({path[0] for path in paths} - {None}) < 2:
        assert not named
        return
    for path in paths:
        others = [real(other) for other in paths if other[0] != path[0]]
        parts = real(path)
        apart = [
            n
            for n in range(1, len(parts) + 1)
            if not any(o[:n] == parts[:n] and (shared or not path[0]) for o in others)
        ]
        mine = [name for domain, name in named if domain == path[0] and parts[: len(name)] == name]
        assert mine == ([parts[: apart[0]]] if apart and path[0] is not None else [])
    assert sum(int(row["events"]) for row in found) == sum(
        any(domain == path[0] and real(path)[: len(name)] == name for domain, name in named) for path in paths
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("domain,path\nad,a\n", "no column 'shared'"),
        ("domain,path,shared\nadd,a,x\n", "line 2: no log has the domain 'add'; did you mean 'ad'"),
        ("domain,path,shared\nad,a/b/c,x\n", "line 2: path 'a/b/c' has 3 levels, the logs declare 2"),
        ("domain,path,shared\nad,a,x\nad,a,y\n", "line 3: 'a' of 'ad' is aligned twice"),
        ("domain,path,shared\nad,,y\n", "line 2: domain, path and shared must all be filled in"),
        ("", "cannot be read"),
    ],
)  # fmt: skip
def test_alignment_that_cannot_be_used(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "align.csv").write_text(text)
    with pytest.raises(InputError, match=expected):
        read_alignment(tmp_path / "align.csv", Taxonomy(), ["ad", "video"], 2)


def test_a_store_of_two_taxonomies(tmp_path: Path) -> None:
    write(tmp_path, "events", [event(0, 1, 3), event(0, 2, 4)])
    write(
        tmp_path,
        "text",
        [{"user": 0, "item": 91, "ts": 5, "topic": "odd"}, {"user": 0, "item": 92, "ts": 6, "topic": "x"}],
    )
    write(tmp_path, "samples", anchors())
    (tmp_path / "align.csv").write_text("domain,path,shared\ntext,odd,g1\n")
    text = {
        "path": "text.parquet",
        "user": "user",
        "item": "item",
        "time": EVENTS["time"],
        "domain": "text",
        "category": ["topic"],
    }
    raw = DESCRIPTION | {
        "events": [EVENTS | {"domain": "ad"}, text],
        "samples": SAMPLES | {"domain": "ad"},
        "taxonomy": {"align": "align.csv"},
    }
    store = build(tmp_path, raw)
    top = store.ancestors[store.column("category"), 0]
    assert top[0] == top[2] and len(set(top.tolist())) == 3
    met = [(row["domain"], row["level"], row["events_meeting"]) for row in store.manifest["meeting"]]
    assert met == [("ad", 1, 1), ("text", 1, 1), ("ad", 2, 0), ("text", 2, 0)]
    missed = {(row["domain"], row["path"]): (row["events"], row["samples"]) for row in store.manifest["unmapped"]}
    assert missed == {("ad", "g1/s1"): (1, 2), ("ad", "g1/s3"): (0, 1), ("ad", "g0"): (1, 1), ("text", "x"): (1, 0)}
    del raw["samples"]["domain"]
    with pytest.raises(InputError, match=r"samples\.domain is missing"):
        build(tmp_path, raw, out="other")
