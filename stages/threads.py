"""Thread pools for torch's work: each worker computes on its own, with a share of torch's threads.

Where the steps of a computation are short, torch's own threads would wait for each other at the end of every step. It
is faster to give each thread its own rows or items.
"""

from __future__ import annotations

import collections
import concurrent.futures
import itertools
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch

SHARES = 4
"""Parts that `WorkerThreads` divides work into, whatever the number of threads."""
MAX_WORKERS = 8
"""Threads of `ordered_map`, at most. Each holds an item's memory, and more of them would wait for Python's lock. Tried
with 2 cores alone."""
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class WorkerThreads(concurrent.futures.ThreadPoolExecutor):
    """Threads that sum over shares of rows. Made by `open_threads`.

    The number of shares is fixed, and results come in the order of the shares: a sum over them does not depend on the
    number of threads, not even in its last bit.
    """

    def map_shares(self, work: Callable[[Sequence[_Item]], _Result], items: Sequence[_Item]) -> list[_Result]:
        """Divide the items into at most `SHARES` shares, call ``work`` with each, and return the results in order."""
        shares = [items[first::SHARES] for first in range(min(SHARES, len(items)))]
        return list(self.map(work, shares))


@contextmanager
def open_threads() -> Iterator[WorkerThreads]:
    """Open as many worker threads as torch has threads, at most `SHARES`. Meanwhile torch uses one thread in each."""
    threads = torch.get_num_threads()
    with _torch_threads(1), WorkerThreads(min(threads, SHARES)) as pool:
        yield pool


@contextmanager
def _torch_threads(number: int) -> Iterator[None]:
    """Limit torch to so many threads, in this thread and in the threads that it starts."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def ordered_map(work: Callable[[_Item], _Result], items: Iterable[_Item]) -> Generator[_Result, None, None]:
    """Call ``work`` with each item, several at a time in threads, and yield the results in the order of the items.

    There is one worker for each of torch's threads, and at most `MAX_WORKERS`, which then divide torch's threads among
    them. A single item gets all of torch's threads.

    Items are asked for in the caller's thread, when there is room: at most one more than workers is asked for whose
    result is not yielded.

    What a call raises is raised when its result is due. No further call starts after that, after the generator is
    closed, or after Ctrl-C. What ``items`` raises is raised at once.
    """
    threads = torch.get_num_threads()
    threads_per_worker = -(-threads // MAX_WORKERS)
    workers = threads // threads_per_worker
    coming = iter(items)
    first = list(itertools.islice(coming, 1 if workers == 1 else 2))
    if workers == 1 or len(first) < 2:
        yield from map(work, itertools.chain(first, coming))
        return
    ended = threading.Event()

    def run(item: _Item) -> _Result:
        if ended.is_set():
            raise concurrent.futures.CancelledError
        return work(item)

    with _torch_threads(threads_per_worker), concurrent.futures.ThreadPoolExecutor(workers, "headstart-map") as pool:
        pending: collections.deque[concurrent.futures.Future[_Result]] = collections.deque()
        try:
            for item in itertools.chain(first, coming):
                pending.append(pool.submit(run, item))
                if len(pending) > workers:  # one item waits in the queue, so that no worker is idle
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:  # one step, that a second Ctrl-C does not divide; what is queued ends at once
            ended.set()
