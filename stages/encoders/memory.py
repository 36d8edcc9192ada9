"""What to do where a batch takes more memory than there is: halve it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

_Item = TypeVar("_Item")
_SAYINGS = ("can't allocate memory", "not enough memory", "bad_alloc", "out of memory")
"""By which torch's allocators and oneDNN say, in a RuntimeError, that the memory is full."""


class MemoryFullError(MemoryError):
    """There is no memory even for one item of a batch.

    Attributes:
        sequence: Its number in the batch.
    """

    def __init__(self, sequence: int) -> None:
        super().__init__(f"the memory is full at sequence {sequence} of a batch")
        self.sequence = sequence


@contextmanager
def halving(batch: Sequence[_Item]) -> Iterator[list[Sequence[_Item]]]:
    """Run a block over a batch; where it runs out of memory, leave the batch's two halves in the list that is given.

    The halves are encoded outside of the block, when what the block held is free again.

    Raises:
        MemoryFullError: the batch is of one item, which cannot be halved.
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
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, not loaded to name it
        return True
    return isinstance(error, RuntimeError) and any(saying in str(error) for saying in _SAYINGS)
