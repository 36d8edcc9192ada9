"""Section: the scores of the test rows, with their intervals, overall and for each label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..runs.results import SCORES
from ..settings import Task
from .html import Cell, Html, join, paragraph, table, tag
from .subject import Section, Subject

_NOT_SHARES = ("mean_absolute_error", "root_mean_squared_error", "log_loss", "spearman", "r2", "quadratic_kappa")
"""Scores that no bar from 0 to 1 shows."""
_LOW = ("log_loss", "calibration_error", "mean_absolute_error", "root_mean_squared_error")
"""Scores that are better if they are lower."""
HEADLINE = {Task.REGRESSION: "r2", Task.MULTI_LABEL: "micro_f1", Task.ORDINAL: "quadratic_kappa"}
"""The score that is named first; of classes it is the accuracy."""


def headline(subject: Subject) -> tuple[str, str]:
    """The name of the score that is named first, and its key."""
    key = HEADLINE.get(subject.task, "accuracy")
    return next(name for name, known in SCORES.items() if known == key), key


def section(subject: Subject) -> Section:
    """The scores of a run."""
    metrics, (name, key) = subject.metrics, headline(subject)
    bounds = metrics.get(f"{key}_interval")
    tile = tag(
        "div",
        tag("p", name, class_="name"),
        tag("p", f"{metrics[key]:.4f}" if metrics.get(key) is not None else "none", class_="value"),
        paragraph(f"95%: {bounds[0]:.4f} to {bounds[1]:.4f}") if bounds else "",
        _bar(metrics[key], bounds) if key not in _NOT_SHARES and metrics.get(key) is not None else "",
        paragraph(f"on {metrics['rows']:,} test rows, which were scored once"),
        class_="tile",
    )
    rows = [
        [_named(word, known), Cell(metrics[known], f"{metrics[known]:.4f}"), *_interval(metrics, known)]
        for word, known in {**SCORES, "calibration error": "calibration_error"}.items()
        if metrics.get(known) is not None
    ]
    overall = table(f"Scores on {metrics['rows']:,} test rows", ["score", "value", "low", "high", "from 0 to 1"], rows)
    return Section(
        "scores", "Scores", join([tag("div", tile, overall, class_="pair"), _by_chance(subject), _labels(subject)])
    )


def _named(word: str, key: str) -> Cell:
    return Cell(word, join([word, *[tag("small", "lower is better")] * (key in _LOW)]), number=False)


def _interval(metrics: Mapping[str, Any], key: str) -> list[Cell | None]:
    bounds = metrics.get(f"{key}_interval")
    bar = None if key in _NOT_SHARES else Cell(None, _bar(metrics[key], bounds), number=False)
    if bounds is None:
        return [None, None, bar]
    return [*(Cell(bound, f"{bound:.4f}") for bound in bounds), bar]


def _bar(value: float, bounds: Sequence[float] | None) -> Html:
    """A value between 0 and 1 as a dot, and its interval as a line."""
    low, high = bounds or (value, value)
    line = tag("i", style=f"left:{100 * low:.2f}%;width:{100 * (high - low):.2f}%")
    return tag("span", line, tag("b", style=f"left:{100 * value:.2f}%"), class_="bar", aria_hidden="true")


def _by_chance(subject: Subject) -> Html:
    """What a head without any features would reach."""
    if subject.task not in (Task.CLASSES, Task.ORDINAL):
        return Html("")
    name, most = max(
        ((name, of["rows"]) for name, of in subject.metrics["per_class"].items()), key=lambda each: each[1]
    )
    share = most / max(subject.metrics["rows"], 1)
    return paragraph("To compare: who always says ", tag("q", name), f" is right for {share:.4f} of the test rows.")


def _labels(subject: Subject) -> Html:
    per_class = subject.metrics.get("per_class")
    if not per_class:
        return Html("")
    ranked = any(of.get("average_precision") is not None for of in per_class.values())
    header = ["label", "test rows", "precision", "95%", "recall", "95%", "F1"]
    rows = []
    for name, of in per_class.items():
        row: list[object] = [name, of["rows"]]
        for key in ("precision", "recall"):
            low, high = of.get(f"{key}_interval") or (0.0, 1.0)
            reach = join([_bar(of[key], (low, high)), f" {low:.3f} to {high:.3f}"])
            row += [Cell(of[key], f"{of[key]:.3f}"), Cell(high - low, reach)]
        row.append(Cell(of["f1"], f"{of['f1']:.3f}"))
        if ranked:
            precision = of.get("average_precision")
            row.append(None if precision is None else Cell(precision, f"{precision:.3f}"))
        rows.append(row)
    what = "Precision and recall of each label, with 95% intervals"
    return table(what, [*header, *["average precision"] * ranked], rows, filtered=len(rows) > 12)
