"""A fitted head adjusted to how it is used, by rows that it was not trained on: calibrated probabilities, the shares of
labels that are expected, and the probability from which a label is predicted.

All but the last is folded into the weights and biases of the head's last layer, or into its temperature.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from ...cache.errors import SettingsError
from ..settings import Calibration, ClassWeight, Decision, Metric, TrainSettings, parse_floors, parse_shares
from ..types import Float64Array, Indices
from .calibration import LogitMap, held_out
from .head import Head, decide
from .targets import Scores, Target, TargetValues, log_softmax


@dataclasses.dataclass(frozen=True)
class Adjusted:
    """A head, and what is said of the rows that it was adjusted by."""

    head: Head
    scores: Scores
    """(rows, outputs), calibrated and corrected, divided by the temperature. What a row gets is fitted to rows of other
    folds."""
    thresholds: Float64Array | None
    """(rows, outputs), likewise; None where nothing was chosen."""
    record: dict[str, Any]
    """For ``run.json``: ``calibration``, ``prior`` and ``decision``, each None if it was not asked for."""


def require_fit(settings: TrainSettings, target: Target, *, ranked_by: Metric | None = None) -> None:
    """Refuse, before anything is trained, settings that have no meaning for a kind of target or for its labels.

    Raises:
        SettingsError: one has none.
    """
    task, names = target.task, target.names
    for name, metric in (("metric", settings.metric), ("rank_by", ranked_by)):
        if metric is not None and metric not in target.metrics:
            raise SettingsError(
                f"`{name}={metric}` does not go with `task={task}`; choose one of {', '.join(target.metrics)}"
            )
    for name in target.unfit:
        value = getattr(settings, name)
        if value != getattr(TrainSettings, name) and value != "none":
            raise SettingsError(f"`{name}` has no meaning for `task={task}`; leave it out")
    if settings.calibrate not in target.calibrations:
        known = ", ".join(target.calibrations)
        raise SettingsError(f"`calibrate={settings.calibrate}` does not go with `task={task}`; choose one of {known}")
    if settings.prior is not None:
        _require_shares(settings.prior, names, several=target.has_several)
    if settings.precision_floor is not None:
        floors = parse_floors(settings.precision_floor)
        if None in floors and not target.has_several:
            raise SettingsError(
                f"`precision_floor` is {settings.precision_floor!r}; write a class and a precision, such as spam=0.9"
            )
        if other := [name for name in floors if name is not None and name not in names]:
            raise SettingsError(f"`precision_floor` is of {other[0]!r}; the labels are {', '.join(names[:5])}")
        if len(floors) > 1 and not target.has_several:
            raise SettingsError("`precision_floor` is of one of two classes; leave out the other")
    if settings.decides and not target.has_several and len(names) != 2:
        raise SettingsError(
            f"`decide_by` and `precision_floor` are for two classes or for rows with several labels, and there are "
            f"{len(names):,} classes"
        )


def _require_shares(text: str, names: tuple[str, ...], *, several: bool) -> None:
    """Refuse shares that are not of these labels."""
    shares = parse_shares(text)
    if not several and abs(sum(shares.values()) - 1) >= 1e-3:
        raise SettingsError(f"`prior` is {text!r}; write a share of each class, such as a=0.9,b=0.1; they sum to 1")
    if several and max(shares.values()) >= 1:
        raise SettingsError(f"`prior` is {text!r}; a label's share is below 1")
    if other := [name for name in names if name not in shares] + [name for name in shares if name not in names]:
        what = "has no share of" if other[0] in names else "names an unknown class,"
        raise SettingsError(f"`prior` {what} {other[0]!r}; give each of these a share: {', '.join(names[:5])}")


def adjust(
    head: Head,
    target: Target,
    settings: TrainSettings,
    *,
    scores: Scores,
    values: TargetValues,
    fold: Indices,
    trained: TargetValues,
) -> Adjusted:
    """Adjust a head as the settings say. The rows that it is adjusted by are calibrated and decided by what other
    folds of them say, so that scores of them are honest; the head itself by all of them.

    Args:
        head: A fitted head, not yet adjusted.
        target: What it predicts.
        scores: (rows, outputs) float32, of rows that were not trained on, by this head or by heads of folds.
        values: The rows' values.
        fold: (rows,) int64, equal for rows that are adjusted together: for copies of a text at least.
        trained: The values of the training rows.

    Raises:
        SettingsError: there are no rows to adjust by, or no threshold has the least precision.
    """
    if not len(values) and (settings.calibrate is not Calibration.NONE or settings.decides):
        raise SettingsError("there are no validation rows for `calibrate`, `decide_by` or `precision_floor`; add rows")
    record: dict[str, Any] = {"calibration": None, "prior": None, "decision": None}
    if not (settings.calibrate is not Calibration.NONE or settings.prior or settings.decides or target.has_several):
        return Adjusted(head, scores, None, record)
    method, losses = _choose_method(target, settings.calibrate, scores, values, fold)
    move, weights = np.zeros(scores.shape[1]), np.ones(values.shape if target.has_several else len(values))
    if settings.prior is not None:
        # Balanced weights train as if all labels were equally frequent, until per-class calibration sees the rows.
        balanced = settings.class_weight is ClassWeight.BALANCED and method is not Calibration.PER_CLASS
        move, weights, record["prior"] = _correct(settings.prior, target, values, trained, balanced=balanced)

    def fit(rows: Any, *, required: bool) -> tuple[LogitMap, Float64Array | None]:
        found = target.fit_map(method, scores[rows], values[rows])
        calibrated = found(scores[rows]) + move
        return found, target.thresholds(values[rows], calibrated, weights[rows], settings, required=required)

    logits = scores.astype(np.float64) + move
    found, thresholds, by_row = LogitMap(), None, None
    if len(values):
        found, thresholds = fit(slice(None), required=True)
        by_row = None if thresholds is None else np.tile(thresholds, (len(values), 1))
        for ours, others in held_out(fold):
            of_others, chosen = fit(others, required=False)
            logits[ours] = of_others(scores[ours]) + move
            if by_row is not None and chosen is not None:
                by_row[ours] = chosen
    scale = np.ones(len(move)) if found.scale is None else found.scale
    shift = (0.0 if found.shift is None else found.shift) + found.temperature * move
    if settings.calibrate is not Calibration.NONE:
        record["calibration"] = {
            "method": method,
            "log_loss": losses,  # of each method, on rows that its map was not fitted to
            "temperature": found.temperature,
            "scale": scale.tolist() if method is Calibration.PER_CLASS else None,
            "shift": np.asarray(found.shift).tolist() if method is Calibration.PER_CLASS else None,
        }
    adjusted = logits.astype(np.float32)
    if by_row is not None and thresholds is not None and not target.has_several:
        record["decision"] = _decision(settings, target.names, adjusted, values, weights, thresholds, by_row)
    changed: dict[str, Any] = {"temperature": found.temperature}
    if found.scale is not None or settings.prior is not None:
        changed["weight"] = (head.weight * scale[:, None]).astype(np.float32)
        changed["bias"] = (head.bias * scale + shift).astype(np.float32)
    if thresholds is not None:
        changed["thresholds"] = tuple(thresholds.tolist())
    return Adjusted(dataclasses.replace(head, **changed), adjusted, by_row, record)


def _choose_method(
    target: Target, method: Calibration, scores: Scores, values: TargetValues, fold: Indices
) -> tuple[Calibration, dict[Calibration, float]]:
    """Choose the map of a method, for ``auto`` the one with the lowest log loss on rows that it was not fitted to.

    Returns:
        The method, and each one's log loss on such rows; none of the method ``none``.
    """
    losses: dict[Calibration, float] = {}
    if method is Calibration.NONE:
        return method, losses
    for tried in target.calibrations:
        if tried is not Calibration.AUTO and (method in (tried, Calibration.AUTO) or tried is Calibration.NONE):
            mapped = scores.astype(np.float64)
            for ours, others in held_out(fold):
                mapped[ours] = target.fit_map(tried, scores[others], values[others])(scores[ours])
            losses[tried] = target.measure(Metric.LOG_LOSS, values, mapped)
    return min(losses, key=lambda tried: losses[tried]) if method is Calibration.AUTO else method, losses


def _correct(
    text: str, target: Target, values: TargetValues, trained: TargetValues, *, balanced: bool
) -> tuple[Float64Array, Float64Array, dict[str, Any]]:
    """Return what an expected share adds to each label's logit, (labels,); how often each row counts then, (rows,) of
    classes, (rows, labels) where a row has several; and a record."""
    names, shares = target.names, parse_shares(text)
    expected = np.array([shares[name] for name in names])
    if target.has_several:
        among = np.clip(trained.mean(axis=0), 1 / (2 * len(trained)), 1 - 1 / (2 * len(trained)))
        assumed = np.full(len(names), 0.5) if balanced else among
        move = np.log(expected / (1 - expected)) - np.log(assumed / (1 - assumed))
        weights = np.where(values, expected / among, (1 - expected) / (1 - among))
    else:
        among = np.bincount(trained, minlength=len(names)) / len(trained)
        assumed = np.full(len(names), 1 / len(names)) if balanced else among
        move, weights = np.log(expected / assumed), (expected / among)[values]
    sides = (("expected", expected), ("trained", assumed))
    return move, weights, {side: dict(zip(names, share.tolist(), strict=True)) for side, share in sides}


def _decision(
    settings: TrainSettings,
    names: tuple[str, ...],
    scores: Scores,
    labels: Indices,
    weight: Float64Array,
    thresholds: Float64Array,
    by_row: Float64Array,
) -> dict[str, Any]:
    """Record the thresholds of two classes, and how rows do by those that other folds chose. A row counts as often as
    its class is expected."""
    floor = settings.precision_floor
    label = names[1] if floor is None else str(next(iter(parse_floors(floor))))
    number = names.index(label)
    said, is_label = decide(np.exp(log_softmax(scores)), by_row) == number, labels == number
    true, positive, relevant = (float(weight[rows].sum()) for rows in (said & is_label, said, is_label))
    return {
        "label": label,
        "threshold": float(thresholds[number]),
        "by": Decision(settings.decide_by) if floor is None else "precision-floor",
        "validation_precision": true / positive if positive else 0.0,
        "validation_recall": true / relevant if relevant else 0.0,
    }
