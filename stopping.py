"""Ctrl-C and SIGTERM, heeded also where a library swallows the exception that they raise.

Python raises KeyboardInterrupt wherever the main thread is. In a finalizer or a callback of a weak reference it is
printed and forgotten; inside h5py it becomes a TypeError. So what was asked for is kept here: a run looks at it
whenever it tells how far it is, and the command line before it explains an error.
"""

from __future__ import annotations

import signal

_asked: list[KeyboardInterrupt] = []


class Terminated(KeyboardInterrupt):
    """SIGTERM, as a cluster sends it before it takes a machine back: what Ctrl-C does, it does too."""


def listen() -> None:
    """Take SIGINT and SIGTERM from here on; a SIGINT that is ignored, as `nohup` and `&` have it, stays ignored."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _stop)
    signal.signal(signal.SIGTERM, _stop)


def _stop(number: int, frame: object) -> None:
    _asked.append(Terminated() if number == signal.SIGTERM else KeyboardInterrupt())
    raise _asked[-1]


def asked() -> KeyboardInterrupt | None:
    """What was asked for so far, whether its exception arrived or not."""
    return _asked[-1] if _asked else None


def heed() -> None:
    """Raise what was asked for, if its exception was lost on the way."""
    if _asked:
        raise _asked[-1]
