"""Wrong descriptions and logs: each ends in one clear sentence, and leaves nothing behind."""

# ruff: noqa: E501 (the cases are tables)

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from lsm_cli.commands.build import find_description, parse_size
from lsm_cli.data.description import load_description
from lsm_cli.data.wording import hint
from lsm_cli.errors import InputError
from tests.data.building import DESCRIPTION, EVENTS, Row, anchors, build, event, sample, write

Raw = dict[str, Any]
Change = Callable[[Raw, Path], None]


def put(place: str, value: Any) -> Change:
    """Set a key of the description: "events.time.unit"; `...` removes it."""

    def change(raw: Raw, _: Path) -> None:
        *path, last = place.split(".")
        part: Any = raw
        for key in path:
            part = part[key] if isinstance(part, dict) else part[int(key)]
        if value is ...:
            del part[last]
        else:
            part[last] = value

    return change


def events(*rows: Row) -> Change:
    return lambda _, folder: write(folder, "events", list(rows))


def samples(*rows: Row) -> Change:
    return lambda _, folder: write(folder, "samples", list(rows))


def file(name: str, text: str | bytes) -> Change:
    def change(_: Raw, folder: Path) -> None:
        (folder / name).write_bytes(text.encode() if isinstance(text, str) else text)

    return change


def both(*changes: Change) -> Change:
    def change(raw: Raw, folder: Path) -> None:
        for one in changes:
            one(raw, folder)

    return change


ONE = event(0, 1, 3)
CSV = both(
    put("events.0.path", "events.csv"),
    put("events.0.category", []),
    put("events.0.fields", []),
    put("events.0.scenario", "feed"),
)

DESCRIPTIONS: dict[str, tuple[Change, str]] = {
    "unknown key": (put("events.0.catgory", ["c1"]), r"events\[0\]\.catgory: unknown key; did you mean 'category'\?"),
    "unknown table": (put("sample", {}), r"sample: unknown key; did you mean 'samples'\?"),
    "unknown key within": (put("events.0.time.unt", "s"), r"events\[0\]\.time\.unt: unknown key; did you mean 'unit'\?"),
    "no name": (put("name", ...), r"name is missing"),
    "name that is no word": (put("name", "a b"), r"name: 'a b' should be a plain word"),
    "no events": (put("events", []), r"events: at least one is needed"),
    "no item": (put("events.0.item", ...), r"events\[0\]\.item is missing"),
    "no user": (put("events.0.user", ...), r"events\[0\]\.user is missing"),
    "no labels": (put("samples.labels", ...), r"samples: say what was observed: labels ="),
    "half of the long form": (put("samples.target", "kind"), r"samples: target and label go together"),
    "two ways to split": (put("split.valid", 0.1), r"split: column and valid/test both say how"),
    "no such date": (put("split", {"valid": "2024-13-01"}), r"split\.valid: '2024-13-01' is not a moment; write e\.g\."),
    "shares that leave nothing": (put("split", {"valid": 0.5, "test": 0.5}), r"split: valid and test leave nothing to train on"),
    "unit and format": (put("events.0.time.format", "%Y"), r"events\[0\]\.time: unit is for numbers and format is for text"),
    "unknown unit": (put("events.0.time.unit", "h"), r"events\[0\]\.time\.unit: must be 's', 'ms' or 'us', not 'h'"),
    "wrong window": (put("samples.statistics.popularity", ["7 days"]), r"samples\.statistics: popularity: '7 days' is not a window"),
    "field of our own name": (put("events.0.fields", ["item"]), r"events\[0\]: fields: 'item' is a name of our own; rename it"),
    "field named as a role": (put("events.0.fields", ["target"]), r"events\[0\]: fields: 'target' is a name of our own; rename it"),
    "split at no moment": (put("split", {"valid": float("inf")}), r"split\.valid: inf is not a moment; write e\.g\."),
    "field that names no file": (put("events.0.fields", ["a/b"]), r"fields: 'a/b' cannot name a file"),
    "wrong type": (put("events.0.item", 3), r"events\[0\]\.item: must be a string, not 3"),
    "actions of nothing": (put("events.0.actions", {"1": "x"}), r"events\[0\]: actions renames values of a column"),
    "negative negatives": (
        put("samples", {"from_events": {"negatives": 0}}),
        r"samples\.from_events\.negatives: must be at least 1, not 0",
    ),
    "made and read": (put("samples.from_events", {}), r"from_events makes the samples, so .* must go"),
    "long separator": (put("events.0.separator", "::"), r"events\[0\]: separator '::' must be a single byte"),
}  # fmt: skip

