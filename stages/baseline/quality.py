"""Quality beside speed: the same head from the program's loop and from the cache, and what the program's noise does."""

from __future__ import annotations

import dataclasses
import enum
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...cache.reader import open_cache
from ..encoders.files import EncoderFiles
from ..extract import extract
from ..heads.dataset import Splits
from ..heads.metrics import evaluate
from ..inspect import inspect_path
from ..progress import silent
from ..runs.run import load_head
from ..settings import SpeedupSettings, TrainSettings
from ..splits.divide import divide
from ..train_head import train_head
from ..units import duration
from .loop import BATCH, FrozenLoop, Weights
from .program import DROPOUT, Program
from .stages import Draw, extract_settings, head_settings

AGREE = 1e-4
"""Weights of the same training, from the loop and from the cache, differ by no more."""
_LEARNING_RATE = 1e-3
_NOISY = 1.5
"""What an epoch with the encoder's dropout on takes, about, in epochs without."""
_LEAST_TRAIN = 100
"""Rows to train on, at least: with fewer, accuracy says nothing."""


class Training(enum.StrEnum):
    """A way to the same kind of head."""

    AS_WRITTEN = "program as written"
    """The encoder in the loop, its own dropout on while the head trains, as ``train()`` leaves it."""
    CLEAN = "program, encoder in eval()"
    """The encoder in the loop, its own dropout off."""
    CACHED = "headstart, same training"
    """From a cache, in float32 and without centering: the same optimiser, batches, masks and epochs."""
    DEFAULTS = "headstart, its own defaults"
    """From a cache, as `extract` and `train-head` do it of themselves."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained:
    """One head, tested.

    Attributes:
        training: How it came about.
        seed: Of order and masks.
        epochs: After how many epochs it was taken; headstart trains on past it.
        accuracy, low, high: On the test rows, with its 95% interval.
        seconds: What training took, the encoder included where it ran.
        difference: The largest of any weight from `Training.CACHED`'s; None where the two are not to agree.
    """

    training: Training
    seed: int
    epochs: int
    accuracy: float
    low: float
    high: float
    seconds: float
    difference: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class QualityResult:
    """What all trainings came to.

    Attributes:
        length: Tokens at which texts were cut, and to which the program padded them.
        train_rows, test_rows: How many were trained and chosen on, and tested on.
        trained: The heads, seed by seed.
        not_run: Why some or all were not trained, or None.
    """

    length: int = 0
    train_rows: int = 0
    test_rows: int = 0
    trained: tuple[Trained, ...] = ()
    not_run: str | None = None

    @property
    def agree(self) -> bool:
        """Whether each head from the cache is the one from the program's loop."""
        found = [each.difference for each in self.trained if each.difference is not None]
        return bool(found) and max(found) <= AGREE


def compare_quality(
    draw: Draw,
    names: tuple[str, ...],
    files: EncoderFiles,
    settings: SpeedupSettings,
    *,
    scratch: Path,
    device: torch.device,
    deadline: float,
    on_step: Callable[[str], None],
) -> QualityResult:
    """Train heads in every way, for as many seeds as fit before the deadline, on as many rows as let all of them fit,
    or one where that would be too few.

    The test rows are encoded once for both of the program's heads: its encoder is in ``eval()`` when it tests, so they
    would be the same each time.

    Args:
        draw: Distinct texts with their labels, in random order but for the first few.
        names: The classes.
        files: The encoder's.
        settings: Rows, epochs and seeds.
        scratch: A folder for caches and runs.
        device: Where to compute.
        deadline: When to be done, on `time.perf_counter`'s clock.
        on_step: Told of each step.
    """
    work = _Comparison(draw, names, files, settings, scratch=scratch, device=device)
    on_step("the speed of the program's encoder")
    least = max(draw.few, min(_LEAST_TRAIN, settings.quality_train))
    if work.most_rows < least:
        return QualityResult(
            not_run=f"{len(draw):,} distinct texts are too few to train on {least:,} and to test on others"
        )
    fits = work.fit_rows(deadline - time.perf_counter(), least)
    if fits < least:
        return QualityResult(not_run=f"{fits} rows to train on fitted into the rest of the budget; raise it")
    work.prepare(fits, on_step)
    trained: list[Trained] = []
    not_run, longest = None, 0.0
    for number, seed in enumerate(settings.seeds):
        left = deadline - time.perf_counter()
        if number and longest > left:
            not_run = (
                f"{len(settings.seeds) - number} of {len(settings.seeds)} seeds were left out: one takes "
                f"{duration(longest)}, and {duration(max(left, 0.0))} of the budget were left"
            )
            break
        started = time.perf_counter()
        trained += work.train_all(seed, on_step)
        longest = max(longest, time.perf_counter() - started)
    return QualityResult(
        length=_length(settings),
        train_rows=work.train_rows,
        test_rows=work.test_rows,
        trained=tuple(trained),
        not_run=not_run,
    )


def _length(settings: SpeedupSettings) -> int:
    return min(settings.quality_length, settings.max_length)


