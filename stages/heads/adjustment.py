"""A fitted head adjusted to how it is used, by rows that it was not trained on: calibrated probabilities, the shares of
classes that are expected, and the probability from which one of two classes is predicted.

All but the last is folded into the weights and biases of the head's last layer, or into its temperature.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ...cache.errors import SettingsError
from ..settings import Calibration, ClassWeight, Decision, TrainSettings, parse_floor, parse_shares
from ..types import Float64Array, Indices, Mask
from .calibration import choose_map, log_softmax, map_by_folds
from .head import Head, decide


@dataclasses.dataclass(frozen=True)
class Adjusted:
    """A head, and what it says of the rows that it was adjusted by."""

    head: Head
    logits: npt.NDArray[np.float32]  # (rows, classes), calibrated and corrected, divided by the temperature
    record: dict[str, Any]
    """For ``run.json``: ``calibration``, ``prior`` and ``decision``, each None if it was not asked for."""


def require_adjustable(settings: TrainSettings, names: tuple[str, ...]) -> None:
    """Refuse, before anything is trained, settings that do not fit these classes.

    Raises:
        SettingsError: the shares are not of these classes, or a threshold is asked for that needs two classes.
    """
    if settings.prior is not None:
        shares = parse_shares(settings.prior)
        if other := [name for name in names if name not in shares] + [name for name in shares if name not in names]:
            what = "has no share of" if other[0] in names else "names an unknown class,"
            raise SettingsError(f"`prior` {what} {other[0]!r}; give each of these a share: {', '.join(names[:5])}")
    if settings.decides and len(names) != 2:
        raise SettingsError(f"`decide_by` and `precision_floor` are for two classes, and there are {len(names):,}")
    if settings.precision_floor is not None and (name := parse_floor(settings.precision_floor)[0]) not in names:
        raise SettingsError(f"`precision_floor` is of {name!r}; the classes are {', '.join(names)}")


def adjust(
    head: Head,
    settings: TrainSettings,
    *,
    scores: npt.NDArray[np.float32],
    labels: Indices,
    fold: Indices,
    support: Indices,
    own: bool,
) -> Adjusted:
    """Adjust a head as the settings say.

    Args:
        head: A fitted head, not yet adjusted.
        scores: (rows, classes) float32, logits of rows that were not trained on: of this head, or of heads of folds.
        labels: (rows,) int64.
        fold: (rows,) int64. Maps are compared on folds that they were not fitted to.
        support: (classes,) int64, the number of training rows of each class.
        own: Whether the logits are the head's own. If not, each fold is calibrated by a map of the others.

    Raises:
        SettingsError: there are no rows to adjust by, or none of the thresholds has the least precision.
    """
    method, names = settings.calibrate, head.label_names
    if not len(labels) and (method is not Calibration.NONE or settings.decides):
        raise SettingsError("there are no validation rows for `calibrate`, `decide_by` or `precision_floor`; add rows")
    method, found, losses = choose_map(method, scores, labels, fold)
    mapped = found(scores) if own else map_by_folds(method, scores, labels, fold)
    scale, shift = np.ones(len(names)), np.zeros(len(names))
    if found.scale is not None and found.shift is not None:
        scale, shift = found.scale, found.shift
    record: dict[str, Any] = {"calibration": None, "prior": None, "decision": None}
    if settings.calibrate is not Calibration.NONE:
        record["calibration"] = {
            "method": method,
            "log_loss": losses,  # of each method, on rows that its map was not fitted to
            "temperature": found.temperature,
            "scale": scale.tolist() if method is Calibration.PER_CLASS else None,
            "shift": shift.tolist() if method is Calibration.PER_CLASS else None,
        }
    ratio = np.ones(len(names))
    if settings.prior is not None:
        shares = _ordered(parse_shares(settings.prior), names)
        # Balanced weights train as if all classes were equally frequent, until per-class calibration sees the rows.
        balanced = settings.class_weight is ClassWeight.BALANCED and method is not Calibration.PER_CLASS
        trained = np.full(len(names), 1 / len(names)) if balanced else support / support.sum()
        ratio, move = shares * support.sum() / support, np.log(shares / trained)
        mapped, shift = mapped + move, shift + found.temperature * move
        record["prior"] = {"expected": dict(zip(names, shares.tolist(), strict=True))}
        record["prior"]["trained"] = dict(zip(names, trained.tolist(), strict=True))
    logits = mapped.astype(np.float32)
    weight = (head.weight * scale[:, None]).astype(np.float32)
    bias = (head.bias * scale + shift).astype(np.float32)
    thresholds = None
    if settings.decides:
        thresholds, record["decision"] = _decide(
            settings, names, log_softmax(logits.astype(np.float64)), labels, ratio[labels]
        )
    changed: dict[str, Any] = {"weight": weight, "bias": bias, "temperature": found.temperature}
    return Adjusted(dataclasses.replace(head, **changed, thresholds=thresholds), logits, record)


def _ordered(shares: Mapping[str, float], names: tuple[str, ...]) -> Float64Array:
    return np.array([shares[name] for name in names])


def _decide(
    settings: TrainSettings,
    names: tuple[str, ...],
    log_probabilities: Float64Array,
    labels: Indices,
    weight: Float64Array,
) -> tuple[tuple[float, float], dict[str, Any]]:
    """Choose the thresholds of two classes, which sum to 1; see `decide`. A row counts as often as
    its class is expected."""
    label, floor = (names[1], None) if settings.precision_floor is None else parse_floor(settings.precision_floor)
    number = names.index(label)
    probability, is_label = np.exp(log_probabilities[:, number]), labels == number
    threshold = best_threshold(probability, is_label, weight, metric=settings.decide_by, floor=floor)
    if threshold is None:
        raise SettingsError(
            f"no threshold gives {label!r} a precision of {floor:g} on the {len(labels):,} validation rows; "
            "lower `precision_floor`, or add rows"
        )
    thresholds = (1 - threshold, threshold) if number else (threshold, 1 - threshold)
    said = decide(np.exp(log_probabilities), thresholds) == number
    true, positive, relevant = (float(weight[rows].sum()) for rows in (said & is_label, said, is_label))
    chosen = {"label": label, "threshold": threshold, "by": settings.decide_by if floor is None else "precision-floor"}
    precision, recall = (true / whole if whole else 0.0 for whole in (positive, relevant))
    return thresholds, chosen | {"validation_precision": precision, "validation_recall": recall}


def best_threshold(
    probability: Float64Array, is_label: Mask, weight: Float64Array, *, metric: Decision, floor: float | None
) -> float | None:
    """Find the probability from which a class is predicted, in the middle between two of these rows.

    By accuracy or macro F1 it is the best one, and of equally good ones the nearest to one half. With a floor it is the
    one that finds the most rows of the class among those whose precision is not below the floor.

    Args:
        probability: (rows,) float64, of the class.
        is_label: (rows,) bool, whether the row is of the class.
        weight: (rows,) float64, how much the row counts.
        metric: What to choose by without a floor.
        floor: The least precision, or None.

    Returns:
        The threshold; None if none has that precision.
    """
    ranked, place = np.unique(-probability, return_inverse=True)
    ranked = -ranked  # from the highest
    hits, said = (np.cumsum(np.bincount(place, values)) for values in (weight * is_label, weight))
    total, relevant = said[-1], hits[-1]
    below = np.append(ranked[1:], 0.0)
    middles = np.clip((ranked + below) / 2, 1e-12, 1 - 1e-12)
    if floor is not None:
        enough = np.flatnonzero((hits >= floor * said - 1e-9 * total) & (hits > 0))
        return float(middles[enough[hits[enough].argmax()]]) if len(enough) else None
    # Also that no row is predicted to be of the class.
    hits, said, middles = (
        np.append(0.0, hits),
        np.append(0.0, said),
        np.append(min((ranked[0] + 1) / 2, 1 - 1e-12), middles),
    )
    right = hits + total - said - relevant + hits
    value = right
    if metric is Decision.MACRO_F1:
        f1 = [(2 * hits, said + relevant), (2 * (right - hits), 2 * total - said - relevant)]
        value = sum(np.divide(top, bottom, out=np.zeros_like(top), where=bottom > 0) for top, bottom in f1)
    best = np.flatnonzero(value >= value.max() * (1 - 1e-12))
    return float(middles[best[np.abs(middles[best] - 0.5).argmin()]])
