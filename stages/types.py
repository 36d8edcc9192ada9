"""Names for the arrays that the rooms hand to each other."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Features = npt.NDArray[np.float32]
"""Features in memory, (rows, width) float32. Those of a cache may be float16: see `StoredFeatures`."""
StoredFeatures = npt.NDArray[np.floating[Any]]
"""Features as a cache stores them, (rows, width) float32 or float16; often a map of the file."""
Indices = npt.NDArray[np.int64]
"""Row numbers, class numbers or group numbers, (n,) int64."""
Float64Array = npt.NDArray[np.float64]
"""Numbers that are summed or compared in double precision, of any shape."""
Mask = npt.NDArray[np.bool_]
"""Which of some rows, (rows,) bool."""
TokenIds = npt.NDArray[np.int32]
"""One token sequence, or the chunks of a long text one after the other, (tokens,) int32. Of a pair of texts, where the
encoder tells segments apart, it is (tokens, 2): the ids, and the segment of each."""
