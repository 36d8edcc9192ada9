"""Excel's workbooks are read as the CSV files of their sheets are."""

from __future__ import annotations

import datetime
import sys
import zipfile
from pathlib import Path
from typing import Any

import openpyxl
import pytest
from headstart.cache.errors import SettingsError, TableError
from headstart.stages.settings import TableSettings
from headstart.stages.tables.table import open_table

ROWS = [("text", "label", "when"), ("a b", 1, datetime.datetime(2024, 1, 31)), ("c d", 2.0, None), ("e f", 2.5, True)]


def save(path: Path, *sheets: Any) -> Path:
    book = openpyxl.Workbook()
    book.remove(book.active)
    for number, rows in enumerate(sheets, 1):
        sheet = book.create_sheet(f"sheet {number}")
        for row in rows:
            sheet.append(row)
    book.save(path)
    return path


def read(path: Path, skip: bool = False, **options: Any) -> list[tuple[list[str], Any, list[int]]]:
    table = open_table(path, text_column="text", label_column="label", skip_bad_rows=skip, **options)
    return [(batch.texts, batch.labels, batch.numbers) for batch in table.batches() if len(batch)]


def test_cells_are_those_of_csv(tmp_path: Path) -> None:
    path = save(tmp_path / "t.xlsx", [*ROWS, (None, None), (None,)])
    assert read(path) == [(["a b", "c d", "e f"], ["1", "2", "2.5"], [1, 2, 3])]
    (batch,) = open_table(path, text_column="text", label_column=None, keep_others=True).batches()
    assert batch.cells is not None
    assert batch.cells["when"].to_pylist() == ["2024-01-31", "", "True"]


def test_a_sheet_is_chosen_by_name(tmp_path: Path) -> None:
    path = save(tmp_path / "t.xlsx", [("other",)], ROWS)
    assert read(path, settings=TableSettings(sheet="sheet 2"))[0][0] == ["a b", "c d", "e f"]
    with pytest.raises(SettingsError, match="no sheet 'x'; it has sheet 1, sheet 2"):
        read(path, settings=TableSettings(sheet="x"))
    with pytest.raises(TableError, match="has no column 'text'; it has 'other'"):
        read(path)
    (tmp_path / "t.csv").write_text("text,label\na,b\n")
    with pytest.raises(SettingsError, match="`sheet` has no effect on"):
        read(tmp_path / "t.csv", settings=TableSettings(sheet="x"))


def test_rows_beyond_the_size_that_the_file_states_are_read(tmp_path: Path) -> None:
    """Programs that are not Excel write a wrong one."""
    path, other = save(tmp_path / "t.xlsx", ROWS), tmp_path / "o.xlsx"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(other, "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name).replace(b'<dimension ref="A1:C4"', b'<dimension ref="A1:C2"'))
    assert read(other) == read(path)


def test_bad_rows_are_refused_or_left_out(tmp_path: Path) -> None:
    path = save(tmp_path / "t.xlsx", [("text", "label"), ("a b", 1), (None, None), ("c d", 2, "x"), ("e f", 3)])
    with pytest.raises(TableError, match="row 3: it has a cell beside the 2 columns of the first row"):
        read(path)
    assert read(path, skip=True) == [(["a b", "e f"], ["1", "3"], [1, 4])]
    path = save(tmp_path / "u.xlsx", [("text", "label"), ("a b", 1), (None, None), ("c d", 2)])
    with pytest.raises(TableError, match=r"row 2: its text \('text'\) is blank"):
        read(path)


def test_what_is_no_workbook_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "t.xlsx").write_text("text,label\n")
    with pytest.raises(TableError, match="is no workbook of Excel"):
        read(tmp_path / "t.xlsx")
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(SettingsError, match=r"pip install 'headstart\[excel\]'"):
        read(tmp_path / "t.xlsx")
