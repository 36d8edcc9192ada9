"""What is already there for a cache that is asked for, and how to go on with it.

There may be the finished cache, an unfinished one, and unfinished ones of previous table versions. The decisions read
files and change nothing; `relabel` and `open_unfinished` carry them out.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import os
import stat
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...cache.errors import DamagedError, FormatError, IdentityError, OutputExistsError, storage_errors
from ...cache.identity import Identity, differences
from ...cache.label_kind import LabelKind
from ...cache.layout import checked_seal
from ...cache.reader import Cache, Labels, open_any
from ...cache.seal import begins_as_cache
from ...cache.siblings import followed, partial_path, superseded_path, superseded_paths
from ...cache.workspace import foreign, keep_access, replace_file, workspace
from ...cache.writer import CacheWriter, copy_with_labels, create_cache, kept_blocks
from ..progress import Note, Report
from ..settings import TASKS, ExtractSettings, Task
from ..tables.labels import LabelRules
from ..tables.scan import TableScan
from ..tables.table import Table, open_table

_NEW = "new"  # a file that is being made, in a work folder


@dataclasses.dataclass(frozen=True, kw_only=True)
class CacheRequest:
    """A cache that is asked for."""

    out: Path  # the finished cache's
    table: str  # the table's name, for the record
    scan: TableScan
    identity: Identity
    storage: str
    block_rows: int  # rows that share a checksum
    update: bool  # a cache of other rows gives its rows to the new one
    overwrite: bool  # what is there is replaced

    def differences(self, cache: Cache) -> list[str]:
        """List how the features of a cache differ from the ones that are asked for; empty where they do not."""
        clauses = differences(cache.identity, self.identity, our_name=cache.path.name, their_name="this run")
        if cache.layout.storage != self.storage:
            clauses.append(f"storage ({cache.path.name}: {cache.layout.storage}, this run: {self.storage})")
        return clauses

    def has_labels_of(self, cache: Cache) -> bool:
        """Whether the table's labels are the cache's."""
        same_kind = (self.scan.label_kind, self.scan.label_names) == (cache.label_kind, cache.label_names)
        return same_kind and _same(self.scan.labels, cache.labels)

    def has_numbers_of(self, cache: Cache) -> bool:
        """Whether the cache's rows have the numbers that they have in the table."""
        return _same(self.scan.row_numbers, cache.row_numbers)


class Verdict(enum.StrEnum):
    """What to do with an unfinished cache that is already there."""

    KEEP = "keep"  # it serves, with the table's labels
    REPLACE = "replace"  # a new file takes its place
    SUPERSEDE = "supersede"  # a new file takes its place, and reuses its rows


@dataclasses.dataclass(frozen=True)
class Decision:
    """A verdict; where the cache serves, its complete blocks, and how many others have changed."""

    verdict: Verdict
    kept: Collection[int] = ()
    changed: int = 0


@dataclasses.dataclass(frozen=True)
class UnfinishedCache:
    """A cache that lacks some blocks."""

    cache: Cache  # maps of the file: they show what is written to it
    scan: TableScan  # with arrays of the file, so that they take no memory
    kept: Collection[int]  # the blocks that are complete


def require_writable(out: Path, table: Table) -> None:
    """Refuse, before any work, an output that cannot be written, or that would replace a file that is not a cache.

    So it is with the files of unfinished work: they are named as nobody's files are, and begin as a cache does.

    Raises:
        OutputExistsError: it is such an output.
    """
    if not out.name:
        raise OutputExistsError(f"{str(out)!r} is no name for a cache; choose a file with `out`")
    followed(out)  # a link that leads to itself is refused
    table.require_outside(out)
    if not out.parent.is_dir():
        raise OutputExistsError(f"{out.parent} is not a folder; make it first, or choose another `out`")
    if out.exists():
        try:
            checked_seal(out)
        except FormatError as error:
            raise OutputExistsError(f"{error}; it is never overwritten, so choose another `out`") from None
        except DamagedError:
            pass  # a damaged cache: `overwrite` may replace it
    for path in (partial_path(out), *superseded_paths(out)):
        with storage_errors(f"cannot read {path}"):
            if os.path.lexists(path) and not begins_as_cache(path):
                raise foreign(path)
    with contextlib.suppress(FileNotFoundError):
        if partial_path(out).stat().st_nlink > 1:  # it would be written, under its other name too
            raise OutputExistsError(
                f"{partial_path(out)} has another name (it is a hard link): remove it, or choose another `out`"
            )


