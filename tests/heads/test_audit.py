"""What features say of labels: against cleanlab, scikit-learn, and plain loops over all pairs."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from cleanlab_labels import FILE, PRUNINGS, found_by_cleanlab, has_tie, noisy
from headstart.stages.heads import audit, near_duplicates
from headstart.stages.heads.audit import above_fence, choose_next, class_distances, out_of_fold
from headstart.stages.heads.confident_learning import find_label_errors, label_scores
from headstart.stages.heads.dataset import Dataset
from headstart.stages.heads.near_duplicates import find_partners, same_text_partners
from headstart.stages.settings import LabelScore, Pruning
from headstart.stages.threads import open_threads


def rows_of(features: Any, labels: Any) -> Dataset:
    features = np.asarray(features, np.float32)
    return Dataset(features=features, labels=np.asarray(labels), index=np.arange(len(features)))


def compare_with(expected: dict[str, Any], probabilities: Any, labels: Any) -> None:
    for name in PRUNINGS:
        errors = find_label_errors(probabilities, labels, prune=Pruning(name))
        np.testing.assert_array_equal(errors.joint, expected["joint"])
        assert np.flatnonzero(errors.found).tolist() == expected["found"][name], name
    for score in LabelScore:
        np.testing.assert_allclose(label_scores(probabilities, labels, score), expected[score], atol=1e-8)


@pytest.mark.parametrize("case", json.loads(FILE.read_text()), ids=lambda case: str(case["seed"]))
def test_label_errors_are_those_that_cleanlab_found(case: dict[str, Any]) -> None:
    assert len(case["found"]["noise-rate"]) > 3
    compare_with(case, np.array(case["probabilities"]), np.array(case["labels"]))


def test_label_errors_are_those_that_cleanlab_finds() -> None:
    pytest.importorskip("cleanlab")
    for arrays in map(noisy, range(100, 200)):
        if not has_tie(*arrays):
            compare_with(found_by_cleanlab(*arrays), *arrays)


def test_a_class_of_one_row_keeps_it_and_labels_that_are_most_probable_stay() -> None:
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.8, 0.2], [0.1, 0.9]])
    assert not find_label_errors(probabilities, np.array([0, 0, 0, 1])).found.any()
    assert not find_label_errors(probabilities, np.array([1, 0, 0, 0])).found[0]


def test_rows_are_judged_by_heads_that_saw_their_label_and_not_their_fold() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(3, size=90)
    features = np.eye(3, 8)[labels] * 3 + rng.normal(size=(90, 8))
    fold = np.arange(90) % 3 + 1
    fold[:5] = 0
    labels[labels == 2] = 1
    labels[[10, 13]] = 2  # both in one fold
    with open_threads() as threads:
        judged = out_of_fold(
            rows_of(features, labels),
            fold,
            classes=3,
            penalties=[1e6, 1.0, 1e-3],
            memory=None,
            threads=threads,
        )
    assert np.flatnonzero(~judged.judged).tolist() == [0, 1, 2, 3, 4, 10, 13]
    np.testing.assert_allclose(judged.probabilities.sum(axis=1), 1)
    assert (
        judged.converged
        and judged.l2 == 1
        and judged.losses[1.0] == min(judged.losses.values())
        and judged.accuracy > 0.9
    )
    own = judged.probabilities[judged.judged, labels[judged.judged]]
    assert judged.losses[1.0] == pytest.approx(-np.log(own).mean())


def test_of_many_rows_some_choose_the_penalty_and_all_are_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(4)
    labels = np.append(rng.integers(2, size=399), 2)  # a class of one row
    features = np.eye(2, 5)[np.minimum(labels, 1)] + rng.normal(size=(400, 5))
    fold = np.append(rng.integers(1, 5, size=399), 0)
    dataset = rows_of(features, labels)
    options: dict[str, Any] = {"classes": 3, "memory": None}
    with open_threads() as threads:
        whole = out_of_fold(dataset, fold, penalties=[1e4, 1.0], threads=threads, **options)
        alone = out_of_fold(dataset, fold, penalties=[1.0], threads=threads, **options)
        monkeypatch.setattr(audit, "CHOOSING_ROWS", 120)
        some = out_of_fold(dataset, fold, penalties=[1e4, 1.0], threads=threads, **options)
    assert (whole.chosen_by, alone.chosen_by, some.chosen_by) == (400, 400, 120)
    assert some.l2 == whole.l2 == 1 and list(some.losses) == [1e4, 1.0] and some.losses != whole.losses
    np.testing.assert_array_equal(some.probabilities, alone.probabilities)
    np.testing.assert_array_equal(some.judged, whole.judged)
    assert some.log_loss == alone.losses[1.0] == alone.log_loss


@pytest.mark.parametrize("threshold", [0.5, 0.9])
@pytest.mark.parametrize("kind", [np.float32, np.float16])
def test_no_near_duplicate_of_another_label_is_missed(
    threshold: float, kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"_ROWS": 16, "_COLUMNS": 64, "_SAMPLE_ROWS": 50, "_STEP": 12, "_FIRST_STEP": 2, "_FIRST_LEFT": 0.1}
    for name, value in sizes.items():
        monkeypatch.setattr(near_duplicates, name, value)
    rng = np.random.default_rng(1)
    features = rng.normal(size=(400, 24)) / np.arange(1, 25) + 5  # all vectors point nearly one way
    copied = rng.integers(400, size=100)
    features[:100] = features[copied] + rng.normal(size=(100, 24)) * 0.02
    labels = rng.integers(4, size=400)
    labels[labels == 3] = 2
    labels[7] = 3  # a class of one row
    groups = np.arange(400)
    groups[200:220], features[200:220] = groups[300:320], features[300:320]
    dataset = Dataset(features=features.astype(kind), labels=labels, index=np.arange(400))
    steps: list[tuple[int, int]] = []
    found = find_partners(dataset, groups, threshold=threshold, on_rows=lambda *step: steps.append(step))
    assert steps[-1][0] == steps[-1][1] > 300 and steps == sorted(steps)
    vectors = dataset.take(slice(None)).astype(np.float64)
    vectors -= vectors.mean(axis=0)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = np.where(labels[:, None] == labels, -1, vectors @ vectors.T)
    best = cosines.max(axis=1)
    assert not (np.abs(best - threshold) < 1e-5).any() and (best > threshold).sum() > 50
    np.testing.assert_array_equal(found.partner >= 0, best > threshold)
    near = found.partner >= 0
    np.testing.assert_allclose(found.similarity[near], best[near], atol=1e-5)
    np.testing.assert_allclose(cosines[near, found.partner[near]], best[near], atol=1e-5)
    assert (labels[near] != labels[found.partner[near]]).all() and (found.similarity[~near] == 0).all()
    assert threshold == 0.5 or (found.products < 0.5 and found.first < found.components)


def test_copies_of_a_text_are_partners_whatever_their_features() -> None:
    labels, groups = np.array([1, 0, 0, 2, 1, 0, 0]), np.array([5, 5, 5, 5, 9, 9, 7])
    assert same_text_partners(labels, groups).tolist() == [1, 3, 3, 1, 5, 4, -1]
    found = find_partners(rows_of(np.zeros((7, 4)), labels), groups, threshold=0.95)
    assert found.partner.tolist() == [1, 3, 3, 1, 5, 4, -1] and found.similarity.tolist() == [1] * 6 + [0]


def test_distances_are_those_of_the_shrunk_covariance_about_class_means() -> None:
    covariance = pytest.importorskip("sklearn.covariance")
    rng = np.random.default_rng(2)
    labels = np.arange(50) % 3
    features = rng.normal(size=(50, 30)) @ rng.normal(size=(30, 30)) + 10 * rng.normal(size=(3, 30))[labels]
    dataset = rows_of(features, labels)
    rows = dataset.take(slice(None)).astype(np.float64)
    means = np.stack([rows[labels == label].mean(axis=0) for label in range(3)])
    fitted = covariance.OAS(assume_centered=True).fit(rows - means[labels])
    expected = np.sqrt(np.stack([fitted.mahalanobis(rows - mean) for mean in means]).min(axis=0))
    np.testing.assert_allclose(class_distances(dataset, 4), expected, rtol=1e-4)  # a class without rows counts for none


def test_equal_rows_have_no_distance() -> None:
    assert class_distances(rows_of(np.ones((6, 3)), [0, 1, 0, 1, 0, 1]), 2).tolist() == [0] * 6


def test_the_fence_is_tukeys() -> None:
    assert above_fence(np.array([0.0, 1, 2, 3, 4, 10.1, 9.9]), 1.5).tolist() == [False] * 7
    assert np.flatnonzero(above_fence(np.array([0.0, 1, 2, 3, 4, 30]), 3)).tolist() == [5]


def test_rows_to_label_are_uncertain_and_differ() -> None:
    rng = np.random.default_rng(3)
    # Along the first column a row is the surer, the farther it is from 0. Uncertain rows lie in four heaps.
    heaps = np.array([[0, 9, 0], [0, -9, 0], [0, 0, 9], [0, 0, -9]])
    features = np.concatenate([heaps[np.arange(40) % 4], rng.normal(size=(400, 3)) * 3 + [[9, 0, 0]]])
    features += rng.normal(size=features.shape) * 0.1
    parameters = {"weight": np.array([[1, 0, 0], [-1, 0, 0]], np.float32), "bias": np.zeros(2, np.float32)}
    pool = rows_of(features, np.zeros(440, np.int64))
    choice = choose_next(pool, parameters, 4)
    assert sorted(row % 4 for row in choice.rows.tolist()) == [0, 1, 2, 3] and (choice.rows < 40).all()
    margins = np.abs(np.tanh(features[:, 0]))
    np.testing.assert_allclose(choice.margins, margins, atol=1e-5)
    assert (np.diff(choice.margins[choice.rows]) >= 0).all()
    assert choose_next(pool, parameters, 7).rows.tolist() == choose_next(pool, parameters, 7).rows.tolist()
    assert len(set(choose_next(pool, parameters, 7).rows.tolist())) == 7
    assert sorted(choose_next(pool, parameters, 500).rows.tolist()) == list(range(440))
