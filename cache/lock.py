"""Locks: one run at a time writes an output. A lock file beside the output names the run that holds the lock."""

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
from .siblings import lock_path

_POLL_SECONDS = 0.5
_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


@dataclasses.dataclass(frozen=True)
class Holder:
    """The holder of a lock, as the lock file names it."""

    host: str
    process: int
    since: str
    """ISO 8601, UTC."""

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}, since {self.since}"


@contextlib.contextmanager
def hold(output: Path, *, wait: bool | None = None, note: Callable[[str], None] = lambda text: None) -> Iterator[None]:
    """Lock an output while the block runs, so that no other run writes it.

    The operating system holds the lock, on a file beside the output. So the lock ends when its process ends, for
    whatever reason, and a lock file that is left over locks nothing. Readers ignore the lock: a finished output never
    changes, but is replaced in one step. The folder of the output is made if it is missing.

    Args:
        output: The output.
        wait: Wait for another run that holds the lock. None: the caller has no such setting, so no message offers it.
        note: Called with a text when the block has to wait, or when it runs without a lock, because the file system has
            none.

    Raises:
        BusyError: another run holds the lock, and ``wait`` is not True; or the lock file cannot be read.
        StorageError: the lock file cannot be made. In a read-only folder the block runs without a lock, because it may
            have nothing to write.
    """
    output = output.resolve() if output.is_symlink() else output  # an output with two names has one lock
    path = lock_path(output)
    with storage_errors(f"cannot make the folder {path.parent}"):
        path.parent.mkdir(parents=True, exist_ok=True)
    noted = False
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
                    f"the file system of {output} has no locks ({os.strerror(error.errno or 0)}): make sure that no "
                    "other run writes it at the same time"
                )
                with contextlib.suppress(OSError):  # it belongs to another user
                    path.unlink(missing_ok=True)
                yield
                return
            if held and _is_at(descriptor, path):
                try:
                    with contextlib.suppress(OSError):  # a full disk, or a file of another user: it stays unsigned
                        _sign(descriptor)
                    yield
                finally:
                    with contextlib.suppress(OSError):  # a file of another user, in a folder with the sticky bit
                        path.unlink(missing_ok=True)  # before it is unlocked: a run that has opened it tries again
                    unlock_descriptor(descriptor)
                return
            holder = "" if held else _holder(path)
        finally:
            os.close(descriptor)
        if held:  # the run that made this file has just ended, and has removed it
            continue
        if not wait:
            advice = "try again when it has finished" if wait is None else "wait for it with `wait=True`"
            raise BusyError(f"another run is writing {output}: {holder}; {advice}")
        if not noted:
            note(f"waiting for another run, which is writing {output}: {holder}")
            noted = True
        time.sleep(_POLL_SECONDS)


def _open(path: Path) -> int:
    """Open or make the lock file. A file of another user is opened for reading, which is enough to lock it."""
    flags = getattr(os, "O_NOFOLLOW", 0)
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | flags, 0o666)
    except OSError as error:
        if error.errno not in _READ_ONLY or not path.exists():
            raise
    try:
        return os.open(path, os.O_RDONLY | flags)
    except OSError as error:
        raise BusyError(
            f"{path} belongs to another user, and cannot be read: {os.strerror(error.errno or 0)}"
        ) from None


def _is_at(descriptor: int, path: Path) -> bool:
    """Return whether the locked file still has this name."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _sign(descriptor: int) -> None:
    since = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    os.truncate(descriptor, 0)
    os.write(descriptor, json.dumps(dataclasses.asdict(Holder(socket.gethostname(), os.getpid(), since))).encode())


def _holder(path: Path) -> str:
    """Return the holder of a lock. Its file may be unsigned yet, or, on Windows, other processes may not read it."""
    try:
        fields = json.loads(path.read_bytes())
        return str(Holder(str(fields["host"]), int(fields["process"]), str(fields["since"])))
    except (OSError, ValueError, KeyError, TypeError):
        return "an unknown process"
