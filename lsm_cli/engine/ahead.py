"""Making things on a thread while others are used, in the same order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

From = TypeVar("From")
To = TypeVar("To")


def ahead(make: Callable[[From], To], items: Iterable[From], depth: int) -> Generator[To, None, None]:
    """`make` of every item, in order; with depth > 0 a thread is that many items ahead.

    An error in `make` is raised where its result is asked for. Closing the iterator ends the thread.
    """
    if not depth:
        yield from map(make, items)
        return
    made: deque[Future[To]] = deque()
    pool = ThreadPoolExecutor(1, thread_name_prefix="ahead")
    try:
        for item in items:
            made.append(pool.submit(make, item))
            if len(made) > depth:
                yield made.popleft().result()
        while made:
            yield made.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
