"""Prediction: new texts and tables through a run's encoder and head."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import headstart
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
from extracting import run
from headstart.cache.errors import BusyError, EncoderError, OutputExistsError, SettingsError, TableError
from headstart.cache.lock import hold
from headstart.stages.predict import predict, predict_table
from headstart.stages.progress import Action, Event, Note, Outcome, Step
from headstart.stages.settings import TrainSettings
from headstart.stages.train_head import train_head
from processes import Command, command_here
from tiny import WORDS, tiny_rows

ADDED = ["prediction", "probability_class0", "probability_class1"]


def pairs(count: int) -> dict[str, list[str]]:
    """Pairs of known words with labels."""
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, rng.integers(1, 9))) for _ in range(2 * count)]
    labels = [f"class{number % 2}" for number in range(count)]
    return {"text": texts[:count], "hypothesis": texts[count:], "label": labels}


@pytest.fixture(scope="module")
def made(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs trained on single texts and on pairs, the cache of each, and a table of texts with labels."""
    folder = tmp_path_factory.mktemp("made")
    rows = tiny_rows(200)
    lines = (json.dumps({"id": number, "text": text, "label": label}) for number, (text, label) in enumerate(rows))
    (folder / "table.jsonl").write_text("".join(line + "\n" for line in lines))
    for name, table, options in [
        ("single", folder / "table.jsonl", {}),
        ("pairs", pairs(60), {"text_pair_column": "hypothesis"}),
    ]:
        run(table, folder / f"{name}.h5", tiny, **options)
        train_head(folder / f"{name}.h5", folder / name, TrainSettings(solver="sgd", epochs=5))
    return folder


@pytest.fixture(scope="module")
def table(made: Path) -> pd.DataFrame:
    return pd.read_json(made / "table.jsonl", lines=True)


def expected(made: Path, name: str = "single") -> Any:
    """The probabilities of the cached features."""
    features = headstart.open_cache(made / f"{name}.h5").features()
    return headstart.load_head(made / name).probabilities(features)


def assert_one_line(done: Command, code: int, message: str) -> None:
    assert done.returncode == code, done.stderr
    assert done.stderr.startswith("headstart: ") and done.stderr.count("\n") == 1 and message in done.stderr


def test_texts_are_classified_by_the_command(made: Path) -> None:
    done = command_here("predict", made / "single", "good film", "bad phone")
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and len(lines) == 2
    for line in lines:
        label, probabilities, _ = line.split("\t")
        values = {name: float(p) for name, p in (part.split() for part in probabilities.split("  "))}
        assert label == max(values, key=lambda name: values[name])
        assert sum(values.values()) == pytest.approx(1, abs=2e-3)


def test_predictions_are_those_of_the_cached_features(made: Path, table: pd.DataFrame) -> None:
    predictions = predict(made / "single", table["text"])
    np.testing.assert_allclose(predictions.probabilities, expected(made), atol=1e-5)
    assert predictions.labels == [f"class{number}" for number in expected(made).argmax(1)]
    assert (predictions.texts, predictions.pairs) == (table["text"].tolist(), None)
    assert predictions.label_names == ("class0", "class1")


def test_a_str_is_one_text(made: Path) -> None:
    one = predict(made / "single", "good film")
    np.testing.assert_array_equal(one.probabilities, predict(made / "single", ["good film"]).probabilities)
    assert one.texts == ["good film"]
    none = predict(made / "single", [])
    assert (none.texts, none.labels, none.probabilities.shape) == ([], [], (0, 2))


def test_a_text_that_stands_twice_is_encoded_once(made: Path, encoded: list[list[int]]) -> None:
    predictions = predict(made / "single", ["good film", "bad phone", "good film"])
    assert len(encoded) == 2
    np.testing.assert_array_equal(predictions.probabilities[0], predictions.probabilities[2])
    assert (predictions.probabilities[0] != predictions.probabilities[1]).any()


