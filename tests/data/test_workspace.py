"""A store is whole or not there: killed builds, two builds at once, folders that are in the way."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lsm_cli.data.building import workspace
from lsm_cli.data.building.workspace import open_workspace
from lsm_cli.data.store import Store
from lsm_cli.errors import InputError, LsmError
from tests.data.building import anchors, build_rows, data_bytes, event, write

SCRIPT = """
import json, sys
from pathlib import Path
from tests.data.building import DESCRIPTION, build
while True:
    build(Path(sys.argv[1]), DESCRIPTION, overwrite=True)
    print("built", flush=True)
"""


def test_a_killed_build_leaves_no_store_that_looks_whole(tmp_path: Path) -> None:
    rows = [event(n % 40, n % 90, n) for n in range(4000)]
    write(tmp_path, "events", rows)
    write(tmp_path, "samples", anchors())
    expected = data_bytes(build_rows(tmp_path, rows, anchors(), out="expected"))
    generator = random.Random(0)
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    for _ in range(3):
        child = subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE)
        assert child.stdout is not None and child.stdout.readline()  # imports are done, the next build has begun
        time.sleep(generator.random() * 0.3)
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        if (tmp_path / "store").exists():
            assert data_bytes(Store.open(tmp_path / "store")) == expected
    assert data_bytes(build_rows(tmp_path, rows, anchors(), overwrite=True)) == expected
    assert not list(tmp_path.glob(".*"))


def test_an_exception_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), open_workspace(tmp_path / "store", False) as work:
        work.column("events/time.npy", "int32", 3)
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(workspace.ColumnFile, "write", full)
    with pytest.raises(InputError, match=r"the disk is full .* make room or choose another --out"):
        build_rows(tmp_path, [event(0, 1, 3)], anchors())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["events.parquet", "samples.parquet"]


def test_two_builds_of_one_store_do_not_mix(tmp_path: Path) -> None:
    with open_workspace(tmp_path / "store", False) as work:
        work.array("a.npy", workspace.np.arange(3))
        with (
            pytest.raises(LsmError, match="another build is writing there"),
            open_workspace(tmp_path / "store", False),
        ):
            pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store"]
    assert (tmp_path / "store" / "a.npy").is_file()


def test_what_is_in_the_way_stays(tmp_path: Path) -> None:
    store = build_rows(tmp_path, [event(0, 1, 3)], anchors())
    with pytest.raises(InputError, match="a store is there already; add --overwrite"):
        build_rows(tmp_path, [event(0, 1, 3)], anchors())
    assert Store.open(store.path).events == 1
    assert build_rows(tmp_path, [event(0, 1, 3)] * 2, anchors(), overwrite=True).events == 2
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "me.jpg").write_bytes(b"x")
    (tmp_path / "note").write_text("x")
    for name in ("photos", "note"):
        with pytest.raises(InputError, match="exists and is not a store"):
            build_rows(tmp_path, [event(0, 1, 3)], anchors(), out=name, overwrite=True)
    assert (tmp_path / "photos" / "me.jpg").exists() and (tmp_path / "note").read_text() == "x"
    with pytest.raises(InputError, match="cannot be created"):
        build_rows(tmp_path, [event(0, 1, 3)], anchors(), out="note/store")
    assert not list(tmp_path.glob(".*"))


def test_a_build_that_died_while_replacing_gives_the_old_store_back(tmp_path: Path) -> None:
    build_rows(tmp_path, [event(0, 1, 3)], anchors())
    (tmp_path / "store").rename(tmp_path / ".store.replaced")
    with pytest.raises(InputError, match="a store is there already"):
        build_rows(tmp_path, [event(0, 1, 3)], anchors())
    assert Store.open(tmp_path / "store").events == 1
