"""One run at a time on one output: a lock beside it that says who holds it, and that dies with its process."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import errno
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import lock_descriptor, unlock_descriptor

from .errors import BusyError, StorageError
from .layout import storage_errors

_POLL_SECONDS = 0.5
_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


@dataclasses.dataclass(frozen=True)
class Holder:
    """Who holds a lock, as it says in the lock's file."""

    host: str
    process: int
    since: str
    """ISO 8601, UTC."""

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}, since {self.since}"


@contextlib.contextmanager
def hold(output: Path, *, wait: bool = False, note: Callable[[str], None] = lambda text: None) -> Iterator[None]:
    """Keep other runs from an output for as long as the block lasts.

    The lock is the operating system's own, on a file beside the output (its name and ``.lock``): so it ends when the
    process does, however that dies, and a file that is left behind holds nobody up. Readers take no notice of it:
    a finished output is replaced in one step, and never changed. The output's folder is made where it is missing.

    Args:
        output: What will be written.
        wait: Wait until another run that holds it is done.
        note: Told who is waited for, and where the file system has no locks, in which case the block runs without.

    Raises:
        BusyError: another run holds the output, and ``wait`` is False; or nothing can be told of its lock.
        StorageError: the lock's file cannot be made. Where that is because the folder is read-only, the block runs: it
            finds out for itself whether it has anything to write.
    """
    output = output.resolve() if output.is_symlink() else output  # two names of one output are one
    path = output.with_name(output.name + ".lock")
    with storage_errors(f"cannot make the folder {path.parent}"):
        path.parent.mkdir(parents=True, exist_ok=True)
    told = False
    while True:
        try:
            with storage_errors(f"cannot write {path}"):
                descriptor = _open(path)
        except StorageError as error:
            if isinstance(error.__cause__, OSError) and error.__cause__.errno in _READ_ONLY:
                yield
                return
            raise
        try:
            try:
                held = lock_descriptor(descriptor, blocking=False)
            except OSError as error:
                note(
                    f"the file system of {output} has no locks ({os.strerror(error.errno or 0)}): nothing keeps "
                    "another run from writing there at the same time"
                )
                with contextlib.suppress(OSError):  # another user's
                    path.unlink(missing_ok=True)
                yield
                return
            if held and _is_at(descriptor, path):
                try:
                    with contextlib.suppress(OSError):  # a full disk, or another user's file: then it is unsigned
                        _sign(descriptor)
                    yield
                finally:
                    with contextlib.suppress(OSError):  # another user's, in a folder that lets nobody else remove it
                        path.unlink(missing_ok=True)  # while it is held: who opened it before tries again
                    unlock_descriptor(descriptor)
                return
            holder = "" if held else _holder(path)
        finally:
            os.close(descriptor)
        if held:  # the lock of a run that has just ended, whose file is gone
            continue
        if not wait:
            raise BusyError(
                f"another run is writing {output}: {holder}; wait for it with `wait=True`, or choose another `out`"
            )
        if not told:
            note(f"waiting for another run that is writing {output}: {holder}")
            told = True
        time.sleep(_POLL_SECONDS)


def _open(path: Path) -> int:
    """Open the lock's file, made where it is missing; another user's is opened for reading, which is enough to lock."""
    flags = getattr(os, "O_NOFOLLOW", 0)
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | flags, 0o666)
    except OSError as error:
        if error.errno not in _READ_ONLY or not path.exists():
            raise
    try:
        return os.open(path, os.O_RDONLY | flags)
    except OSError as error:
        raise BusyError(f"{path} is another user's, and cannot be read: {os.strerror(error.errno or 0)}") from None


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether the file that was locked is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _sign(descriptor: int) -> None:
    since = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    os.truncate(descriptor, 0)
    os.write(descriptor, json.dumps(dataclasses.asdict(Holder(socket.gethostname(), os.getpid(), since))).encode())


def _holder(path: Path) -> str:
    """Who holds the lock; its file may be unsigned yet, or, on Windows, not be read by others."""
    try:
        fields = json.loads(path.read_bytes())
        return str(Holder(str(fields["host"]), int(fields["process"]), str(fields["since"])))
    except (OSError, ValueError, KeyError, TypeError):
        return "it has not said who it is"
