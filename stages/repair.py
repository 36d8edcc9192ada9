"""Mending a cache: what is damaged is encoded again from the table, and nothing else changes."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np

from ..cache.errors import DamagedError, IdentityError, TableError
from ..cache.identity import differences
from ..cache.lock import hold
from ..cache.reader import Cache, open_any, open_cache
from ..cache.writer import CacheWriter, copy_with_labels
from .encoders.files import recorded_encoder
from .extraction.extraction import Extraction
from .extraction.reuse import ReusableCaches
from .progress import Note, Report, Step, silent
from .settings import ExtractSettings, Precision, Storage
from .tables.scan import TableScan, scan_table

_DEFAULTS = ExtractSettings()


def repair(
    cache: str | Path,
    table: Any,
    *,
    encoder: str | None = None,
    text_column: str = _DEFAULTS.text_column,
    text_pair_column: str | None = _DEFAULTS.text_pair_column,
    label_column: str = _DEFAULTS.label_column or "label",
    device: str = _DEFAULTS.device,
    skip_bad_rows: bool = _DEFAULTS.skip_bad_rows,
    allow_pickled_weights: bool = _DEFAULTS.allow_pickled_weights,
    wait: bool = False,
    report: Report = silent,
) -> Path:
    """Encode a finished cache's damaged blocks again; damaged labels and text hashes are put right from the table.

    The cache stays as it is until a copy of it, whose other blocks are the same bit for bit, takes its place in one
    step. On the machine that made the cache a repaired block has its old bits again, unless its rows were taken from
    other caches; elsewhere they agree to rounding (1e-5).

    Args:
        cache: The cache, which is replaced.
        table: The table that it was extracted from.
        encoder: A folder or hub id, where the one that the cache names has moved; it must be the same encoder.
        text_column: As for `extract`, like those that follow.
        text_pair_column: Needed where the cache is of pairs of texts.
        label_column: Not looked at where the cache has no labels.
        device: ``auto``, or a torch device.
        skip_bad_rows: As it was when the cache was made.
        allow_pickled_weights: Read a ``pytorch_model.bin`` where the encoder has no safetensors.
        wait: Wait until another run that is writing the cache is done.
        report: Where progress and notes go.

    Returns:
        The cache's path.

    Raises:
        DamagedError: the damage is beyond repair: in the structure, or in the documents that say what the cache is of.
        TableError: the table is not the one that the cache was made from.
        IdentityError: the encoder is not the one that the cache was made with.
        EncoderError: it cannot be found or read.
        BusyError: another run is writing the cache.
        StorageError: the machine cannot read or write.
    """
    path = Path(cache)
    _open(path)  # what is no cache is refused before a lock is put beside it
    with hold(path, wait=wait, note=lambda text: report(Note(text))):
        return _repair(
            path,
            table,
            encoder=encoder,
            settings=ExtractSettings(
                text_column=text_column,
                text_pair_column=text_pair_column,
                label_column=label_column,
                device=device,
                skip_bad_rows=skip_bad_rows,
                allow_pickled_weights=allow_pickled_weights,
            ),
            report=report,
        )


def _repair(path: Path, table: Any, *, encoder: str | None, settings: ExtractSettings, report: Report) -> Path:
    """Do it, with the cache to oneself; ``settings`` say how to read the table, and where to run."""
    started, found = time.perf_counter(), _open(path)

    def checking(block: int) -> None:
        report(Step("checking", block + 1, found.layout.blocks, "blocks"))

    if not found.damaged_blocks(checking):
        report(Note(f"{path} is whole: all {found.layout.blocks} blocks hold; nothing to repair"))
        return path
    name, revision = (encoder, None) if encoder is not None else recorded_encoder(found.record["encoder"], path)
    identity = found.identity
    extraction = Extraction(
        dataclasses.replace(
            settings,
            encoder=name,
            revision=revision,
            label_column=settings.label_column if found.layout.labelled else None,
            features=identity.features,
            prefix=identity.prefix,
            max_length=identity.max_length,
            precision=Precision(identity.precision),
            storage=Storage(found.layout.storage),
            batch_tokens=found.plan["batch_tokens"],
        ),
        report,
    )
    source = extraction.check(table, path)
    scan = scan_table(source, report)
    mended = dataclasses.replace(found, text_hashes=scan.text_hashes, labels=scan.labels)
    if _blocks_to_encode(found, mended, scan, source.source):
        _require_same_encoder(found, extraction, report)
    scratch = path.with_name(path.name + ".repaired")
    try:
        damaged = copy_with_labels(mended, scratch, labels=scan.labels, label_names=scan.label_names)
        if not damaged:
            report(
                Note(f"{path}: its labels or its texts' hashes were damaged, and are the table's; nothing to encode")
            )
            with CacheWriter(scratch) as writer:
                writer.finish(found.record, path)
            return path
        report(Note(f"{path}: {len(damaged)} of {found.layout.blocks} blocks are damaged, and are encoded again"))
        extraction.fill(
            scratch,
            path,
            source,
            scan.in_file(open_any(scratch)),
            plan=found.plan,
            kept=set(range(found.layout.blocks)) - set(damaged),
            donors=ReusableCaches((), report),
            started=started,
        )
    finally:
        scratch.unlink(missing_ok=True)
    return path


def _open(path: Path) -> Cache:
    try:
        return open_cache(path)
    except DamagedError as error:
        raise DamagedError(
            f"this is beyond repair, so extract the table again with `overwrite=True`: {error}"
        ) from None


def _blocks_to_encode(found: Cache, mended: Cache, scan: TableScan, table: str) -> list[int]:
    """The blocks that are not whole even with the table's text hashes in the place of their own.

    What the checksums were taken of tells damage from another table: a block that holds with the table's hashes has
    the table's texts. One that does not is damaged elsewhere, and must have the very hashes that the table has.
    With labels it is the same.

    Args:
        found: The damaged cache.
        mended: The same with the table's text hashes and labels.
        survey: What the table holds.
        table: What to call it.

    Raises:
        TableError: the table is not the one that the cache was made from.
    """
    wrong = f"{table} is not the table that {found.path} was made from"
    if scan.rows != found.rows:
        raise TableError(f"{wrong}: it has {scan.rows:,} rows, the cache {found.rows:,}")
    if scan.label_names != found.label_names:
        raise TableError(f"{wrong}: it has other labels; check `label_column`")
    to_encode = []
    for block in range(found.layout.blocks):
        rows = found.layout.block_slice(block)
        whole, labels_whole = mended.block_holds(block), mended.block_labels_hold(block)
        for what, known, ours, theirs in (
            ("texts", whole, found.text_hashes, mended.text_hashes),
            ("labels", labels_whole, found.labels, mended.labels),
        ):
            if not known and ours is not None and theirs is not None and not np.array_equal(ours[rows], theirs[rows]):
                raise TableError(
                    f"{wrong}, or its damage cannot be told from other {what}, in rows {rows.start + 1:,} to "
                    f"{rows.stop:,}; extracting with `update=True` keeps what holds"
                )
        if not whole:
            to_encode.append(block)
    return to_encode


def _require_same_encoder(cache: Cache, extraction: Extraction, report: Report) -> None:
    if found := differences(
        cache.identity, extraction.session.identity, our_name=cache.path.name, their_name="this repair"
    ):
        raise IdentityError(
            f"{cache.path} was made otherwise: they differ in {'; '.join(found)}; pass the right encoder with "
            "`encoder`, and `text_pair_column` where the cache is of pairs"
        )
    if cache.plan["window_rows"] < 1 or cache.plan["window_rows"] % cache.layout.block_rows:
        raise DamagedError(
            f"{cache.path}: its windows are not made of whole blocks; extract again with `overwrite=True`"
        )
    if cache.plan["device"] != extraction.session.device.type:
        report(Note(f"{cache.path} was made on {cache.plan['device']}: what is repaired agrees to rounding (1e-5)"))
