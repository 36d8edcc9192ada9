"""Work that goes on beside other work: reading what comes next, writing what is done, hashing what is needed soon."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from types import TracebackType
from typing import Any, TypeVar

_Item = TypeVar("_Item")
_END: Any = object()


@contextmanager
def in_background(call: Callable[[], _Item]) -> Iterator[Callable[[], _Item]]:
    """Begin a call in a thread; what it returns or raises comes of calling what this yields."""
    with ThreadPoolExecutor(1, "headstart-beside") as thread:
        yield thread.submit(call).result


def prefetch(items: Iterator[_Item]) -> Iterator[_Item]:
    """Yield the same items, of which the next is made in a thread while the caller works on the last.

    What making one raises is raised here, in its turn.
    """
    with ThreadPoolExecutor(1, "headstart-reader") as thread:
        coming = thread.submit(next, items, _END)
        while (item := coming.result()) is not _END:
            coming = thread.submit(next, items, _END)
            yield item


class BackgroundThread:
    """Runs calls one after the other in a thread; what one raises is raised at the next `wait`."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "headstart-writer")
        self._pending: list[Future[None]] = []

    def run(self, call: Callable[[], None]) -> None:
        self._pending.append(self._thread.submit(call))

    def wait(self) -> None:
        """Wait until every call that was handed over has returned."""
        pending, self._pending = self._pending, []
        for future in pending:
            future.result()

    def __enter__(self) -> BackgroundThread:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(wait=True)
        if kind is None:
            self.wait()
