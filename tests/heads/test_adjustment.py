"""A head that is adjusted: what is folded into its weights is what was asked for, and thresholds are the best ones."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from headstart.cache.errors import SettingsError
from headstart.stages.heads.adjustment import Adjusted, adjust, best_threshold, require_adjustable
from headstart.stages.heads.calibration import fit_map, map_by_folds
from headstart.stages.heads.head import Head
from headstart.stages.settings import Calibration, Decision, TrainSettings
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from scipy.special import log_softmax, softmax
from sklearn import metrics as sk

NAMES = ("ham", "spam")
RNG = np.random.default_rng(0)
FEATURES = RNG.normal(size=(400, 5)).astype(np.float32)
LABELS = (FEATURES[:, 0] + RNG.normal(size=400) > 1).astype(np.int64)
FOLD = np.arange(400) % 5 + 1
HEAD = Head(
    weight=np.stack([-3 * np.eye(5)[0], 2 * np.eye(5)[0]]).astype(np.float32),
    bias=np.array([0.5, -1], np.float32),
    label_names=NAMES,
    identity=None,  # type: ignore[arg-type]
)
SUPPORT = np.bincount(LABELS)


def adjusted(head: Head = HEAD, *, own: bool = True, **options: Any) -> Adjusted:
    settings = TrainSettings(**options)
    scores = head.logits(FEATURES)
    return adjust(head, settings, scores=scores, labels=LABELS, fold=FOLD, support=SUPPORT, own=own)


@pytest.mark.parametrize(
    "head",
    [HEAD, dataclasses.replace(HEAD, hidden_weight=np.eye(5, dtype=np.float32), hidden_bias=np.ones(5, np.float32))],
)
@pytest.mark.parametrize("method", ["temperature", "per-class"])
def test_a_map_and_a_prior_are_folded_into_the_head(head: Head, method: str) -> None:
    shares = {"ham": 0.99, "spam": 0.01}
    found = adjusted(head, calibrate=method, prior=shares)
    logits = fit_map(Calibration(method), head.logits(FEATURES), LABELS)(head.logits(FEATURES))
    expected = log_softmax(logits + np.log([0.99, 0.01]) - np.log(SUPPORT / 400), axis=1)
    np.testing.assert_allclose(found.head.log_probabilities(FEATURES), expected, atol=1e-4)
    np.testing.assert_allclose(log_softmax(found.logits, axis=1), expected, atol=1e-5)
    assert found.record["prior"]["expected"] == shares
    assert found.record["calibration"]["method"] == method


def test_a_prior_is_the_shares_of_bayes_rule() -> None:
    """Of a world with two values, told apart a little: the probabilities of rows drawn with other shares."""
    chance = np.array([[0.7, 0.3], [0.2, 0.8]])  # of each value, by class
    for trained, expected in (([0.5, 0.5], [0.9, 0.1]), ([0.3, 0.7], [0.6, 0.4])):
        joint = chance * np.array(trained)[:, None]
        scores = np.log(joint / joint.sum(axis=0)).T.astype(np.float32)
        settings = TrainSettings(prior=dict(zip(NAMES, expected, strict=True)))
        support = np.array(trained) * 1000
        labels = np.array([0, 1])
        found = adjust(HEAD, settings, scores=scores, labels=labels, fold=labels, support=support, own=True)  # type: ignore[arg-type]
        wanted = chance * np.array(expected)[:, None]
        np.testing.assert_allclose(softmax(found.logits, axis=1), (wanted / wanted.sum(axis=0)).T, rtol=1e-5)


def test_balanced_weights_are_a_prior_of_equal_shares() -> None:
    found = adjusted(class_weight="balanced", prior="ham=0.5,spam=0.5")
    np.testing.assert_allclose(
        log_softmax(found.logits, axis=1), log_softmax(HEAD.logits(FEATURES).astype(float), axis=1), atol=1e-5
    )


def test_logits_of_folds_are_calibrated_by_maps_of_the_other_folds() -> None:
    scores = HEAD.logits(FEATURES)
    found = adjusted(own=False, calibrate="per-class")
    expected = log_softmax(map_by_folds(Calibration.PER_CLASS, scores, LABELS, FOLD), axis=1)
    np.testing.assert_allclose(log_softmax(found.logits, axis=1), expected, atol=1e-5)
    np.testing.assert_allclose(found.head.weight, adjusted(calibrate="per-class").head.weight)


@examples(max_examples=60)
@given(st.integers(2, 40), st.integers(0, 1000), st.sampled_from(["accuracy", "macro-f1", 0.4, 0.9]))
def test_no_other_threshold_is_better(rows: int, seed: int, by: Any) -> None:
    """Compared with every threshold, by scikit-learn's scores."""
    rng = np.random.default_rng(seed)
    probability, is_label = rng.integers(1, 12, rows) / 12, rng.random(rows) < 0.5
    floor = by if isinstance(by, float) else None
    metric = Decision.NONE if floor else Decision(by)
    found = best_threshold(probability, is_label, np.ones(rows), metric=metric, floor=floor)

    def score(threshold: float) -> float:
        said = probability >= threshold
        if floor is None:
            plain = sk.accuracy_score if by == "accuracy" else sk.f1_score
            return float(
                plain(
                    is_label,
                    said,
                    **({} if by == "accuracy" else {"average": "macro", "labels": [0, 1], "zero_division": 0}),
                )
            )
        precise = sk.precision_score(is_label, said, zero_division=0) >= floor
        return float(sk.recall_score(is_label, said, zero_division=0)) if precise else 0.0

    best = max(score(threshold) for threshold in np.arange(1, 26) / 24)
    if found is None:
        assert floor and best == 0
    else:
        assert score(found) == pytest.approx(best) and found not in probability


