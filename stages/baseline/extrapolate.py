"""From what a sample took to what the whole table takes, and what follows from it. Plain values only."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spread:
    """One figure, measured several times.

    Attributes:
        median, low, high: Of the repeats, in seconds.
        repeats: How many there were.
    """

    median: float
    low: float
    high: float
    repeats: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The median and the range of one value or more."""
        return cls(median=statistics.median(values), low=min(values), high=max(values), repeats=len(values))


def scale(seconds: float, *, start: float, factor: float) -> float:
    """What so much more work would take: the start once, and the rest as many times as there is work."""
    return start + max(seconds - start, 0.0) * factor


def total(*, once: float, start: float, epoch: float, epochs: int, experiments: int) -> float:
    """Seconds of some experiments, each of which starts anew, after what is done once for all of them."""
    return once + experiments * (start + epochs * epoch)


def paid_off_after(*, once: float, epoch: float, other_epoch: float) -> int | None:
    """The epoch, from 1, at whose end what was spent once has been won back from another way's epochs; None for never.

    Args:
        once: What this way spends more than the other apart from its epochs; below 0 where it is less.
        epoch: What one of its epochs takes.
        other_epoch: What one of the other way's takes.
    """
    if epoch >= other_epoch:
        return 1 if once + epoch <= other_epoch else None
    return max(1, math.ceil(once / (other_epoch - epoch)))
