"""Ctrl-C and SIGTERM: heeded wherever they come, and answered in one line.

Python raises KeyboardInterrupt wherever the main thread is. In a finalizer or a callback of a weak reference it is
printed and forgotten; inside h5py it becomes a TypeError; while torch is imported it aborts the process. So what was
asked for is kept here: a run looks at it whenever it tells how far it is, the command line before it explains an
error. And what is kept need not be printed by Python as well.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, TypeVar

INTERRUPTED = 130
"""The exit code: 128 and SIGINT's number, as shells have it."""
_AGAIN_SECONDS = 0.05
_Event = TypeVar("_Event")
_asked: list[KeyboardInterrupt] = []


class Terminated(KeyboardInterrupt):
    """SIGTERM, as a cluster sends it before it takes a machine back: what Ctrl-C does, it does too."""


def listen() -> None:
    """Take SIGINT and SIGTERM from here on; a SIGINT that is ignored, as `nohup` and `&` have it, stays ignored."""
    _answer(_stop)
    if hasattr(signal, "setitimer"):
        signal.signal(signal.SIGALRM, _raise)
    sys.unraisablehook = _say_nothing_of_what_is_kept


def leave() -> None:
    """Nothing is left but Python's tidying up: a signal ends it at once, so that nothing is raised in its midst."""
    _answer(lambda number, frame: os._exit(INTERRUPTED))
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, 0)
    for error in _asked:  # generators that its frames hold are closed now, while the modules that they use are there
        error.__traceback__ = error.__context__ = None


def asked() -> KeyboardInterrupt | None:
    """What was asked for so far, whether its exception arrived or not."""
    return _asked[-1] if _asked else None


def heed() -> None:
    """Raise what was asked for, if its exception was lost on the way."""
    if _asked:
        raise _asked[-1]


def heeding(listener: Callable[[_Event], None]) -> Callable[[_Event], None]:
    """The same listener; it ends the run first if that was asked for and has not been heeded yet."""

    def listen_and_heed(event: _Event) -> None:
        heed()
        listener(event)

    return listen_and_heed


def _answer(handler: Callable[[int, FrameType | None], Any]) -> None:
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, handler)
    signal.signal(signal.SIGTERM, handler)


def _stop(number: int, frame: FrameType | None) -> None:
    _asked.append(Terminated() if number == signal.SIGTERM else KeyboardInterrupt())
    _raise(number, frame)


def _raise(number: int, frame: FrameType | None) -> None:
    """Raise what was asked for; the first request, once an import that is under way has ended."""
    if len(_asked) > 1 or not _importing(frame):
        raise _asked[-1]
    if hasattr(signal, "setitimer"):  # elsewhere `heed` does it
        signal.setitimer(signal.ITIMER_REAL, _AGAIN_SECONDS)


def _importing(frame: FrameType | None) -> bool:
    """Whether a module is being imported where the main thread is."""
    while frame is not None:
        if frame.f_globals.get("__name__") == "importlib._bootstrap":
            return True
        frame = frame.f_back
    return False


def _say_nothing_of_what_is_kept(lost: Any, kept: list[KeyboardInterrupt] = _asked) -> None:
    """Print an exception that nobody can catch, as Python does, unless it is one of ours or came of one.

    Args:
        lost: What ``sys.unraisablehook`` is given.
        kept: A default, because a module's names are gone when the last objects are.
    """
    error = lost.exc_value
    while error is not None:
        if any(error is one for one in kept):
            return
        error = error.__context__
    sys.__unraisablehook__(lost)
