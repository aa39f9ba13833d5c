"""`lsm build-sequences` as a user meets it: what it says, what --json holds, what --check shows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tomli_w

from lsm_cli.commands.build import build_sequences
from lsm_cli.errors import InputError
from lsm_cli.report.console import Console
from tests.data.building import DESCRIPTION, EVENTS, SAMPLES, anchors, event, write


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    write(tmp_path, "events", [event(0, 1, 3), event(0, 2, 4), event(1, 3, 5) | {"user": None}])
    write(tmp_path, "samples", anchors())
    path = tmp_path / "dataset.toml"
    path.write_text(tomli_w.dumps(DESCRIPTION))
    return path


def test_json_says_what_was_built(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(json=True)
    out = dataset.parent / "store"
    console.result(build_sequences(console, str(dataset), out))
    said = json.loads(capsys.readouterr().out)
    assert said["counts"] == {"users": 2, "events": 2, "samples": {"train": 2, "valid": 1, "test": 1}}
    assert said["dropped"]["events[0]"] == {"no user": 1} and said["store"] == str(out)
    assert said["positives"]["click"]["train"] == {"observed": 2, "positive": 1}
    assert said["bytes_per_event"] > 0 and said["build"]["events_per_second"] >= 0


def test_tables_and_the_next_command(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build_sequences(Console(), str(dataset.parent), dataset.parent / "store")  # a folder stands for its dataset.toml
    said = capsys.readouterr()
    for word in ("samples", "rows not used", "no user", "history p50", "bytes an event", "next: lsm train --recipe"):
        assert word in said.out
    assert "split" in said.err and "memory" in said.err


def test_what_is_unmapped_is_said_with_the_way_to_map_it(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build_sequences(Console(), str(dataset), dataset.parent / "store")
    assert "meet no other domain" not in capsys.readouterr().out  # one domain: nothing to map
    write(dataset.parent, "text", [{"user": 0, "item": 90 + n, "ts": 5, "topic": "odd"} for n in range(3)])
    text = {"path": "text.parquet", "user": "user", "item": "item", "time": EVENTS["time"], "category": ["topic"]}
    raw = DESCRIPTION | {
        "events": [EVENTS | {"domain": "ad"}, text | {"domain": "text"}],
        "samples": SAMPLES | {"domain": "ad"},
    }
    dataset.write_text(tomli_w.dumps(raw))
    found = build_sequences(Console(), str(dataset), dataset.parent / "store", overwrite=True)
    said = " ".join(capsys.readouterr().out.split())
    assert found["unmapped"][0] == {"domain": "text", "path": "odd", "events": 3, "samples": 0}
    for words in ("text odd 3 0", "[taxonomy]", "domain,path,shared"):
        assert words in said
    (dataset.parent / "map.csv").write_text("domain,path,shared\ntext,odd,g1\n")
    dataset.write_text(tomli_w.dumps(raw | {"taxonomy": {"align": "map.csv"}}))
    found = build_sequences(Console(), str(dataset), dataset.parent / "store", overwrite=True)
    assert "add lines to map.csv" in capsys.readouterr().out
    assert all(row["domain"] != "text" for row in found["unmapped"])


def test_quiet_and_notes(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(dataset.parent, "events", [event(77, 1, 3)])
    build_sequences(Console(quiet=True, json=True), str(dataset), dataset.parent / "store")
    assert capsys.readouterr() == ("", "")
    found = build_sequences(Console(quiet=True, json=True), str(dataset), dataset.parent / "store", overwrite=True)
    assert "no user of the samples occurs in the events" in found["notes"][0]


def test_check_shows_how_columns_are_understood(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = build_sequences(Console(), str(dataset), None, check=True)
    said = capsys.readouterr().out
    assert "1970-01-01 00:00:03" in said and "every column was understood" in said
    roles = {column["role"]: column for column in found["blocks"][0]["columns"]}
    assert roles["category1"]["column"] == "c1" and roles["time"]["read"].startswith("1970-01-01")
    assert sorted(path.name for path in dataset.parent.iterdir()) == [
        "dataset.toml",
        "events.parquet",
        "samples.parquet",
    ]


def test_check_names_what_cannot_be_understood(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (dataset.parent / "events.csv").write_text("user,item,ts\n1,2,yesterday\n")
    block = {key: value for key, value in EVENTS.items() if key not in ("scenario", "category", "fields")}
    raw = DESCRIPTION | {"events": [block | {"path": "events.csv"}]}
    dataset.write_text(tomli_w.dumps(raw))
    with pytest.raises(InputError, match="1 problem"):
        build_sequences(Console(), str(dataset), None, check=True)
    assert "column 'ts' (events[0].time) cannot be understood, e.g. 'yesterday'" in capsys.readouterr().err


def test_out_is_needed(dataset: Path) -> None:
    with pytest.raises(InputError, match="--out is missing"):
        build_sequences(Console(quiet=True), str(dataset), None)


def test_a_shipped_description_reads_from_root(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"events\[0\]\.path: there is no file .*UserBehavior\.csv"):
        build_sequences(Console(quiet=True), "taobao", tmp_path / "store", root=tmp_path)
