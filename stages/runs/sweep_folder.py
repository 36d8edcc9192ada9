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
from typing import Any, TypedDict

from ...cache.documents import checked, read_json_file
from ...cache.errors import DamagedError, OutputExistsError
from ...cache.layout import storage_errors
from ...cache.writer import replace_durably
from .folders import FolderKind, replace_folder, sync_file

TABLE_FILE = "sweep.parquet"
WINNER = "winner"
SWEEP = FolderKind(name="sweep", file="sweep.json", format="headstart-sweep", version=1, command="headstart sweep")
_PLAN_FILE = "plan.json"
_GROUPS, _NEW = "groups", ".new"


class _Settings(TypedDict):
    base: dict[str, Any]
    values: dict[str, Any]
    seeds: list[int]
    rank_by: str


class _SweepRecord(TypedDict):
    """What every ``sweep.json`` holds; it may hold more."""

    ranking: list[Any]
    settings: _Settings
    heads: int
    diverged: int
    kept_heads: int
    seconds: float


class _History(TypedDict):
    epoch: list[int]


class _HeadResult(TypedDict):
    """What a finished group says of one head, at least."""

    setting: int
    seed: int
    fold: int
    diverged: bool
    best_epoch: int
    history: _History
    certificate: dict[str, Any] | None


@dataclasses.dataclass(frozen=True)
class SweepFolder:
    """A sweep's unfinished folder. Made by `open_folder`."""

    scratch: Path
    final: Path

    def finished(self, group: int) -> Any:
        """What was kept of a group of heads; None where it is not finished, or cannot be read any more."""
        path = self._group(group)
        with storage_errors(f"cannot read {path}"):
            if not path.exists():
                return None
            try:
                results = read_json_file(path)
                for result in results if isinstance(results, list) else [None]:
                    checked(result, _HeadResult, str(path))
            except DamagedError:
                return None
        return results

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

    def finish(self, fields: dict[str, Any]) -> None:
        """Write ``sweep.json``, take the final name, and drop what is needed no more."""
        with storage_errors(f"cannot write {self.final}"):
            SWEEP.write(self.scratch, fields)
            aside = self.final.with_name(f".{self.final.name}.old")
            if self.final.exists():  # else a run was killed between the renames, and aside is all there is of the old
                shutil.rmtree(aside, ignore_errors=True)
            replace_folder(self.scratch, self.final, aside=aside)
            shutil.rmtree(aside, ignore_errors=True)
            shutil.rmtree(self.final / _GROUPS)
            (self.final / _PLAN_FILE).unlink()

    def discard(self) -> None:
        """Remove the unfinished folder: nothing in it is worth carrying on with."""
        shutil.rmtree(self.scratch, ignore_errors=True)

    def _group(self, group: int) -> Path:
        return self.scratch / _GROUPS / f"{group:05}.json"


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
            strange = any(path.name not in (_GROUPS, _PLAN_FILE + _NEW) for path in scratch.iterdir())
            if (found is None and strange) or (found is not None and not _is_plan(found)):
                raise OutputExistsError(f"{scratch} is in the way and is no sweep; remove it, or choose another `out`")
            if started and not overwrite:
                raise OutputExistsError(
                    f"{scratch} holds an unfinished sweep of other settings, rows or labels; remove it, "
                    "pass `overwrite=True`, or choose another `out`"
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
    fields, path = SWEEP.read(folder), folder / SWEEP.file
    checked(fields, _SweepRecord, str(path))
    return fields


def _read_plan(scratch: Path) -> Any:
    try:
        return read_json_file(scratch / _PLAN_FILE)
    except (FileNotFoundError, NotADirectoryError, DamagedError):
        return None


def _is_plan(found: Any) -> bool:
    return isinstance(found, dict) and set(found) == {"settings", "caches"}


def _write(path: Path, content: Any) -> None:
    scratch = path.with_name(path.name + _NEW)
    scratch.write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")
    sync_file(scratch)
    replace_durably(scratch, path)
