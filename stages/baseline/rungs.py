"""The ladder of advice that a practitioner climbs, rung by rung, and what can be set when it is measured. Light."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping
from typing import Any

from ...cache.errors import SettingsError
from ..settings import Precision


class Rung(enum.StrEnum):
    """A piece of advice on how to train a classifier faster; each is given to the program that heeds those before."""

    START = "encoder trained, batch 8"
    """The start: the encoder is trained with the head, in float32, every text padded to the same length."""
    BATCH = "batch 16"
    """Fewer steps an epoch."""
    PRECISION = "mixed precision"
    """Autocast, and a gradient scaler on CUDA: less arithmetic."""
    FROZEN = "frozen encoder"
    """Only the head is trained; the encoder runs under no_grad."""
    WORKERS = "4 workers"
    """Texts are tokenized in processes beside the training."""
    PINNED = "pinned memory"
    """Batches are copied to the device from page-locked memory."""
    SORTED = "sorted by length"
    """The frozen rung's best form: texts of similar length together, padded within the batch, dropout off in the
    encoder."""


class Padding(enum.StrEnum):
    """How far a text is padded."""

    FIXED = "fixed"
    """To the greatest length, as the program does."""
    BATCH = "batch"
    """To the longest of its batch, whose texts are of similar length; as many padded tokens a batch as fixed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RungSettings:
    """How the practitioner's program is run on a rung.

    Attributes:
        batch_size: Rows in a batch; with `Padding.BATCH`, rows of the greatest length.
        precision: What it computes in.
        frozen: The encoder is not trained.
        workers: Processes that tokenize; 0 for the program's own.
        pinned: Batches go through page-locked memory.
        padding: How far a text is padded.
        noisy: The frozen encoder's own dropout is on while the head trains, as ``train()`` leaves it.
    """

    batch_size: int = 8
    precision: Precision = Precision.FLOAT32
    frozen: bool = False
    workers: int = 0
    pinned: bool = False
    padding: Padding = Padding.FIXED
    noisy: bool = True


def advice(rung: Rung, half: Precision) -> Mapping[str, Any]:
    """What a rung changes in `RungSettings`; ``half`` is what mixed precision computes in on the device."""
    changes: dict[Rung, dict[str, Any]] = {
        Rung.START: {},
        Rung.BATCH: {"batch_size": 16},
        Rung.PRECISION: {"precision": half},
        Rung.FROZEN: {"frozen": True},
        Rung.WORKERS: {"workers": 4},
        Rung.PINNED: {"pinned": True},
        Rung.SORTED: {"padding": Padding.BATCH, "noisy": False},
    }
    return changes[rung]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpeedupSettings:
    """Settings of the measurement.

    Attributes:
        encoder: A hub id, or a folder that holds a model's files.
        revision: Branch, tag or commit of a hub id.
        text_column: Column of the texts.
        label_column: Column of the labels.
        max_length: Longest token sequence, and what the program pads every text to.
        epochs: Epochs of an experiment.
        experiments: Experiments, each a training run of its own.
        budget: Seconds that all measurements together may take.
        repeats: How often each rung is measured, where the budget lets it.
        quality: Compare accuracy as well; without, the rungs get its share of the budget.
        quality_train: Rows to train on where accuracy is compared.
        quality_test: Rows to test on there.
        quality_length: Longest token sequence there, and what the program pads to.
        seeds: Of order and masks there; a seed that does not fit the budget is left out.
        sample: Fixes which rows are drawn.
        device: ``auto``, or a torch device.
        skip_bad_rows: Leave out rows that have no text or no label.
        allow_pickled_weights: Read a ``pytorch_model.bin`` where an encoder has no safetensors.
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
            if getattr(self, name) < 1:
                raise SettingsError(f"{name} is {getattr(self, name)}; it must be at least 1", field=name)
        if (
            not self.seeds
            or len(set(self.seeds)) < len(self.seeds)
            or not 0 <= min(self.seeds) <= max(self.seeds) < 2**63
        ):
            raise SettingsError(f"seeds are {','.join(map(str, self.seeds))}; give distinct numbers of at least 0")
        if not 0 < self.budget < float("inf"):
            raise SettingsError(f"budget is {self.budget:g} s; it must be above 0", field="budget")