@pytest.mark.parametrize(("label", "number"), [("spam", 1), ("ham", 0)])
def test_a_head_predicts_by_its_threshold(label: str, number: int) -> None:
    found = adjusted(precision_floor=f"{label}=0.8")
    decision = found.record["decision"]
    said = found.head.predict(FEATURES) == number
    assert said.tolist() == (found.head.probabilities(FEATURES)[:, number] >= decision["threshold"]).tolist()
    assert sk.precision_score(number == LABELS, said) == pytest.approx(decision["validation_precision"])
    assert decision["validation_precision"] >= 0.8
    assert sk.recall_score(number == LABELS, said) == pytest.approx(decision["validation_recall"])
    assert 0 < said.mean() < 1 and decision["label"] == label


def test_a_precision_holds_with_the_shares_that_are_expected() -> None:
    """Of rare spam, fewer rows are found than of frequent spam."""
    rare, frequent = (adjusted(precision_floor="spam=0.7", prior=f"ham={1 - s},spam={s}") for s in (0.02, 0.5))
    counts = [(found.head.predict(FEATURES) == 1).sum() for found in (rare, frequent)]
    assert 0 < counts[0] < counts[1]


def test_what_does_not_fit_is_refused() -> None:
    for options, names, message in (
        ({"prior": "ham=0.5,eggs=0.5"}, NAMES, "`prior` has no share of 'spam'"),
        ({"prior": "ham=0.5,spam=0.4,eggs=0.1"}, NAMES, "`prior` names an unknown class, 'eggs'"),
        ({"decide_by": "accuracy"}, ("a", "b", "c"), "are for two classes, and there are 3"),
        ({"precision_floor": "eggs=0.9"}, NAMES, "`precision_floor` is of 'eggs'; the classes are ham, spam"),
    ):
        with pytest.raises(SettingsError, match=message):
            require_adjustable(TrainSettings(**options), names)
    for options, message in (
        ({"prior": "ham=0.5,spam=0.6"}, "they sum to 1"),
        ({"prior": "ham"}, "write a share of each class"),
        ({"precision_floor": "0.9"}, "write a class and a precision"),
        ({"precision_floor": "spam=0.9", "decide_by": "accuracy"}, "`decide_by` is accuracy; it must be none"),
    ):
        with pytest.raises(SettingsError, match=message):
            TrainSettings(**options)
    with pytest.raises(SettingsError, match=r"no threshold gives 'spam' a precision of 0\.8"):
        adjust(
            HEAD,
            TrainSettings(precision_floor="spam=0.8"),
            scores=np.zeros((400, 2), np.float32),
            labels=LABELS,
            fold=FOLD,
            support=SUPPORT,
            own=True,
        )
    assert TrainSettings(prior={'a,"b': 0.25, "c=d": 0.75}).prior == '"a,""b=0.25","c=d=0.75"'
