"""Heads that are calibrated, corrected for shares, or have a threshold: as a run keeps, loads and uses them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from extracting import run
from headstart.cache.errors import DamagedError, SettingsError
from headstart.cache.reader import open_cache
from headstart.cli import _with_calibration
from headstart.stages.inspect import inspect_path
from headstart.stages.model import load
from headstart.stages.runs.run import load_head
from headstart.stages.settings import TrainSettings
from headstart.stages.train_head import train_head
from safetensors.numpy import load_file
from sklearn.metrics import log_loss
from tiny import tiny_rows

ROWS = tiny_rows(200)
TEXTS, NAMES = [text for text, _ in ROWS], sorted({label for _, label in ROWS})
SETTINGS = TrainSettings(solver="exact", feature="cls", validation_fraction=0.4)


@pytest.fixture(scope="module")
def cache(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    columns = {"text": TEXTS, "label": [label for _, label in ROWS]}
    return run(columns, tmp_path_factory.mktemp("adjusted") / "c.h5", tiny)[0].path


def test_a_run_keeps_loads_and_uses_all_of_it(cache: Path, tmp_path: Path) -> None:
    share = dict(zip(NAMES, (0.6, 0.4), strict=True))
    settings = dataclasses.replace(SETTINGS, calibrate="auto", prior=share, precision_floor=f"{NAMES[1]}=0.55")
    folder = train_head(cache, tmp_path / "run", settings)
    record, table, head = inspect_path(folder), pd.read_parquet(folder / "predictions.parquet"), load_head(folder)
    losses = record["calibration"]["log_loss"]
    assert record["calibration"]["method"] == min(losses, key=lambda method: losses[method])
    assert set(losses) == {"none", "temperature", "per-class"}
    threshold, features = record["decision"]["threshold"], open_cache(cache).features("cls")
    for part, rows in table.groupby("part"):
        probability = rows[f"probability_{NAMES[1]}"].to_numpy()
        if part == "test":  # validation rows are adjusted by others
            assert (rows["prediction"] == NAMES[1]).tolist() == (probability >= threshold).tolist()
            np.testing.assert_allclose(head.probabilities(features[rows["row"] - 1])[:, 1], probability, atol=1e-5)
            assert np.array(NAMES)[head.predict(features[rows["row"] - 1])].tolist() == rows["prediction"].tolist()
        metrics = record["metrics"][part]
        assert metrics["accuracy"] == pytest.approx((rows["label"] == rows["prediction"]).mean())
        assert sum(each["rows"] for each in metrics["reliability"]) == len(rows)
        assert 0 < metrics["average_precision"] <= 1
    classifier = load(folder)
    probability = classifier.predict_proba(TEXTS)[:, 1]
    assert (classifier.predict(TEXTS) == NAMES[1]).tolist() == (probability >= threshold).tolist()
    assert 0 < (probability >= threshold).sum() != (probability >= 0.5).sum()
    assert json.loads((folder / "run.json").read_text())["version"] == 2  # an older headstart would not apply it


def test_the_default_head_is_adjusted_by_the_rows_of_all_folds(cache: Path, tmp_path: Path) -> None:
    folder = train_head(cache, tmp_path / "run", TrainSettings(calibrate="per-class", decide_by="macro-f1"))
    record, table, head = inspect_path(folder), pd.read_parquet(folder / "predictions.parquet"), load_head(folder)
    assert sorted(table["row"]) == list(range(1, 201)) and table["part"].value_counts()["test"] == 40
    validated, tested = (table[table["part"] == part] for part in ("validation", "test"))
    assert set(validated["fold"]) == {1, 2, 3, 4, 5} and tested["fold"].isna().all()
    for part, rows in (("validation", validated), ("test", tested)):
        probabilities = rows.iloc[:, -2:].to_numpy()
        assert record["metrics"][part]["log_loss"] == pytest.approx(log_loss(rows["label"], probabilities))
        assert record["metrics"][part]["accuracy"] == pytest.approx((rows["label"] == rows["prediction"]).mean())
        for fold, of_fold in rows.groupby("fold", dropna=False):  # whose threshold is of other folds
            said = of_fold["prediction"] == NAMES[1]
            chances = of_fold[f"probability_{NAMES[1]}"]
            assert chances[~said].max() < chances[said].min(), fold
            if part == "test":
                assert chances[~said].max() < record["decision"]["threshold"] <= chances[said].min()
    said = (validated["prediction"] == NAMES[1])[validated["label"] == NAMES[1]]
    assert record["decision"]["validation_recall"] == pytest.approx(said.mean())
    features = open_cache(cache).features(record["settings"]["feature"])[tested["row"] - 1]
    np.testing.assert_allclose(head.probabilities(features), tested.iloc[:, -2:], atol=1e-5)


def test_without_a_threshold_any_headstart_reads_the_run(cache: Path, tmp_path: Path) -> None:
    settings = dataclasses.replace(SETTINGS, calibrate="per-class", prior=f"{NAMES[0]}=0.9,{NAMES[1]}=0.1")
    folder = train_head(cache, tmp_path / "run", settings)
    assert json.loads((folder / "run.json").read_text())["version"] == 1
    assert set(load_file(folder / "head.safetensors")) == {"weight", "bias"}


@pytest.mark.parametrize("bad", [[0.5], [0.5, -1], [0, 1], [0.5, "0.5"], 0.5])
def test_thresholds_that_do_not_fit_are_damage(cache: Path, tmp_path: Path, bad: Any) -> None:
    folder = train_head(cache, tmp_path / "run", dataclasses.replace(SETTINGS, decide_by="macro-f1"))
    assert load_head(folder).thresholds is not None
    path = folder / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "thresholds": bad}))
    with pytest.raises(DamagedError, match="its 'thresholds' are not a number for each of 2 labels"):
        load_head(folder)


def test_shares_of_other_classes_are_refused_before_training(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="`prior` has no share of"):
        train_head(cache, tmp_path / "run", dataclasses.replace(SETTINGS, prior="eggs=1"))
    assert not list(tmp_path.iterdir())


def test_calibrate_may_stand_alone_on_the_command_line() -> None:
    assert _with_calibration(["train-head", "--calibrate", "c.h5"]) == [
        "train-head",
        "--calibrate",
        "temperature",
        "c.h5",
    ]
    assert _with_calibration(["sweep", "c.h5", "--calibrate"]) == ["sweep", "c.h5", "--calibrate", "temperature"]
    assert _with_calibration(["sweep", "--calibrate", "per-class"]) == ["sweep", "--calibrate", "per-class"]
    assert _with_calibration(["predict", "run", "--calibrate"]) == ["predict", "run", "--calibrate"]
