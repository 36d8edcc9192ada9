"""How far features that are encoded again may be from the stored ones, and how far they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ...cache.reader import Cache

TOLERANCE = {"float32": 1e-5, "bfloat16": 0.1, "float16": 0.02}
"""How far a feature that is encoded again may be from the stored one, relative to the largest of its row: in float32
what other batches make of it, in half precision what other batches and machines do."""
_STORED_HALF = 1e-3


def tolerance_of(cache: Cache) -> float:
    """How far a row of this cache may be off what its encoder gives."""
    return TOLERANCE[cache.identity.precision] + (_STORED_HALF if cache.layout.storage == "float16" else 0)


def relative_difference(encoded: Mapping[str, npt.NDArray[Any]], cache: Cache, row: int) -> float:
    """How far a row of a cache is off, at most, relative to the largest of its stored values; NaN for what is none.

    Args:
        encoded: What the encoder gives now, by the features' names: (width,) each.
        cache: The cache, which holds these features.
        row: Which of its rows.
    """
    largest = []
    for name, values in encoded.items():
        stored = np.asarray(cache.features(name)[row], np.float64)
        largest.append(np.abs(values - stored).max() / max(float(np.abs(stored).max()), 1e-30))
    return float(np.max(largest))
