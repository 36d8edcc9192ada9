"""Labels: how a column of them is read, which class each spelling names, and what kind of labels they are.

One rule for files of every format and for tables in memory: white space around a label does not count, a boolean is
``True`` or ``False``, and where all labels are whole numbers, ``1.0`` is ``1``.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ...cache.errors import TableError
from ...cache.label_kind import LabelKind
from ..settings import Task, require_label_settings
from ..types import Indices
from ..units import number_name, number_of
from .columns import decode_dictionary, read_texts

MOST_WHOLE_NUMBERS = 50
"""Distinct whole numbers that are still classes. More of them are numbers, as are those with a fraction."""
Label = str | tuple[str, ...]
"""A row's label as it is spelled; several of them, or none, in a tuple where rows have lists."""
_WHOLE_NUMBER = re.compile(r"-?(0|[1-9][0-9]{0,17})")
_WHOLE = re.compile(r"([-+]?[0-9]+)(?:\.0*)?")
_CODE = re.compile(r"[-+]?0[0-9]+")
"""Digits that are a name, not a number, such as a postal code."""
_CHUNK = 1 << 16
"""Rows that are handled together, where an array for all rows would take too much memory."""
_FLAGS = {"0": False, "0.0": False, "false": False, "1": True, "1.0": True, "true": True}


@dataclasses.dataclass(frozen=True)
class LabelRules:
    """What the user says of the labels.

    Attributes:
        task: What they are for.
        delimiter: The text between the names of several labels in a cell.
        order: The names from the least to the greatest, for `Task.ORDINAL`.
    """

    task: Task = Task.AUTO
    delimiter: str | None = None
    order: tuple[str, ...] | None = None

    def require_fit(self, column: str | tuple[str, ...] | None) -> None:
        """Raise a SettingsError where they contradict each other, or the column or columns of labels."""
        require_label_settings(self.task, self.order, self.delimiter, column)


@dataclasses.dataclass(frozen=True)
class LabelColumn:
    """The labels of a whole table, in the shapes of `LabelKind`.

    Attributes:
        kind: What they are.
        values: One for each row.
        names: The classes; None of numbers.
        notes: What the user should know of them.
    """

    kind: LabelKind
    values: npt.NDArray[Any]
    names: tuple[str, ...] | None
    notes: tuple[str, ...]


def read_label_column(
    column: pa.Array, name: str, where: str, numbers: Sequence[int], delimiter: str | None
) -> list[Label | None]:
    """Return a column of labels, or of lists of labels, as text; a null and a NaN are None.

    Args:
        column, name, where, numbers: As for `read_texts`.
        delimiter: The text between several names in a cell of text, or None.

    Raises:
        TableError: the column's type is not one of labels, a list holds what is no name, or a cell is not UTF-8.
    """
    column = decode_dictionary(column)
    if not _is_list(column.type):
        cells = _read_labels(column, name, where, numbers)
        if delimiter is None:
            return list(cells)
        return [None if cell is None else tuple(filter(str.strip, cell.split(delimiter))) for cell in cells]
    items, problem = column.type.value_type, ""
    if delimiter is not None:
        raise TableError(f"{where}: the column {name!r} holds lists; leave out `label_delimiter`")
    if pa.types.is_nested(items):
        problem = "a list within a list"
    elif pa.types.is_boolean(items):
        problem = "a list of truth values, which does not name its labels"
    lists = column.to_pylist()
    for cell, number in zip(lists, numbers, strict=True):
        if pa.types.is_floating(items) and any(item is not None and not item.is_integer() for item in cell or ()):
            problem = "a list of numbers with fractions"
        if problem and cell:
            raise TableError(
                f"{where}, row {number:,}: the column {name!r} holds {problem}; give one number, or a list of names"
            )
    if problem:
        return [None if cell is None else () for cell in lists]
    places = [number for cell, number in zip(lists, numbers, strict=True) for _ in cell or ()]
    names = iter(_read_labels(column.flatten(), name, where, places))
    return [None if cell is None else tuple(next(names) or "" for _ in cell) for cell in lists]


