"""The folder that a sweep leaves, and the unfinished one in which it keeps what is done already.

While it runs, a sweep's folder bears its name with ``.partial`` added, and holds ``plan.json`` (what is swept, and on
which rows) and one file for each group of heads that is finished. In the end it holds ``sweep.json``,
``sweep.parquet`` and ``winner``, and takes its own name in one rename.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..cache.errors import DamagedError, NotOursError, OutputExistsError, StorageError
from ..cache.layout import storage_errors

SWEEP_FILE = "sweep.json"
TABLE_FILE = "sweep.parquet"
WINNER = "winner"
FORMAT = "headstart-sweep"
VERSION = 1
_PLAN_FILE = "plan.json"
_GROUPS = "groups"


@dataclasses.dataclass(frozen=True)
class SweepFolder:
    """A sweep's unfinished folder. Made by `open_folder`."""

    scratch: Path
    final: Path

    def finished(self, group: int) -> Any:
        """What was kept of a group of heads; None where it is not finished."""
        path = self._group(group)
        with storage_errors(f"cannot read {path}"):
            return json.loads(path.read_bytes()) if path.exists() else None

    def keep(self, group: int, results: Any) -> None:
        """Keep what a group of heads came to; after a crash it is there in full or not at all."""
        path = self._group(group)
        with storage_errors(f"cannot write {path}"):
            _write(path, results)

    def write_table(self, columns: Mapping[str, list[Any]]) -> None:
        """Write ``sweep.parquet``."""
        import pyarrow as pa  # stage two does without it otherwise
        import pyarrow.parquet

        with storage_errors(f"cannot write {self.scratch / TABLE_FILE}"):
            pa.parquet.write_table(pa.table(dict(columns)), self.scratch / TABLE_FILE)

    def finish(self, fields: Mapping[str, Any]) -> None:
        """Write ``sweep.json``, take the final name, and drop what is needed no more."""
        with storage_errors(f"cannot write {self.final}"):
            _write(self.scratch / SWEEP_FILE, {"format": FORMAT, "version": VERSION, **fields})
            if self.final.exists():
                shutil.rmtree(self.final)
            self.scratch.rename(self.final)
            shutil.rmtree(self.final / _GROUPS)
            (self.final / _PLAN_FILE).unlink()

    def discard(self) -> None:
        """Remove the unfinished folder: nothing in it is worth carrying on with."""
        shutil.rmtree(self.scratch, ignore_errors=True)

    def _group(self, group: int) -> Path:
        return self.scratch / _GROUPS / f"{group:05}.json"


def require_free(folder: Path, *, overwrite: bool) -> None:
    """Refuse an output that is there already, unless it is a sweep that may be replaced."""
    if not folder.name:
        raise OutputExistsError(
            f"{str(folder)!r} is no name for a sweep; choose a folder that is to be made with --out"
        )
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not overwrite:
        raise OutputExistsError(f"{folder} exists already; choose another --out, or --overwrite it")
    if not (folder / SWEEP_FILE).is_file():
        raise OutputExistsError(f"{folder} is not a sweep, so it is not overwritten; choose another --out")


def open_folder(folder: Path, plan: Mapping[str, Any], *, overwrite: bool) -> SweepFolder:
    """Make a sweep's unfinished folder, or take up the one that an interrupted sweep of the same plan left.

    Raises:
        OutputExistsError: the unfinished folder is of another sweep, or is none of ours.
        StorageError: it cannot be written.
    """
    folder = folder.resolve()
    scratch = folder.with_name(folder.name + ".partial")
    wanted = json.loads(json.dumps(plan))
    with storage_errors(f"cannot write {scratch}"):
        if scratch.exists():
            found = _read_plan(scratch)
            if found == wanted:
                return SweepFolder(scratch, folder)
            started = any((scratch / _GROUPS).glob("*.json"))
            if found is None and any(path.name != _GROUPS for path in scratch.iterdir()):
                raise OutputExistsError(f"{scratch} is in the way and is no sweep; remove it, or choose another --out")
            if started and not overwrite:
                raise OutputExistsError(
                    f"{scratch} holds an unfinished sweep of other settings, rows or labels; remove it, "
                    "--overwrite it, or choose another --out"
                )
            shutil.rmtree(scratch)
        (scratch / _GROUPS).mkdir(parents=True)
        _write(scratch / _PLAN_FILE, wanted)
    return SweepFolder(scratch, folder)


def read_sweep(folder: Path) -> dict[str, Any]:
    """Read and check ``sweep.json``.

    Raises:
        NotOursError: it is not a sweep's, or of a newer version.
        DamagedError: it is not what it should be.
        StorageError: it cannot be read.
    """
    path = folder / SWEEP_FILE
    try:
        fields = json.loads(path.read_bytes())
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise DamagedError(f"{path} is not JSON: {error}") from None
    if not isinstance(fields, dict) or fields.get("format") != FORMAT:
        raise NotOursError(f"{path} was not written by headstart")
    if fields.get("version") != VERSION:
        raise NotOursError(
            f"{path} is of version {fields.get('version')!r}; this headstart reads {VERSION}: upgrade it"
        )
    if not isinstance(fields.get("ranking"), list):
        raise DamagedError(f"{path}: it lacks its ranking")
    return fields


def _read_plan(scratch: Path) -> Any:
    try:
        return json.loads((scratch / _PLAN_FILE).read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None


def _write(path: Path, content: Any) -> None:
    scratch = path.with_name(path.name + ".new")
    scratch.write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")
    scratch.replace(path)
