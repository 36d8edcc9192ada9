"""The path over penalties: out-of-fold logits against heads that scikit-learn fits fold by fold."""

from __future__ import annotations

import numpy as np
import pytest
from headstart.stages.heads.dataset import Dataset
from headstart.stages.heads.logistic_path import LogisticPath
from headstart.stages.settings import ClassWeight, Scaling
from headstart.stages.threads import open_threads


@pytest.mark.parametrize("scaling", Scaling)
@pytest.mark.parametrize("class_weight", ClassWeight)
def test_each_row_gets_the_logits_of_the_head_that_did_not_see_it(scaling: Scaling, class_weight: ClassWeight) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 200)
    features = (rng.normal(size=(200, 6)) * [1, 2, 3, 1, 1, 1] + np.eye(3, 6)[labels] + 1).astype(np.float32)
    index = rng.permutation(200)[:150]
    fold = rng.integers(0, 4, 150)  # 0 is in no fold
    train = Dataset(features=features, labels=labels, index=index)
    with open_threads() as threads:
        path = LogisticPath(
            train,
            scaling=scaling,
            fold=fold,
            folds=3,
            classes=3,
            class_weight=class_weight,
            memory=None,
            threads=threads,
        )
        points = list(path.solve([0.1, 10.0]))
    assert [point.l2 for point in points] == [10.0, 0.1]
    rows = features[index]
    if scaling is Scaling.NORMALIZED:
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    for point in points:
        assert point.converged and point.logits.shape == (150, 3) and point.logits.dtype == np.float32
        for number in (1, 2, 3):
            kept, out = fold != number, fold == number
            scale = rows[kept].std(0) if scaling is Scaling.STANDARDIZED else 1.0
            weight = None if class_weight is ClassWeight.NONE else "balanced"
            model = linear_model.LogisticRegression(C=1 / point.l2, class_weight=weight, tol=1e-8, max_iter=10_000)
            model.fit(rows[kept] / scale, labels[index][kept])
            expected = model.predict_log_proba(rows[out] / scale)
            logits = point.logits[out].astype(np.float64)
            found = logits - np.log(np.exp(logits).sum(1, keepdims=True))
            np.testing.assert_allclose(found, expected, atol=0.02)  # near enough to choose by
