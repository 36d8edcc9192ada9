"""Tables: every kind gives the same rows, and a bad one is refused with its file and row."""

from __future__ import annotations

import csv
import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
from headstart.cache.errors import SettingsError, StorageError, TableError
from headstart.stages.progress import silent
from headstart.stages.tables.columns import ColumnNames
from headstart.stages.tables.delimited import CSV, MAX_CELL, read_delimited
from headstart.stages.tables.scan import TableScan, read_windows, scan_table
from headstart.stages.tables.table import Table, open_table
from headstart.stages.tables.text_files import Reading
from hypothesis import given
from hypothesis import strategies as st

ROWS = [("Good, very good", "yes"), ('She said "no"', "no"), ("两\n行", "yes"), ("NA", "no"), ("é 🙂 שלום", "yes")]
DATA = {"text": [text for text, _ in ROWS], "label": [label for _, label in ROWS], "other": [1, 2, 3, 4, 5]}


def opened(table: Any, **options: Any) -> Table:
    defaults = {"text_column": "text", "label_column": "label", "skip_bad_rows": False, "label_optional": True}
    return open_table(table, **{**defaults, **options})


def read(table: Any, **options: Any) -> tuple[list[str], list[str]]:
    batches = list(opened(table, **options).batches())
    return [t for b in batches for t in b.texts], [label for b in batches for label in b.labels or []]


def write(path: Path) -> Path:
    """Write DATA as the kind of table that the name says."""
    if path.suffix == ".parquet":
        pa.parquet.write_table(pa.table(DATA), path)
    elif path.suffix in (".csv", ".tsv"):
        pd.DataFrame(DATA).to_csv(path, sep="\t" if path.suffix == ".tsv" else ",", index=False)
    else:
        rows = [dict(zip(DATA, row, strict=True)) for row in zip(*DATA.values(), strict=True)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.jsonl", "t.parquet"])
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    assert read(write(tmp_path / name)) == (DATA["text"], DATA["label"])


def test_a_compressed_file_and_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    content = write(tmp_path / "t.csv").read_bytes()
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(b"\xef\xbb\xbf" + content))
    assert read(tmp_path / "t.csv.gz") == (DATA["text"], DATA["label"])


def test_a_folder_is_read_in_the_order_of_its_names(tmp_path: Path) -> None:
    for name in ("b.parquet", "a.parquet"):
        write(tmp_path / name)
    (tmp_path / "_SUCCESS").touch()
    assert read(tmp_path) == (DATA["text"] * 2, DATA["label"] * 2)
    write(tmp_path / "c.csv")
    with pytest.raises(TableError, match="files of one kind"):
        opened(tmp_path)


@pytest.mark.parametrize(
    "table", [DATA, pa.table(DATA), pd.DataFrame(DATA), pd.DataFrame(DATA).astype({"label": "category"})]
)
def test_tables_in_memory_give_the_same_rows(table: Any) -> None:
    assert read(table) == (DATA["text"], DATA["label"])


def test_texts_and_labels_in_memory() -> None:
    assert read(DATA["text"], labels=[1, 0, 1, 0, 1]) == (DATA["text"], ["1", "0", "1", "0", "1"])
    assert read(DATA["text"]) == (DATA["text"], [])
    with pytest.raises(TableError, match="cannot be read as columns"):
        read(["one"], labels=["a", "b"])
    with pytest.raises(TableError, match="cannot be read as columns"):
        read(["\ud800"], labels=["a"])


