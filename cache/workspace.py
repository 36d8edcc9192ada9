"""What is not finished lies in a folder of its own, and gets its name in one step. Nobody else's file is touched.

A killed run leaves its folder. The next run of the same output removes it, by the mark inside.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import shutil
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

from .errors import OutputExistsError, storage_errors
from .siblings import followed, work_path

MARK = "made-by-headstart"
"""An empty file in each folder of work. It is made first and removed last."""
_OLD = "old"
_MADE = re.compile(rf"{MARK}|new|{_OLD}|partial|thrown-away|\d+\.json")
"""Names of what commands make in a folder of work. What has another name there is a user's, and stays."""
_NO_EXCHANGE = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)


@contextlib.contextmanager
def workspace(output: Path) -> Iterator[Path]:
    """Yield an empty folder beside an output, for the run that holds the output's lock. It is removed at the end.

    Raises:
        OutputExistsError: something else stands under the folder's name.
        StorageError: the folder cannot be made.
    """
    remove_leftovers(output)
    folder = work_path(output)
    with storage_errors(f"cannot write {folder}"):
        folder.mkdir(mode=0o700)
        (folder / MARK).touch(exist_ok=False)
    try:
        yield folder
    finally:
        with contextlib.suppress(OSError):  # the next run removes it
            _remove(folder)


def remove_leftovers(output: Path) -> None:
    """Remove the work folder of a run that was killed. An old folder that it had moved aside gets its name again.

    Raises:
        OutputExistsError: the folder was not made by headstart, or holds something that was not.
        StorageError: the folder cannot be removed.
    """
    folder, output = work_path(output), followed(output)
    if not os.path.lexists(folder):
        return
    with storage_errors(f"cannot remove {folder}, which a killed run left"):
        if folder.is_symlink() or not folder.is_dir():
            raise foreign(folder)
        inside, mark = list(folder.iterdir()), folder / MARK
        # An empty folder was made by a run that was killed before it made the mark.
        if inside and not (is_plain_file(mark) and mark.stat().st_size == 0):
            raise foreign(folder)
        if other := next((path for path in inside if not _MADE.fullmatch(path.name)), None):
            raise foreign(other)
        if (folder / _OLD).is_dir() and not os.path.lexists(output):
            (folder / _OLD).rename(output)
        _remove(folder)


def foreign(path: Path) -> OutputExistsError:
    """The error for something that stands where headstart's own work belongs."""
    return OutputExistsError(
        f"{path} is in the way, and headstart did not make it: move it elsewhere, or choose another `out`"
    )


def is_plain_file(path: Path) -> bool:
    """Whether this is a file, and no link to one."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def open_own(path: str, flags: int) -> int:
    """An opener for ``open``: a symbolic link is not followed."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def keep_access(old: Path, new: Path, *, more: int = 0) -> None:
    """Give what replaces a file or folder the mode of the old one, and its owner and group where the system lets us.

    Args:
        old: The file or folder; nothing happens if there is none.
        new: What replaces it.
        more: Bits of the mode to add.
    """
    try:
        kept, made = old.stat(), new.stat()
    except FileNotFoundError:
        return
    if (kept.st_uid, kept.st_gid) != (made.st_uid, made.st_gid) and hasattr(os, "chown"):
        for owner in (kept.st_uid, -1):
            with contextlib.suppress(OSError):
                os.chown(new, owner, kept.st_gid)
                break
    if stat.S_IMODE(kept.st_mode) | more != stat.S_IMODE(made.st_mode):
        new.chmod(stat.S_IMODE(kept.st_mode) | more)


def replace_file(new: Path, output: Path) -> None:
    """Rename a file whose bytes are durable, and make the rename durable if the system can.

    A file that it replaces keeps its mode and owner, a symbolic link stays.
    """
    output = followed(output)
    with storage_errors(f"cannot write {output}"):
        keep_access(output, new)
        new.replace(output)
        sync_folder(output.parent)


def replace_folder(new: Path, output: Path) -> None:
    """Give a complete folder of a workspace its name, durably. An old folder is in its place afterwards.

    The names are exchanged in one step. Where the system cannot, the old folder is moved aside first; after an error it
    is moved back, after a kill `remove_leftovers` moves it back.

    Raises:
        OSError: the folder cannot be renamed; the old folder is in its place.
    """
    output = followed(output)
    for path in [*new.rglob("*"), new]:
        sync_folder(path) if path.is_dir() else sync_file(path)
        keep_access(output / path.relative_to(new), path)
    if not output.exists():
        new.rename(output)
    elif not exchange(new, output):
        aside = new.with_name(_OLD)
        output.rename(aside)
        try:
            new.rename(output)
        except BaseException:  # Ctrl-C among them
            if not output.exists():
                aside.rename(output)
            raise
        aside.rename(new)
    sync_folder(output.parent)


def exchange(one: Path, other: Path) -> bool:
    """Exchange the names of two files or folders in one step; False where the system cannot.

    Raises:
        OSError: the system can, and did not.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:  # an old C library
        return False
    here, exchanged = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    if renameat2(here, os.fsencode(one), here, os.fsencode(other), exchanged) == 0:
        return True
    number = ctypes.get_errno()
    if number in _NO_EXCHANGE:
        return False
    raise OSError(number, os.strerror(number), str(other))


def sync_file(path: Path) -> None:
    """Write a file's content through to the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable if the system can."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(folder: Path) -> None:
    """Remove a work folder, its mark last. With something of a user's inside, it stays."""
    for place, inside, _ in os.walk(folder):  # a new run may have got the mode of an old one that nobody may write
        for path in (Path(place, name) for name in inside):
            if not path.is_symlink():
                path.chmod(0o700)
    for path in folder.iterdir():
        if path.name != MARK and _MADE.fullmatch(path.name):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    (folder / MARK).unlink(missing_ok=True)
    folder.rmdir()
