"""Labels: one rule for their spellings and their kinds, whatever the table is."""

from __future__ import annotations

import decimal
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
from headstart.cache.errors import SettingsError, TableError
from headstart.cache.label_kind import LabelKind
from headstart.stages.progress import Event, Note
from headstart.stages.settings import ExtractSettings, Task
from headstart.stages.tables.labels import LabelRules
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


def scan(
    table: Any, *, columns: Any = "label", skip_bad_rows: bool = False, **rules: Any
) -> tuple[TableScan, list[str]]:
    """Scan a table; return what was found and the notes."""
    events: list[Event] = []
    options: Any = {"label_rules": LabelRules(**rules), "skip_bad_rows": skip_bad_rows}
    source = open_table(table, text_column="text", label_column=columns, **options)
    found = scan_table(source, events.append)
    return found, [event.text for event in events if isinstance(event, Note)]


def read(table: Any, **given: Any) -> TableScan:
    """Scan a table, and return what was found."""
    return scan(table, **given)[0]


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


def test_json_may_write_whole_numbers_both_ways(tmp_path: Path) -> None:
    found, _ = scan(saved([1, 2.0, 1.0, 2], tmp_path / "t.jsonl"))
    assert classes(found) == ["1", "2", "1", "2"]


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


def texts(labels: Any, **more: Any) -> dict[str, Any]:
    return {"text": [f"text {number}" for number in range(len(labels))], "label": labels, **more}


def sets(found: TableScan) -> list[set[str]]:
    assert found.label_kind is LabelKind.MULTI_LABEL and found.labels is not None and found.label_names is not None
    assert found.labels.dtype == np.uint8
    return [{name for name, has in zip(found.label_names, row, strict=True) if has} for row in found.labels]


@pytest.mark.parametrize("name", FORMATS)
def test_numbers_with_a_fraction_are_numbers(tmp_path: Path, name: str) -> None:
    values = [1.0, 2.0, 2.5, -3e-7]
    found, notes = scan(saved(values, tmp_path / name))
    assert (found.label_kind, found.label_names) == (LabelKind.NUMBER, None)
    assert found.labels is not None and found.labels.dtype == np.float64 and found.labels.tolist() == values
    assert len(notes) == 1 and "numbers such as '2.5'" in notes[0] and "`task=classes`" in notes[0]


@pytest.mark.parametrize("name", FORMATS)
def test_up_to_50_distinct_whole_numbers_are_classes(tmp_path: Path, name: str) -> None:
    assert read(saved([*range(50), 3], tmp_path / name)).label_kind is LabelKind.CLASS
    found, notes = scan(saved([*range(51), 3], tmp_path / name))
    assert found.label_kind is LabelKind.NUMBER and found.labels is not None
    assert found.labels.tolist() == [*range(51), 3] and "more than 50 distinct whole numbers" in notes[0]
    assert read(saved([*range(51), 3], tmp_path / name), task=Task.CLASSES).label_names == tuple(map(str, range(51)))


def test_numbers_are_told_from_batches_that_hold_few() -> None:
    values = [float(number % 3) for number in range(9000)] + [0.5] + [1.0] * 9000
    found = read(texts(values))
    assert found.labels is not None and found.labels.tolist() == values


@pytest.mark.parametrize(
    "labels", [["1.5", "2", "good"], ["good", "2", "1.5"], ["1.5", "nan", "2"], ["1.5", "1e999"], ["1.5", "007"]]
)
def test_text_among_numbers_is_refused_with_its_row(labels: list[str]) -> None:
    wrong = next(label for label in labels if label not in ("1.5", "2"))
    with pytest.raises(TableError, match=rf"row {labels.index(wrong) + 1}: the column 'label' holds '{wrong}' among"):
        read(texts(labels))
    assert set(read(texts(labels), task=Task.CLASSES).label_names or ()) == set(labels)
    if wrong == "007":
        assert read(texts(labels), task=Task.REGRESSION).label_kind is LabelKind.NUMBER
        return
    with pytest.raises(TableError, match=f"row {labels.index(wrong) + 1}: .*'{wrong}'"):
        read(texts(labels), task=Task.REGRESSION)


