"""Quality beside speed: the same head trained in the program's loop and from a cache, and the effect of noise."""

from __future__ import annotations

import dataclasses
import enum
import functools
import math
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ...cache.reader import open_cache
from ..heads.head import Head
from ..heads.metrics import evaluate
from ..heads.sampling import training_batches
from ..heads.stacked import ADAM_EPSILON
from ..progress import silent
from ..runs.run import load_head, read_run
from ..settings import TrainSettings
from ..splits.divide import divide
from ..types import Features
from ..units import duration
from .program import DROPOUT, HEAD_LEARNING_RATE, Program, ProgramSettings
from .two_stages import Measurement, Sample

AGREE = 1e-4
"""Weights of the same training, in the loop and from the cache, differ by at most this."""
_BATCH_ROWS = 16
_NOISY_EPOCH = 1.5
"""About how many times as long an epoch takes with dropout in the encoder."""
_LEAST_TRAIN = 100
"""Least rows to train on: with fewer, accuracy means little."""


class Training(enum.StrEnum):
    """A way to train the same kind of head."""

    AS_WRITTEN = "program as written"  # encoder in the loop, with dropout, because `model.train()` turns it on
    CLEAN = "program, encoder in eval()"  # encoder in the loop, without dropout
    CACHED = "headstart, same training"  # from a float32 cache, uncentered; optimizer, batches and masks as in the loop
    DEFAULTS = "headstart, its own defaults"  # from a cache, with the defaults of `extract` and `train_head`


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained:
    """One head, tested."""

    training: Training
    seed: int  # of the order of the rows and of the dropout masks
    epochs: int  # after which the head was taken; headstart trains on
    accuracy: float  # on the test rows
    low: float  # of the 95% interval of the accuracy
    high: float
    seconds: float  # of the training, with the encoder where it runs in the loop
    difference: float | None = None  # of `Training.CLEAN`: the largest of any weight from `Training.CACHED`


@dataclasses.dataclass(frozen=True, kw_only=True)
class QualityResult:
    """All heads."""

    length: int = 0  # tokens at which texts were truncated, and to which the program padded them
    train_rows: int = 0  # to train and to choose the epoch on
    test_rows: int = 0
    trained: tuple[Trained, ...] = ()
    not_run: str | None = None  # why some or all heads were not trained

    @property
    def agree(self) -> bool:
        """Whether every head from the cache has the weights of the head from the loop."""
        return max((h.difference for h in self.trained if h.difference is not None), default=math.inf) <= AGREE


def compare_quality(measurement: Measurement, sample: Sample) -> QualityResult:
    """Train heads in every way, for as many seeds as fit before the deadline.

    There are as many rows as let all seeds fit or, where those are too few, as let one seed fit.
    """
    settings, rows = measurement.settings, len(sample.texts)
    tested = settings.quality_test / settings.quality_train  # test rows for each row to train on
    most = min(settings.quality_train, int(rows / (1 + tested)))
    least = max(sample.few, min(_LEAST_TRAIN, settings.quality_train))
    if most < least:
        why = f"{rows:,} distinct texts are too few to train on {least:,} of them and to test on others"
        return QualityResult(not_run=why)
    measurement.on_step("the speed of the program's encoder")
    limits = {"classes": len(sample.names), "max_length": min(settings.quality_length, settings.max_length)}
    labels = [sample.names.index(label) for label in sample.labels]
    program = Program(measurement.files, sample.texts, labels, device=measurement.device, **limits)
    trial = np.arange(min(4 * _BATCH_ROWS, rows))
    program.encode(trial[:_BATCH_ROWS])  # the first batch is slower than the next ones
    started = time.perf_counter()
    program.encode(trial)
    per_row, train = (time.perf_counter() - started) / len(trial), 0
    for seeds in (len(settings.seeds), 1):
        passes = tested + 2 * (1 + tested) + seeds * settings.epochs * (1 + _NOISY_EPOCH)  # test, extractions, loops
        if train < least:
            train = int(min(most, measurement.left() / per_row / passes))
    if train < least:
        return QualityResult(not_run=f"{train} rows to train on fitted into the rest of the budget; raise it")
    test = min(round(train * tested), rows - train)
    comparison = _Comparison(measurement, sample, program, train, test)
    trained: list[Trained] = []
    not_run, longest = None, 0.0
    for number, seed in enumerate(settings.seeds):
        started, left = time.perf_counter(), measurement.left()
        if number and longest > left:
            skipped = f"{len(settings.seeds) - number} of {len(settings.seeds)} seeds were left out"
            not_run = f"{skipped}: one takes {duration(longest)}, and {duration(left)} of the budget were left"
            break
        trained += comparison.train_all(seed)
        longest = max(longest, time.perf_counter() - started)
    length = limits["max_length"]
    return QualityResult(length=length, train_rows=train, test_rows=test, trained=tuple(trained), not_run=not_run)


