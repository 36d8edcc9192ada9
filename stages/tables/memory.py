"""Tables in memory, as Arrow tables: of a frame of any library, the columns that are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from ...cache.errors import TableError
from .columns import ColumnNames

SOURCE = "the table in memory"
"""Its name in a message."""
_ONCE = {
    "IterableDataset": "can be read only once: write it to a file, or load it with streaming=False",
    "LazyFrame": "is not computed yet: call its collect()",
    "RecordBatchReader": "can be read only once: call its read_all()",
}
"""Tables that are no tables yet, by their types."""


def as_arrow(table: Any, columns: ColumnNames) -> pa.Table:
    """Return a table in memory as Arrow's. The columns that are not read may hold what Arrow does not know.

    Args:
        table: A mapping of columns, an Arrow table, a `datasets.Dataset`, or a DataFrame of pandas, polars or another
            library that exports Arrow's streams.
        columns: The columns that are read; a NaN in a column of Python objects is a null there.

    Raises:
        TableError: a column is missing, or cannot be converted.
    """
    if advice := _ONCE.get(type(table).__name__):
        raise TableError(f"{SOURCE} cannot be read as columns: its type is {type(table).__name__}, which {advice}")
    kind = type(table)  # asked for its attributes, because a pandas frame has those of its columns' names too
    if isinstance(table, Mapping):
        given: Any = table
    else:
        given = getattr(table, "column_names" if hasattr(kind, "column_names") else "columns", None)
    names = [] if given is None else list(map(str, given))
    if given is not None:
        columns.require(names, SOURCE)
    wanted = names if columns.keep_others else columns.names()
    try:
        if isinstance(table, Mapping):
            values = dict(zip(names, table.values(), strict=True))
            return pa.table({name: _column(values[name], nan_is_null=name in columns.names()) for name in wanted})
        if hasattr(kind, "select_columns"):  # a datasets.Dataset, which may be a view of some of its rows
            return table.select_columns(wanted).with_format("arrow")[:]
        if hasattr(kind, "iloc") and not columns.keep_others:  # pandas' names of columns need not be str
            part = table.iloc[:, [names.index(name) for name in wanted]].set_axis(wanted, axis=1)
            return pa.Table.from_pandas(part, preserve_index=False)
        if isinstance(table, pa.RecordBatch):
            table = pa.Table.from_batches([table])
        if (
            isinstance(table, pa.Table) or hasattr(kind, "get_column")
        ) and not columns.keep_others:  # the latter: polars'
            table = table.select(wanted)
        if isinstance(table, pa.Table):
            return table
        exports = hasattr(table, "__arrow_c_stream__") and not hasattr(kind, "iloc")
        return _from_stream(table, wanted, columns) if exports else pa.table(table)
    except (pa.ArrowException, AttributeError, TypeError, ValueError, UnicodeError) as error:
        raise unreadable(error) from None


def _from_stream(table: Any, wanted: Sequence[str], columns: ColumnNames) -> pa.Table:
    """Read the stream that a table exports; of each batch, the columns that are read are kept."""
    with pa.RecordBatchReader.from_stream(table) as reader:
        columns.require(reader.schema.names, SOURCE)
        names = wanted or (reader.schema.names if columns.keep_others else columns.names())
        schema = pa.schema([reader.schema.field(name) for name in names], reader.schema.metadata)
        return pa.Table.from_batches((batch.select(names) for batch in reader), schema)


def texts_as_arrow(columns: Mapping[str, Sequence[Any]]) -> pa.Table:
    """Return sequences of texts and labels as a table.

    Raises:
        TableError: they are not of one length, or hold something else.
    """
    try:
        return pa.table({name: _column(values, nan_is_null=True) for name, values in columns.items()})
    except (pa.ArrowException, TypeError, ValueError, UnicodeError) as error:
        raise unreadable(error) from None


def unreadable(error: Exception) -> TableError:
    reason = " ".join(str(error).split())
    return TableError(f"{SOURCE} cannot be read as columns of texts and labels: {reason}")


def as_list(values: Any) -> Any:
    """Return an array or a Series (of numpy, pandas, polars or Arrow) as a list; other values unchanged."""
    if getattr(values, "ndim", 1) != 1 or hasattr(type(values), "column_names"):  # a matrix, a frame, an Arrow table
        return values
    method = next((name for name in ("to_pylist", "to_list", "tolist") if hasattr(values, name)), None)
    return values if method is None else getattr(values, method)()


def _column(values: Any, *, nan_is_null: bool) -> pa.Array | pa.ChunkedArray:
    if isinstance(values, str | bytes | set | frozenset):  # Arrow takes characters, and members in any order, for rows
        raise TypeError(f"a {type(values).__name__} stands where a list of rows is expected")
    if hasattr(values, "__arrow_c_stream__"):  # a Series, or an Arrow column in chunks
        return pa.chunked_array(values)
    return pa.array(values, from_pandas=nan_is_null)
