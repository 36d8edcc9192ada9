"""Labels of another table, matched by text: other labels need no encoding."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from headstart.cache.errors import TableError
from headstart.cache.hashing import hash_texts
from headstart.stages.extract import extract
from headstart.stages.progress import Note
from headstart.stages.settings import ExtractSettings, Labels, TrainSettings
from headstart.stages.splits.relabel import match_rows
from headstart.stages.train_head import train_head
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_rows

Texts = st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=30)


@given(Texts, Texts)
def test_copies_are_matched_in_their_order(wanted: list[str], given_texts: list[str]) -> None:
    """The n-th copy of a text gets the table's n-th label of it; further copies get the last."""
    found = match_rows(hash_texts(wanted), hash_texts(given_texts))
    for row, text in enumerate(wanted):
        places = [i for i, other in enumerate(given_texts) if other == text]
        copy = wanted[:row].count(text)
        assert found[row] == (places[min(copy, len(places) - 1)] if places else -1)


def test_classes_without_a_cached_row_are_left_out(tiny: Path, tmp_path: Path) -> None:
    rows = tiny_rows(60)
    settings = ExtractSettings(encoder=str(tiny), precision="float32")
    cache = extract(write(tmp_path / "t.jsonl", rows), tmp_path / "c.h5", settings)
    more = [("a text of another table", "another"), *((text, label.upper()) for text, label in rows)]
    run = train_head(
        cache,
        tmp_path / "run",
        TrainSettings(solver="sgd", epochs=1),
        labels=Labels(write(tmp_path / "labels.jsonl", more)),
    )
    assert run_of(run)["label_names"] == ["CLASS0", "CLASS1"]


def write(path: Path, rows: list[tuple[str, str]], text: str = "text", label: str = "label") -> Path:
    path.write_text("".join(json.dumps({text: t, label: name}) + "\n" for t, name in rows))
    return path


def run_of(folder: Path) -> Any:
    return json.loads((folder / "run.json").read_text())


def test_relabelled_rows_train_the_same_head_as_a_cache_with_these_labels(tiny: Path, tmp_path: Path) -> None:
    rows = tiny_rows(200, classes=3)
    changed = [(text, "first" if label == "class0" else "rest") for text, label in rows]
    settings = ExtractSettings(encoder=str(tiny), precision="float32")
    caches = [
        extract(write(tmp_path / f"{i}.jsonl", each), tmp_path / f"{i}.h5", settings)
        for i, each in enumerate((rows, changed))
    ]
    given_labels = Labels(
        table=write(tmp_path / "labels.jsonl", changed[::-1], "body", "kind"), text_column="body", label_column="kind"
    )
    quick = TrainSettings(solver="sgd", epochs=3)
    runs = [
        train_head(caches[0], tmp_path / "a", quick, labels=given_labels),
        train_head(caches[1], tmp_path / "b", quick),
    ]
    assert (runs[0] / "head.safetensors").read_bytes() == (runs[1] / "head.safetensors").read_bytes()
    assert run_of(runs[0])["label_names"] == ["first", "rest"]
    assert run_of(runs[0])["labels"]["table"].endswith("labels.jsonl") and run_of(runs[1])["labels"] is None


def test_rows_without_a_label_are_left_out_of_every_split(tiny: Path, tmp_path: Path) -> None:
    rows = tiny_rows(300, classes=2)
    settings = ExtractSettings(encoder=str(tiny), precision="float32")
    cache = extract(write(tmp_path / "t.jsonl", rows), tmp_path / "t.h5", settings)
    test = extract(write(tmp_path / "u.jsonl", tiny_rows(60, seed=4)), tmp_path / "u.h5", settings)
    some = {text for text, _ in rows[:150]} | {text for text, _ in tiny_rows(60, seed=4)[:30]}
    table = write(tmp_path / "l.jsonl", [row for row in [*rows, *tiny_rows(60, seed=4)] if row[0] in some])
    notes: list[str] = []
    run = train_head(
        cache,
        tmp_path / "run",
        TrainSettings(solver="sgd", epochs=2),
        test=test,
        labels=Labels(table=table),
        report=lambda e: notes.append(e.text) if isinstance(e, Note) else None,
    )
    counts = run_of(run)["rows"]
    known = sum(text in some for text, _ in rows)
    assert counts["train"] + counts["validation"] == known < 300
    assert counts["test"] == sum(text in some for text, _ in tiny_rows(60, seed=4)) < 60
    assert any(f"{300 - known} of 300 rows" in note and "left out" in note for note in notes)


def test_a_table_of_other_texts_is_refused(tiny: Path, tmp_path: Path) -> None:
    cache = extract(write(tmp_path / "t.jsonl", tiny_rows(40)), tmp_path / "t.h5", ExtractSettings(encoder=str(tiny)))
    table = write(tmp_path / "l.jsonl", [("nothing alike", "x"), ("nor this", "y")])
    with pytest.raises(TableError, match="has none of the texts"):
        train_head(cache, tmp_path / "run", TrainSettings(solver="sgd", epochs=2), labels=Labels(table=table))


def test_labels_of_a_table_follow_the_rule_of_all_tables(tiny: Path, tmp_path: Path) -> None:
    """White space around them does not count, and the command says so."""
    rows = tiny_rows(60)
    cache = extract(write(tmp_path / "t.jsonl", rows), tmp_path / "c.h5", ExtractSettings(encoder=str(tiny)))
    spelt = [(text, label + " " * (number % 2)) for number, (text, label) in enumerate(rows)]
    notes: list[Any] = []
    labels = Labels(write(tmp_path / "labels.jsonl", spelt))
    run = train_head(cache, tmp_path / "run", TrainSettings(solver="sgd", epochs=1), labels=labels, report=notes.append)
    assert run_of(run)["label_names"] == ["class0", "class1"]
    assert any(isinstance(note, Note) and "labels are read as other names" in note.text for note in notes)


def test_bad_rows_of_a_table_of_labels_are_left_out_where_told(tiny: Path, tmp_path: Path) -> None:
    rows = tiny_rows(60)
    cache = extract(write(tmp_path / "t.jsonl", rows), tmp_path / "c.h5", ExtractSettings(encoder=str(tiny)))
    table = write(tmp_path / "labels.jsonl", [*rows[:50], *((text, " ") for text, _ in rows[50:])])
    with pytest.raises(TableError, match=r"row 51: its label \('label'\) is blank; .* `skip_bad_rows=True`"):
        train_head(cache, tmp_path / "run", TrainSettings(solver="sgd", epochs=1), labels=Labels(table))
    notes: list[Any] = []
    labels = Labels(table, skip_bad_rows=True)
    run = train_head(cache, tmp_path / "run", TrainSettings(solver="sgd", epochs=1), labels=labels, report=notes.append)
    said = [note.text for note in notes if isinstance(note, Note)]
    assert any("bad rows left out: 10" in text for text in said)
    assert any("of 60 rows of" in text and "lacks their texts" in text for text in said)
    assert run_of(run)["labels"]["skip_bad_rows"] is True