class _Comparison:
    """Trains heads on the same rows in the program and from caches, and tests them on the same others."""

    def __init__(self, measurement: Measurement, sample: Sample, program: Program, train: int, test: int) -> None:
        self._measurement, self._program, self._names = measurement, program, sample.names
        self._caches: dict[str, list[Path]] = {"exact": [], "default": []}
        for kind, changes in (("exact", {"precision": "float32"}), ("default", {})):
            for part, rows in (("train", slice(train)), ("test", slice(train, train + test))):
                measurement.on_step(f"extracting the {part} rows, {kind}")
                name, texts, labels = f"{kind}-{part}.h5", sample.texts[rows], sample.labels[rows]
                cache, _ = measurement.extract(name, texts, labels, max_length=program.max_length, **changes)
                self._caches[kind].append(cache)
        exact, exact_test = map(open_cache, self._caches["exact"])
        self._splits = divide(exact, validation=None, test=exact_test, settings=TrainSettings(), report=silent)
        measurement.on_step("the program's test")
        self._test_features = program.encode(np.arange(train, train + test))  # in eval(), so the same for every head

    def train_all(self, seed: int) -> list[Trained]:
        """Train in every way with one seed: in the loop for as many epochs as chosen for the head from the cache."""
        same: dict[str, Any] = {"learning_rate": HEAD_LEARNING_RATE, "dropout": DROPOUT, "center": False, "seed": seed}
        same |= {"epochs": self._measurement.settings.epochs, "batch_size": _BATCH_ROWS}
        cached, head = self._from_cache(Training.CACHED, "exact", **same)
        settings = TrainSettings(**{**same, "epochs": cached.epochs})
        looped = [self._in_loop(training, settings, head) for training in (Training.AS_WRITTEN, Training.CLEAN)]
        return [*looped, cached, self._from_cache(Training.DEFAULTS, "default", seed=seed)[0]]

    def _from_cache(self, training: Training, kind: str, *, seed: int, **changes: Any) -> tuple[Trained, Head]:
        self._measurement.on_step(f"{training}, seed {seed}")
        train, test = self._caches[kind]
        path, seconds = self._measurement.train(train, test=test, seed=seed, **changes)
        run = read_run(path)
        scores = _accuracy(run["metrics"]["test"])
        return Trained(training=training, seed=seed, epochs=run["best_epoch"], seconds=seconds, **scores), load_head(
            path
        )

    def _in_loop(self, training: Training, settings: TrainSettings, cached: Head) -> Trained:
        """Train in the program's own loop as `train_head` does: from zero, with its order, masks and optimizer."""
        model, splits, started = self._program.model, self._splits, time.perf_counter()
        nn.init.zeros_(model.fc.weight)
        nn.init.zeros_(model.fc.bias)
        groups: list[dict[str, Any]] = [
            {"params": [model.fc.weight], "weight_decay": settings.weight_decay},
            {"params": [model.fc.bias], "weight_decay": 0},
        ]
        self._program.optimizers[True] = torch.optim.AdamW(groups, lr=settings.learning_rate, eps=ADAM_EPSILON)
        torch.manual_seed(settings.seed)  # for the encoder's own dropout
        options = {"epochs": settings.epochs, "batch_size": settings.batch_size, "seed": settings.seed}
        epochs = training_batches(len(splits.train), model.fc.in_features, dropout=settings.dropout, **options)
        rung = ProgramSettings(frozen=True, noisy=training is Training.AS_WRITTEN)
        step = functools.partial(self._measurement.on_step, f"{training}, seed {settings.seed}")
        for epoch in epochs:
            positions, masks = zip(*epoch, strict=True)
            model.dropout = _Masks(masks)
            self._program.train(rung, [splits.train.index[batch].tolist() for batch in positions], step)
        seconds = time.perf_counter() - started
        weight, bias = (parameter.detach().cpu().numpy().copy() for parameter in (model.fc.weight, model.fc.bias))
        said = dataclasses.replace(cached, weight=weight, bias=bias).log_probabilities(self._test_features)
        scores = _accuracy(evaluate(splits.test.targets, said, splits.test_groups, names=self._names))
        difference = float(max(np.abs(weight - cached.weight).max(), np.abs(bias - cached.bias).max()))
        return Trained(
            training=training,
            seed=settings.seed,
            epochs=settings.epochs,
            seconds=seconds,
            difference=difference if training is Training.CLEAN else None,
            **scores,
        )


def _accuracy(metrics: dict[str, Any]) -> dict[str, float]:
    low, high = metrics["accuracy_interval"]
    return {"accuracy": metrics["accuracy"], "low": low, "high": high}


class _Masks(nn.Module):
    """Dropout with given masks, (batch, hidden) float32 for each batch in turn."""

    def __init__(self, masks: Iterable[Features]) -> None:
        super().__init__()
        self._masks = iter(masks)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features * torch.from_numpy(next(self._masks)).to(features.device)
