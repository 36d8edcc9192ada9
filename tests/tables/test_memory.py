"""Tables in memory, as libraries have them: only the columns that are read need be ones that Arrow knows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from headstart.cache.errors import TableError
from headstart.stages.tables.table import open_table

TEXTS, LABELS = ["a b", "c d", "e f", "g h"], ["1", "0", "1", "0"]
FRAME = pd.DataFrame({"text": TEXTS, "label": [1, 0, 1, 0]})
_ARROW = pa.table(FRAME)
OLD_ARROW = int(pa.__version__.split(".")[0]) < 26
"""Arrow's own export of such categories crashes there; polars' does not."""


def read(table: Any, *, skip: bool = False, **options: Any) -> tuple[list[str], list[str]]:
    defaults = {"text_column": "text", "label_column": "label", "skip_bad_rows": skip}
    batches = list(open_table(table, **{**defaults, **options}).batches())
    return [text for batch in batches for text in batch.texts], [name for b in batches for name in b.labels or ()]


class Exported:
    """A frame of a library that this package does not know: it exports an Arrow stream."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        return self._table.__arrow_c_stream__(requested_schema)


def categories(values: list[str | None], *, exported: bool = False) -> pa.DictionaryArray:
    """A column as polars exports its categories: 32-bit numbers of string views."""
    encoded = pa.array(values).dictionary_encode()
    kind = pa.large_string() if exported and OLD_ARROW else pa.string_view()
    return pa.DictionaryArray.from_arrays(encoded.indices.cast(pa.uint32()), encoded.dictionary.cast(kind))


@pytest.mark.parametrize(
    "table",
    [
        FRAME.assign(meta=[{"a": 1}, [1], "x", None]),
        pd.concat([FRAME, pd.DataFrame([[1, 2]] * 4, columns=["x", "x"])], axis=1),
        FRAME.assign(column_names=1, select_columns=2, get_column=3),
        FRAME.set_index(pd.Index([1, "two", None, 4], name="odd")),
        dict(FRAME.assign(meta=[{"a": 1}, [1], "x", None])),
        {"text": TEXTS, "label": LABELS, "meta": [1, "two", None, []]},
        {"text": np.array(TEXTS), "label": np.array([1, 0, 1, 0]), "short": [1]},
        pa.table({"text": TEXTS, "label": categories(list("1010"))}).to_batches()[0],
        Exported(
            pa.table({"text": pa.array(TEXTS, pa.string_view()), "label": categories(list("1010"), exported=True)})
        ),
        Exported(pa.table(FRAME)),
    ],
)
def test_other_columns_may_hold_anything(table: Any) -> None:
    assert read(table) == (TEXTS, LABELS)


def test_columns_whose_names_are_numbers() -> None:
    frame = pd.DataFrame([*zip(TEXTS, LABELS, strict=True)])
    assert read(frame, text_column="0", label_column="1") == (TEXTS, LABELS)


@pytest.mark.parametrize("missing", [None, float("nan"), pd.NA])
def test_a_missing_text_is_a_blank_row(missing: Any) -> None:
    texts = pd.Series(["a b", missing, "e f", "g h"], dtype=object)
    frame = FRAME.assign(text=texts)
    columns = {"text": texts.tolist(), "label": LABELS} if missing is not pd.NA else dict(frame)
    for table, labels in ((frame, None), (columns, None), (texts, FRAME["label"])):
        assert read(table, labels=labels, skip=True) == (["a b", "e f", "g h"], ["1", "1", "0"])
        with pytest.raises(TableError, match=r"the table in memory, row 2: its text \('text'\) is blank"):
            read(table, labels=labels)


def test_what_is_no_table_is_refused() -> None:
    with pytest.raises(TableError, match="cannot be read as columns"):
        read(FRAME.assign(label=[1, "two", [], None]))
    with pytest.raises(TableError, match="the table in memory has no column 'text'; it has 'train', 'test'"):
        read({"train": FRAME, "test": FRAME})
    with pytest.raises(TableError, match="has no column 'text'"):
        read({})
    for text in ("ab", b"ab", {"a", "b"}):  # Arrow takes their characters or members for rows
        with pytest.raises(TableError, match=f"a {type(text).__name__} stands where a list of rows is expected"):
            read({"text": text, "label": ["x", "y"]})
    with pytest.raises(TableError, match="a str stands where a list of rows is expected"):
        read(["a", "b"], labels="xy")
    streamed = type("IterableDataset", (), {"column_names": None, "select_columns": lambda self, _: self})
    for thing in (object(), streamed()):
        with pytest.raises(TableError, match="cannot be read as columns"):
            read(thing)


