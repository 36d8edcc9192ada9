"""What to do where memory runs short, and how to keep the memory of one batch for the next. It loads no library."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

_Item = TypeVar("_Item")
# In RuntimeErrors of torch's allocators and oneDNN.
_MESSAGES = ("can't allocate memory", "not enough memory", "bad_alloc", "out of memory")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_NEVER, _LARGEST_OF_OLD_GLIBC, _USUAL = 1 << 30, 1 << 25, 1 << 25


class MemoryFullError(MemoryError):
    """There is no memory even for one item of a batch. ``sequence`` is the item's number in the batch."""

    def __init__(self, sequence: int) -> None:
        super().__init__(f"the memory is full at sequence {sequence} of a batch")
        self.sequence = sequence


@contextmanager
def halving(batch: Sequence[_Item]) -> Iterator[list[Sequence[_Item]]]:
    """Run a block over a batch; where the block runs out of memory, put the batch's halves into the yielded list.

    The caller encodes the halves after the block, when the memory that the block held is free again.

    Raises:
        MemoryFullError: the batch has one item, and cannot be halved.
    """
    halves: list[Sequence[_Item]] = []
    try:
        yield halves
    except Exception as error:
        if not is_memory_full(error):
            raise
        if len(batch) == 1:
            raise MemoryFullError(0) from error
        middle = len(batch) // 2
        halves += [batch[:middle], batch[middle:]]


def is_memory_full(error: Any) -> bool:
    """Whether an exception says that there is no memory left, on whatever device."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, not loaded here
        return True
    return isinstance(error, RuntimeError) and any(message in str(error) for message in _MESSAGES)


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Let glibc keep freed memory, instead of handing it back to the system and asking for it again.

    A batch's largest arrays take tens of megabytes. Without this, each is new memory from the system every time, and
    its first writing costs a page fault for every 4 KiB. Where there is no glibc this does nothing.

    Afterwards the thresholds are at 32 and 64 MiB, the highest that glibc chooses by itself. It never adapts them again
    in this process: so a measurement of another program runs in a process of its own (``baseline/process``).
    """
    import ctypes

    try:
        libc = ctypes.CDLL(None)
    except (OSError, TypeError):  # Windows has no such library
        libc = None
    if libc is None or not hasattr(libc, "mallopt") or not hasattr(libc, "malloc_trim"):
        yield
        return
    libc.malloc_trim(0)  # memory that was freed before goes back to the system: its blocks have other sizes
    if not libc.mallopt(_M_MMAP_THRESHOLD, _NEVER):
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST_OF_OLD_GLIBC)
    libc.mallopt(_M_TRIM_THRESHOLD, _NEVER)
    try:
        yield
    finally:
        libc.mallopt(_M_MMAP_THRESHOLD, _USUAL)
        libc.mallopt(_M_TRIM_THRESHOLD, 2 * _USUAL)
        libc.malloc_trim(0)
