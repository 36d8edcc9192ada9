"""``predictions.parquet``: where each validation and test row stands in the table, and what the head says of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from extracting import run
from headstart.cache.errors import OutputExistsError
from headstart.cache.reader import open_cache
from headstart.stages.heads.dataset import Dataset, Origin
from headstart.stages.heads.head import Head
from headstart.stages.inspect import inspect_path
from headstart.stages.progress import silent
from headstart.stages.runs.predictions import PartPredictions, write_predictions
from headstart.stages.runs.run import load_head
from headstart.stages.settings import SweepSettings, TrainSettings
from headstart.stages.splits.divide import divide
from headstart.stages.sweep import sweep
from headstart.stages.train_head import train_head
from sklearn.metrics import f1_score, log_loss
from tiny import tiny_rows

ROWS = tiny_rows(150, classes=3)
BAD = (0, 7, 70)
"""The places of rows without text."""
TABLE = [("" if place in BAD else text, label) for place, (text, label) in enumerate(ROWS)]
SOLVERS: dict[str, Any] = {"sgd": {"epochs": 3, "calibrate": True}, "exact": {"folds": 4, "fold": 3}}


@pytest.fixture(scope="module")
def cache(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    columns = {"text": [text for text, _ in TABLE], "label": [label for _, label in TABLE]}
    return run(columns, tmp_path_factory.mktemp("rows") / "c.h5", tiny, skip_bad_rows=True)[0].path


def read(folder: Path) -> pd.DataFrame:
    return pd.read_parquet(folder / "predictions.parquet")


@pytest.mark.parametrize("solver", SOLVERS)
def test_each_row_is_that_of_the_table(cache: Path, tmp_path: Path, solver: str) -> None:
    settings = TrainSettings(feature="cls", solver=solver, **SOLVERS[solver])
    folder = train_head(cache, tmp_path / "run", settings)
    table, opened, head = read(folder), open_cache(cache), load_head(folder)
    assert inspect_path(folder)["predictions"] == str(folder / "predictions.parquet")
    splits, places = divide(opened, None, None, settings=settings, report=silent), np.delete(np.arange(150), BAD)
    for part, split in (("validation", splits.validation), ("test", splits.test)):
        rows = table[table["part"] == part]
        assert rows["row"].tolist() == (places[split.index] + 1).tolist()
        assert rows["fold"].dropna().tolist() == ([3] * len(split) if part == "validation" and settings.folds else [])
        for row in rows.to_dict("records"):
            text, label = TABLE[row["row"] - 1]
            assert row["text_hash"] == hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
            assert row["label"] == label
        features = opened.features("cls")[split.index]
        predicted = np.array(head.label_names)[head.predict(features)]
        assert rows["prediction"].tolist() == predicted.tolist()
        probabilities = rows[[f"probability_class{number}" for number in range(3)]]
        if part == "test" or not SOLVERS[solver].get("calibrate"):  # by which validation rows have maps of other folds
            np.testing.assert_allclose(probabilities, head.probabilities(features), atol=1e-6)
        assert (rows["prediction_probability"] == probabilities.max(axis=1)).all()
        assert all(row[f"probability_{row['label']}"] == row["label_probability"] for _, row in rows.iterrows())
        metrics = json.loads((folder / "run.json").read_text())["metrics"][part]
        assert (rows["label"] == rows["prediction"]).mean() == pytest.approx(metrics["accuracy"])
        assert f1_score(rows["label"], rows["prediction"], average="macro") == pytest.approx(metrics["macro_f1"])
        assert log_loss(rows["label"], probabilities) == pytest.approx(metrics["log_loss"])


def test_rows_of_another_cache_are_numbered_as_in_its_table(tiny: Path, cache: Path, tmp_path: Path) -> None:
    rows = tiny_rows(40, seed=8, classes=3)
    columns = {"text": ["", *(text for text, _ in rows)], "label": ["class0", *(label for _, label in rows)]}
    test = run(columns, tmp_path / "test.h5", tiny, skip_bad_rows=True)[0].path
    labels = dict(ROWS)
    table = read(train_head(cache, tmp_path / "run", TrainSettings(solver="exact"), test=test))
    tested, validated = (table[table["part"] == part] for part in ("test", "validation"))
    assert tested["row"].tolist() == list(range(2, 42)) and tested["label"].tolist() == columns["label"][1:]
    assert validated["label"].tolist() == [labels[TABLE[row - 1][0]] for row in validated["row"]]


def test_the_winner_of_a_sweep_has_it_and_both_are_overwritten(cache: Path, tmp_path: Path) -> None:
    settings = SweepSettings(base=TrainSettings(solver="exact", folds=3), values={"l2": (0.1, 10.0)})
    command: Callable[..., Path]
    for command, wanted, place in ((sweep, settings, "winner"), (train_head, settings.base, "")):
        out = tmp_path / f"out-{place}"
        file = command(cache, out, wanted) / place / "predictions.parquet"
        content = file.read_bytes()
        file.unlink()
        assert (command(cache, out, wanted, overwrite=True) / place / file.name).read_bytes() == content
        (file.parent / "predictions.parquet.bak").touch()
        with pytest.raises(OutputExistsError, match=r"predictions\.parquet\.bak was not made by headstart"):
            command(cache, out, wanted, overwrite=True)


def test_of_very_many_classes_two_probabilities_are_written(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    scores, labels = rng.normal(size=(20, 257)), rng.integers(257, size=30)
    probabilities = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    origin = Origin(text_hashes=rng.integers(256, size=(30, 16)).astype(np.uint8), row_numbers=None)
    dataset = Dataset(features=np.zeros((30, 1)), labels=labels, index=np.arange(5, 25), origin=origin)
    part = PartPredictions(part="test", dataset=dataset, outputs=probabilities)
    fields: Any = {"weight": np.zeros((257, 1)), "bias": np.zeros(257), "identity": None}
    write_predictions(tmp_path, Head(label_names=tuple(map(str, range(257))), **fields), [part])
    table = read(tmp_path)
    assert [name for name in table if "probability" in name] == ["label_probability", "prediction_probability"]
    assert table["row"].tolist() == list(range(6, 26)) and table["label"].tolist() == list(map(str, labels[5:25]))
    np.testing.assert_allclose(table["label_probability"], probabilities[np.arange(20), labels[5:25]])
    np.testing.assert_allclose(table["prediction_probability"], probabilities.max(axis=1))
