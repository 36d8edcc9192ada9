"""The numeric core of stage two: arrays in, a fitted linear head out. It knows no file and no terminal."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..cache.errors import SettingsError
from .progress import Report, Step, silent
from .settings import TrainSettings

Features = npt.NDArray[np.floating[Any]]
Indices = npt.NDArray[np.int64]

_SUM_ROWS = 8192
ADAM_EPSILON = 1e-5
"""AdamW's guard against division by zero, far above torch's 1e-8: real features have columns that are constant to
1e-9, and a small epsilon turns the rounding noise of their gradients into steps of full length. With this one the
same texts batched otherwise give the same head, and no curve is worse for it (bench/README.md)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rows:
    """Some rows of a feature matrix, with their labels.

    Attributes:
        features: (all rows, width) float32 or float16; may be a map of a file, of which batches alone are read.
        labels: (all rows,) int64.
        index: (rows,) int64, which of them.
    """

    features: Features
    labels: Indices
    index: Indices

    def __len__(self) -> int:
        return len(self.index)

    def batch(self, positions: Indices, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """The rows at these positions of the index: (batch, width) float32 and (batch,) int64."""
        rows = self.index[positions]
        features = torch.from_numpy(self.features[rows].astype(np.float32, copy=False))
        return features.to(device), torch.from_numpy(self.labels[rows]).to(device)


@dataclasses.dataclass(frozen=True)
class Epoch:
    """One line of the training curve: losses are mean cross-entropies, in nats."""

    epoch: int
    train_loss: float
    validation_loss: float
    validation_accuracy: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fit:
    """A fitted head.

    Attributes:
        weight: (classes, width) float32, of the best epoch.
        bias: (classes,) float32, of the best epoch.
        best_epoch: The epoch of the lowest validation loss, from 1; the earliest of equals.
        history: One entry per epoch.
        seconds: Spent training and validating.
    """

    weight: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32]
    best_epoch: int
    history: tuple[Epoch, ...]
    seconds: float


def fit_head(
    train: Rows,
    validation: Rows,
    *,
    classes: int,
    settings: TrainSettings,
    device: torch.device,
    report: Report = silent,
) -> Fit:
    """Train Dropout and Linear with AdamW on cross-entropy, and keep the epoch with the lowest validation loss.

    Where ``settings.center`` is set, each column's mean is taken off first, and the head that is returned has it in its
    bias: it reads features as they are.

    The head starts at zero: the problem is convex, and a start that no seed chooses is one thing fewer to vary.
    Weight decay leaves the bias alone (Loshchilov and Hutter, Decoupled Weight Decay Regularization, 2019).

    Raises:
        SettingsError: the loss is no longer finite.
    """
    started = time.perf_counter()
    width = train.features.shape[1]
    linear = torch.nn.Linear(width, classes, device=device)
    torch.nn.init.zeros_(linear.weight)
    torch.nn.init.zeros_(linear.bias)
    optimizer = head_optimizer(linear, settings)
    means = column_means(train) if settings.center else np.zeros(width)
    center = torch.from_numpy(means.astype(np.float32)).to(device)
    history: list[Epoch] = []
    best: tuple[float, torch.Tensor, torch.Tensor, int] | None = None
    for epoch, batches in enumerate(training_batches(len(train), width, settings), 1):
        total = torch.zeros((), dtype=torch.float64, device=device)
        for positions, keep in batches:
            features, labels = train.batch(positions, device)
            logits = linear((features - center) * keep.to(device))
            loss = torch.nn.functional.cross_entropy(logits, labels)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total += loss.detach() * len(positions)
        validation_loss, accuracy = _validate(linear, center, validation, settings.batch_size)
        history.append(Epoch(epoch, float(total) / len(train), validation_loss, accuracy))
        if not math.isfinite(validation_loss) or not math.isfinite(history[-1].train_loss):
            raise SettingsError(f"training diverged in epoch {epoch} (the loss is not finite); lower the learning rate")
        if best is None or validation_loss < best[0]:
            best = (validation_loss, linear.weight.detach().clone(), linear.bias.detach().clone(), epoch)
        report(Step("training", epoch, settings.epochs, "epochs"))
    assert best is not None  # there is at least one epoch
    weight = best[1].cpu().numpy()
    return Fit(
        weight=weight,
        bias=(best[2].cpu().numpy() - weight.astype(np.float64) @ center.cpu().numpy()).astype(np.float32),
        best_epoch=best[3],
        history=tuple(history),
        seconds=time.perf_counter() - started,
    )


def head_optimizer(linear: torch.nn.Linear, settings: TrainSettings) -> torch.optim.AdamW:
    """AdamW over one linear layer, with decay for the weight alone."""
    groups = [
        {"params": [linear.weight], "weight_decay": settings.weight_decay},
        {"params": [linear.bias], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, eps=ADAM_EPSILON)


def training_batches(
    rows: int, width: int, settings: TrainSettings
) -> Iterator[Iterator[tuple[Indices, torch.Tensor]]]:
    """Yield the epochs of a run; each yields its batches: positions of rows, and the dropout mask to multiply by.

    In every epoch every row is seen once. Order and masks depend on the seed, the shape and the batch size alone,
    and are drawn on the CPU, so that they are the same on every device.

    Yields:
        Per batch: positions (batch,) int64; mask (batch, width) float32 of 0 and 1 / (1 - dropout).
    """
    generator = torch.Generator().manual_seed(settings.seed)
    for _ in range(settings.epochs):
        yield _epoch_batches(rows, width, settings, generator)


def _epoch_batches(
    rows: int, width: int, settings: TrainSettings, generator: torch.Generator
) -> Iterator[tuple[Indices, torch.Tensor]]:
    order = torch.randperm(rows, generator=generator).numpy()
    for start in range(0, rows, settings.batch_size):
        positions = order[start : start + settings.batch_size]
        if settings.dropout == 0:
            yield positions, torch.ones(1, 1)
            continue
        uniform = torch.rand(len(positions), width, generator=generator)
        yield positions, (uniform >= settings.dropout).float() / (1 - settings.dropout)


def column_means(rows: Rows) -> npt.NDArray[np.float64]:
    """(width,) float64: the mean of each column over the rows."""
    total = np.zeros(rows.features.shape[1])
    for start in range(0, len(rows), _SUM_ROWS):
        total += rows.features[rows.index[start : start + _SUM_ROWS]].sum(axis=0, dtype=np.float64)
    return total / len(rows)


def _validate(linear: torch.nn.Linear, center: torch.Tensor, rows: Rows, batch_size: int) -> tuple[float, float]:
    """Mean cross-entropy and accuracy, without dropout."""
    loss = hits = 0.0
    with torch.inference_mode():
        for start in range(0, len(rows), batch_size):
            features, labels = rows.batch(np.arange(start, min(start + batch_size, len(rows))), center.device)
            logits = linear(features - center)
            loss += float(torch.nn.functional.cross_entropy(logits.double(), labels, reduction="sum"))
            hits += float((logits.argmax(1) == labels).sum())
    return loss / len(rows), hits / len(rows)