def read_label_flags(columns: dict[str, pa.Array], where: str, numbers: Sequence[int]) -> list[Label | None]:
    """Return, for each row, the names of the columns that are 1; None if one of them is blank.

    Args:
        columns: The columns of 0 and 1, or of booleans, by name.
        where, numbers: As for `read_texts`.

    Raises:
        TableError: a cell is something else.
    """
    flags: list[list[bool | None]] = []
    for name, column in columns.items():
        cells = _read_labels(decode_dictionary(column), name, where, numbers)
        keys = [(cell or "").strip().casefold() for cell in cells]
        for key, cell, number in zip(keys, cells, numbers, strict=True):
            if key and key not in _FLAGS:
                raise TableError(
                    f"{where}, row {number:,}: the column {name!r} holds {(cell or '')[:80]!r}; several columns of "
                    "labels hold 0 or 1, or True or False"
                )
        flags.append([_FLAGS.get(key) for key in keys])
    rows = zip(*flags, strict=True)
    return [None if None in row else tuple(itertools.compress(columns, row)) for row in rows]


def blank_labels(labels: Sequence[Label | None], column: str | tuple[str, ...]) -> dict[int, str]:
    """Return the reason why each row without a label is bad, by its index. An empty list is no missing label."""
    names = ", ".join(map(repr, (column,) if isinstance(column, str) else column))
    reasons = {}
    for index, label in enumerate(labels):
        if label is None or (isinstance(label, str) and not label.strip()):
            reasons[index] = f"its label ({names}) is blank" if isinstance(column, str) else f"one of {names} is blank"
        elif isinstance(label, tuple) and not all(map(str.strip, label)):
            reasons[index] = f"its list of labels ({names}) holds a blank name"
    return reasons


