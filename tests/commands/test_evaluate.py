"""Evaluation on new rows: the metrics of training, the worst rows, texts seen in training, and drift."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import headstart
import numpy as np
import pandas as pd
import pytest
from extracting import run as extract
from headstart.cache.errors import IdentityError, OutputExistsError, TableError
from headstart.stages.evaluate import evaluate
from headstart.stages.inspect import inspect_path
from headstart.stages.progress import Event, Note
from headstart.stages.settings import EvaluateSettings, ExtractSettings, TrainSettings
from headstart.stages.train_head import train_head
from processes import command_here
from tiny import WORDS

KINDS: dict[str, dict[str, Any]] = {
    "classes": {},
    "multi-label": {"label_delimiter": ";"},
    "regression": {"task": "regression"},
    "ordinal": {"task": "ordinal", "order": ("low", "mid", "high")},
}


def rows_of(kind: str, count: int, seed: int, words: list[str] = WORDS) -> list[dict[str, Any]]:
    """Rows whose label depends on their first word, but for one in five."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        text = [words[place] for place in rng.integers(0, len(words), rng.integers(4, 12))]
        number = WORDS.index(text[0]) % 3 if rng.random() < 0.8 else int(rng.integers(3))
        label = {"classes": "abc"[number], "multi-label": ("a", "b", "a;b")[number], "regression": number + 0.5}
        rows.append({"text": " ".join(text), "label": {**label, "ordinal": ("low", "mid", "high")[number]}[kind]})
    return rows


