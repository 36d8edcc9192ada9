"""Rows of a feature matrix: their division into training, validation and test rows, and their scaling.

Columns are centered and scaled before training; afterwards both are folded into the head's weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from ...cache.hashing import Hashes
from ..settings import Scaling
from ..types import Features, Float64Array, Indices, StoredFeatures
from .dims import Dims, normalized
from .head import Parameters, Weights

Values = npt.NDArray[Any]
"""Labels of rows: classes, (rows,) int64; which labels each has, (rows, labels) uint8; or numbers, (rows,) float64."""
READ_ROWS = 2048
"""Rows that are read from a file at a time."""
_COPY_ROWS = 256  # rows that are scaled at a time: they stay in the processor's cache
_CONSTANT = 1e-5
"""A column counts as constant if its standard deviation is below this share of its root mean square, or below a tenth
of this share of the largest standard deviation: what varies in it is rounding."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Origin:
    """Where the rows of a feature matrix come from."""

    text_hashes: Hashes  # (all rows, 16) uint8
    row_numbers: Indices | None  # (all rows,) int64, their numbers in their table, from 1; None where they are 1, 2, 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dataset:
    """Some rows of a feature matrix, with their labels."""

    features: StoredFeatures  # (all rows, width) float32 or float16; a map of a file is read in parts
    labels: Values  # of all rows
    index: Indices  # (rows,) int64, the numbers of the rows that belong to this dataset
    dims: Dims | None = None  # the part of each vector that counts; None for all of it
    normalize: bool = False  # whether each vector, or that part of it, is divided by its length
    origin: Origin | None = None  # None where nobody asks for it

    def __len__(self) -> int:
        return len(self.index)

    @property
    def width(self) -> int:
        return int(self.features.shape[1]) if self.dims is None else self.dims.dims

    @property
    def targets(self) -> Values:
        """The labels of this dataset's rows."""
        targets: Values = self.labels[self.index]
        return targets

    @property
    def row_numbers(self) -> Indices:
        """(rows,) int64: the numbers of this dataset's rows in their table, from 1."""
        numbers = None if self.origin is None else self.origin.row_numbers
        return self.index + 1 if numbers is None else numbers[self.index]

    @property
    def text_hashes(self) -> Hashes:
        """(rows, 16) uint8: the hashes of this dataset's texts."""
        assert self.origin is not None, "a dataset that was made without its origin"
        return self.origin.text_hashes[self.index]

    def take(self, positions: Indices | slice) -> Features:
        """Copy the rows at these positions of the index: (positions, width) float32."""
        features = self.features[self.index[positions]]
        rows = features.astype(np.float32, copy=False) if self.dims is None else self.dims.cut(features)
        return normalized(rows) if self.normalize else rows

    def chunks(self) -> Iterator[Features]:
        """Yield the features in order, (up to 2,048, width) float32 at a time."""
        for _, chunk in self.chunks_at():
            yield chunk

    def chunks_at(self) -> Iterator[tuple[slice, Features]]:
        """The same, each with its place among the rows."""
        for start in range(0, len(self), READ_ROWS):
            span = slice(start, start + READ_ROWS)
            yield span, self.take(span)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Splits:
    """Training, validation and test rows. All labels are class numbers of the training rows."""

    train: Dataset
    validation: Dataset
    test: Dataset
    train_groups: Indices  # (rows of the split,) int64, equal for rows with the same token sequence
    validation_groups: Indices
    test_groups: Indices
    fold: Indices | None = None
    """(rows of ``train``,) int64: each one's fold, from 1, to choose a head by; 0 for rows that are always trained on.
    None if a head is not chosen by folds."""
    shared_rows: int
    """Number of training rows whose text the validation or test cache holds as well. They are left out of training,
    unless ``keep_shared`` is set."""

    def texts_read(self, epochs: int) -> int:
        """Number of texts that training would encode without a cache: in each epoch the training and validation rows,
        and the test rows once."""
        return epochs * (len(self.train) + len(self.validation)) + len(self.test)


