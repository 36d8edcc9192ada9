"""Repairing a cache: damaged blocks are encoded again from the table, and nothing else changes."""

from __future__ import annotations

import dataclasses
import functools
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..cache.errors import DamagedError, TableError
from ..cache.layout import COLUMNS
from ..cache.lock import hold
from ..cache.reader import Cache, open_any, open_cache, shard_entries
from ..cache.workspace import remove_leftovers
from ..cache.writer import CacheWriter
from .encoders.session import EncoderSession
from .extraction.fill import fill_cache, outcome_counts
from .extraction.plan import part_of_scan
from .extraction.resume import UnfinishedCache, labelled_copy, open_source, require_writable
from .extraction.reuse import ReusableCaches, reporting_blocks
from .progress import Action, Note, Outcome, Report, in_notebooks
from .settings import ExtractSettings
from .tables.part import RowReader, part_of
from .tables.scan import TableScan, scan_table
from .tables.table import Table


def repair(
    cache: str | os.PathLike[str],
    table: Any,
    *,
    encoder: str | None = None,
    settings: ExtractSettings | None = None,
    wait: bool = False,
    report: Report = in_notebooks,
) -> Path:
    """Encode a finished cache's damaged blocks again; damaged labels and text hashes are taken from the table.

    The cache stays as it is until a repaired copy takes its place in one step. The copy's other blocks are equal to the
    cache's, bit for bit. On the machine that made the cache a repaired block gets its old bits again, unless its rows
    were copied from other caches; elsewhere the features agree to rounding (1e-5).

    Args:
        cache: The cache, which is replaced.
        table: The table that it was extracted from.
        encoder: A folder or hub id, where the encoder is no longer where the cache says; it must be the same encoder.
        settings: How to read the table, as when the cache was made, and on which device to encode; the other settings
            are the cache's own. Labels are not read for a cache without labels.
        wait: Wait until another run that is writing the cache is done.
        report: Receives progress, notes, and one `Outcome` at the end.

    Returns:
        The cache's path.

    Raises:
        DamagedError: the damage is beyond repair: it is in the structure, or in a document.
        TableError: the table is not the one that the cache was made from.
        IdentityError: the encoder is not the one that the cache was made with.
        EncoderError: the encoder cannot be found or read.
        BusyError: another run is writing the cache.
        StorageError: the machine cannot read or write.
    """
    path, settings = Path(cache), settings or ExtractSettings()
    _open(path)  # a file that is no cache is refused before a lock is put beside it
    with hold(path, wait=wait, note=lambda text: report(Note(text))):
        remove_leftovers(path)
        opened = _open(path)
        damaged = [file.path for file in opened.files if file.damaged_blocks(reporting_blocks(file, report))]
        if not damaged:
            report(Note(f"{path} is whole: all {opened.layout.blocks} blocks hold; nothing to repair"))
            counts = outcome_counts(opened.record, filled=False)
            report(Outcome(command="repair", output=path, action=Action.CURRENT, counts=counts))
            return path
        source = open_source(opened, table, settings, labelled=opened.labels is not None)
        require_writable(path, source)
        scan = scan_table(source, report)
        if scan.rows != opened.rows:
            wrong = f"{source.source} is not the table that {path} was made from"
            raise TableError(f"{wrong}: it has {scan.rows:,} rows, the cache {opened.rows:,}")
        find_encoder = functools.partial(_find_encoder, encoder=encoder, settings=settings, report=report)
        records, start, reader = [], 0, RowReader(source)
        for file in opened.files:
            stop = start + file.rows
            if file.path in damaged:
                whole = file is opened
                part = source if whole else part_of(reader, start, stop)
                part_scan = scan if whole else part_of_scan(scan, start, stop)
                records.append(_repair_file(file, part, part_scan, find_encoder, report))
            start = stop
    sums = [outcome_counts(record or opened.record, filled=record is not None) for record in records]
    counts = {name: sum(each[name] for each in sums) for name in sums[0]} | {"rows": opened.rows}
    report(Outcome(command="repair", output=path, action=Action.REPAIRED, counts=counts))
    return path


def _open(path: Path) -> Cache:
    try:
        return open_cache(path)
    except DamagedError as error:
        if _names_shards(path):  # one is missing or cut short, and the error says what to do
            raise
        raise DamagedError(
            f"this is beyond repair, so extract the table again with `overwrite=True`: {error}"
        ) from None


