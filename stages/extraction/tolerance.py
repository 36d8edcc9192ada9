"""How much features that are encoded again may differ from the stored ones, and how much they do."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ...cache.reader import Cache
from ..types import Features, Float64Array, Indices

TOLERANCE = {"float32": 1e-5, "bfloat16": 0.1, "float16": 0.02, "int8": 0.1}
"""Largest relative difference by what the encoder computes in. In float32 other batches cause it, in half precision and
int8 other batches and other machines."""
_FLOAT16_STORAGE = 1e-3


def tolerance_of(cache: Cache) -> float:
    """Return how much a row of this cache may differ from what its encoder gives now, as `relative_differences`."""
    return TOLERANCE[cache.identity.computed_in] + (_FLOAT16_STORAGE if cache.layout.storage == "float16" else 0)


def relative_differences(encoded: Mapping[str, Features], cache: Cache, rows: Indices) -> Float64Array:
    """Return each row's largest difference from its stored features, relative to the row's largest stored value.

    ``encoded`` holds the features as the encoder gives them now, by name: (rows, width) each. Returns (rows,), the
    largest over all features; NaN where a feature is not finite.
    """
    largest = []
    for name, values in encoded.items():
        stored = np.asarray(cache.features(name)[rows], np.float64)
        largest.append(np.abs(values - stored).max(axis=1) / np.maximum(np.abs(stored).max(axis=1), 1e-30))
    differences: Float64Array = np.max(largest, axis=0)
    return differences
