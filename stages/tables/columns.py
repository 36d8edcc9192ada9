"""The columns of a table: which ones are read, how Arrow's types become Python strings, and which cells are bad."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence

import pyarrow as pa

from ...cache.documents import is_text
from ...cache.errors import TableError


@dataclasses.dataclass(frozen=True)
class ColumnNames:
    """The columns that hold texts and labels.

    Attributes:
        text: Column of the texts.
        pair: Column of the second texts; None for single texts.
        label: Column of the labels, or several columns of 0 and 1; None where labels are not read.
        keep_others: All other columns are read too, as they are.
        label_optional: The caller can do without labels, so an error offers it.
    """

    text: str
    pair: str | None
    label: str | tuple[str, ...] | None
    keep_others: bool = False
    label_optional: bool = False

    def names(self) -> list[str]:
        """The names that are not None."""
        return [name for name in (self.text, self.pair, *self.labels()) if name is not None]

    def labels(self) -> tuple[str, ...]:
        """The columns of labels."""
        return () if self.label is None else (self.label,) if isinstance(self.label, str) else self.label

    def require(self, names: Sequence[str], where: str, advice: str = "") -> None:
        """Check that a table has each of these columns once.

        Args:
            names: The names in the table's header.
            where: The table's name in a message.
            advice: The end of the message about a missing column.

        Raises:
            TableError: a column is missing, or two columns have its name.
        """
        wanted = [(self.text, "`text_column`"), (self.pair, "`text_pair_column`")]
        for column, setting in [*wanted, *((name, "`label_column`") for name in self.labels())]:
            if column is None or list(names).count(column) == 1:
                continue
            problem = "has two columns" if column in names else "has no column"
            without = " (or `label_column=None`)" if self.label_optional and setting == "`label_column`" else ""
            header = ", ".join(repr(name if len(name) < 99 else f"{name[:80]}...") for name in names[:30])
            header += f" and {len(names) - 30:,} more" if len(names) > 30 else ""
            raise TableError(f"{where} {problem} {column!r}; it has {header}: choose with {setting}{without}{advice}")


def read_texts(column: pa.Array, name: str, where: str, numbers: Sequence[int]) -> list[str | None]:
    """Return a column of texts as Python strings; a null stays None.

    Args:
        column: The column of some rows.
        name: The column's name.
        where: The file's name in a message.
        numbers: The number of each row, for a message.

    Raises:
        TableError: the column's type is no text, or a cell is not UTF-8.
    """
    values: list[str | None]
    if isinstance(column.type, pa.JsonType):
        try:
            values = [None if cell is None else json.loads(cell) for cell in column.to_pylist()]
            if all(value is None or is_text(value) for value in values):
                return values
        except (TypeError, ValueError):  # of a file of another format than JSON lines
            pass
        raise TableError(f"{where}: the column {name!r} holds JSON that is not text; choose another column")
    column = decode_dictionary(column)
    kind = column.type
    if pa.types.is_null(kind):
        return [None] * len(column)
    if is_binary(kind):
        try:
            column = column.cast(pa.large_string())
        except pa.ArrowInvalid:  # some cell is not UTF-8: find its row
            return [_decode(v, name, where, number) for v, number in zip(column.to_pylist(), numbers, strict=True)]
    elif not is_string(kind):
        raise TableError(f"{where}: the column {name!r} holds {kind}, not text; choose another column")
    values = column.to_pylist()
    return values


def decode_dictionary(column: pa.Array) -> pa.Array:
    """Return the plain values of an array that is stored as a dictionary (a categorical) or as runs of equal values."""
    if pa.types.is_run_end_encoded(column.type):
        from pyarrow.compute import run_end_decode  # which takes longer to load than a small table to read

        return run_end_decode(column)
    if not pa.types.is_dictionary(column.type):
        return column
    values = column.dictionary
    if pa.types.is_string_view(values.type):  # polars' strings, which Arrow cannot take by index
        values = values.cast(pa.large_string())
    return values.take(column.indices)


def is_string(kind: pa.DataType) -> bool:
    """Whether a type is one of Arrow's three kinds of strings."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def is_binary(kind: pa.DataType) -> bool:
    """Whether a type is one of Arrow's three kinds of bytes of any length."""
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def skip_advice(skip_bad_rows: bool | None) -> str:
    """Return the end of a message about a bad row: that it can be skipped, unless the caller offers no such setting."""
    return "" if skip_bad_rows is None else ", or use `skip_bad_rows=True`"


def blank_texts(texts: Mapping[str | None, list[str | None] | None]) -> dict[int, str]:
    """Return the reason why each row with a blank text is bad, by the row's index.

    Args:
        texts: The columns of texts, by name; None for a column that is not read.
    """
    reasons: dict[int, str] = {}
    for name, values in texts.items():
        reasons |= {i: f"its text ({name!r}) is blank" for i, v in enumerate(values or ()) if not (v and v.strip())}
    return reasons


def _decode(value: bytes | None, name: str, where: str, number: int) -> str | None:
    try:
        return None if value is None else value.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = value[error.start] if value else 0
        raise TableError(
            f"{where}, row {number:,}: the column {name!r} is not UTF-8 (byte {byte:#04x}); convert the file, for "
            "example with iconv"
        ) from None
