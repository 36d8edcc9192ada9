"""Several threads that work through chunks of rows, each with torch kept to one thread.

Chunks are small, and torch's own threads would meet at a barrier in every product of one. The work is always dealt out
to the same number of lanes, and their sums are added in the lanes' order: the result does not depend on how many
threads there are.
"""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch

LANES = 4
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class Lanes:
    """Deals work out to lanes. Made by `open_lanes`."""

    def __init__(self, pool: concurrent.futures.Executor) -> None:
        self._pool = pool

    def run(self, work: Callable[[Sequence[_Item]], _Result], items: Sequence[_Item]) -> list[_Result]:
        """Call ``work`` with each lane's share of the items; what it returned, in the lanes' order."""
        shares = [items[lane::LANES] for lane in range(min(LANES, len(items)))]
        return list(self._pool.map(work, shares))


@contextmanager
def open_lanes() -> Iterator[Lanes]:
    """Lanes on as many threads as torch has, while torch itself is kept to one in each."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with concurrent.futures.ThreadPoolExecutor(min(threads, LANES)) as pool:
            yield Lanes(pool)
    finally:
        torch.set_num_threads(threads)
