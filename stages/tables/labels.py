"""Labels: how a column of them is read, and which class each spelling names.

One rule for files of every format and for tables in memory: white space around a label does not count, a boolean is
``True`` or ``False``, and where all labels are whole numbers, ``1.0`` is ``1``.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence

import pyarrow as pa

from ...cache.errors import TableError
from .columns import decode_dictionary, read_texts

_WHOLE_NUMBER = re.compile(r"-?(0|[1-9][0-9]{0,17})")
_NUMBER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")
_WHOLE = re.compile(r"([-+]?[0-9]+)(?:\.0*)?")


def read_labels(column: pa.Array, name: str, where: str, numbers: Sequence[int]) -> list[str | None]:
    """Return a column of labels as text; a null and a NaN are None. Arguments as for `read_texts`.

    Raises:
        TableError: the column's type is not one of classes, a number has a fraction, or a cell is not UTF-8.
    """
    column = decode_dictionary(column)
    kind = column.type
    if pa.types.is_nested(kind):
        raise TableError(
            f"{where}: the column {name!r} holds {kind}: multi-label targets are not supported; give one label per row"
        )
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        values = [None if value is None or math.isnan(value) else str(value) for value in column.to_pylist()]
        fractions = {value for value in set(values) if value is not None and not _WHOLE.fullmatch(value)}
        for value, number in zip(values, numbers, strict=True):
            if value in fractions:
                raise _regression(f"{where}, row {number:,}", name, value)
        return values
    if pa.types.is_temporal(kind):
        raise TableError(f"{where}: the column {name!r} holds {kind}, not labels; choose with `label_column`")
    if pa.types.is_boolean(kind):
        return [None if value is None else str(value) for value in column.to_pylist()]
    if pa.types.is_integer(kind):
        column = column.cast(pa.string())
    return read_texts(column, name, where, numbers)


def classes_of(spellings: Sequence[str], name: str, where: str) -> list[str]:
    """Return the class that each spelling of a label names; two spellings may name one class.

    Args:
        spellings: The distinct labels of a whole table.
        name: The name of their column.
        where: The table's name in a message.

    Raises:
        TableError: they are numbers, and one has a fraction.
    """
    classes = [spelling.strip() for spelling in spellings]
    all_digits = all(each.lstrip("+-").isdigit() for each in classes)
    if all_digits or not all(map(_NUMBER.fullmatch, classes)):
        return classes
    whole = [_WHOLE.fullmatch(each) for each in classes]
    if None in whole:
        raise _regression(where, name, classes[whole.index(None)])
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


def _regression(where: str, name: str, value: str) -> TableError:
    return TableError(
        f"{where}: the column {name!r} holds numbers such as {value!r}: regression targets are not supported; if these "
        "are classes, write them as whole numbers or names"
    )
