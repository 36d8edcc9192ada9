"""What can be set in each stage, with the defaults that the command line shows. Light: it loads no library."""

from __future__ import annotations

import dataclasses
import enum
import itertools
import re
from collections.abc import Mapping
from typing import Any, TypeVar

from ..cache.documents import is_text
from ..cache.errors import SettingsError

VERIFY_SAMPLE = 64
"""Rows that `verify` encodes again, at most."""
_Choice = TypeVar("_Choice", bound=enum.StrEnum)


class Precision(enum.StrEnum):
    """What the encoder computes in. Part of a cache's identity: the features are not the same."""

    AUTO = "auto"
    """bfloat16 or float16 where the hardware has units for it, float32 elsewhere."""
    FLOAT32 = "float32"
    """Single precision throughout, autocast off: exact, and the reference."""
    BFLOAT16 = "bfloat16"
    """Autocast to bfloat16: float32's range, 8 bits of precision."""
    FLOAT16 = "float16"
    """Autocast to float16: more precision than bfloat16, less range."""


class Storage(enum.StrEnum):
    """How features are stored in the cache, whatever they were computed in."""

    FLOAT32 = "float32"
    """Four bytes a number."""
    FLOAT16 = "float16"
    """Two bytes a number: half the file, 11 bits of precision."""