def test_codes_and_names_stay_classes() -> None:
    codes = [f"{number:03}" for number in range(90)]
    assert read(texts(codes)).label_names == tuple(sorted(codes, key=int))
    assert read(texts(["1", "2", "other"])).label_names == ("1", "2", "other")


@pytest.mark.parametrize("value", [float("inf"), float("-inf")])
def test_an_infinity_is_refused_with_its_row(value: float) -> None:
    with pytest.raises(TableError, match=r"row 2: the column 'label' holds -?inf"):
        read(texts([1.0, value]))


def test_a_missing_number_is_a_bad_row() -> None:
    found = read(texts([0.5, float("nan"), None, 2.5]), skip_bad_rows=True)
    assert found.labels is not None and (found.labels.tolist(), found.skipped) == ([0.5, 2.5], 2)


@pytest.mark.parametrize("name", ["memory", "t.jsonl", "t.parquet"])
def test_lists_are_several_labels(tmp_path: Path, name: str) -> None:
    found = read(saved([["b", " a"], [], ["b"], ["b", "b"]], tmp_path / name))
    assert found.label_names == ("a", "b") and sets(found) == [{"a", "b"}, set(), {"b"}, {"b"}]
    assert found.labels is not None and found.labels.tolist() == [[1, 1], [0, 0], [0, 1], [0, 1]]


@pytest.mark.parametrize(
    "column",
    [
        pa.array([[3, 10], [], [3]], pa.large_list(pa.int64())),
        pa.array([[3, 10], [], [3]]),
        pa.array([[3.0, 10.0], [], [3.0]]),
    ],
)
def test_lists_of_whole_numbers_are_labels(column: pa.Array) -> None:
    found = read(pa.table({"text": list("abc"), "label": column}))
    assert found.label_names == ("3", "10") and sets(found) == [{"3", "10"}, set(), {"3"}]


def test_a_missing_list_and_a_blank_name_are_bad_rows() -> None:
    labels = pa.array([["a"], None, ["b", " "], ["a", None], ["b"]])
    found = read(pa.table({"text": list("abcde"), "label": labels}), skip_bad_rows=True)
    assert sets(found) == [{"a"}, {"b"}] and found.skipped == 3
    with pytest.raises(TableError, match=r"row 2: its label \('label'\) is blank"):
        read(pa.table({"text": list("abcde"), "label": labels}))
    with pytest.raises(TableError, match=r"row 1: its list of labels \('label'\) holds a blank name"):
        read(pa.table({"text": ["c"], "label": labels[2:3]}))


@pytest.mark.parametrize(
    ("labels", "what"),
    [
        ([["a"], [["b"]]], "line 2: .*a list within a list"),
        ([[["a"]], [["b"]]], "(row 1: the column|line 1:) 'label' holds a list within a list"),
        ([[True, False]], "row 1: the column 'label' holds a list of truth values"),
        ([[1.0], [0.5, 0.25]], "row 2: the column 'label' holds a list of numbers with fractions"),
        ([[1, 0, 1], [0, 0, 0]], "lists of 0 and 1"),
        ([["a"], ["b", 3]], "line 2: .*text and a number in one list"),
        ([[], []], "no row has a label"),
    ],
)
@pytest.mark.parametrize("name", ["memory", "t.jsonl"])
def test_lists_of_what_names_no_label_are_refused(tmp_path: Path, name: str, labels: Any, what: str) -> None:
    if name == "memory" and labels in ([["a"], [["b"]]], [["a"], ["b", 3]]):
        what = "cannot be read as columns"  # Arrow has no such column, and does not say where
    try:
        table = saved(labels, tmp_path / name)
    except pa.ArrowException:
        pytest.skip("Arrow has no such column")
    with pytest.raises(TableError, match=what):
        read(table)


