"""Several threads that work side by side, with torch's own threads dealt out to them.

Where the steps of a piece of work are short, torch's threads would meet at a barrier in every one of them: it is
faster to give each its own piece.
"""

from __future__ import annotations

import collections
import concurrent.futures
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch

SHARES = 4
MOST_AT_ONCE = 8
"""Each item holds memory, and more threads of Python's would wait for each other. Tried with 2 cores alone."""
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class WorkerThreads:
    """Deals work over chunks of rows out to lanes. Made by `open_threads`.

    It is always the same number of lanes, and their sums are added in the lanes' order: the result does not depend on
    how many threads there are.
    """

    def __init__(self, pool: concurrent.futures.Executor) -> None:
        self._pool = pool

    def run(self, work: Callable[[Sequence[_Item]], _Result], items: Sequence[_Item]) -> list[_Result]:
        """Call ``work`` with each lane's share of the items; what it returned, in the lanes' order."""
        shares = [items[lane::SHARES] for lane in range(min(SHARES, len(items)))]
        return list(self._pool.map(work, shares))


@contextmanager
def open_threads() -> Iterator[WorkerThreads]:
    """Lanes on as many threads as torch has, while torch itself is kept to one in each."""
    threads = torch.get_num_threads()
    with _torch_threads(1), concurrent.futures.ThreadPoolExecutor(min(threads, SHARES)) as pool:
        yield WorkerThreads(pool)


@contextmanager
def _torch_threads(number: int) -> Iterator[None]:
    """Keep torch to so many threads, in this thread and in those that it starts."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def ordered_map(work: Callable[[_Item], _Result], items: Sequence[_Item]) -> Generator[_Result, None, None]:
    """Call ``work`` with each item, several at a time, and yield what it returned in the items' order.

    With up to `MOST_AT_ONCE` threads of torch's, each takes an item of its own; of more, several share one. A single
    item has all of them. What a call raises is raised in its turn. No call is begun after that, nor after the iterator
    was closed, or Ctrl-C came while it waited.
    """
    threads = torch.get_num_threads()
    each = -(-threads // MOST_AT_ONCE)
    lanes = threads // each
    if lanes == 1 or len(items) < 2:
        yield from map(work, items)
        return
    with _torch_threads(each), concurrent.futures.ThreadPoolExecutor(lanes, "headstart-lane") as pool:
        begun: collections.deque[concurrent.futures.Future[_Result]] = collections.deque()
        try:
            for item in items:
                begun.append(pool.submit(work, item))
                if len(begun) > lanes:  # one waits, so that no lane has to
                    yield begun.popleft().result()
            while begun:
                yield begun.popleft().result()
        finally:
            for waiting in begun:
                waiting.cancel()
