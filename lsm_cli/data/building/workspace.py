"""Writing a store so that a half-written one never looks whole.

Everything goes into a sibling folder, see `aside.replacing`, which takes the store's name when all files are on disk.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
import polars as pl

from lsm_cli.data.aside import remove, replacing
from lsm_cli.errors import InputError, LsmError


class ColumnFile:
    """A .npy file of known length and type that is appended to, hashed on the way."""

    def __init__(self, file: Path, dtype: np.dtype | type, rows: int, width: int | None = None) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        self.file, self.dtype, self.rows, self.done = file, np.dtype(dtype), rows, 0
        self.hash = hashlib.sha256()
        self._handle: IO[bytes] = file.open("wb")
        shape = (rows,) if width is None else (rows, width)
        header = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self, header)

    def write(self, data: bytes | memoryview) -> None:
        self.hash.update(data)
        self._handle.write(data)

    def append(self, values: np.ndarray) -> None:
        """Add rows; they are cast to the file's type, which the caller has chosen to fit."""
        values = np.ascontiguousarray(values, self.dtype)
        self.done += len(values)
        if values.size:
            self.write(as_bytes(values))

    def close(self) -> None:
        self._handle.flush()
        os.fsync(self._handle.fileno())
        self._handle.close()
        if self.done != self.rows:
            raise LsmError(
                f"{self.file}: {self.done} rows written, {self.rows} expected; the logs changed while they were read"
            )


def as_bytes(values: np.ndarray) -> memoryview:
    """A contiguous array's memory."""
    return memoryview(values.reshape(-1).view(np.uint8))  # type: ignore[arg-type]


class Workspace:
    """The folder a store is written to before it has its name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, dict[str, int | str]] = {}  # relative path -> bytes, sha256

    def column(self, name: str, dtype: np.dtype | type, rows: int, width: int | None = None) -> ColumnFile:
        return ColumnFile(self.folder / name, dtype, rows, width)

    def close(self, *columns: ColumnFile) -> None:
        for column in columns:
            column.close()
            self._note(column.file, column.hash.hexdigest())

    def array(self, name: str, values: np.ndarray) -> None:
        """Write a whole array."""
        column = self.column(name, values.dtype, len(values), values.shape[1] if values.ndim == 2 else None)
        column.append(values)
        self.close(column)

    def note(self, name: str) -> None:
        """Take in a file that something else has written."""
        file = self.folder / name
        with file.open("rb") as handle:
            digest = hashlib.file_digest(handle, "sha256").hexdigest()
            os.fsync(handle.fileno())
        self._note(file, digest)

    def _note(self, file: Path, digest: str) -> None:
        self.files[file.relative_to(self.folder).as_posix()] = {"bytes": file.stat().st_size, "sha256": digest}

    def scratch(self, name: str) -> Path:
        """A folder for intermediate files; gone when the build is done."""
        folder = self.folder / ".scratch" / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder


@contextmanager
def open_workspace(out: Path, overwrite: bool) -> Iterator[Workspace]:
    """Hold the workspace of a store; when the block ends well, the store gets its name.

    Raises:
        InputError: something is in the way at `out`, it cannot be written to, or the disk is full.
        LsmError: another build is writing the same store.
    """
    with replacing(out, "build", lambda: _check_free(out, overwrite)) as folder:
        try:
            yield Workspace(folder)
        except pl.exceptions.PolarsError as error:
            if "No space left" in str(error):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from None
            raise
        remove(folder / ".scratch")


def _check_free(out: Path, overwrite: bool) -> None:
    if not out.exists():
        return
    if out.is_dir() and not any(out.iterdir()):
        return
    if not (out / "manifest.json").is_file() or not (out / "events").is_dir():
        raise InputError(f"{out}: exists and is not a store; choose another --out")
    if not overwrite:
        raise InputError(f"{out}: a store is there already; add --overwrite to replace it or choose another --out")
