"""The practitioner's program in a process of its own, as it is run: it owes nothing to what was run before.

In a process that has trained an encoder, or extracted with ours, the allocator keeps memory that a fresh one gives back
to the system and asks for again with every batch: a frozen encoder is faster there than it is alone.
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

from ..encoders.memory import is_memory_full
from .program import Program, ProgramEpoch
from .rungs import RungSettings

_TICK_SECONDS, _PATIENCE_SECONDS = 0.2, 10.0


class ProcessKilledError(MemoryError):
    """The process ended without an answer."""

    def __init__(self) -> None:
        super().__init__("its process was killed, as the system does where the memory is full")


class Trains(Protocol):
    """What runs the program: `Program` itself is one."""

    def train(
        self, settings: RungSettings, batches: Sequence[list[int]], on_batch: Callable[[], None]
    ) -> ProgramEpoch: ...


@contextlib.contextmanager
def program_process(
    make: Callable[[], Program], modules: Sequence[str], on_wait: Callable[[], None] = lambda: None
) -> Iterator[Trains]:
    """Load the program in a new process, and run it there until the block ends; then the process is ended.

    Its ``train`` calls ``on_batch`` now and then, and raises MemoryError where the process's memory is full, and
    RuntimeError where it failed otherwise.

    Args:
        make: Makes the program; it is pickled.
        modules: What to import once, before the processes are forked, so that no process spends its time on it.
        on_wait: Called now and then while it is loaded.

    Raises:
        ProcessKilledError: the process ended while it loaded.
        MemoryError: its memory is full with the program alone.
    """
    # A fork of a process that has only imported starts at once. Elsewhere than on Linux that is not safe.
    forked = sys.platform == "linux" and "forkserver" in multiprocessing.get_all_start_methods()
    context: Any = multiprocessing.get_context("forkserver" if forked else "spawn")
    if forked:
        context.set_forkserver_preload([__name__, *modules])
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, make), name="headstart-program")
    remote = _Remote(ours)
    try:
        try:
            with _uninterrupted(), _without_main():
                process.start()
        except EOFError:  # the server that it is forked from is gone
            raise ProcessKilledError from None
        theirs.close()
        remote.wait(on_wait)
        yield remote
    except BaseException:
        if process.pid is not None and not remote.gone:  # it is in the midst of a batch
            process.terminate()
        raise
    finally:
        ours.close()
        if process.pid is not None:
            process.join(_PATIENCE_SECONDS)
            process.kill()
            process.join()


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Keep Ctrl-C for ourselves: what is started in the meantime is born with it blocked, and says nothing of it."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """Start a process that does not run the user's script again, of which it needs nothing."""
    main = vars(sys.modules["__main__"])
    before: dict[str, Any] = {name: main[name] for name in ("__spec__", "__file__") if name in main}
    main.update(dict.fromkeys(before))
    try:
        yield
    finally:
        main.update(before)


class _Remote:
    """The program in another process.

    Attributes:
        gone: The process has ended of itself.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection, self.gone = connection, False

    def train(self, settings: RungSettings, batches: Sequence[list[int]], on_batch: Callable[[], None]) -> ProgramEpoch:
        """Train for one epoch over these batches."""
        with contextlib.suppress(ConnectionError):  # it has gone; `wait` says so
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
        except (EOFError, ConnectionError):
            self.gone = True
            raise ProcessKilledError from None
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
    with contextlib.suppress(EOFError, ConnectionError):  # nobody waits any more
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
