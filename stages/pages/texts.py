"""Section: the texts that a head was most wrong and least sure about. They come from a table that the user gives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..heads.head import LEAST_PROBABILITY
from ..settings import Task
from ..types import Float64Array, Indices
from .html import Cell, Html, in_one_line, join, table
from .subject import Key, Predictions, Section, Subject


def most_wrong(subject: Subject, most: int) -> Indices:
    """The wrong test rows, the worst first: of the lowest probability of their label; of the highest log loss over all
    labels where there may be several; or with the largest error. (at most ``most``,) int64."""
    test = subject.test
    if test is None:
        return np.zeros(0, np.int64)
    scores, wrong = _badness(subject, test)
    worst = np.argsort(-scores, kind="stable")
    return np.asarray(worst[wrong[worst]][:most], np.int64)


def least_sure(subject: Subject, most: int) -> Indices:
    """The test rows whose prediction was the closest call: the smallest difference of the two highest probabilities;
    or the smallest distance of a label's from its threshold. None of numbers. (at most ``most``,) int64."""
    test = subject.test
    if test is None or len(test.names) < 1 or subject.task is Task.REGRESSION:
        return np.zeros(0, np.int64)
    return np.argsort(margins(subject, test), kind="stable")[:most].astype(np.int64)


def margins(subject: Subject, test: Predictions) -> Float64Array:
    """(rows,) float64: how close each prediction was to another one."""
    said = test.probabilities
    if subject.task is Task.MULTI_LABEL:
        thresholds = subject.run.get("thresholds") or [LEAST_PROBABILITY] * said.shape[1]
        closest: Float64Array = np.abs(said - np.array(thresholds)).min(axis=1)
        return closest
    ordered = np.sort(said, axis=1)
    return np.asarray(ordered[:, -1] - (ordered[:, -2] if said.shape[1] > 1 else 0.0), np.float64)


def _badness(subject: Subject, test: Predictions) -> tuple[Float64Array, Any]:
    """How wrong each row is, (rows,) float64, and whether it is wrong at all, (rows,) bool."""
    labels, said = test.columns["label"], test.columns["prediction"]
    if subject.task is Task.REGRESSION:
        errors = np.abs(np.array(said, np.float64) - np.array(labels, np.float64))
        return errors, errors > 0
    if subject.task is Task.MULTI_LABEL:
        wrong = np.array([set(own) != set(other) for own, other in zip(labels, said, strict=True)])
        chances = np.clip(test.probabilities, 1e-300, 1 - 1e-16)
        return -np.where(test.has == 1, np.log(chances), np.log1p(-chances)).sum(axis=1), wrong
    wrong = np.array([own != other for own, other in zip(labels, said, strict=True)])
    return -np.array(test.columns["label_probability"], np.float64), wrong


def section(subject: Subject, texts: Mapping[Key, str] | None, most: int) -> Section:
    """The texts that a run's head was most wrong and least sure about."""
    test = subject.test
    if texts is None or test is None:
        return Section("texts", "Texts", Html(""))
    numbers = subject.task is Task.REGRESSION
    several = subject.task is Task.MULTI_LABEL
    shown = []
    for what, rows in (("most wrong", most_wrong(subject, most)), ("least sure", least_sure(subject, most))):
        if not len(rows):
            continue
        closest = margins(subject, test) if what == "least sure" else None
        lines: list[list[object]] = []
        for row in rows.tolist():
            label, said = (_said(test.columns[name][row]) for name in ("label", "prediction"))
            values: list[object] = []
            if numbers:
                values = [test.columns["prediction"][row] - test.columns["label"][row]]
            elif not several:
                values = [test.columns[f"{name}_probability"][row] for name in ("label", "prediction")]
            if closest is not None:
                values.append(float(closest[row]))
            text = Cell(None, in_one_line(texts[test.keys[row]]), number=False, kind="text")
            lines.append([Cell(test.columns["row"][row], f"{test.columns['row'][row]:,}"), text, label, said, *values])
        kinds = ["error"] if numbers else [] if several else ["p(label)", "p(predicted)"]
        header = ["row", "text", "label", "predicted", *kinds, *["margin"] * (closest is not None)]
        shown.append(table(f"The {len(lines)} test rows that it was {what} about", header, lines, filtered=True))
    return Section("texts", "Texts", join(shown))


def _said(value: Any) -> object:
    return (", ".join(value) or "none") if isinstance(value, list) else value
