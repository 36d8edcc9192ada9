"""How well probabilities match how often a head is right, and maps of logits that make them match better.

Temperature scaling divides all logits by one number. Per-class calibration multiplies each class's logit with a number
and adds another: vector scaling in Guo et al. (On Calibration of Modern Neural Networks, 2017), of two classes Platt's
scaling. Where folds of rows are scored by heads that were not trained on them, the map is fitted to all these rows, and
used by the head that is trained on all rows, as in scikit-learn's CalibratedClassifierCV(ensemble=False).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from ..settings import Calibration
from ..types import Float64Array, Indices, Mask

CALIBRATION_BINS = 15
_LOWEST, _HIGHEST = 1e-3, 1e3
_BISECTIONS = 60
_CHOOSING_FOLDS = 10
"""Rows are calibrated by at most so many maps, each fitted to the rows of the other folds."""
_STEPS, _GAP = 100, 1e-10


def calibration_gaps(correct: Mask, log_probabilities: Float64Array) -> Float64Array:
    """Each row's correctness (0 or 1) minus its confidence, in the column of the confidence's bin: (rows, 15) float64.

    The expected calibration error is the sum over the bins of |sum over the rows|, divided by the number of rows, with
    15 bins of equal width (Guo et al., On Calibration of Modern Neural Networks, 2017).
    """
    confidence = np.exp(log_probabilities.max(axis=1))
    bins = np.clip(np.ceil(confidence * CALIBRATION_BINS).astype(np.int64) - 1, 0, CALIBRATION_BINS - 1)
    gaps = np.zeros((len(correct), CALIBRATION_BINS))
    gaps[np.arange(len(correct)), bins] = correct - confidence
    return gaps


def fit_temperature(logits: npt.NDArray[np.float32], labels: Indices) -> float:
    """Find the temperature with the lowest log loss on these rows, between 0.001 and 1,000 (Guo et al., On Calibration
    of Modern Neural Networks, 2017).

    The log loss is convex in 1 / temperature, so the zero of its derivative is found by bisection.

    Args:
        logits: (rows, classes) float32.
        labels: (rows,) int64.
    """
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    label_logit = shifted[np.arange(len(labels)), labels].mean()

    def derivative(inverse: float) -> float:
        weights = np.exp(shifted * inverse)
        return float(((weights * shifted).sum(axis=1) / weights.sum(axis=1)).mean() - label_logit)

    return find_temperature(derivative)


def find_temperature(derivative: Callable[[float], float]) -> float:
    """Find the temperature between 0.001 and 1,000 at whose inverse the derivative of a convex loss is 0."""
    low, high = np.log(1 / _HIGHEST), np.log(1 / _LOWEST)  # of log(1 / temperature)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if derivative(float(np.exp(middle))) > 0 else (middle, high)
    return float(np.exp(-(low + high) / 2))


def reliability(correct: Mask, confidence: Float64Array) -> list[dict[str, Any]]:
    """How often predictions of some confidence are right: one bin after the other, as `calibration_gaps` has them.

    Returns:
        ``from`` (exclusive) and ``to`` (inclusive), the confidences of the bin; ``rows``; ``confidence`` and
        ``accuracy``, their means, None in a bin without rows.
    """
    bins = np.clip(np.ceil(confidence * CALIBRATION_BINS).astype(np.int64) - 1, 0, CALIBRATION_BINS - 1)
    rows = np.bincount(bins, minlength=CALIBRATION_BINS)
    sums = [np.bincount(bins, values, CALIBRATION_BINS) for values in (confidence, correct)]
    return [
        {
            "from": number / CALIBRATION_BINS,
            "to": (number + 1) / CALIBRATION_BINS,
            "rows": int(count),
            **{
                name: float(total[number] / count) if count else None
                for name, total in zip(("confidence", "accuracy"), sums, strict=True)
            },
        }
        for number, count in enumerate(rows)
    ]


@dataclasses.dataclass(frozen=True)
class LogitMap:
    """Calibrated logits are (logits * scale + shift) / temperature."""

    temperature: float = 1.0
    scale: Float64Array | None = None  # (classes,); None if no class has its own
    shift: Float64Array | None = None  # (classes,), likewise

    def __call__(self, logits: npt.NDArray[Any]) -> Float64Array:
        """(rows, classes) to (rows, classes) float64."""
        calibrated: Float64Array = logits.astype(np.float64)
        if self.scale is not None and self.shift is not None:
            calibrated = calibrated * self.scale + self.shift
        return calibrated / self.temperature


def fit_map(method: Calibration, logits: npt.NDArray[np.float32], labels: Indices) -> LogitMap:
    """Fit a map to rows that the head was not trained on; of the method ``none``, it changes nothing."""
    if method is Calibration.TEMPERATURE:
        return LogitMap(float(np.float32(fit_temperature(logits, labels))))  # as a run stores it
    return fit_per_class(logits, labels) if method is Calibration.PER_CLASS else LogitMap()


def fit_per_class(logits: npt.NDArray[np.float32], labels: Indices) -> LogitMap:
    """Find each class's scale and shift with the lowest log loss on these rows.

    Newton's method, with each step solved for by conjugate gradients.

    With t the temperature of these rows, half the sum of (t scale - 1)^2 + shift^2 is added to the sum of the losses: a
    Gaussian prior around temperature scaling. So there is one optimum, also for a class that few rows have.

    Args:
        logits: (rows, classes) float32.
        labels: (rows,) int64.
    """
    rows, classes = logits.shape
    temperature = fit_temperature(logits, labels)
    scaled, place = logits.astype(np.float64) / temperature, np.arange(rows)
    prior = np.stack([np.ones(classes), np.zeros(classes)])  # (2, classes): scales of `scaled`, and shifts

    def at(point: Float64Array) -> tuple[float, Float64Array]:
        """The objective, and the probabilities (rows, classes)."""
        mapped = scaled * point[0] + point[1]
        mapped -= mapped.max(axis=1, keepdims=True)
        label_logits = mapped[place, labels].sum()
        np.exp(mapped, out=mapped)
        sums = mapped.sum(axis=1, keepdims=True)
        return float(np.log(sums).sum() - label_logits + ((point - prior) ** 2).sum() / 2), mapped / sums

    def gather(residuals: Float64Array) -> Float64Array:
        return np.stack([np.einsum("ij,ij->j", residuals, scaled), residuals.sum(axis=0)])

    def curvature(direction: Float64Array) -> Float64Array:
        """The objective's Hessian times a direction."""
        change = scaled * direction[0] + direction[1]
        change -= (probabilities * change).sum(axis=1, keepdims=True)
        return gather(probabilities * change) + direction

    point = prior
    loss, probabilities = at(point)
    for _ in range(_STEPS):
        residuals = probabilities.copy()
        residuals[place, labels] -= 1
        gradient = gather(residuals) + point - prior
        step = _solve(curvature, gradient)
        decrease, share = float((step * gradient).sum()), 1.0
        if decrease < _GAP * loss:
            break
        while (tried := at(point - share * step))[0] > loss - share * decrease / 4 and share > _GAP:
            share /= 2
        point, (loss, probabilities) = point - share * step, tried
    return LogitMap(scale=point[0] / temperature, shift=point[1])


