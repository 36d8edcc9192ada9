"""Labels from elsewhere: a table's labels, put on the cached rows that have its texts. It costs no encoding."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from ...cache.errors import SettingsError, TableError
from ...cache.hashing import Hashes, hash_keys
from ...cache.reader import Cache, Labels
from ..progress import Note, Report

UNLABELLED = -1
"""The class number of a row whose text the table does not have."""


def relabel(
    cache: Cache,
    table: str | Path,
    *,
    text_column: str,
    text_pair_column: str | None = None,
    label_column: str,
    report: Report,
) -> Cache:
    """Give a cache the labels of a table, by the hashes of its texts.

    A text that stands in both several times keeps its order: its first row takes the first label, and so on; rows
    past the table's last take the last.

    Returns:
        The cache with other labels; rows whose text the table does not have are `UNLABELLED`.

    Raises:
        SettingsError: the cache is of pairs of texts and the table is not read as such, or the other way round.
        TableError: the table cannot be read, or none of its texts is in the cache.
    """
    if cache.identity.pairs != (text_pair_column is not None):
        what = "pairs of texts: name `text_pair_column`" if text_pair_column is None else "single texts"
        raise SettingsError(f"{cache.path} is of {what}")
    from ..tables.scan import scan_table  # these load pyarrow, which stage two does without otherwise
    from ..tables.table import open_table

    source = open_table(
        table,
        text_column=text_column,
        pair_column=text_pair_column,
        label_column=label_column,
        skip_bad_rows=None,
    )
    scan = scan_table(source, report)
    assert scan.labels is not None and scan.label_names is not None
    labels = match(cache.text_hashes, scan.text_hashes, scan.labels)
    missing = int((labels == UNLABELLED).sum())
    if missing == len(labels):
        raise TableError(f"{table} has none of the texts of {cache.path}; choose another table, or `text_column`")
    if missing:
        report(Note(f"{missing:,} of {len(labels):,} rows of {cache.path} have texts that {table} has not: left out"))
    borne = np.unique(labels[labels != UNLABELLED])  # the table may have classes that no cached row bears
    ranks = np.full(len(scan.label_names) + 1, UNLABELLED, np.int64)  # the last is that of -1
    ranks[borne] = np.arange(len(borne))
    names = tuple(scan.label_names[number] for number in borne.tolist())
    return dataclasses.replace(cache, labels=ranks[labels], label_names=names, label_checksums=None)


def match(wanted: Hashes, given: Hashes, labels: Labels) -> Labels:
    """The label of each wanted row: (wanted rows,) int64, -1 where no given row has its hash."""
    _, numbers = np.unique(hash_keys(np.concatenate([wanted, given])), return_inverse=True)
    numbers = numbers.reshape(-1)
    ours, theirs = numbers[: len(wanted)], numbers[len(wanted) :]
    order = np.argsort(theirs, kind="stable")  # given rows by text, each text's in the order of the table
    first = np.searchsorted(theirs[order], ours)
    copies = np.bincount(theirs, minlength=int(numbers.max()) + 1)[ours]
    place = first + np.minimum(_occurrence(ours), np.maximum(copies - 1, 0))
    found = labels[order[np.minimum(place, len(order) - 1)]]
    return np.where(copies > 0, found, UNLABELLED).astype(np.int64)


def _occurrence(numbers: Labels) -> Labels:
    """How often each row's number stood before it."""
    order = np.argsort(numbers, kind="stable")
    ordered = numbers[order]
    starts = np.searchsorted(ordered, ordered)
    result = np.empty(len(numbers), np.int64)
    result[order] = np.arange(len(numbers)) - starts
    return result
