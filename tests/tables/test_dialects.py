"""CSV, TSV and text files in every dialect: no row is lost, and each text is the one that Python's reading gives."""

from __future__ import annotations

import codecs
import contextlib
import csv
import gzip
import io
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.feather
import pytest
from headstart.cache.errors import SettingsError, TableError
from headstart.cache.hashing import hash_texts
from headstart.stages.progress import Event, Note
from headstart.stages.settings import TableSettings
from headstart.stages.tables.formats import table_name
from headstart.stages.tables.scan import TableScan, scan_table
from headstart.stages.tables.table import open_table
from hypothesis import given, settings
from hypothesis import strategies as st

LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


def scanned(path: Path, **options: Any) -> tuple[TableScan, list[str]]:
    """Scan a table; return what was found, and the notes. Options are settings, or arguments of `open_table`."""
    notes: list[str] = []

    def report(event: Event) -> None:
        if isinstance(event, Note) and "bad rows left out" not in event.text:  # which `TableScan.skipped` counts
            notes.append(event.text)

    chosen: dict[str, Any] = {"text_column": "text", "label_column": None, "skip_bad_rows": False}
    chosen |= {name: options.pop(name) for name in (*chosen, "pair_column") if name in options}
    return scan_table(open_table(path, settings=TableSettings(**options), **chosen), report), notes


def texts(path: Path, **options: Any) -> list[str]:
    return scanned(path, **options)[0].top.texts


ENCODINGS = ("utf-8", "utf-8-sig", "gb18030", "gbk", "cp1252", "utf-16", "utf-16-le", "utf-32", "shift_jis")
LINE_ENDS = ("\n", "\r\n", "\r")
PIECES = st.sampled_from(
    ['"', '""', "\n", "\r\n", "\r", ",", "\t", ";", "a", "b c", "é", "中文", "\ufeff", " ", "'", "\\"]
)
CELLS = st.lists(PIECES, max_size=6).map("".join)


@st.composite
def files(draw: st.DrawFn, cells: st.SearchStrategy[str] = CELLS) -> tuple[bytes, str, dict[str, Any]]:
    """A file of any content that a table may have or be damaged to, its suffix, and the settings to read it with."""
    suffix = draw(st.sampled_from([".csv", ".tsv"]))
    encoding, line_end = draw(st.sampled_from(ENCODINGS)), draw(st.sampled_from(LINE_ENDS))
    delimiter, quotes = draw(st.sampled_from(",\t;")), draw(st.sampled_from([True, False]))
    header, width = draw(st.booleans()), draw(st.integers(1, 3))
    rows = draw(st.lists(st.lists(cells, min_size=width, max_size=width), min_size=1, max_size=8))
    written = io.StringIO()
    names = ["text", "x", "y"][:width]
    if draw(st.booleans()):
        how = draw(st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]))
        csv.writer(written, delimiter=delimiter, lineterminator=line_end, quoting=how).writerows(
            [names, *rows] if header else rows
        )
    else:  # as who knows no quotation marks writes it
        written.write("".join(delimiter.join(row) + line_end for row in ([names, *rows] if header else rows)))
    content = written.getvalue().encode(encoding, "replace")
    chosen = {"delimiter": delimiter, "quotes": quotes, "header": header, "encoding": encoding}
    return content, suffix, chosen


def read_by_python(content: bytes, chosen: dict[str, Any], *, strict: bool = False) -> list[list[str]]:
    """The rows by Python's csv, or line by line where quotation marks mean nothing."""
    text = io.StringIO(content.decode(chosen["encoding"]).removeprefix("\ufeff"), newline="")
    if chosen["quotes"]:
        return list(csv.reader(text, delimiter=chosen["delimiter"], strict=strict))
    lines = (line.rstrip("\r\n") for line in text)
    return [line.split(chosen["delimiter"]) if line else [] for line in lines]


