"""A head that is adjusted: what is folded into its weights is what was asked for, and thresholds are the best ones."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from headstart.cache.errors import SettingsError
from headstart.stages.heads.adjustment import Adjusted, adjust, require_fit
from headstart.stages.heads.calibration import fit_map
from headstart.stages.heads.head import Head, outputs_of
from headstart.stages.heads.targets import ClassTarget, MultiLabelTarget, NumberTarget, OrdinalTarget, target_of
from headstart.stages.heads.thresholds import NEVER, best_threshold
from headstart.stages.settings import Calibration, Decision, Task, TrainSettings
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from scipy.special import log_softmax, logsumexp, softmax
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
TARGET = ClassTarget(NAMES)


def adjusted(head: Head = HEAD, **options: Any) -> Adjusted:
    scores = head.logits(FEATURES)
    return adjust(head, TARGET, TrainSettings(**options), scores=scores, values=LABELS, fold=FOLD, trained=LABELS)


@pytest.mark.parametrize(
    "head",
    [HEAD, dataclasses.replace(HEAD, hidden_weight=np.eye(5, dtype=np.float32), hidden_bias=np.ones(5, np.float32))],
)
@pytest.mark.parametrize("method", ["temperature", "per-class"])
def test_a_map_and_a_prior_are_folded_into_the_head(head: Head, method: str) -> None:
    shares = {"ham": 0.99, "spam": 0.01}
    found = adjusted(head, calibrate=method, prior=shares)
    logits = fit_map(Calibration(method), head.logits(FEATURES), LABELS)(head.logits(FEATURES))
    move = np.log([0.99, 0.01]) - np.log(np.bincount(LABELS) / 400)
    expected = log_softmax(logits + move, axis=1)
    np.testing.assert_allclose(found.head.log_probabilities(FEATURES), expected, atol=1e-4)
    by_folds = np.concatenate(  # each row is calibrated by a map of the other folds
        [
            fit_map(Calibration(method), scores[fold != FOLD], LABELS[fold != FOLD])(scores[fold == FOLD])
            for scores in [head.logits(FEATURES)]
            for fold in range(1, 6)
        ]
    )
    order = np.argsort(FOLD, kind="stable")
    np.testing.assert_allclose(
        log_softmax(found.scores[order].astype(float), axis=1), log_softmax(by_folds + move, axis=1), atol=1e-5
    )
    assert found.record["prior"]["expected"] == shares
    assert found.record["calibration"]["method"] == method


def test_a_prior_is_the_shares_of_bayes_rule() -> None:
    """Of a world with two values, told apart a little: the probabilities of rows drawn with other shares."""
    chance = np.array([[0.7, 0.3], [0.2, 0.8]])  # of each value, by class
    for trained, expected in (([0.5, 0.5], [0.9, 0.1]), ([0.3, 0.7], [0.6, 0.4])):
        joint = chance * np.array(trained)[:, None]
        scores = np.log(joint / joint.sum(axis=0)).T.astype(np.float32)
        settings = TrainSettings(prior=dict(zip(NAMES, expected, strict=True)))
        labels, rows = np.array([0, 1]), np.repeat([0, 1], (np.array(trained) * 1000).astype(int))
        found = adjust(HEAD, TARGET, settings, scores=scores, values=labels, fold=labels, trained=rows)
        wanted = chance * np.array(expected)[:, None]
        np.testing.assert_allclose(softmax(found.scores, axis=1), (wanted / wanted.sum(axis=0)).T, rtol=1e-5)


def test_balanced_weights_are_a_prior_of_equal_shares() -> None:
    found = adjusted(class_weight="balanced", prior="ham=0.5,spam=0.5")
    np.testing.assert_allclose(
        log_softmax(found.scores, axis=1), log_softmax(HEAD.logits(FEATURES).astype(float), axis=1), atol=1e-5
    )


@pytest.mark.parametrize(("skew", "rows", "chosen"), [(1.0, 1500, "per-class"), (0.0, 60, "none")])
def test_folds_choose_the_method(skew: float, rows: int, chosen: str) -> None:
    """By the log loss of rows that a map was not fitted to."""
    rng = np.random.default_rng(0)
    true = rng.normal(size=(rows, 2)) * 2
    labels = (rng.random(rows) < softmax(true, axis=1)[:, 1]).astype(np.int64)
    logits = (true * (1 + skew * np.array([2, 1])) + skew * np.array([1, -1])).astype(np.float32)
    fold, settings = np.arange(rows) % 5, TrainSettings(calibrate="auto")
    found = adjust(HEAD, TARGET, settings, scores=logits, values=labels, fold=fold, trained=labels).record
    losses = found["calibration"]["log_loss"]
    assert min(losses, key=lambda tried: losses[tried]) == found["calibration"]["method"] == chosen
    for method, loss in losses.items():
        parts = [
            fit_map(method, logits[fold != f], labels[fold != f])(logits[fold == f])[
                np.arange(rows // 5), labels[fold == f]
            ]
            - logsumexp(fit_map(method, logits[fold != f], labels[fold != f])(logits[fold == f]), axis=1)
            for f in range(5)
        ]
        assert loss == pytest.approx(-np.mean(parts))


@pytest.mark.parametrize("task", [Task.CLASSES, Task.MULTI_LABEL])
def test_of_labels_that_are_noise_the_score_of_rows_is_no_better_than_chance(task: Task) -> None:
    """Thresholds that are chosen by the same rows would seem to help. In each table, half of the rows have a label."""
    target, rows, right = target_of(task, NAMES), 60, []
    head = dataclasses.replace(HEAD, task=task)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        values = np.stack([rng.permutation(rows) % 2 for _ in NAMES], axis=1).astype(np.uint8)
        if task is Task.CLASSES:
            values = values[:, 0].astype(np.int64)
        scores, options = rng.normal(size=(rows, 2)).astype(np.float32), TrainSettings(decide_by="accuracy")
        found = adjust(head, target, options, scores=scores, values=values, fold=np.arange(rows) % 5, trained=values)
        outputs = outputs_of(task, found.scores.astype(np.float64))
        said = (found.head.predictions(outputs, found.thresholds), found.head.predictions(outputs))
        right.append([(one == values).mean() for one in said])
    honest, own = np.mean(right, axis=0)
    assert honest <= 0.5
    assert own > 0.54


def test_no_row_is_adjusted_by_itself() -> None:
    """A change of one row's label changes nothing of what is said of it."""
    fold = np.arange(90) // 2  # 45 folds, some of which share a map
    rng = np.random.default_rng(0)
    scores, labels = rng.normal(size=(90, 2)).astype(np.float32), rng.integers(2, size=90)
    settings = TrainSettings(calibrate="per-class", decide_by="macro-f1")
    options: dict[str, Any] = {"scores": scores, "fold": fold, "trained": labels}
    found = adjust(HEAD, TARGET, settings, values=labels, **options)
    assert found.thresholds is not None
    for row in range(0, 90, 9):
        changed = labels.copy()
        changed[row] = 1 - labels[row]
        others = adjust(HEAD, TARGET, settings, values=changed, **options)
        assert others.thresholds is not None and (others.thresholds[row] == found.thresholds[row]).all()
        np.testing.assert_array_equal(others.scores[row], found.scores[row])


