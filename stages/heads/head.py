"""The fitted head: it turns features into probabilities of classes, or into numbers. It needs numpy alone."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from ...cache.errors import UserError
from ...cache.identity import Identity
from ..settings import Task
from ..types import Float64Array, Indices, StoredFeatures
from .dims import Dims, normalized

Weights = npt.NDArray[np.float32]
"""Weights or biases of one layer, float32."""
Parameters = dict[str, Weights]
"""A head's arrays, by the names and in the shapes of `Head`; ``hidden_weight`` and ``hidden_bias`` of MLPs only."""
LEAST_PROBABILITY = 0.5
"""Of a label that is predicted, where a row may have several."""
_BATCH_ROWS = 8192


@dataclasses.dataclass(frozen=True, kw_only=True)
class Head:
    """A classifier or a regression on one feature of one encoder."""

    weight: Weights
    """(classes, width) float32; for an MLP (classes, hidden). Where classes have an order, and for numbers,
    (1, width)."""
    bias: Weights
    """(classes,) float32; (classes - 1,) where classes have an order, and (1,) for numbers."""
    hidden_weight: Weights | None = None
    """(hidden, width) float32, the weight of an MLP's hidden layer, which ends in a ReLU; None for a linear head."""
    hidden_bias: Weights | None = None
    """(hidden,) float32, or None likewise."""
    temperature: float = 1.0
    """The logits are divided by it before the softmax or the sigmoid; 1 if no temperature was fitted."""
    label_names: tuple[str, ...]
    """The classes, in the order of the rows of ``weight``, or from the least to the greatest; none for numbers."""
    task: Task = Task.CLASSES
    """What the outputs are: see `outputs_of`."""
    thresholds: tuple[float, ...] | None = None
    """Where a row may have several labels: the least probability of each that is predicted; None for one half. Of
    classes: see `decide`; None where the most probable one is predicted."""
    identity: Identity
    """The encoder and settings that the features must come from."""
    dims: Dims | None = None
    """Which part of each vector the head reads; None if it reads all of it."""
    normalize: bool = False
    """Whether each vector, or that part of it, is divided by its length before it meets the weights."""

    @property
    def width(self) -> int:
        """Numbers in each vector that it takes."""
        if self.dims is not None:
            return self.dims.of
        return int((self.weight if self.hidden_weight is None else self.hidden_weight).shape[1])

    def outputs(self, features: StoredFeatures) -> npt.NDArray[np.float32]:
        """(rows, width) features to what `outputs_of` says of them."""
        if self.task is Task.CLASSES:
            return self.probabilities(features)
        return outputs_of(self.task, self.logits(features).astype(np.float64) / self.temperature).astype(np.float32)

    def predictions(
        self, outputs: npt.NDArray[np.floating[Any]], thresholds: Float64Array | None = None
    ) -> npt.NDArray[Any]:
        """Return the predictions that rows of `outputs` say: classes (rows,) int64, indices into ``label_names``; which
        labels (rows, labels) bool; or numbers (rows,) float64. Rows may have other thresholds (rows, labels) than the
        head's."""
        if thresholds is None and self.thresholds is not None:
            thresholds = np.array(self.thresholds)
        if self.task is Task.REGRESSION:
            return outputs[:, 0].astype(np.float64)
        if self.task is Task.MULTI_LABEL:
            said: npt.NDArray[np.bool_] = outputs >= (LEAST_PROBABILITY if thresholds is None else thresholds)
            return said
        return decide(outputs, thresholds)

    def logits(self, features: StoredFeatures) -> npt.NDArray[np.float32]:
        """(rows, width) features to (rows, biases) float32, not yet divided by the temperature.

        Raises:
            UserError: the features have another width.
        """
        if features.ndim != 2 or features.shape[1] != self.width:
            raise UserError(f"features have the shape {features.shape}; this head reads (rows, {self.width})")
        logits = np.empty((len(features), len(self.bias)), np.float32)
        for start in range(0, len(features), _BATCH_ROWS):  # so that a large float16 map is never converted whole
            rows = slice(start, start + _BATCH_ROWS)
            inputs = features[rows].astype(np.float32) if self.dims is None else self.dims.cut(features[rows])
            if self.normalize:
                inputs = normalized(inputs)
            if self.hidden_weight is not None and self.hidden_bias is not None:
                inputs = np.maximum(inputs @ self.hidden_weight.T + self.hidden_bias, 0)  # (rows, hidden)
            logits[rows] = inputs @ self.weight.T + self.bias
        return logits

    def log_probabilities(self, features: StoredFeatures) -> Float64Array:
        """(rows, width) features to (rows, classes) float64, natural logarithms, where each row has one of several
        classes without an order."""
        scaled = self.logits(features).astype(np.float64) / self.temperature
        scaled -= scaled.max(axis=1, keepdims=True)
        result: Float64Array = scaled - np.log(np.exp(scaled).sum(axis=1, keepdims=True))
        return result

    def probabilities(self, features: StoredFeatures) -> npt.NDArray[np.float32]:
        """(rows, width) features to (rows, classes) float32; each row sums to 1."""
        return np.exp(self.log_probabilities(features)).astype(np.float32)

    def predict(self, features: StoredFeatures) -> Indices:
        """(rows, width) features to (rows,) int64, indices into ``label_names``."""
        return decide(self.log_probabilities(features), self.thresholds, logarithms=True)


def decide(
    probabilities: npt.NDArray[np.floating[Any]],
    thresholds: tuple[float, ...] | Float64Array | None,
    *,
    logarithms: bool = False,
) -> Indices:
    """Return the class that is predicted from these (rows, classes) probabilities, or their logarithms: (rows,) int64.
    Thresholds are (classes,), or (rows, classes) where each row has its own.

    It is the most probable one; with thresholds, the one whose probability is largest in proportion to its threshold.
    Of two classes whose thresholds sum to 1, each is predicted where its probability is at least its threshold.
    """
    if thresholds is not None:
        probabilities = probabilities - np.log(thresholds) if logarithms else probabilities / thresholds
    predicted: Indices = probabilities.argmax(axis=1)
    return predicted


def outputs_of(task: Task, logits: Float64Array) -> Float64Array:
    """Return the outputs of a head whose logits, divided by the temperature, are these (rows, biases).

    Classes: (rows, classes) probabilities that sum to 1. Several labels a row: (rows, classes), the probability of
    each, for itself. Classes with an order: (rows, classes) probabilities that sum to 1; a logit is that of being above
    each class but the last. Numbers: (rows, 1), the logits themselves.
    """
    if task is Task.REGRESSION:
        return logits
    if task is Task.CLASSES:
        shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
        result: Float64Array = shifted / shifted.sum(axis=1, keepdims=True)
        return result
    result = 1 / (1 + np.exp(-np.clip(logits, -700, 700)))
    if task is Task.ORDINAL:
        edges = np.ones((len(logits), 1))
        above = np.concatenate([edges, result, 0 * edges], axis=1)
        result = np.maximum(above[:, :-1] - above[:, 1:], 0)  # rounding may turn equal neighbours round
    return result
