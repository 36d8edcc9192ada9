"""Real runs of the command line in processes of their own, also to be killed, stopped and starved at chosen instants.

Each is forked from a server that has loaded torch and transformers (`loaded`) but computed nothing: so it starts in a
fraction of a second, and what happens to it is what happens to a run that was started at a terminal, but for the end of
Python itself.
`fresh_command` alone starts Python anew.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import io
import multiprocessing
import os
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.forkserver import ensure_running
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NoReturn
from unittest.mock import patch

SERVER = multiprocessing.get_context("forkserver")
PATIENCE_SECONDS = 300.0
"""No command of the tests takes so long, on whatever machine."""
Command = subprocess.CompletedProcess[str]
Preparation = Callable[[], None]
"""What a process does to itself before the command runs: a module's function, or a partial of one."""


def command(*arguments: Any) -> Command:
    """Run ``headstart ARGUMENTS`` to its end."""
    with tempfile.TemporaryDirectory() as folder:
        out, errors = Path(folder, "out"), Path(folder, "errors")
        errors.touch()  # for a process that ends before it prints
        code, printed = finish(arguments, out, partial(print_errors_to, errors))
        return Command(["headstart", *map(str, arguments)], code, printed, errors.read_text())


def fresh_command(*arguments: Any, **options: Any) -> Command:
    """The same in a Python that has loaded nothing yet, as a shell starts it."""
    started = [sys.executable, "-m", "headstart", *map(str, arguments)]
    return subprocess.run(started, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False, **options)


def command_here(*arguments: Any) -> Command:
    """Run ``headstart ARGUMENTS`` in this process: what it prints and its exit code. A traceback passes through."""
    from headstart import cli

    stdout, stderr, code = io.StringIO(), io.StringIO(), 0
    typed = patch.object(sys, "argv", ["headstart", *map(str, arguments)])
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr), typed:
        try:
            cli.main()
        except SystemExit as ended:
            code = int(ended.code or 0)
    return Command(["headstart", *map(str, arguments)], code, stdout.getvalue(), stderr.getvalue())


def serve() -> None:
    """Start the server, unless this process has one: the first to start it says what it loads."""
    path = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    SERVER.set_forkserver_preload(["loaded"])
    with patch.dict(os.environ, PYTHONPATH=os.pathsep.join(path)):  # Python 3.11 gives its server no path
        ensure_running()


def forked(target: Callable[..., None], *arguments: Any) -> BaseProcess:
    """Start ``target(*arguments)`` in a process that the server forks."""
    serve()
    process = SERVER.Process(target=target, args=arguments)
    process.start()
    return process


def start(arguments: Sequence[Any], log: Path, *preparations: Preparation) -> BaseProcess:
    """Start ``headstart ARGUMENTS``; what it prints goes to ``log``."""
    return forked(_command, [str(a) for a in arguments], str(log), preparations)


def finish(arguments: Sequence[Any], log: Path, *preparations: Preparation) -> tuple[int, str]:
    """Run ``headstart ARGUMENTS`` to its end; return its exit code (of a signal, less than 0) and what it printed."""
    process = start(arguments, log, *preparations)
    process.join(PATIENCE_SECONDS)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise TimeoutError(f"headstart {' '.join(map(str, arguments))}: {log.read_text()}")
    return process.exitcode, log.read_text()


def _command(arguments: list[str], log: str, preparations: Sequence[Preparation]) -> None:
    descriptor = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    for prepare in preparations:
        prepare()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # whoever started the server may have blocked it
    import torch
    from headstart.__main__ import main

    torch.set_num_threads(1)  # so small an encoder is not quicker with more, and waits for no core that others use
    sys.argv = ["headstart", *arguments]
    main()


def print_errors_to(log: Path) -> None:
    """Let what is printed to stderr go to a file of its own."""
    os.dup2(os.open(log, os.O_CREAT | os.O_WRONLY), 2)


def blocks_of(rows: int) -> None:
    """Give the settings other defaults, which no option of the command line sets: blocks of so many rows, and windows
    of two blocks."""
    from headstart.stages.settings import ExtractSettings

    defaults: dict[str, Any] = ExtractSettings.__init__.__kwdefaults__  # type: ignore[attr-defined]
    defaults.update(block_rows=rows, window_rows=2 * rows)


def windows_of(rows: int) -> None:
    """Let `predict` take so many rows of a table at a time, which no option of the command line sets."""
    from headstart.stages.predict import predict_table

    defaults: dict[str, Any] = predict_table.__kwdefaults__  # type: ignore[assignment]
    defaults.update(window_rows=rows)


