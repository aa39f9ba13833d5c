"""What does not fit in memory is done in pieces: half as large each time it did not, until it does.

Running out of memory tells nothing of the next batch but that it may be as large, so the number of pieces is kept, and
a run keeps it with its state. Work that has failed is begun again from the start.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TypeVar

import numpy as np
import torch

from lsm_cli.errors import LsmError

Result = TypeVar("Result")

REMEDY = (
    "lower train.batch_size or engine.token_budget, shorten the histories (model.max_len, search.top_k, search.reach) "
    "or narrow the model (model.dim)"
)


class Pieces:
    """In how many pieces the work on a batch goes.

    Args:
        what: is cut, in words.
        device: whose memory it takes.
        tell: hears what was decided, a sentence each time.

    Attributes:
        count: 1 until something did not fit.
    """

    def __init__(self, what: str, device: torch.device, tell: Callable[[str], None] = lambda text: None) -> None:
        self.what, self.device, self.tell, self.count = what, device, tell, 1

    def run(
        self,
        size: int,
        work: Callable[[Sequence[tuple[int, int]]], Result],
        again: Callable[[], None] = lambda: None,
    ) -> Result:
        """Do the work on a batch of `size` samples, again in smaller pieces where it runs out of memory.

        Args:
            work: is given the bounds of every piece, and must leave nothing behind when it fails.
            again: called before each further attempt.

        Raises:
            LsmError: it does not fit sample by sample either.
        """
        while True:
            try:
                return work(self.bounds(size))
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
            # out of the handler: the traceback holds what the failed work had allocated
            self._halve(size)
            again()

    def bounds(self, size: int) -> list[tuple[int, int]]:
        """(first, last + 1) of every piece of `size` samples; none is empty but that of an empty batch."""
        edges = np.linspace(0, size, min(self.count, max(size, 1)) + 1).round().astype(int).tolist()
        return list(pairwise(edges))

    def _halve(self, size: int) -> None:
        free(self.device)
        if self.count >= size:
            raise LsmError(
                f"the {self.what} of {size:,} samples does not fit in memory, not even one sample at a time; {REMEDY}"
            )
        self.count = min(2 * self.count, size)
        least = -(-size // self.count)
        self.tell(f"the {self.what} of {size:,} samples did not fit in memory; goes on in pieces of {least:,}")


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: of a GPU, of torch or numpy on the CPU."""
    refused = isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or refused


def free(device: torch.device) -> None:
    """Give back what nobody uses."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def random_state(device: torch.device) -> list[torch.Tensor]:
    """Where the generators of torch stand, on the host and on the device."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def restore(state: list[torch.Tensor], device: torch.device) -> None:
    """Put the generators back where they stood."""
    torch.set_rng_state(state[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[1], device)
