"""The folder of a sweep, and the unfinished folder that keeps what is done so far.

The unfinished folder beside it holds ``plan.json`` (the settings, and the caches that they are swept on) and one file
for each finished group of heads. At the end ``sweep.json``, ``sweep.parquet`` and ``winner`` are written into a work
folder, which gets the sweep's name in one step, and the unfinished folder is removed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from ...cache.documents import checked, read_json_file
from ...cache.errors import DamagedError, OutputExistsError, storage_errors
from ...cache.siblings import partial_path
from ...cache.workspace import foreign, replace_file, replace_folder, sync_file, workspace
from ..heads.head import Head
from ..heads.ranking import Column, HeadResult
from .folders import FolderKind, first_foreign
from .predictions import PartPredictions
from .run import RUN, write_run

TABLE_FILE = "sweep.parquet"
WINNER = "winner"
_PLAN_FILE = "plan.json"
_PLAN_FORMAT = {"format": "headstart-sweep-plan"}
_GROUPS = "groups"
_UNFINISHED = r"plan\.json|groups/(\d+\.json)?"


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


SWEEP = FolderKind(
    name="sweep",
    file="sweep.json",
    format="headstart-sweep",
    version=1,
    command="headstart sweep",
    others=rf"sweep\.parquet|winner/({RUN.contents})?|tensorboard/(\d+/)?([^/]+)?",
    record=_SweepRecord,
)


@dataclasses.dataclass(frozen=True)
class SweepFolder:
    """A sweep's unfinished folder. Made by `open_folder`.

    Attributes:
        new: An empty folder for what the finished sweep holds.
    """

    new: Path
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
            scratch = self.new.with_name(path.name)
            _write(scratch, results)
            replace_file(scratch, path)

    def write_winner(self, head: Head, run: dict[str, Any], predictions: Sequence[PartPredictions]) -> None:
        """Write the winner's run."""
        with storage_errors(f"cannot write {self.new / WINNER}"):
            (self.new / WINNER).mkdir()
            write_run(self.new / WINNER, head, run, predictions)

    def write_table(self, columns: Mapping[str, Column]) -> None:
        """Write ``sweep.parquet``."""
        import pyarrow as pa  # training does not need it otherwise
        import pyarrow.parquet

        types = {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string()}
        table = pa.table({name: pa.array(column.values, types[column.kind]) for name, column in columns.items()})
        with storage_errors(f"cannot write {self.new / TABLE_FILE}"):
            pa.parquet.write_table(table, self.new / TABLE_FILE)

    def finish(self, fields: dict[str, Any], *, overwrite: bool) -> None:
        """Write ``sweep.json``, give the folder its name, and remove the unfinished folder.

        Raises:
            OutputExistsError: something that may not be replaced has appeared there. The unfinished folder stays.
        """
        with storage_errors(f"cannot write {self.final}"):
            SWEEP.write(self.new, fields)
            SWEEP.require_free(self.final, overwrite=overwrite)
            replace_folder(self.new, self.final)
        self.discard()

    def discard(self) -> None:
        """Remove the unfinished folder: none of its results is of use any more."""
        if not first_foreign(partial_path(self.final), _UNFINISHED):
            with contextlib.suppress(OSError):  # another sweep of this name would find it
                _throw_away(partial_path(self.final), self.new.parent)

    def _group(self, group: int) -> Path:
        return partial_path(self.final) / _GROUPS / f"{group:05}.json"


@contextlib.contextmanager
def open_folder(folder: Path, plan: Mapping[str, Any], *, overwrite: bool) -> Iterator[SweepFolder]:
    """Make a sweep's unfinished folder, or open the one that an interrupted sweep with the same plan left.

    Raises:
        OutputExistsError: the unfinished folder belongs to another sweep, or was not written by headstart.
        StorageError: the folder cannot be written.
    """
    partial = partial_path(folder)
    plan = json.loads(json.dumps({**_PLAN_FORMAT, **plan}))  # as it is read back: tuples are lists
    with workspace(folder) as work:
        new = work / "new"
        with storage_errors(f"cannot write {partial}"):
            if os.path.lexists(partial):
                kept_plan = _read_plan(partial)
                if other := first_foreign(partial, _UNFINISHED):
                    raise foreign(other)
                if kept_plan != plan:
                    if any((partial / _GROUPS).glob("*.json")) and not overwrite:
                        raise OutputExistsError(
                            f"{partial} holds an unfinished sweep of other settings, rows or labels; remove it, "
                            "pass `overwrite=True`, or choose another `out`"
                        )
                    _throw_away(partial, work)
            if not os.path.lexists(partial):
                made = work / "partial"
                (made / _GROUPS).mkdir(parents=True)
                _write(made / _PLAN_FILE, plan)
                replace_folder(made, partial)
            new.mkdir()
        yield SweepFolder(new, folder)


def _read_plan(partial: Path) -> dict[str, Any]:
    """The plan of an unfinished sweep.

    Raises:
        OutputExistsError: there is none, so headstart did not make the folder.
    """
    try:
        plan = read_json_file(partial / _PLAN_FILE)
    except (FileNotFoundError, NotADirectoryError, DamagedError):
        plan = None
    if not isinstance(plan, dict) or plan.get("format") != _PLAN_FORMAT["format"] or partial.is_symlink():
        raise foreign(partial)
    return plan


def _throw_away(partial: Path, work: Path) -> None:
    """Move an unfinished folder into the work folder, in one step, and remove it there."""
    partial.rename(work / "thrown-away")
    shutil.rmtree(work / "thrown-away", ignore_errors=True)  # what stays is removed with the work folder


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")
    sync_file(path)