LOGS: dict[str, tuple[Change, str]] = {
    "missing file": (put("events.0.path", "event.parquet"), r"events\[0\]\.path: there is no file .*event\.parquet"),
    "glob without files": (put("events.0.path", "logs/*.csv"), r"events\[0\]\.path: there is no file .*logs/\*\.csv"),
    "unknown format": (both(put("events.0.path", "events.dat"), file("events.dat", "x")), r"events\.dat: cannot tell the format"),
    "not parquet": (file("events.parquet", "user,item\n"), r"events\.parquet: cannot be read"),
    "missing column": (put("events.0.item", "itm"), r"events\[0\]\.item: .*events\.parquet has no column 'itm'; did you mean 'item'\?"),
    "missing column of the samples": (put("samples.labels.click", "lable"), r"samples\.label\.click: .* no column 'lable'; did you mean 'label'"),
    "empty csv": (both(CSV, file("events.csv", "")), r"events\.csv: the file is empty"),
    "csv with a header only": (both(CSV, file("events.csv", "user,item,ts\n")), r"events\.csv: has no rows; events\[0\] needs some"),
    "headerless csv of another width": (
        both(CSV, file("events.csv", "1,2,3\n"), put("events.0.columns", ["user", "item"])),
        r"events\.csv has 3 columns, `columns` names 2",
    ),
    "csv with a torn line": (both(CSV, file("events.csv", "user,item,ts\n1,2,3\n1,2,3,4,5\n")), r"events\.csv: cannot be read.*more fields than the header"),
    "csv with half a quotation": (both(CSV, file("events.csv", 'user,item,ts\n1,2,3\n"1,2,3\n1,2,3\n')), r"events\.csv: cannot be read.*without its second"),
    "csv in latin-1": (both(CSV, file("events.csv", b"user,item,ts\n1,caf\xe9,3\n")), r"events\.csv: cannot be read.*save it as UTF-8"),
    "time that is text": (
        both(CSV, file("events.csv", "user,item,ts\n1,2,yesterday\n1,2,today\n")),
        r"column 'ts' \(events\[0\]\.time\) cannot be read as a time, e\.g\. 'yesterday'",
    ),
    "numbers without unit": (put("events.0.time", "ts"), r"events\[0\]\.time: column 'ts' holds numbers and nothing says of what"),
    "milliseconds read as seconds": (
        both(events(event(0, 1, 1_700_000_000_000)), put("samples.statistics", ...)),
        r"column 'ts' .* reaches the year 2200 and beyond when read as s, e\.g\. 1700000000000; is it unit = \"ms\"\?",
    ),
    "negative times": (events(event(0, 1, -3)), r"column 'ts' \(events\[0\]\.time\) is negative in every row"),
    "user always empty": (events(ONE | {"user": None}), r"column 'user' \(events\[0\]\.user\) is empty in every row"),
    "no rows": (lambda _, folder: pl.DataFrame(schema={"user": pl.Int64, "item": pl.Int64, "ts": pl.Int64, "scenario": pl.String, "brand": pl.Int64, "c1": pl.String, "c2": pl.String}).write_parquet(folder / "events.parquet"), r"events\.parquet: has no rows"),
    "a list where a value belongs": (events(ONE | {"item": [1, 2]}), r"column 'item' .* holds lists or structs"),
    "value in another notation": (
        both(put("samples.value", "paid"), samples(*({**row, "paid": "EUR 10,50"} for row in anchors()))),
        r"samples\.parquet: column 'paid' \(samples\.value\) says 'EUR 10,50'; it takes finite numbers",
    ),
    "infinite value": (
        both(put("samples.value", "paid"), samples(*({**row, "paid": float("inf")} for row in anchors()))),
        r"samples\.parquet: column 'paid' \(samples\.value\) says inf; it takes finite numbers",
    ),
    "no target anywhere": (
        both(
            put("samples.labels", {}), put("samples.label", "label"), put("samples.target", "kind"),
            samples(*({**row, "kind": None} for row in anchors())),
        ),
        r"samples\.parquet: column 'kind' \(samples\.target\) is empty in every row; name another column",
    ),
    "events in a unit too fine": (
        both(
            put("events.0.time.unit", "ms"),
            events(*({**event(0, 1, 3), "ts": 1_700_000_000 + n} for n in range(3))),
            samples(*({**row, "ts": row["ts"] + 1_700_000_000} for row in anchors())),
        ),
        r"column 'ts' \(events\[0\]\.time\) ends in 1970-01-20 16:13:20 when read as ms, years before the requests; is it unit = \"s\"\?",
    ),
    "samples in a unit too fine": (
        both(
            put("samples.time.unit", "us"),
            events(*({**event(0, 1, 3), "ts": 1_700_000_000 + n} for n in range(3))),
            samples(*({**row, "ts": row["ts"] + 1_700_000_000_000} for row in anchors())),
        ),
        r"column 'ts' \(samples\.time\) ends in 1970-01-20 .* when read as us, years before the events; is it unit = \"ms\"\?",
    ),
    "label of other values": (samples(*anchors(), sample(0, 1, 9, 5, "train")), r"column 'label' is a label and says '5'; labels are 0, 1"),
    "one class": (samples(*(row | {"label": 1} for row in anchors())), r"target 'click' is 1 in every training sample"),
    "never observed": (samples(*(row | {"label": None if row["split"] == "train" else 1} for row in anchors())), r"observed in no training sample"),
    "no training rows": (samples(*(row | {"split": "test"} for row in anchors())), r"split: no training rows; the samples run from"),
    "no validation rows": (samples(*anchors()[:2]), r"split: no validation rows; .*give every split rows in the split column"),
    "unknown names of splits": (samples(*(row | {"split": "a"} for row in anchors())), r"column 'split' never says train, valid or test"),
    "split after the last sample": (put("split", {"valid": "2030-01-01"}), r"split: no validation rows; .*move split\.valid"),
    "split backwards": (put("split", {"valid": "2030-01-01", "test": "2020-01-01"}), r"split\.test: .* is not after split\.valid"),
    "number for dates": (both(put("samples.time", {"column": "day"}), samples(*(r | {"day": "2024-01-01"} for r in anchors())), put("split", {"valid": 3})), r"split\.valid: 3 is a number but the samples' time has no unit"),
    "alignment that is not there": (put("taxonomy", {"align": "map.csv"}), r"map\.csv: taxonomy\.align cannot be read"),
    "item column not in the table of items": (
        both(file("items.csv", "id,kind\n1,2\n"), put("items", {"path": "items.csv", "item": "iid", "fields": ["kind"]})),
        r"items\.item: .*items\.csv has no column 'iid'",
    ),
    "where on a column that is not there": (put("events.0.where", {"kind": 1}), r"events\[0\]\.where: .* has no column 'kind'"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "expected"), (DESCRIPTIONS | LOGS).values(), ids=(DESCRIPTIONS | LOGS).keys())
