"""The practitioner's program on tiny texts, and one that fails as it is told: in a module that other processes find."""

from __future__ import annotations

import os
import signal
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from headstart.stages.baseline.program import Program, ProgramEpoch
from headstart.stages.baseline.rungs import RungSettings
from headstart.stages.encoders.files import find_encoder
from tiny import tiny_rows


def program_of(
    encoder: Path, rows: int, *, kind: type[Program] = Program, seed: int | None = None, **options: Any
) -> Program:
    if seed is not None:
        torch.manual_seed(seed)  # the head's start, and dropout
    texts = [text for text, _ in tiny_rows(rows)]
    arguments = {"classes": 2, "max_length": 32, "device": torch.device("cpu"), **options}
    return kind(find_encoder(str(encoder)), texts, [number % 2 for number in range(rows)], **arguments)


class Faulty(Program):
    """A program whose training ends as its batch size says: 8 well, with a warning; 16 and 17 with an error; 9 dead."""

    def train(
        self, settings: RungSettings, batches: Sequence[list[int]], on_batch: Callable[[], None] = lambda: None
    ) -> ProgramEpoch:
        if settings.batch_size == 9:
            os.kill(os.getpid(), signal.SIGKILL)
        if settings.batch_size == 16:
            raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes")
        if settings.batch_size == 17:
            raise ValueError("an odd batch")
        warnings.warn("as a loader warns", UserWarning, stacklevel=1)
        time.sleep(0.5)
        return ProgramEpoch(start=0.0, seconds=0.5, loss=os.getpid(), accuracy=len(batches))
