"""Threads beside the caller's work: the next item is made early, results are written later."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, TypeVar

_Item = TypeVar("_Item")
_END: Any = object()


def prefetch(items: Iterator[_Item]) -> Generator[_Item, None, None]:
    """Yield the same items; a thread makes the next item while the caller works on the last one.

    An error in making an item is raised where that item would be yielded.
    """
    with ThreadPoolExecutor(1, "headstart-reader") as thread:
        pending = thread.submit(next, items, _END)
        while (item := pending.result()) is not _END:
            pending = thread.submit(next, items, _END)
            yield item


class BackgroundThread(ThreadPoolExecutor):
    """Runs calls in one thread, in order. An error in a call is raised at the next `wait`, or where the block ends."""

    def __init__(self) -> None:
        super().__init__(1, "headstart-writer")
        self._pending: list[Future[None]] = []

    def run(self, call: Callable[[], None]) -> None:
        """Add a call; returns at once."""
        self._pending.append(self.submit(call))

    def wait(self) -> None:
        """Wait until every call that was added has returned."""
        pending, self._pending = self._pending, []
        for future in pending:
            future.result()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        if kind is None:
            self.wait()