@given(files())
@settings(max_examples=150)
def test_every_row_is_encoded_or_reported_in_every_dialect(
    tmp_path_factory: pytest.TempPathFactory, made: tuple[bytes, str, dict[str, Any]]
) -> None:
    content, suffix, chosen = made
    path = tmp_path_factory.getbasetemp() / f"dialects{suffix}"
    path.write_bytes(content)
    try:
        scan, notes = scanned(path, **chosen, text_column="text" if chosen["header"] else "1", skip_bad_rows=True)
    except TableError as error:
        said = str(error)
        assert any(words in said for words in ("is never closed", "no rows", "no header", "has no column", "is empty"))
        if "is never closed" not in said:
            return
        with pytest.raises(csv.Error, match=r"unexpected end of data|expected after"):
            read_by_python(content, chosen, strict=True)
        return
    rows, marks_are_dropped = read_by_python(content, chosen), True
    width = len(next(filter(None, rows)))
    while chosen["header"] and not rows[0]:
        rows = rows[1:]
    rows = [row or [""] for row in rows if row or width == 1][chosen["header"] :]
    good = [row[0] for row in rows if len(row) == width and row[0].strip()]
    assert np.array_equal(scan.text_hashes, hash_texts(good))
    assert scan.rows + scan.skipped == len(rows)
    with contextlib.suppress(csv.Error):
        read_by_python(content, chosen, strict=True)
        marks_are_dropped = False
    assert not marks_are_dropped or notes
    lines = read_by_python(content, {**chosen, "quotes": False})
    found = [line for line in lines if len(line) == width][chosen["header"] :]
    assert len(found) <= len(rows) or notes, "lines that look like rows are in the cells, and no note says so"


@given(st.lists(st.tuples(CELLS, st.sampled_from(["pos", 'the "neg"'])), min_size=1, max_size=8), st.booleans())
@settings(max_examples=100)
def test_a_tsv_is_read_as_it_was_written_or_refused_or_noted(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]], quoted: bool
) -> None:
    """Whether its writer knew of quotation marks or not."""
    path = tmp_path_factory.getbasetemp() / "either.tsv"
    table = [("text", "label"), *((text, label) for text, label in rows if text.strip())]
    if quoted:
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, delimiter="\t").writerows(table)
    else:
        table = [(" ".join(text.split()), label) for text, label in table]
        path.write_text("".join("\t".join(row) + "\n" for row in table), encoding="utf-8", newline="")
    try:
        scan, notes = scanned(path)
    except TableError as error:
        assert any(words in str(error) for words in ("`quotes=", "no rows", "is blank"))
    else:
        expected = [text for text, _ in table[1:]]
        assert scan.top.texts == expected or (notes and not quoted)
        assert scan.rows == len(expected) or quoted
    chosen, _ = scanned(path, quotes=quoted) if len(table) > 1 else (None, None)
    assert chosen is None or chosen.top.texts == [text for text, _ in table[1:]]


def write_tsv(path: Path, rows: list[str]) -> Path:
    path.write_text("".join(row + "\n" for row in ("text\tlabel", *rows)), encoding="utf-8")
    return path


def test_a_plain_tsv_loses_no_row_to_its_quotation_marks(tmp_path: Path, vader: list[dict[str, str]]) -> None:
    path = write_tsv(tmp_path / "vader.tsv", [f"{row['text']}\t{row['label']}" for row in vader])
    scan, notes = scanned(path, label_column="label")
    assert np.array_equal(scan.text_hashes, hash_texts(row["text"] for row in vader))
    assert len(notes) == 1 and "cells begin with a quotation mark; the marks are text" in notes[0]


def test_a_tsv_that_can_be_read_in_two_ways_is_refused(tmp_path: Path) -> None:
    path = write_tsv(
        tmp_path / "t.tsv", ['"Good movie\tpos', "Dull\tneg", "So so\tneg", 'A fine film"\tpos', "ok\tneg"]
    )
    with pytest.raises(TableError, match=r"t.tsv, line 2: .* pass `quotes=False` if they are rows, `quotes=True`"):
        scanned(path)
    assert texts(path, quotes=False) == ['"Good movie', "Dull", "So so", 'A fine film"', "ok"]
    scan, notes = scanned(path, quotes=True)
    assert scan.top.texts == ["Good movie\tpos\nDull\tneg\nSo so\tneg\nA fine film", "ok"]
    assert (
        "row 1: a quoted cell holds lines that look like whole rows (such rows: 1; such lines in them: 4)" in notes[0]
    )


