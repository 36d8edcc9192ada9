"""The trainer: heads equal those of plain torch, alone and together."""

from __future__ import annotations

import dataclasses
import itertools
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from headstart.stages.heads.calibration import fit_temperature
from headstart.stages.heads.dataset import Dataset, fit_scaler
from headstart.stages.heads.fit import Fit, Trainer, fit_head, fit_heads
from headstart.stages.heads.logistic import LogisticSolver
from headstart.stages.heads.losses import CrossEntropy
from headstart.stages.heads.sampling import training_batches
from headstart.stages.heads.stacked import ADAM_EPSILON, StackedHeads, class_weights, schedule_factor
from headstart.stages.heads.targets import ClassTarget
from headstart.stages.settings import ClassWeight, HeadKind, Schedule, TrainSettings
from headstart.stages.threads import open_threads
from sklearn.utils.class_weight import compute_class_weight

CPU = torch.device("cpu")
THREE = ClassTarget(("0", "1", "2"))


def problem(rows: int = 400, width: int = 12, classes: int = 3, seed: int = 0) -> tuple[Dataset, Dataset]:
    """Classes of different sizes that overlap a little; three quarters of the rows to train on."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(classes, size=rows, p=np.arange(1, classes + 1) / np.arange(1, classes + 1).sum())
    features = (rng.normal(size=(classes, width))[labels] + rng.normal(size=(rows, width)) + 2).astype(np.float32)
    index = np.arange(rows)
    three_quarters = rows * 3 // 4
    return (
        Dataset(features=features, labels=labels, index=index[:three_quarters]),
        Dataset(features=features, labels=labels, index=index[three_quarters:]),
    )


def plain_torch(train: Dataset, validation: Dataset, settings: TrainSettings) -> tuple[list[Any], list[float]]:
    """Train the same head with torch.nn and torch.optim; returns parameters and validation loss after each epoch."""
    features, labels = torch.from_numpy(train.features), torch.from_numpy(train.labels)
    width, classes = train.width, int(labels.max()) + 1
    means = features[train.index].mean(0) if settings.center else torch.zeros(width)
    scale = 1 / features[train.index].std(0, correction=0) if settings.standardize else torch.ones(width)
    features = (features - means) * scale
    last = torch.nn.Linear(width, classes)
    layers: list[torch.nn.Module] = [last]
    if settings.head is HeadKind.MLP:
        last = torch.nn.Linear(settings.hidden, classes)
        first = torch.nn.Linear(width, settings.hidden)
        start = StackedHeads(
            [settings], width=width, weights=classes, bias=np.zeros(classes, np.float32), device=CPU
        ).parameters["hidden_weight"][0]
        first.weight.data.copy_(start)
        torch.nn.init.zeros_(first.bias)
        layers = [first, torch.nn.ReLU(), last]
    torch.nn.init.zeros_(last.weight)
    torch.nn.init.zeros_(last.bias)
    model = torch.nn.Sequential(*layers)
    named = dict(model.named_parameters())
    groups = [
        {"params": [v for k, v in named.items() if k.endswith("weight")], "weight_decay": settings.weight_decay},
        {"params": [v for k, v in named.items() if k.endswith("bias")], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, eps=ADAM_EPSILON)
    batches_an_epoch = -(-len(train) // settings.batch_size)
    steps = settings.epochs * batches_an_epoch
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: schedule_factor(step, steps, settings.schedule, settings.warmup)
    )
    counts = np.bincount(train.targets, minlength=classes)
    weights = torch.from_numpy(class_weights(settings.class_weight, counts)).float()
    heads, losses = [], []
    for batches in training_batches(
        len(train),
        width,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        dropout=settings.dropout,
        seed=settings.seed,
    ):
        for positions, keep in batches:
            rows = train.index[positions]
            logits = model(features[rows] * torch.from_numpy(keep))
            each = torch.nn.functional.cross_entropy(
                logits, labels[rows], reduction="none", label_smoothing=settings.label_smoothing
            )
            optimizer.zero_grad()
            (each * weights[labels[rows]]).mean().backward()
            optimizer.step()
            scheduler.step()
        with torch.no_grad():
            said = model(features[validation.index])
            losses.append(float(torch.nn.functional.cross_entropy(said, labels[validation.index])))
        entry = layers[0]
        assert isinstance(entry, torch.nn.Linear)
        weight = (entry.weight * scale).detach().clone()
        heads.append((weight, (entry.bias - weight @ means).detach().clone()))
    return heads, losses


CASES: list[dict[str, Any]] = [
    {},
    {"center": False},
    {"standardize": True, "center": False},
    {"dropout": 0.0, "label_smoothing": 0.2},
    {"class_weight": ClassWeight.BALANCED, "label_smoothing": 0.1},
    {"schedule": Schedule.COSINE, "warmup": 0.3},
    {"head": HeadKind.MLP, "hidden": 7, "class_weight": ClassWeight.BALANCED},
]


@pytest.mark.parametrize("changes", CASES, ids=str)
def test_the_head_is_the_one_that_plain_torch_trains(changes: dict[str, Any]) -> None:
    train, validation = problem()
    settings = TrainSettings(
        solver="sgd",
        **{"epochs": 6, "batch_size": 64, "learning_rate": 0.02, "weight_decay": 0.1, "dropout": 0.4, "seed": 3}
        | changes,
    )
    if settings.standardize:  # plain_torch always centers the columns that it standardizes
        settings = dataclasses.replace(settings, center=True)
    fit = fit_head(train, validation, target=THREE, settings=settings, device=CPU)
    heads, losses = plain_torch(train, validation, settings)
    np.testing.assert_allclose([e.validation_loss for e in fit.history], losses, rtol=2e-5)
    assert fit.best_epoch == int(np.argmin(losses)) + 1
    layer = "hidden_" if settings.head is HeadKind.MLP else ""
    for name, value in zip(("weight", "bias"), heads[fit.best_epoch - 1], strict=True):
        np.testing.assert_allclose(fit.parameters[layer + name], value, atol=5e-5)


def test_the_gradient_equals_autograds() -> None:
    torch.manual_seed(0)
    settings = [
        TrainSettings(solver="sgd", label_smoothing=s, class_weight=w)
        for s in (0, 0.3)
        for w in (ClassWeight.NONE, "balanced")
    ]
    loss = CrossEntropy(settings, np.array([10, 30, 60]), CPU)
    logits = (torch.randn(4, 3, 50) * 3).requires_grad_()
    labels = torch.randint(3, (50,))
    total = torch.zeros(())
    for head, each in enumerate(settings):
        weights = torch.from_numpy(class_weights(each.class_weight, np.array([10, 30, 60]))).float()
        losses = torch.nn.functional.cross_entropy(
            logits[head].T, labels, reduction="none", label_smoothing=each.label_smoothing
        )
        total = total + (losses * weights[labels]).sum()
    total.backward()
    found, gradient = loss.loss_and_gradient(logits.detach().clone(), labels)
    assert float(found.sum()) == pytest.approx(float(total.detach()), rel=1e-6)
    torch.testing.assert_close(gradient, logits.grad, atol=1e-6, rtol=1e-5)


def test_balanced_class_weights_equal_scikit_learns() -> None:
    labels = np.repeat([0, 1, 2], [5, 20, 75])
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    np.testing.assert_allclose(class_weights(ClassWeight.BALANCED, np.bincount(labels)), expected)


MANY = [
    TrainSettings(
        solver="sgd",
        epochs=8,
        batch_size=64,
        learning_rate=lr,
        weight_decay=decay,
        dropout=dropout,
        label_smoothing=smoothing,
        class_weight=weight,
        patience=3,
        seed=2,
    )
    for lr, decay, dropout, smoothing, weight in itertools.product(
        (0.3, 0.01), (0.0, 0.1), (0.3, 0.0, 0.55), (0.0, 0.1), ClassWeight
    )
]


def trace(train: Dataset, validation: Dataset, settings: list[TrainSettings]) -> tuple[dict[Any, Any], list[Fit]]:
    """Train heads together; returns every head's parameters after each of its epochs."""
    ordered = sorted(settings, key=lambda each: each.dropout)
    found = {}
    with open_threads() as threads:
        trainer = Trainer(train, validation, target=THREE, settings=ordered, device=CPU, threads=threads)
        before = list(trainer.active)
        for epoch in trainer.run():
            for place, head in enumerate(trainer.active):
                values = {name: value[place] for name, value in trainer._heads.parameters.items()}
                found[ordered[head], epoch] = trainer._for_raw_features(values)
            assert set(trainer.active) <= set(before)
            before = list(trainer.active)
        return found, trainer.result(0.0)


