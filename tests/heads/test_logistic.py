"""The exact solver: it reaches scikit-learn's optimum on hard problems, and its convergence report is true."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from headstart.stages.heads.dataset import Dataset
from headstart.stages.heads.logistic import ConvergenceReport, LogisticSolver
from headstart.stages.heads.logistic_batch import Curvature
from headstart.stages.settings import ClassWeight, TrainSettings
from headstart.stages.threads import open_threads
from sklearn.linear_model import LogisticRegression


def objective(features: Any, labels: Any, weight: Any, bias: Any, l2: float, weights: Any = 1.0) -> float:
    """The objective in float64, from its definition."""
    logits = features.astype(np.float64) @ weight.astype(np.float64).T + bias
    logits -= logits.max(1, keepdims=True)
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(labels)), labels]
    return float((losses * weights).sum() + l2 / 2 * (weight.astype(np.float64) ** 2).sum())


def solve(features: Any, labels: Any, *l2s: float, **settings: Any) -> list[tuple[dict[str, Any], ConvergenceReport]]:
    rows = Dataset(features=features, labels=labels, index=np.arange(len(labels)))
    with open_threads() as threads:
        solver = LogisticSolver(
            rows, classes=int(labels.max()) + 1, settings=TrainSettings(solver="exact", **settings), threads=threads
        )
        return [solver.solve(l2) for l2 in l2s]


def sklearn(features: Any, labels: Any, l2: float, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # if scikit-learn stops early, its objective is still a bound
        model = LogisticRegression(**{"solver": "newton-cholesky"} | options, C=1 / l2, tol=1e-10, max_iter=20_000)
        return model.fit(features.astype(np.float64), labels)


def hard(kind: str) -> tuple[Any, Any]:
    """Features (rows, width) float32 and labels of a problem that is hard for a plain solver."""
    rng = np.random.default_rng(0)
    labels = rng.integers(3, size=600)
    if kind == "badly conditioned":
        rotation = np.linalg.qr(rng.normal(size=(40, 40)))[0]
        features = rng.normal(size=(600, 40)) * np.logspace(0, -3, 40)
        labels = (features[:, :12] @ rng.normal(size=(12, 3)) * 3 + rng.gumbel(size=(600, 3))).argmax(1)
        features = features @ rotation + 5
    elif kind == "constant columns":
        features = rng.normal(size=(600, 8)) + labels[:, None] * 0.2
        features[:, 2], features[:, 5] = 0.25, 1 + 1e-9 * rng.normal(size=600)
    elif kind == "more columns than rows":
        features, labels = rng.normal(size=(60, 150)), labels[:60]
    elif kind == "separable":
        features = np.eye(3)[labels][:, [0, 1, 2, 0]] * 5 + rng.normal(size=(600, 4)) * 0.1
    elif kind == "a class of two rows":
        features = rng.normal(size=(600, 8)) + labels[:, None] * 0.2
        labels = np.where(np.arange(600) < 2, 2, labels % 2)
    elif kind == "two equal columns":
        features = rng.normal(size=(600, 8)) + labels[:, None] * 0.2
        features[:, 3] = features[:, 4]
    else:
        raise AssertionError(kind)
    return features.astype(np.float32), labels


KINDS = [
    "badly conditioned",
    "constant columns",
    "more columns than rows",
    "separable",
    "a class of two rows",
    "two equal columns",
]


@pytest.mark.parametrize("l2", [100.0, 1.0, 0.01])
@pytest.mark.parametrize("kind", KINDS)
def test_the_optimum_is_scikit_learns_with_c_of_one_over_l2(kind: str, l2: float) -> None:
    features, labels = hard(kind)
    ((found, convergence),) = solve(features, labels, l2)
    model = sklearn(features, labels, l2)
    theirs = objective(features, labels, model.coef_, model.intercept_, l2)
    ours = objective(features, labels, found["weight"], found["bias"], l2)
    assert ours <= theirs * (1 + 1e-7) + 1e-9
    assert convergence.converged, convergence.reason
    assert convergence.objective == pytest.approx(ours, rel=1e-6)
    np.testing.assert_allclose(
        softmax(features, found["weight"], found["bias"]), model.predict_proba(features), atol=2e-3
    )


def softmax(features: Any, weight: Any, bias: Any) -> Any:
    logits = features.astype(np.float64) @ weight.T + bias
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    return exponentials / exponentials.sum(1, keepdims=True)


@pytest.mark.parametrize("kind", KINDS)
def test_a_problem_with_a_tiny_penalty_converges_or_says_why_not(kind: str) -> None:
    features, labels = hard(kind)
    ((found, convergence),) = solve(features, labels, 1e-7)
    model = sklearn(features, labels, 1e-7, solver="newton-cholesky")
    theirs = objective(features, labels, model.coef_, model.intercept_, 1e-7)
    ours = objective(features, labels, found["weight"], found["bias"], 1e-7)
    assert np.isfinite(found["weight"]).all()
    assert ours <= theirs * 1.0001 + 1e-4
    if convergence.converged:
        assert ours <= theirs * (1 + 1e-5) + 1e-5
    assert convergence.reason and "\n" not in convergence.reason


def test_balanced_class_weights_give_scikit_learns_optimum() -> None:
    features, labels = hard("constant columns")
    labels = np.where(np.arange(600) < 450, 0, labels)
    ((found, convergence),) = solve(features, labels, 1.0, class_weight=ClassWeight.BALANCED)
    model = sklearn(features, labels, 1.0, class_weight="balanced")
    weights = (len(labels) / (3 * np.bincount(labels)))[labels]
    theirs = objective(features, labels, model.coef_, model.intercept_, 1.0, weights)
    assert objective(features, labels, found["weight"], found["bias"], 1.0, weights) <= theirs * (1 + 1e-8)
    assert convergence.converged


def test_a_path_of_penalties_has_the_same_optima_in_fewer_passes() -> None:
    features, labels = hard("badly conditioned")
    l2s = (100.0, 30.0, 10.0, 3.0, 1.0, 0.3, 0.1)
    path = solve(features, labels, *l2s)
    passes = 0
    for l2, (found, convergence) in zip(l2s, path, strict=True):
        ((alone, alone_convergence),) = solve(features, labels, l2)
        ours, theirs = (objective(features, labels, each["weight"], each["bias"], l2) for each in (found, alone))
        assert ours == pytest.approx(theirs, rel=1e-8)
        assert convergence.converged and convergence.l2 == l2
        passes += alone_convergence.passes
    assert sum(convergence.passes for _, convergence in path) < 0.8 * passes


def test_the_convergence_report_is_true_in_float64() -> None:
    """Its gradient and gap agree with float64: the gradient's definition, and scikit-learn's minimum."""
    features, labels = hard("badly conditioned")
    ((found, convergence),) = solve(features, labels, 0.5)
    wide = features.astype(np.float64)
    residuals = softmax(features, found["weight"].astype(np.float64), found["bias"]) - np.eye(3)[labels]
    gradient = residuals.T @ (wide - wide.mean(0)) + 0.5 * found["weight"]
    assert np.linalg.norm(gradient) < convergence.gradient_norm + 1e-2
    model = sklearn(features, labels, 0.5, solver="newton-cholesky")
    least = objective(features, labels, model.coef_, model.intercept_, 0.5)
    ours = objective(features, labels, found["weight"], found["bias"], 0.5)
    assert ours - least <= 10 * convergence.gap + 1e-9 * least
    assert convergence.gap <= 1e-9 * convergence.objective


def test_without_curvature_it_would_be_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = hard("badly conditioned")
    ((_, fast),) = solve(features, labels, 1e-2)
    monkeypatch.setattr(Curvature, "invert", lambda self, gradient, values, l2: gradient / values.amax())
    ((_, slow),) = solve(features, labels, 1e-2)
    assert slow.passes > 5 * fast.passes


def test_the_step_from_weights_of_zero_does_not_mislead_later_steps() -> None:
    """With that step among L-BFGS's pairs, these took 58 passes; without it, 46."""
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=4000)
    features = (rng.standard_normal((4000, 100)) + 0.3 * rng.normal(size=(2, 100))[labels]).astype(np.float32)
    solved = [solve(features, labels, l2)[0][1] for l2 in (10.0, 1.0, 0.1)]
    assert all(convergence.converged for convergence in solved)
    assert sum(convergence.passes for convergence in solved) <= 52


