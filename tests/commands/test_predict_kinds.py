"""Predictions of every kind of head: numbers, several labels a row, classes with an order."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import headstart
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from extracting import run
from headstart.cache.errors import DamagedError, FormatError, SettingsError
from headstart.cache.reader import open_cache
from headstart.stages.heads.head import Head, outputs_of
from headstart.stages.predict import predict_table
from headstart.stages.runs.run import RUN, load_head, read_run, write_run
from headstart.stages.settings import Task, TrainSettings
from headstart.stages.train_head import train_head
from processes import command_here
from scipy.special import expit
from tiny import tiny_rows

ROWS = tiny_rows(60)
TEXTS = [text for text, _ in ROWS[:6]]
OF_TASK = {
    Task.MULTI_LABEL: ("a", "b", "c"),
    Task.ORDINAL: ("low", "mid", "high"),
    Task.REGRESSION: (),
}


@pytest.fixture(scope="module")
def made(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a cache, a run of classes, and a run of each other task, whose weights are random."""
    folder = tmp_path_factory.mktemp("kinds")
    run({"text": [text for text, _ in ROWS], "label": [label for _, label in ROWS]}, folder / "c.h5", tiny)
    train_head(folder / "c.h5", folder / "classes", TrainSettings(solver="exact"))
    fields = {k: v for k, v in read_run(folder / "classes").items() if k not in ("format", "version")}
    mean = open_cache(folder / "c.h5").features().mean(axis=0)
    rng, width = np.random.default_rng(0), 32
    shapes = {Task.MULTI_LABEL: (3, 3), Task.ORDINAL: (1, 2), Task.REGRESSION: (1, 1)}
    for task, (outputs, biases) in shapes.items():
        weight = 9 * rng.normal(size=(outputs, width)).astype(np.float32)
        head = dataclasses.replace(
            load_head(folder / "classes"),
            weight=weight,
            bias=-np.sort(rng.normal(size=biases)).astype(np.float32) / 9 - weight @ mean,
            label_names=OF_TASK[task],
            task=task,
        )
        (folder / task).mkdir()
        write_run(folder / task, head, {**fields, "label_names": list(OF_TASK[task])}, [])
    return folder


@pytest.fixture(params=OF_TASK)
def task(request: pytest.FixtureRequest) -> Task:
    return Task(request.param)


def outputs(made: Path, task: Task) -> tuple[Head, Any]:
    """A head, and in float64 what it must say of the first rows of the cache."""
    head = load_head(made / task)
    logits = np.asarray(open_cache(made / "c.h5").features()[: len(TEXTS)], np.float64) @ head.weight.T + head.bias
    if task is Task.REGRESSION:
        return head, logits[:, 0]
    above = expit(logits)
    if task is Task.MULTI_LABEL:
        return head, above
    return head, np.stack([1 - above[:, 0], above[:, 0] - above[:, 1], above[:, 1]], axis=1)


def test_a_head_predicts_what_its_task_says(made: Path, task: Task) -> None:
    head, expected = outputs(made, task)
    model = headstart.load(made / task)
    assert (model.head.task, model.classes_.tolist()) == (task, list(OF_TASK[task]))
    predicted = model.predict(TEXTS)
    assert predicted.shape == (len(TEXTS),)
    if task is Task.REGRESSION:
        np.testing.assert_allclose(predicted, expected, rtol=1e-4, atol=1e-5)
        assert predicted.dtype == np.float64 and type(model.predict(TEXTS[0])) is float
        with pytest.raises(SettingsError, match="predicts numbers, which have no probabilities"):
            model.predict_proba(TEXTS)
        found = headstart.predict(made / task, TEXTS)
        assert found.labels == predicted.tolist() and found.probabilities.shape == (len(TEXTS), 0)
        return
    probabilities = model.predict_proba(TEXTS)
    np.testing.assert_allclose(probabilities, expected, atol=1e-5)
    assert model.predict_proba(TEXTS[0]).shape == (3,)
    names = np.array(head.label_names)
    if task is Task.ORDINAL:
        assert predicted.tolist() == names[expected.argmax(axis=1)].tolist()
        np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)
        assert model.predict(TEXTS[0]) == predicted[0]
    else:
        assert predicted.tolist() == [names[row >= 0.5].tolist() for row in expected]
        assert model.predict(TEXTS[0]) == predicted[0] and len({*map(len, predicted)}) > 1
    assert model.predict([]).tolist() == [] and model.predict_proba([]).shape == (0, 3)


def test_thresholds_decide_which_labels_are_predicted(made: Path, tmp_path: Path) -> None:
    head, expected = outputs(made, Task.MULTI_LABEL)
    fields = {k: v for k, v in read_run(made / Task.MULTI_LABEL).items() if k not in ("format", "version")}
    least = (0.0, float(expected[0, 1]) - 1e-3, 2.0)
    write_run(tmp_path, dataclasses.replace(head, thresholds=least), fields, [])
    model = headstart.load(tmp_path)
    names = np.array(head.label_names)
    assert model.predict(TEXTS).tolist() == [names[row >= least].tolist() for row in expected]
    (tmp_path / RUN.file).write_text(json.dumps({**read_run(tmp_path), "thresholds": [0.5]}))
    with pytest.raises(DamagedError, match="its 'thresholds' are not a number for each of 3 labels"):
        load_head(tmp_path)