@pytest.mark.parametrize("kind", list(HeadKind))
def test_a_head_trained_with_others_equals_the_head_alone_at_every_epoch(kind: HeadKind) -> None:
    train, validation = problem()
    settings = [dataclasses.replace(each, head=kind, hidden=5) for each in MANY]
    together, _ = trace(train, validation, settings)
    for each in settings[:: 3 if kind is HeadKind.MLP else 1]:
        alone, _ = trace(train, validation, [each])
        epochs = [epoch for s, epoch in together if s == each]
        assert epochs == [epoch for s, epoch in alone if s == each] and epochs
        for epoch in epochs:
            for name, value in alone[each, epoch].items():
                np.testing.assert_allclose(together[each, epoch][name], value, atol=1e-4, err_msg=f"{each} {epoch}")


def test_many_heads_end_as_they_would_alone() -> None:
    train, validation = problem()
    fits = fit_heads(train, validation, target=THREE, settings=MANY, device=CPU)
    lengths = set()
    for each, fit in zip(MANY, fits, strict=True):
        alone = fit_head(train, validation, target=THREE, settings=each, device=CPU)
        assert fit.best_epoch == alone.best_epoch and len(fit.history) == len(alone.history)
        np.testing.assert_allclose(fit.parameters["weight"], alone.parameters["weight"], atol=1e-4)
        for ours, theirs in zip(fit.history, alone.history, strict=True):
            np.testing.assert_allclose(dataclasses.astuple(ours), dataclasses.astuple(theirs), atol=1e-5)
        lengths.add(len(fit.history))
    assert len(lengths) > 2  # some stopped early, at different times