class ForwardMode(enum.StrEnum):
    """How the encoder runs over a batch; chosen by the architecture and the device, and recorded."""

    PACKED = "packed"
    """Sequences end to end, without padding: the BERT family on a CPU."""
    PADDED = "padded"
    """The model's own forward pass over padded sequences of similar length: everything else."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExtractSettings:
    """Settings of stage one.

    Attributes:
        encoder: A hub id, or a folder that holds a model's files.
        revision: Branch, tag or commit of a hub id.
        text_column: Column of the texts.
        text_pair_column: Column of a second text in each row, read with the first as one sequence; None for single
            texts.
        label_column: Column of the labels; None for a table without.
        features: Which features to take: ``cls``, ``mean``, ``max``, ``pooler``, ``layer6.cls``, ``layer*.cls``.
        prefix: Text put before every text (of a pair, before the first), where the encoder was trained with one.
        max_length: Longest token sequence, special tokens included; longer ones are cut.
        precision: What the encoder computes in.
        storage: How features are stored.
        batch_tokens: Tokens in a batch, padding included where there is any; None for what suits the device.
        device: ``auto``, or a torch device: ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        skip_bad_rows: Leave out rows that have no text or no label, and count them, instead of stopping.
        allow_pickled_weights: Read a ``pytorch_model.bin`` where an encoder has no safetensors.
    """

    encoder: str = "bert-base-chinese"
    revision: str | None = None
    text_column: str = "text"
    text_pair_column: str | None = None
    label_column: str | None = "label"
    features: tuple[str, ...] = ("cls",)
    prefix: str = ""
    max_length: int = 128
    precision: Precision = Precision.AUTO
    storage: Storage = Storage.FLOAT32
    batch_tokens: int | None = None
    device: str = "auto"
    skip_bad_rows: bool = False
    allow_pickled_weights: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "precision", _choice(Precision, self.precision, "precision"))
        object.__setattr__(self, "storage", _choice(Storage, self.storage, "storage"))
        _require(self.max_length >= 1, "max_length", self.max_length, "at least 1")
        _require(self.batch_tokens is None or self.batch_tokens >= 1, "batch_tokens", self.batch_tokens, "at least 1")
        _require(is_text(self.prefix), "prefix", ascii(self.prefix), "UTF-8")
        _require(len(self.prefix) <= 1024, "prefix", f"{len(self.prefix)} characters", "at most 1024 characters")


class HeadKind(enum.StrEnum):
    """What stands between a feature and the classes."""

    LINEAR = "linear"
    """One weight and a bias for each class and column."""
    MLP = "mlp"
    """A hidden layer with a rectifier before it."""


class Solver(enum.StrEnum):
    """How a head is found."""

    SGD = "sgd"
    """AdamW over batches, with dropout; validation rows choose the epoch."""
    EXACT = "exact"
    """Multinomial logistic regression to its optimum: linear, without dropout, the same whatever the seed."""


class Schedule(enum.StrEnum):
    """How the learning rate goes on after the warm-up."""

    CONSTANT = "constant"
    """It stays."""
    COSINE = "cosine"
    """It falls to zero along half a cosine."""


class ClassWeight(enum.StrEnum):
    """What a row counts in the loss."""

    NONE = "none"
    """All rows count the same."""
    BALANCED = "balanced"
    """All classes count the same: rows / (classes x rows of the class), as in scikit-learn."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """Settings of stage two. The defaults were chosen on validation rows: see bench/README.md.

    Attributes:
        feature: Which of the cache's features to train on.
        test_fraction: Share of rows held out for the test, where no test cache is given.
        validation_fraction: Share of the remaining rows held out to choose the epoch by, likewise.
        folds: Divide the remaining rows into so many folds, and hold out one of them instead; 0 for none.
        fold: Which of the folds to hold out, from 1.
        split_seed: Fixes which rows are held out.
        head: What kind of head.
        hidden: Width of an MLP's hidden layer.
        solver: How the head is found.
        l2: The exact solver's penalty: 1 / C in scikit-learn's terms. It minimises the sum over the rows of the
            cross-entropy (times the class weight), plus l2 / 2 times the squared weights (not the bias).
        epochs: Times that every training row is seen.
        batch_size: Rows in a batch.
        learning_rate: AdamW's step.
        schedule: How the step goes on after the warm-up.
        warmup: Share of all steps over which the learning rate rises to its full value.
        weight_decay: AdamW's decay of the weights (not of the bias), as a share of the step.
        dropout: Probability that a feature's value is zeroed in training, to the next 1/65,536; the rest is scaled
            up to match.
        center: Take each column's mean over the training rows off before dropout, so that a value that is dropped
            becomes the usual one and not zero. The head absorbs the means into its bias.
        standardize: Divide each column by its spread over the training rows, where it has one.
        class_weight: What a row counts in the loss.
        label_smoothing: Share of a row's target that is spread evenly over all classes.
        patience: Stop after so many epochs without a lower validation loss; 0 for never.
        calibrate: Fit a temperature on the validation rows, by which the head divides its logits.
        seed: Fixes the order of the rows, the dropout masks and an MLP's start.
        device: ``auto``, or a torch device.
        memory: Bytes that features may take; more are streamed from the file. None for no bound.
        keep_shared: Train also on texts that the test or validation cache has.
    """

    feature: str = "cls"
    test_fraction: float = 0.2
    validation_fraction: float = 0.1
    folds: int = 0
    fold: int = 1
    split_seed: int = 0
    head: HeadKind = HeadKind.LINEAR
    hidden: int = 128
    solver: Solver = Solver.SGD
    l2: float = 1.0
    epochs: int = 100
    batch_size: int = 4096
    learning_rate: float = 0.01
    schedule: Schedule = Schedule.CONSTANT
    warmup: float = 0.0
    weight_decay: float = 0.01
    dropout: float = 0.3
    center: bool = True
    standardize: bool = False
    class_weight: ClassWeight = ClassWeight.NONE
    label_smoothing: float = 0.0
    patience: int = 0
    calibrate: bool = False
    seed: int = 0
    device: str = "auto"
    memory: int | None = None
    keep_shared: bool = False

    def __post_init__(self) -> None:
        for name, kind in (("head", HeadKind), ("solver", Solver), ("schedule", Schedule)):
            object.__setattr__(self, name, _choice(kind, getattr(self, name), name))
        object.__setattr__(self, "class_weight", _choice(ClassWeight, self.class_weight, "class_weight"))
        for name in ("test_fraction", "validation_fraction"):
            _require(0 < getattr(self, name) < 1, name, getattr(self, name), "between 0 and 1")
        for name in ("dropout", "label_smoothing", "warmup"):
            _require(0 <= getattr(self, name) < 1, name, getattr(self, name), "at least 0 and below 1")
        _require(0 < self.learning_rate <= 1000, "learning_rate", self.learning_rate, "above 0 and at most 1000")
        _require(0 <= self.weight_decay <= 1000, "weight_decay", self.weight_decay, "at least 0 and at most 1000")
        _require(0 < self.l2 < float("inf"), "l2", self.l2, "above 0")
        for name in ("epochs", "batch_size", "hidden"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        _require(self.patience >= 0, "patience", self.patience, "at least 0")
        _require(self.folds == 0 or self.folds >= 2, "folds", self.folds, "0, or at least 2")
        _require(1 <= self.fold <= max(self.folds, 1), "fold", self.fold, f"between 1 and {max(self.folds, 1)}")
        for name in ("seed", "split_seed"):
            _require(0 <= getattr(self, name) < 2**63, name, getattr(self, name), "at least 0")
        least = 1 << 24
        _require(self.memory is None or self.memory >= least, "memory", self.memory, "at least 16 MiB")
        if self.solver is Solver.EXACT:
            _require(self.head is HeadKind.LINEAR, "head", self.head, "linear for the exact solver")
            _require(self.label_smoothing == 0, "label_smoothing", self.label_smoothing, "0 for the exact solver")


class Ranking(enum.StrEnum):
    """By what a sweep ranks its settings: a mean over seeds and folds, each head at its epoch of the lowest loss."""

    LOG_LOSS = "log-loss"
    """Mean cross-entropy: the lowest wins."""
    ACCURACY = "accuracy"
    """Share of rows that are right."""
    MACRO_F1 = "macro-f1"
    """The mean of the classes' F1: for rare classes that matter."""


