"""Folders that a stage writes: complete or not there, and never in the place of what is not ours."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...cache.documents import read_json_file
from ...cache.errors import DamagedError, FormatError, OutputExistsError, StorageError
from ...cache.layout import storage_errors
from ...cache.lock import hold
from ...cache.writer import sync_folder
from ..progress import Note, Report


@dataclasses.dataclass(frozen=True)
class FolderKind:
    """A kind of folder that headstart writes.

    Attributes:
        name: What it is called, such as ``run``.
        file: The JSON file by which it is known.
        format: What that file says of itself.
        version: Of the format.
        command: What makes one.
    """

    name: str
    file: str
    format: str
    version: int
    command: str

    def write(self, folder: Path, fields: dict[str, Any]) -> None:
        """Write the JSON file into a folder that is being made."""
        content = json.dumps({"format": self.format, "version": self.version, **fields}, ensure_ascii=False, indent=1)
        (folder / self.file).write_text(content + "\n", encoding="utf-8")

    def read(self, folder: Path) -> dict[str, Any]:
        """Read the JSON file.

        Raises:
            NotOursError: the folder is not of this kind, or of a newer version.
            DamagedError: its file is not JSON, or no file.
            StorageError: it cannot be read.
        """
        path = folder / self.file
        try:
            fields = read_json_file(path)
        except (FileNotFoundError, NotADirectoryError):
            raise FormatError(
                f"{folder} is not a {self.name} (it holds no {self.file}); make one with {self.command}"
            ) from None
        except OSError as error:
            raise StorageError(f"cannot read {path}: {error.strerror}") from None
        if not isinstance(fields, dict) or fields.get("format") != self.format:
            raise FormatError(f"{folder} is not a {self.name}: its {self.file} was not written by headstart")
        if fields.get("version") != self.version:
            raise FormatError(
                f"{path} is of version {fields.get('version')!r}; this headstart reads {self.version}: upgrade it"
            )
        return fields

    def require_free(self, folder: Path, *, overwrite: bool) -> None:
        """Refuse an output that is there already, unless it is of this kind and may be replaced.

        Raises:
            OutputExistsError: it is.
        """
        if not folder.name:
            raise OutputExistsError(
                f"{str(folder)!r} is no name for a {self.name}; choose a folder that is to be made with `out`"
            )
        if folder.exists() and not folder.is_dir():
            raise OutputExistsError(f"{folder} is a file; choose another `out` for the {self.name}'s folder")
        if not folder.exists() or not any(folder.iterdir()):
            return
        if not overwrite:
            raise OutputExistsError(f"{folder} exists already; choose another `out`, or pass `overwrite=True`")
        try:
            self.read(folder)
        except FormatError:
            raise OutputExistsError(
                f"{folder} is not a {self.name}, so it is not overwritten; choose another `out`"
            ) from None
        except DamagedError:
            return  # ours, and what `overwrite` is for

    @contextlib.contextmanager
    def held(self, folder: Path, *, overwrite: bool, wait: bool, report: Report) -> Iterator[None]:
        """Keep other runs from an output while it is being made.

        Raises:
            OutputExistsError: it is there already and may not be replaced.
            BusyError: another run is writing it, and ``wait`` is False.
            StorageError: its parent folder cannot be written.
        """
        self.require_free(folder, overwrite=overwrite)
        with hold(folder, wait=wait, note=lambda text: report(Note(text))):
            self.require_free(folder, overwrite=overwrite)  # the run that was waited for may have made it
            yield

    @contextlib.contextmanager
    def new(self, folder: Path, *, overwrite: bool) -> Iterator[Path]:
        """Give a scratch folder to fill; it takes the folder's name when all went well, and is gone when not.

        Raises:
            OutputExistsError: the folder is there already and may not be replaced.
            StorageError: it cannot be written.
        """
        self.require_free(folder, overwrite=overwrite)
        folder = folder.resolve()  # a link stays a link: what it points to is replaced
        with storage_errors(f"cannot write {folder}"):
            folder.parent.mkdir(parents=True, exist_ok=True)
            # Beside the folder, so that it is moved and not copied; of a name that is nobody's.
            holder = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            scratch = holder / "new"
            with storage_errors(f"cannot write {folder}"):
                scratch.mkdir()
            with storage_errors(f"cannot write {folder}"):
                yield scratch
            self.require_free(folder, overwrite=overwrite)  # another run may have made it in the meantime
            with storage_errors(f"cannot write {folder}"):
                replace_folder(scratch, folder, aside=holder / "old")
        finally:
            shutil.rmtree(holder, ignore_errors=True)


def replace_folder(scratch: Path, folder: Path, *, aside: Path) -> None:
    """Give a folder that is complete its final name, durably; what was there stands aside meanwhile, and comes back
    where anything goes wrong.

    Raises:
        OSError: it cannot be done; what was there is there still.
    """
    for path in [*scratch.rglob("*"), scratch]:
        sync_folder(path) if path.is_dir() else sync_file(path)
    if folder.exists():
        folder.rename(aside)
    try:
        scratch.rename(folder)
    except BaseException:  # Ctrl-C among them
        if aside.exists() and not folder.exists():
            aside.rename(folder)
        raise
    sync_folder(folder.parent)


def sync_file(path: Path) -> None:
    """Make a file's content durable."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