@dataclasses.dataclass(frozen=True)
class Scaler:
    """Scaled features are (features - center) * scale. Both arrays are (width,) float32."""

    center: Weights
    scale: Weights

    def fold_into(self, parameters: Parameters) -> Parameters:
        """Turn parameters for scaled features into parameters for raw features, with the same logits.

        Biases are returned as (outputs,), whatever shape they had.
        """
        layer = "hidden_" if "hidden_weight" in parameters else ""
        weight = parameters[f"{layer}weight"].astype(np.float64) * self.scale
        bias = parameters[f"{layer}bias"].reshape(-1) - weight @ self.center
        folded: Parameters = {
            name: value.reshape(-1) if name.endswith("bias") else value for name, value in parameters.items()
        }
        return folded | {f"{layer}weight": weight.astype(np.float32), f"{layer}bias": bias.astype(np.float32)}


def scaled(train: Dataset, scaling: Scaling) -> Dataset:
    """The rows of a dataset as a head's weights meet them. To standardize columns is left to `Scaler`, which is folded
    into the weights."""
    return dataclasses.replace(train, normalize=scaling is Scaling.NORMALIZED)


def fit_scaler(train: Dataset, *, center: bool, standardize: bool) -> Scaler:
    """Measure the columns of the training rows, with sums in float64: their means to ``center`` them, their standard
    deviations to ``standardize`` them.

    A constant column is not scaled: three of MiniLM's columns are constant to 1e-9, and division by that would turn
    rounding noise into a feature.
    """
    zeros, scale = np.zeros(train.width), np.ones(train.width)
    means = zeros
    if center or standardize:
        means = sum((chunk.sum(axis=0, dtype=np.float64) for chunk in train.chunks()), zeros) / len(train)
    if standardize:
        variances = sum((((chunk - means) ** 2).sum(axis=0) for chunk in train.chunks()), zeros) / len(train)
        scale = column_scales(means, variances)
    return Scaler((means if center else zeros).astype(np.float32), scale.astype(np.float32))


def column_scales(means: Float64Array, variances: Float64Array) -> Float64Array:
    """What columns with these means and variances are multiplied with to be standardized; 1 for constant columns."""
    deviations = np.sqrt(variances)
    least = np.maximum(_CONSTANT * np.sqrt(means**2 + variances), _CONSTANT / 10 * deviations.max())
    scales: Float64Array = 1 / np.where(deviations <= least, 1.0, deviations)
    return scales


class ScaledDataset:
    """The scaled rows of a dataset, in float32. They are kept in memory or read from the file each time; the numbers
    are the same."""

    def __init__(self, dataset: Dataset, scaler: Scaler, *, in_memory: bool) -> None:
        self.targets, self.width = dataset.targets, dataset.width
        self._dataset, self._scaler, self._has_scale = dataset, scaler, bool((scaler.scale != 1).any())
        self._kept: Features | None = None
        if in_memory:
            self._kept = np.empty((len(dataset), dataset.width), np.float32)
            for start in range(0, len(dataset), _COPY_ROWS):
                rows = slice(start, start + _COPY_ROWS)
                self._kept[rows] = self._read(rows)

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, positions: Indices | slice) -> Features:
        """The rows at these positions: (positions, width) float32. The caller must not write to them."""
        if self._kept is None:
            return self._read(positions)
        return self._kept[positions] if isinstance(positions, slice) else np.take(self._kept, positions, axis=0)

    def _read(self, positions: Indices | slice) -> Features:
        rows = self._dataset.take(positions)
        rows -= self._scaler.center
        if self._has_scale:
            rows *= self._scaler.scale
        return rows


def fits_in_memory(datasets: tuple[Dataset, ...], memory: int | None) -> bool:
    """Whether float32 copies of these datasets fit into half of the memory bound; the rest is for computation."""
    return memory is None or 2 * sum(4 * len(dataset) * dataset.width for dataset in datasets) <= memory