def test_a_tsv_in_quotation_marks_is_read_as_csv_and_a_note_says_so(tmp_path: Path) -> None:
    frame = pd.DataFrame({"text": ['say "no"', "two\nlines", "a\ttab", "plain"], "label": list("abab")})
    for quoting in (csv.QUOTE_ALL, csv.QUOTE_MINIMAL):
        frame.to_csv(tmp_path / "t.tsv", sep="\t", index=False, quoting=quoting)
        scan, notes = scanned(tmp_path / "t.tsv")
        assert scan.top.texts == frame["text"].tolist()
        assert "the marks enclose cells, as in CSV" in notes[0]


def test_the_end_of_the_file_within_a_quoted_cell_is_refused(tmp_path: Path) -> None:
    rows = [f"{i % 2},{chr(34) * (i == 4)}text number {i}\n" for i in range(200)]
    (tmp_path / "t.csv").write_text("label,text\n" + "".join(rows))
    for skip in (False, True):
        with pytest.raises(TableError, match=r"t.csv, row 5: a quotation mark opens a cell and is never closed"):
            scanned(tmp_path / "t.csv", skip_bad_rows=skip)
    assert len(texts(tmp_path / "t.csv", quotes=False)) == 200


def test_rows_that_a_csv_cell_holds_are_noted(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('label,text\n0,a\n1,"open\n0,b\n1,c\n0,"closed\n1,d\n')
    scan, notes = scanned(tmp_path / "t.csv")
    assert scan.rows == 3
    assert "t.csv, line 6: text follows the quotation mark that ends a cell" in notes[0]
    assert "t.csv, row 2: a quoted cell holds lines that look like whole rows (such rows: 1;" in notes[1]


@pytest.mark.parametrize("text", ['"Good" movie', '"He said \\"no\\""', '"" x'])
@pytest.mark.parametrize("before", [3, 9000])
def test_quotation_marks_that_are_dropped_are_noted(tmp_path: Path, text: str, before: int) -> None:
    rows = [*(f"{i}, a\n" for i in range(before)), f"x,{text}\n", "y,b\n"]
    (tmp_path / "t.csv").write_text("id,text\n" + "".join(rows))
    scan, notes = scanned(tmp_path / "t.csv")
    expected = [row[1] for row in csv.reader(rows)]
    assert np.array_equal(scan.text_hashes, hash_texts(expected))
    assert len(notes) == 1 and f"line {before + 2:,}: text follows the quotation mark that ends a cell" in notes[0]


@pytest.mark.parametrize(
    ("line_end", "lengths", "count"),
    [*((line_end, [7], 20_000) for line_end in LINE_ENDS), ("\r\n", range((1 << 18) - 60, (1 << 18) - 20), 3)],
)
def test_a_text_does_not_depend_on_its_place_in_the_file(
    tmp_path: Path, line_end: str, lengths: Iterable[int], count: int
) -> None:
    """Line ends, doubled marks and characters of several bytes lie on the edges of blocks of 8, 64 and 256 KiB."""
    text = f'é中🙂 "{line_end}{line_end}" ""中'
    for length in lengths:
        written = io.StringIO()
        csv.writer(written, lineterminator=line_end).writerows([("text",), ("x" * length,), *[(text,)] * count])
        (tmp_path / "t.csv").write_bytes(codecs.BOM_UTF8 + written.getvalue().encode())
        assert set(texts(tmp_path / "t.csv")[1:]) == {text}
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress((tmp_path / "t.csv").read_bytes()))
    assert set(texts(tmp_path / "t.csv.gz")[1:]) == {text}


