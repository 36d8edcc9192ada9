"""Verifying a cache: every byte against its checksum, and where there is an encoder, rows against what it gives now."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..cache.errors import DamagedError, IdentityError, TableError
from ..cache.identity import differences
from ..cache.reader import Cache, open_cache
from .extraction.tolerance import relative_difference, tolerance_of
from .progress import Report, Step, silent
from .settings import VERIFY_SAMPLE, ExtractSettings, Precision, Storage


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something that is wrong with a cache.

    Attributes:
        where: The dataset or document, and the rows, from 1.
        what: What is wrong there.
        damage: A checksum does not hold, which `repair` can mend unless it is one of the structure or of a document.
            Otherwise the checksums hold, and what was written is wrong.
    """

    where: str
    what: str
    damage: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verified:
    """What a verification came to.

    Attributes:
        path: The cache.
        rows: How many it has.
        bytes: How many were read.
        findings: What is wrong; empty where nothing is.
        encoded: Rows that were encoded again.
        largest_difference: Of those from the stored ones, relative to the largest value of the row; None without.
    """

    path: Path
    rows: int
    bytes: int
    findings: tuple[Finding, ...]
    encoded: int = 0
    largest_difference: float | None = None


def verify(
    cache: str | Path,
    *,
    encoder: str | None = None,
    table: Any = None,
    settings: ExtractSettings | None = None,
    sample: int = VERIFY_SAMPLE,
    seed: int | None = None,
    report: Report = silent,
) -> Verified:
    """Check a finished cache: structure, documents, every row's checksum, labels in range, features finite.

    A cache holds no texts, so to encode rows again takes the table, too: where none is given, the one that the cache
    says it was made from.

    Args:
        cache: The cache; nothing is written.
        encoder: A folder or hub id of the encoder that it should be of: its files' hashes are compared, and a sample of
            the rows is encoded again and compared with what is stored. None for neither.
        table: The table that the cache was extracted from; None for the one that it names.
        settings: How to read the table, and which device to use; other settings are the cache's own.
        sample: How many rows to encode again, at most.
        seed: Fixes which; None for others each time.
        report: Where progress goes.

    Returns:
        What was found. Damage to what says where the rows are ends the search: there is one finding then.

    Raises:
        NotOursError: it is no cache, or an unfinished one.
        StorageError: it cannot be read.
        IdentityError: the encoder is not the one that the cache was made with.
        TableError: the table is not the one that it was made from, or is not there any more.
    """
    path = Path(cache)
    try:
        found = open_cache(path)
    except DamagedError as error:
        finding = Finding("structure and documents", str(error).removeprefix(f"{path}: "))
        return Verified(path=path, rows=0, bytes=path.stat().st_size, findings=(finding,))
    findings = _find_damage(found, report)
    encoded, largest = 0, None
    if encoder is not None:
        chosen = dataclasses.replace(settings or ExtractSettings(), encoder=encoder)
        rows = np.sort(np.random.default_rng(seed).permutation(found.rows)[:sample])
        differing = _encode_again(found, table, chosen, rows, report)
        encoded, largest = len(differing), float(differing.max(initial=0))
        bound = tolerance_of(found)
        findings += [
            Finding(
                f"row {row + 1:,}",
                f"its features are {difference:.2g} off what the encoder gives (bound {bound:g})",
                damage=False,
            )
            for row, difference in zip(rows, differing, strict=True)
            if not difference <= bound
        ]
    return Verified(
        path=path,
        rows=found.rows,
        bytes=path.stat().st_size,
        findings=tuple(findings),
        encoded=encoded,
        largest_difference=largest,
    )


def _find_damage(cache: Cache, report: Report) -> list[Finding]:
    """What checksums, the labels' range and the features' values say, block by block."""
    findings = []
    classes = len(cache.label_names or ())
    for block in range(cache.layout.blocks):
        rows = cache.layout.block_slice(block)
        where = f"block {block + 1:,}, rows {rows.start + 1:,} to {rows.stop:,}"
        if not cache.block_holds(block):
            findings.append(
                Finding(where, "features, hashes, lengths or their checksum are damaged, or cannot be read")
            )
        else:
            findings += _not_finite(cache, rows)
        if not cache.block_labels_hold(block):
            findings.append(Finding(where, "labels or their checksum are damaged, or cannot be read"))
        elif cache.labels is not None and not ((labels := cache.labels[rows]) < classes).all() & (labels >= 0).all():
            findings.append(Finding(where, f"a label is outside 0 to {classes - 1}", damage=False))
        report(Step("checking", block + 1, cache.layout.blocks, "blocks"))
    return findings


def _not_finite(cache: Cache, rows: slice) -> list[Finding]:
    findings = []
    for name in sorted(cache.layout.widths):
        finite = np.isfinite(cache.features(name)[rows]).all(axis=1)
        if not finite.all():
            row = rows.start + int(np.argmin(finite))
            findings.append(Finding(f"features/{name}, row {row + 1:,}", "is not finite", damage=False))
    return findings


def _encode_again(
    cache: Cache, table: Any, settings: ExtractSettings, rows: npt.NDArray[np.int64], report: Report
) -> npt.NDArray[np.float64]:
    """How far these rows are off what the encoder gives: (rows,) float64."""
    from .extraction.extraction import (
        Extraction,  # which loads torch and transformers: without an encoder, it takes neither
    )
    from .tables.scan import read_windows, scan_table

    identity = cache.identity
    extraction = Extraction(
        dataclasses.replace(
            settings,
            label_column=None,
            features=identity.features,
            prefix=identity.prefix,
            max_length=identity.max_length,
            precision=Precision(identity.precision),
            storage=Storage(cache.layout.storage),
        ),
        report,
    )
    if different := differences(
        identity, extraction.session.identity, our_name=cache.path.name, their_name="this encoder"
    ):
        raise IdentityError(f"{cache.path} was not made with this encoder: they differ in {'; '.join(different)}")
    if table is None and not Path(cache.record["table"]).exists():
        raise TableError(
            f"{cache.path} was made from {cache.record['table']}, which is not here; give the table with `table`"
        )
    source = extraction.open(cache.record["table"] if table is None else table)
    scan = scan_table(source, report)
    if scan.rows != cache.rows or not np.array_equal(scan.text_hashes, cache.text_hashes):
        raise TableError(f"{source.source} is not the table that {cache.path} was made from: its texts are others")
    largest = np.zeros(len(rows))
    for place, given in read_windows(source, scan, cache.plan["window_rows"]):
        inside = np.flatnonzero((rows >= place.start) & (rows < place.stop))
        if not len(inside):
            continue
        at = (rows[inside] - place.start).tolist()
        pairs = None if given.pairs is None else [given.pairs[row] for row in at]
        sequences, _ = extraction.session.encoder.tokenize([given.texts[row] for row in at], pairs)
        for number, sequence in zip(inside, sequences, strict=True):
            encoded = extraction.session.encoder.backend.encode([sequence])
            largest[number] = relative_difference(
                {name: values[0] for name, values in encoded.items()}, cache, rows[number]
            )
    return largest
