"""Centering and scaling of feature columns before training; afterwards both are folded into the head's weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np

from ..types import Features
from .head import Parameters, Weights

_CONSTANT = 1e-5
"""A column counts as constant if its standard deviation is below this share of its root mean square, or below a tenth
of this share of the largest standard deviation: what varies in it is rounding."""


@dataclasses.dataclass(frozen=True)
class Scaler:
    """Scaled features are (features - center) * scale. Both arrays are (width,) float32."""

    center: Weights
    scale: Weights

    def fold_into(self, parameters: Parameters) -> Parameters:
        """Turn parameters for scaled features into parameters for raw features, with the same logits.

        Biases are returned as (outputs,), whatever shape they had.
        """
        layer = "hidden." if "hidden.weight" in parameters else ""
        weight = parameters[f"{layer}weight"].astype(np.float64) * self.scale
        bias = parameters[f"{layer}bias"].reshape(-1) - weight @ self.center
        folded: Parameters = {
            name: value.reshape(-1) if name.endswith("bias") else value for name, value in parameters.items()
        }
        return folded | {f"{layer}weight": weight.astype(np.float32), f"{layer}bias": bias.astype(np.float32)}


def fit_scaler(
    chunks: Callable[[], Iterator[Features]], *, rows: int, width: int, center: bool, standardize: bool
) -> Scaler:
    """Measure the columns of the training rows, with sums in float64.

    A constant column is not scaled: three of MiniLM's columns are constant to 1e-9, and division by that would turn
    rounding noise into a feature.

    Args:
        chunks: Returns the features, (some rows, width) at a time. It is called twice if ``standardize`` is set.
        rows: Number of rows in all chunks together.
        width: Number of columns.
        center: Subtract each column's mean.
        standardize: Divide each column by its standard deviation.
    """
    means, scale = np.zeros(width), np.ones(width)
    if center or standardize:
        means = sum((chunk.sum(axis=0, dtype=np.float64) for chunk in chunks()), np.zeros(width)) / rows
    if standardize:
        variances = sum((((chunk - means) ** 2).sum(axis=0) for chunk in chunks()), np.zeros(width)) / rows
        deviations = np.sqrt(variances)
        constant = deviations <= np.maximum(
            _CONSTANT * np.sqrt(means**2 + variances), _CONSTANT / 10 * deviations.max()
        )
        scale = 1 / np.where(constant, 1.0, deviations)
    return Scaler((means if center else np.zeros(width)).astype(np.float32), scale.astype(np.float32))
