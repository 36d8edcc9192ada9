"""The documents of a cache that say how it was made. FORMAT.md explains each field.

A document may hold more fields. They are kept when the document is copied.
"""

from __future__ import annotations

import datetime
from typing import Any, TypedDict

from .documents import checked, require_finite
from .errors import DamagedError


class Plan(TypedDict):
    """How rows are batched, and on what kind of device. It is written before the first row."""

    batch_tokens: int
    window_rows: int
    device: str
    path: str


class EncoderRecord(TypedDict):
    """Which encoder was used, and where it was found."""

    name: str
    folder: str
    revision: str | None


class MachineRecord(TypedDict):
    """Where the encoder ran."""

    device: str


class Record(TypedDict):
    """What a run did. It is written after the last row."""

    created: str
    table: str
    rows: int
    skipped_rows: int
    distinct_texts: int
    distinct_sequences: int
    conflicting_texts: int
    truncated_rows: int
    tokens: int
    tokens_encoded: int
    sequences_encoded: int
    kept_blocks: int
    reused_rows: int
    halved_batches: int
    encode_seconds: float
    tokens_per_second: float | None
    measured_tokens: int
    measured_seconds: float
    seconds: float
    precision_reason: str
    encoder: EncoderRecord
    machine: MachineRecord


def checked_record(document: Any, rows: int, where: str) -> Record:
    """Check a parsed document: it must be the record of a cache with this number of rows.

    Raises:
        DamagedError: the document lacks a field, or has an impossible value.
    """
    record = checked(document, Record, where)
    require_finite(document, where)
    if record["rows"] != rows:
        raise DamagedError(f"{where}: it is of {record['rows']:,} rows, and the file has {rows:,}")
    try:
        datetime.datetime.fromisoformat(record["created"])
    except ValueError as error:
        raise DamagedError(f"{where}: {error}") from None
    return record
