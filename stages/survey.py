"""The first reading of a table: how many rows, which texts, which labels. It costs no encoding."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from ..cache.errors import TableError
from ..cache.hashing import Hashes, hash_keys, hash_texts
from .progress import Report, Step
from .table import Rows, Table

_WHOLE_NUMBER = re.compile(r"-?(0|[1-9][0-9]{0,17})")
_NUMBER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Survey:
    """What a table holds.

    Attributes:
        text_hashes: (rows, 16) uint8, one per good row.
        labels: (rows,) int64, indices into ``label_names``; None without a label column.
        label_names: The classes: by value where all are whole numbers, else in the order of their characters.
        skipped: Bad rows left out.
        state: What the file system said of the files before they were read.
    """

    text_hashes: Hashes
    labels: npt.NDArray[np.int64] | None
    label_names: tuple[str, ...] | None
    skipped: int
    state: tuple[tuple[int, int, int], ...]

    @property
    def rows(self) -> int:
        return len(self.text_hashes)

    def distinct_texts(self) -> int:
        return len(np.unique(hash_keys(self.text_hashes)))

    def conflicting_texts(self) -> int:
        """How many distinct texts stand in the table with two different labels."""
        if self.labels is None:
            return 0
        _, text = np.unique(hash_keys(self.text_hashes), return_inverse=True)
        pairs = np.unique(np.stack([text.reshape(-1), self.labels]), axis=1)  # (2, distinct pairs)
        return int((np.bincount(pairs[0]) > 1).sum())


def survey_table(table: Table, report: Report) -> Survey:
    """Read a table once.

    Raises:
        TableError: it cannot be parsed, has no rows, a row is bad, or its labels are not classes.
        StorageError: it cannot be read.
    """
    state = table.state()
    hashes: list[Hashes] = []
    codes: list[npt.NDArray[np.int64]] = []
    numbers: dict[str, int] = {}  # label name -> number, in order of appearance
    skipped = rows = 0
    for batch in table.batches():
        hashes.append(hash_texts(batch.texts))
        if batch.labels is not None:
            codes.append(np.array([numbers.setdefault(name, len(numbers)) for name in batch.labels], np.int64))
        skipped += batch.skipped
        rows += len(batch.texts)
        report(Step("reading", rows, 0, "rows"))
    if table.state() != state:
        raise _changed(table)
    if rows == 0:
        raise TableError(f"{table.source} has no rows" + (f" (all {skipped:,} are bad)" if skipped else ""))
    labels = names = None
    if table.label_column is not None:
        names = _sorted_names(list(numbers), table)
        ranks = {name: rank for rank, name in enumerate(names)}
        labels = np.array([ranks[name] for name in numbers], np.int64)[np.concatenate(codes)]
    return Survey(text_hashes=np.concatenate(hashes), labels=labels, label_names=names, skipped=skipped, state=state)


def windows(table: Table, survey: Survey, window_rows: int) -> Iterator[tuple[slice, Rows]]:
    """Read a table again, in windows of so many rows, checking that it is still the one that was surveyed.

    Yields:
        The rows' place among the good rows of the table, and the rows.

    Raises:
        TableError: the table has changed since.
    """
    start = 0
    for rows in _regrouped(table.batches(), window_rows):
        if table.state() != survey.state:
            raise _changed(table)
        place = slice(start, start + len(rows.texts))
        if not np.array_equal(hash_texts(rows.texts), survey.text_hashes[place]):
            raise _changed(table)
        yield place, rows
        start = place.stop
    if start != survey.rows:
        raise _changed(table)


def _changed(table: Table) -> TableError:
    return TableError(f"{table.source} changed while it was read; run again when nothing writes to it")


def _regrouped(batches: Iterator[Rows], window_rows: int) -> Iterator[Rows]:
    """Cut the same rows into windows of equal size, without their labels."""
    texts: list[str] = []
    files: list[str] = []
    numbers: list[int] = []
    for batch in batches:
        texts, files, numbers = texts + batch.texts, files + batch.files, numbers + batch.numbers
        while len(texts) >= window_rows:
            n = window_rows
            yield Rows(texts=texts[:n], labels=None, files=files[:n], numbers=numbers[:n], skipped=0)
            texts, files, numbers = texts[n:], files[n:], numbers[n:]
    if texts:
        yield Rows(texts=texts, labels=None, files=files, numbers=numbers, skipped=0)


def _sorted_names(names: list[str], table: Table) -> tuple[str, ...]:
    if all(_WHOLE_NUMBER.fullmatch(name) for name in names):
        return tuple(sorted(names, key=int))
    fractions = [name for name in names if not name.lstrip("+-").isdigit()]
    if fractions and all(_NUMBER.fullmatch(name) for name in names):
        raise TableError(
            f"{table.source}: the column {table.label_column!r} holds numbers such as {fractions[0]!r}: regression "
            "targets are not supported; if these are classes, write them as whole numbers or names"
        )
    return tuple(sorted(names))
