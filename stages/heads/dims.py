"""The part of each vector that a head reads."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from ..types import StoredFeatures

_LEAST_LENGTH = 1e-12  # of a vector that is divided by its length


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dims:
    """The first numbers of each vector, which are a vector themselves (Kusupati et al. 2022, arXiv 2205.13147)."""

    dims: int  # how many are read
    of: int  # how many the feature has; more than ``dims``
    normalized: bool  # whether the vectors have the length 1, and these parts are divided by theirs again

    def cut(self, features: StoredFeatures) -> npt.NDArray[np.float32]:
        """(rows, at least dims) features to (rows, dims) float32."""
        cut = features[:, : self.dims].astype(np.float32)
        return normalized(cut) if self.normalized else cut


def normalized(features: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Divide each row by its length: (rows, width) float32. Rows of zeros stay."""
    result: npt.NDArray[np.float32] = features / np.maximum(
        np.linalg.norm(features, axis=1, keepdims=True), _LEAST_LENGTH
    )
    return result