def open_source(
    cache: Cache,
    table: Any,
    settings: ExtractSettings,
    *,
    labelled: bool = False,
    labels: Sequence[str | int] | None = None,
) -> Table:
    """Open the table that a cache was made from, or one with more of its rows; errors as for `open_table`.

    Args:
        cache: The cache. What its labels are says how they are read.
        table: As for `open_table`.
        settings: How to read it.
        labelled: Whether labels are read.
        labels: One label per text, where ``table`` is a sequence of texts.

    Raises:
        IdentityError: the settings read single texts, and the cache is of pairs of texts, or the other way round.
    """
    if cache.identity.pairs != (settings.text_pair_column is not None):
        advice = "pairs of texts; name the second column with" if cache.identity.pairs else "single texts; leave out"
        raise IdentityError(f"{cache.path} is of {advice} `text_pair_column`")
    task = TASKS[cache.label_kind or LabelKind.CLASS]
    order = cache.label_names if task is Task.ORDINAL else None
    return open_table(
        table,
        labels=labels,
        text_column=settings.text_column,
        pair_column=settings.text_pair_column,
        label_column=settings.label_column if labelled else None,
        label_rules=LabelRules(task, settings.label_delimiter, order) if labelled else None,
        skip_bad_rows=settings.skip_bad_rows,
        settings=settings,
    )


def finished_serves(request: CacheRequest, cache: Cache) -> bool:
    """Whether the finished cache at the output serves, with the table's labels; False where a new one replaces it.

    Raises:
        OutputExistsError: it holds something else, and must stay.
    """
    if clauses := request.differences(cache):
        raise OutputExistsError(
            f"{cache.path} holds something else: {'; '.join(clauses)}; choose another `out`, or pass `overwrite=True`"
        )
    if cache.rows != request.scan.rows:
        clause = f"rows ({cache.path.name}: {cache.rows:,}, the table: {request.scan.rows:,})"
    else:
        changed = np.flatnonzero((cache.text_hashes != request.scan.text_hashes).any(axis=1))
        if not len(changed):
            return True
        numbers = request.scan.row_numbers
        first = changed[0] + 1 if numbers is None else numbers[changed[0]]
        clause = f"{len(changed):,} texts, the first in row {first:,}"
    if request.update:
        return False
    raise OutputExistsError(
        f"{cache.path} holds something else: {clause}; to encode what it lacks, pass `update=True`; to encode all of "
        "it, `overwrite=True`; or choose another `out`"
    )


def relabel(request: CacheRequest, cache: Cache) -> None:
    """Replace a finished cache with a copy that has the table's labels and row numbers.

    Raises:
        DamagedError: a block's checksum does not hold.
    """
    with labelled_copy(cache, request.out, request.scan) as (scratch, damaged):
        if damaged:
            raise DamagedError(f"{cache.path}: {len(damaged)} blocks are damaged; extract again with `overwrite=True`")
        changed = {
            "table": request.table,
            "skipped_rows": request.scan.skipped,
            "conflicting_texts": request.scan.conflicting_texts,
        }
        with CacheWriter(scratch) as writer:
            writer.finish({**cache.record, **changed}, cache.path)


def decide_unfinished(
    request: CacheRequest, cache: Cache, plan: Mapping[str, Any], *, any_batch_tokens: bool = False
) -> Decision:
    """Decide what to do with an unfinished cache of the output.

    ``plan`` says how rows are batched: with the table and the identity, this decides every bit of the features. With
    ``any_batch_tokens``, the plan's number of tokens in a batch is one of several that would do: the cache's own stays.

    Raises:
        OutputExistsError: it holds something else, and must stay.
    """
    wrong_features = request.differences(cache)
    other_work = [
        f"{name} ({cache.path}: {cache.plan.get(name)}, this run: {value})"
        for name, value in plan.items()
        if cache.plan.get(name) != value and not (any_batch_tokens and name == "batch_tokens")
    ]
    if cache.rows != request.scan.rows:
        other_work.append(f"rows ({cache.path}: {cache.rows:,}, the table: {request.scan.rows:,})")
    if not wrong_features and not other_work:
        kept, changed = kept_blocks(cache, request.scan.text_hashes)
        if not changed or (kept and not request.update):  # an update finds the rows wherever they stand now
            return Decision(Verdict.KEEP, kept, len(changed))
        other_work.append(f"rows ({len(changed)} blocks of {cache.path} hold others)")
    if request.overwrite:
        return Decision(Verdict.REPLACE)
    if request.update and not wrong_features:
        return Decision(Verdict.SUPERSEDE if cache.block_checksums.any() else Verdict.REPLACE)
    raise OutputExistsError(
        f"{cache.path} is unfinished work on something else: {'; '.join(wrong_features + other_work)}; to throw it "
        "away, `overwrite=True`" + ("" if wrong_features else "; to take its rows over, `update=True`")
    )