BAD = {
    "missing column": ("body,label\na,b\n", "a.csv has no column 'text'; it has 'body', 'label'.*`text_column`"),
    "missing label": ("text,mark\na,b\n", "has no column 'label'.*`label_column=None`"),
    "two columns": ("text,label,text\na,b,c\n", "has two columns 'text'"),
    "wrong delimiter": ("text;label\na;b\n", "has no column 'text'; it has 'text;label'.*commas"),
    "empty": ("", "a.csv is empty"),
    "header only": ("text,label\n", "a.csv has no rows"),
    "blank text": ('text,label\na,b\n" ",b\n', r"a.csv, row 2: its text \('text'\) is blank"),
    "blank label": ("text,label\na,b\nc,\n", r"a.csv, row 2: its label \('label'\) is blank"),
    "ragged": ("text,label\na,b\nc,d,e\n", r"a.csv, row 2: it has 3 cells where the header has 2"),
    "numbers": ("text,label\na,0.5\nb,x\n", r"a.csv, row 2: the column 'label' holds 'x' among numbers"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_csv_is_refused_with_its_place(tmp_path: Path, case: str) -> None:
    content, message = BAD[case]
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(TableError, match=message):
        scan_table(opened(tmp_path / "a.csv"), silent)


def test_a_byte_that_is_not_utf8_is_refused_with_its_row(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"text,label\nfine,x\ncaf\xe9,x\n")
    with pytest.raises(TableError, match=r"a.csv, row 2: the column 'text' is not UTF-8 \(byte 0xe9\)"):
        read(tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['{"text": "a", "label": 1}', '{"text": "b", "label":'], "line 2: not JSON"),
        (['[{"text": "a", "label": 1}]'], "line 1: not a JSON object"),
        (['{"text": "a", "label": 1, "text": "b"}'], "line 1: it has 'text' twice"),
        (['{"body": "a", "label": 1}'], "has no column 'text'; it has 'body', 'label'"),
        (['{"text": "a", "label": 1}', '{"text": null, "label": 1}'], "row 2: its text"),
        (['{"text": "a", "label": 1}', '{"text": 5, "label": 1}'], "line 2: 'text' holds a whole number, where text"),
        (
            ['{"text": "a", "label": "x"}', "", '{"text": "b", "label": 1}'],
            "line 3: 'label' holds a number, where text is",
        ),
        (['{"text": "a", "label": 1}', '{"text": "\\ud800", "label": 1}'], "line 2: 'text' holds half of a surrogate"),
        (["[" * 100_000], "line 1: it is nested too deep"),
    ],
)
def test_bad_json_lines_are_refused_with_their_place(tmp_path: Path, lines: list[str], message: str) -> None:
    (tmp_path / "a.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(TableError, match=message):
        read(tmp_path / "a.jsonl")


def test_other_columns_may_hold_anything(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a", "label": 1, "x": 1}\n{"text": "b", "label": 2, "x": "two"}\n')
    assert read(tmp_path / "a.jsonl") == (["a", "b"], ["1", "2"])
    (tmp_path / "a.csv").write_text("x,text,label\n" + "1,a,b\n" * 5 + "one,c,d\n")
    assert read(tmp_path / "a.csv")[0] == ["a"] * 5 + ["c"]


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ([{"a": 1}, {"a": 2}], "struct"),
        (pd.to_datetime(["2020-01-01", "2020-01-02"]), "not labels"),
    ],
)
def test_columns_that_hold_no_labels_are_refused(column: Any, message: str) -> None:
    with pytest.raises(TableError, match=message):
        read(pd.DataFrame({"text": ["a", "b"], "label": column}))


def test_a_file_that_is_no_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="does not exist"):
        opened(tmp_path / "a.csv")
    (tmp_path / "a.ods").touch()
    with pytest.raises(TableError, match="must end in one of"):
        opened(tmp_path / "a.ods")
    (tmp_path / "a.parquet").write_text("not parquet")
    with pytest.raises(TableError, match=r"a.parquet"):
        read(tmp_path / "a.parquet")


