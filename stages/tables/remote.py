"""Tables on object stores and web servers, by fsspec: a copy of the file is read, and the original is watched."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import weakref
from pathlib import Path
from typing import Any

from ...cache.errors import HeadstartError, SettingsError, StorageError, TableError, one_line
from ...cache.hashing import digest

_URL = re.compile(r"([a-z][a-z0-9+.-]+):/+(.+)")  # `Path` makes one slash of two
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}


def remote_url(table: str | os.PathLike[str]) -> str | None:
    """Return the URL that a table's name is, such as ``s3://bucket/reviews.csv``; None where it is a local path."""
    match = _URL.fullmatch(os.fspath(table))
    return None if match is None else f"{match[1]}://{match[2]}"


def open_system(url: str) -> tuple[Any, str]:
    """Return the file system of fsspec that a URL is on, and the path there.

    Raises:
        SettingsError: the library that reads from there is not installed.
        StorageError: it does not open the file system.
        ValueError: fsspec knows no such URLs.
    """
    scheme = url.partition(":")[0]
    try:
        import fsspec

        system, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        extra = f": pip install 'headstart[{_EXTRAS[scheme]}]'" if scheme in _EXTRAS else ""
        raise SettingsError(f"{url} cannot be read: {one_line(error)}{extra}") from None
    except ValueError:
        raise
    except Exception as error:  # of any library: no credentials, say
        raise StorageError(f"cannot read {url}: {one_line(error) or type(error).__name__}") from None
    return system, str(path)


class RemoteFile:
    """A remote file. Credentials are those of the environment, as its library takes them.

    Attributes:
        url: Where it is.
        copy: A local copy with its name, which is removed with this object.
    """

    def __init__(self, url: str) -> None:
        """Copy the file.

        Raises:
            SettingsError: the library that reads from there is not installed.
            TableError: there is no such file, or it changed meanwhile.
            StorageError: it cannot be read.
        """
        self.url = url
        try:
            self._system, self._path = open_system(url)
        except ValueError as error:
            raise TableError(f"{url} cannot be read: {one_line(error)}") from None
        folder = tempfile.mkdtemp(prefix="headstart-")
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self.copy = Path(folder) / (url.partition("?")[0].rstrip("/").rpartition("/")[2] or "table")
        before = self.state()
        self._try(self._system.get_file, self._path, str(self.copy))
        if not self.copy.is_file():
            raise TableError(f"{url} is a folder; give one of its files")
        if self.state() != before:
            raise TableError(f"{url} changed while it was read; run again when nothing writes to it")

    def state(self) -> int:
        """Return a number that changes when the file does: of its size, its time of change, its ETag."""
        self._try(self._system.invalidate_cache)
        return int.from_bytes(digest(str(self._try(self._system.ukey, self._path)).encode())[:7], "little")

    def named(self, text: str) -> str:
        """Return a message with the URL where it names the copy."""
        return text.replace(str(self.copy), self.url)

    def _try(self, call: Any, *arguments: Any) -> Any:
        try:
            return call(*arguments)
        except HeadstartError:
            raise
        except FileNotFoundError:
            raise TableError(f"{self.url} does not exist") from None
        except Exception as error:  # of any library
            raise StorageError(f"cannot read {self.url}: {one_line(error) or type(error).__name__}") from None