def _names_shards(path: Path) -> bool:
    try:
        return bool(shard_entries(path))
    except DamagedError:
        return False


def _repair_file(
    opened: Cache,
    source: Table,
    scan: TableScan,
    find_encoder: Callable[[Cache], EncoderSession],
    report: Report,
) -> Mapping[str, Any] | None:
    """Replace a cache of one file with a repaired copy.

    Args:
        opened: The cache.
        source: Its rows of the table.
        scan: What the first reading found of them.
        find_encoder: Finds the cache's encoder.
        report: Receives progress and notes.

    Returns:
        The new record, where something was encoded.
    """
    path, started = opened.path, time.perf_counter()
    restored = dataclasses.replace(
        opened, text_hashes=scan.text_hashes, labels=scan.labels, row_numbers=scan.row_numbers
    )
    damaged = _blocks_to_encode(opened, restored, scan, source.source)
    session = find_encoder(opened) if damaged else None
    with labelled_copy(restored, path, scan) as (scratch, _):
        if session is None:
            what = "its labels, row numbers or texts' hashes were damaged, and are the table's"
            report(Note(f"{path}: {what}; nothing to encode"))
            with CacheWriter(scratch) as writer:
                writer.finish(opened.record, path)
            return None
        report(Note(f"{path}: {len(damaged)} of {opened.layout.blocks} blocks are damaged, and are encoded again"))
        copy = open_any(scratch)
        return fill_cache(
            UnfinishedCache(copy, scan.in_file(copy), set(range(opened.layout.blocks)) - set(damaged)),
            path,
            table=source,
            session=session,
            reusable=ReusableCaches((), report),
            started=started,
            report=report,
        )


def _blocks_to_encode(cache: Cache, restored: Cache, scan: TableScan, table: str) -> list[int]:
    """List the blocks that do not hold even with the table's text hashes in the place of their own.

    The checksums tell damage from another table. A block that holds with the table's hashes has the table's texts. A
    block that does not is damaged elsewhere, and its own hashes must be equal to the table's. The same is checked of
    the labels and row numbers. ``restored`` is the damaged cache with those of the table, and its text hashes.

    Raises:
        TableError: the table is not the one that the cache was made from.
    """
    wrong = f"{table} is not the table that {cache.path} was made from"
    if scan.label_names != cache.label_names:
        raise TableError(f"{wrong}: it has other labels; check `label_column`")
    to_encode = []
    for block in range(cache.layout.blocks):
        rows = cache.layout.block_slice(block)
        whole = restored.block_holds(block)
        labels_whole, numbers_whole = (restored.block_column_holds(block, name) for name in COLUMNS)
        for what, known, ours, theirs in (
            ("texts", whole, cache.text_hashes, restored.text_hashes),
            ("labels", labels_whole, cache.labels, restored.labels),
            ("row numbers", numbers_whole, cache.row_numbers, restored.row_numbers),
        ):
            if not known and ours is not None and theirs is not None and not np.array_equal(ours[rows], theirs[rows]):
                raise TableError(
                    f"{wrong}, or its damage cannot be told from other {what}, in rows {rows.start + 1:,} to "
                    f"{rows.stop:,}; extracting with `update=True` keeps what holds"
                )
        if not whole:
            to_encode.append(block)
    return to_encode


def _find_encoder(cache: Cache, encoder: str | None, settings: ExtractSettings, report: Report) -> EncoderSession:
    """Find the encoder of a damaged cache, and check that its rows can be batched as they were."""
    session = EncoderSession.from_identity(
        cache.identity,
        cache.record["encoder"],
        where=cache.path,
        encoder=encoder,
        device=settings.device,
        batch_tokens=cache.plan["batch_tokens"],
        allow_pickled_weights=settings.allow_pickled_weights,
        report=report,
    )
    if cache.plan["window_rows"] < 1 or cache.plan["window_rows"] % cache.layout.block_rows:
        raise DamagedError(
            f"{cache.path}: its windows are not made of whole blocks; extract again with `overwrite=True`"
        )
    if cache.plan["device"] != session.device.type:
        report(Note(f"{cache.path} was made on {cache.plan['device']}: repaired rows agree to rounding (1e-5)"))
    return session