def open_unfinished(
    request: CacheRequest,
    *,
    widths: Mapping[str, int],
    plan: Mapping[str, Any],
    any_batch_tokens: bool = False,
    report: Report,
) -> UnfinishedCache:
    """Open the unfinished cache to write into: the existing one if it can be used, else a new one.

    ``widths`` are the numbers in each feature; ``plan`` and ``any_batch_tokens`` are as for `decide_unfinished`.

    Raises:
        OutputExistsError: an unfinished cache is there, and holds something else.
        StorageError: the folder cannot be written, or there is no room for the whole file.
    """
    partial, scan = partial_path(request.out), request.scan
    if request.overwrite:
        remove_superseded(request.out)
    cache = _open_partial(partial, overwrite=request.overwrite)
    decision = (
        Decision(Verdict.REPLACE)
        if cache is None
        else decide_unfinished(request, cache, plan, any_batch_tokens=any_batch_tokens)
    )
    if decision.verdict is Verdict.SUPERSEDE:
        replace_file(partial, superseded_path(request.out, len(superseded_paths(request.out)) + 1))
    if cache is None or decision.verdict in (Verdict.REPLACE, Verdict.SUPERSEDE):
        with workspace(request.out) as work:
            create_cache(
                work / _NEW,
                block_rows=request.block_rows,
                widths=widths,
                storage=request.storage,
                identity=request.identity,
                plan=plan,
                text_hashes=scan.text_hashes,
                labels=scan.labels,
                label_names=scan.label_names,
                label_kind=scan.label_kind,
                row_numbers=scan.row_numbers,
            )
            keep_access(request.out, work / _NEW, more=stat.S_IRUSR | stat.S_IWUSR)  # it is written on
            replace_file(work / _NEW, partial)
        cache = open_any(partial)
        return UnfinishedCache(cache, scan.in_file(cache), kept=())
    if not (request.has_labels_of(cache) and request.has_numbers_of(cache)):
        with labelled_copy(cache, request.out, scan) as (scratch, _):
            replace_file(scratch, partial)
        cache = open_any(partial)
    with CacheWriter(partial) as writer:  # rows to encode get the table's hashes: it may have changed since
        for block in sorted(set(range(cache.layout.blocks)) - set(decision.kept)):
            rows = cache.layout.block_slice(block)
            writer.write_row_metadata(rows.start, text_hashes=scan.text_hashes[rows])
    if decision.kept:
        note = f"carrying on with {partial}: {len(decision.kept)} of {cache.layout.blocks} blocks are done"
        changed = f"; {decision.changed} hold rows that changed, and are encoded again" if decision.changed else ""
        report(Note(note + changed))
    return UnfinishedCache(cache, scan.in_file(cache), decision.kept)


@contextlib.contextmanager
def labelled_copy(cache: Cache, out: Path, scan: TableScan) -> Iterator[tuple[Path, list[int]]]:
    """Copy a cache into a work file of ``out`` with the table's labels and row numbers; it is removed at the end,
    unless renamed.

    Yields:
        The copy's path, and the blocks that it lacks because their checksums do not hold.
    """
    with workspace(out) as work:
        copy = work / _NEW
        damaged = copy_with_labels(
            cache,
            copy,
            labels=scan.labels,
            label_names=scan.label_names,
            label_kind=scan.label_kind,
            row_numbers=scan.row_numbers,
        )
        yield copy, damaged


def remove_superseded(path: Path) -> None:
    """Remove the unfinished caches of previous table versions."""
    for superseded in reversed(superseded_paths(path)):  # the newest first: a crash must leave no gap in the numbers
        if begins_as_cache(superseded):
            superseded.unlink()


def _same(ours: Labels | None, theirs: Labels | None) -> bool:
    return ours is theirs if ours is None or theirs is None else np.array_equal(ours, theirs)


def _open_partial(partial: Path, *, overwrite: bool) -> Cache | None:
    """Open an unfinished cache; None where there is none, or where a damaged one may be overwritten."""
    try:
        return open_any(partial) if partial.exists() else None
    except (DamagedError, FormatError) as error:
        if overwrite:
            return None
        raise OutputExistsError(
            f"{error}; it stands where unfinished work belongs: remove it, or pass `overwrite=True`"
        ) from None