def read_back(out: Path) -> list[dict[str, Any]]:
    """The rows of a file of predictions, as another reader than ours has them."""
    if out.suffix == ".parquet":
        rows: list[dict[str, Any]] = pyarrow.parquet.read_table(out).to_pylist()
        return rows
    if out.suffix == ".jsonl":
        return [json.loads(line) for line in out.read_text().splitlines()]
    with out.open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t" if out.suffix == ".tsv" else ","))


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_the_command_writes_a_table_with_its_predictions(made: Path, tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"out.{suffix}"
    done = command_here("predict", made / "single", "--input", made / "table.jsonl", "--out", out)
    assert done.returncode == 0, done.stderr
    rows = read_back(out)
    given = [json.loads(line) for line in (made / "table.jsonl").read_text().splitlines()]
    assert list(rows[0]) == ["id", "text", "label", *ADDED]
    assert [(str(row["id"]), row["text"], row["label"]) for row in rows] == [
        (str(row["id"]), row["text"], row["label"]) for row in given
    ]
    probabilities = np.array([[float(row[name]) for name in ADDED[1:]] for row in rows])
    np.testing.assert_allclose(probabilities, expected(made), atol=1e-5)
    assert [row["prediction"] for row in rows] == [f"class{number}" for number in probabilities.argmax(1)]
    again = command_here("predict", made / "single", "--input", made / "table.jsonl", "--out", out)
    assert_one_line(again, 2, "exists already")


def test_tables_in_memory_are_classified(made: Path, table: pd.DataFrame, tmp_path: Path) -> None:
    for given, kept in [
        (table, ["id", "text", "label"]),
        (pa.table(table[["text", "id"]]), ["text", "id"]),
        ({"text": table["text"].tolist()}, ["text"]),
        (table["text"].tolist(), ["text"]),
        (table["text"], ["text"]),
    ]:
        out = predict_table(made / "single", given, tmp_path / "out.parquet", overwrite=True)
        found = pd.read_parquet(out)
        assert list(found) == [*kept, *ADDED]
        for name in kept:
            assert found[name].tolist() == table[name].tolist()
        np.testing.assert_allclose(found[ADDED[1:]], expected(made), atol=1e-5)


def test_a_table_is_classified_window_by_window(made: Path, tmp_path: Path, encoded: list[list[int]]) -> None:
    """Each window's probabilities are those of its texts alone, and its rows are written before the next is encoded."""
    events: list[Event] = []
    written: list[int] = []

    def report(event: Event) -> None:
        events.append(event)
        if isinstance(event, Step) and event.phase == "encoding":
            written.append((tmp_path / "out.jsonl.headstart-work" / "new").stat().st_size)

    out = predict_table(made / "single", made / "table.jsonl", tmp_path / "out.jsonl", window_rows=64, report=report)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["id"] for row in rows] == list(range(200))
    steps = [event for event in events if isinstance(event, Step) and event.phase == "encoding"]
    assert [(step.done, step.total) for step in steps] == [(64, 200), (128, 200), (192, 200), (200, 200)]
    assert written == sorted(written) and 0 < written[1] < written[3]
    counts = {
        "rows": 200,
        "skipped_rows": 0,
        "kept_rows": 0,
        "cached_rows": 0,
        "kept_texts": 0,
        "sequences_encoded": len(encoded),
        "tokens_encoded": sum(map(len, encoded)),
    }
    assert events[-1] == Outcome(command="predict", output=out, action=Action.MADE, counts=counts)
    texts = [row["text"] for row in rows]
    for start in range(0, 200, 64):
        alone = predict(made / "single", texts[start : start + 64]).probabilities
        found = [[row[name] for name in ADDED[1:]] for row in rows[start : start + 64]]
        np.testing.assert_array_equal(np.array(found, np.float32), alone)


def test_a_column_of_a_predictions_name_is_refused(made: Path, table: pd.DataFrame, tmp_path: Path) -> None:
    for name in ("prediction", "probability_class1"):
        with pytest.raises(TableError, match=f"has a column '{name}', as the predictions have; rename it"):
            predict_table(made / "single", table.assign(**{name: 1}), tmp_path / "out.csv")
    lines = ['{"text": "good film"}', '{"text": "bad film", "prediction": "x"}']
    (tmp_path / "late.jsonl").write_text("\n".join(lines))
    with pytest.raises(TableError, match=r"late.jsonl has a column 'prediction'"):
        predict_table(made / "single", tmp_path / "late.jsonl", tmp_path / "out.csv", window_rows=1)
    assert [path.name for path in tmp_path.iterdir()] == ["late.jsonl"]


