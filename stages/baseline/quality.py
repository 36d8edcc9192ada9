"""Quality beside speed: the same head trained in the program's loop and from a cache, and the effect of noise."""

from __future__ import annotations

import dataclasses
import enum
import functools
import math
import time
from collections.abc import Iterator
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
from ..runs.run import load_head
from ..settings import Solver, TrainSettings
from ..splits.divide import divide
from ..types import Features
from ..units import duration
from .ladder import RUN_NAME, Measurement, Sample
from .program import DROPOUT, HEAD_LEARNING_RATE, Program, ProgramSettings

AGREE = 1e-4  # greatest difference of a weight between the same training in the loop and from the cache
_BATCH_ROWS = 16
_NOISY_EPOCH = 1.5  # about how many times as long an epoch takes with dropout in the encoder
_LEAST_TRAIN = 100  # rows; with fewer, accuracy means little


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
    epochs: int  # after which the head was taken; headstart trains on. 0 for its default head, which has none
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
    """Train heads in every way, on as many rows as let all seeds fit before the deadline, or else one seed."""
    settings, rows = measurement.settings, len(sample.texts)
    tested = settings.quality_test / settings.quality_train  # test rows for each row to train on
    most = min(settings.quality_train, int(rows / (1 + tested)))
    least = max(sample.few, min(_LEAST_TRAIN, settings.quality_train))
    if most < least:
        return QualityResult(not_run=f"{rows:,} distinct texts are too few to train on {least:,} and to test on others")
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
    sizes = {"length": program.max_length, "train_rows": train, "test_rows": test}
    return QualityResult(**sizes, trained=tuple(trained), not_run=not_run)


class _Comparison:
    """Trains heads on the same rows in the program and from caches, and tests them on the same others."""

    def __init__(self, measurement: Measurement, sample: Sample, program: Program, train: int, test: int) -> None:
        self._measurement, self._program = measurement, program
        self._caches: dict[str, list[Path]] = {"exact": [], "default": []}
        for kind, changes in (("exact", {"precision": "float32"}), ("default", {})):
            for part, rows in (("train", slice(train)), ("test", slice(train, train + test))):
                measurement.on_step(f"extracting the {part} rows, {kind}")
                texts, labels = sample.texts[rows], sample.labels[rows]
                cache, _ = measurement.extract(
                    f"{kind}-{part}.h5", texts, labels, max_length=program.max_length, **changes
                )
                self._caches[kind].append(cache)
        exact, exact_test = map(open_cache, self._caches["exact"])
        self._splits = divide(
            exact, validation=None, test=exact_test, settings=TrainSettings(solver=Solver.SGD), report=silent
        )
        measurement.on_step("the program's test")
        self._test_features = program.encode(np.arange(train, train + test))  # in eval(), so the same for every head

    def train_all(self, seed: int) -> list[Trained]:
        """Train in every way with one seed: in the loop for as many epochs as chosen for the head from the cache."""
        same: dict[str, Any] = {"learning_rate": HEAD_LEARNING_RATE, "dropout": DROPOUT, "center": False, "seed": seed}
        same |= {"solver": Solver.SGD, "epochs": self._measurement.settings.epochs, "batch_size": _BATCH_ROWS}
        cached, head = self._from_cache(Training.CACHED, "exact", **same)
        settings = TrainSettings(**{**same, "epochs": cached.epochs})
        looped = [self._in_loop(training, settings, head) for training in (Training.AS_WRITTEN, Training.CLEAN)]
        return [*looped, cached, self._from_cache(Training.DEFAULTS, "default", seed=seed)[0]]

    def _from_cache(self, training: Training, kind: str, *, seed: int, **changes: Any) -> tuple[Trained, Head]:
        self._measurement.on_step(f"{training}, seed {seed}")
        train, test = self._caches[kind]
        run, seconds = self._measurement.train(train, test=test, seed=seed, **changes)
        metrics, epochs = run["metrics"]["test"], run["best_epoch"] or 0
        trained = _trained(metrics, training=training, seed=seed, epochs=epochs, seconds=seconds)
        return trained, load_head(self._measurement.scratch / RUN_NAME)

    def _in_loop(self, training: Training, settings: TrainSettings, cached: Head) -> Trained:
        """Train in the program's own loop as `train_head` does: from zero, with its order, masks and optimizer."""
        model, splits, started = self._program.model, self._splits, time.perf_counter()
        nn.init.zeros_(model.fc.weight)
        nn.init.zeros_(model.fc.bias)
        groups: list[dict[str, Any]] = [{"params": [model.fc.weight], "weight_decay": settings.weight_decay}]
        groups.append({"params": [model.fc.bias], "weight_decay": 0})
        self._program.optimizers[True] = torch.optim.AdamW(groups, lr=settings.learning_rate, eps=ADAM_EPSILON)
        torch.manual_seed(settings.seed)  # for the encoder's own dropout
        options = {"epochs": settings.epochs, "batch_size": settings.batch_size, "seed": settings.seed}
        epochs = training_batches(len(splits.train), model.fc.in_features, dropout=settings.dropout, **options)
        rung = ProgramSettings(frozen=True, noisy=training is Training.AS_WRITTEN)
        step = functools.partial(self._measurement.on_step, f"{training}, seed {settings.seed}")
        for epoch in epochs:
            positions, masks = zip(*epoch, strict=True)
            model.dropout = nn.Identity()
            model.dropout.register_forward_hook(functools.partial(_mask, iter(masks)))
            self._program.train(rung, [splits.train.index[batch].tolist() for batch in positions], step)
        seconds = time.perf_counter() - started
        weight, bias = (parameter.detach().cpu().numpy().copy() for parameter in (model.fc.weight, model.fc.bias))
        said = dataclasses.replace(cached, weight=weight, bias=bias).log_probabilities(self._test_features)
        metrics = evaluate(splits.test.targets, said, splits.test_groups, names=cached.label_names)
        trained = _trained(metrics, training=training, seed=settings.seed, epochs=settings.epochs, seconds=seconds)
        if training is Training.AS_WRITTEN:
            return trained
        difference = max(np.abs(weight - cached.weight).max(), np.abs(bias - cached.bias).max())
        return dataclasses.replace(trained, difference=float(difference))


def _trained(metrics: dict[str, Any], **facts: Any) -> Trained:
    low, high = metrics["accuracy_interval"]
    return Trained(accuracy=metrics["accuracy"], low=low, high=high, **facts)


def _mask(masks: Iterator[Features], module: nn.Module, inputs: Any, features: torch.Tensor) -> torch.Tensor:
    """Dropout as a forward hook: it applies the next of the given masks, (batch, hidden) float32."""
    return features * torch.from_numpy(next(masks)).to(features.device)