def _solve(product: Callable[[Float64Array], Float64Array], wanted: Float64Array) -> Float64Array:
    """Solve a positive definite system by conjugate gradients."""
    found, rest = np.zeros_like(wanted), wanted
    direction, square = rest, float((rest**2).sum())
    first = square
    for _ in range(2 * wanted.size):
        if square <= _GAP**2 * first:
            break
        image = product(direction)
        length = square / float((direction * image).sum())
        found, rest = found + length * direction, rest - length * image
        square, previous = float((rest**2).sum()), square
        direction = rest + square / previous * direction
    return found


def fit_label_map(method: Calibration, logits: npt.NDArray[Any], targets: npt.NDArray[np.uint8]) -> LogitMap:
    """Fit a map where rows may have several labels: one temperature for all, or for each label a scale and a shift,
    which is Platt's scaling. Both arrays are (rows, labels)."""
    if method is Calibration.NONE:
        return LogitMap()

    if method is Calibration.PER_CLASS:
        maps = np.array([fit_platt(logits[:, label], targets[:, label] == 1) for label in range(logits.shape[1])])
        return LogitMap(scale=maps[:, 0], shift=maps[:, 1])

    def derivative(inverse: float) -> float:
        """Of the mean log loss with respect to 1 / temperature."""
        total = 0.0
        for label in range(logits.shape[1]):
            column = logits[:, label].astype(np.float64)
            chance = 1 / (1 + np.exp(-np.clip(column * inverse, -700, 700)))
            total += float(((chance - targets[:, label]) * column).sum())
        return total

    return LogitMap(float(np.float32(find_temperature(derivative))))