def test_bad_rows_are_skipped_and_counted_where_told(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\na,x\n,x\nb,y,z\nc,\nd,y\n")
    table = opened(tmp_path / "a.csv", skip_bad_rows=True)
    scan = scan_table(table, silent)
    assert (scan.rows, scan.skipped) == (2, 3)
    assert [t for b in table.batches() for t in b.texts] == ["a", "d"]


def scanned(rows: list[tuple[str, Any]]) -> TableScan:
    return scan_table(opened({"text": [t for t, _ in rows], "label": [label for _, label in rows]}), silent)


def test_whole_numbers_are_classes_in_the_order_of_their_value() -> None:
    scan = scanned([("a", "10"), ("b", "9"), ("c", "-1"), ("d", "10")])
    assert scan.label_names == ("-1", "9", "10")
    assert scan.labels is not None
    assert scan.labels.tolist() == [2, 1, 0, 2]
    assert scanned([("a", "b"), ("b", "10"), ("c", "9")]).label_names == ("10", "9", "b")


def test_texts_are_counted_distinct_and_conflicting() -> None:
    scan = scanned([("a", "x"), ("a", "y"), ("b", "x"), ("b", "x"), ("c", "y")])
    assert (scan.distinct_texts, scan.conflicting_texts) == (3, 1)


@pytest.mark.parametrize("keep_rows", [0, 29, 30])
def test_windows_hold_the_rows_in_order_with_their_places(
    keep_rows: int, tmp_path: Path, write_csv: Callable[..., Path]
) -> None:
    """Whether the table is read again or was small enough to be kept."""
    (tmp_path / "parts").mkdir()
    for part in range(3):
        write_csv([(f"text {part} {i}", "x") for i in range(10)], name=f"parts/{part}.csv")
    table = opened(tmp_path / "parts")
    windows = list(read_windows(table, scan_table(table, silent, keep_rows=keep_rows), 7))
    assert [(place.start, place.stop) for place, _ in windows] == [(0, 7), (7, 14), (14, 21), (21, 28), (28, 30)]
    assert windows[1][1].texts[3:] == [f"text 1 {i}" for i in range(4)]
    assert windows[1][1].place(5).endswith("1.csv, row 3")


@pytest.mark.parametrize("keep_rows", [0, 10])
def test_windows_of_pairs_stay_pairs_where_a_bad_row_comes_last(keep_rows: int, tmp_path: Path) -> None:
    """The bad row is counted in a batch that has no rows."""
    (tmp_path / "t.csv").write_text("text,second\na,b\nc,d\ne,f,one too many\n")
    table = open_table(
        tmp_path / "t.csv", text_column="text", pair_column="second", label_column=None, skip_bad_rows=True
    )
    scan = scan_table(table, silent, keep_rows=keep_rows)
    assert scan.skipped == 1
    assert [(rows.texts, rows.pairs) for _, rows in read_windows(table, scan, 10)] == [(["a", "c"], ["b", "d"])]


@pytest.mark.parametrize("limit", ["keep_rows", "keep_characters"])
def test_a_small_table_is_read_once_and_of_a_large_one_little_is_kept(
    limit: str, write_csv: Callable[..., Path]
) -> None:
    path = write_csv([(f"text {number:05}", "x") for number in range(20_000)])
    table = opened(path)
    small = scan_table(table, silent)
    large = scan_table(table, silent, **{limit: 10})
    assert len(small.top) == 20_000
    assert len(large.top) <= (10 if limit == "keep_rows" else 19_999)
    path.unlink()
    assert [text for _, rows in read_windows(table, small, 4096) for text in rows.texts][::5000] == small.top.texts[
        ::5000
    ]
    with pytest.raises((StorageError, TableError)):
        list(read_windows(table, large, 4096))


def test_a_table_that_changes_while_it_is_read_is_refused(write_csv: Callable[..., Path]) -> None:
    path = write_csv([("aaa", "x"), ("bbb", "y")])
    table = opened(path)
    scan = scan_table(table, silent, keep_rows=0)
    write_csv([("aaa", "x"), ("bbc", "y")])
    with pytest.raises(TableError, match="changed while it was read"):
        list(read_windows(table, scan, 10))


def test_a_change_that_the_file_system_does_not_show_is_found_by_the_texts(write_csv: Callable[..., Path]) -> None:
    path = write_csv([("aaa", "x"), ("bbb", "y")])
    table, stat = opened(path), path.stat()
    scan = scan_table(table, silent, keep_rows=0)
    write_csv([("aaa", "x"), ("bbc", "y")])
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert table.state() == scan.state
    with pytest.raises(TableError, match="changed while it was read"):
        list(read_windows(table, scan, 10))


def test_arrays_and_series_are_sequences_of_texts() -> None:
    for texts in (np.array(DATA["text"], object), pd.Series(DATA["text"])):
        assert read(texts, labels=pd.Series(DATA["label"])) == (DATA["text"], DATA["label"])


def test_columns_and_labels_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="is named for two things"):
        opened(DATA, text_column="label")
    for table in (DATA, pd.DataFrame(DATA), write(tmp_path / "t.csv")):
        with pytest.raises(SettingsError, match="labels go with a sequence of texts"):
            opened(table, labels=["a"] * 5)


