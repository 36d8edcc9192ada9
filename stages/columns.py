"""A table's two columns, as Python strings: what Arrow may hold in them, what is refused, and which rows are bad."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa

from ..cache.errors import TableError


def read_texts(column: pa.Array, name: str, where: str, numbers: Sequence[int]) -> list[str | None]:
    """Read a column of texts; a null stays None."""
    kind = column.type
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        column = column.cast(kind.value_type)
        kind = column.type
    if pa.types.is_null(kind):
        return [None] * len(column)
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
        places = (f"{where}, row {number:,}" for number in numbers)
        return [_decode(value, name, place) for value, place in zip(column.to_pylist(), places, strict=True)]
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
        raise TableError(f"{where}: the column {name!r} holds {kind}, not labels; choose with --label-column")
    return read_texts(column, name, where, numbers)


def _decode(value: bytes | None, name: str, place: str) -> str | None:
    try:
        return None if value is None else value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise TableError(
            f"{place}: the column {name!r} is not UTF-8 (byte {value[error.start] if value else 0:#04x}); "
            "convert the file, for example with iconv"
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
