"""Section: whether what is said with some probability is true so often."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..heads.calibration import CALIBRATION_BINS, reliability
from ..heads.intervals import exact_interval, share_intervals
from ..settings import Task
from ..types import Float64Array
from . import figures
from .html import Cell, Html, details, figure, join, paragraph, table
from .subject import Predictions, Section, Subject


def section(subject: Subject) -> Section:
    """The reliability diagram of a run's probabilities."""
    bins, what = subject.metrics.get("reliability"), "confidence in the predicted class"
    often = "share that is right"
    if subject.task is Task.MULTI_LABEL and subject.test is not None and subject.test.names:
        bins, what, often = _of_labels(subject.test), "probability of a label", "share of rows that have it"
    if not bins:
        return Section("calibration", "Calibration", Html(""))
    bins = [
        {**each, **dict(zip(("low", "high"), bound, strict=True))}
        for each, bound in zip(bins, _intervals(subject, bins), strict=True)
    ]
    of = "pairs of a row and a label" if subject.task is Task.MULTI_LABEL else "test rows"
    rows = [
        [
            Cell(each["from"], f"{each['from']:.3f} to {each['to']:.3f}"),
            each["rows"],
            *(each[key] if each["rows"] else None for key in ("confidence", "accuracy", "low", "high")),
        ]
        for each in bins
    ]
    header = [what, "rows", "mean probability", often, "low", "high"]
    numbers = details("Numbers", table("Each bin of the diagram", header, rows))
    caption = f"How often what is said with a probability is so: {sum(each['rows'] for each in bins):,} {of}"
    picture = figure(caption, figures.reliability(bins, x=what, y=often), numbers, height=460)
    return Section("calibration", "Calibration", join([_summary(subject), picture]))


def _summary(subject: Subject) -> Html:
    metrics, run = subject.metrics, subject.run
    parts = []
    if metrics.get("calibration_error") is not None:
        bounds = metrics.get("calibration_error_interval")  # of several labels there is none
        around = f" (95%: {bounds[0]:.4f} to {bounds[1]:.4f})" if bounds else ""
        parts.append(f"The expected calibration error is {metrics['calibration_error']:.4f}{around}.")
    if made := run.get("calibration"):
        parts.append(f"The head was calibrated: {made['method']}.")
    elif run["temperature"] != 1:
        parts.append(f"The head was calibrated with the temperature {run['temperature']:.3f}.")
    if decision := run.get("decision"):
        parts.append(f"{decision['label']} is predicted from the probability {decision['threshold']:.4f} on.")
    return paragraph(" ".join(parts)) if parts else Html("")


def _of_labels(test: Predictions) -> list[dict[str, Any]]:
    """The bins of all pairs of a row and a label: how often a row has a label of some probability."""
    return reliability(test.has.ravel() == 1, test.probabilities.ravel())


def _intervals(subject: Subject, bins: list[Mapping[str, Any]]) -> Float64Array:
    """95% intervals of the bins' shares. Texts are counted and not rows where these are known."""
    test, task = subject.test, subject.task
    if test is None or not test.names:
        shares = np.array([each["accuracy"] or 0.0 for each in bins])
        return exact_interval(shares, np.array([float(each["rows"]) for each in bins]))
    groups = np.unique(np.array(test.columns["text_hash"]), return_inverse=True)[1]
    if task is Task.MULTI_LABEL:
        right, said = test.has.ravel() == 1, test.probabilities.ravel()
        groups = np.repeat(groups, len(test.names))
    else:
        said = test.probabilities.max(axis=1)
        probable = np.array(test.names, object)[test.probabilities.argmax(axis=1)]
        right = probable == np.array(test.columns["label"], object)
    place = np.clip(np.ceil(said * CALIBRATION_BINS).astype(np.int64) - 1, 0, CALIBRATION_BINS - 1)
    return share_intervals(right, place, groups.astype(np.int64), classes=CALIBRATION_BINS)
