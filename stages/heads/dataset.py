"""Rows of a feature matrix: which rows, their labels, and the same rows scaled and ready for training."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from ..types import Features, Indices, StoredFeatures
from .scaler import Scaler, fit_scaler

_READ_ROWS = 2048
"""Rows that are read from a file at a time."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dataset:
    """Some rows of a feature matrix, with their labels.

    Attributes:
        features: (all rows, width) float32 or float16; may be a map of a file, of which only some rows are read at a
            time.
        labels: (all rows,) int64.
        index: (rows,) int64, the row numbers that this dataset consists of.
    """

    features: StoredFeatures
    labels: Indices
    index: Indices

    def __len__(self) -> int:
        return len(self.index)

    @property
    def width(self) -> int:
        return int(self.features.shape[1])

    @property
    def targets(self) -> Indices:
        """(rows,) int64: the labels of this dataset's rows."""
        return self.labels[self.index]

    def fit_scaler(self, *, center: bool, standardize: bool) -> Scaler:
        """Measure this dataset's columns; see `fit_scaler`."""
        return fit_scaler(self.chunks, rows=len(self), width=self.width, center=center, standardize=standardize)

    def chunks(self) -> Iterator[Features]:
        """Yield the features in order, (up to 2,048, width) float32 at a time."""
        for start in range(0, len(self), _READ_ROWS):
            yield self.features[self.index[start : start + _READ_ROWS]].astype(np.float32, copy=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Splits:
    """Training, validation and test rows. All labels are class numbers of the training rows.

    Attributes:
        train, validation, test: The rows.
        validation_groups, test_groups: (rows of the split,) int64, equal for rows with the same token sequence.
        shared_rows: Number of training rows whose text the validation or test cache holds as well. They are left out
            of training, unless ``keep_shared`` is set.
    """

    train: Dataset
    validation: Dataset
    test: Dataset
    validation_groups: Indices
    test_groups: Indices
    shared_rows: int

    def texts_read(self, epochs: int) -> int:
        """Number of texts that training would encode without a cache: in each epoch the training and validation rows,
        and the test rows once."""
        return epochs * (len(self.train) + len(self.validation)) + len(self.test)


class ScaledDataset:
    """The rows of a dataset, scaled, in float32. They are kept in memory or read from the file each time; the numbers
    are the same."""

    def __init__(self, dataset: Dataset, scaler: Scaler, *, in_memory: bool) -> None:
        self.targets = dataset.targets
        self.width = dataset.width
        self._dataset, self._scaler = dataset, scaler
        self._kept: Features | None = None
        if in_memory:
            kept = np.empty((len(dataset), dataset.width), np.float32)
            for start in range(0, len(dataset), _READ_ROWS):
                kept[start : start + _READ_ROWS] = self._read(np.arange(start, min(start + _READ_ROWS, len(dataset))))
            self._kept = kept

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, positions: Indices) -> Features:
        """Copy the rows at these positions: (positions, width) float32."""
        if self._kept is None:
            return self._read(positions)
        return np.take(self._kept, positions, axis=0)

    def between(self, start: int, stop: int) -> Features:
        """Consecutive rows: (stop - start, width) float32. The caller must not write to them."""
        return self._read(np.arange(start, stop)) if self._kept is None else self._kept[start:stop]

    def _read(self, positions: Indices) -> Features:
        rows = self._dataset.features[self._dataset.index[positions]].astype(np.float32, copy=False)
        rows -= self._scaler.center
        rows *= self._scaler.scale
        return rows


def fits_in_memory(datasets: tuple[Dataset, ...], memory: int | None) -> bool:
    """Whether float32 copies of these datasets fit into half of the memory bound; the rest is for computation."""
    return memory is None or 2 * sum(4 * len(dataset) * dataset.width for dataset in datasets) <= memory