def test_predictions_overwrite_nothing_of_value(made: Path, tmp_path: Path) -> None:
    given = made / "table.jsonl"
    before, parts = given.read_bytes(), tmp_path / "parts"
    parts.mkdir()
    shutil.copy(given, parts)
    same = command_here("predict", made / "single", "--input", given, "--out", given, "--overwrite")
    assert_one_line(same, 2, "is the table that is read")
    assert given.read_bytes() == before
    nowhere = command_here("predict", made / "single", "--input", given, "--out", tmp_path / "no" / "x.csv")
    assert_one_line(nowhere, 2, "make its folder first")
    with pytest.raises(OutputExistsError, match=r"must end in \.csv"):
        predict_table(made / "single", given, tmp_path / "out.csv.gz")
    with pytest.raises(OutputExistsError, match="lies in the table's own folder"):
        predict_table(made / "single", parts, parts / "out.csv")
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(OutputExistsError, match="cannot be a file"):
        predict_table(made / "single", given, tmp_path / "pipe.csv", overwrite=True)
    assert (tmp_path / "pipe.csv").is_fifo()
    with hold(tmp_path / "out.csv"), pytest.raises(BusyError, match="another run is writing"):
        predict_table(made / "single", given, tmp_path / "out.csv")


def test_an_error_leaves_the_old_predictions_whole(made: Path, tmp_path: Path, write_csv: Callable[..., Path]) -> None:
    """A bad row is found before anything is encoded; a text of no tokens when its window's turn has come."""
    out = tmp_path / "out.csv"
    out.write_text("old")
    with pytest.raises(TableError, match=r"table.csv, row 2: its text \('text'\) is blank"):
        predict_table(made / "single", write_csv([("good", "x"), (" ", "y")]), out, overwrite=True)
    with pytest.raises(TableError, match=r"has no rows"):
        predict_table(made / "single", write_csv([]), out, overwrite=True)
    image = pa.table({"text": ["good film"], "image": [b"\xff"]})
    with pytest.raises(TableError, match="column 'image'"):
        predict_table(made / "single", image, out, overwrite=True)
    assert out.read_text() == "old" and {path.name for path in tmp_path.iterdir()} == {"out.csv", "table.csv"}


def test_a_text_of_no_tokens_is_named(tiny: Path, tmp_path: Path, write_csv: Callable[..., Path]) -> None:
    """By an encoder whose tokenizer adds no special tokens."""
    folder = shutil.copytree(tiny, tmp_path / "bare")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps({**tokenizer, "post_processor": None}))
    run(tiny_rows_table(40), tmp_path / "c.h5", folder)
    head = train_head(tmp_path / "c.h5", tmp_path / "run", TrainSettings(solver="sgd", epochs=1))
    with pytest.raises(EncoderError, match="text 2: the encoder's tokenizer makes no tokens of this text"):
        predict(head, ["good film", "\u200b"])
    given = write_csv([("good film", "x")] * 3 + [("\u200b", "x")])
    with pytest.raises(EncoderError, match=r"table.csv, row 4: the encoder's tokenizer makes no tokens of this text"):
        predict_table(head, given, tmp_path / "out.csv", window_rows=2)
    assert not (tmp_path / "out.csv").exists()
    predict_table(head, given, tmp_path / "out.csv", window_rows=2, skip_bad_rows=True)
    last = (tmp_path / "out.csv").read_text().splitlines()[-1]
    assert last.endswith(",,,,the encoder's tokenizer makes no tokens of this text")


def test_a_bad_row_is_kept_with_an_empty_prediction_where_told(made: Path, tmp_path: Path) -> None:
    """Each row that stands in the table stands in the output, in its place, and the good ones have the same bits."""
    lines = [b"id,text,note", b"1,good film,x", b"2,,x", b"3,bad film", b"4,caf\xe9,x", b"5,bad phone,y", b"6,x,y,z"]
    given = tmp_path / "t.csv"
    given.write_bytes(b"\n".join(lines) + b"\n")
    done = command_here("predict", made / "single", "--input", given, "--out", tmp_path / "out.csv")
    assert_one_line(done, 2, "use --skip-bad-rows")
    problems = ["", "its text ('text') is blank", "it has 2 cells", "byte 0xe9", "", "it has 4 cells"]
    for suffix, window_rows in (("csv", 4096), ("tsv", 1), ("jsonl", 2), ("parquet", 3)):
        notes: list[Event] = []
        options = {"skip_bad_rows": True, "window_rows": window_rows, "report": notes.append}
        out = predict_table(made / "single", given, tmp_path / f"new.{suffix}", **options)
        rows = read_back(out)
        assert list(rows[0]) == ["id", "text", "note", *ADDED, "prediction_problem"]
        assert [row["id"] or "" for row in rows] == ["1", "2", "", "", "5", ""]
        for row, problem in zip(rows, problems, strict=True):
            assert problem in (row["prediction_problem"] or "") and bool(row["prediction_problem"]) == bool(problem)
            assert all(row[name] in (None, "") for name in ADDED) == bool(problem)
        alone = predict(made / "single", ["good film", "bad phone"]).probabilities
        found = [[float(row[name]) for name in ADDED[1:]] for row in (rows[0], rows[4])]
        np.testing.assert_allclose(found, alone, atol=1e-6)
        assert any("4 of 6 rows of" in event.text for event in notes if isinstance(event, Note))
        assert isinstance(notes[-1], Outcome) and notes[-1].counts["skipped_rows"] == 4


