"""Metrics against scikit-learn, and intervals against known distributions."""

from __future__ import annotations

import numpy as np
from headstart.stages.heads.metrics import bootstrap, bootstrap_means, calibration_gaps, evaluate
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sk


@given(st.integers(1, 60), st.integers(2, 5), st.integers(0, 1000))
def test_scores_equal_scikit_learns(rows: int, classes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=rows)
    names = tuple(f"c{i}" for i in range(classes))
    probabilities = rng.dirichlet(np.ones(classes), size=rows)
    predicted = probabilities.argmax(axis=1)
    found = evaluate(labels, np.log(probabilities), np.arange(rows), names=names)
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
    assert np.isclose(found["weighted_f1"], sk.f1_score(labels, predicted, average="weighted", zero_division=0))
    assert np.isclose(found["log_loss"], sk.log_loss(labels, probabilities, labels=numbers))
    for score in ("accuracy", "macro_f1", "weighted_f1", "log_loss", "calibration_error"):
        low, high = found[f"{score}_interval"]
        assert 0 <= low <= high
    assert np.isclose(found["macro_f1"], sk.f1_score(labels, predicted, average="macro"))
    assert found["confusion_matrix"] == sk.confusion_matrix(labels, predicted, labels=numbers).tolist()


def test_the_interval_of_independent_rows_is_binomial() -> None:
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


def test_a_confusion_matrix_of_many_classes_is_left_out() -> None:
    labels = np.arange(300)
    found = evaluate(labels, np.log(np.eye(300) + 1e-9), labels, names=tuple(map(str, labels)))
    assert found["confusion_matrix"] is None
    assert found["accuracy"] == 1


def test_the_bootstrap_over_kinds_of_texts_equals_the_bootstrap_over_texts() -> None:
    """Compared with a plain bootstrap, text by text. Some texts have several rows and different labels."""
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


def test_the_calibration_error_is_the_gap_between_confidence_and_accuracy() -> None:
    """Compared with the definition, bin by bin; it is near zero if the labels are drawn from the probabilities."""
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet([0.5] * 4, size=20_000)
    honest = np.array([rng.choice(4, p=row) for row in probabilities])
    wrong = rng.integers(4, size=20_000)
    for labels in (honest, wrong):
        confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
        expected = 0.0
        for low in np.arange(15) / 15:
            inside = (confidence > low) & (confidence <= low + 1 / 15)
            if inside.any():
                expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
        found = evaluate(labels, np.log(probabilities), np.arange(20_000), names=tuple("abcd"))["calibration_error"]
        assert np.isclose(found, expected)
        assert found < 0.02 if labels is honest else found > 0.3


def test_the_interval_of_the_log_loss_is_a_mean_over_texts() -> None:
    rng = np.random.default_rng(0)
    losses = rng.exponential(size=3000)
    gaps = np.zeros((3000, 15))
    low, high = bootstrap_means(losses, gaps, np.arange(3000), seed=0)["log_loss"]
    half = 1.96 * losses.std() / np.sqrt(3000)
    np.testing.assert_allclose([low, high], [losses.mean() - half, losses.mean() + half], atol=0.004)
    copied = bootstrap_means(np.repeat(losses, 3), np.repeat(gaps, 3, axis=0), np.repeat(np.arange(3000), 3), seed=0)
    np.testing.assert_allclose(copied["log_loss"], [low, high])


def test_a_row_has_its_gap_in_one_bin() -> None:
    gaps = calibration_gaps(np.array([0, 1]), np.log([[0.9, 0.1], [0.9, 0.1]]))
    assert [np.flatnonzero(row).tolist() for row in gaps] == [[13], [13]]
    np.testing.assert_allclose(gaps[:, 13], [0.1, -0.9])
