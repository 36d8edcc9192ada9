"""Kinds of target: a search chooses, trains and scores heads of each by the methods of `Target` alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from headstart.stages.heads.dataset import Dataset, Splits
from headstart.stages.heads.search import search
from headstart.stages.heads.targets import Folds, target_of
from headstart.stages.settings import Metric, Scaling, Task, TrainSettings
from headstart.stages.threads import open_threads
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.multiclass import OneVsRestClassifier

NAMES = ("low", "middle", "high")
TASKS = (Task.CLASSES, Task.MULTI_LABEL, Task.REGRESSION, Task.ORDINAL)


def rows_of(task: Task, rows: int = 240) -> tuple[Any, Any]:
    """Features (rows, 6) float32 and values."""
    rng = np.random.default_rng(0)
    features = (rng.normal(size=(rows, 6)) + 2).astype(np.float32)
    hidden = features @ rng.normal(size=(6, 3)) + rng.logistic(size=(rows, 3))
    hidden -= hidden.mean(0)
    values = {
        Task.CLASSES: hidden.argmax(1),
        Task.MULTI_LABEL: (hidden > [0, 1, -1]).astype(np.uint8),
        Task.REGRESSION: hidden[:, 0] + 1000,
        Task.ORDINAL: np.digitize(hidden[:, 0], [-1, 1]),
    }
    return features, values[task]


def splits_of(task: Task) -> Splits:
    features, values = rows_of(task)
    parts = [Dataset(features=features, labels=values, index=index) for index in np.split(np.arange(240), [160, 160])]
    texts = np.arange(240)
    return Splits(
        train=parts[0],
        validation=parts[1],
        test=parts[2],
        train_groups=texts[:160],
        validation_groups=texts[:0],
        test_groups=texts[160:],
        shared_rows=0,
        fold=texts[:160] % 4 + 1,
    )


@pytest.mark.parametrize("task", TASKS)
def test_a_search_finds_a_head_of_each_kind(task: Task) -> None:
    splits, target = splits_of(task), target_of(task, NAMES)
    found = search({"mean": splits}, target=target, settings=TrainSettings())
    choice = found.search.choice
    assert choice is not None and choice.converged and choice.spread is not None
    assert choice.mean <= min(candidate.mean for candidate in found.search.candidates) + choice.spread
    assert target.measure(Metric.LOG_LOSS, found.validated.dataset.targets, found.validated.scores) == choice.mean
    assert len({candidate.scaling for candidate in found.search.candidates}) == len(Scaling)
    inputs = splits.test.take(slice(None))
    if found.scaling is Scaling.NORMALIZED:
        inputs /= np.linalg.norm(inputs, axis=1, keepdims=True)
    scores = inputs @ found.fit.parameters["weight"].T + found.fit.parameters["bias"]
    assert scores.shape == (80, target.outputs)
    metrics = target.evaluate(splits.test.targets, scores, splits.test_groups)
    expected = {
        Task.CLASSES: ("accuracy", 0.55),
        Task.MULTI_LABEL: ("micro_f1", 0.7),
        Task.REGRESSION: ("r2", 0.3),
        Task.ORDINAL: ("quadratic_kappa", 0.4),
    }
    name, least = expected[task]
    assert metrics[name] > least
    for metric in target.metrics:
        assert np.isfinite(target.measure(metric, splits.test.targets, scores))
    agreed = target.predict(scores) == splits.test.targets
    if task in (Task.CLASSES, Task.ORDINAL):
        assert agreed.mean() == metrics["accuracy"] == target.measure(Metric.ACCURACY, splits.test.targets, scores)
    if task is Task.MULTI_LABEL:
        assert agreed.all(axis=1).mean() == metrics["subset_accuracy"]
        assert target.measure(Metric.MACRO_F1, splits.test.targets, scores) == metrics["macro_f1"]


@pytest.mark.parametrize("scaling", Scaling)
@pytest.mark.parametrize("task", [Task.MULTI_LABEL, Task.REGRESSION])
def test_parameters_for_raw_features_are_those_of_scikit_learn(task: Task, scaling: Scaling) -> None:
    features, values = rows_of(task)
    train = Dataset(features=features, labels=values, index=np.arange(len(values)))
    with open_threads() as threads:
        solver = target_of(task, NAMES).solver(train, scaling=scaling, settings=TrainSettings(), threads=threads)
        parameters, report = solver.solve(0.5, lambda iteration: None)
    inputs = features.astype(np.float64)
    if scaling is Scaling.NORMALIZED:
        inputs = raw = inputs / np.linalg.norm(inputs, axis=1, keepdims=True)
    else:
        raw = inputs
        inputs = (inputs - inputs.mean(0)) / (inputs.std(0) if scaling is Scaling.STANDARDIZED else 1)
    ours = raw @ parameters["weight"].T.astype(np.float64) + parameters["bias"]
    assert report.converged
    if task is Task.REGRESSION:
        np.testing.assert_allclose(ours[:, 0], Ridge(alpha=0.5).fit(inputs, values).predict(inputs), atol=1e-3)
    else:
        model = OneVsRestClassifier(LogisticRegression(C=2, tol=1e-8, max_iter=1000)).fit(inputs, values)
        np.testing.assert_allclose(1 / (1 + np.exp(-ours)), model.predict_proba(inputs), atol=1e-4)


@pytest.mark.parametrize("task", TASKS)
def test_each_row_of_a_path_is_scored_without_it(task: Task) -> None:
    """Other labels of the rows of a fold change nothing of these rows' own scores."""
    features, values = rows_of(task, 60)
    fold, target, scores = np.arange(60) % 3 + 1, target_of(task, NAMES), []
    for changed in (values, np.where((fold == 2).reshape(-1, *[1] * (values.ndim - 1)), values[::-1], values)):
        train = Dataset(features=features, labels=changed, index=np.arange(60))
        folds = Folds(fold=fold, folds=3, groups=np.arange(60))
        options: dict[str, Any] = {"scaling": Scaling.NONE, "settings": TrainSettings(folds=3)}
        with open_threads() as threads:
            (point,) = target.path(train, folds, **options, threads=threads).solve([1.0], lambda: None)
        scores.append(point.logits)
    np.testing.assert_allclose(scores[0][fold == 2], scores[1][fold == 2], atol=2e-3)
    assert np.abs(scores[0][fold == 1] - scores[1][fold == 1]).max() > 0.01