def test_a_head_that_diverges_harms_no_other() -> None:
    train, validation = problem()
    calm = TrainSettings(solver="sgd", epochs=12)
    wild = dataclasses.replace(calm, learning_rate=1000, weight_decay=1000)
    fits = fit_heads(train, validation, target=THREE, settings=[wild, calm], device=CPU)
    assert fits[0].diverged and not fits[1].diverged
    alone = fit_head(train, validation, target=THREE, settings=calm, device=CPU)
    np.testing.assert_allclose(fits[1].parameters["weight"], alone.parameters["weight"], atol=1e-6)


def test_of_equal_epochs_the_earlier_is_kept() -> None:
    """With a learning rate of 1e-9 the loss changes by less than 1e-6 in all, so the first epoch is the best."""
    train, validation = problem()
    fit = fit_head(
        train, validation, target=THREE, settings=TrainSettings(solver="sgd", epochs=5, learning_rate=1e-9), device=CPU
    )
    losses = [epoch.validation_loss for epoch in fit.history]
    assert np.argmin(losses) > 0 and fit.best_epoch == 1
    patient = TrainSettings(solver="sgd", epochs=50, learning_rate=1e-9, patience=4)
    assert len(fit_head(train, validation, target=THREE, settings=patient, device=CPU).history) == 5


def test_the_number_of_threads_changes_nothing() -> None:
    train, validation = problem(4500)
    weights = []
    for threads in (1, 2, 3):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            fit = fit_head(train, validation, target=THREE, settings=TrainSettings(solver="sgd", epochs=3), device=CPU)
        finally:
            torch.set_num_threads(before)
        weights.append(fit.parameters["weight"])
    assert all(np.array_equal(weight, weights[0]) for weight in weights)


@pytest.mark.parametrize("kind", ["float32", "float16"])
def test_streamed_rows_train_the_same_head(kind: str) -> None:
    """Equal to the last bit: order, masks and products are the same as with rows in memory."""
    rng = np.random.default_rng(0)
    labels = np.sort(rng.integers(3, size=6000))
    features = (rng.normal(size=(3, 600))[labels] + 3 * rng.normal(size=(6000, 600))).astype(kind)
    index = np.sort(rng.permutation(6000)[:5000])
    train = Dataset(features=features, labels=labels, index=index)
    validation = Dataset(features=features, labels=labels, index=np.setdiff1d(np.arange(6000), index))
    settings = TrainSettings(solver="sgd", epochs=2, batch_size=1024, standardize=True)
    assert 4 * features.size > 1 << 23
    fits = [
        fit_head(
            train,
            validation,
            target=THREE,
            settings=dataclasses.replace(settings, memory=memory),
            device=CPU,
        )
        for memory in (None, 1 << 24)
    ]
    assert np.array_equal(fits[0].parameters["weight"], fits[1].parameters["weight"])
    assert fits[0].history == fits[1].history