def test_a_table_of_bad_rows_alone_may_be_skipped_through(made: Path, tmp_path: Path) -> None:
    out = predict_table(made / "single", {"text": ["", None]}, tmp_path / "out.parquet", skip_bad_rows=True)
    assert pyarrow.parquet.read_table(out).column("prediction").to_pylist() == [None, None]
    table = pa.table({"text": ["good film"], "prediction_problem": ["x"]})
    with pytest.raises(TableError, match="has a column 'prediction_problem', as the predictions have"):
        predict_table(made / "single", table, tmp_path / "out.csv", skip_bad_rows=True)
    predict_table(made / "single", table, tmp_path / "out.csv")


def tiny_rows_table(count: int) -> dict[str, list[str]]:
    texts, labels = zip(*tiny_rows(count), strict=True)
    return {"text": list(texts), "label": list(labels)}


def test_an_encoder_of_another_identity_is_refused(made: Path, minilm: Path) -> None:
    done = command_here("predict", made / "single", "good film", "--encoder", minilm)
    assert_one_line(done, 2, "they differ in weights_sha256")
    assert "is not the one that" in done.stderr and str(made / "single") in done.stderr


def test_pairs_are_classified_by_their_features(made: Path, tmp_path: Path) -> None:
    table = pairs(60)
    found = predict(made / "pairs", table["text"], pairs=table["hypothesis"])
    np.testing.assert_allclose(found.probabilities, expected(made, "pairs"), atol=1e-5)
    assert found.pairs == table["hypothesis"]
    out = predict_table(made / "pairs", table, tmp_path / "out.jsonl", text_pair_column="hypothesis")
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [[row["text"], row["hypothesis"]] for row in rows] == [
        list(row) for row in zip(table["text"], table["hypothesis"], strict=True)
    ]
    np.testing.assert_allclose([row["probability_class0"] for row in rows], expected(made, "pairs")[:, 0], atol=1e-5)


def test_a_head_is_given_what_it_was_trained_on(made: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="was trained on pairs of texts: give a table with `text_pair_column`"):
        predict(made / "pairs", ["good film"])
    with pytest.raises(SettingsError, match="was trained on single texts"):
        predict(made / "single", ["good film"], pairs=["bad"])
    with pytest.raises(SettingsError, match="was trained on pairs"):
        predict_table(made / "pairs", pairs(5), tmp_path / "out.csv")
    with pytest.raises(SettingsError, match="was trained on single texts"):
        predict_table(made / "single", pairs(5), tmp_path / "out.csv", text_pair_column="hypothesis")
    with pytest.raises(TableError, match="second text 2 is blank"):
        predict(made / "pairs", ["good", "film"], pairs=["bad", ""])
    with pytest.raises(SettingsError, match="2 texts and 1 second texts"):
        predict(made / "pairs", ["good", "film"], pairs=["bad"])
    assert not (tmp_path / "out.csv").exists()


def test_the_command_reads_pairs(made: Path, tmp_path: Path, write_csv: Callable[..., Path]) -> None:
    table = write_csv(list(zip(*pairs(20).values(), strict=True)), header=("text", "hypothesis", "label"))
    done = command_here("predict", made / "pairs", "good film")
    assert (done.returncode, done.stdout) == (2, "") and "was trained on pairs of texts" in done.stderr
    out = tmp_path / "out.csv"
    done = command_here(
        "predict", made / "pairs", "--input", table, "--text-pair-column", "hypothesis", "--out", out, "--quiet"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert out.read_text().splitlines()[0].split(",") == ["text", "hypothesis", "label", *ADDED]