def test_numbers_are_chosen_for_by_leaving_out_one_text_at_a_time() -> None:
    features, values = rows_of(Task.REGRESSION, 30)
    groups = np.arange(30) // 2  # two rows of each text, which has one vector
    features[1::2] = features[::2]
    train, target = Dataset(features=features, labels=values, index=np.arange(30)), target_of(Task.REGRESSION, ())
    folds = Folds(fold=groups % 3 + 1, folds=3, groups=groups)
    options: dict[str, Any] = {"scaling": Scaling.NONE, "settings": TrainSettings()}
    with open_threads() as threads:
        (point,) = target.path(train, folds, **options, threads=threads).solve([0.5], lambda: None)
    for row in range(30):
        others = groups != groups[row]
        alone = Ridge(alpha=0.5).fit(features[others], values[others]).predict(features[[row]])
        assert point.logits[row, 0] == pytest.approx(alone[0], rel=1e-6)


def test_numbers_that_features_hardly_tell_get_a_head_that_is_hardly_worse_than_their_mean() -> None:
    """The penalty that this needs is larger than those of classes."""
    rng = np.random.default_rng(0)
    features = (rng.normal(size=(1500, 40)) * np.logspace(0, -1, 40)).astype(np.float32)
    signal = features @ rng.normal(size=40)
    values = 0.1 * signal / signal.std() + rng.normal(size=1500)
    parts = [Dataset(features=features, labels=values, index=rows) for rows in np.split(np.arange(1500), [1200, 1200])]
    texts = np.arange(1500)
    splits = Splits(
        train=parts[0],
        validation=parts[1],
        test=parts[2],
        train_groups=texts[:1200],
        validation_groups=texts[:0],
        test_groups=texts[1200:],
        shared_rows=0,
        fold=texts[:1200] % 5 + 1,
    )
    target = target_of(Task.REGRESSION, ())
    found = search({"mean": splits}, target=target, settings=TrainSettings(), of_length_one={"mean"})
    choice = found.search.choice
    assert choice is not None and choice.l2 < max(
        candidate.l2 for candidate in found.search.candidates if candidate.scaling is choice.scaling
    )
    predicted = splits.test.take(slice(None)) @ found.fit.parameters["weight"][0] + found.fit.parameters["bias"]
    errors = splits.test.targets - predicted
    assert (errors**2).mean() < 1.005 * splits.test.targets.var()
