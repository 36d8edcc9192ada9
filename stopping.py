"""Ctrl-C and SIGTERM stop a run wherever it is, and the command line says so in one line.

Python raises KeyboardInterrupt wherever the main thread is, and some places lose it. In a finalizer or a callback of a
weak reference it is printed and ignored; inside h5py it becomes a TypeError; while torch is imported it aborts the
process. So requests to stop are kept here. A run looks for one whenever it reports its progress, and the command line
looks for one before it explains an error. Python need not print a request that is kept.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

INTERRUPTED = 130
"""Exit code of an interrupted run, as in shells: 128 plus the number of SIGINT."""
_RETRY_SECONDS = 0.05
_requests: list[KeyboardInterrupt] = []
_handlers: list[object] = []


class Terminated(KeyboardInterrupt):
    """SIGTERM, which a cluster sends before it takes a machine back. It stops a run as Ctrl-C does."""


def catch_signals() -> None:
    """Handle SIGINT and SIGTERM from now on. A SIGINT that is ignored, as `nohup` and `&` do, stays ignored."""
    _set_handler(_request)
    if hasattr(signal, "setitimer"):
        signal.signal(signal.SIGALRM, _raise)
    sys.unraisablehook = _print_other_errors


def exit_on_signals() -> None:
    """Let a signal end the process at once: only Python's own cleanup is left, which nothing should interrupt."""
    _set_handler(lambda number, frame: os._exit(INTERRUPTED))
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, 0)
    for error in _requests:  # this closes generators in its frames now, while the modules that they use still exist
        error.__traceback__ = error.__context__ = None


def exit_on_bus_error() -> None:
    """End the process with one line where a file that is mapped into memory is cut short: reading it raises SIGBUS.

    Python runs its handlers after the instruction that was interrupted, and this one never ends. So the handler is a
    function of C's, which runs at once, in the thread that reads; numpy alone reads maps, and holds no lock there.
    """
    if not hasattr(signal, "SIGBUS"):
        return
    import ctypes

    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(_exit_on_bus_error)
    _handlers.append(handler)  # C does not keep it
    ctypes.CDLL(None).signal(int(signal.SIGBUS), handler)


def _exit_on_bus_error(number: int) -> None:
    os.write(2, b"headstart: a file was cut short or written over while it was read; put it back, and run this again\n")
    os._exit(1)


def request() -> KeyboardInterrupt | None:
    """Return the last request to stop, whether its exception arrived or was lost; None without one."""
    return _requests[-1] if _requests else None


def raise_request() -> None:
    """Raise the last request to stop, if there is one: its exception may have been lost."""
    if _requests:
        raise _requests[-1]


def _set_handler(handler: Callable[[int, FrameType | None], Any]) -> None:
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, handler)
    signal.signal(signal.SIGTERM, handler)


def _request(number: int, frame: FrameType | None) -> None:
    _requests.append(Terminated() if number == signal.SIGTERM else KeyboardInterrupt())
    _raise(number, frame)


def _raise(number: int, frame: FrameType | None) -> None:
    """Raise the request. The first one waits until a running import has finished, and until a lock is taken."""
    wait = len(_requests) == 1 and (_is_taking_lock(frame) or _is_importing(frame))
    if hasattr(signal, "setitimer"):  # without a timer, `raise_request` raises it later
        # A second request ends the wait for the first, which would be raised once more.
        signal.setitimer(signal.ITIMER_REAL, _RETRY_SECONDS if wait else 0)
    if not wait:
        raise _requests[-1]


def _is_importing(frame: FrameType | None) -> bool:
    """Return whether the main thread is importing a module."""
    while frame is not None:
        if frame.f_globals.get("__name__") == "importlib._bootstrap":
            return True
        frame = frame.f_back
    return False


def _is_taking_lock(frame: FrameType | None) -> bool:
    """Return whether the main thread is between taking a condition's lock and the block that releases it.

    The lock would be kept for ever, and a thread that needs it, as of a future or a pool, would never end.
    """
    return frame is not None and frame.f_code is threading.Condition.__enter__.__code__


def _print_other_errors(lost: Any, requests: list[KeyboardInterrupt] = _requests) -> None:
    """Print an exception that nobody can catch, as Python does, unless a request to stop is the cause.

    Args:
        lost: The argument of ``sys.unraisablehook``.
        requests: The requests. A default value, because the names of a module may be gone at the end of the process.
    """
    error = lost.exc_value
    while error is not None:
        if any(error is one for one in requests):
            return
        error = error.__context__
    sys.__unraisablehook__(lost)
