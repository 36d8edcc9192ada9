"""Shards on an object store, by fsspec: a folder that machines share where they share no file system.

A file has its name when it is whole: it is uploaded under a temporary name, and then published in one step. The name
holds a hash of all that decides the content, so whoever uploads it uploads the same. What is downloaded is verified
before it gets its name here.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import re
import secrets
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path

from ...cache.errors import DamagedError, FormatError, HeadstartError, SettingsError, StorageError, one_line
from ...cache.lock import hold
from ...cache.reader import shard_fields
from ...cache.seal import SEAL_BYTES, parse_seal
from ...cache.siblings import shards_path
from ...cache.workspace import replace_file, sync_file, workspace
from ..progress import Note, Report, Step
from ..tables.remote import open_system, remote_url
from .plan import SHARD_FILE, open_named

_FILE = re.compile(r"\d{5}-[0-9a-f]{16}(\.common)?\.h5")
_TEMPORARY = re.compile(rf"(probe|{_FILE.pattern})\.headstart-[\w-]+")
_HERE = ("file:", "local:")
_MOST_AGE = datetime.timedelta(days=1)
"""Of a file under a temporary name. An older one is of a run that was killed."""


class ShardStore:
    """A folder of an object store. Credentials are those of the environment, as its library takes them.

    Attributes:
        url: Where it is, without a slash at the end.
    """

    def __init__(self, url: str | os.PathLike[str]) -> None:
        """Open the store; nothing is asked of it yet.

        Raises:
            SettingsError: this is no URL, or none of fsspec; or the library for it is not installed.
            StorageError: the library does not open it.
        """
        whole = remote_url(url)
        if whole is None:
            raise SettingsError(f"`store` is {os.fspath(url)[:80]!r}; give the URL of a folder: s3://bucket/folder")
        self.url = whole.rstrip("/")
        if self.url.startswith(_HERE):
            raise SettingsError(f"`store` is {self.url[:80]!r}, a folder of this machine; let runs share that of `out`")
        try:
            self._system, path = open_system(self.url)
        except ValueError as error:
            raise SettingsError(f"`store` is {self.url[:80]!r}, which cannot be used: {one_line(error)}") from None
        self._folder = path.rstrip("/")
        self._damaged: set[str] = set()  # files that were found to be damaged here

    def url_of(self, name: str) -> str:
        return f"{self.url}/{name}"

    def require_writable(self) -> None:
        """Write and remove an empty file, so that what cannot be written to is refused before anything is encoded.

        Raises:
            StorageError: it cannot be done.
        """
        probe = self._at(_temporary("probe"))
        with self._errors(f"cannot write {self.url}"):
            self._system.pipe_file(probe, b"")
            self._system.rm_file(probe)

    def shards(self) -> dict[str, int]:
        """Return the names of the shards in the store, and their bytes.

        Raises:
            StorageError: the store cannot be read.
        """
        return {name: size for name, size in self._list().items() if SHARD_FILE.fullmatch(name)}

    def holds(self, name: str) -> bool:
        """Whether the store has a file of this name whose seal is whole, and which is as long as the seal says.

        That takes two small requests. Only `fetch` looks at the rest.

        Raises:
            StorageError: the store cannot be read.
        """
        if name in self._damaged:
            return False
        with self._errors(f"cannot read {self.url_of(name)}"):
            self._system.invalidate_cache()
            try:
                size = self._system.info(self._at(name))["size"]
                first = self._system.cat_file(self._at(name), start=0, end=SEAL_BYTES) if size >= SEAL_BYTES else b""
            except FileNotFoundError:
                return False
        try:
            seal, _ = parse_seal(first, size, Path(name))
        except (DamagedError, FormatError):
            return False
        return not seal.shards

    def upload(self, path: Path) -> None:
        """Upload a whole file, and give it its name there in one step.

        Raises:
            StorageError: that failed; nothing was published.
        """
        private, size = self._at(_temporary(path.name)), path.stat().st_size
        with self._errors(f"cannot write {self.url_of(path.name)}"):
            self._system.put_file(str(path), private)
            self._system.invalidate_cache()
            sent = self._system.info(private)["size"]
            if sent != size:
                raise StorageError(f"cannot write {self.url_of(path.name)}: {sent:,} of {size:,} bytes arrived")
            if self._system.async_impl:  # object stores rename nothing, but a copy appears in one step
                self._system.cp_file(private, self._at(path.name))
                self._system.rm_file(private)
            else:
                self._system.mv(private, self._at(path.name))
        self._damaged.discard(path.name)

    def fetch(self, path: Path, work: Path | None = None) -> bool:
        """Download the file of a path's name to that path. It is verified as a whole, and gets its name in one step.

        Args:
            path: The path here.
            work: The output whose lock is held; None for the path itself.

        Returns:
            Whether the store has such a file that is not known to be damaged.

        Raises:
            DamagedError: the file in the store is cut short or damaged, or is another one.
            StorageError: the store cannot be read, or the path not written.
        """
        if path.name in self._damaged:
            return False
        url = self.url_of(path.name)
        with workspace(work or path) as folder:
            new = folder / "new"
            with self._errors(f"cannot download {url} to {path}"):
                self._system.invalidate_cache()
                try:
                    found = self._system.info(self._at(path.name))
                    if found["type"] != "file":
                        return False
                    self._system.get_file(self._at(path.name), str(new))
                except FileNotFoundError:
                    return False
                if (arrived := new.stat().st_size) != found["size"]:
                    raise StorageError(f"cannot download {url}: {arrived:,} of {found['size']:,} bytes arrived")
            try:
                open_named(new, path.name).check()
            except (DamagedError, FormatError) as error:
                self._damaged.add(path.name)
                reason = str(error).replace(str(new), path.name).partition("; extract again")[0]
                raise DamagedError(f"{url} is damaged, or is another file than its name says: {reason}") from None
            sync_file(new)
            replace_file(new, path)
        return True

    def clean(self, shards: set[str], common: set[str], *, others: bool) -> None:
        """Remove what killed uploads left a day ago or earlier; and once all shards are there, what they replace.

        Args:
            shards: Names of all shards of a cache.
            common: Names of the files of common texts, which nobody needs from then on.
            others: Whether the shards of other rows go then, too.

        Raises:
            StorageError: the store cannot be read or written.
        """
        names = self._list().keys()
        unwanted = {name for name in names if _TEMPORARY.fullmatch(name) and self._is_old(name)}
        if shards <= names:
            unwanted |= {name for name in names - shards if name in common or (others and _FILE.fullmatch(name))}
        for name in sorted(unwanted):
            with self._errors(f"cannot remove {self.url_of(name)}"), contextlib.suppress(FileNotFoundError):
                self._system.rm_file(self._at(name))

    def _is_old(self, name: str) -> bool:
        with self._errors(f"cannot read {self.url_of(name)}"):
            try:
                changed: datetime.datetime = self._system.modified(self._at(name))
            except (FileNotFoundError, NotImplementedError):
                return False
        if changed.tzinfo is None:
            changed = changed.replace(tzinfo=datetime.UTC)
        return datetime.datetime.now(datetime.UTC) - changed > _MOST_AGE

    def _list(self) -> dict[str, int]:
        """Names and bytes of all files in the folder."""
        with self._errors(f"cannot read {self.url}"):
            self._system.invalidate_cache()
            try:
                found = self._system.ls(self._folder, detail=True)
            except FileNotFoundError:  # there is no folder where there is no file
                return {}
        return {each["name"].rpartition("/")[2]: each["size"] for each in found if each["type"] == "file"}

    def _at(self, name: str) -> str:
        return f"{self._folder}/{name}"

    @contextlib.contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        """Turn errors of any library into one line."""
        try:
            yield
        except HeadstartError:
            raise
        except Exception as error:
            raise StorageError(f"{what}: {one_line(error) or type(error).__name__}") from error


def fetch_shards(store: ShardStore, out: Path, report: Report) -> None:
    """Download the shards of a joined cache that its folder lacks.

    Raises:
        FormatError: neither the store nor the folder holds shards.
        DamagedError: one is in neither, or is damaged in the store; or there are two with one number.
        StorageError: the store cannot be read, or the folder not written.
    """
    folder, url = shards_path(out), store.url
    here = {path.name for path in folder.glob("*.h5") if SHARD_FILE.fullmatch(path.name)}
    names = sorted(here | store.shards().keys())
    if not names:
        raise FormatError(
            f"{url} holds no shards, or is not there; make them with: headstart extract TABLE --out {out} --shards N "
            f"--store {url}"
        )
    numbers = [int(name[:5]) for name in names]
    if len(set(numbers)) < len(numbers):
        raise DamagedError(
            f"{url} or {folder} holds shards of two tables: run headstart extract again, with `store` and `update=True`"
        )
    _require_all(numbers, numbers[-1], url)
    fetch_files(store, names[-1:], folder, report)
    count = shard_fields(open_named(folder / names[-1], names[-1])).get("of")
    _require_all(numbers, count if isinstance(count, int) else 0, url)
    fetch_files(store, names[:-1], folder, report)


def _require_all(numbers: list[int], count: int, url: str) -> None:
    """Refuse shards of which one is missing."""
    if missing := sorted(set(range(1, count + 1)) - set(numbers)):
        raise DamagedError(f"{url} lacks shard {missing[0]}: make it with headstart extract and the same `store`")


def fetch_files(
    store: ShardStore, names: Iterable[str], folder: Path, report: Report, *, skip_damaged: bool = False
) -> None:
    """Download files into a folder, but for those that are there, whole.

    Args:
        store: Where they are.
        names: Their names.
        folder: The folder; it is made where it is missing.
        report: Receives progress and notes.
        skip_damaged: Leave out what is damaged, with a note.

    Raises:
        DamagedError: the store lacks a file, or it is damaged there.
        StorageError: the store cannot be read, or the folder not written.
    """
    wanted = list(names)
    for done, name in enumerate(wanted):
        path = folder / name
        with hold(path, wait=True, note=lambda text: report(Note(text))):
            if path.exists():
                with contextlib.suppress(DamagedError, FormatError):
                    open_named(path, name)
                    continue
            report(Step("downloading", done, len(wanted), "shards"))
            try:
                if not store.fetch(path):
                    raise DamagedError(f"{store.url_of(name)} is not there, and {path} is damaged or missing")
            except DamagedError as error:
                if not skip_damaged:
                    advice = "run headstart extract with all `shards` and this `store`, which makes it again"
                    raise DamagedError(f"{error}; {advice}") from None
                report(Note(f"{error}; nothing is copied from it"))


def _temporary(name: str) -> str:
    """A name that no other process takes."""
    host = re.sub(r"[^\w-]", "-", socket.gethostname())[:64]
    return f"{name}.headstart-{host}-{os.getpid()}-{secrets.token_hex(4)}"
