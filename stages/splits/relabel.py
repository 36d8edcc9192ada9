"""Labels from another table: cached rows get the labels that the table gives to their texts. Nothing is encoded."""

from __future__ import annotations

import numpy as np

from ...cache.errors import SettingsError, TableError
from ...cache.hashing import Hashes, hash_keys
from ...cache.label_kind import LabelKind
from ...cache.reader import Cache
from ...cache.reader import Labels as CachedLabels
from ..progress import Note, Report
from ..settings import Labels, Task
from ..types import Indices, Mask

UNLABELLED = -1
"""The class number of a row whose text the table does not hold. With numbers it is NaN, with several labels a row of
`_NO_SET`."""
_NO_SET = 255


def is_labelled(labels: CachedLabels) -> Mask:
    """Which rows have a label: (rows,) bool."""
    if labels.ndim == 2:
        labelled: Mask = labels[:, 0] != _NO_SET
    else:
        labelled = ~np.isnan(labels) if labels.dtype.kind == "f" else labels != UNLABELLED
    return labelled


def relabel(cache: Cache, labels: Labels, report: Report, *, task: Task, order: tuple[str, ...] | None) -> Cache:
    """Replace a cache's labels by the labels of a table. Rows are matched by the hashes of their texts.

    ``task`` and ``order`` are as in `LabelRules`.

    If both hold a text several times, their copies are matched in order: the cache's first copy gets the label of the
    table's first copy, and so on. If the cache holds more copies, the rest get the label of the table's last copy.

    Returns:
        The cache with other labels; those of rows whose text the table does not hold are none, as `is_labelled` says.

    Raises:
        SettingsError: the cache holds pairs of texts and ``text_pair_column`` is not set, or the reverse.
        TableError: the table cannot be read, or holds none of the cache's texts.
    """
    if cache.identity.pairs != (labels.text_pair_column is not None):
        what = "pairs of texts: name `text_pair_column`" if cache.identity.pairs else "single texts"
        raise SettingsError(f"{cache.path} is of {what}")
    from ..tables.labels import LabelRules
    from ..tables.scan import scan_table  # they load pyarrow, which training does not need otherwise
    from ..tables.table import open_table

    source = open_table(
        labels.table,
        text_column=labels.text_column,
        pair_column=labels.text_pair_column,
        label_column=labels.label_column,
        label_rules=LabelRules(task, labels.label_delimiter, order),
        skip_bad_rows=labels.skip_bad_rows,
        settings=labels,
    )
    scan = scan_table(source, report)
    assert scan.labels is not None and scan.label_kind is not None
    matched = match_rows(cache.text_hashes, scan.text_hashes)
    absent = matched == UNLABELLED
    rows, missing = len(matched), int(absent.sum())
    if missing == rows:
        raise TableError(
            f"{labels.table} has none of the texts of {cache.path}; choose another table, or `text_column`"
        )
    if missing:
        report(Note(f"{missing:,} of {rows:,} rows of {cache.path} are left out: {labels.table} lacks their texts"))
    values, names = scan.labels[matched], scan.label_names
    if scan.label_kind is LabelKind.CLASS and names is not None:  # the table may have classes that no cached row has
        used = np.unique(values[~absent])
        numbers = np.zeros(len(names), np.int64)
        numbers[used] = np.arange(len(used))
        values, names = numbers[values], tuple(names[number] for number in used.tolist())
    if scan.label_kind is LabelKind.MULTI_LABEL and names is not None:
        held = np.flatnonzero(values[~absent].any(axis=0)).tolist()
        values, names = values[:, held], tuple(names[number] for number in held)
    none = {LabelKind.NUMBER: np.nan, LabelKind.MULTI_LABEL: _NO_SET}.get(scan.label_kind, UNLABELLED)
    values[absent] = none
    return cache.with_labels(values, names, scan.label_kind)


def match_rows(texts: Hashes, table_texts: Hashes) -> Indices:
    """Find the row of each text in a table, by the hashes of both.

    Returns:
        (rows,) int64; `UNLABELLED` where the table does not hold the text.
    """
    _, numbers = np.unique(hash_keys(np.concatenate([texts, table_texts])), return_inverse=True)
    ours, theirs = numbers[: len(texts)], numbers[len(texts) :]
    order = np.argsort(theirs, kind="stable")  # table rows sorted by text; copies stay in the table's order
    first = np.searchsorted(theirs[order], ours)
    copies = np.bincount(theirs, minlength=int(numbers.max()) + 1)[ours]
    place = first + np.minimum(copy_numbers(ours), np.maximum(copies - 1, 0))
    rows = order[np.minimum(place, len(order) - 1)]
    return np.where(copies > 0, rows, UNLABELLED).astype(np.int64)


def copy_numbers(numbers: Indices) -> Indices:
    """For each row, how many earlier rows have the same number."""
    order = np.argsort(numbers, kind="stable")
    ordered = numbers[order]
    result = np.empty(len(numbers), np.int64)
    result[order] = np.arange(len(numbers)) - np.searchsorted(ordered, ordered)
    return result