VARIED = {
    Solver.SGD: ("feature", "learning_rate", "weight_decay", "dropout", "label_smoothing", "class_weight"),
    Solver.EXACT: ("feature", "class_weight", "l2"),
}
"""What a sweep may vary beside seeds and folds, for each solver."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepSettings:
    """Settings of a sweep: the product of all values, times seeds and folds.

    Attributes:
        base: What the heads have in common. Its ``seed`` and ``fold`` are set by the sweep.
        values: What varies: a field of `TrainSettings` (see `VARIED`) and the values that it takes.
        seeds: Seeds, of which each gives a head.
        rank_by: By what the settings are ranked.
    """

    base: TrainSettings = dataclasses.field(default_factory=TrainSettings)
    values: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
    seeds: tuple[int, ...] = (0,)
    rank_by: Ranking = Ranking.LOG_LOSS

    def __post_init__(self) -> None:
        object.__setattr__(self, "rank_by", _choice(Ranking, self.rank_by, "rank_by"))
        allowed = VARIED[self.base.solver]
        for name, values in (*self.values.items(), ("seeds", self.seeds)):
            _require(len(set(values)) == len(values) > 0, name, ",".join(map(str, values)), "distinct values")
            if name not in (*allowed, "seeds"):
                raise SettingsError(f"{name} cannot be varied with the solver {self.base.solver}; remove it")
        if self.base.solver is Solver.EXACT and len(self.seeds) > 1:
            raise SettingsError("the exact solver gives the same head whatever the seed; give one seed")
        self.settings()

    def settings(self) -> list[TrainSettings]:
        """The settings to compare, without seeds and folds."""
        product = itertools.product(*self.values.values())
        return [dataclasses.replace(self.base, **dict(zip(self.values, each, strict=True))) for each in product]

    def cells(self) -> list[tuple[int, TrainSettings]]:
        """Every head to train: the number of its settings, and the settings with its seed and fold."""
        folds = range(1, max(self.base.folds, 1) + 1)
        return [
            (number, dataclasses.replace(each, seed=seed, fold=fold))
            for seed, fold in itertools.product(self.seeds, folds)
            for number, each in enumerate(self.settings())
        ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpeedupSettings:
    """Settings of the measurement.

    Attributes:
        encoder, revision, text_column, label_column, device, skip_bad_rows, allow_pickled_weights: As for `extract`.
        max_length: Longest token sequence. The program pads every text to it.
        epochs, experiments: Epochs of an experiment, and the number of experiments; each is a training run.
        budget: Seconds that all measurements together may take.
        repeats: How often each rung is timed, where the budget allows it.
        quality: Compare accuracy too. Without the comparison, the rungs get its share of the budget.
        quality_train, quality_test, quality_length: Of the comparison: rows to train and to test on, and `max_length`.
        seeds: Seeds of the compared heads. A seed that does not fit the budget is left out.
        sample: Seed of the sample of rows.
    """

    encoder: str = "bert-base-chinese"
    revision: str | None = None
    text_column: str = "text"
    label_column: str = "label"
    max_length: int = 128
    epochs: int = 5
    experiments: int = 10
    budget: float = 120.0
    repeats: int = 3
    quality: bool = True
    quality_train: int = 1000
    quality_test: int = 2000
    quality_length: int = 64
    seeds: tuple[int, ...] = (0, 1, 2)
    sample: int = 0
    device: str = "auto"
    skip_bad_rows: bool = False
    allow_pickled_weights: bool = False

    def __post_init__(self) -> None:
        for name in ("max_length", "epochs", "experiments", "repeats", "quality_train", "quality_test"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        distinct = len(set(self.seeds)) == len(self.seeds) > 0 and 0 <= min(self.seeds) <= max(self.seeds) < 2**63
        _require(distinct, "seeds", ",".join(map(str, self.seeds)), "distinct numbers of at least 0")
        _require(0 < self.budget < float("inf"), "budget", f"{self.budget:g} s", "above 0")


_UNITS = {"": 1, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def parse_memory(text: str) -> int:
    """Read a number of bytes: ``2GiB``, ``500MB``, ``1073741824``.

    Raises:
        SettingsError: it is not one.
    """
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)", text.strip())
    if match is None or match[2].upper() not in _UNITS:
        raise SettingsError(f"`memory` is {text!r}; write it as 2GiB or 500MB")
    return int(float(match[1]) * _UNITS[match[2].upper()])


_SECONDS = {"": 1, "s": 1, "min": 60, "h": 3600}


def parse_duration(text: str) -> float:
    """Read a number of seconds: ``120s``, ``10min``, ``1.5h``, ``90``.

    Raises:
        SettingsError: it is not one.
    """
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)", text.strip().lower())
    if match is None or match[2] not in _SECONDS:
        raise SettingsError(f"the time is {text!r}; write it as 120s or 10min")
    return float(match[1]) * _SECONDS[match[2]]


def _choice(kind: type[_Choice], value: str, name: str) -> _Choice:
    try:
        return kind(value)
    except ValueError:
        raise SettingsError(f"`{name}` is {value!r}; choose one of {', '.join(kind)}") from None


def _require(holds: bool, name: str, value: object, wanted: str) -> None:
    if not holds:
        raise SettingsError(f"`{name}` is {value}; it must be {wanted}")