@pytest.mark.parametrize(
    ("text", "encoding", "guess"),
    [
        ("review,label\n这个酒店很好,1\n房间太吵了,0\n", "gbk", "gb18030"),
        ("评论,标签\n这个酒店很好,1\n房间太吵了,0\n", "gb18030", "gb18030"),
        ("text,label\na b,pos\nc,neg\n", "utf-16-le", "utf-16-le"),
        ("text,label\na b,pos\nc,neg\n", "utf-16-be", "utf-16-be"),
        ("text,label\na b,pos\nc,neg\n", "utf-16", "utf-16"),
        ("评论,标签\n这个酒店很好,1\n房间太吵了,0\n", "utf-16-le", "utf-16-le"),
        ("text,label\na b,pos\nc,neg\n", "utf-32", "utf-32"),
        ("text,label\na b,pos\nc,neg\n", "utf-32-be", "utf-32-be"),
        ("text,label\ncafé,pos\nnaïve,neg\n", "cp1252", "cp1252"),
    ],
)
def test_a_file_that_is_not_utf8_is_refused_with_its_encoding(
    tmp_path: Path, text: str, encoding: str, guess: str
) -> None:
    (tmp_path / "t.csv").write_bytes(text.encode(encoding))
    column = text.split(",", maxsplit=1)[0]
    with pytest.raises(TableError, match=rf"pass `encoding='{guess}'`"):
        scanned(tmp_path / "t.csv", text_column=column)
    expected = [line.split(",")[0] for line in text.splitlines()[1:]]
    assert texts(tmp_path / "t.csv", text_column=column, encoding=guess) == expected


@pytest.mark.parametrize(
    ("text", "encoding"),
    [("この映画は良い", "cp932"), ("この映画", "euc_jp"), ("좋은 영화", "euc_kr"), ("這個酒店很好", "big5")],
)
def test_all_encodings_are_named_that_look_like_the_first(tmp_path: Path, text: str, encoding: str) -> None:
    (tmp_path / "t.csv").write_bytes(f"text\n{text}\n".encode(encoding))
    with pytest.raises(TableError, match=rf"valid GB18030 \(and .*{encoding.upper()}.*\): if that is its encoding"):
        scanned(tmp_path / "t.csv")
    assert texts(tmp_path / "t.csv", encoding=encoding) == [text]