def test_streamed_rows_have_the_same_optimum() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(3, size=5000)
    features = (rng.normal(size=(3, 500))[labels] * 0.2 + rng.normal(size=(5000, 500))).astype(np.float16)
    ((memory, _),) = solve(features, labels, 1.0)
    ((streamed, _),) = solve(features, labels, 1.0, memory=1 << 24)
    assert 2 * 4 * features.size > 1 << 24
    assert np.array_equal(memory["weight"], streamed["weight"])


def test_the_penalty_applies_to_standardized_columns() -> None:
    features, labels = hard("constant columns")
    scaled = features * np.float32([1, 10, 1, 0.1, 1, 1, 1, 100])
    ((found, _),) = solve(scaled, labels, 1.0, standardize=True)
    spread = features.std(0)
    spread[[2, 5]] = 1
    model = sklearn((features - features.mean(0)) / spread, labels, 1.0)
    theirs = softmax((features - features.mean(0)) / spread, model.coef_, model.intercept_)
    np.testing.assert_allclose(softmax(scaled, found["weight"], found["bias"]), theirs, atol=1e-4)


def test_a_run_holds_the_convergence_report(tiny: Path, tmp_path: Path) -> None:
    from headstart.stages.extract import extract
    from headstart.stages.runs.run import load_head
    from headstart.stages.settings import ExtractSettings
    from headstart.stages.train_head import train_head
    from tiny import tiny_rows

    rows = tiny_rows(200, classes=3)
    table = {"text": [text for text, _ in rows], "label": [label for _, label in rows]}
    cache = extract(table, tmp_path / "c.h5", ExtractSettings(encoder=str(tiny), precision="float32"))
    runs = [
        train_head(cache, tmp_path / str(seed), TrainSettings(solver="exact", l2=0.1, seed=seed)) for seed in (0, 1)
    ]
    fields = json.loads((runs[0] / "run.json").read_text())
    convergence = fields["certificate"]
    assert convergence["converged"] and convergence["gap"] <= 1e-9 * convergence["objective"]
    assert {"objective", "gradient_norm", "iterations", "reason"} <= set(convergence)
    assert fields["history"] == [] and fields["best_epoch"] is None
    assert load_head(runs[0]).weight.shape == (3, 32)
    assert (runs[0] / "head.safetensors").read_bytes() == (runs[1] / "head.safetensors").read_bytes()
