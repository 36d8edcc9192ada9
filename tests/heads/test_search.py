"""The search: what it chooses is what scikit-learn's heads, fitted fold by fold, say is best; then all rows train."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from headstart.stages.heads.dataset import Dataset, Splits
from headstart.stages.heads.search import search
from headstart.stages.heads.targets import ClassTarget
from headstart.stages.progress import Event, Note
from headstart.stages.settings import Metric, Scaling, TrainSettings
from headstart.stages.types import Features, Indices

TARGET = ClassTarget(("a", "b", "c"))


def made(features: Features, labels: Indices, *, fold: Indices | None) -> Splits:
    """200 rows to train on, the next 50 to validate on if there are no folds, and the rest to test on."""
    train, validation, test = np.arange(200), np.arange(200, 250), np.arange(250, len(labels))
    if fold is not None:
        validation = validation[:0]
    parts = {
        name: Dataset(features=features, labels=labels, index=index)
        for name, index in (("train", train), ("validation", validation), ("test", test))
    }
    return Splits(**parts, train_groups=train, validation_groups=validation, test_groups=test, shared_rows=0, fold=fold)


def data() -> tuple[Features, Features, Indices]:
    """Features of noise, and features with the labels in the direction of vectors whose lengths say nothing."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 300)
    noise = rng.normal(size=(300, 8)).astype(np.float32)
    told = np.eye(3, 8)[labels] + 0.3 * rng.normal(size=(300, 8))
    return noise, (told * rng.lognormal(sigma=2, size=(300, 1))).astype(np.float32), labels


def test_folds_choose_feature_scaling_and_penalty_as_scikit_learn_does() -> None:
    linear_model, metrics = pytest.importorskip("sklearn.linear_model"), pytest.importorskip("sklearn.metrics")
    noise, told, labels = data()
    fold = np.random.default_rng(1).integers(1, 4, 200)
    splits = {name: made(features, labels, fold=fold) for name, features in (("noise", noise), ("told", told))}
    found = search(splits, target=TARGET, settings=TrainSettings())
    assert (found.feature, found.scaling, found.search.folds, found.search.rows) == ("told", "normalized", 3, 200)
    rows = told.astype(np.float64) / np.linalg.norm(told.astype(np.float64), axis=1, keepdims=True)
    tried = [c for c in found.search.candidates if (c.feature, c.scaling) == ("told", "normalized")]
    best = min(found.search.candidates, key=lambda c: c.mean)
    assert best.spread is not None and (best.feature, best.scaling) == ("told", "normalized") and len(tried) >= 3
    enough = [c for c in tried if c.mean <= best.mean + best.spread / 3**0.5 and best.l2 <= c.l2 < 1.8 * best.l2]
    assert found.search.choice == max(enough, key=lambda c: c.l2), (
        "a quarter of a decade larger, if within a standard error"
    )
    for candidate in tried:
        said, losses = np.zeros((200, 3)), []
        for number in (1, 2, 3):
            kept, out = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
            model = linear_model.LogisticRegression(C=1 / candidate.l2, tol=1e-8, max_iter=10_000)
            said[out] = model.fit(rows[kept], labels[kept]).predict_proba(rows[out])
            losses.append(metrics.log_loss(labels[out], said[out], labels=[0, 1, 2]))
        assert candidate.mean == pytest.approx(metrics.log_loss(labels[:200], said), abs=1e-3)
        assert candidate.spread == pytest.approx(np.std(losses, ddof=1), abs=1e-3)
        assert (candidate.lowest, candidate.highest) == pytest.approx((min(losses), max(losses)), abs=1e-3)
    choice = found.search.choice
    assert choice is not None
    model = linear_model.LogisticRegression(C=1 / choice.l2, tol=1e-10, max_iter=10_000)  # then all rows train
    model.fit(rows[:200], labels[:200])
    np.testing.assert_allclose(found.fit.parameters["weight"], model.coef_, atol=1e-3)
    assert found.validated.scores.shape == (200, 3) and found.validated.fold is not None
    np.testing.assert_array_equal(found.validated.fold, fold)


@pytest.mark.parametrize("metric", [metric for metric in TARGET.metrics if metric is not Metric.LOG_LOSS])
def test_the_metric_is_what_folds_choose_by(metric: Metric) -> None:
    _, told, labels = data()
    splits = {"told": made(told, labels, fold=np.random.default_rng(1).integers(1, 4, 200))}
    found = search(splits, target=TARGET, settings=TrainSettings(metric=metric)).search
    best = max(candidate.mean for candidate in found.candidates)
    assert found.choice is not None and found.choice.mean == pytest.approx(best, rel=2e-6)
    equal = [candidate for candidate in found.candidates if candidate.mean == best]
    same_way = [c for c in equal if (c.feature, c.scaling) == (found.choice.feature, found.choice.scaling)]
    assert found.choice.l2 == max(candidate.l2 for candidate in same_way), "the larger penalty, where means are equal"


def test_vectors_of_length_one_are_not_normalised_again() -> None:
    noise, _, labels = data()
    splits = {"noise": made(noise, labels, fold=np.arange(200) % 3 + 1)}
    found = search(splits, target=TARGET, settings=TrainSettings(), of_length_one={"noise"})
    assert {candidate.scaling for candidate in found.search.candidates} == {Scaling.NONE, Scaling.STANDARDIZED}


def test_validation_rows_choose_where_there_are_no_folds() -> None:
    noise, told, labels = data()
    splits = {"noise": made(noise, labels, fold=None), "told": made(told, labels, fold=None)}
    found = search(splits, target=TARGET, settings=TrainSettings())
    assert (found.feature, found.search.folds, found.search.rows) == ("told", 0, 50)
    choice = found.search.choice
    assert choice is not None and choice.spread is None
    flipped = dataclasses.replace(splits["told"].validation, labels=(labels + 1) % 3)
    other = {
        name: dataclasses.replace(each, validation=dataclasses.replace(each.validation, labels=flipped.labels))
        for name, each in splits.items()
    }
    assert search(other, target=TARGET, settings=TrainSettings()).search.choice != choice


def test_a_head_is_trained_also_where_no_label_has_two_texts() -> None:
    _, told, labels = data()
    events: list[Event] = []
    fold = np.zeros(200, np.int64)
    found = search(
        {"told": made(told, labels, fold=fold)}, target=TARGET, settings=TrainSettings(), report=events.append
    )
    assert found.search.candidates == () and found.search.choice is None and len(found.validated.dataset) == 0
    assert (found.scaling, found.fit.parameters["weight"].shape) == ("normalized", (3, 8))
    assert any("to choose a head by" in event.text for event in events if isinstance(event, Note))