def test_a_wrong_byte_in_utf8_gives_no_advice_to_read_all_of_it_in_another_encoding(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes("text\ncafé, 中文 ☕\nnaïve\n".encode().replace(b", ", b" ") + b"caf\xe9 \n")
    with pytest.raises(
        TableError, match=r"row 3: .* is not UTF-8 \(byte 0xe9\); correct it, or pass the file's `encoding`"
    ):
        scanned(tmp_path / "t.csv")


def test_an_encoding_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("text\ncafé\n", encoding="utf-8")
    with pytest.raises(TableError, match=r"is not ASCII \(byte 0xc3\)"):
        scanned(tmp_path / "t.csv", encoding="ascii")
    with pytest.raises(TableError, match="is not UTF-16"):
        scanned(tmp_path / "t.csv", encoding="utf-16")
    for name in ("rot13", "klingon", "x\0y"):
        with pytest.raises(SettingsError, match="an encoding that Python knows"):
            TableSettings(encoding=name)


def test_rows_that_are_not_text_can_be_skipped(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_bytes(
        b'{"text":"a \\ud83d"}\n{"text":"b","x":"\\ud83d"}\n{"text":"c\xa3"}\n{"text":"d"}'
    )
    (tmp_path / "t.csv").write_bytes(b"text,x\nb,\xa3\nwin \xa3100,\nd,\n")
    for name, skipped in (("t.jsonl", 2), ("t.csv", 1)):
        scan, notes = scanned(tmp_path / name, skip_bad_rows=True)
        assert (scan.top.texts, scan.skipped) == (["b", "d"], skipped)
        assert "rows like this one are skipped" in notes[0]
    assert scan.top.numbers == [1, 3]
    with pytest.raises(TableError, match=r"line 1: 'text' holds half of a surrogate pair.*`skip_bad_rows=True`"):
        scanned(tmp_path / "t.jsonl")


def test_a_name_may_stand_twice_in_a_line_if_not_in_the_object_itself(tmp_path: Path) -> None:
    rows = [{"text": "a", "inner": {"text": "b"}}, {"text": 'say "text', "x": "text"}, {"text": "text", "x": '"text"'}]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert texts(tmp_path / "t.jsonl") == ["a", 'say "text', "text"]


def test_a_table_without_a_header_has_numbers_for_columns(tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_text("1\tgood film\tpos\n2\tbad film\tneg\n")
    with pytest.raises(TableError, match=r"has no column 'text'.*if the first row is no header, pass `header=False`"):
        scanned(tmp_path / "t.tsv", label_column="label")
    scan, _ = scanned(tmp_path / "t.tsv", header=False, text_column="2", label_column="3")
    assert (scan.top.texts, scan.label_names) == (["good film", "bad film"], ("neg", "pos"))
    (tmp_path / "t.csv").write_bytes(b"caf\xe9\ngood film\n")
    scan, _ = scanned(tmp_path / "t.csv", header=False, text_column="1", skip_bad_rows=True)
    assert (scan.top.texts, scan.skipped) == (["good film"], 1)
    (tmp_path / "t.csv").write_text("good film\nbad, film\n")
    with pytest.raises(TableError, match="row 2: it has 2 cells where the first row has 1"):
        scanned(tmp_path / "t.csv", header=False, text_column="1")


@pytest.mark.parametrize(("name", "options"), [("t.txt", {}), ("t.csv", {"header": False, "text_column": "1"})])
def test_a_blank_line_above_the_first_text_is_a_row(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    (tmp_path / name).write_text("\n\na\nb\n")
    with pytest.raises(TableError, match=r"row 1: its text .* is blank"):
        scanned(tmp_path / name, **options)
    scan, _ = scanned(tmp_path / name, **options, skip_bad_rows=True)
    assert (scan.top.texts, scan.top.numbers, scan.skipped) == (["a", "b"], [3, 4], 2)
    (tmp_path / "t.csv").write_text("\n\na,1\nb,2\n")
    assert texts(tmp_path / "t.csv", header=False, text_column="1") == ["a", "b"]


def test_a_text_file_holds_one_text_a_line(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text('a "b, c\nd\te\n\n"f"\n')
    scan, _ = scanned(path, skip_bad_rows=True)
    assert (scan.top.texts, scan.skipped) == (['a "b, c', "d\te", '"f"'], 1)
    with pytest.raises(TableError, match="has no column 'label'"):
        scanned(path, label_column="label")
    path.write_text("text\tlabel\na\tb\n")
    with pytest.raises(TableError, match=r"its first line holds a tab.*pass `delimiter`"):
        scanned(path)
    assert texts(path, delimiter="\t", label_column="label") == ["a"]
    assert texts(path, header=False) == ["text\tlabel", "a\tb"]
    path.write_text("text\na\n")
    with pytest.raises(TableError, match="its first line is 'text', as a header"):
        scanned(path)
    assert (texts(path, header=True), texts(path, header=False)) == (["a"], ["text", "a"])


def test_settings_that_have_no_effect_are_refused(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"text": "a"}\n', encoding="utf-16")
    assert texts(tmp_path / "t.jsonl", encoding="utf-16") == ["a"]
    for name, value in (("delimiter", ";"), ("quotes", False), ("header", False)):
        with pytest.raises(SettingsError, match=f"`{name}` has no effect on .*t.jsonl"):
            scanned(tmp_path / "t.jsonl", **{name: value})
    with pytest.raises(SettingsError, match="`encoding` has no effect on the table in memory"):
        open_table(["a"], text_column="text", label_column=None, settings=TableSettings(encoding="gbk"))
    for delimiter in ("", "||", '"', "\n"):
        with pytest.raises(SettingsError, match=r"`delimiter` is .* one character"):
            TableSettings(delimiter=delimiter)


@pytest.mark.parametrize("name", ["t.arrow", "t.feather", "stream.arrow", "t.parquet.gzip", "t.parquet.gz"])
def test_arrow_files_and_odd_names_of_parquet_are_read(tmp_path: Path, name: str) -> None:
    table, path = pa.table({"x": [1, 2, 3], "text": ["a", "b", "c"]}), tmp_path / name
    if name == "t.feather":
        pyarrow.feather.write_feather(table, path)
    elif name.startswith("t.parquet"):
        table.to_pandas().to_parquet(path, compression="gzip")
    else:
        with (pa.ipc.new_stream if name == "stream.arrow" else pa.ipc.new_file)(path, table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
    assert texts(path) == ["a", "b", "c"]
    with pytest.raises(TableError, match="has no column 'body'"):
        scanned(path, text_column="body")
    path.write_bytes(gzip.compress(path.read_bytes())[:-1])
    with pytest.raises(TableError, match=name):
        scanned(path)


def write_arrow(path: Path, text: pa.Array) -> Path:
    table = pa.table({"text": text})
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table)
    return path


def test_runs_of_equal_values_are_read(tmp_path: Path) -> None:
    runs = pa.RunEndEncodedArray.from_arrays(pa.array([2, 3], pa.int32()), pa.array(["a", "b"]))
    assert texts(write_arrow(tmp_path / "t.arrow", runs)) == ["a", "a", "b"]


def test_strings_of_arrow_that_are_not_utf8_are_refused_without_advice_of_an_encoding(tmp_path: Path) -> None:
    broken = pa.Array.from_buffers(pa.string(), 1, pa.array([b"caf\xe9"]).buffers())
    with pytest.raises(TableError, match=r"t.arrow is not UTF-8: .*; write it anew$"):
        scanned(write_arrow(tmp_path / "t.arrow", broken))


@pytest.mark.parametrize("cell", ['{"x": 1}', "1", '"\\ud83d"', "no JSON"])
def test_json_of_arrow_must_be_text(tmp_path: Path, cell: str) -> None:
    for cells, good in ((['"a"', None], True), (['"a"', cell], False)):
        column = pa.ExtensionArray.from_storage(pa.json_(), pa.array(cells, pa.string()))
        write_arrow(tmp_path / "t.arrow", column)
        with contextlib.nullcontext() if good else pytest.raises(TableError, match="holds JSON that is not text"):
            assert texts(tmp_path / "t.arrow", skip_bad_rows=True) == ["a"]


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.parquet", "t.jsonl", "t.csv.gz", "t.arrow"])
def test_a_git_lfs_pointer_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(LFS_POINTER)
    with pytest.raises(TableError, match=f"{name} is a Git LFS pointer.*run git lfs pull"):
        scanned(tmp_path / name)


def test_excels_note_of_the_delimiter_is_named(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("sep=;\ntext;label\na;1\n")
    for delimiter in (None, ";"):
        with pytest.raises(TableError, match="its first line is a note for Excel: remove it, and pass the `delimiter`"):
            scanned(tmp_path / "t.csv", delimiter=delimiter)


def test_a_header_may_be_wide(tmp_path: Path) -> None:
    names = [f"column {i:09}" for i in range(20_000)]
    (tmp_path / "t.csv").write_text(",".join([*names, "text"]) + "\n" + "," * 20_000 + "good\n")
    assert texts(tmp_path / "t.csv") == ["good"]
    with pytest.raises(TableError, match="and 19,971 more: choose with `text_column`") as error:
        scanned(tmp_path / "t.csv", text_column="body")
    assert len(str(error.value)) < 1500


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.symlink_to(path.name), "is a link to nothing, or to itself"),
        (lambda path: path.symlink_to("nowhere"), "is a link to nothing, or to itself"),
    ],
)
def test_a_link_that_leads_nowhere_is_refused(tmp_path: Path, make: Callable[[Path], Any], message: str) -> None:
    make(tmp_path / "t.csv")
    with pytest.raises(TableError, match=message):
        scanned(tmp_path / "t.csv")
    assert table_name(tmp_path / "t.csv") == "t"


def test_a_path_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path / "t") + b"\xe9.csv"))
    path.write_text("text\na\n")
    for table in (path, tmp_path):
        with pytest.raises(TableError, match=r"t\\udce9.csv' is a name that is not UTF-8; rename it"):
            scanned(table)


def test_a_linked_table_has_its_own_name(tmp_path: Path) -> None:
    (tmp_path / "target.csv").write_text("text\na\n")
    (tmp_path / "train.csv").symlink_to("target.csv")
    assert table_name(tmp_path / "train.csv") == "train"
    assert texts(tmp_path / "train.csv") == ["a"]
