"""Which part of a step time belongs to. Costs one comparison a region while nobody measures.

The training step, the feed and the scoring loop name their regions with `part`; `following` adds those inside a model
by hooks on its modules, so that models know nothing of being measured. Regions nest, and time belongs to the innermost
one: whatever a step spends is spent in exactly one part, so the parts add up to the step.

On a GPU the stamps are events in the stream: nothing waits for the device before the last step, and a part's time is
what the device spent on it, or spent idle waiting for it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import pairwise
from typing import Any

import torch

DATA, SEARCH, COPY, FETCH = "data", "search", "copy", "fetch"
NUMBERS, ATTENTION, TOWER, LOSS = "numbers", "attention", "tower", "loss"
BACKWARD, OPTIMISER, ROWS, OTHER = "backward", "optimiser", "rows", "other"
MEANING = {
    DATA: "gathering the batch from the store's columns, or waiting for it",
    SEARCH: "finding the behaviours to read",
    COPY: "moving the batch to the device",
    FETCH: "distinct embedding rows of the batch, read from the tables",
    NUMBERS: "match masks, evidence, numeric features",
    ATTENTION: "candidate, temporal encodings and reading the history",
    TOWER: "crossing, hidden layers, heads",
    LOSS: "log loss, or the logits brought back",
    BACKWARD: "gradients of everything above",
    OPTIMISER: "dense weights: clipping, AdamW, averaging",
    ROWS: "optimiser of the embedding rows and writing them back",
    OTHER: "between the parts",
}

_NOTHING = nullcontext()
_clock: Clock | None = None


def part(name: str) -> AbstractContextManager[Any]:
    """The region of a part of the step; nothing at all while nobody measures, and on other threads."""
    clock = _clock
    return _NOTHING if clock is None or clock.thread != threading.get_ident() else clock.part(name)


class Clock:
    """Stamps the moments at which a step turns from one part to another.

    Args:
        device: whose time is taken.
        watch: told the name of the part that begins.
        annotate: also name the parts in torch's profiler.
    """

    def __init__(
        self, device: torch.device, watch: Callable[[str], None] | None = None, annotate: bool = False
    ) -> None:
        self.device, self.watch, self.annotate = device, watch, annotate
        self.thread = threading.get_ident()
        self.stack: list[str] = []
        self.marks: list[tuple[str, Any]] = []  # a part, and when it began
        self.first = NUMBERS  # the part with which a model begins
        self.paused = False
        self._range: Any = None

    @property
    def now(self) -> str:
        """The part that is running."""
        return self.stack[-1] if self.stack else OTHER

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        self.stack.append(self.first if name == NUMBERS else name)
        self._mark()
        try:
            yield
        finally:
            self.stack.pop()
            self._mark()

    def turn(self, name: str) -> None:
        """From now on the innermost region is another part."""
        self.stack[-1] = name
        self._mark()

    def _mark(self) -> None:
        if self.paused:
            return
        name = self.now
        if self._range is not None:
            self._range.__exit__(None, None, None)
            self._range = None
        self.marks.append((name, self._stamp()))
        if self.watch is not None:
            self.watch(name)
        if self.annotate and self.stack:
            self._range = torch.profiler.record_function(name)
            self._range.__enter__()

    def _stamp(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def spent(self, bounds: list[int]) -> list[dict[str, float]]:
        """Seconds by part between neighbouring bounds, which are places among the marks; waits for a GPU."""
        self._mark()  # where the last part ends
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        found = []
        for low, high in pairwise(bounds):
            parts: dict[str, float] = {}
            for (name, began), (_, ended) in pairwise(self.marks[low : high + 1]):
                long = began.elapsed_time(ended) / 1e3 if self.device.type == "cuda" else ended - began
                parts[name] = parts.get(name, 0.0) + long
            found.append(parts)
        return found


@contextmanager
def following(clock: Clock, model: torch.nn.Module) -> Iterator[None]:
    """Measure on this thread: the regions of the loop, and those of the model between its modules."""
    global _clock
    handles = _hooks(clock, model)
    before, _clock = _clock, clock
    try:
        yield
    finally:
        _clock = before
        for handle in handles:
            handle.remove()


@contextmanager
def paused() -> Iterator[None]:
    """No stamps inside: what a CUDA graph is captured from takes no time of its own."""
    clock = _clock
    if clock is None:
        yield
        return
    before, clock.paused = clock.paused, True
    try:
        yield
    finally:
        clock.paused = before


def _hooks(clock: Clock, model: torch.nn.Module) -> list[Any]:
    """A forward pass begins with the numbers, goes on with the candidate and its readings, and ends in the tower; one
    with an encoder (two towers) begins with the history."""

    def turn(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            if clock.thread == threading.get_ident() and clock.stack:
                clock.turn(name)

        return hook

    numeric, reader, tower = (getattr(model, name, None) for name in ("numeric", "reader", "tower"))
    encodes = isinstance(getattr(model, "encoder", None), torch.nn.Module)
    clock.first = ATTENTION if encodes else NUMBERS
    handles = []
    if isinstance(numeric, torch.nn.Module):
        handles.append(numeric.register_forward_pre_hook(turn(NUMBERS)))
        handles.append(numeric.register_forward_hook(turn(ATTENTION if reader is not None else TOWER)))
    if isinstance(tower, torch.nn.Module):
        handles.append(tower.register_forward_pre_hook(turn(TOWER)))
    return handles
