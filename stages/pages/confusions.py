"""Section: what was taken for what. A confusion matrix, or predicted numbers against the true ones."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..settings import Task
from ..types import Indices
from .figures import against, heatmap, hover_text
from .html import Cell, Html, figure, join, table
from .subject import Key, Section, Subject, texts_shown

_MOST_CELLS = 16
"""A matrix of more classes is a picture, with a list of its largest confusions."""
_MOST_POINTS, _MOST_PAIRS = 2000, 20


def section(subject: Subject, texts: Mapping[Key, str] | None) -> Section:
    """What a run's head took for what."""
    if subject.task is Task.REGRESSION:
        return Section("confusions", "Predicted and true numbers", _numbers(subject, texts))
    matrix, names = subject.metrics.get("confusion_matrix"), subject.run["label_names"]
    if not matrix:
        return Section("confusions", "Confusions", Html(""))
    if len(names) > _MOST_CELLS:
        picture = figure("Each true class, and what it was predicted as", heatmap(names, matrix), height=560)
        return Section("confusions", "Confusions", join([picture, _pairs(names, matrix)]))
    rows = []
    for place, (name, counts) in enumerate(zip(names, matrix, strict=True)):
        whole = max(sum(counts), 1)
        cells = [_share(count, count / whole, right=at == place) for at, count in enumerate(counts)]
        rows.append([name, *cells, sum(counts)])
    what = "Rows of each true class (a row) by what was predicted (a column): count, and share of the row"
    return Section("confusions", "Confusions", table(what, ["true", *names, "rows"], rows, dense=True))


def rows_shown(subject: Subject) -> Indices:
    """The test rows that are points of a plot, by chance if there are many: none but of numbers. (rows,) int64."""
    if subject.test is None or subject.task is not Task.REGRESSION:
        return np.zeros(0, np.int64)
    rows = np.arange(len(subject.test))
    return np.sort(np.random.default_rng(0).permutation(rows)[:_MOST_POINTS])


def _share(count: int, share: float, *, right: bool) -> Cell:
    color = "var(--right)" if right else "var(--wrong)"
    style = f"background:color-mix(in srgb,{color} {100 * min(share, 1) ** 0.7:.0f}%,transparent)"
    return Cell(count, Html(f"<b>{count:,}</b><small>{share:.1%}</small>"), style=style)


def _pairs(names: list[str], matrix: list[list[int]]) -> Html:
    pairs = [
        (count, true, said, count / max(sum(row), 1))
        for true, row in zip(names, matrix, strict=True)
        for said, count in zip(names, row, strict=True)
        if count and said != true
    ]
    pairs.sort(key=lambda pair: -pair[0])
    rows = [[true, said, count, Cell(share, f"{share:.1%}")] for count, true, said, share in pairs[:_MOST_PAIRS]]
    return table("The most frequent confusions", ["true", "predicted", "rows", "of the true class"], rows)


def _numbers(subject: Subject, texts: Mapping[Key, str] | None) -> Html:
    if subject.test is None:
        return Html("")
    rows = rows_shown(subject)
    true, said = (np.array(subject.test.columns[name], np.float64)[rows] for name in ("label", "prediction"))
    shown = [hover_text(text) for text in texts_shown(texts, [subject.test.keys[row] for row in rows])] if texts else []
    some = f"{len(rows):,} test rows" + (
        "" if len(rows) == len(subject.test) else f", chosen by chance of {len(subject.test):,}"
    )
    picture = figure(f"Predicted and true numbers of {some}", against(true.tolist(), said.tolist(), shown), height=420)
    errors = np.array(subject.test.columns["prediction"], np.float64) - np.array(
        subject.test.columns["label"], np.float64
    )
    shares = (0.05, 0.25, 0.5, 0.75, 0.95)
    line = [Cell(value, f"{value:.4g}") for value in np.quantile(errors, shares).tolist()]
    quantiles = table(
        "Predicted less true, over all test rows", ["quantile", *(f"{s:.0%}" for s in shares)], [["error", *line]]
    )
    return join([picture, quantiles])
