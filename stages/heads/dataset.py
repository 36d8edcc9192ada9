"""Rows of a feature matrix, and their division into training, validation and test rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from ..types import Features, Indices, StoredFeatures

READ_ROWS = 2048
"""Rows that are read from a file at a time."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dataset:
    """Some rows of a feature matrix, with their labels."""

    features: StoredFeatures  # (all rows, width) float32 or float16; a map of a file is read in parts
    labels: Indices  # (all rows,) int64
    index: Indices  # (rows,) int64, the numbers of the rows that belong to this dataset

    def __len__(self) -> int:
        return len(self.index)

    @property
    def width(self) -> int:
        return int(self.features.shape[1])

    @property
    def targets(self) -> Indices:
        """(rows,) int64: the labels of this dataset's rows."""
        return self.labels[self.index]

    def take(self, positions: Indices | slice) -> Features:
        """Copy the rows at these positions of the index: (positions, width) float32."""
        return self.features[self.index[positions]].astype(np.float32, copy=False)

    def chunks(self) -> Iterator[Features]:
        """Yield the features in order, (up to 2,048, width) float32 at a time."""
        for start in range(0, len(self), READ_ROWS):
            yield self.take(slice(start, start + READ_ROWS))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Splits:
    """Training, validation and test rows. All labels are class numbers of the training rows."""

    train: Dataset
    validation: Dataset
    test: Dataset
    validation_groups: Indices  # (rows of the split,) int64, equal for rows with the same token sequence
    test_groups: Indices
    shared_rows: int
    """Number of training rows whose text the validation or test cache holds as well. They are left out of training,
    unless ``keep_shared`` is set."""

    def texts_read(self, epochs: int) -> int:
        """Number of texts that training would encode without a cache: in each epoch the training and validation rows,
        and the test rows once."""
        return epochs * (len(self.train) + len(self.validation)) + len(self.test)
