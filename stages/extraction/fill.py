"""Filling an unfinished cache: every row that it lacks is encoded or copied, and the file takes its final name.

Torch takes a second to load: what needs it is imported where a cache has to be filled.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...cache.identity import Identity
from ...cache.writer import CacheWriter
from ..encoders.memory import freed_memory_kept
from ..encoders.session import EncoderSession
from ..progress import Note, Report
from ..tables.table import Table, TableRows
from .resume import UnfinishedCache
from .reuse import ReusableCaches

_COMPARED_ROWS = 64
"""Rows of a table that are encoded in float32 beside int8."""
_MANY_TRUNCATED = 0.1
"""The share of truncated texts from which a user is told how to encode all of them."""


def compare_with_float32(session: EncoderSession, top: TableRows) -> None:
    """Where the encoder computes in int8, let the record say what that costs, by some of a table's first rows."""
    count = len(top.texts)
    chosen = sorted({number * count // _COMPARED_ROWS for number in range(_COMPARED_ROWS)}) if count else []
    pairs = None if top.pairs is None else [top.pairs[row] for row in chosen]
    session.compare_with_float32([top.texts[row] for row in chosen], pairs)


def fill_cache(
    unfinished: UnfinishedCache,
    out: Path,
    *,
    table: Table,
    session: EncoderSession,
    reusable: ReusableCaches,
    started: float,
    report: Report,
) -> Mapping[str, Any]:
    """Write the blocks that an unfinished cache lacks, and its record; then move it to ``out``.

    A cache that is there is replaced in one step. ``started`` is when the run began, by `time.perf_counter`.

    Returns:
        The record.

    Raises:
        StorageError: the file cannot be written.
        HeadstartError: as for `encode_table`.
    """
    from ..encoders.encoder import VERSIONS
    from ..provenance import provenance
    from .encode_table import encode_table

    scan = unfinished.scan
    with CacheWriter(unfinished.cache.path) as writer, freed_memory_kept():
        counts = encode_table(table, unfinished, writer, session.encoder, reusable=reusable, report=report)
        reused_records = [cache.record for cache in reusable.caches]
        fields = {
            "table": table.source,
            "rows": scan.rows,
            "skipped_rows": scan.skipped,
            "distinct_texts": scan.distinct_texts,
            "conflicting_texts": scan.conflicting_texts,
            **dataclasses.asdict(counts),
            # A few texts say little about the encoder's speed, so the measurements of the reused caches are added.
            "measured_tokens": counts.tokens_encoded + sum(r.get("measured_tokens", 0) for r in reused_records),
            "measured_seconds": counts.encode_seconds + sum(r.get("measured_seconds", 0) for r in reused_records),
            "tokens_per_second": counts.tokens_encoded / counts.encode_seconds if counts.tokens_encoded else None,
            "seconds": time.perf_counter() - started,
            **session.record(),
        }
        for cache in reusable.caches:
            cache.require_unchanged()
        record = provenance(session.device, fields, timespec="milliseconds", versions=VERSIONS)
        writer.finish(record, out)
    return record


def note_truncated(record: Mapping[str, Any], identity: Identity, report: Report) -> None:
    """Tell how to encode all of the texts, if many of a cache's lost their end."""
    share = record["truncated_rows"] / record["rows"]
    if share >= _MANY_TRUNCATED and not identity.pairs:
        lost = f"{share:.0%} of the texts have more than {identity.max_length} tokens, and lost the rest"
        report(Note(f"{lost}: `long=chunks` encodes all of a text"))


def outcome_counts(record: Mapping[str, Any], *, filled: bool) -> dict[str, float]:
    """Return the counts for an `Outcome`, named as in the record; unless this run filled the cache, it did nothing."""
    counted = ("sequences_encoded", "tokens_encoded", "reused_rows", "kept_blocks")
    return {"rows": record["rows"], **{name: record[name] if filled else 0 for name in counted}}