def fit_platt(logits: npt.NDArray[Any], is_label: Mask) -> tuple[float, float]:
    """Find one label's scale and shift by Platt's scaling: the lowest log loss, with one row more of each side, so that
    it is finite (Platt, Probabilistic Outputs for Support Vector Machines, 1999). Both arrays are (rows,)."""
    with_label, rows = int(is_label.sum()), len(is_label)
    wanted = np.where(is_label, (with_label + 1) / (with_label + 2), 1 / (rows - with_label + 2))
    mean, deviation = float(logits.mean(dtype=np.float64)), float(logits.std(dtype=np.float64)) or 1.0
    columns = np.stack([(logits - mean) / deviation, np.ones(rows)])  # (2, rows)

    def loss(point: Float64Array) -> float:
        mapped = point @ columns
        return float((np.logaddexp(0, mapped) - wanted * mapped).sum())

    point = np.array([0.0, np.log(wanted.mean() / (1 - wanted.mean()))])
    for _ in range(_STEPS):  # Newton's method
        chances = 1 / (1 + np.exp(-np.clip(point @ columns, -700, 700)))
        gradient = columns @ (chances - wanted)
        step = np.linalg.solve((columns * chances * (1 - chances)) @ columns.T + 1e-9 * rows * np.eye(2), gradient)
        before, decrease, share = loss(point), float(gradient @ step), 1.0
        if decrease < _GAP * before:
            break
        while loss(point - share * step) > before - share * decrease / 4 and share > _GAP:
            share /= 2
        point = point - share * step
    scale = float(point[0]) / deviation
    return scale, float(point[1]) - scale * mean


def fit_ordinal_map(method: Calibration, logits: npt.NDArray[Any], labels: Indices) -> LogitMap:
    """Fit a map where classes have an order: a temperature. Logits are (rows, classes - 1), labels (rows,) int64."""
    if method is Calibration.NONE:
        return LogitMap()
    edge = np.full((len(logits), 1), np.inf)
    bounds, place = np.concatenate([edge, logits.astype(np.float64), -edge], axis=1), np.arange(len(labels))
    upper, lower = bounds[place, labels], bounds[place, labels + 1]
    inner, gaps = np.isfinite(upper) & np.isfinite(lower), np.maximum(upper - lower, 1e-7)
    upper, lower = np.where(np.isfinite(upper), upper, 700.0), np.where(np.isfinite(lower), lower, -700.0)

    def derivative(inverse: float) -> float:
        """Of -log(sigmoid(upper / temperature) - sigmoid(lower / temperature)), likewise."""
        below, above = (1 / (1 + np.exp(np.clip(bound * inverse, -700, 700))) for bound in (upper, -lower))
        terms = lower * above - upper * below
        terms -= np.where(inner, gaps / np.expm1(np.clip(np.where(inner, gaps, 1.0) * inverse, 1e-300, 700)), 0.0)
        return float(terms.sum())

    return LogitMap(float(np.float32(find_temperature(derivative))))


def held_out(fold: Indices) -> Iterator[tuple[Mask, Mask]]:
    """Divide rows into at most ten parts, and yield each one and the others: (rows,) bool both. ``fold`` is (rows,)
    int64, equal for rows of a part. Nothing of a single part."""
    numbers = np.unique(fold, return_inverse=True)[1] % _CHOOSING_FOLDS
    for number in range(int(numbers.max(initial=0)) + 1):
        if (others := numbers != number).any():
            yield ~others, others
