"""The ladder of advice that a practitioner climbs, rung by rung, and what can be set when it is measured. Light."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping
from typing import Any

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
