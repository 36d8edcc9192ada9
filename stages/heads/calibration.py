"""Temperature scaling: the logits are divided by one number, so that probabilities match how often a head is right."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..types import Indices

_LOWEST, _HIGHEST = 1e-3, 1e3
_BISECTIONS = 60


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
