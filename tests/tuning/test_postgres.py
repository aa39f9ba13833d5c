"""A study in PostgreSQL, against a real server that is started for the test and thrown away."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from optuna.trial import TrialState

from lsm_cli.tuning.plan import Plan
from lsm_cli.tuning.study import Tuning
from tests.tuning.helpers import found, kill_tree, start, tune

pytestmark = pytest.mark.slow


def _binary(name: str) -> str:
    found = shutil.which(name) or next(map(str, Path("/usr/lib/postgresql").glob(f"*/bin/{name}")), None)
    if found is None:
        pytest.skip(f"no {name} on this machine (Debian: apt-get install postgresql)")
    return found


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of an empty database behind a password, reached by TCP."""
    pytest.importorskip("psycopg", reason="the extra `postgres` is not installed")
    initdb, postgres = _binary("initdb"), _binary("postgres")
    folder = tmp_path_factory.mktemp("postgres")
    as_user: dict[str, int] = {}
    if os.getuid() == 0:  # the server refuses to be root
        user = next((pwd.getpwnam(name) for name in ("postgres", "nobody") if _exists(name)), None)
        if user is None:
            pytest.skip("the server refuses root, and there is no user postgres or nobody")
        as_user = {"user": user.pw_uid, "group": user.pw_gid}
        for place in (folder, *folder.parents):
            if place.owner() == "root" and place.is_relative_to("/tmp") and place != Path("/tmp"):
                place.chmod(0o755)
        os.chown(folder, user.pw_uid, user.pw_gid)
    data, port = folder / "data", 40_000 + os.getpid() % 20_000
    (folder / "password").write_text("very-secret")
    (folder / "password").chmod(0o644)
    make = [initdb, "-D", data, "-U", "lsm", "--auth=scram-sha-256", f"--pwfile={folder / 'password'}", "-N"]
    subprocess.run([str(word) for word in make], check=True, capture_output=True, cwd="/", **as_user)
    options = ["-c", f"port={port}", "-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={folder}"]
    process = subprocess.Popen([postgres, "-D", str(data), *options], cwd="/", stderr=subprocess.DEVNULL, **as_user)
    url = f"postgresql://lsm:very-secret@127.0.0.1:{port}/postgres"
    try:
        _wait(url)
        yield url
    finally:
        process.send_signal(signal.SIGINT)  # at once, whoever is connected
        process.wait(30)


def _exists(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


def _wait(url: str) -> None:
    import psycopg

    for _ in range(300):
        try:
            psycopg.connect(url).close()
            return
        except psycopg.OperationalError:
            time.sleep(0.1)
    pytest.fail("the server did not start")


def test_a_killed_study_goes_on_from_another_folder_with_two_workers(
    server: str, small_store: Path, tmp_path: Path
) -> None:
    """Machine one is killed in the middle; machine two has the same name of study, the same plan, another folder."""
    one, two = tmp_path / "one" / "shared", tmp_path / "two" / "shared"
    more = ("--trials", 8, "--workers", 2, "--storage", server)
    process = start(small_store, one, *more)
    url = server.replace("postgresql://", "postgresql+psycopg://")

    def seen() -> list:
        return Tuning(Plan.load(one), one, url, 8).trials() if (one / "study.json").exists() else []

    while sum(trial.state.is_finished() for trial in seen()) < 3 and process.poll() is None:
        time.sleep(0.1)
    kill_tree(process, seen())
    ended = {trial.number: trial for trial in seen() if trial.state.is_finished()}
    assert 3 <= len(ended) < 8
    value = found(tune(small_store, two, *more, "--json"))
    assert value["trials"]["complete"] + value["trials"]["pruned"] == 8 and value["trials"]["running"] == 0
    after = seen()
    assert [trial.number for trial in after] == list(range(8))
    assert all(after[number] == trial for number, trial in ended.items())
    assert any(trial.state == TrialState.COMPLETE for trial in after)
    for file in (*one.glob("*.json"), *two.glob("*.json"), *two.glob("*.html"), *two.glob("workers/*")):
        assert "very-secret" not in file.read_text(), file
    assert "very-secret" not in str(value) and "lsm:***@" in value["storage"]


def test_a_server_that_is_not_there_is_one_sentence(server: str, small_store: Path, tmp_path: Path) -> None:
    for url, word in (
        (server.replace("very-secret", "wrong"), "password"),
        (server.replace("127.0.0.1:4", "127.0.0.1:1"), ""),
    ):
        result = tune(small_store, tmp_path / "s", "--storage", url)
        assert result.exit_code == 1 and "cannot be opened" in result.stderr and word in result.stderr
        assert not (tmp_path / "s").exists(), "nothing half-written"
        assert "Traceback" not in result.output and "very-secret" not in result.stderr
