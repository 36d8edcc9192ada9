"""The practitioner's program in a process of its own, as it is run: it owes nothing to what was run before.

In a process that has trained an encoder, or extracted with ours, the allocator keeps memory that a fresh one gives back
to the system and asks for again with every batch: a frozen encoder's epoch is about a sixth faster there.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any, Protocol

from .baseline import Program, ProgramEpoch
from .memory import is_memory_full
from .rungs import RungSettings

_TICK_SECONDS, _PATIENCE_SECONDS = 0.2, 10.0
KILLED = "its process was killed, as the system does where the memory is full"


class Trains(Protocol):
    """What runs the program: `Program` itself is one."""

    def train(
        self, settings: RungSettings, batches: Sequence[list[int]], on_batch: Callable[[], None]
    ) -> ProgramEpoch: ...


@contextlib.contextmanager
def program_process(make: Callable[[], Program], modules: Sequence[str]) -> Iterator[Trains]:
    """Load the program in a new process, and run it there until the block ends; then the process is ended.

    Its ``train`` calls ``on_batch`` now and then, and raises MemoryError where the process's memory is full, and
    RuntimeError where it failed otherwise.

    Args:
        make: Makes the program; it is pickled.
        modules: What to import once, before the processes are forked, so that no process spends its time on it.
    """
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context: Any = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload([__name__, *modules])
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, make), name="headstart-program")
    process.start()
    theirs.close()
    remote = _Remote(ours)
    try:
        remote.wait(lambda: None)
        yield remote
    except BaseException:
        if not remote.gone:  # it is in the midst of a batch
            process.terminate()
        raise
    finally:
        ours.close()
        process.join(_PATIENCE_SECONDS)
        process.kill()
        process.join()


class _Remote:
    """The program in another process.

    Attributes:
        gone: The process has ended of itself.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection, self.gone = connection, False

    def train(
        self, settings: RungSettings, batches: Sequence[list[int]], on_batch: Callable[[], None] = lambda: None
    ) -> ProgramEpoch:
        """Train for one epoch over these batches."""
        with contextlib.suppress(BrokenPipeError):  # it has gone; `wait` says so
            self._connection.send((settings, list(batches)))
        found = self.wait(on_batch)
        assert isinstance(found, ProgramEpoch)
        return found

    def wait(self, on_tick: Callable[[], None]) -> ProgramEpoch | None:
        """Wait for the answer; None is that of a program that is loaded."""
        try:
            while not self._connection.poll(_TICK_SECONDS):
                on_tick()
            found, full, reason, warned = self._connection.recv()
        except (EOFError, ConnectionResetError):
            self.gone = True
            raise RuntimeError(KILLED) from None
        for text, category in warned:  # Python shows each once, however many processes give it
            warnings.warn(text, category, stacklevel=1)
        if full:
            raise MemoryError(reason)
        if reason:
            raise RuntimeError(reason)
        answer: ProgramEpoch | None = found
        return answer


def _serve(connection: Connection, make: Callable[[], Program]) -> None:
    """Answer with what training came to, whether the memory was full, and why it failed, if it did."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for the process that waits for this one
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # which ends the loader's workers, too
    # This process would hand its own way of starting on to the loader's workers; theirs is the platform's usual one.
    multiprocessing.set_start_method(multiprocessing.get_all_start_methods()[0], force=True)
    program = None
    asked: tuple[RungSettings, list[list[int]]] | None = None
    with contextlib.suppress(EOFError, BrokenPipeError):  # nobody waits any more
        while True:
            found, full, reason = None, False, ""
            warned: list[warnings.WarningMessage] = []
            try:
                with warnings.catch_warnings(record=True) as warned:
                    if program is None or asked is None:
                        program = make()
                        _ = program.model  # loaded now
                    else:
                        found = program.train(*asked)
            except Exception as error:  # of whatever kind: raised where it is waited for
                full, reason = is_memory_full(error), str(error) or type(error).__name__
            connection.send((found, full, reason, [(str(warning.message), warning.category) for warning in warned]))
            asked = connection.recv()