class LabelScan:
    """Collects the labels of a table, batch by batch, and finds what kind they are.

    A row takes 8 bytes; a label of a list takes as many, until the matrix of all rows is made.
    """

    def __init__(self, column: str | tuple[str, ...], source: str, rules: LabelRules) -> None:
        self._column, self._source, self._rules = column, source, rules
        self._numbers: dict[str, int] = {}  # spelling -> number, in order of appearance
        self._codes: list[Indices] = []  # one for each label
        self._sizes: list[Indices] = []  # of rows with lists: how many labels each has
        self._values: list[npt.NDArray[np.float64]] = []  # instead of codes, once it is known that they are numbers
        self._lists: bool | None = None
        self._repeats = False  # a list has a name twice
        self._whole = set[str]()
        self._first: dict[str, tuple[str, str]] = {}  # the first fraction and the first text, and their rows

    def add(self, labels: Sequence[Label], place: Callable[[int], str]) -> None:
        """Add the labels of some rows, and the rows' names in a message.

        Raises:
            TableError: they are not what the task needs, or do not go together.
        """
        if not labels:
            return
        lists = isinstance(labels[0], tuple)
        if self._lists not in (None, lists):
            raise TableError(f"{place(0)}: the column {self._column!r} holds lists in some rows only")
        self._lists = lists
        if lists:
            self._require_task(Task.MULTI_LABEL, "lists of labels; give one label in each row", place(0))
            for label in labels:
                self._repeats |= len(set(label)) < len(label)
            self._sizes.append(np.array([len(label) for label in labels], np.int64))
            self._code([name for label in labels for name in label])
            return
        spellings: list[str] = [label for label in labels if isinstance(label, str)]
        if self._rules.task is Task.MULTI_LABEL:
            raise TableError(
                f"{self._source}: the column {self._column!r} holds single labels; for several of them in a cell, name "
                "`label_delimiter`, or several columns with `label_column`"
            )
        if self._values or self._rules.task is Task.REGRESSION:
            self._values.append(self._as_numbers(spellings, place))
            return
        known = len(self._numbers)
        self._code(spellings)
        for spelling in itertools.islice(self._numbers, known, None):
            self._look_at(spelling, spellings, place)
        many = len(self._whole) > MOST_WHOLE_NUMBERS
        if self._rules.task is Task.AUTO and (many or "fraction" in self._first):
            if "text" in self._first:
                raise self._mixed(*self._first["text"])
            values = np.array([float(spelling) for spelling in self._numbers], np.float64)
            self._values = [values[codes] for codes in self._codes]
            self._codes.clear()

    def finish(self) -> LabelColumn:
        """Return the labels of all rows.

        Raises:
            TableError: there is no class.
        """
        where = f"{self._source}, column {self._column!r}"
        if self._values:
            notes = []
            if self._rules.task is Task.AUTO:
                many = f"more than {MOST_WHOLE_NUMBERS} distinct whole numbers"
                what = f"numbers such as {self._first['fraction'][0]!r}" if "fraction" in self._first else many
                notes = [f"{where}: it holds {what}: a head of them is for regression; classes with `task=classes`"]
            return LabelColumn(LabelKind.NUMBER, np.concatenate(self._values), None, tuple(notes))
        classes = self._classes()
        names = self._names(classes)
        ranks = {name: rank for rank, name in enumerate(names)}
        order = np.array([ranks[name] for name in classes], np.int64)
        codes = np.concatenate(self._codes)
        self._codes.clear()
        notes = _spelling_notes(dict(zip(self._numbers, classes, strict=True)), np.bincount(codes), where)
        for start in range(0, len(codes), _CHUNK):  # in place
            codes[start : start + _CHUNK] = order[codes[start : start + _CHUNK]]
        if not self._lists:
            kind = LabelKind.ORDINAL if self._rules.task is Task.ORDINAL else LabelKind.CLASS
            return LabelColumn(kind, codes, names, tuple(notes))
        sizes = np.concatenate(self._sizes)
        values = np.zeros((len(sizes), len(names)), np.uint8)
        ends = np.cumsum(sizes)
        for start in range(0, len(sizes), _CHUNK):
            part = slice(start, start + _CHUNK)
            rows = np.repeat(np.arange(len(sizes))[part], sizes[part])
            values[rows, codes[ends[start] - sizes[start] : ends[part][-1]]] = 1
        if self._repeats and set(names) <= {"0", "1"}:
            raise TableError(f"{where}: it holds lists of 0 and 1, which do not name their labels; give lists of names")
        if self._rules.delimiter is not None and (empty := int((sizes == 0).sum())):
            notes.append(f"{where}: {empty:,} cells are empty: these rows have none of the labels")
        if self._rules.delimiter is not None and sizes.max() < 2:
            notes.append(f"{where}: no cell has two labels with {self._rules.delimiter!r} between them")
        return LabelColumn(LabelKind.MULTI_LABEL, values, names, tuple(notes))

    def _code(self, spellings: Iterable[str]) -> None:
        numbers = self._numbers
        self._codes.append(np.array([numbers.setdefault(name, len(numbers)) for name in spellings], np.int64))

    def _look_at(self, spelling: str, spellings: list[str], place: Callable[[int], str]) -> None:
        """Take note of what a new spelling is, and refuse one that the task has no use for."""
        task, order, name = self._rules.task, self._rules.order, spelling.strip()
        is_text = number_of(name) is None or _CODE.fullmatch(name)
        whole = None if is_text else _WHOLE.fullmatch(name)
        kind = "text" if is_text else "whole" if whole else "fraction"
        if whole:
            self._whole.add(whole[1].lstrip("+"))
        if kind not in self._first:
            self._first[kind] = name, place(spellings.index(spelling))
        if task is not Task.ORDINAL or (kind != "text" if order is None else _in_order(name, order) is not None):
            return
        wrong = "no number; name the `order` of the labels"
        if order is not None:
            wrong = f"not in the `order` {','.join(order)}"
        raise TableError(f"{place(spellings.index(spelling))}: the label {name[:80]!r} is {wrong}")

    def _as_numbers(self, spellings: Sequence[str], place: Callable[[int], str]) -> npt.NDArray[np.float64]:
        values = [number_of(spelling.strip()) for spelling in spellings]
        if None in values:
            raise self._mixed(spellings[values.index(None)], place(values.index(None)))
        return np.array(values, np.float64)

    def _mixed(self, text: str, place: str) -> TableError:
        advice = "correct it" if self._rules.task is Task.REGRESSION else "correct it, or take all as `task=classes`"
        return TableError(
            f"{place}: the column {self._column!r} holds {text[:80]!r} among numbers, and it is no finite number; "
            f"{advice}"
        )

    def _require_task(self, task: Task, what: str, place: str) -> None:
        if self._rules.task not in (Task.AUTO, task):
            raise TableError(f"{place}: `task={self._rules.task}` does not go with {what}")

    def _classes(self) -> list[str]:
        """Return the class that each spelling names."""
        order = self._rules.order
        if self._rules.task is not Task.ORDINAL:
            return classes_of(list(self._numbers))
        if order is None:
            return [number_name(float(spelling)) for spelling in self._numbers]
        return [_in_order(spelling.strip(), order) or "" for spelling in self._numbers]

    def _names(self, classes: Sequence[str]) -> tuple[str, ...]:
        if not isinstance(self._column, str):
            return self._column
        if self._rules.task is Task.ORDINAL:
            return self._rules.order or tuple(sorted(set(classes), key=float))
        if not classes:
            raise TableError(f"{self._source}: no row has a label in the column {self._column!r}")
        return sorted_classes(classes)