def write(rows: list[dict[str, Any]], path: Path) -> Path:
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def made(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For each kind of label a training cache, new rows as a table and as a cache, and a run tested on them."""
    folder = tmp_path_factory.mktemp("evaluate")
    for kind, options in KINDS.items():
        for part, count, seed in (("train", 150, 0), ("new", 60, 1)):
            table = write(rows_of(kind, count, seed), folder / f"{kind}-{part}.csv")
            extract(table, folder / f"{kind}-{part}.h5", tiny, **options)
        test = folder / f"{kind}-new.h5"
        train_head(folder / f"{kind}-train.h5", folder / kind, TrainSettings(folds=3), test=test)
    return folder


def noted(*arguments: Any, **options: Any) -> tuple[dict[str, Any], list[str]]:
    events: list[Event] = []
    record = evaluate(*arguments, report=events.append, **options)
    return record, [event.text for event in events if isinstance(event, Note)]


def assert_alike(found: Any, expected: Any) -> None:
    """Equal, but for rounding."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for name in expected:
            assert_alike(found[name], expected[name])
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_alike(one, other)
    else:
        assert found == (pytest.approx(expected, abs=1e-4) if isinstance(expected, float) else expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("suffix", ["csv", "h5"])
def test_the_metrics_are_those_of_training(made: Path, kind: str, suffix: str) -> None:
    """Of the rows that the run was tested on, from their cache and from their texts."""
    reading = ExtractSettings(label_delimiter=KINDS[kind].get("label_delimiter"))
    record = evaluate(made / kind, made / f"{kind}-new.{suffix}", reading=reading)
    tested = json.loads((made / kind / "run.json").read_text())["metrics"]["test"]
    assert_alike(record["metrics"], tested)
    assert record["rows"] == {"evaluated": 60, "unknown": 0, "seen": 0, "seen_evaluated": 0}
    assert record["sequences_encoded"] == (0 if suffix == "h5" else 60)


@pytest.mark.parametrize("kind", KINDS)
def test_the_worst_rows_are_those_of_the_largest_loss(made: Path, kind: str) -> None:
    reading = ExtractSettings(label_delimiter=KINDS[kind].get("label_delimiter"))
    rows = pd.read_csv(made / f"{kind}-new.csv")
    model = headstart.load(made / kind)
    said = model.predict(rows["text"])
    lines = evaluate(made / kind, made / f"{kind}-new.csv", EvaluateSettings(worst=5), reading=reading)["worst"]
    if kind == "regression":
        losses = np.abs(said - rows["label"])
    else:
        chances = model.predict_proba(rows["text"])
        true = np.array([[name in str(label).split(";") for name in model.classes_] for label in rows["label"]])
        losses = -np.log(np.where(true, chances, 1 - chances if kind == "multi-label" else 1)).sum(axis=1)
        losses = losses / 3 if kind == "multi-label" else losses
    worst = np.argsort(-losses, kind="stable")[:5]
    assert [line["row"] for line in lines] == (worst + 1).tolist()
    assert [line["text"] for line in lines] == rows["text"][worst].tolist()
    assert [line["prediction"] for line in lines] == [said[row] for row in worst]
    of_cache = evaluate(made / kind, made / f"{kind}-new.h5", EvaluateSettings(worst=5))["worst"]
    assert [line["row"] for line in of_cache] == [line["row"] for line in lines]


def test_a_label_that_the_run_does_not_know_is_refused_by_its_row(made: Path, tiny: Path, tmp_path: Path) -> None:
    rows = rows_of("classes", 30, 2)
    rows[6]["label"] = "other"
    table = write(rows, tmp_path / "t.csv")
    extract(table, tmp_path / "t.h5", tiny)
    for given in (table, tmp_path / "t.h5"):
        with pytest.raises(TableError, match=r"row 7: .* does not know its label 'other' \(it knows a, b, c\)"):
            evaluate(made / "classes", given)
        record, notes = noted(made / "classes", given, EvaluateSettings(skip_unknown_labels=True))
        assert record["rows"]["evaluated"] == 29 and record["rows"]["unknown"] == 1
        assert any("labels that the run does not know are left out: 1" in note for note in notes)
    sets = rows_of("multi-label", 30, 2)
    sets[3]["label"] = "a;d"
    with pytest.raises(TableError, match=r"row 4: .* does not know its label 'd'"):
        evaluate(made / "multi-label", write(sets, tmp_path / "m.csv"), reading=ExtractSettings(label_delimiter=";"))


def test_texts_of_training_are_counted_and_left_out(made: Path, tmp_path: Path) -> None:
    train, new = (pd.read_csv(made / f"classes-{part}.csv") for part in ("train", "new"))
    table = tmp_path / "mixed.csv"
    pd.concat([train[:20], new[:40]]).to_csv(table, index=False)
    record, notes = noted(made / "classes", table)
    assert record["rows"] == {"evaluated": 60, "unknown": 0, "seen": 0, "seen_evaluated": 20}
    assert any("the texts of 20 of 60 rows, whose metrics are too good" in note for note in notes)
    record, notes = noted(made / "classes", table, EvaluateSettings(leave_out_seen=True))
    assert record["rows"] == {"evaluated": 40, "unknown": 0, "seen": 20, "seen_evaluated": 0}
    new[:40].to_csv(tmp_path / "new.csv", index=False)
    alone = evaluate(made / "classes", tmp_path / "new.csv")
    assert_alike(record["metrics"], alone["metrics"])
    assert [line["row"] for line in record["worst"]] == [line["row"] + 20 for line in alone["worst"]]
    with pytest.raises(TableError, match="has no row that is left to evaluate"):
        evaluate(made / "classes", made / "classes-train.csv", EvaluateSettings(leave_out_seen=True))


def test_rows_that_a_run_held_out_are_no_texts_of_training(made: Path, tmp_path: Path) -> None:
    run = train_head(made / "classes-train.h5", tmp_path / "run", TrainSettings(folds=3))
    fields = json.loads((run / "run.json").read_text())
    record = evaluate(run, made / "classes-train.h5", EvaluateSettings(leave_out_seen=True))
    assert record["rows"]["evaluated"] == fields["rows"]["test"]
    assert_alike(record["metrics"], fields["metrics"]["test"])


def test_drift_tells_other_texts_from_those_of_training(made: Path, tmp_path: Path) -> None:
    same = evaluate(made / "classes", made / "classes-new.h5")["drift"]
    assert same["auc_interval"][0] < 0.5 < same["auc_interval"][1]
    assert (same["texts"], same["texts_of_training"]) == (60, 150)
    other = write(rows_of("classes", 60, 3, WORDS[:3]), tmp_path / "other.csv")
    drift = evaluate(made / "classes", other)["drift"]
    assert drift["auc_interval"][0] > 0.7
    assert evaluate(made / "classes", other, EvaluateSettings(drift_sample=0))["drift"] is None


def test_without_the_training_cache_there_is_no_drift_and_it_is_said(made: Path, tiny: Path, tmp_path: Path) -> None:
    extract(made / "classes-train.csv", tmp_path / "moved.h5", tiny)
    run = train_head(tmp_path / "moved.h5", tmp_path / "run", TrainSettings(folds=3))
    (tmp_path / "moved.h5").unlink()
    record, notes = noted(run, made / "classes-new.h5")
    assert record["drift"] is None and record["rows"]["seen_evaluated"] is None
    assert any("no drift, and no count of texts that were in training" in note for note in notes)
    record, _ = noted(run, made / "classes-new.h5", train_cache=made / "classes-train.h5")
    assert record["drift"] is not None
    extract(made / "classes-train.csv", tmp_path / "short.h5", tiny, max_length=8)
    with pytest.raises(IdentityError, match="max_length"):
        evaluate(run, made / "classes-new.h5", train_cache=tmp_path / "short.h5")
    with pytest.raises(IdentityError, match="max_length"):
        evaluate(run, tmp_path / "short.h5")


def test_the_command_writes_a_folder_and_shows_it(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = command_here("evaluate", made / "classes", made / "classes-new.csv", "--out", out, "--worst", 2)
    assert done.returncode == 0, done.stderr
    assert "60 of " in done.stdout and "0.5 is by chance" in done.stdout and "accuracy" in done.stdout
    assert {path.name for path in out.iterdir()} == {"evaluation.json", "predictions.parquet"}
    held = inspect_path(out)
    assert held["kind"] == "evaluation" and len(held["worst"]) == 2
    assert command_here("inspect", out).stdout == done.stdout
    lines, rows = pd.read_parquet(out / "predictions.parquet"), pd.read_csv(made / "classes-new.csv")
    assert lines["part"].unique().tolist() == ["new"] and lines["row"].tolist() == list(range(1, 61))
    assert lines["label"].tolist() == rows["label"].tolist()
    assert lines["prediction"].tolist() == headstart.load(made / "classes").predict(rows["text"]).tolist()
    with pytest.raises(OutputExistsError, match="exists already"):
        evaluate(made / "classes", made / "classes-new.h5", out=out)
