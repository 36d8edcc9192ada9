"""Losses of AdamW for all kinds of target: gradients equal autograd's, and heads end at the optima of other solvers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from headstart.stages.heads.dataset import Dataset
from headstart.stages.heads.fit import fit_head
from headstart.stages.heads.losses import BinaryCrossEntropy, CumulativeLogits, Loss, SquaredError
from headstart.stages.heads.stacked import class_weights
from headstart.stages.heads.targets import target_of
from headstart.stages.settings import ClassWeight, Metric, Scaling, Task, TrainSettings
from headstart.stages.threads import open_threads
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.multiclass import OneVsRestClassifier

CPU = torch.device("cpu")
ROWS, NAMES = 50, ("low", "middle", "high")


def rows_of(task: Task, rows: int = 240) -> tuple[Any, Any]:
    """Features (rows, 6) float32 and values."""
    rng = np.random.default_rng(0)
    features = (rng.normal(size=(rows, 6)) + 2).astype(np.float32)
    hidden = features @ rng.normal(size=(6, 3)) + 2 * rng.logistic(size=(rows, 3))
    hidden -= hidden.mean(0)
    if task is Task.MULTI_LABEL:
        return features, (hidden > [0, 1, -1]).astype(np.uint8)
    return features, hidden[:, 0] + 1000 if task is Task.REGRESSION else np.digitize(hidden[:, 0], [-1, 1])


def settings_of(*, smoothing: bool) -> list[TrainSettings]:
    weights = (ClassWeight.NONE, ClassWeight.BALANCED)
    some = (0.0, 0.3) if smoothing else (0.0,)
    return [TrainSettings(solver="sgd", label_smoothing=s, class_weight=w) for s in some for w in weights]


def labels_loss(settings: list[TrainSettings], logits: Any, targets: Any) -> tuple[Loss, Any]:
    counts = targets.sum(0)
    total = torch.zeros(())
    for head, each in enumerate(settings):
        pairs = [class_weights(each.class_weight, np.array([ROWS - int(n), int(n)])) for n in counts]
        weights = torch.tensor(np.array(pairs)).float()  # (labels, 2)
        wanted = targets.float() * (1 - each.label_smoothing) + each.label_smoothing / 2
        weight = torch.where(targets > 0, weights[:, 1], weights[:, 0])
        total = total + torch.nn.functional.binary_cross_entropy_with_logits(
            logits[head].T, wanted, weight=weight, reduction="sum"
        )
    return BinaryCrossEntropy(settings, counts.numpy().astype(np.int64), ROWS, CPU), total


def order_loss(settings: list[TrainSettings], logits: Any, targets: Any) -> tuple[Loss, Any]:
    counts = np.bincount(targets.numpy(), minlength=4)
    total = torch.zeros((), dtype=torch.float64)
    for head, each in enumerate(settings):
        above = torch.sigmoid(logits[head].double())
        edge = torch.ones(1, ROWS)
        bounds = torch.cat([edge, above, 0 * edge])
        chances = (bounds[:-1] - bounds[1:]).gather(0, targets[None])[0]
        weights = torch.tensor(class_weights(each.class_weight, counts))
        total = total - (weights[targets] * chances.log()).sum()
    return CumulativeLogits(settings, counts, CPU), total


@pytest.mark.parametrize("task", [Task.MULTI_LABEL, Task.ORDINAL, Task.REGRESSION])
def test_gradients_are_those_of_autograd(task: Task) -> None:
    torch.manual_seed(0)
    settings = settings_of(smoothing=task is Task.MULTI_LABEL)
    heads, outputs = len(settings), {Task.REGRESSION: 1}.get(task, 3)
    logits = torch.randn(heads, outputs, ROWS) * 3
    targets, labels = torch.randint(2, (ROWS, 3), dtype=torch.uint8), torch.randint(4, (ROWS,))
    loss: Loss
    if task is Task.ORDINAL:
        logits = (torch.randn(heads, 1, ROWS) * 3 + torch.tensor([2.0, 0.5, -2])[:, None]).contiguous()
    logits.requires_grad_()
    share = 1.0
    if task is Task.MULTI_LABEL:
        loss, total = labels_loss(settings, logits, targets)
        share, encoded = 1 / 3, targets  # the loss is a mean over labels, the gradient that of their sum
    elif task is Task.ORDINAL:
        (loss, total), encoded = order_loss(settings, logits, labels), labels
    else:
        numbers = 5 * torch.randn(ROWS, dtype=torch.float64).numpy() + 1000
        loss = SquaredError(heads, numbers)
        encoded = torch.from_numpy(loss.encode(numbers))
        total = ((logits[:, 0] - torch.from_numpy((numbers - numbers.mean()) / numbers.std()).float()) ** 2).sum()
    total.backward()
    found, gradient = loss.loss_and_gradient(logits.detach().clone(), encoded)
    assert float(found.sum()) == pytest.approx(share * float(total.detach()), rel=1e-5)
    torch.testing.assert_close(gradient, logits.grad, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("task", [Task.MULTI_LABEL, Task.REGRESSION, Task.ORDINAL])
def test_a_head_ends_at_the_optimum_of_another_solver(task: Task) -> None:
    """And its curve is what `measure` says of it."""
    features, values = rows_of(task)
    rows, target = Dataset(features=features, labels=values, index=np.arange(240)), target_of(task, NAMES)
    options: dict[str, Any] = {"dropout": 0, "weight_decay": 0, "learning_rate": 0.05, "schedule": "cosine"}
    fit = fit_head(rows, rows, target=target, settings=TrainSettings(solver="sgd", epochs=400, **options), device=CPU)
    ours = features @ fit.parameters["weight"].T + fit.parameters["bias"]
    if task is Task.REGRESSION:
        expected = LinearRegression().fit(features, values).predict(features)[:, None]
    elif task is Task.MULTI_LABEL:
        model = OneVsRestClassifier(LogisticRegression(C=1e6, max_iter=1000)).fit(features, values)
        expected = model.decision_function(features)
    else:
        with open_threads() as threads:
            solver = target.solver(rows, scaling=Scaling.NONE, settings=TrainSettings(), threads=threads)
            parameters, _ = solver.solve(1e-4, lambda iteration: None)
        expected = features @ parameters["weight"].T + parameters["bias"]
    np.testing.assert_allclose(ours, expected, atol=0.05)
    best = fit.history[(fit.best_epoch or 0) - 1]
    for metric, value in (
        (Metric.LOG_LOSS, best.validation_loss),
        (Metric.ACCURACY, best.validation_accuracy),
        (Metric.MACRO_F1, best.validation_macro_f1),
    ):
        if metric in target.metrics:
            assert target.measure(metric, values, ours) == pytest.approx(value, abs=1e-4)
        else:
            assert value is None


def test_biases_of_classes_with_an_order_stay_in_order() -> None:
    """Also with steps that would carry them past each other."""
    features, values = rows_of(Task.ORDINAL, 60)
    rows, target = Dataset(features=features, labels=values, index=np.arange(60)), target_of(Task.ORDINAL, NAMES)
    settings = TrainSettings(solver="sgd", epochs=5, learning_rate=5.0, head="mlp", hidden=4, dropout=0)
    fit = fit_head(rows, rows, target=target, settings=settings, device=CPU)
    assert np.isfinite([epoch.train_loss for epoch in fit.history]).all()
    assert (np.diff(fit.parameters["bias"]) < 0).all() and fit.parameters["weight"].shape == (1, 4)
