"""Temperature scaling: one number, by which logits are divided so that probabilities mean what they say."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_LOWEST, _HIGHEST = 1e-3, 1e3
_HALVINGS = 60


def fit_temperature(logits: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]) -> float:
    """The temperature with the lowest log loss on these rows (Guo et al., On Calibration of Modern Neural Networks,
    2017), between 0.001 and 1,000.

    The log loss is convex in the temperature's inverse, so its slope is bisected.

    Args:
        logits: (rows, classes) float32.
        labels: (rows,) int64.
    """
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    aimed = wide[np.arange(len(labels)), labels].mean()
    low, high = np.log(1 / _HIGHEST), np.log(1 / _LOWEST)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        weights = np.exp(wide * np.exp(middle))
        slope = ((weights * wide).sum(axis=1) / weights.sum(axis=1)).mean() - aimed
        low, high = (low, middle) if slope > 0 else (middle, high)
    return float(np.exp(-(low + high) / 2))