@pytest.mark.parametrize("method", ["temperature", "per-class"])
def test_several_labels_are_calibrated_and_corrected_each_for_itself(method: str) -> None:
    target, several = target_of(Task.MULTI_LABEL, NAMES), dataclasses.replace(HEAD, task=Task.MULTI_LABEL)
    values = np.stack([1 - LABELS, LABELS], axis=1).astype(np.uint8)
    settings = TrainSettings(calibrate=method, prior="ham=0.4,spam=0.4", precision_floor="spam=0.6")
    scores = several.logits(FEATURES)
    found = adjust(several, target, settings, scores=scores, values=values, fold=FOLD, trained=values)
    shares = np.array([1 - LABELS.mean(), LABELS.mean()])
    expected = (
        target.fit_map(Calibration(method), scores, values)(scores) + np.log(2 / 3) - np.log(shares / (1 - shares))
    )
    np.testing.assert_allclose(found.head.outputs(FEATURES), 1 / (1 + np.exp(-expected)), atol=1e-5)
    said, weight = (
        found.head.predictions(found.head.outputs(FEATURES))[:, 1],
        np.where(values, 0.4 / shares, 0.6 / (1 - shares)),
    )
    assert sk.precision_score(values[:, 1], said, sample_weight=weight[:, 1]) >= 0.6
    assert found.record["prior"]["trained"] == pytest.approx(dict(zip(NAMES, shares, strict=True)))


