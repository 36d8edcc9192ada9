"""The order of the rows in an epoch, their batches, and their dropout masks. A seed fixes all of them.

A plain epoch spends most of its time on `nn.Dropout`'s random numbers and on gathering single rows. Here a value's mask
takes 16 random bits, and rows are gathered in short runs of neighbours.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from ..types import Features, Indices

CHUNK_ROWS = 1024
"""Rows that are gathered, masked and multiplied together. Smaller chunks stay in a core's own cache, but their many
small operations cost more than that saves: an epoch of one head takes half as long as with 256 rows. A seed's results
depend on this number, because random bits are drawn chunk by chunk."""
RUN_ROWS = 32
"""Neighbours that stay together when the order is shuffled, at most. In a table sorted by class, runs of 32 train like
a full shuffle; with runs of 4,096, accuracy differs by 5 points between epochs."""
RUNS_PER_BATCH = 64
"""Runs in a batch, at least; where batches are small, runs are shorter."""
_UINT16_VALUES = 1 << 16
Chunk = tuple[int, Indices]
"""A part of a batch: the chunk's number within the epoch, and the positions of its rows."""


def epoch_order(rows: int, *, batch_size: int, seed: int, epoch: int) -> Indices:
    """The order of the rows in an epoch, (rows,) int64: every row once, in shuffled runs of at most 32 neighbours.

    The runs start at another offset in every epoch. They are shorter if batches are small, so that every full batch
    mixes at least 64 runs (or has single rows).
    """
    rng = np.random.default_rng((seed, epoch, 0))
    run = max(1, min(RUN_ROWS, batch_size // RUNS_PER_BATCH))
    offset = int(rng.integers(rows))
    starts = rng.permutation(-(-rows // run)) * run
    order = (starts[:, None] + np.arange(run)).reshape(-1)
    result: Indices = (order[order < rows] + offset) % rows
    return result


def split_batches(order: Indices, batch_size: int) -> Iterator[list[Chunk]]:
    """Cut an epoch's order into batches, and each batch into chunks."""
    number = itertools.count()
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        yield [(next(number), batch[first : first + CHUNK_ROWS]) for first in range(0, len(batch), CHUNK_ROWS)]


def random_bits(rows: int, width: int, *, seed: int, epoch: int, chunk: int) -> npt.NDArray[np.uint16]:
    """Random bits for one chunk of an epoch, (rows, width) uint16. They depend on the arguments alone.

    The generator is SFC64 (Doty-Humphrey, PractRand). Each of its 64-bit words makes four values.
    """
    rng = np.random.Generator(np.random.SFC64(np.random.SeedSequence((seed, epoch, 1, chunk))))
    words = rng.integers(0, 2**64, size=-(-rows * width // 4), dtype=np.uint64)
    return words.view(np.uint16)[: rows * width].reshape(rows, width)


def dropout_threshold(dropout: float) -> int:
    """Dropout threshold on a uint16: a value is dropped if its random bits are below the threshold.

    The actual rate is threshold / 65,536. It differs from ``dropout`` by at most 1/131,072.
    """
    return min(round(dropout * _UINT16_VALUES), _UINT16_VALUES - 1)


def keep_scale(dropout: float) -> float:
    """The factor for values that are kept: 1 / (1 - actual rate), so that a value's mean stays the same."""
    return _UINT16_VALUES / (_UINT16_VALUES - dropout_threshold(dropout))


def training_batches(
    rows: int, width: int, *, epochs: int, batch_size: int, dropout: float, seed: int
) -> Iterator[Iterator[tuple[Indices, Features]]]:
    """The batches and masks of a training run as plain arrays, for training the same head by other means.

    Yields:
        Epochs. Each epoch yields batches: positions (batch,) int64, and the mask that features are multiplied by,
        (batch, width) float32 of 0 and `keep_scale`.
    """

    def batches(epoch: int) -> Iterator[tuple[Indices, Features]]:
        order = epoch_order(rows, batch_size=batch_size, seed=seed, epoch=epoch)
        for chunks in split_batches(order, batch_size):
            bits = [random_bits(len(p), width, seed=seed, epoch=epoch, chunk=number) for number, p in chunks]
            kept = np.concatenate(bits) >= dropout_threshold(dropout)
            yield np.concatenate([p for _, p in chunks]), kept.astype(np.float32) * np.float32(keep_scale(dropout))

    return map(batches, range(1, epochs + 1))
