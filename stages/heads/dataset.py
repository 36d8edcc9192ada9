"""The walk over the training rows: which rows stand in which batch, what dropout takes from them, and where they lie.

A naive epoch spends most of its time here, in `nn.Dropout`'s random numbers and in gathering single rows. This one
draws 16 random bits for a value and gathers rows in short runs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from .scaler import Matrix, Scaler, fit_scaler

Features = npt.NDArray[np.floating[Any]]
Indices = npt.NDArray[np.int64]

CHUNK_ROWS = 1024
"""Rows that are gathered, masked and multiplied at a time. Fewer stay in a core's own cache, but then the calls of so
many small operations cost more than the memory does: one head's epoch takes half as long as with 256. Part of what a
seed fixes: random bits are drawn chunk by chunk."""
RUN_ROWS = 32
"""Rows that stay together when the order is shuffled, at most. In a table sorted by class, 32 train like a full
shuffle; 4,096 cost 5 points of accuracy between epochs."""
_RUNS_IN_A_BATCH = 64
_LEVELS = 1 << 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dataset:
    """Some rows of a feature matrix, with their labels.

    Attributes:
        features: (all rows, width) float32 or float16; may be a map of a file, of which batches alone are read.
        labels: (all rows,) int64.
        index: (rows,) int64, which of them.
    """

    features: Features
    labels: Indices
    index: Indices

    def __len__(self) -> int:
        return len(self.index)

    @property
    def width(self) -> int:
        return int(self.features.shape[1])

    @property
    def targets(self) -> Indices:
        """(rows,) int64: the labels of these rows."""
        return self.labels[self.index]

    def measure(self, *, center: bool, standardize: bool) -> Scaler:
        """What to take off each column and to multiply it by; see `fit_scaler`."""
        return fit_scaler(self.chunks, rows=len(self), width=self.width, center=center, standardize=standardize)

    def chunks(self) -> Iterator[Matrix]:
        """The features in order, (up to 2,048, width) float32 at a time."""
        for start in range(0, len(self), 2048):
            yield self.features[self.index[start : start + 2048]].astype(np.float32, copy=False)


class ScaledDataset:
    """Rows ready to be multiplied: centered and scaled float32, kept in memory or taken from the file as they are
    wanted. The numbers are the same either way."""

    def __init__(self, rows: Dataset, columns: Scaler, *, in_memory: bool) -> None:
        self.targets = rows.targets
        self.width = rows.width
        self._columns, self._rows = columns, rows
        self._kept: Matrix | None = None
        if in_memory:
            kept = np.empty((len(rows), rows.width), np.float32)
            for start in range(0, len(rows), 2048):
                kept[start : start + 2048] = self._read(np.arange(start, min(start + 2048, len(rows))))
            self._kept = kept

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, positions: Indices) -> Matrix:
        """The rows at these positions: (positions, width) float32."""
        if self._kept is None:
            return self._read(positions)
        return np.take(self._kept, positions, axis=0)

    def between(self, start: int, stop: int) -> Matrix:
        """Consecutive rows: (stop - start, width) float32; not to be written to."""
        return self._read(np.arange(start, stop)) if self._kept is None else self._kept[start:stop]

    def _read(self, positions: Indices) -> Matrix:
        taken = self._rows.features[self._rows.index[positions]].astype(np.float32, copy=False)
        taken -= self._columns.center
        taken *= self._columns.scale
        return taken


def fits_in_memory(parts: tuple[Dataset, ...], memory: int | None) -> bool:
    """Whether copies of these rows may be kept: half of the bound is left for what is computed with them."""
    return memory is None or 2 * sum(4 * len(part) * part.width for part in parts) <= memory


def epoch_order(rows: int, *, batch_size: int, seed: int, epoch: int) -> Indices:
    """The order of the rows in an epoch, (rows,) int64: every row once, in shuffled runs of at most 32 rows.

    Runs begin somewhere else in every epoch, and are shorter where batches are small, so that a batch never holds
    fewer than 64 of them where it has the rows.
    """
    rng = np.random.default_rng((seed, epoch, 0))
    run = max(1, min(RUN_ROWS, batch_size // _RUNS_IN_A_BATCH))
    offset = int(rng.integers(rows))
    starts = rng.permutation(-(-rows // run)) * run
    order = (starts[:, None] + np.arange(run)).reshape(-1)
    result: Indices = (order[order < rows] + offset) % rows
    return result


def random_bits(rows: int, width: int, *, seed: int, epoch: int, chunk: int) -> npt.NDArray[np.uint16]:
    """(rows, width) uint16 for one chunk of an epoch: they depend on these five numbers alone.

    SFC64 gives 64 bits at a time (Doty-Humphrey, PractRand), which make four values.
    """
    rng = np.random.Generator(np.random.SFC64(np.random.SeedSequence((seed, epoch, 1, chunk))))
    words = rng.integers(0, 2**64, size=-(-rows * width // 4), dtype=np.uint64)
    return words.view(np.uint16)[: rows * width].reshape(rows, width)


def drop_level(dropout: float) -> int:
    """Below which of 65,536 bits a value is dropped: the rate is that share exactly, within 1/131,072 of the asked."""
    return min(round(dropout * _LEVELS), _LEVELS - 1)


def keep_scale(dropout: float) -> float:
    """What kept values are multiplied by, so that a value's mean stays: one over the true rate of keeping."""
    return _LEVELS / (_LEVELS - drop_level(dropout))


def batches(order: Indices, batch_size: int) -> Iterator[list[tuple[int, Indices]]]:
    """Cut an epoch's order into batches, each a list of chunks: their number in the epoch, and positions of rows."""
    number = 0
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        chunks = []
        for first in range(0, len(batch), CHUNK_ROWS):
            chunks.append((number, batch[first : first + CHUNK_ROWS]))
            number += 1
        yield chunks


def training_batches(
    rows: int, width: int, *, epochs: int, batch_size: int, dropout: float, seed: int
) -> Iterator[Iterator[tuple[Indices, Matrix]]]:
    """The epochs of a training run as plain arrays, for whoever wants to train the same head by other means.

    Yields:
        Epochs, each of which yields batches: positions (batch,) int64, and the mask to multiply features by,
        (batch, width) float32 of 0 and `keep_scale`.
    """
    for epoch in range(1, epochs + 1):
        order = epoch_order(rows, batch_size=batch_size, seed=seed, epoch=epoch)
        yield (
            (
                np.concatenate([positions for _, positions in chunks]),
                np.concatenate([_plain_mask(number, at, width, epoch, dropout, seed) for number, at in chunks]),
            )
            for chunks in batches(order, batch_size)
        )


def _plain_mask(number: int, positions: Indices, width: int, epoch: int, dropout: float, seed: int) -> Matrix:
    bits = random_bits(len(positions), width, seed=seed, epoch=epoch, chunk=number)
    return (bits >= drop_level(dropout)).astype(np.float32) * np.float32(keep_scale(dropout))
