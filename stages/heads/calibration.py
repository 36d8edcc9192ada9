"""How well probabilities match how often a head is right, and maps of logits that make them match better.

Temperature scaling divides all logits by one number. Per-class calibration multiplies each class's logit with a number
and adds another: vector scaling in Guo et al. (On Calibration of Modern Neural Networks, 2017), of two classes Platt's
scaling. Where folds of rows are scored by heads that were not trained on them, the map is fitted to all these rows, and
used by the head that is trained on all rows, as in scikit-learn's CalibratedClassifierCV(ensemble=False).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
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
    low, high = np.log(1 / _HIGHEST), np.log(1 / _LOWEST)  # of log(1 / temperature)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        weights = np.exp(shifted * np.exp(middle))
        derivative = ((weights * shifted).sum(axis=1) / weights.sum(axis=1)).mean() - label_logit
        low, high = (low, middle) if derivative > 0 else (middle, high)
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


def choose_map(
    method: Calibration, logits: npt.NDArray[np.float32], labels: Indices, fold: Indices
) -> tuple[Calibration, LogitMap, dict[Calibration, float]]:
    """Fit a map of a method, or of the one that ``auto`` chooses by the log loss of folds.

    Args:
        logits: (rows, classes) float32, of heads that were not trained on the row.
        labels: (rows,) int64.
        fold: (rows,) int64, equal for rows that are calibrated together by a map of the others.

    Returns:
        The method, the map, and each method's log loss on rows that its map was not fitted to; none of the method
        ``none``.
    """
    if method is Calibration.NONE:
        return method, LogitMap(), {}
    losses = {}
    for tried in (Calibration.NONE, Calibration.TEMPERATURE, Calibration.PER_CLASS):
        if tried in (method, Calibration.NONE) or method is Calibration.AUTO:
            losses[tried] = _log_loss(map_by_folds(tried, logits, labels, fold), labels)
    if method is Calibration.AUTO:
        method = min(losses, key=lambda tried: losses[tried])
    return method, fit_map(method, logits, labels), losses


def map_by_folds(method: Calibration, logits: npt.NDArray[np.float32], labels: Indices, fold: Indices) -> Float64Array:
    """Calibrate each row with the map of the other folds' rows: (rows, classes) float64."""
    numbers = np.unique(fold, return_inverse=True)[1] % _CHOOSING_FOLDS
    calibrated: Float64Array = logits.astype(np.float64)
    for number in range(int(numbers.max(initial=0)) + 1):
        ours, others = numbers == number, numbers != number
        if others.any():
            calibrated[ours] = fit_map(method, logits[others], labels[others])(logits[ours])
    return calibrated


def log_softmax(logits: Float64Array) -> Float64Array:
    """Natural logarithms of the probabilities that these logits say, (rows, classes) both."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    result: Float64Array = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


def _log_loss(logits: Float64Array, labels: Indices) -> float:
    return float(-log_softmax(logits)[np.arange(len(labels)), labels].mean())
