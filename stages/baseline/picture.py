"""The picture of a speedup report. The one module that imports matplotlib, which is an extra."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..units import duration
from .report import EXTRACT, TRAIN_HEAD, title

_PROGRAM, _OURS = "#8d99ae", "#1b6ca8"


def draw(path: Path, report: Mapping[str, Any]) -> bool:
    """Draw an epoch on the left and all experiments on the right into a PNG; return False without matplotlib."""
    try:
        import matplotlib.figure
    except ImportError:
        return False
    settings, stages = report["settings"], report["stages"]
    epochs = [(rung["rung"], rung["epoch"]) for rung in report["rungs"]]
    epochs += [(EXTRACT, stages["extract"]), (TRAIN_HEAD, stages["epoch"])]
    totals = []
    for line in report["totals"]:
        other = "" if line["epochs"] == settings["epochs"] else f" ({line['epochs']})"
        totals.append((line["way"] + other, dict.fromkeys(("median", "low", "high"), line["seconds"])))
    figure = matplotlib.figure.Figure(figsize=(13, 1.8 + 0.42 * max(len(epochs), len(totals))), layout="constrained")
    left, right = figure.subplots(1, 2)
    _bars(left, epochs, "an epoch over the whole table")
    _bars(right, totals, f"{settings['experiments']} experiments of {settings['epochs']} epochs (unless given)")
    figure.suptitle(title(report), fontsize=10)
    figure.savefig(path, dpi=110)
    return True


def _bars(axis: Any, bars: Sequence[tuple[str, Mapping[str, float] | None]], heading: str) -> None:
    """Draw horizontal bars of medians, with the range of the repeats as a line, and the time in words beside each."""
    medians = [spread["median"] for _, spread in bars if spread]
    if medians:  # otherwise there is nothing to take logarithms of
        axis.set(xscale="log", xlim=(min(medians) / 3, max(medians) * 12))
    for place, (name, spread) in enumerate(bars):
        if spread is None:
            axis.text(0.01, place, "not run", va="center", fontsize=9, transform=axis.get_yaxis_transform())
            continue
        median, low, high = spread["median"], spread["low"], spread["high"]
        axis.barh(place, median, color=_OURS if name.startswith("headstart") else _PROGRAM)
        if low < high:
            axis.errorbar(median, place, xerr=[[median - low], [high - median]], color="black", lw=1.2, capsize=3)
        axis.text(high * 1.12, place, duration(median), va="center", fontsize=9)
    axis.set_yticks(range(len(bars)), [name for name, _ in bars], fontsize=9)
    axis.set(ylim=(len(bars) - 0.4, -0.6), xlabel="seconds (logarithmic)", axisbelow=True)
    axis.set_title(heading, fontsize=10, loc="left")
    axis.grid(axis="x", alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
