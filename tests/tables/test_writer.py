"""Writing tables: whatever was read, other programs read the same values back."""

from __future__ import annotations

import csv
import datetime
import decimal
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
from headstart.cache.errors import OutputExistsError, TableError
from headstart.stages.progress import silent
from headstart.stages.tables.scan import read_column_windows, scan_columns
from headstart.stages.tables.table import open_table
from headstart.stages.tables.writer import open_writer
from hypothesis import example, given, settings
from hypothesis import strategies as st

SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
TEXTS = st.text(st.characters(exclude_categories=("Cs",)) | st.sampled_from("\r\n\t\", '\\#"), min_size=1, max_size=8)


def copy(table: Any, out: Path, *, window_rows: int = 3) -> Path:
    """Read a table with all its columns, and write it in windows."""
    source = open_table(table, text_column="text", label_column=None, keep_others=True)
    scan = scan_columns(source, silent)
    with open_writer(out, scan.schema, scan.json_types, overwrite=True) as write:
        rows = 0
        for window in read_column_windows(source, scan, window_rows):
            write(window.cells)
            rows += len(window)
    assert rows == scan.rows
    return out


def cells(path: Path) -> list[list[str]]:
    """The rows of a CSV or TSV file as Python's csv reads them, with the header."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file, delimiter="\t" if path.suffix == ".tsv" else ","))


def by_pandas(path: Path) -> list[list[str]]:
    """The same as pandas reads them."""
    separator = "\t" if path.suffix == ".tsv" else ","
    table = pd.read_csv(path, sep=separator, dtype=str, keep_default_na=False)
    return [list(table.columns), *table.to_numpy().tolist()]


def objects(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


@settings(max_examples=40)
@given(st.lists(st.tuples(TEXTS, st.text(st.characters(exclude_categories=("Cs",)), max_size=4)), min_size=1))
@example([("a\0b", "\0"), ("\ufeffa", "\x85\u2028")])
@example([('"', '"'), ('"a"', '""'), ('"a', '"b\t'), ("a", ""), (" a", " "), ("\ta", '" "')])
@example([("a\rb", "\r"), ("a\r\nb", '"'), ('say "x', "\n"), ("a\tb", ","), ("NA", "null")])
def test_any_texts_are_read_back_from_what_is_written(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]
) -> None:
    """By Python's csv, by pandas, and by this package: from memory to each format, and from each format to each."""
    folder = tmp_path_factory.mktemp("any")
    rows = [(text if text.strip() else text + "x", other) for text, other in rows]
    expected = [["text", "other"], *map(list, rows)]
    memory = {"text": [text for text, _ in rows], "other": [other for _, other in rows]}
    for source in (memory, *(folder / f"memory{suffix}" for suffix in SUFFIXES)):
        for suffix in SUFFIXES:
            name = "memory" if source is memory else f"from{source.suffix[1:]}"
            out = copy(source, folder / f"{name}{suffix}")
            if suffix == ".jsonl":
                read = [["text", "other"], *(list(row.values()) for row in objects(out))]
            elif suffix == ".parquet":
                read = [["text", "other"], *(list(row.values()) for row in pa.parquet.read_table(out).to_pylist())]
            else:
                read = cells(out)
                assert by_pandas(out) == read
            assert read == expected


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_a_columns_name_may_hold_anything_too(tmp_path: Path, suffix: str) -> None:
    """Also a byte order mark, which at the start of a file would be none of the name."""
    names = ["\ufeffid", "a\rb", '"', "c\td", "e,f", "text"]
    out = copy({name: ["x", "y"] for name in names}, tmp_path / f"out{suffix}")
    assert cells(out) == by_pandas(out) == [names, ["x"] * 6, ["y"] * 6]
    assert cells(copy(out, tmp_path / f"again{suffix}")) == cells(out)


