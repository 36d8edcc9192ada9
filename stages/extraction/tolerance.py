"""How much features that are encoded again may differ from the stored ones, and how much they do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ...cache.reader import Cache

TOLERANCE = {"float32": 1e-5, "bfloat16": 0.1, "float16": 0.02}
"""Largest relative difference by the encoder's precision. In float32 other batches cause it, in half precision other
batches and other machines."""
_FLOAT16_STORAGE = 1e-3


def tolerance_of(cache: Cache) -> float:
    """Return how much a row of this cache may differ from what its encoder gives now, as `relative_difference`."""
    return TOLERANCE[cache.identity.precision] + (_FLOAT16_STORAGE if cache.layout.storage == "float16" else 0)


def relative_difference(encoded: Mapping[str, npt.NDArray[Any]], cache: Cache, row: int) -> float:
    """Return the largest difference of a row from its stored features, relative to the row's largest stored value.

    Args:
        encoded: The row's features as the encoder gives them now, by name: (width,) each.
        cache: A cache that holds these features.
        row: The row of the cache.

    Returns:
        The largest over all features; NaN where a feature is not finite.
    """
    largest = []
    for name, values in encoded.items():
        stored = np.asarray(cache.features(name)[row], np.float64)
        largest.append(np.abs(values - stored).max() / max(float(np.abs(stored).max()), 1e-30))
    return float(np.max(largest))
