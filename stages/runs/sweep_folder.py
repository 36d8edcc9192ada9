"""The folder of a sweep, and the unfinished folder that keeps what is done so far.

A running sweep writes into a folder with ``.partial`` after its name: ``plan.json`` (the settings, and the caches that
they are swept on) and one file for each finished group of heads. At the end the folder holds ``sweep.json``,
``sweep.parquet`` and ``winner``, and gets its final name by one rename.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from ...cache.documents import checked, read_json_file
from ...cache.errors import DamagedError, OutputExistsError
from ...cache.layout import storage_errors
from ...cache.siblings import new_path, partial_path, replaced_path
from ...cache.writer import replace_durably
from ..heads.ranking import HeadResult
from .folders import FolderKind, replace_folder, sync_file

TABLE_FILE = "sweep.parquet"
WINNER = "winner"
SWEEP = FolderKind(name="sweep", file="sweep.json", format="headstart-sweep", version=1, command="headstart sweep")
_PLAN_FILE = "plan.json"
_GROUPS = "groups"


class _SettingsRecord(TypedDict):
    base: dict[str, Any]
    values: dict[str, Any]
    seeds: list[int]
    rank_by: str


class _SweepRecord(TypedDict):
    """Fields that every ``sweep.json`` holds; it MAY hold more."""

    ranking: list[Any]
    settings: _SettingsRecord
    heads: int
    diverged: int
    kept_heads: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class SweepFolder:
    """A sweep's unfinished folder. Made by `open_folder`."""

    scratch: Path
    final: Path

    def finished(self, group: int) -> list[HeadResult] | None:
        """The results of a group of heads; None if the group is not finished, or its file is damaged."""
        path = self._group(group)
        with storage_errors(f"cannot read {path}"):
            if not path.exists():
                return None
            try:
                documents = read_json_file(path)
                heads = documents if isinstance(documents, list) else [None]
                return [checked(head, HeadResult, str(path)) for head in heads]
            except DamagedError:
                return None

    def keep(self, group: int, results: Sequence[HeadResult]) -> None:
        """Keep the results of a group of heads. After a crash, the file is there in full or not at all."""
        path = self._group(group)
        with storage_errors(f"cannot write {path}"):
            _write(path, results)

    def write_table(self, columns: Mapping[str, list[Any]]) -> None:
        """Write ``sweep.parquet``."""
        import pyarrow as pa  # training does not need it otherwise
        import pyarrow.parquet

        with storage_errors(f"cannot write {self.scratch / TABLE_FILE}"):
            pa.parquet.write_table(pa.table(dict(columns)), self.scratch / TABLE_FILE)

    def finish(self, fields: dict[str, Any]) -> None:
        """Write ``sweep.json``, give the folder its final name, and remove the plan and the groups' files."""
        with storage_errors(f"cannot write {self.final}"):
            SWEEP.write(self.scratch, fields)
            aside = replaced_path(self.final)
            # If a run was killed between the two renames, ``aside`` is the only copy of the old sweep: keep it then.
            if self.final.exists():
                shutil.rmtree(aside, ignore_errors=True)
            replace_folder(self.scratch, self.final, aside=aside)
            shutil.rmtree(aside, ignore_errors=True)
            shutil.rmtree(self.final / _GROUPS)
            (self.final / _PLAN_FILE).unlink()

    def discard(self) -> None:
        """Remove the unfinished folder: none of its results is of use."""
        shutil.rmtree(self.scratch, ignore_errors=True)

    def _group(self, group: int) -> Path:
        return self.scratch / _GROUPS / f"{group:05}.json"


def open_folder(folder: Path, plan: Mapping[str, Any], *, overwrite: bool) -> SweepFolder:
    """Make a sweep's unfinished folder, or open the one that an interrupted sweep with the same plan left.

    Raises:
        OutputExistsError: the unfinished folder belongs to another sweep, or was not written by headstart.
        StorageError: the folder cannot be written.
    """
    folder = folder.resolve()
    scratch = partial_path(folder)
    plan = json.loads(json.dumps(plan))  # as it is read back: tuples are lists
    with storage_errors(f"cannot write {scratch}"):
        if scratch.exists():
            kept_plan = _read_plan(scratch)
            if kept_plan == plan:
                return SweepFolder(scratch, folder)
            started = any((scratch / _GROUPS).glob("*.json"))
            known = all(path in (scratch / _GROUPS, new_path(scratch / _PLAN_FILE)) for path in scratch.iterdir())
            ours = known if kept_plan is None else kept_plan.keys() == plan.keys()
            if not ours:
                raise OutputExistsError(f"{scratch} is in the way and is no sweep; remove it, or choose another `out`")
            if started and not overwrite:
                raise OutputExistsError(
                    f"{scratch} holds an unfinished sweep of other settings, rows or labels; remove it, "
                    "pass `overwrite=True`, or choose another `out`"
                )
            shutil.rmtree(scratch)
        (scratch / _GROUPS).mkdir(parents=True)
        _write(scratch / _PLAN_FILE, plan)
    return SweepFolder(scratch, folder)


def read_sweep(folder: Path) -> dict[str, Any]:
    """Read and check ``sweep.json``.

    Raises:
        FormatError: the folder is not a sweep, or was written by a newer version.
        DamagedError: ``sweep.json`` lacks a field, or a field has the wrong type.
        StorageError: the file cannot be read.
    """
    fields, path = SWEEP.read(folder), folder / SWEEP.file
    checked(fields, _SweepRecord, str(path))
    return fields


def _read_plan(scratch: Path) -> dict[str, Any] | None:
    """The plan of an unfinished sweep; None if there is none, or it cannot be read."""
    try:
        plan = read_json_file(scratch / _PLAN_FILE)
    except (FileNotFoundError, NotADirectoryError, DamagedError):
        return None
    return plan if isinstance(plan, dict) else {}


def _write(path: Path, content: Any) -> None:
    scratch = new_path(path)
    scratch.write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")
    sync_file(scratch)
    replace_durably(scratch, path)
