"""The practitioner's program on tiny texts, and one that fails on request, in a module that processes can import."""

from __future__ import annotations

import os
import signal
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from headstart.stages.baseline.program import Program, ProgramEpoch, ProgramSettings
from headstart.stages.encoders.files import find_encoder
from tiny import tiny_rows


def program_of(
    encoder: Path, rows: int, *, kind: type[Program] = Program, seed: int | None = None, **options: Any
) -> Program:
    if seed is not None:
        torch.manual_seed(seed)  # for the start of the head, and for dropout
    texts = [text for text, _ in tiny_rows(rows)]
    arguments = {"classes": 2, "max_length": 32, "device": torch.device("cpu"), **options}
    return kind(find_encoder(str(encoder)), texts, [number % 2 for number in range(rows)], **arguments)


def train(
    make: Callable[[], Program], settings: ProgramSettings, batches: list[list[int]], times: int = 1
) -> list[ProgramEpoch]:
    """Train a new program a few times, as work for another process."""
    program = make()
    return [program.train(settings, batches) for _ in range(times)]


class Faulty(Program):
    """A program whose batch size decides how training ends: 8 well, with a warning; 16 and 17 in an error; 9 killed."""

    def train(
        self, settings: ProgramSettings, batches: Sequence[list[int]], on_batch: Callable[[], None] = lambda: None
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
