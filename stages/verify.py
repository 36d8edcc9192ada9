"""Verifying a cache: every byte against its checksum; with the encoder, a sample of the rows against its features."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np

from ..cache.errors import DamagedError, TableError
from ..cache.reader import Cache, open_cache
from .encoders.session import EncoderSession
from .extraction.resume import open_source
from .extraction.tolerance import relative_differences, tolerance_of
from .progress import Report, Step, in_notebooks
from .settings import VERIFY_SAMPLE, ExtractSettings
from .tables.scan import read_windows, scan_table
from .types import Float64Array, Indices


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something that is wrong with a cache."""

    where: str  # the dataset or document, and the rows, counted from 1
    what: str
    damage: bool = True
    """Whether a checksum does not hold. `repair` restores such rows; damage to the structure or to a document is beyond
    repair. Otherwise the checksums hold, and what was written is wrong."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verified:
    """The result of a verification."""

    path: Path
    rows: int
    bytes: int
    findings: tuple[Finding, ...]  # empty for a good cache
    encoded: int = 0  # rows that were encoded again
    largest_difference: float | None = None
    """Of these rows from the stored ones, relative to the largest value of the row; None without an encoder."""


def verify(
    cache: str | os.PathLike[str],
    *,
    encoder: str | None = None,
    table: Any = None,
    settings: ExtractSettings | None = None,
    sample: int = VERIFY_SAMPLE,
    seed: int | None = None,
    report: Report = in_notebooks,
) -> Verified:
    """Check a finished cache: structure, documents, every row's checksum, labels in range, features finite.

    Nothing is written, so there is no `Outcome`. A cache holds no texts: to encode rows again takes the table, too.

    Args:
        cache: The cache.
        encoder: A folder or hub id of the cache's encoder: the hashes of its files are compared, and a sample of the
            rows is encoded again and compared. None for neither.
        table: The table that the cache was made from; None for the table that the cache names.
        settings: How to read the table, and on which device to encode; the other settings are the cache's own.
        sample: Most rows to encode again.
        seed: Fixes the sample; None for another sample each time.
        report: Receives progress.

    Returns:
        What is wrong with the cache. Damage to its structure or documents ends the search with that one finding.

    Raises:
        FormatError: it is no cache, or an unfinished one.
        StorageError: it cannot be read.
        IdentityError: the encoder is not the one that the cache was made with.
        TableError: the table is not the one that the cache was made from, or is missing.
    """
    path = Path(cache)
    try:
        opened = open_cache(path)
    except DamagedError as error:
        finding = Finding("structure and documents", str(error).removeprefix(f"{path}: "))
        return Verified(path=path, rows=0, bytes=path.stat().st_size, findings=(finding,))
    findings = _find_damage(opened, report)
    encoded, largest = 0, None
    if encoder is not None:
        rows = np.sort(np.random.default_rng(seed).permutation(opened.rows)[:sample])
        differences = _encode_again(opened, encoder, table, settings or ExtractSettings(), rows, report)
        encoded, largest = len(rows), float(differences.max(initial=0))
        bound = tolerance_of(opened)
        findings += [
            Finding(
                opened.place(row),
                f"its features are {difference:.2g} off what the encoder gives (bound {bound:g})",
                damage=False,
            )
            for row, difference in zip(rows, differences, strict=True)
            if not difference <= bound
        ]
    return Verified(
        path=path,
        rows=opened.rows,
        bytes=opened.bytes,
        findings=tuple(findings),
        encoded=encoded,
        largest_difference=largest,
    )


def _find_damage(cache: Cache, report: Report) -> list[Finding]:
    """Check the checksums, the features' values, the labels' range and the rows' order, block by block; of a joined
    cache, shard by shard."""
    findings = []
    for file in cache.files:
        name = "" if file is cache else f"{file.path.name}, "
        findings += _find_damage_in(file, name, report)
    return findings


def _find_damage_in(cache: Cache, name: str, report: Report) -> list[Finding]:
    """The same of a cache of one file; its name comes first in each finding."""
    findings = []
    for block in range(cache.layout.blocks):
        rows = cache.layout.block_slice(block)
        where = f"{name}block {block + 1:,}, rows {rows.start + 1:,} to {rows.stop:,}"
        if damage := cache.block_damage(block):
            findings.append(Finding(where, damage))
        if damage := cache.block_column_damage(block):
            findings.append(Finding(where, damage))
        elif problem := cache.label_problem(rows):
            findings.append(Finding(where, problem, damage=False))
        elif (
            cache.row_numbers is not None
            and not (np.diff(cache.row_numbers[max(0, rows.start - 1) : rows.stop]) > 0).all()
        ):
            findings.append(Finding(where, "the rows' numbers in the table do not ascend", damage=False))
        report(Step("checking", block + 1, cache.layout.blocks, "blocks"))
    return findings


def _encode_again(
    cache: Cache, encoder: str, table: Any, settings: ExtractSettings, rows: Indices, report: Report
) -> Float64Array:
    """Encode some rows again, and return their differences from the stored features: (rows,) float64."""
    from .encoders.encoder import encode_sequences  # loads torch, which a check without an encoder does not need

    session = EncoderSession.from_identity(
        cache.identity,
        cache.record["encoder"],
        where=cache.path,
        encoder=encoder,
        device=settings.device,
        allow_pickled_weights=settings.allow_pickled_weights,
        report=report,
    )
    if table is None and not Path(cache.record["table"]).exists():
        raise TableError(
            f"{cache.path} was made from {cache.record['table']}, which is not here; give the table with `table`"
        )
    source = open_source(cache, cache.record["table"] if table is None else table, settings)
    scan = scan_table(source, report)
    if scan.rows != cache.rows or not np.array_equal(scan.text_hashes, cache.text_hashes):
        raise TableError(f"{source.source} is not the table that {cache.path} was made from: its texts are others")
    differences = np.zeros(len(rows))
    for span, window in read_windows(source, scan, cache.plan["window_rows"]):
        inside = np.flatnonzero((rows >= span.start) & (rows < span.stop))
        if not len(inside):
            continue
        places = (rows[inside] - span.start).tolist()
        pairs = None if window.pairs is None else [window.pairs[place] for place in places]
        sequences, _ = session.encoder.tokenize([window.texts[place] for place in places], pairs)
        differences[inside] = relative_differences(encode_sequences(session.encoder, sequences), cache, rows[inside])
    return differences
