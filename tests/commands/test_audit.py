"""`audit`: what it writes is what it found, row by row of the table, and what it shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from extracting import noting, run
from headstart.cache.errors import DamagedError
from headstart.cache.hashing import hash_texts
from headstart.cache.reader import Cache
from headstart.stages.audit import audit
from headstart.stages.inspect import inspect_path
from headstart.stages.settings import AuditSettings, ExtractSettings, Labels
from processes import command_here

WRONG = (5, 16, 27)
"""Rows of the table, from 1, whose label is wrong."""
LETTERS = "abcdefghijklmnopqrst"


@pytest.fixture(scope="module")
def made(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str], list[str], Cache]:
    """A table whose labels say which of two words a text has, but for a few; a bad row in its second line."""
    folder = tmp_path_factory.mktemp("audit")
    words = [("love love love", "broke broke broke")[row // 20] for row in range(40)]
    texts = [f"{word} {LETTERS[row % 20]} {('film', 'phone')[row % 2]}" for row, word in enumerate(words)]
    labels = ["up" if "love" in text else "down" for text in texts]
    for row in WRONG:
        labels[row - 1] = "down" if labels[row - 1] == "up" else "up"
    texts[39], labels[39] = texts[38], "down" if labels[38] == "up" else "up"  # a copy with another label
    texts[1] = " "
    table = folder / "table.csv"
    lines = [f"{text},{label}" for text, label in zip(texts, labels, strict=True)]
    table.write_text("text,label\n" + "\n".join(lines) + "\n")
    cache, _ = run(table, folder / "c.h5", tiny, skip_bad_rows=True, features=("mean",))
    return table, texts, labels, cache


def lines_of(folder: Path, file: str = "issues.parquet") -> list[dict[str, Any]]:
    return pq.read_table(folder / file).to_pylist()


@pytest.fixture(scope="module")
def folder(made: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    table, _, _, cache = made
    reading = ExtractSettings(skip_bad_rows=True)
    out = tmp_path_factory.mktemp("out") / "audit"
    return audit(cache.path, out, AuditSettings(similarity=0.9), texts=table, reading=reading)


def test_wrong_labels_are_found_by_their_rows_in_the_table(made: Any, folder: Path) -> None:
    _, texts, labels, _ = made
    errors = [line for line in lines_of(folder) if line["kind"] == "label-error"]
    assert set(WRONG) <= {line["row"] for line in errors} and len(errors) <= 6
    assert [line["score"] for line in errors] == sorted(line["label_probability"] for line in errors)
    for line in lines_of(folder):
        row = line["row"] - 1
        assert (line["text"], line["label"]) == (texts[row], labels[row])
        assert line["text_hash"] == hash_texts([texts[row]], None).tobytes().hex()
        assert line["kind"] != "label-error" or line["suggested"] != line["label"]


def test_copies_and_near_duplicates_name_their_partner(made: Any, folder: Path) -> None:
    _, _, labels, cache = made
    copies = [line for line in lines_of(folder) if line["kind"] == "duplicate"]
    assert [(line["row"], line["partner_row"], line["score"]) for line in copies] == [(39, 40, 1), (40, 39, 1)]
    near = [line for line in lines_of(folder) if line["kind"] == "near-duplicate"]
    vectors = np.array(cache.features()) - np.array(cache.features()).mean(axis=0)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    place = {row: number for number, row in enumerate(cache.row_numbers.tolist())}
    assert near and [line["score"] for line in near] == sorted((line["score"] for line in near), reverse=True)
    for line in near:
        one, other = vectors[place[line["row"]]], vectors[place[line["partner_row"]]]
        assert one @ other == pytest.approx(line["score"], abs=1e-5)
        assert labels[line["partner_row"] - 1] == line["partner_label"] != line["label"]


def test_audit_json_counts_what_the_table_holds(made: Any, folder: Path) -> None:
    record, lines = json.loads((folder / "audit.json").read_text()), lines_of(folder)
    assert record["issues"] == {
        kind: sum(line["kind"] == kind for line in lines)
        for kind in ("label-error", "duplicate", "near-duplicate", "outlier")
    }
    assert record["rows"] == {"audited": 39, "judged": 39, "texts": 38, "pool": 0}
    assert sum(pair["rows"] for pair in record["confusions"]) == record["issues"]["label-error"]
    assert record["worst"][0] == {**lines[0], "text_pair": None}
    assert inspect_path(folder)["kind"] == "audit" and sorted(path.name for path in folder.iterdir()) == [
        "audit.json",
        "issues.parquet",
    ]


def test_one_label_of_a_class_is_not_judged_and_says_so(tiny: Path, tmp_path: Path) -> None:
    texts = [f"{word} {letter}" for word in ("love", "broke") for letter in "abcdefgh"]
    cache, _ = run(texts, tmp_path / "c.h5", tiny, labels=["up"] * 8 + ["down"] * 7 + ["other"])
    notes: list[str] = []
    folder = audit(cache.path, tmp_path / "a", AuditSettings(l2=1.0, folds=3, fence=0.01), report=noting(notes))
    assert any("1 rows of" in note and "not judged" in note for note in notes)
    mine = [line for line in lines_of(folder) if line["label"] == "other"]
    assert all(line["label_probability"] is line["suggested"] is None for line in mine)
    assert json.loads((folder / "audit.json").read_text())["rows"]["judged"] == 15


def test_what_to_label_next_is_new_and_chosen_once(made: Any, tiny: Path, tmp_path: Path) -> None:
    _, texts, _, cache = made
    new = [f"{word} {letter} {letter}" for word in ("love", "broke", "love broke") for letter in "abcdefgh"]
    pool, _ = run([*new, texts[0], *new], tmp_path / "pool.h5", tiny, label_column=None, features=("mean",))
    notes: list[str] = []
    for count in (5, 50):
        settings = AuditSettings(l2=1.0, next=count)
        folder = audit(cache.path, tmp_path / str(count), settings, pool=pool.path, report=noting(notes))
        chosen = lines_of(folder, "next.parquet")
        assert len({line["row"] for line in chosen}) == len(chosen) == min(count, 24)
        assert all(line["row"] <= 24 for line in chosen)  # of copies the first; the other cache's text is left out
        assert [line["margin"] for line in chosen] == sorted(line["margin"] for line in chosen)
        assert json.loads((folder / "audit.json").read_text())["next"] == len(chosen)
    assert any("24 texts to choose from; all are taken" in note for note in notes)


def test_labels_of_another_table_are_audited_where_it_has_them(made: Any, tmp_path: Path) -> None:
    _, texts, _, cache = made
    others = tmp_path / "labels.csv"
    rows = [row for row in range(2, 39) if row % 5]  # of 40; the second is blank, and the last two are copies
    named = [(texts[row], ("good", "bad")[("love" in texts[row]) == (row in (6, 31))]) for row in rows]
    others.write_text("text,view\n" + "".join(f"{text},{view}\n" for text, view in named))
    notes: list[str] = []
    labels = Labels(table=others, label_column="view")
    folder = audit(cache.path, tmp_path / "a", AuditSettings(l2=1.0, dims=20), labels=labels, report=noting(notes))
    record = json.loads((folder / "audit.json").read_text())
    audited = [row for row in range(40) if row != 1 and texts[row] in dict(named)]
    assert record["rows"]["audited"] == len(audited) and record["label_names"] == ["bad", "good"]
    assert record["labels"]["table"] == str(others) and record["settings"]["dims"] == 20
    assert any(f"{39 - len(audited)} of 39 rows" in note and "left out" in note for note in notes)
    errors = [line for line in lines_of(folder) if line["kind"] == "label-error"]
    assert {7, 32} <= {line["row"] for line in errors} <= {row + 1 for row in audited}
    for line in errors:
        assert line["label"] == dict(named)[texts[line["row"] - 1]]
    options = ["--labels", others, "--label-column", "view", "--l2", 1, "--dims", 20]
    assert command_here("audit", cache.path, "--out", tmp_path / "b", *options).returncode == 0
    assert lines_of(tmp_path / "b") == lines_of(folder)


def test_a_cache_that_changes_meanwhile_leaves_no_audit(
    made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = made[3]

    def changed(self: Cache) -> None:
        raise DamagedError("written over")

    monkeypatch.setattr(Cache, "require_unchanged", changed)
    with pytest.raises(DamagedError):
        audit(cache.path, tmp_path / "a", AuditSettings(l2=1.0))
    assert not (tmp_path / "a").exists()


def test_the_command_shows_the_worst_with_their_texts(made: Any, tmp_path: Path) -> None:
    table, texts, _, cache = made
    out = tmp_path / "a"
    options = ["--texts", table, "--skip-bad-rows", "--l2", 1]
    done = command_here("audit", cache.path, "--out", out, *options)
    assert done.returncode == 0, done.stderr
    assert "likely errors" in done.stdout and texts[WRONG[0] - 1] in done.stdout
    assert "Encoder passes: 0 done, 39 saved" in done.stdout
    shown = command_here("inspect", out)
    assert shown.stdout == done.stdout.split("Encoder passes")[0]
