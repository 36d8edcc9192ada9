"""Metrics against scikit-learn, and intervals against what they promise."""

from __future__ import annotations

import numpy as np
from headstart.stages.metrics import bootstrap, evaluate
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sk


@given(st.integers(1, 60), st.integers(2, 5), st.integers(0, 1000))
def test_scores_are_those_of_scikit_learn(rows: int, classes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels, predicted = rng.integers(classes, size=(2, rows))
    names = tuple(f"c{i}" for i in range(classes))
    found = evaluate(labels, predicted, np.arange(rows), names=names)
    numbers = list(range(classes))
    precision, recall, f1, support = sk.precision_recall_fscore_support(
        labels, predicted, labels=numbers, zero_division=0
    )
    for i, name in enumerate(names):
        ours = found["per_class"][name]
        assert np.allclose(
            [ours["precision"], ours["recall"], ours["f1"], ours["rows"]], [precision[i], recall[i], f1[i], support[i]]
        )
        for score in ("precision", "recall"):
            low, high = ours[f"{score}_interval"]
            assert 0 <= low <= high <= 1
    assert np.isclose(found["accuracy"], sk.accuracy_score(labels, predicted))
    assert np.isclose(found["macro_f1"], sk.f1_score(labels, predicted, average="macro"))
    assert found["confusion_matrix"] == sk.confusion_matrix(labels, predicted, labels=numbers).tolist()


def test_an_interval_of_independent_rows_is_the_binomial_one() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=2000)
    predicted = np.where(rng.random(2000) < 0.8, labels, 1 - labels)
    low, high = bootstrap(labels, predicted, np.arange(2000), classes=2, seed=0)["accuracy"]
    accuracy = np.mean(labels == predicted)
    half = 1.96 * np.sqrt(accuracy * (1 - accuracy) / 2000)
    np.testing.assert_allclose([low, high], [accuracy - half, accuracy + half], atol=0.002)


def test_copies_of_texts_do_not_narrow_an_interval() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=500)
    predicted = np.where(rng.random(500) < 0.8, labels, 1 - labels)
    groups = np.arange(500)
    alone = bootstrap(labels, predicted, groups, classes=2, seed=0)["accuracy"]
    copied = bootstrap(*(np.repeat(a, 4) for a in (labels, predicted, groups)), classes=2, seed=0)["accuracy"]
    assert np.allclose(alone, copied, atol=1e-12)


def test_a_matrix_that_nobody_reads_is_left_out() -> None:
    labels = np.arange(300)
    found = evaluate(labels, labels, labels, names=tuple(map(str, labels)))
    assert found["confusion_matrix"] is None
    assert found["accuracy"] == 1


def test_drawing_kinds_of_texts_is_drawing_texts() -> None:
    """Against the plain bootstrap, text by text, with texts of several rows and of mixed labels among them."""
    rng = np.random.default_rng(1)
    groups = np.sort(rng.integers(400, size=1500))
    labels, said = rng.integers(3, size=1500), rng.integers(3, size=400)
    predicted = np.where(rng.random(400) < 0.5, labels[np.searchsorted(groups, np.arange(400)) % 1500], said)[groups]
    ours = bootstrap(labels, predicted, groups, classes=3, seed=0, resamples=4000)["accuracy"]
    scores = []
    for _ in range(4000):
        weights = np.bincount(rng.integers(400, size=400), minlength=400)[groups]
        scores.append(weights[labels == predicted].sum() / weights.sum())
    np.testing.assert_allclose(ours, np.percentile(scores, [2.5, 97.5]), atol=0.003)
