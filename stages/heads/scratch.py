"""Arrays with a row for each text that are too large for memory: they lie in temporary files.

Whoever computes with such an array takes its rows in `spans`.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ...cache.errors import storage_errors
from ..types import Indices

Array = npt.NDArray[Any]
_SHARE = 32
"""An array may take this part of the memory bound: a few of them are needed at the same time."""
_SPAN_NUMBERS = 1 << 20


def empty(shape: Sequence[int], dtype: npt.DTypeLike, memory: int | None) -> Array:
    """A new array, in a temporary file if it takes more than a 32nd of the memory bound.

    Raises:
        StorageError: the disk is full.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if memory is None or size <= memory // _SHARE:
        return np.empty(shape, dtype)
    with storage_errors("a temporary file could not be written"), tempfile.TemporaryFile() as file:
        if hasattr(os, "posix_fallocate"):  # to write to a map of a file on a full disk would end the process
            os.posix_fallocate(file.fileno(), 0, size)
        return np.memmap(file, dtype, "w+", shape=tuple(shape))


def in_file(array: Array) -> bool:
    """Whether an array lies in a file, and is too large for memory."""
    return isinstance(array, np.memmap)


def spans(array: Array) -> list[slice]:
    """The rows of an array, in parts that fit into memory: all at once if the array is in memory."""
    if not in_file(array):
        return [slice(0, len(array))]
    step = max(_SPAN_NUMBERS // math.prod(array.shape[1:]), 1)
    return [slice(start, min(start + step, len(array))) for start in range(0, len(array), step)]


def like(array: Array, shape: Sequence[int], dtype: npt.DTypeLike) -> Array:
    """A new array of this shape: in a temporary file if the other array is in one."""
    return empty(shape, dtype, 0 if in_file(array) else None)


def map_rows(work: Callable[[Array], Array], array: Array) -> Array:
    """What ``work`` makes of rows, (rows, columns) both: in a temporary file if the array is in one."""
    if not in_file(array):
        return work(array)
    result: Array | None = None
    for span in spans(array):
        part = work(np.asarray(array[span]))
        if result is None:
            result = like(array, (len(array), *part.shape[1:]), part.dtype)
        result[span] = part
    assert result is not None, "no array without rows is in a file"
    return result


def take(array: Array, positions: Indices) -> Array:
    """Copy the rows at these positions: to a temporary file if the array is in one."""
    result = like(array, (len(positions), *array.shape[1:]), array.dtype)
    for span in spans(result):
        result[span] = array[positions[span]]
    return result
