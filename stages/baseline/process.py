"""Work in a process of its own, so that nothing that ran before changes the speed of the practitioner's program.

Where an encoder has run before, the allocator keeps memory that a fresh process requests again for every batch.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any, TypeVar, cast

from ..encoders.memory import is_memory_full

_TICK_SECONDS, _PATIENCE_SECONDS = 0.2, 10.0
_Result = TypeVar("_Result")


class ProcessKilledError(MemoryError):
    """The process ended without a result."""


def in_new_process(work: Callable[[], _Result], modules: Sequence[str], on_tick: Callable[[], None]) -> _Result:
    """Run ``work`` in a new process, return its result and repeat its warnings. Both are pickled.

    ``modules`` are imported once, before processes are forked, so that no process spends time on them. ``on_tick`` is
    called a few times a second during the work.

    Raises:
        ProcessKilledError: the process ended without a result.
        MemoryError: the memory of the process is full.
        RuntimeError: the work failed otherwise.
    """
    # A fork of a process that has only imported modules starts at once. It is safe on Linux only.
    forked = sys.platform == "linux" and "forkserver" in multiprocessing.get_all_start_methods()
    context: Any = multiprocessing.get_context("forkserver" if forked else "spawn")
    if forked:
        context.set_forkserver_preload([__name__, *modules])
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_serve, args=(theirs, work), name="headstart-program")
    try:
        with _starting():
            process.start()
        theirs.close()
        while not ours.poll(_TICK_SECONDS):
            on_tick()
        result, failure, caught = ours.recv()
    except BaseException as error:
        if process.pid is not None and process.is_alive():  # it may be in the middle of a batch
            process.terminate()
        if isinstance(error, (EOFError, ConnectionError)):  # the process is gone, or the server that forks it
            raise ProcessKilledError("its process was killed, which the system does when memory is full") from None
        raise
    finally:
        ours.close()
        if process.pid is not None:
            process.join(_PATIENCE_SECONDS)
            process.kill()
            process.join()
    for text, category in caught:  # Python shows each once, whatever the number of processes
        warnings.warn(text, category, stacklevel=1)
    if failure is not None:
        raise failure
    return cast(_Result, result)


@contextlib.contextmanager
def _starting() -> Iterator[None]:
    """Block Ctrl-C, and hide the main script, which `multiprocessing` would run again in the process that starts."""
    main = vars(sys.modules["__main__"])
    names: dict[str, Any] = {name: main[name] for name in ("__spec__", "__file__") if name in main}
    can_block = hasattr(signal, "pthread_sigmask")
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}) if can_block else set()
    main.update(dict.fromkeys(names))
    try:
        yield
    finally:
        main.update(names)
        if can_block:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _serve(connection: Connection, work: Callable[[], Any]) -> None:
    """Run the work, and send its result or its failure, and the warnings."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that waits for this one
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # an orderly exit also ends the workers of a loader
    # The workers would inherit this process's start method; a practitioner has the platform's default.
    multiprocessing.set_start_method(multiprocessing.get_all_start_methods()[0], force=True)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a fork would leave the tokenizer's threads behind
    result = failure = None
    with warnings.catch_warnings(record=True) as caught:
        try:
            result = work()
        except Exception as error:  # whatever it is, the process that waits raises it again
            kind = MemoryError if is_memory_full(error) else RuntimeError
            failure = kind(str(error) or type(error).__name__)
    with contextlib.suppress(ConnectionError):  # nobody waits any more
        connection.send((result, failure, [(str(warning.message), warning.category) for warning in caught]))
