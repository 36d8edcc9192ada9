"""How well probabilities match how often a head is right; temperature scaling, which divides logits by one number."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..types import Float64Array, Indices, Mask

CALIBRATION_BINS = 15
_LOWEST, _HIGHEST = 1e-3, 1e3
_BISECTIONS = 60


def calibration_gaps(correct: Mask, log_probabilities: Float64Array) -> Float64Array:
    """Each row's correctness (0 or 1) minus its confidence, in the column of the confidence's bin: (rows, 15) float64.

    The expected calibration error is the sum over the bins of |sum over the rows|, divided by the number of rows, with
    15 bins of equal width (Guo et al., On Calibration of Modern Neural Networks, 2017).
    """
    confidence = np.exp(log_probabilities.max(axis=1))
    bins = np.clip(np.ceil(confidence * CALIBRATION_BINS).astype(np.int64) - 1, 0, CALIBRATION_BINS - 1)
    gaps = np.zeros((len(correct), CALIBRATION_BINS))
    gaps[np.arange(len(correct)), bins] = correct - confidence
    return gaps


def fit_temperature(logits: npt.NDArray[np.float32], labels: Indices) -> float:
    """Find the temperature with the lowest log loss on these rows, between 0.001 and 1,000 (Guo et al., On Calibration
    of Modern Neural Networks, 2017).

    The log loss is convex in 1 / temperature, so the zero of its derivative is found by bisection.

    Args:
        logits: (rows, classes) float32.
        labels: (rows,) int64.
    """
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    label_logit = shifted[np.arange(len(labels)), labels].mean()
    low, high = np.log(1 / _HIGHEST), np.log(1 / _LOWEST)  # of log(1 / temperature)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        weights = np.exp(shifted * np.exp(middle))
        derivative = ((weights * shifted).sum(axis=1) / weights.sum(axis=1)).mean() - label_logit
        low, high = (low, middle) if derivative > 0 else (middle, high)
    return float(np.exp(-(low + high) / 2))
