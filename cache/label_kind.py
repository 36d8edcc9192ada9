"""What the labels of a cache may be. The module loads no library, for settings name these kinds."""

from __future__ import annotations

import enum


class LabelKind(enum.StrEnum):
    """What the labels of a cache are. Every row has one."""

    CLASS = "class"
    """(rows,) int64: an index into the names."""
    MULTI_LABEL = "multi-label"
    """(rows, classes) uint8: 1 if the row has the class, else 0. A row may have none."""
    ORDINAL = "ordinal"
    """(rows,) int64: an index into the names, which go from the least to the greatest."""
    NUMBER = "number"
    """(rows,) float64, finite. There are no names."""
