"""How batches of token sequences run through a model: one after the other here; other backends overlap them."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterable, Sequence
from typing import Protocol

import numpy as np
import torch

from ..settings import ForwardMode
from ..types import Features, TokenIds
from .memory import MemoryFullError, halving


class Forward(Protocol):
    """A model's forward pass, with pooling."""

    mode: ForwardMode

    def __call__(self, sequences: Sequence[TokenIds], /) -> dict[str, torch.Tensor]:
        """Token sequences to features by their names, (sequences, width) each, on the model's device."""


class Backend:
    """Runs one batch at a time, on any device; ``halved_batches`` counts those that memory held only in halves."""

    def __init__(self, forward: Forward) -> None:
        self.forward = forward
        self.halved_batches, self._counting = 0, threading.Lock()

    def encode_all(self, batches: Iterable[Sequence[TokenIds]]) -> Generator[dict[str, Features], None, None]:
        """Encode batches, and yield the features of each, in the batches' order.

        Batches are asked for one by one, when there is room for them. Errors are those of `encode`, each in its batch's
        turn.
        """
        yield from map(self.encode, batches)

    def encode(self, sequences: Sequence[TokenIds]) -> dict[str, Features]:
        """Encode one batch; where the memory is full, in halves, down to one sequence.

        Returns:
            By the features' names: (sequences, width) float32 each. Of an empty batch: nothing.

        Raises:
            MemoryFullError: there is no memory even for one of the sequences alone.
        """
        if not sequences:
            return {}
        with halving(sequences) as halves:
            return self._run(sequences)
        return self._encode_halves(halves)

    def _run(self, sequences: Sequence[TokenIds]) -> dict[str, Features]:
        with torch.inference_mode():
            return {name: values.float().cpu().numpy() for name, values in self.forward(sequences).items()}

    def _encode_halves(self, halves: Sequence[Sequence[TokenIds]]) -> dict[str, Features]:
        with self._counting:
            self.halved_batches += 1
        encoded: list[dict[str, Features]] = []
        for half in halves:
            try:
                encoded.append(self.encode(half))
            except MemoryFullError as error:
                raise MemoryFullError(error.sequence + sum(map(len, halves[: len(encoded)]))) from error
        return {name: np.concatenate([features[name] for features in encoded]) for name in encoded[0]}
