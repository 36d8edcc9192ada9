"""The cache that a run was asked for, held against what is there already: finished, unfinished, or other work."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...cache.errors import DamagedError, FormatError, OutputExistsError
from ...cache.identity import Identity, differences
from ...cache.reader import Cache, open_any, open_cache
from ...cache.writer import CacheWriter, copy_with_labels, create_cache, kept_blocks, partial_path, replace_durably
from ..progress import Note, Report
from ..tables.scan import TableScan


@dataclasses.dataclass(frozen=True, kw_only=True)
class CacheRequest:
    """The cache that was asked for, to be held against what is there.

    Attributes:
        out: Where the finished cache belongs.
        table: What to call the table.
        survey: The table's rows and labels.
        identity: What the features are to be of.
        storage: How they are to be stored.
        block_rows: Rows that share a checksum.
    """

    out: Path
    table: str
    scan: TableScan
    identity: Identity
    storage: str
    block_rows: int

    def is_made_already(self, report: Report, *, update: bool) -> bool:
        """Whether the finished cache is there, after giving it the table's labels where those alone differ.

        Args:
            report: Where notes go.
            update: Whether a cache of other rows is one to be made anew.

        Raises:
            OutputExistsError: what is there is of another identity or another storage, or of other rows.
        """
        if not self.out.exists():
            return False
        cache = open_cache(self.out)
        if found := self._differences(cache):
            raise OutputExistsError(
                f"{self.out} holds something else: {'; '.join(found)}; choose another `out`, or pass `overwrite=True`"
            )
        if found := self._different_rows(cache):
            if update:
                return False
            raise OutputExistsError(
                f"{self.out} holds something else: {'; '.join(found)}; to encode what it lacks, "
                "pass `update=True`; to encode all of it, `overwrite=True`; or choose another `out`"
            )
        if cache.label_names == self.scan.label_names and _equal(cache.labels, self.scan.labels):
            report(Note(f"{self.out} is current: the same rows, encoder and settings; nothing to encode"))
            return True
        self._relabel(cache)
        what = "were removed" if self.scan.labels is None else "changed, and were written anew"
        report(Note(f"{self.out}: the labels {what}; nothing to encode"))
        return True

    def _relabel(self, cache: Cache) -> None:
        """Replace the finished cache with a copy that bears the table's labels."""
        scratch = relabelled_path(self.out)
        try:
            if left_out := self._copy(cache, scratch):
                raise DamagedError(
                    f"{self.out}: {len(left_out)} blocks are damaged; extract again with `overwrite=True`"
                )
            with CacheWriter(scratch) as writer:
                changed = {
                    "table": self.table,
                    "skipped_rows": self.scan.skipped,
                    "conflicting_texts": self.scan.conflicting_texts,
                }
                writer.finish({**cache.record, **changed}, self.out)
        finally:
            scratch.unlink(missing_ok=True)

    def _copy(self, cache: Cache, path: Path) -> list[int]:
        return copy_with_labels(cache, path, labels=self.scan.labels, label_names=self.scan.label_names)

    def prepare_partial(
        self, width: int, plan: Mapping[str, Any], *, overwrite: bool, update: bool, report: Report
    ) -> set[int]:
        """Leave an unfinished cache to write into, made anew or carried on with; return the blocks to keep.

        Args:
            width: Columns of each feature.
            plan: How rows are batched: with the table and the identity, this decides every bit of the features.
            overwrite: Throw away unfinished work on something else.
            update: Put unfinished work on other rows aside, as one of the `superseded_paths`, to take rows from.
            report: Where notes go.

        Raises:
            OutputExistsError: an unfinished cache is there, and is of something else.
        """
        partial = partial_path(self.out)
        if overwrite:
            remove_superseded(self.out)
        if partial.exists():
            kept = self._kept_of_partial(partial, plan, overwrite, update, report)
            if kept is not None:
                return kept
        create_cache(
            partial,
            block_rows=self.block_rows,
            widths=dict.fromkeys(self.identity.features, width),
            storage=self.storage,
            identity=self.identity,
            plan=plan,
            text_hashes=self.scan.text_hashes,
            labels=self.scan.labels,
            label_names=self.scan.label_names,
        )
        return set()

    def _kept_of_partial(
        self, partial: Path, plan: Mapping[str, Any], overwrite: bool, update: bool, report: Report
    ) -> set[int] | None:
        try:
            cache = open_any(partial)
        except (DamagedError, FormatError) as error:
            if overwrite and partial.is_file():
                return None
            raise OutputExistsError(
                f"{error}; it stands where unfinished work belongs: remove it, or pass `overwrite=True`"
            ) from None
        found = self._differences(cache)
        other_work = [
            f"{name} ({partial}: {cache.plan.get(name)}, this run: {value})"
            for name, value in plan.items()
            if cache.plan.get(name) != value
        ]
        if cache.rows != self.scan.rows:
            other_work.append(f"rows ({partial}: {cache.rows:,}, the table: {self.scan.rows:,})")
        kept, other = ([], []) if found or other_work else kept_blocks(cache, self.scan.text_hashes)
        if other and (update or not kept):  # an update finds rows wherever they stand now
            other_work.append(f"rows ({len(other)} blocks of {partial} hold others)")
        if other_work and update and not found and not overwrite:
            if cache.block_checksums.any():
                replace_durably(partial, _superseded_path(self.out, len(superseded_paths(self.out)) + 1))
            return None
        if overwrite and (found or other_work):
            return None
        if found or other_work:
            raise OutputExistsError(
                f"{partial} is unfinished work on something else: {'; '.join(found + other_work)}; to throw it away, "
                "`overwrite=True`" + ("" if found else "; to take its rows over, `update=True`")
            )
        if cache.label_names != self.scan.label_names or not _equal(cache.labels, self.scan.labels):
            scratch = relabelled_path(self.out)
            try:
                self._copy(cache, scratch)
                replace_durably(scratch, partial)
            finally:
                scratch.unlink(missing_ok=True)
        # The rows that are to be encoded are the table's, not those of the table that was here before.
        with CacheWriter(partial) as writer:
            for block in sorted(set(range(cache.layout.blocks)) - set(kept)):
                rows = cache.layout.block_slice(block)
                writer.write_row_metadata(rows.start, text_hashes=self.scan.text_hashes[rows])
        if kept:
            note = f"carrying on with {partial}: {len(kept)} of {cache.layout.blocks} blocks are done"
            report(Note(note + (f"; {len(other)} hold rows that changed, and are encoded again" if other else "")))
        return set(kept)

    def _differences(self, cache: Cache) -> list[str]:
        found = differences(cache.identity, self.identity, our_name=cache.path.name, their_name="this run")
        if cache.layout.storage != self.storage:
            found.append(f"storage ({cache.path.name}: {cache.layout.storage}, this run: {self.storage})")
        return found

    def _different_rows(self, cache: Cache) -> list[str]:
        if cache.rows != self.scan.rows:
            return [f"rows ({cache.path.name}: {cache.rows:,}, the table: {self.scan.rows:,})"]
        changed = np.flatnonzero((cache.text_hashes != self.scan.text_hashes).any(axis=1))
        return [f"{len(changed):,} texts, the first in row {changed[0] + 1:,}"] if len(changed) else []


def relabelled_path(path: Path) -> Path:
    """The name of a copy with other labels, until it takes the place of what it was copied from."""
    return path.with_name(path.name + ".relabelled")


def superseded_paths(path: Path) -> list[Path]:
    """The unfinished work on earlier rows that there is, the oldest first: its features are taken over into this one.

    There are several where the table changed more than once before an update was through.
    """
    numbered = (_superseded_path(path, number) for number in itertools.count(1))
    return list(itertools.takewhile(Path.exists, numbered))


def remove_superseded(path: Path) -> None:
    """Remove it all, the newest first, so that a crash leaves no gap in the numbers."""
    for earlier in reversed(superseded_paths(path)):
        earlier.unlink()


def _superseded_path(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.earlier{number}")


def _equal(ours: npt.NDArray[np.int64] | None, theirs: npt.NDArray[np.int64] | None) -> bool:
    return ours is theirs if ours is None or theirs is None else np.array_equal(ours, theirs)
