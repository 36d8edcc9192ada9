"""Keeping the memory of one batch for the next."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_NEVER, _LARGEST_OF_OLD_GLIBC, _USUAL = 1 << 30, 1 << 25, 1 << 25


@contextlib.contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Let glibc keep what is freed, instead of handing it back to the system and asking for it again.

    A batch's largest arrays are tens of megabytes: without this, each is new memory from the system every time, and its
    first writing costs a page fault for every 4 KiB. Where there is no glibc this does nothing.

    Afterwards the thresholds are at 32 and 64 MiB, the highest that glibc's own reach. Those adapt to what is freed,
    but never again in this process: what is measured as if alone runs in another (`speedup_process`).
    """
    try:
        libc = ctypes.CDLL(None)
    except (OSError, TypeError):  # Windows has no such library
        libc = None
    if not hasattr(libc, "mallopt") or not hasattr(libc, "malloc_trim"):
        yield
        return
    assert libc is not None
    libc.malloc_trim(0)  # what was freed before this goes back: it is of other sizes
    if not libc.mallopt(_M_MMAP_THRESHOLD, _NEVER):
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST_OF_OLD_GLIBC)
    libc.mallopt(_M_TRIM_THRESHOLD, _NEVER)
    try:
        yield
    finally:
        libc.mallopt(_M_MMAP_THRESHOLD, _USUAL)
        libc.mallopt(_M_TRIM_THRESHOLD, 2 * _USUAL)
        libc.malloc_trim(0)