def test_a_label_keeps_its_class_in_what_is_written(tmp_path: Path) -> None:
    """From a table of any kind to a table of any kind: a boolean, too, is one class in all of them."""
    table = pa.table({"text": ["a", "b", "c"], "label": [True, False, None]})
    pa.parquet.write_table(table, tmp_path / "in.parquet")
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    for source in (table, tmp_path / "in.parquet", tmp_path / "in.jsonl"):
        for suffix in SUFFIXES:
            out = copy(source, tmp_path / f"out{suffix}")
            labelled = open_table(out, text_column="text", label_column="label", skip_bad_rows=True)
            assert [name for rows in labelled.batches() for name in rows.labels or ()] == ["True", "False"]


TYPED = {
    "text": ["one", "two", "three", "four"],
    "whole": pa.array([1, None, 3, 4], pa.int16()),
    "number": [1.0, 0.1, float("nan"), None],
    "truth": [True, False, None, True],
    "day": [datetime.date(2020, 1, 31)] * 4,
    "time": pa.array([1, 2, 3, None], pa.timestamp("ns", "UTC")),
    "price": [decimal.Decimal("1.10")] * 4,
    "tags": [["a", 'b"'], [], None, [None]],
    "place": [{"x": 1.5, "y": None}] * 4,
    "kind": pa.array(["k", "l", "k", None]).dictionary_encode(),
    "bytes": [b"\xff", b"", None, b"a"],
}


def test_parquet_keeps_its_types(tmp_path: Path) -> None:
    table = pa.table(TYPED)
    pa.parquet.write_table(table, tmp_path / "in.parquet")
    for source in (table, tmp_path / "in.parquet"):
        found = pa.parquet.read_table(copy(source, tmp_path / "out.parquet"))
        assert found.schema == table.schema
        assert str(found.to_pylist()) == str(table.to_pylist())  # NaN is not equal to itself


def test_polars_categories_are_written(tmp_path: Path) -> None:
    """Arrow can neither decode nor store a dictionary of its string views."""
    categories = pa.DictionaryArray.from_arrays(
        pa.array([0, 1, None], pa.uint32()), pa.array(["x", "y"], pa.string_view())
    )
    table = pa.table({"text": pa.array(["a", "b", "c"], pa.string_view()), "kind": categories})
    expected = [("a", "x"), ("b", "y"), ("c", None)]
    assert objects(copy(table, tmp_path / "out.jsonl")) == [{"text": text, "kind": kind} for text, kind in expected]
    assert cells(copy(table, tmp_path / "out.csv"))[1:] == [["a", "x"], ["b", "y"], ["c", ""]]
    found = pa.parquet.read_table(copy(table, tmp_path / "out.parquet", window_rows=2))
    assert list(zip(*found.to_pydict().values(), strict=True)) == expected
    assert pa.types.is_dictionary(found.schema.field("kind").type)


def test_a_data_frame_comes_back_as_it_was(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {"text": ["a", "b"], "kind": pd.Categorical(["x", "y"]), "when": pd.to_datetime(["2020-01-01", "2021-01-01"])},
        index=pd.Index(["i", "j"], name="id"),
    )
    pd.testing.assert_frame_equal(pd.read_parquet(copy(frame, tmp_path / "out.parquet")), frame)


def test_values_of_any_type_become_text_or_json(tmp_path: Path) -> None:
    table = {name: values for name, values in TYPED.items() if name != "bytes"}
    header, first, second, third, fourth = cells(copy(pa.table(table), tmp_path / "out.csv"))
    assert header == list(table)
    assert first[:5] == ["one", "1", "1.0", "True", "2020-01-31"]
    assert first[5].startswith("1970-01-01 00:00:00.000000001")
    assert first[6:] == ["1.10", '["a", "b\\""]', '{"x": 1.5, "y": null}', "k"]
    assert (second[1:4], third[1:4], fourth[1:3]) == (["", "0.1", "False"], ["3", "nan", ""], ["4", ""])
    rows = objects(copy(pa.table(table), tmp_path / "out.jsonl"))
    assert [row["number"] for row in rows] == [1.0, 0.1, None, None]
    assert [row["tags"] for row in rows] == [["a", 'b"'], [], None, [None]]
    assert rows[0]["place"] == {"x": 1.5, "y": None} and rows[0]["price"] == "1.10" and rows[3]["time"] is None


