"""What can be set in each stage, with the defaults that the command line shows. Light: it loads no library."""

from __future__ import annotations

import dataclasses
import enum
from typing import TypeVar

from ..cache.errors import SettingsError

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


class EncoderPath(enum.StrEnum):
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
        _require(is_utf8(self.prefix), "prefix", ascii(self.prefix), "UTF-8")
        _require(len(self.prefix) <= 1024, "prefix", f"{len(self.prefix)} characters", "at most 1024 characters")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """Settings of stage two. The defaults were chosen on validation rows: see bench/README.md.

    Attributes:
        feature: Which of the cache's features to train on.
        test_fraction: Share of rows held out for the test, where no test cache is given.
        validation_fraction: Share of the remaining rows held out to choose the epoch by, likewise.
        epochs: Times that every training row is seen.
        batch_size: Rows in a batch.
        learning_rate: AdamW's step.
        weight_decay: AdamW's decay of the weights (not of the bias), as a share of the step.
        dropout: Probability that a feature's value is zeroed in training; the rest is scaled up to match.
        center: Take each column's mean over the training rows off before dropout, so that a value that is dropped
            becomes the usual one and not zero. The head absorbs the means into its bias.
        seed: Fixes the split, the order of the rows and the dropout masks.
        device: ``auto``, or a torch device.
        keep_shared: Train also on texts that the test or validation cache has.
    """

    feature: str = "cls"
    test_fraction: float = 0.2
    validation_fraction: float = 0.1
    epochs: int = 100
    batch_size: int = 4096
    learning_rate: float = 0.01
    weight_decay: float = 0.01
    dropout: float = 0.3
    center: bool = True
    seed: int = 0
    device: str = "auto"
    keep_shared: bool = False

    def __post_init__(self) -> None:
        for name in ("test_fraction", "validation_fraction"):
            _require(0 < getattr(self, name) < 1, name, getattr(self, name), "between 0 and 1")
        _require(0 <= self.dropout < 1, "dropout", self.dropout, "at least 0 and below 1")
        _require(0 < self.learning_rate <= 1000, "learning_rate", self.learning_rate, "above 0 and at most 1000")
        _require(0 <= self.weight_decay <= 1000, "weight_decay", self.weight_decay, "at least 0 and at most 1000")
        for name in ("epochs", "batch_size"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        _require(0 <= self.seed < 2**63, "seed", self.seed, "at least 0")


def is_utf8(text: str) -> bool:
    """Whether a string can be written as UTF-8: one from a terminal of another encoding may not."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _choice(kind: type[_Choice], value: str, name: str) -> _Choice:
    try:
        return kind(value)
    except ValueError:
        raise SettingsError(f"{name} is {value!r}; choose one of {', '.join(kind)}") from None


def _require(holds: bool, name: str, value: object, wanted: str) -> None:
    if not holds:
        raise SettingsError(f"{name} is {value}; it must be {wanted}")
