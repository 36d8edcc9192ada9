"""Features in memory, as solvers read them."""

from __future__ import annotations

from typing import Any

import numpy as np
from headstart.stages.heads.dataset import Dataset, ScaledDataset, Scaler


def feature_rows(features: Any) -> ScaledDataset:
    """Rows of these features, (rows, width) float32, as they are."""
    rows, width = features.shape
    dataset = Dataset(features=features, labels=np.zeros(rows, np.int64), index=np.arange(rows))
    return ScaledDataset(dataset, Scaler(np.zeros(width, np.float32), np.ones(width, np.float32)), in_memory=True)