def test_a_table_that_changes_in_its_first_reading_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv")

    def meddle(_: Any) -> None:
        path.write_text("text,label\nanother,one\n")

    with pytest.raises(TableError, match="changed while it was read"):
        scan_table(opened(path), meddle)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "text,l\xe9bel\na,b\n".encode("latin-1"), "is not UTF-8"),
        ("a.csv", "text,label\na,b\n".encode("utf-16"), "a.csv is not UTF-8; .* valid UTF-16"),
        ("a.csv", b"\n\n", "a.csv has no header"),
        ("a.csv.gz", b"text,label\na,b\n", "a.csv.gz is damaged, or not what its name says"),
        ("a.jsonl", b'{"text": "a", "label": 1180591620717411303424}\n', "more than 64 bits"),
    ],
)
def test_odd_encodings_and_numbers_are_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TableError, match=message):
        scan_table(opened(tmp_path / name), silent)


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl"])
def test_a_row_may_be_long(tmp_path: Path, name: str) -> None:
    """The rows around one that is longer than a batch are there once each."""
    texts = [f"text {number}" for number in range(200)]
    texts[100] = "long " * 1_000_000
    table = pd.DataFrame({"text": texts, "label": "x"})
    if name == "a.jsonl":
        table.to_json(tmp_path / name, orient="records", lines=True)
    else:
        table.to_csv(tmp_path / name, index=False, sep="," if name == "a.csv" else "\t")
    assert read(tmp_path / name)[0] == texts


def test_a_cell_that_is_too_long_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\na,x\n" + "long" * 100 + ",y\n")
    batches = read_delimited(Reading(file=tmp_path / "a.csv"), CSV, ColumnNames("text", None, "label"), max_cell=99)
    with pytest.raises(
        TableError, match=r"a.csv, line 3: field larger than field limit \(99\); is a quotation mark left"
    ):
        list(batches)
    csv.field_size_limit(MAX_CELL)


@given(st.lists(st.text(st.characters(blacklist_categories=("Cs",)), min_size=1), min_size=1, max_size=20))
def test_any_texts_come_back_from_any_kind_of_file(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    """Or the first that is blank is named."""
    folder = tmp_path_factory.mktemp("any")
    table = {"text": texts, "label": ["x"] * len(texts)}
    pa.parquet.write_table(pa.table(table), folder / "t.parquet")
    (folder / "t.jsonl").write_text("".join(json.dumps({"text": t, "label": "x"}) + "\n" for t in texts))
    with (folder / "t.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows([table, *zip(*table.values(), strict=True)])
    blank = next((number for number, text in enumerate(texts, 1) if not text.strip()), None)
    for name in ("t.parquet", "t.jsonl", "t.csv"):
        if blank is None:
            assert read(folder / name)[0] == texts
        else:
            with pytest.raises(TableError, match=rf"{name}, row {blank}: its text"):
                read(folder / name)


def test_a_blank_line_of_a_single_column_is_a_row(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text\ngood\n\nbad\n")
    with pytest.raises(TableError, match="row 2: its text"):
        read(tmp_path / "a.csv", label_column=None)
    (tmp_path / "b.csv").write_text("text,label\ngood,x\n\nbad,y\n")
    assert read(tmp_path / "b.csv") == (["good", "bad"], ["x", "y"])


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.csv")
    with pytest.raises(TableError, match="is not a file"):
        opened(tmp_path / "a.csv")


def test_bytes_that_are_not_utf8_in_memory_are_refused() -> None:
    texts = pa.Array.from_buffers(pa.string(), 1, pa.array([b"caf\xe9"]).buffers())
    with pytest.raises(TableError, match="not UTF-8"):
        read(pa.table({"text": texts, "label": ["x"]}))


def test_signed_and_padded_whole_numbers_are_classes() -> None:
    assert scanned([("a", "+1"), ("b", "-1")]).label_names == ("+1", "-1")
    assert scanned([("a", "02"), ("b", "01"), ("c", "9" * 5000)]).label_names == ("01", "02", "9" * 5000)


def test_ragged_rows_do_not_shift_the_numbers_of_others(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\na,1,extra\nb,2\nc\nd,4\ne,f,g\n")
    table = opened(tmp_path / "a.csv", skip_bad_rows=True)
    assert [(t, n) for b in table.batches() for t, n in zip(b.texts, b.numbers, strict=True)] == [("b", 2), ("d", 4)]
    assert scan_table(table, silent).skipped == 3
    (tmp_path / "b.csv").write_text("text,label\na,1,extra\n")
    with pytest.raises(TableError, match=r"has no rows \(all 1 are bad\)"):
        scan_table(opened(tmp_path / "b.csv", skip_bad_rows=True), silent)
