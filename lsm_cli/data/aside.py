"""Writing aside: a folder that one process at a time may hold, until what is in it takes its name."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lsm_cli.errors import InputError, LsmError


@contextmanager
def replacing(out: Path, work: str, check: Callable[[], None], option: str = "--out") -> Iterator[Path]:
    """A folder beside `out` to write to, which takes that name when the block ends well: it is whole or absent.

    What was at `out` goes then, not before. A process that dies leaves the folder behind, which the next one sweeps
    away, or what was at `out` under another name, which the next one puts back.

    Args:
        work: what writes, in a word.
        check: raises where something is at `out` that is not to be replaced.
        option: by which the user chose `out`.

    Raises:
        InputError: it cannot be created, or the disk is full.
        LsmError: another process is writing there, or it could not be written.
    """
    out = out.absolute()
    folder, old = out.parent / f".{out.name}.{work}", out.parent / f".{out.name}.replaced"
    another = f"choose another {option}"
    check()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        handle = hold(folder, f"{out}: another {work} is writing there; wait for it or {another}")
    except OSError as error:
        raise InputError(f"{out}: cannot be created ({error.strerror}); {another}") from None
    try:
        if old.exists() and not out.exists():
            old.rename(out)  # a process died between the two renames below
            check()
        for stale in (*folder.iterdir(), old):
            remove(stale)
        yield folder
        for part in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
            _sync(part)
        if out.exists():
            out.rename(old)
        folder.rename(out)
        _sync(out.parent)
        remove(old)
    except OSError as error:
        named = error.filename if isinstance(error.filename, str) else None
        if named and not any(Path(named).is_relative_to(own) for own in (folder, out, old)):
            raise  # a file that was read
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = shutil.disk_usage(out.parent).free / 1e9
            raise InputError(f"{out}: the disk is full ({free:.1f} GB free there); make room or {another}") from None
        raise LsmError(f"{out}: could not be written ({error.strerror or error}); make room or {another}") from None
    finally:
        if ours(folder, handle):
            remove(folder)
        os.close(handle)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def hold(folder: Path, busy: str) -> int:
    """Make and lock a folder; the lock goes with the process, however it ends.

    Returns:
        a handle to be closed.

    Raises:
        LsmError: `busy`, when another process holds it.
        OSError: it cannot be made.
    """
    while True:
        folder.mkdir(exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if ours(folder, handle):
                return handle
        except BlockingIOError:
            os.close(handle)
            raise LsmError(busy) from None
        os.close(handle)  # what we locked was renamed or removed by a process that just ended


def ours(folder: Path, handle: int) -> bool:
    """Whether the folder of this name is still the one that was locked."""
    try:
        return os.fstat(handle).st_ino == folder.stat().st_ino
    except FileNotFoundError:
        return False


def remove(path: Path) -> None:
    """A file, a link or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def share(file: Path) -> None:
    """Let those read a file who can read its folder; safetensors writes for the owner alone."""
    file.chmod(file.parent.stat().st_mode & 0o666)
