"""The picture of a speedup report. The one module that knows matplotlib, which is an extra."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..units import duration
from .report import Bars, epoch_bars, title, total_bars

_PROGRAM, _OURS = "#8d99ae", "#1b6ca8"


def draw(path: Path, report: Mapping[str, Any]) -> bool:
    """Draw seconds of an epoch on the left and of all experiments on the right, on logarithmic axes, into a PNG.

    Returns:
        Whether it was drawn: False without matplotlib.
    """
    try:
        import matplotlib.figure
    except ImportError:
        return False
    left, right = epoch_bars(report), total_bars(report)
    figure = matplotlib.figure.Figure(figsize=(13, 1.8 + 0.42 * max(len(left), len(right))), layout="constrained")
    axes = figure.subplots(1, 2)
    settings = report["settings"]
    _bars(axes[0], left, "an epoch over the whole table")
    _bars(axes[1], right, f"{settings['experiments']} experiments of {settings['epochs']} epochs (unless said)")
    figure.suptitle(title(report), fontsize=10)
    figure.savefig(path, dpi=110)
    return True


def _bars(axis: Any, bars: Bars, heading: str) -> None:
    """Horizontal bars with what they measure beside them, and the range of the repeats, if there is one, as a line."""
    values = [spread[0] for _, spread in bars if spread]
    if values:  # nothing to take logarithms of otherwise
        axis.set_xscale("log")
        axis.set_xlim(min(values) / 3, max(values) * 12)
    for place, (name, spread) in enumerate(bars):
        if spread is None:
            axis.text(0.01, place, "not run", va="center", fontsize=9, transform=axis.get_yaxis_transform())
            continue
        value, low, high = spread
        axis.barh(place, value, color=_OURS if name.startswith("headstart") else _PROGRAM)
        if low < high:
            axis.errorbar(value, place, xerr=[[value - low], [high - value]], color="black", linewidth=1.2, capsize=3)
        axis.text(high * 1.12, place, duration(value), va="center", fontsize=9)
    axis.set_yticks(range(len(bars)), [name for name, _ in bars], fontsize=9)
    axis.set_ylim(len(bars) - 0.4, -0.6)
    axis.set_xlabel("seconds (logarithmic)")
    axis.set_title(heading, fontsize=10, loc="left")
    axis.grid(axis="x", alpha=0.3)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