def limit_file_size(size: int) -> None:
    """Refuse to let any file grow past so many bytes, as a quota does."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def obey_permissions() -> None:
    """Let permissions hold for root too: give up every capability (capset(2), in version 3 of its structures)."""
    if os.geteuid() == 0:
        header, nothing = struct.pack("<Ii", 0x20080522, 0), struct.pack("<6I", *[0] * 6)
        if ctypes.CDLL(None, use_errno=True).capset(header, nothing):
            raise OSError(ctypes.get_errno(), "capset failed")


def open_as(kind: type[io.FileIO]) -> None:
    """Let the cache's writer write through a file of this kind."""
    from headstart.cache.writer import CacheWriter

    original = CacheWriter.__init__

    def opened(self: Any, path: Path) -> None:
        original(self, path)
        self._file.close()
        self._file = kind(path, "rb+")

    CacheWriter.__init__ = opened  # type: ignore[method-assign]


def fault_at(point: str, call: int, what: str) -> None:
    """Let something happen at one call of a kind.

    Args:
        point: ``write`` (of the cache's writer to its file), ``fsync``, ``posix_fallocate`` (of ``os``), ``replace``
            or ``unlink`` (of a path).
        call: Which call, from 1.
        what: ``before``, ``after`` or (of a write) ``inside``: kill the process there, with SIGKILL. ``error``: the
            call fails as on a broken disk, and so do all that follow. ``count``: print at the end how many there were.
    """
    calls = 0

    def due() -> bool:
        nonlocal calls
        calls += 1
        return calls == call or (what == "error" and calls > call)

    def around(original: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any, **options: Any) -> Any:
            now = due()
            if now and what == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            if now and what == "error":
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            if now and what == "inside":
                file, data = arguments
                original(file, data[: len(data) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            found = original(*arguments, **options)
            if now and what == "after":
                os.kill(os.getpid(), signal.SIGKILL)
            return found

        return called

    if point == "write":
        open_as(type("Faulty", (io.FileIO,), {"write": around(io.FileIO.write)}))
    elif point in ("fsync", "posix_fallocate"):
        setattr(os, point, around(getattr(os, point)))
    else:
        setattr(Path, point, around(getattr(Path, point)))
    if what == "count":
        end = os._exit

        def say_and_end(code: int) -> NoReturn:
            print(f"{calls} calls", flush=True)
            end(code)

        os._exit = say_and_end


def kill_at_batch(number: int) -> None:
    """Kill the process, with SIGKILL, where its encoder is given this batch, counted from 1 without empty ones."""
    from headstart.stages.encoders.backend import Backend

    original, calls = Backend.encode, 0

    def encode(self: Any, sequences: Any) -> Any:
        nonlocal calls
        calls += len(sequences) > 0
        if calls == number and len(sequences):
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, sequences)

    Backend.encode = encode  # type: ignore[method-assign]


def write_over(cache: Path, content: Path | None) -> None:
    """Let a cache be written over once its rows are checked and divided: by another file's bytes, or cut short."""
    from headstart.stages import train_head
    from headstart.stages.splits.divide import divide_features
    from headstart.stages.sweeps import groups

    def divided(*arguments: Any, **options: Any) -> Any:
        splits = divide_features(*arguments, **options)
        if content is None:
            os.truncate(cache, 20_000)
        else:
            cache.write_bytes(content.read_bytes())
        return splits

    train_head.divide_features = groups.divide_features = divided  # type: ignore[attr-defined]


def lose_an_interrupt(how: str) -> None:
    """Send Ctrl-C while the third batch is encoded, to code that loses its exception as libraries do.

    Args:
        how: ``callback``: a weak reference's, where Python prints the exception and goes on. ``error``: the exception
            becomes another, as in h5py.
    """
    from headstart.stages.encoders.backend import Backend

    original, calls = Backend.encode, 0

    def encode(self: Any, *arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3 and how == "callback":
            watched = type("Watched", (), {})()
            reference = weakref.ref(watched, lambda _: os.kill(os.getpid(), signal.SIGINT))
            del watched, reference
        if calls == 3 and how == "error":
            try:
                os.kill(os.getpid(), signal.SIGINT)
            except KeyboardInterrupt:
                raise TypeError("Operation not defined for data type class") from None
        return original(self, *arguments, **options)

    Backend.encode = encode  # type: ignore[method-assign]


class Stuttering(io.FileIO):
    """Writes a part of what it is given, as a file may."""

    def write(self, data: Any) -> int:
        return super().write(data[: max(1, len(data) // 3)])
