"""Labels: one rule for their spellings, whatever the table is."""

from __future__ import annotations

import decimal
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
from headstart.cache.errors import TableError
from headstart.stages.progress import Event, Note
from headstart.stages.tables.scan import TableScan, scan_table
from headstart.stages.tables.table import open_table

FORMATS = ("memory", "t.csv", "t.tsv", "t.jsonl", "t.parquet")


def saved(labels: Any, path: Path) -> Any:
    """A table with these labels, as the kind that the file's name says; in memory if it says none."""
    table = {"text": [f"text {number}" for number in range(len(labels))], "label": labels}
    if path.suffix == ".parquet":
        pa.parquet.write_table(pa.table(table), path)
    elif path.suffix == ".jsonl":
        rows = zip(*table.values(), strict=True)
        path.write_text("".join(json.dumps(dict(zip(table, row, strict=True))) + "\n" for row in rows))
    elif path.suffix:
        pd.DataFrame(table).to_csv(path, sep="\t" if path.suffix == ".tsv" else ",", index=False)
    return path if path.suffix else table


def scan(table: Any, *, skip_bad_rows: bool = False) -> tuple[TableScan, list[str]]:
    """Scan a table; return what was found and the notes."""
    events: list[Event] = []
    source = open_table(table, text_column="text", label_column="label", skip_bad_rows=skip_bad_rows)
    found = scan_table(source, events.append)
    return found, [event.text for event in events if isinstance(event, Note)]


def classes(found: TableScan) -> list[str]:
    assert found.labels is not None and found.label_names is not None
    return [found.label_names[number] for number in found.labels]


@pytest.mark.parametrize("name", FORMATS)
def test_white_space_around_a_label_does_not_count(tmp_path: Path, name: str) -> None:
    found, notes = scan(saved(["pos", "pos ", "neg", "\u00a0pos", "very  pos"], tmp_path / name))
    assert found.label_names == ("neg", "pos", "very  pos")
    assert classes(found) == ["pos", "pos", "neg", "pos", "very  pos"]
    assert len(notes) == 1 and "2 labels are read as other names, such as 'pos ' as 'pos'" in notes[0]


@pytest.mark.parametrize("name", FORMATS)
def test_booleans_have_one_spelling(tmp_path: Path, name: str) -> None:
    found, notes = scan(saved([True, False, True], tmp_path / name))
    assert found.label_names == ("False", "True") and classes(found) == ["True", "False", "True"]
    assert notes == []


@pytest.mark.parametrize("name", FORMATS)
def test_whole_numbers_are_classes_also_as_floats(tmp_path: Path, name: str) -> None:
    found, notes = scan(saved([10.0, 2.0, -0.0, 2.0], tmp_path / name))
    assert found.label_names == ("0", "2", "10") and classes(found) == ["10", "2", "0", "2"]
    assert len(notes) == 1 and "4 labels are read as other names, such as '10.0' as '10'" in notes[0]


@pytest.mark.parametrize(
    "labels",
    [
        pd.Series([1, 0, None, 1]),
        pa.array([1.0, 0.0, float("nan"), 1.0], pa.float32()),
        pa.array([decimal.Decimal("1.00"), decimal.Decimal("0"), None, decimal.Decimal("1")], pa.decimal128(9, 2)),
        pd.Categorical([1.0, 0.0, None, 1.0]),
        ["1.", "0", " ", "1.00"],
    ],
)
def test_a_missing_number_is_a_blank_label(labels: Any) -> None:
    table = pd.DataFrame({"text": list("abcd"), "label": labels}) if not isinstance(labels, pa.Array) else None
    given = pa.table({"text": list("abcd"), "label": labels}) if table is None else table
    found, _ = scan(given, skip_bad_rows=True)
    assert (found.label_names, classes(found), found.skipped) == (("0", "1"), ["1", "0", "1"], 1)
    with pytest.raises(TableError, match=r"row 3: its label \('label'\) is blank"):
        scan(given)


@pytest.mark.parametrize("name", FORMATS)
def test_one_fraction_refuses_the_table(tmp_path: Path, name: str) -> None:
    with pytest.raises(TableError, match=r"holds numbers such as '2\.5': regression targets are not supported"):
        scan(saved([1.0, 2.0, 2.5], tmp_path / name))


def test_json_may_write_whole_numbers_both_ways(tmp_path: Path) -> None:
    found, _ = scan(saved([1, 2.0, 1.0, 2], tmp_path / "t.jsonl"))
    assert classes(found) == ["1", "2", "1", "2"]


@pytest.mark.parametrize("value", [float("inf"), 1e300, 1e-300])
def test_a_number_that_is_no_class_is_refused_with_its_row(value: float) -> None:
    with pytest.raises(TableError, match=r"row 2: the column 'label' holds numbers such as '(inf|1e)"):
        scan({"text": ["a", "b"], "label": [1.0, value]})


def test_names_that_only_look_like_numbers_stay_names() -> None:
    assert scan({"text": list("abc"), "label": ["1.0", "2.0", "other"]})[0].label_names == ("1.0", "2.0", "other")
    assert scan({"text": list("abc"), "label": ["1.0.0", "01", "true"]})[0].label_names == ("01", "1.0.0", "true")
    assert scan({"text": list("abc"), "label": ["0", "-0", "1"]})[0].label_names == ("-0", "0", "1")  # not by chance


@pytest.mark.parametrize(
    "pair", [("Pos", "pos"), ("caf\xe9", "cafe\u0301"), ("\u200bpos", "pos"), ("\uff11", "1"), ("a b", "a  b")]
)
def test_classes_that_look_alike_are_named(pair: tuple[str, str]) -> None:
    found, notes = scan({"text": list("abcd"), "label": ["x", *pair, "y"]})
    assert found.label_names is not None and len(found.label_names) == 4
    assert len(notes) == 1 and f"the labels {pair[0]!a} and {pair[1]!a} look alike, and are two classes" in notes[0]