class _Comparison:
    """Rows, the program on them, and caches of them."""

    def __init__(
        self,
        draw: Draw,
        names: tuple[str, ...],
        files: EncoderFiles,
        settings: SpeedupSettings,
        *,
        scratch: Path,
        device: torch.device,
    ) -> None:
        self._columns, self._settings, self._scratch = draw.columns, settings, scratch
        self._names, self._rows = names, len(draw)
        program = Program(
            files,
            draw.columns[settings.text_column],
            [names.index(label) for label in draw.columns[settings.label_column]],
            classes=len(names),
            max_length=_length(settings),
            device=device,
        )
        self._loop = FrozenLoop(program, device)
        self._parts: Splits | None = None
        self.train_rows = self.test_rows = 0

    @property
    def most_rows(self) -> int:
        """How many rows to train on there are, where each has its share of rows to test on."""
        settings = self._settings
        return min(settings.quality_train, int(self._rows / (1 + settings.quality_test / settings.quality_train)))

    def fit_rows(self, left: float, least: int) -> int:
        """How many rows to train on fit into so many seconds, at the speed that the loop has: with all the seeds, or
        with one of them where all would leave fewer than the least."""
        settings = self._settings
        trial = list(range(min(4 * BATCH, self._rows)))
        self._loop.encode(trial[:BATCH])
        started = time.perf_counter()
        self._loop.encode(trial)
        per_row = (time.perf_counter() - started) / len(trial)
        tested = settings.quality_test / settings.quality_train
        once = tested + 2 * (1 + tested)  # the test, and two extractions at most
        for seeds in (len(settings.seeds), 1):
            passes = once + seeds * settings.epochs * (1 + _NOISY)
            rows = int(min(self.most_rows, max(left, 0.0) / per_row / passes))
            if rows >= least:
                break
        return rows

    def prepare(self, train: int, on_step: Callable[[str], None]) -> None:
        """Extract the rows to train and to test on, as the comparison needs them and as the defaults are."""
        settings = self._settings
        test = min(round(train * settings.quality_test / settings.quality_train), self._rows - train)
        self.train_rows, self.test_rows = train, test
        exact = extract_settings(settings, max_length=_length(settings), precision="float32")
        default = extract_settings(settings, max_length=_length(settings))
        for name, chosen in (("exact", exact), ("default", default)):
            for part, rows in (("train", slice(0, train)), ("test", slice(train, train + test))):
                table = {column: values[rows] for column, values in self._columns.items()}
                on_step(f"extracting the {part} rows, {name}")
                extract(table, self._scratch / f"{name}-{part}.h5", chosen)
        on_step("the program's test")
        self._test_features = self._loop.encode(range(train, train + test))

    def train_all(self, seed: int, on_step: Callable[[str], None]) -> list[Trained]:
        """Every way, with one seed."""
        on_step(f"{Training.CACHED}, seed {seed}")
        same = head_settings(
            self._settings,
            epochs=self._settings.epochs,
            batch_size=BATCH,
            learning_rate=_LEARNING_RATE,
            dropout=DROPOUT,
            center=False,
            seed=seed,
        )
        cached, head = self._cached(Training.CACHED, same, "exact")
        assert self._parts is not None
        looped = []
        for training in (Training.AS_WRITTEN, Training.CLEAN):
            detail = f"{training}, seed {seed}"
            started = time.perf_counter()
            weight, bias = self._loop.train(
                self._parts.train.index,
                same,
                classes=len(self._names),
                epochs=cached.epochs,
                noisy=training is Training.AS_WRITTEN,
                on_batch=functools.partial(on_step, detail),
            )
            seconds = time.perf_counter() - started
            difference = max(np.abs(weight - head.weight).max(), np.abs(bias - head.bias).max())
            looped.append(
                Trained(
                    training=training,
                    seed=seed,
                    epochs=cached.epochs,
                    seconds=seconds,
                    difference=float(difference) if training is Training.CLEAN else None,
                    **self._accuracy(weight, bias),
                )
            )
        on_step(f"{Training.DEFAULTS}, seed {seed}")
        defaults, _ = self._cached(Training.DEFAULTS, head_settings(self._settings, seed=seed), "default")
        return [*looped, cached, defaults]

    def _cached(self, training: Training, settings: TrainSettings, name: str) -> tuple[Trained, Any]:
        """A run of stage two, and its head."""
        caches = {part: self._scratch / f"{name}-{part}.h5" for part in ("train", "test")}
        started = time.perf_counter()
        run = train_head(caches["train"], self._scratch / "quality", settings, test=caches["test"], overwrite=True)
        seconds = time.perf_counter() - started
        found = inspect_path(run)
        if training is Training.CACHED:
            self._parts = divide(
                open_cache(caches["train"]),
                validation=None,
                test=open_cache(caches["test"]),
                settings=settings,
                report=silent,
            )
        test = found["metrics"]["test"]
        low, high = test["accuracy_interval"]
        trained = Trained(
            training=training,
            seed=settings.seed,
            epochs=found["best_epoch"],
            accuracy=test["accuracy"],
            low=low,
            high=high,
            seconds=seconds,
        )
        return trained, load_head(run)

    def _accuracy(self, weight: Weights, bias: Weights) -> dict[str, float]:
        assert self._parts is not None
        logits = torch.from_numpy(self._test_features @ weight.T + bias).double()
        said = torch.log_softmax(logits, dim=1).numpy()
        found = evaluate(self._parts.test.targets, said, self._parts.test_groups, names=self._names)
        low, high = found["accuracy_interval"]
        return {"accuracy": found["accuracy"], "low": low, "high": high}
