"""The program's loop with what decides a training taken from stage two: order, batches, masks and optimiser."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from ..heads.sampling import training_batches
from ..heads.stacked import ADAM_EPSILON
from ..settings import TrainSettings
from ..types import Indices
from .program import Program
from .rungs import RungSettings

Weights = npt.NDArray[np.float32]
BATCH = 16
"""Rows in a batch, as in the program."""


class FrozenLoop:
    """The program in float32, its encoder frozen and really encoding: each batch of each epoch anew."""

    def __init__(self, program: Program, device: torch.device) -> None:
        self._program, self._device = program, device

    def train(
        self,
        rows: Indices,
        settings: TrainSettings,
        *,
        classes: int,
        epochs: int,
        noisy: bool,
        on_batch: Callable[[], None],
    ) -> tuple[Weights, Weights]:
        """Train a head from zero weights.

        Args:
            rows: (rows,) int64, of the program's texts; stage two must have trained on the same in this order.
            settings: Of stage two, without centering.
            classes: How many there are.
            epochs: How many to train for.
            noisy: Whether the encoder's own dropout is on.
            on_batch: Called after each batch.

        Returns:
            Weight (classes, hidden) and bias (classes,).
        """
        linear = nn.Linear(self._program.model.fc.in_features, classes).to(self._device)
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
        groups: list[dict[str, Any]] = [
            {"params": [linear.weight], "weight_decay": settings.weight_decay},
            {"params": [linear.bias]},
        ]
        optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, weight_decay=0, eps=ADAM_EPSILON)
        torch.manual_seed(settings.seed)  # of the encoder's own dropout
        drawn = training_batches(
            len(rows),
            linear.in_features,
            epochs=epochs,
            batch_size=settings.batch_size,
            dropout=settings.dropout,
            seed=settings.seed,
        )
        for batches in drawn:
            planned = list(batches)
            encoded = self._encoded([rows[positions].tolist() for positions, _ in planned], noisy=noisy)
            for (_, keep), (features, labels) in zip(planned, encoded, strict=True):
                loss = nn.functional.cross_entropy(linear(features * torch.from_numpy(keep).to(self._device)), labels)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                on_batch()
        return linear.weight.detach().cpu().numpy(), linear.bias.detach().cpu().numpy()

    def encode(self, rows: Sequence[int]) -> Weights:
        """The program's features of some rows, as it tests: (rows, hidden) float32."""
        batches = [list(rows[at : at + BATCH]) for at in range(0, len(rows), BATCH)]
        return torch.cat([features for features, _ in self._encoded(batches, noisy=False)]).cpu().numpy()

    def _encoded(self, batches: Sequence[list[int]], *, noisy: bool) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The program's features and labels of each batch."""
        self._program.model.train(noisy)
        for batch in self._program.loader(RungSettings(), batches):
            moved = {name: tensor.to(self._device) for name, tensor in batch.items()}
            yield self._program.model.encode(moved, frozen=True), moved["label"]