def test_wrong_input_is_one_clear_sentence(tmp_path: Path, change: Change, expected: str) -> None:
    write(tmp_path, "events", [ONE])
    write(tmp_path, "samples", anchors())
    raw = copy.deepcopy(DESCRIPTION)
    change(raw, tmp_path)
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(InputError, match=expected) as caught:
        build(tmp_path, raw)
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_lists_that_are_no_lists(tmp_path: Path) -> None:
    write(tmp_path, "samples", anchors())
    block = {"item": "item", "time": EVENTS["time"]}
    with pytest.raises(InputError) as caught:
        build(tmp_path, DESCRIPTION | {"events": [block], "samples": DESCRIPTION["samples"] | {"layout": "lists"}})
    lines = str(caught.value).splitlines()
    assert [line.split(": ")[1] for line in lines] == ["events[0].item", "events[0].time"]
    assert all(line.endswith("is Int64, not a list") for line in lines)


def test_everything_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    write(tmp_path, "events", [ONE])
    write(tmp_path, "samples", anchors())
    raw = copy.deepcopy(DESCRIPTION)
    for change in (
        put("events.0.itm", "x"),
        put("samples.usr", "y"),
        put("split.column", 3),
        put("events.0.time.unit", "d"),
    ):
        change(raw, tmp_path)
    with pytest.raises(InputError) as caught:
        build(tmp_path, raw)
    assert len(str(caught.value).splitlines()) == 4
    raw = copy.deepcopy(DESCRIPTION)
    for change in (put("events.0.item", "x"), put("samples.user", "y"), put("samples.labels.click", "z")):
        change(raw, tmp_path)
    with pytest.raises(InputError) as caught:
        build(tmp_path, raw)
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b'name = "a"\nname = "b"\n', "not valid TOML: Cannot overwrite a value"),
        (b"name = ", "not valid TOML"),
        (b"\xff\xfe", "cannot be read"),
        (None, "no such file"),
    ],
)
def test_unreadable_descriptions(tmp_path: Path, text: bytes | None, expected: str) -> None:
    path = tmp_path / "dataset.toml"
    if text is not None:
        path.write_bytes(text)
    with pytest.raises(InputError, match=re.escape(str(path)) + ".*" + expected):
        load_description(path)


def test_one_events_table_may_be_written_without_double_brackets(tmp_path: Path) -> None:
    write(tmp_path, "events", [ONE])
    write(tmp_path, "samples", anchors())
    assert build(tmp_path, DESCRIPTION | {"events": EVENTS}).events == 1


def test_names_and_sizes() -> None:
    assert parse_size("2GiB") == 2 << 30 and parse_size("700 MB") == 700_000_000 and parse_size("1.5g") == 1_500_000_000
    for text in ("", "two", "GiB", "1.2.3G", "5 parsecs"):
        with pytest.raises(InputError, match="not a size"):
            parse_size(text)
    with pytest.raises(InputError, match="the least"):
        parse_size("1MiB")
    with pytest.raises(InputError, match="no such file or shipped dataset; did you mean 'taobao'"):
        find_description("taoboa")


def test_a_binary_file_does_not_write_on_the_terminal() -> None:
    assert hint("user", ["\x1b[2J\x07"]) == "; there is '\\x1b[2J\\x07'" and hint("user", ["nom"]) == "; there is nom"