@pytest.mark.parametrize("solver", ["one head", "many heads", "exact"])
def test_streaming_keeps_to_its_bound(solver: str, tmp_path: Path) -> None:
    """Peak of numpy's allocations, for 38 MiB of features in a file; torch holds only heads and chunks."""
    rng = np.random.default_rng(0)
    rows, width, bound = 20_000, 500, 1 << 24
    features = np.memmap(tmp_path / "features", np.float32, "w+", shape=(rows, width))
    features[:] = rng.standard_normal((rows, width), np.float32)
    labels = rng.integers(3, size=rows)
    index = np.arange(rows)
    train, validation = (
        Dataset(features=features, labels=labels, index=each) for each in (index[:18000], index[18000:])
    )

    def peak(memory: int | None) -> int:
        settings = TrainSettings(solver="sgd", epochs=1, memory=memory)
        many = [dataclasses.replace(settings, learning_rate=1 / n) for n in range(1, 21)]
        tracemalloc.start()
        try:
            if solver == "exact":
                with open_threads() as threads:
                    LogisticSolver(train, classes=3, settings=settings, threads=threads).solve(1.0)
            else:
                each = many if solver == "many heads" else [settings]
                fit_heads(train, validation, target=THREE, settings=each, device=CPU)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(bound)  # leaves out what only the first call allocates
    assert peak(bound) < bound * 1.5
    assert peak(None) > 4 * 18000 * width


def test_a_constant_column_is_not_scaled() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(500, 6)).astype(np.float32) * [1, 1, 1e-3, 100, 1, 1]
    features[:, 1] = 0.25 + 1e-9 * rng.normal(size=500)
    features[:, 4] = 3
    features[:, 5] = 1e-9 * rng.normal(size=500)
    rows = Dataset(features=features.astype(np.float32), labels=np.zeros(500, np.int64), index=np.arange(500))
    scaler = fit_scaler(rows, center=True, standardize=True)
    assert scaler.scale[[1, 4, 5]].tolist() == [1, 1, 1]
    spread = ((rows.features - scaler.center) * scaler.scale).std(0)
    np.testing.assert_allclose(spread[[0, 2, 3]], 1, rtol=1e-5)
    assert spread[[1, 4, 5]].max() < 1e-6


def test_schedules_rise_and_fall() -> None:
    cosine = [schedule_factor(step, 100, Schedule.COSINE, 0.1) for step in range(100)]
    np.testing.assert_allclose(cosine[:10], np.arange(1, 11) / 10)
    assert cosine[10] == 1 and cosine[55] == pytest.approx(0.5) and 0 < cosine[99] < 1e-3
    assert all(a > b for a, b in itertools.pairwise(cosine[10:]))
    assert {schedule_factor(step, 100, Schedule.CONSTANT, 0.0) for step in range(100)} == {1.0}


def test_the_temperature_has_the_lowest_loss() -> None:
    """Labels are drawn from the probabilities of logits / 2.5: the best temperature is about 2.5."""
    rng = np.random.default_rng(0)
    logits = (rng.normal(size=(50_000, 4)) * 5).astype(np.float32)
    said = np.exp(logits / 2.5) / np.exp(logits / 2.5).sum(1, keepdims=True)
    labels = (said.cumsum(1) > rng.random((50_000, 1))).argmax(1)
    found = fit_temperature(logits, labels)
    assert found == pytest.approx(2.5, rel=0.02)

    def loss(temperature: float) -> float:
        return float(
            torch.nn.functional.cross_entropy(torch.from_numpy(logits).double() / temperature, torch.from_numpy(labels))
        )

    assert loss(found) <= min(loss(found * 1.001), loss(found / 1.001))


def test_a_table_sorted_by_class_trains_like_a_shuffled_one() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(3, size=8000)
    features = (rng.normal(size=(3, 16))[labels] + 2 * rng.normal(size=(8000, 16))).astype(np.float32)
    train, held = np.arange(6000), np.arange(6000, 8000)
    by_class = train[np.argsort(labels[train], kind="stable")]
    settings = TrainSettings(solver="sgd", epochs=30, batch_size=512)
    curves = []
    for index in (train, by_class):
        datasets = [Dataset(features=features, labels=labels, index=each) for each in (index, held)]
        fit = fit_head(*datasets, target=THREE, settings=settings, device=CPU)
        curves.append([epoch.validation_accuracy for epoch in fit.history[10:]])
    shuffled, ordered = np.array(curves)
    assert abs(shuffled.mean() - ordered.mean()) < 0.005
    assert ordered.std() < 2 * shuffled.std() + 0.003
