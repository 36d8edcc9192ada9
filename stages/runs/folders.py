"""Output folders: each appears when it is complete, and replaces nothing that headstart did not write."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...cache.documents import checked, read_json_file
from ...cache.errors import DamagedError, FormatError, OutputExistsError, StorageError, storage_errors
from ...cache.lock import hold
from ...cache.siblings import followed
from ...cache.workspace import is_plain_file, remove_leftovers, replace_folder, workspace
from ..progress import Note, Report


@dataclasses.dataclass(frozen=True)
class FolderKind:
    """A kind of folder that headstart writes.

    Attributes:
        name: Its name in messages, such as ``run``.
        file: The JSON file that identifies such a folder.
        format: The value of ``format`` in that file.
        version: The newest value of ``version`` in that file.
        command: The command that makes such a folder.
        others: A pattern of the other files in it, by their paths from it; a folder ends in a slash.
        record: A `TypedDict` of the fields that every such file holds; it MAY hold more. None: they are not checked.
    """

    name: str
    file: str
    format: str
    version: int
    command: str
    others: str
    record: type[Any] | None = None

    def write(self, folder: Path, fields: dict[str, Any], *, version: int = 1) -> None:
        """Write the JSON file into a folder that is not complete yet."""
        content = json.dumps({"format": self.format, "version": version, **fields}, ensure_ascii=False, indent=1)
        (folder / self.file).write_text(content + "\n", encoding="utf-8")

    def read(self, folder: Path) -> dict[str, Any]:
        """Read and check the JSON file.

        Raises:
            FormatError: the folder is not of this kind, or was written by a newer version.
            DamagedError: the file is not JSON, is a pipe or the like, lacks a field, or a field has the wrong type.
            StorageError: the file cannot be read.
        """
        path = folder / self.file
        try:
            fields = read_json_file(path)
        except (FileNotFoundError, NotADirectoryError):
            raise FormatError(
                f"{folder} is not {self._a} {self.name} (it holds no {self.file}); make one with {self.command}"
            ) from None
        except OSError as error:
            raise StorageError(f"cannot read {path}: {error.strerror}") from None
        if not isinstance(fields, dict) or fields.get("format") != self.format:
            raise FormatError(f"{folder} is not {self._a} {self.name}: its {self.file} was not written by headstart")
        if fields.get("version") not in range(1, self.version + 1):
            raise FormatError(
                f"{path} is of version {fields.get('version')!r}; this headstart reads up to {self.version}: upgrade it"
            )
        return fields if self.record is None else checked(fields, self.record, str(path))

    @property
    def _a(self) -> str:
        """The article of the name."""
        return "an" if self.name[0] in "aeiou" else "a"

    def require_free(self, folder: Path, *, overwrite: bool) -> None:
        """Refuse an output folder that exists, unless it is empty, or is of this kind and may be overwritten.

        A file in it that headstart did not make is never removed, so a folder with one is refused.

        Raises:
            OutputExistsError: the folder exists and may not be replaced.
            StorageError: the folder cannot be read.
        """
        if not folder.name:
            raise OutputExistsError(
                f"{str(folder)!r} is no name for {self._a} {self.name}; name a new folder with `out`"
            )
        followed(folder)  # a link that leads to itself, or a name that is too long, is refused
        if folder.exists() and not folder.is_dir():
            raise OutputExistsError(f"{folder} is a file; choose another `out` for the {self.name}'s folder")
        with storage_errors(f"cannot read {folder}"):
            if not folder.exists() or not any(folder.iterdir()):
                return
        if not overwrite:
            raise OutputExistsError(f"{folder} exists already; choose another `out`, or pass `overwrite=True`")
        try:
            self.read(folder)
        except FormatError:
            raise OutputExistsError(
                f"{folder} is not {self._a} {self.name}, so it is not overwritten; choose another `out`"
            ) from None
        except DamagedError:  # a damaged folder of this kind may be replaced
            if not self._wrote(folder / self.file):
                raise OutputExistsError(
                    f"{folder / self.file} was not written by headstart; choose another `out`"
                ) from None
        if other := first_foreign(folder, self.contents):
            raise OutputExistsError(
                f"{other} was not made by headstart, and would be lost with the {self.name}: move it elsewhere, or "
                "choose another `out`"
            )

    @property
    def contents(self) -> str:
        """A pattern of all files in such a folder."""
        return rf"{re.escape(self.file)}|{self.others}"

    def _wrote(self, path: Path) -> bool:
        """Whether a JSON file begins as `write` begins it."""
        beginning = json.dumps({"format": self.format}, indent=1)[:-2].encode()
        return is_plain_file(path) and path.read_bytes()[: len(beginning)] == beginning

    @contextlib.contextmanager
    def held(self, folder: Path, *, overwrite: bool, wait: bool, report: Report) -> Iterator[None]:
        """Lock an output folder, so that no other run writes it in the meantime.

        Raises:
            OutputExistsError: the folder exists and may not be replaced.
            BusyError: another run is writing the folder, and ``wait`` is False.
            StorageError: the parent folder cannot be written.
        """
        self.require_free(folder, overwrite=overwrite)
        with hold(folder, wait=wait, note=lambda text: report(Note(text))):
            remove_leftovers(folder)
            self.require_free(folder, overwrite=overwrite)  # another run may have made it while this one waited
            yield

    @contextlib.contextmanager
    def new(self, folder: Path, *, overwrite: bool) -> Iterator[Path]:
        """Yield a scratch folder to fill. It gets the folder's name at the end; after an error it is removed.

        Raises:
            OutputExistsError: the folder exists and may not be replaced.
            StorageError: the folder cannot be written.
        """
        self.require_free(folder, overwrite=overwrite)
        with workspace(folder) as work, storage_errors(f"cannot write {folder}"):
            scratch = work / "new"
            scratch.mkdir()
            yield scratch
            self.require_free(folder, overwrite=overwrite)  # another run may have made it in the meantime
            replace_folder(scratch, folder)


def first_foreign(folder: Path, contents: str) -> Path | None:
    """The first file or folder inside that the pattern does not name, or that is a link; None if there is none."""
    with storage_errors(f"cannot read {folder}"):
        for place, folders, files in os.walk(folder, onerror=_raise):
            for name in sorted([*folders, *files]):
                path = Path(place, name)
                shown = path.relative_to(folder).as_posix() + ("/" if name in folders else "")
                plain = is_plain_file(path) or (name in folders and not path.is_symlink())
                if not plain or not re.fullmatch(contents, shown):
                    return path
    return None


def _raise(error: OSError) -> None:
    raise error