def test_outputs_of_far_logits_are_finite() -> None:
    far = np.array([[1e6, -1e6], [-1e6, -1e6]])
    for task in (Task.CLASSES, Task.MULTI_LABEL, Task.ORDINAL):
        found = outputs_of(task, far)
        assert np.isfinite(found).all() and (found >= 0).all() and (found <= 1).all()


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_a_table_holds_the_predictions(made: Path, tmp_path: Path, task: Task, suffix: str) -> None:
    source, out = tmp_path / "t.jsonl", tmp_path / f"out.{suffix}"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in [*TEXTS, " "]))
    done = command_here("predict", made / task, "--input", source, "--out", out, "--skip-bad-rows")
    assert done.returncode == 0, done.stderr
    expected = headstart.load(made / task).predict(TEXTS).tolist()
    rows: list[dict[str, Any]]
    if suffix == "parquet":
        rows = pa.parquet.read_table(out).to_pylist()
    elif suffix == "jsonl":
        rows = [json.loads(line) for line in out.read_text().splitlines()]
    else:
        with out.open(newline="") as file:
            rows = list(csv.DictReader(file))
    found = [row["prediction"] for row in rows]
    if suffix == "csv":
        assert found.pop() == ""
        found = [float(cell) for cell in found] if task is Task.REGRESSION else found
        found = [list(filter(None, cell.split(";"))) for cell in found] if task is Task.MULTI_LABEL else found
    else:
        assert found.pop() is None
    np.testing.assert_allclose(found, expected, rtol=1e-5) if task is Task.REGRESSION else None
    assert task is Task.REGRESSION or found == expected
    shown = [name for name in rows[0] if name.startswith("probability_")]
    assert shown == [f"probability_{name}" for name in OF_TASK[task]]


def test_a_delimiter_in_a_label_is_refused(made: Path, tmp_path: Path) -> None:
    options: Any = {"label_delimiter": "a"}
    with pytest.raises(SettingsError, match="the label 'a' holds 'a'; choose another `label_delimiter`"):
        predict_table(made / Task.MULTI_LABEL, {"text": TEXTS}, tmp_path / "o.csv", **options)
    predict_table(made / Task.MULTI_LABEL, {"text": TEXTS}, tmp_path / "o.jsonl", **options)


def test_predictions_are_shown(made: Path, task: Task) -> None:
    done = command_here("predict", made / task, *TEXTS[:2])
    assert done.returncode == 0, done.stderr
    said = [line.split("\t") for line in done.stdout.splitlines()]
    predicted = headstart.load(made / task).predict(TEXTS[:2]).tolist()
    assert [cells[-1] for cells in said] == TEXTS[:2]
    if task is Task.REGRESSION:
        np.testing.assert_allclose([float(cells[0]) for cells in said], predicted, rtol=1e-4)
    else:
        assert [cells[0] for cells in said] == [", ".join([p] if isinstance(p, str) else p) for p in predicted]


def test_an_older_headstart_refuses_what_it_would_misread(made: Path, task: Task) -> None:
    assert json.loads((made / task / RUN.file).read_text())["version"] == 2
    assert json.loads((made / "classes" / RUN.file).read_text())["version"] == 1


@pytest.mark.parametrize(
    ("harm", "error", "message"),
    [
        (lambda fields: fields.update(task="ranking"), FormatError, "its task is 'ranking', .*: upgrade"),
        (lambda fields: fields.update(task="auto"), FormatError, "its task is 'auto'"),
        (lambda fields: fields.update(task="ordinal"), DamagedError, "for 3 classes"),
        (lambda fields: fields.update(task="regression"), DamagedError, "for numbers"),
        (lambda fields: fields.update(label_names=[]), DamagedError, "not a list of distinct names"),
        (lambda fields: fields.update(version=3), FormatError, "is of version 3; this headstart reads up to 2"),
    ],
)
def test_a_run_that_contradicts_itself_is_refused(
    made: Path, tmp_path: Path, harm: Callable[[dict[str, Any]], None], error: type[Exception], message: str
) -> None:
    fields = json.loads((made / Task.MULTI_LABEL / RUN.file).read_text())
    harm(fields)
    if fields["task"] == "regression":
        fields["label_names"] = []
    (tmp_path / RUN.file).write_text(json.dumps(fields))
    (tmp_path / "head.safetensors").write_bytes((made / Task.MULTI_LABEL / "head.safetensors").read_bytes())
    with pytest.raises(error, match=message):
        load_head(tmp_path)
