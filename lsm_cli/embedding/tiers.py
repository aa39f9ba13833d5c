"""Where the rows of tables lie that are larger than the device: in host memory, or in a file.

`device` keeps every table whole where the model computes. `host` and `file` keep tables whole in the machine's memory
or in a scratch file mapped into it, and the rows most used on the device (see `embedding.cached`); tables that are no
larger than their cache stay on the device. The scratch file has no name and goes with the process, however it ends:
what is kept of a run are its checkpoints, which hold whole tables and are the same for all tiers.
"""

from __future__ import annotations

import math
import mmap
import os
import tempfile
from dataclasses import dataclass

import torch
from torch import Tensor

from lsm_cli.errors import LsmError
from lsm_cli.options import EngineOptions
from lsm_cli.report.console import size

LEAST = 4096  # rows of a cache that is given as a share


@dataclass(frozen=True)
class Tier:
    """Where tables lie and how much of them the device holds.

    Attributes:
        kind: `device`, `host` or `file`.
        cache: share of a table's rows (at most 1; `LEAST` rows at least), or a number of rows, that the device holds.
    """

    kind: str = "device"
    cache: float = 1.0

    @classmethod
    def of(cls, options: EngineOptions) -> Tier:
        return cls(options.table_tier, options.cache_rows)

    def held(self, rows: int) -> int:
        """How many of a table's rows have room on the device."""
        if self.kind == "device":
            return rows
        return min(rows, max(round(self.cache * rows), LEAST) if self.cache <= 1 else round(self.cache))

    def room(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Zeros in host memory or in a file.

        Raises:
            LsmError: the disk has no room for the file.
        """
        if self.kind != "file":
            return torch.zeros(shape, dtype=dtype)
        wide = math.prod(shape) * dtype.itemsize
        try:
            with tempfile.TemporaryFile() as file:
                # all of it now: a disk that is full later would end the process (SIGBUS)
                getattr(os, "posix_fallocate", _truncate)(file.fileno(), 0, wide)
                mapped = mmap.mmap(file.fileno(), wide)
        except OSError as error:
            raise LsmError(
                f"engine.table_tier = 'file': no room for a table of {size(wide)} in {tempfile.gettempdir()} "
                f"({error.strerror}); let TMPDIR name a folder with room, or use engine.table_tier=host"
            ) from None
        return torch.frombuffer(mapped, dtype=dtype).view(shape)


ON_DEVICE = Tier()


@dataclass
class Counts:
    """What became of the distinct rows that steps asked for.

    Attributes:
        asked: rows; waited: of them brought in when asked for; ahead: brought in before, for this very use.
        written: rows written back; pieces: reads that were larger than the cache.
    """

    asked: int = 0
    waited: int = 0
    ahead: int = 0
    written: int = 0
    pieces: int = 0

    @property
    def hit(self) -> float:
        """Share of the rows that were on the device anyway."""
        return 1 - (self.waited + self.ahead) / max(self.asked, 1)


def _truncate(file: int, start: int, size: int) -> None:
    """Where the system cannot reserve (macOS)."""
    os.ftruncate(file, start + size)