def _in_order(name: str, order: Sequence[str]) -> str | None:
    """Return the name as it stands in the order, where 1.0 may be 1; None if it does not."""
    number = number_of(name)
    names = [name] if number is None else [name, number_name(number)]
    return next((each for each in names if each in order), None)


def classes_of(spellings: Sequence[str]) -> list[str]:
    """Return the class that each spelling of a label names; two spellings may name one class.

    Args:
        spellings: The distinct labels of a whole table.
    """
    classes = [spelling.strip() for spelling in spellings]
    if all(each.lstrip("+-").isdigit() for each in classes):
        return classes
    whole = [_WHOLE.fullmatch(each) for each in classes]
    if None in whole:
        return classes
    return [match[1] if match[1].strip("+-0") else "0" for match in whole if match]


def sorted_classes(classes: Sequence[str]) -> tuple[str, ...]:
    """Return the distinct classes, sorted: as numbers where all are whole numbers, else as strings."""
    return tuple(sorted(sorted(set(classes)), key=int if all(map(_WHOLE_NUMBER.fullmatch, classes)) else None))


def lookalike(names: Sequence[str]) -> tuple[str, str] | None:
    """Return two classes that differ in case, in Unicode's normal form or in invisible characters alone, if any do."""
    seen: dict[str, str] = {}
    for name in names:
        visible = "".join(c for c in unicodedata.normalize("NFKC", name) if unicodedata.category(c) != "Cf")
        if (other := seen.setdefault(" ".join(visible.casefold().split()), name)) != name:
            return other, name
    return None


def _spelling_notes(classes: dict[str, str], rows: Indices, where: str) -> list[str]:
    """Say which labels are not taken as they are written, and which classes look alike.

    Args:
        classes: The class that each spelling names.
        rows: (spellings,) how many rows have each.
        where: The column's name.
    """
    notes = []
    changed = [number for number, (spelling, name) in enumerate(classes.items()) if spelling != name]
    if changed:
        spelling = list(classes)[changed[0]]
        notes.append(
            f"{where}: {int(rows[changed].sum()):,} labels are read as other names, such as {spelling!r} as "
            f"{classes[spelling]!r}: white space around a label does not count, and 1.0 is 1"
        )
    if pair := lookalike(list(classes.values())):
        notes.append(f"{where}: the labels {pair[0]!a} and {pair[1]!a} look alike, and are two classes")
    return notes


def _read_labels(column: pa.Array, name: str, where: str, numbers: Sequence[int]) -> list[str | None]:
    """Return a column of single labels as text; a null and a NaN are None. Errors as for `read_label_column`."""
    column = decode_dictionary(column)
    kind = column.type
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        values = column.to_pylist()
        for value, number in zip(values, numbers, strict=True):
            if value is not None and math.isinf(value):
                raise TableError(f"{where}, row {number:,}: the column {name!r} holds {value}; give finite numbers")
        return [None if value is None or math.isnan(value) else str(value) for value in values]
    if pa.types.is_temporal(kind):
        raise TableError(f"{where}: the column {name!r} holds {kind}, not labels; choose with `label_column`")
    if pa.types.is_boolean(kind):
        return [None if value is None else str(value) for value in column.to_pylist()]
    if pa.types.is_integer(kind):
        column = column.cast(pa.string())
    return read_texts(column, name, where, numbers)


def _is_list(kind: pa.DataType) -> bool:
    tests = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    views = (getattr(pa.types, name, None) for name in ("is_list_view", "is_large_list_view"))  # of later releases
    return any(test(kind) for test in (*tests, *filter(None, views)))