JSON_ROWS: list[dict[str, Any]] = [
    {"text": "a", "mixed": 1, "whole": 9007199254740993, "number": 1, "nested": {"é": [1, None]}},
    {"text": "b", "mixed": "two", "whole": None, "number": 0.1, "truth": True},
    {"mixed": [3], "text": "c", "only": None, "huge": 10**30},
    {"text": 'd "\\', "mixed": None, "late": "x"},
]


def test_json_lines_keep_their_values(tmp_path: Path) -> None:
    """Also where they differ in kind, and a column that a row lacks is no null."""
    path = tmp_path / "in.jsonl"
    path.write_text("\n\n".join(map(json.dumps, JSON_ROWS)), encoding="utf-8-sig")
    for window_rows in (1, 3, 10):
        assert objects(copy(path, tmp_path / "out.jsonl", window_rows=window_rows)) == JSON_ROWS
    names = list(dict.fromkeys(name for row in JSON_ROWS for name in row))
    assert names == ["text", "mixed", "whole", "number", "nested", "truth", "only", "huge", "late"]

    def text(value: Any) -> str:
        if value is None or isinstance(value, str | bool):
            return "" if value is None else str(value)
        return json.dumps(value, ensure_ascii=False)

    expected = [names, *([text(row.get(name)) for name in names] for row in JSON_ROWS)]
    assert cells(copy(path, tmp_path / "out.csv", window_rows=1)) == expected
    table = pa.parquet.read_table(copy(path, tmp_path / "out.parquet", window_rows=1))
    assert table.column("whole").to_pylist() == [9007199254740993, None, None, None]
    assert table.column("number").to_pylist() == [1.0, 0.1, None, None]
    assert table.column("truth").to_pylist() == [None, True, None, None]
    assert table.column("mixed").to_pylist() == ["1", '"two"', "[3]", None]
    assert table.column("huge").to_pylist() == [None, None, str(10**30), None]


def test_cells_come_out_as_the_text_they_were(tmp_path: Path) -> None:
    rows = [["text", "x", "y", ""], ["a", "007", "NA", "1.50"], ["b", " two", "", "TRUE"], ["c", "1e5", "null", ""]]
    for suffix, separator in ((".csv", ","), (".tsv", "\t")):
        path = tmp_path / f"in{suffix}"
        path.write_text("".join(separator.join(row) + "\n" for row in rows), encoding="utf-8")
        assert copy(path, tmp_path / f"out{suffix}").read_bytes() == path.read_bytes()
        assert pa.parquet.read_table(copy(path, tmp_path / "out.parquet")).to_pydict()["x"] == ["007", " two", "1e5"]


