"""From the time of a sample to the time of the whole table, and from epochs to experiments. Plain values only."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spread:
    """A time in seconds, measured in several repeats: their median, the least, the greatest, and their number."""

    median: float
    low: float
    high: float
    repeats: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return the spread of one value or more."""
        return cls(median=statistics.median(values), low=min(values), high=max(values), repeats=len(values))


def scale(seconds: float, *, start: float, factor: float) -> float:
    """Return the seconds of ``factor`` times the work: ``start`` counts once, and the rest grows with the work."""
    return start + max(seconds - start, 0.0) * factor


def paid_off_after(*, once: float, epoch: float, other_epoch: float) -> int | None:
    """Return the first epoch, from 1, at whose end this way has taken no longer than the other; None for never.

    ``once`` is what this way takes more than the other apart from epochs; it is below 0 where this way takes less.
    """
    if epoch >= other_epoch:
        return 1 if once + epoch <= other_epoch else None
    return max(1, math.ceil(once / (other_epoch - epoch)))
