"""Shifting and scaling columns before training, and putting that into the head afterwards."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float32]
Parameters = dict[str, Matrix]
"""A head's arrays by name: ``weight``, ``bias``, and an MLP's ``hidden.weight`` and ``hidden.bias``."""

_FLAT = 1e-5
"""A column whose spread is below this share of its own size, or a tenth of this share of the widest spread, is taken
for constant: what is left of it is rounding."""


@dataclasses.dataclass(frozen=True)
class Scaler:
    """What is taken off each column, and what it is multiplied by: (width,) float32 each."""

    center: Matrix
    scale: Matrix


def fit_scaler(
    chunks: Callable[[], Iterator[Matrix]], *, rows: int, width: int, center: bool, standardize: bool
) -> Scaler:
    """Measure the columns over the training rows, with float64 sums.

    A column without spread is left in its own scale: MiniLM has three that are constant to 1e-9, and dividing by that
    would make features of rounding noise.

    Args:
        chunks: Gives the features, (some rows, width) at a time; it is called twice to standardize.
        rows: How many rows that are in all.
        width: How many columns.
        center: Take the means off.
        standardize: Divide by the spreads.
    """
    means, scale = np.zeros(width), np.ones(width)
    if center or standardize:
        means = sum((chunk.sum(axis=0, dtype=np.float64) for chunk in chunks()), np.zeros(width)) / rows
    if standardize:
        squares = sum((((c - means) ** 2).sum(axis=0) for c in chunks()), np.zeros(width)) / rows
        spread = np.sqrt(squares)
        flat = spread <= np.maximum(_FLAT * np.sqrt(means**2 + squares), _FLAT / 10 * spread.max())
        scale = 1 / np.where(flat, 1.0, spread)
    return Scaler((means if center else np.zeros(width)).astype(np.float32), scale.astype(np.float32))


def absorb(parameters: Parameters, columns: Scaler) -> Parameters:
    """Turn parameters for shifted and scaled columns into parameters for columns as they are; biases become flat."""
    layer = "hidden." if "hidden.weight" in parameters else ""
    weight = parameters[f"{layer}weight"].astype(np.float64) * columns.scale
    bias = parameters[f"{layer}bias"].reshape(-1) - weight @ columns.center
    changed: dict[str, Matrix] = {
        name: value.reshape(-1) if name.endswith("bias") else value for name, value in parameters.items()
    }
    return changed | {f"{layer}weight": weight.astype(np.float32), f"{layer}bias": bias.astype(np.float32)}
