"""What the benchmark's measurements come to: a table in Markdown, and a picture."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

WRONG = 1e-5
"""A float32 feature that is further than this from plain transformers' is wrong."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measurement:
    """One contender over one piece in one round."""

    contender: str
    round: int
    seconds: float
    tokens: int
    """Real ones, of every text that was handed over."""
    flop: float
    """Counted work of the full model over those."""
    matrix_rate: float
    """FLOP/s of the machine's own product in float32, right before and right after."""
    own_rate: float
    """The same in the number format that the contender computes in, right after."""

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds

    @property
    def share(self) -> float:
        return self.flop / self.seconds / self.matrix_rate

    @property
    def own_share(self) -> float:
        return self.flop / self.seconds / self.own_rate


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """What a table says of a contender beside its figures."""

    key: str
    name: str
    precision: str
    way: str
    difference: float
    """The largest, of any feature's value from plain transformers'; infinity where one is not finite."""
    cosine: float
    """The lowest of a text's features with plain transformers'."""

    @property
    def wrong(self) -> bool:
        return self.precision == "float32" and not self.difference <= WRONG


def times_as_fast(ours: Sequence[Measurement], other: Sequence[Measurement]) -> npt.NDArray[np.float64]:
    """(rounds,) the other's seconds over ours, round by round over the same piece."""
    by_round = {m.round: m.seconds for m in other}
    return np.array([by_round[m.round] / m.seconds for m in ours if m.round in by_round])


def spread(values: Sequence[float] | npt.NDArray[np.float64]) -> str:
    """Median and quartiles."""
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def markdown(rows: Sequence[Row], measured: Sequence[Measurement]) -> str:
    """One table: ours in float32 first, then the others in float32, then what computed in something else.

    The last is in a table of its own, so that nobody takes it for a comparison in the same precision.
    """
    single = [row for row in rows if row.precision == "float32"]
    other = [row for row in rows if row.precision != "float32"]
    text = _table(single, measured)
    if other:
        text += "\nNot in float32, so not a comparison of like with like:\n\n" + _table(other, measured)
    return text


def _table(rows: Sequence[Row], measured: Sequence[Measurement]) -> str:
    single = all(row.precision == "float32" for row in rows)
    shares = "share of the matrix rate" + ("" if single else " in float32 | in its own number format")
    lines = [
        f"| contender | run as | tokens/s | GFLOP/s counted | {shares} | headstart in float32 is so many times as fast "
        "| the same over all rounds' seconds | largest difference |",
        "|---|---|---|---|---|---|---|---|" + "---|" * (not single),
    ]
    ours = [m for m in measured if m.contender == "headstart"]
    for row in rows:
        found = [m for m in measured if m.contender == row.key]
        speed = np.median([m.tokens_per_second for m in found])
        rate = np.median([m.flop / m.seconds for m in found]) / 1e9
        ratio = whole = ""
        if ours and row.key != "headstart":
            ratio = spread(times_as_fast(ours, found))
            whole = f"{sum(m.seconds for m in found) / sum(m.seconds for m in ours):.2f}"
        difference = f"{row.difference:.1e}" + (" **WRONG**" if row.wrong else "")
        if row.precision != "float32":
            difference += f", lowest cosine {row.cosine:.4f}"
        share = spread([m.share for m in found])
        if not single:
            share += f" | {spread([m.own_share for m in found])}"
        label = row.name if row.precision == "float32" else f"{row.name} in {row.precision}"
        lines.append(
            f"| {label} | {row.way} | {speed:,.0f} | {rate:.1f} | {share} | {ratio} | {whole} | {difference} |"
        )
    return "\n".join(lines) + "\n"


def draw(path: Path, title: str, rows: Sequence[Row], variants: dict[str, Sequence[Measurement]]) -> None:
    """For each variant of the texts: speeds as bars on the left, shares of the matrix rate as dots on the right."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        len(variants), 2, figsize=(13, 1.6 + (0.5 * len(rows) + 1.2) * len(variants)), squeeze=False
    )
    for (variant, measured), (left, right) in zip(variants.items(), axes, strict=True):
        _draw_speeds(left, rows, measured)
        _draw_shares(right, rows, measured)
        left.set_title(f"texts {variant}", loc="left", fontsize=10, fontweight="bold")
    figure.suptitle(title, fontsize=11)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _draw_speeds(axis: Any, rows: Sequence[Row], measured: Sequence[Measurement]) -> None:
    speeds = [np.median([m.tokens_per_second for m in measured if m.contender == row.key]) for row in rows]
    bars = axis.barh(range(len(rows)), speeds, color=[_colour(row) for row in rows])
    axis.bar_label(bars, [f" {speed:,.0f}" for speed in speeds], fontsize=9)
    labels = [row.name + ("" if row.precision == "float32" else f"\nin {row.precision}") for row in rows]
    labels = [label + ("\nWRONG" if row.wrong else "") for label, row in zip(labels, rows, strict=True)]
    axis.set_yticks(range(len(rows)), labels, fontsize=9)
    axis.invert_yaxis()
    axis.set_xlim(0, max(speeds) * 1.18)
    axis.set_xlabel("real tokens a second (median; float32 unless said)")
    axis.spines[["top", "right"]].set_visible(False)


def _draw_shares(axis: Any, rows: Sequence[Row], measured: Sequence[Measurement]) -> None:
    for place, row in enumerate(rows):
        shares = [m.share for m in measured if m.contender == row.key]
        axis.plot(shares, [place] * len(shares), "o", color=_colour(row), alpha=0.45, markersize=5)
        axis.plot([np.median(shares)], [place], "|", color="black", markersize=18, markeredgewidth=2)
    axis.axvline(1, color="grey", linewidth=1, linestyle="--")
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.set_yticks(range(len(rows)), [""] * len(rows))
    axis.set_xlim(left=0)
    axis.set_xlabel("share of the float32 matrix rate (dots: rounds; bar: median)")
    axis.grid(axis="x", alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)


def _colour(row: Row) -> str:
    if row.wrong:
        return "#c0392b"
    if not row.key.startswith("headstart"):
        return "#8d99ae"
    return "#1b6ca8" if row.precision == "float32" else "#7fb2d6"
