"""Locks: one run at a time writes an output. A lock file beside the output names the run that holds the lock."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import errno
import json
import os
import socket
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import lock_descriptor, unlock_descriptor

from .errors import BusyError, StorageError, storage_errors
from .siblings import followed, lock_path
from .workspace import foreign

_POLL_SECONDS = 0.5
_FORMAT = "headstart-lock"
_SIGNED_BYTES = 512
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
def hold(
    output: Path,
    *,
    wait: bool | None = None,
    note: Callable[[str], None] = lambda text: None,
    note_waiting: bool = True,
) -> Iterator[None]:
    """Lock an output while the block runs, so that no other run writes it.

    The operating system holds the lock, on a file beside the output. So the lock ends when its process ends, for
    whatever reason, and a lock file that is left over locks nothing. A file of this name that headstart did not make
    serves, too: it is locked, but neither written nor removed. Readers ignore the lock: a finished output never
    changes, but is replaced in one step. The folder of the output is made if it is missing.

    Args:
        output: The output.
        wait: Wait for another run that holds the lock. None: the caller has no such setting, so no message offers it.
        note: Called with a text when the block has to wait, or when it runs without a lock, because the file system has
            none.
        note_waiting: Whether a wait is noted.

    Raises:
        BusyError: another run holds the lock, and ``wait`` is not True; or the lock file cannot be read.
        OutputExistsError: a folder or a link stands where the lock file belongs.
        StorageError: the lock file cannot be made. In a read-only folder the block runs without a lock, because it may
            have nothing to write.
    """
    output = followed(output)  # an output with two names has one lock
    path = lock_path(output)
    with storage_errors(f"cannot make the folder {path.parent}"):
        path.parent.mkdir(parents=True, exist_ok=True)
    noted = False
    while True:
        try:
            with storage_errors(f"cannot write {path}"):
                descriptor, made = _open(path)
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
                _remove(descriptor, path, made=made)
                yield
                return
            if held and _is_at(descriptor, path):
                try:
                    if made or _is_signed(descriptor):
                        _sign(descriptor)
                    yield
                finally:
                    _remove(descriptor, path, made=made)  # before it is unlocked: a run that has opened it tries again
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
        if note_waiting and not noted:
            note(f"waiting for another run, which is writing {output}: {holder}")
            noted = True
        time.sleep(_POLL_SECONDS)


def _open(path: Path) -> tuple[int, bool]:
    """Open or make the lock file; return whether it was made, too. What is made is signed at once: so it is known.

    A file of another user is opened for reading, which is enough to lock it.
    """
    flags = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    ways = [os.O_RDWR | os.O_CREAT | os.O_EXCL, os.O_RDWR, os.O_RDONLY]
    while True:
        try:
            descriptor = os.open(path, ways[0] | flags, 0o666)
        except FileExistsError:
            ways = ways[1:]
            with contextlib.suppress(FileNotFoundError):  # another run has just removed it
                if not stat.S_ISREG(path.lstat().st_mode):
                    raise foreign(path) from None
        except FileNotFoundError:
            if len(ways) == 3:  # there is no such folder
                raise
            return _open(path)  # another run has just removed it
        except OSError as error:
            if ways[0] == os.O_RDONLY:
                raise BusyError(
                    f"{path} belongs to another user, and cannot be read: {os.strerror(error.errno or 0)}"
                ) from None
            if error.errno not in _READ_ONLY or not path.exists():
                raise
            ways = [os.O_RDONLY]
        else:
            if made := len(ways) == 3:
                _sign(descriptor)
            return descriptor, made


def _is_at(descriptor: int, path: Path) -> bool:
    """Return whether the locked file still has this name."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


def _sign(descriptor: int) -> None:
    """Write who holds the lock. The file stays as it is where the disk is full, or another user owns it."""
    since = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    fields = {"format": _FORMAT, **dataclasses.asdict(Holder(socket.gethostname(), os.getpid(), since))}
    with contextlib.suppress(OSError):
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.write(descriptor, json.dumps(fields).encode().ljust(_SIGNED_BYTES))  # at once: it is never empty between


def _is_signed(descriptor: int) -> bool:
    """Whether headstart made the lock file."""
    beginning = json.dumps({"format": _FORMAT})[:-1].encode()
    os.lseek(descriptor, 0, os.SEEK_SET)
    return os.read(descriptor, len(beginning)) == beginning


def _remove(descriptor: int, path: Path, *, made: bool) -> None:
    """Remove the lock file if headstart made it. Where it is another user's, it may have to stay."""
    with contextlib.suppress(OSError):
        if made or _is_signed(descriptor):
            path.unlink(missing_ok=True)


def _holder(path: Path) -> str:
    """Return the holder of a lock. Its file may be unsigned yet, or, on Windows, other processes may not read it."""
    try:
        fields = json.loads(path.read_bytes())
        return str(Holder(str(fields["host"]), int(fields["process"]), str(fields["since"])))
    except (OSError, ValueError, KeyError, TypeError):
        return "an unknown process"
