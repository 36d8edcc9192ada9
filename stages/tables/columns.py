"""A table's two columns, as Python strings: what Arrow may hold in them, what is refused, and which rows are bad."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import pyarrow as pa

from ...cache.errors import TableError


@dataclasses.dataclass(frozen=True)
class ColumnNames:
    """Which columns of a table are read.

    Attributes:
        text: The column of the texts.
        pair: That of the second texts, or None.
        label: That of the labels, or None.
    """

    text: str
    pair: str | None
    label: str | None

    def names(self) -> list[str]:
        """Those that are wanted."""
        return [name for name in (self.text, self.pair, self.label) if name is not None]

    def require(self, names: Sequence[str], where: str) -> None:
        """Refuse a table that lacks one of them, or has it twice.

        Args:
            names: The columns that the table has.
            where: What to call it.

        Raises:
            TableError: it does.
        """
        options = ("`text_column`", "`text_pair_column`", "`label_column`")
        for column, option in zip((self.text, self.pair, self.label), options, strict=True):
            if column is None or list(names).count(column) == 1:
                continue
            problem = "has two columns" if column in names else "has no column"
            without = " (or `label_column=None`)" if option == "`label_column`" else ""
            found = ", ".join(map(repr, names))
            separated = len(names) == 1 and any(mark in names[0] for mark in ";\t|,")
            advice = "; cells stand between commas in a .csv, between tabs in a .tsv" if separated else ""
            raise TableError(f"{where} {problem} {column!r}; it has {found}: choose with {option}{without}{advice}")


def read_texts(column: pa.Array, name: str, where: str, numbers: Sequence[int]) -> list[str | None]:
    """Read a column of texts; a null stays None."""
    kind = column.type
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        column = column.cast(kind.value_type)
        kind = column.type
    if pa.types.is_null(kind):
        return [None] * len(column)
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
        try:
            column = column.cast(pa.large_string())
        except pa.ArrowInvalid:  # not UTF-8: look for the row, and say so
            return [_decode(v, name, where, number) for v, number in zip(column.to_pylist(), numbers, strict=True)]
        kind = column.type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        raise TableError(f"{where}: the column {name!r} holds {kind}, not text; choose another column")
    values: list[str | None] = column.to_pylist()
    return values


def read_labels(column: pa.Array, name: str, where: str, numbers: Sequence[int]) -> list[str | None]:
    """Read a column of labels as their names; a null stays None."""
    encoded = pa.types.is_dictionary(column.type) or pa.types.is_run_end_encoded(column.type)
    kind = column.type.value_type if encoded else column.type
    if pa.types.is_nested(kind):
        raise TableError(
            f"{where}: the column {name!r} holds {kind}: multi-label targets are not supported; give one label per row"
        )
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        raise TableError(
            f"{where}: the column {name!r} holds {kind}: regression targets are not supported; "
            "if these are classes, write them as whole numbers or names"
        )
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        column = column.cast(pa.string())
    elif pa.types.is_temporal(kind):
        raise TableError(f"{where}: the column {name!r} holds {kind}, not labels; choose with `label_column`")
    return read_texts(column, name, where, numbers)


def _decode(value: bytes | None, name: str, where: str, number: int) -> str | None:
    try:
        return None if value is None else value.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = value[error.start] if value else 0
        raise TableError(
            f"{where}, row {number:,}: the column {name!r} is not UTF-8 (byte {byte:#04x}); convert the file, for "
            "example with iconv"
        ) from None


def bad_rows(
    texts: Mapping[str | None, list[str | None] | None], label_column: str | None, labels: list[str | None] | None
) -> dict[int, str]:
    """Say what is wrong with each bad row, by its index.

    Args:
        texts: The columns of texts, by name; one that is not there is None.
        label_column: The name of the column of labels.
        labels: That column, or None.
    """
    reasons: dict[int, str] = {}
    for what, name, values in [("label", label_column, labels), *(("text", n, v) for n, v in texts.items())]:
        reasons |= {i: f"its {what} ({name!r}) is blank" for i, v in enumerate(values or ()) if not (v and v.strip())}
    return reasons