@examples(max_examples=25)
@given(st.integers(2, 40), st.integers(0, 1000), st.sampled_from(["accuracy", "macro-f1", 0.4, 0.9]), st.booleans())
def test_no_other_threshold_is_better(rows: int, seed: int, by: Any, both: bool) -> None:
    """Compared with every threshold, by scikit-learn's scores."""
    rng = np.random.default_rng(seed)
    probability, is_label = rng.integers(1, 12, rows) / 12, rng.random(rows) < 0.5
    floor = by if isinstance(by, float) else None
    metric = Decision.NONE if floor else Decision(by)
    found = best_threshold(probability, is_label, np.ones(rows), metric=metric, floor=floor, both=both)

    def score(threshold: float) -> float:
        said = probability >= threshold
        if floor is None:
            plain = sk.accuracy_score if by == "accuracy" else sk.f1_score
            return float(
                plain(
                    is_label,
                    said,
                    **(
                        {}
                        if by == "accuracy"
                        else {"average": "macro", "labels": [0, 1][not both :], "zero_division": 0}
                    ),
                )
            )
        precise = sk.precision_score(is_label, said, zero_division=0) >= floor
        return float(sk.recall_score(is_label, said, zero_division=0)) if precise else 0.0

    best = max(score(threshold) for threshold in np.arange(1, 26) / 24)
    if found == NEVER:
        assert floor and best == 0
    elif is_label.any():
        assert score(found) == pytest.approx(best) and found not in probability


@pytest.mark.parametrize(("label", "number"), [("spam", 1), ("ham", 0)])
def test_a_head_predicts_by_its_threshold(label: str, number: int) -> None:
    found = adjusted(precision_floor=f"{label}=0.8")
    decision = found.record["decision"]
    said = found.head.predict(FEATURES) == number
    assert said.tolist() == (found.head.probabilities(FEATURES)[:, number] >= decision["threshold"]).tolist()
    assert sk.precision_score(number == LABELS, said) >= 0.8
    assert found.thresholds is not None
    honest = softmax(found.scores, axis=1)[:, number] >= found.thresholds[:, number]
    assert sk.precision_score(number == LABELS, honest) == pytest.approx(decision["validation_precision"])
    assert sk.recall_score(number == LABELS, honest) == pytest.approx(decision["validation_recall"])
    assert 0 < said.mean() < 1 and decision["label"] == label


def test_a_precision_holds_with_the_shares_that_are_expected() -> None:
    """Of rare spam, fewer rows are found than of frequent spam."""
    rare, frequent = (adjusted(precision_floor="spam=0.7", prior=f"ham={1 - s},spam={s}") for s in (0.02, 0.5))
    counts = [(found.head.predict(FEATURES) == 1).sum() for found in (rare, frequent)]
    assert 0 < counts[0] < counts[1]


def test_what_does_not_fit_is_refused() -> None:
    for options, target, message in (
        ({"prior": "ham=0.5,eggs=0.5"}, TARGET, "`prior` has no share of 'spam'"),
        ({"prior": "ham=0.5,spam=0.4,eggs=0.1"}, TARGET, "`prior` names an unknown class, 'eggs'"),
        ({"prior": "ham=0.5,spam=0.6"}, TARGET, "they sum to 1"),
        ({"prior": "ham=0.5,spam=1"}, MultiLabelTarget(NAMES), "a label's share is below 1"),
        ({"decide_by": "accuracy"}, ClassTarget(("a", "b", "c")), "for two classes .*, and there are 3"),
        ({"precision_floor": "eggs=0.9"}, TARGET, "`precision_floor` is of 'eggs'; the labels are ham, spam"),
        ({"precision_floor": "0.9"}, TARGET, "write a class and a precision"),
        ({"precision_floor": "ham=0.9,spam=0.9"}, TARGET, "one of two classes"),
        ({"calibrate": "per-class"}, OrdinalTarget(NAMES), "choose one of none, temperature, auto"),
        ({"prior": "ham=0.5,spam=0.5"}, OrdinalTarget(NAMES), "`prior` has no meaning for `task=ordinal`"),
        ({"class_weight": "balanced"}, NumberTarget(), "`class_weight` has no meaning for `task=regression`"),
        ({"metric": "r2"}, TARGET, "`metric=r2` does not go with `task=classes`"),
    ):
        with pytest.raises(SettingsError, match=message):
            require_fit(TrainSettings(**options), target)
    require_fit(TrainSettings(decide_by="none", class_weight="none"), NumberTarget())
    for options, message in (
        ({"prior": "ham"}, "write a share of each class"),
        ({"precision_floor": "spam"}, "write a class and a precision"),
        ({"precision_floor": "spam=0.9", "decide_by": "accuracy"}, "`decide_by` is accuracy; it must be auto"),
    ):
        with pytest.raises(SettingsError, match=message):
            TrainSettings(**options)
    with pytest.raises(SettingsError, match=r"no threshold gives 'spam' a precision of 0\.8"):
        adjust(
            HEAD,
            TARGET,
            TrainSettings(precision_floor="spam=0.8"),
            scores=np.zeros((400, 2), np.float32),
            values=LABELS,
            fold=FOLD,
            trained=LABELS,
        )
    assert TrainSettings(prior={'a,"b': 0.25, "c=d": 0.75}).prior == '"a,""b=0.25","c=d=0.75"'