@pytest.mark.parametrize("name", FORMATS)
def test_a_delimiter_divides_text(tmp_path: Path, name: str) -> None:
    found, notes = scan(saved(["b; a", "a", "", "b;"], tmp_path / name), delimiter=";")
    assert sets(found) == [{"a", "b"}, {"a"}, set(), {"b"}]
    assert any("1 cells are empty" in note for note in notes)


def test_a_delimiter_that_no_cell_has_is_noted() -> None:
    _, notes = scan(texts(["a|b", "c"]), delimiter=";")
    assert len(notes) == 1 and "no cell has two labels with ';' between them" in notes[0]


@pytest.mark.parametrize("values", [[1, 0, 1], [True, False, True], ["1", "0", "true"], [1.0, 0.0, 1.0]])
def test_several_columns_are_labels(values: list[Any]) -> None:
    found = read(texts(values, other=[0, 0, 1]), columns=("other", "label"))
    assert found.label_names == ("other", "label") and sets(found) == [{"label"}, set(), {"other", "label"}]
    with pytest.raises(TableError, match="row 2: the column 'other' holds '2'"):
        read(texts(values, other=[0, 2, 1]), columns=("other", "label"))
    assert sets(read(texts(values, other=[0, None, 1]), columns=("other", "label"), skip_bad_rows=True))[0] == {"label"}
    with pytest.raises(TableError, match="has no column 'absent'"):
        read(texts(values), columns=("absent", "label"))


def test_order_is_that_of_the_numbers_or_as_said() -> None:
    found = read(texts(["10", "9.5", "2"]), task=Task.ORDINAL)
    assert (found.label_kind, found.label_names) == (LabelKind.ORDINAL, ("2", "9.5", "10"))
    found = read(texts(["mid", "low ", "low"]), task=Task.ORDINAL, order=("low", "mid", "high"))
    assert found.labels is not None and found.label_names == ("low", "mid", "high")
    assert found.labels.tolist() == [1, 0, 0]
    assert read(texts([2.0, 1.0]), task=Task.ORDINAL, order=("2", "1")).label_names == ("2", "1")
    with pytest.raises(TableError, match="row 2: the label 'huge' is not in the `order`"):
        read(texts(["mid", "huge"]), task=Task.ORDINAL, order=("low", "mid"))
    with pytest.raises(TableError, match="row 1: the label 'mid' is no number"):
        read(texts(["mid", "low"]), task=Task.ORDINAL)


@pytest.mark.parametrize("task", [Task.CLASSES, Task.REGRESSION, Task.ORDINAL])
def test_lists_need_their_task(task: Task) -> None:
    with pytest.raises(TableError, match=f"row 1: `task={task}` does not go with lists"):
        read(texts([["a"], ["b"]]), task=task)


def test_single_labels_are_no_lists() -> None:
    with pytest.raises(TableError, match=r"holds single labels; .*`label_delimiter`"):
        read(texts(["a", "b"]), task=Task.MULTI_LABEL)


@pytest.mark.parametrize(
    "given",
    [
        {"order": ("a", "b")},
        {"order": ("a", "a"), "task": "ordinal"},
        {"label_delimiter": ";", "task": "classes"},
        {"label_delimiter": ";", "label_column": ("a", "b")},
        {"label_delimiter": ";", "label_column": None},
        {"label_column": ("a", "b"), "task": "regression"},
        {"label_delimiter": ""},
        {"task": "other"},
    ],
)
def test_settings_that_contradict_each_other_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(SettingsError):
        ExtractSettings(**given)


def test_texts_that_two_sets_of_labels_have_are_counted() -> None:
    found = read({"text": ["a", "a", "b", "b"], "label": [["x"], ["x", "y"], ["y"], ["y"]]})
    assert (found.distinct_texts, found.conflicting_texts) == (2, 1)
    found = read({"text": ["a", "a", "b", "b"], "label": [0.5, 0.5, 1.0, 1.5]})
    assert (found.distinct_texts, found.conflicting_texts) == (2, 1)