@pytest.mark.parametrize("kind", ["Categorical", "Enum"])
def test_polars_categories(kind: str) -> None:
    polars = pytest.importorskip("polars")
    dtype = polars.Categorical if kind == "Categorical" else polars.Enum(["1", "0"])
    frame = polars.DataFrame({"text": TEXTS, "label": LABELS, "odd": [object()] * 4})
    assert read(frame.with_columns(label=polars.Series(LABELS, dtype=dtype))) == (TEXTS, LABELS)
    assert read(polars.Series(TEXTS), labels=polars.Series(LABELS, dtype=dtype)) == (TEXTS, LABELS)


def test_a_dataset_of_datasets(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    dataset = datasets.Dataset.from_dict({"text": TEXTS, "label": [1, 0, 1, 0], "other": [[1], [], [2], []]})
    assert read(dataset) == (TEXTS, LABELS)
    assert read(dataset.select([3, 0])) == (["g h", "a b"], ["0", "1"])
    assert read(dataset["text"], labels=dataset["label"]) == (TEXTS, LABELS)


def test_a_saved_dataset_is_a_table(tmp_path: Path) -> None:
    """As its folder, whose JSON files describe it."""
    datasets = pytest.importorskip("datasets")
    dataset = datasets.Dataset.from_dict({"text": TEXTS, "label": [1, 0, 1, 0]})
    dataset.save_to_disk(tmp_path / "one", num_shards=2)
    assert read(tmp_path / "one") == (TEXTS, LABELS)


def test_a_folder_as_datasets_saves_it(tmp_path: Path) -> None:
    for name in ("dataset_info.json", "state.json"):
        (tmp_path / name).write_text("{}")
    with (tmp_path / "data-00000-of-00001.arrow").open("wb") as file, pa.ipc.new_stream(file, _ARROW.schema) as out:
        out.write_table(_ARROW)
    assert read(tmp_path) == (TEXTS, LABELS)


def test_a_folder_of_several_saved_datasets_is_refused(tmp_path: Path) -> None:
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    for name in ("train", "test"):
        (tmp_path / name).mkdir()
    with pytest.raises(TableError, match=r"holds several tables, .* give the folder of one \(test, train\)"):
        read(tmp_path)


def test_relations_of_duckdb_and_frames_of_polars_are_read() -> None:
    duckdb, pl = pytest.importorskip("duckdb"), pytest.importorskip("polars")
    table = pa.table({"text": TEXTS, "label": LABELS, "other": [[1]] * 4})
    relation = duckdb.from_arrow(table)
    for given in (relation, relation, pl.DataFrame(table), relation.filter("label = '1'").union(relation).limit(4)):
        assert len(read(given)[0]) == 4
    assert read(relation) == read(pl.DataFrame(table)) == (TEXTS, LABELS)
    (batch,) = open_table(relation, text_column="text", label_column=None, keep_others=True).batches()
    assert batch.cells is not None and batch.cells.schema.names == table.schema.names
    with pytest.raises(TableError, match="type is LazyFrame, which is not computed yet"):
        read(pl.DataFrame(table).lazy())


def test_of_a_stream_only_the_columns_that_are_read_are_kept() -> None:
    table = pa.table({"text": TEXTS, "label": LABELS, "other": ["x" * 1000] * 4})
    opened = open_table(Exported(table), text_column="text", label_column="label")
    assert opened.memory is not None and opened.memory.schema.names == ["text", "label"]
    with pytest.raises(TableError, match="has no column 'text'; it has 'other'"):
        read(Exported(table.select(["other"])))


def test_what_can_be_read_only_once_is_refused_by_name() -> None:
    datasets = pytest.importorskip("datasets")
    stream = datasets.Dataset.from_dict({"text": TEXTS, "label": LABELS}).to_iterable_dataset()
    with pytest.raises(TableError, match="type is IterableDataset, which can be read only once: write it to a file"):
        read(stream)
    with pytest.raises(TableError, match="type is RecordBatchReader, which can be read only once"):
        read(pa.table({"text": TEXTS, "label": LABELS}).to_reader())