def test_files_of_a_folder_may_have_other_columns(tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    folder.mkdir()
    (folder / "a.csv").write_text("text,x\na,1\nb,2\n")
    (folder / "b.csv").write_text("y,text\n3,c\n")
    assert cells(copy(folder, tmp_path / "out.csv")) == [
        ["text", "x", "y"],
        ["a", "1", ""],
        ["b", "2", ""],
        ["c", "", "3"],
    ]
    folder = tmp_path / "typed"
    folder.mkdir()
    pa.parquet.write_table(pa.table({"text": ["a"], "x": pa.array([1], pa.int32())}), folder / "a.parquet")
    pa.parquet.write_table(pa.table({"text": ["b"], "x": pa.array([1 << 40], pa.int64())}), folder / "b.parquet")
    for window_rows in (1, 5):
        out = copy(folder, tmp_path / "out.parquet", window_rows=window_rows)
        assert pa.parquet.read_table(out).to_pydict() == {"text": ["a", "b"], "x": [1, 1 << 40]}
    pa.parquet.write_table(pa.table({"text": ["b"], "x": ["one"]}), folder / "b.parquet")
    with pytest.raises(TableError, match=r"the columns of its files do not fit together: .*x"):
        copy(folder, tmp_path / "out.csv")


def test_two_columns_of_one_name_stay_two_where_the_format_allows(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_text("text,,\na,b,c\nd,e,f\n")
    assert copy(path, tmp_path / "out.csv", window_rows=1).read_bytes() == path.read_bytes()
    for suffix in (".jsonl", ".parquet"):
        with pytest.raises(TableError, match=f"two columns '', which {suffix} cannot hold"):
            copy(path, tmp_path / f"out{suffix}")


def test_what_a_format_cannot_hold_is_refused_by_the_columns_name(tmp_path: Path) -> None:
    table = pa.table({"text": ["a"], "image": [b"\xff\xd8"]})
    for suffix in (".csv", ".jsonl"):
        with pytest.raises(TableError, match=r"column 'image' \(binary\) cannot be written as text .*\.parquet"):
            copy(table, tmp_path / f"out{suffix}")
    empty = pa.table({"text": ["a"], "nothing": pa.array([{}], pa.struct([]))})
    with pytest.raises(TableError, match=r"\.parquet cannot hold the table's columns"):
        copy(empty, tmp_path / "out.parquet")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OutputExistsError, match="must end in"):
        copy(table, tmp_path / "out.csv.gz")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"text,x\nfine,y\nfine,caf\xe9\n", r"row 2: the column 'x' is not UTF-8 \(byte 0xe9\)"),
        ("a.jsonl", b'{"text": "a", "x": 1}\n{"text": "b", "x": NaN}\n', "line 2: not JSON .NaN"),
        ("a.jsonl", b'{"text": "a", "x": 1e400}\n', "line 1: not JSON .1e400"),
        ("a.jsonl", b'{"text": "a", "x": ["\\ud800"]}\n', "line 1: 'x' holds half of a surrogate pair"),
        ("a.jsonl", b'{"text": "a", "\\udfff": 1}\n', "line 1: .* holds half of a surrogate pair"),
        ("a.jsonl", b'{"text": "a", "x": "\xff"}\n', "line 1: 'x' is not UTF-8"),
        ("a.jsonl", b'{"text": "a"}\n{"text": 5}\n', "line 2: 'text' holds a whole number, where text is expected"),
        ("a.jsonl", b'{"text": "a"}\n{"x": 5}\n', r"row 2: its text \('text'\) is blank"),
        ("a.jsonl", b'{"x": "a"}\n', "has no column 'text'"),
    ],
)
def test_bad_cells_of_other_columns_are_refused_with_their_place(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TableError, match=message):
        copy(tmp_path / name, tmp_path / "out.csv")


def test_an_error_leaves_no_file(tmp_path: Path) -> None:
    schema = pa.schema({"text": pa.string()})
    with pytest.raises(KeyboardInterrupt), open_writer(tmp_path / "out.csv", schema, {}) as write:
        write(pa.table({"text": ["a"]}))
        assert [path.name for path in tmp_path.iterdir()] == ["out.csv.headstart-work"]
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_numbers_are_written_to_the_last_bit(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=100) * 10.0 ** np.arange(-150, 150, 3)
    small = np.random.default_rng(1).normal(size=100).astype(np.float32)
    table = {"text": ["x"] * 100, "v": values, "w": small}
    _, *rows = cells(copy(table, tmp_path / "out.csv"))
    assert [float(row[1]) for row in rows] == values.tolist()
    assert [np.float32(row[2]) for row in rows] == small.tolist()
    assert [row["v"] for row in objects(copy(table, tmp_path / "out.jsonl"))] == values.tolist()
