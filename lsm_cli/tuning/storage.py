"""Where a study lives: a journal file, SQLite or PostgreSQL, so that several processes and machines share it.

A process may be killed at any moment. The journal's lock is the kernel's own (`flock`), which goes with the process,
and whoever gets it finds whole lines: what a killed writer or a full disk left of its last line is cut off, as nobody
was told that it had been written.
"""

from __future__ import annotations

import fcntl
import os
import re
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage, get_storage
from optuna.storages.journal import JournalFileBackend

from lsm_cli.errors import InputError, LsmError

JOURNAL = "journal.log"
POSTGRES = re.compile(r"(postgresql|postgres)(\+\w+)?://")
SQLITE = re.compile(r".*\.(db|sqlite|sqlite3)")

optuna.logging.set_verbosity(optuna.logging.ERROR)
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


class JournalLock:
    """The lock of a journal file, as Optuna's file backend wants it: held by a kernel lock beside the file."""

    def __init__(self, path: str) -> None:
        self.path, self.handle = path, -1

    def acquire(self) -> bool:
        handle = os.open(f"{self.path}.lock", os.O_CREAT | os.O_RDWR, 0o666)
        fcntl.flock(handle, fcntl.LOCK_EX)
        self.handle = handle  # ours alone until release
        self._mend()
        return True

    def release(self) -> None:
        os.close(self.handle)

    def _mend(self) -> None:
        """Cut off a last line that does not end."""
        with open(self.path, "r+b") as file:
            end = file.seek(0, os.SEEK_END)
            if not end:
                return
            file.seek(end - 1)
            if file.read(1) == b"\n":
                return
            file.seek(max(0, end - (1 << 20)))
            tail = file.read()
            file.truncate(end - len(tail) + tail.rfind(b"\n") + 1)


def resolve(given: str | None, folder: Path) -> str:
    """The URL or path of a study's storage: `--storage`, or the journal in the study's folder.

    Raises:
        InputError: it is none of the three kinds, or PostgreSQL's driver is missing.
    """
    if given is None:
        return str(folder / JOURNAL)
    if POSTGRES.match(given):
        try:
            import psycopg  # noqa: F401
        except ImportError:
            raise InputError(
                "--storage: PostgreSQL needs a driver that is not installed; pip install 'lsm-cli[postgres]'"
            ) from None
        return POSTGRES.sub("postgresql+psycopg://", given, count=1)
    if given.startswith("sqlite:///"):
        return given
    if "://" in given:
        raise InputError(
            f"--storage {hidden(given)!r}: give a journal file, sqlite:///FILE or postgresql://USER@HOST/DATABASE"
        )
    return f"sqlite:///{given}" if SQLITE.fullmatch(given) else given


def hidden(url: str) -> str:
    """A URL without its password, to be shown."""
    return re.sub(r"(://[^:/@]+):[^@]*@", r"\1:***@", url)


def connect(url: str) -> BaseStorage:
    """Open a storage, made if it is new.

    Raises:
        LsmError: it cannot be reached, written or read.
    """
    shown = hidden(url)
    try:
        if "://" not in url:
            Path(url).parent.mkdir(parents=True, exist_ok=True)
            return JournalStorage(JournalFileBackend(url, lock_obj=JournalLock(url)))  # type: ignore[arg-type]
        more: dict[str, Any] = {"pool_pre_ping": True}  # a server that was restarted is reached anew
        if url.startswith("sqlite"):
            Path(url.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
            more = {"connect_args": {"timeout": 120}}  # seconds to wait for another process's write
        held = _database(url, more)
        if url.startswith("sqlite"):
            _one_writer(held.engine)
        return get_storage(held)
    except (OSError, ValueError, KeyError, AssertionError) as error:
        raise LsmError(f"--storage {shown}: cannot be opened ({_first_line(error)})") from None
    except Exception as error:
        if type(error).__module__.startswith(("sqlalchemy", "alembic", "optuna")):
            raise LsmError(
                f"--storage {shown}: cannot be opened ({_first_line(error)}); is the server up, and does the database "
                "exist?"
            ) from None
        raise


@contextmanager
def reached(url: str) -> Iterator[None]:
    """Say in one sentence that a storage went away, or that its disk is full, while a study ran."""
    try:
        yield
    except Exception as error:
        away = isinstance(error, OSError | optuna.exceptions.StorageInternalError)
        if not away and not type(error).__module__.startswith("sqlalchemy"):
            raise
        raise LsmError(
            f"{hidden(url)}: the study could not be read or written ({_first_line(error)}); when that is mended, go on "
            "with the same command"
        ) from None


def _one_writer(engine: Any) -> None:
    """Let a transaction of SQLite hold the database from its first look, as it knows no `SELECT … FOR UPDATE`: else two
    workers may both find a trial waiting, and both take it.
    """
    from sqlalchemy import event

    engine.dispose()  # connections made before this was arranged

    @event.listens_for(engine, "connect")
    def connected(connection: Any, record: Any) -> None:
        connection.isolation_level = None  # transactions begin when we say so

    @event.listens_for(engine, "begin")
    def begun(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def _database(url: str, more: dict[str, Any], attempts: int = 5) -> RDBStorage:
    """Several processes may make the tables at once; those that lose the race find them the next time."""
    for attempt in range(attempts):
        try:
            return RDBStorage(url, engine_kwargs=more)
        except Exception as error:
            text = str(error).lower()
            if attempt + 1 == attempts or not ("already exists" in text or "duplicate" in text or "unique" in text):
                raise
            time.sleep(0.3 * (attempt + 1))
    raise AssertionError("unreachable")


def _first_line(error: BaseException) -> str:
    """One line of a driver's message; SQLAlchemy puts the driver's class in front."""
    error = error.__cause__ or error
    cause = getattr(error, "orig", None) or error
    return str(cause).strip().splitlines()[0] if str(cause).strip() else type(error).__name__


def dashboard(url: str) -> str:
    """The command that shows the study in a browser."""
    return f"optuna-dashboard {hidden(url)}"
