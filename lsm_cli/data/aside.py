"""Writing aside: a folder that one process at a time may hold, until what is in it takes its name."""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path

from lsm_cli.errors import LsmError


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
