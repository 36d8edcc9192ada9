"""Metrics of numbers, and of classes with an order, with confidence intervals: arrays in, plain numbers out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..types import Float64Array, Indices
from .metrics import RESAMPLES
from .text_bootstrap import hold, ratio, sum_intervals

_NORMAL_QUANTILE = 1.959963984540054
_MAX_DRAWS = 200_000_000


def evaluate_numbers(
    values: Float64Array, predicted: Float64Array, groups: Indices, *, seed: int = 0, resamples: int = RESAMPLES
) -> dict[str, Any]:
    """Score predicted numbers.

    Args:
        values: (rows,) float64, the true numbers.
        predicted: (rows,) float64.
        groups: (rows,) int64, equal for copies of one text: intervals count texts and not rows.
        seed: Seed of the resampling.
        resamples: Number of resamples for the intervals.

    Returns:
        ``rows``; ``r2``, ``mean_absolute_error``, ``root_mean_squared_error`` and ``spearman``, each with its
        ``_interval``, [low, high] at 95%. R2 of equal true numbers is 0 (1 without an error), as in scikit-learn.
        Spearman's rank correlation is None where all true or all predicted numbers are equal.
    """
    center = values.mean()  # squares of large numbers would lose the digits of small differences

    def terms(errors: Float64Array) -> Float64Array:
        centered = values - center
        return np.stack([np.ones(len(values)), centered, centered**2, np.abs(errors), errors**2], axis=1)

    errors = predicted - values
    worst = np.full(len(values), np.abs(errors).max())
    intervals = sum_intervals(
        terms(errors),
        _number_scores,
        groups,
        bad=terms(worst),
        good=terms(np.zeros(len(values))),
        seed=seed,
        resamples=resamples,
    )
    scores = {name: float(score[0]) for name, score in _number_scores(terms(errors).sum(axis=0)[None]).items()}
    spread = ((values - center) ** 2).sum()  # the exact sum, where rounding matters
    scores["r2"] = float(ratio(spread - (errors**2).sum(), spread, float(not errors.any())))
    intervals["r2"] = [min(intervals["r2"][0], scores["r2"]), max(intervals["r2"][1], scores["r2"])]
    rank = spearman(values, predicted)
    return {
        "rows": len(values),
        **scores,
        "spearman": rank,
        **{f"{name}_interval": interval for name, interval in intervals.items()},
        "spearman_interval": None
        if rank is None
        else _correlation_interval(rank, values, predicted, groups, seed=seed, resamples=resamples),
    }


def _number_scores(sums: Float64Array) -> dict[str, Float64Array]:
    rows, total, squares, absolute, errors = sums.T
    spread = squares - total**2 / rows
    return {
        "r2": ratio(spread - errors, spread, np.where(errors > 0, 0.0, 1.0)),
        "mean_absolute_error": absolute / rows,
        "root_mean_squared_error": np.sqrt(errors / rows),
    }


def spearman(values: Float64Array, predicted: Float64Array) -> float | None:
    """Spearman's rank correlation, equal numbers having their mean rank; None where all of one side are equal."""
    ranks = []
    for side in (values, predicted):
        _, place, counts = np.unique(side, return_inverse=True, return_counts=True)
        mean_rank = np.cumsum(counts) - (counts - 1) / 2
        ranks.append(mean_rank[place] - mean_rank[place].mean())
    length = math.sqrt((ranks[0] ** 2).sum() * (ranks[1] ** 2).sum())
    return float(np.clip((ranks[0] * ranks[1]).sum() / length, -1, 1)) if length else None


def _correlation_interval(
    rank: float, values: Float64Array, predicted: Float64Array, groups: Indices, *, seed: int, resamples: int
) -> list[float]:
    """The interval of a rank correlation: from the lower to the upper of two bounds each.

    One pair comes from Fisher's transformation, with the variance of Bonett and Wright (Sample Size Requirements for
    Estimating Pearson, Kendall and Spearman Correlations, 2000), which holds for normal errors. There, texts are
    counted by Kish's effective size, and with three or fewer, nothing is known. The other pair comes from the Bayesian
    bootstrap, which sees where a few rows are far off.
    """
    _, group, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    places = [np.unique(side, return_inverse=True)[1] for side in (values, predicted)]
    rng = np.random.default_rng(seed)
    resamples = max(min(resamples, 200), min(resamples, _MAX_DRAWS // (10 * len(values))))
    resampled = [_weighted_correlation(places, rng.standard_exponential(len(sizes))[group]) for _ in range(resamples)]
    low, high = hold(rank, np.array(resampled))
    texts = float(sizes.sum() ** 2 / (sizes**2).sum())
    if texts <= 3:
        return [-1.0, 1.0]
    middle = math.atanh(max(min(rank, 1 - 1 / texts), -1 + 1 / texts))  # ranks that agree wholly are not certain
    reach = _NORMAL_QUANTILE * math.sqrt((1 + rank**2 / 2) / (texts - 3))
    return [min(math.tanh(middle - reach), low), max(math.tanh(middle + reach), high)]


def _weighted_correlation(places: list[Indices], weights: Float64Array) -> float:
    """Spearman's rank correlation of weighted rows, from the place of each one's number among the distinct numbers."""
    ranks = []
    for place in places:
        of_numbers = np.bincount(place, weights)
        rank = (np.cumsum(of_numbers) - of_numbers / 2)[place]
        ranks.append(rank - rank @ weights / weights.sum())
    one, other = ranks
    correlation = (one * other) @ weights / math.sqrt((one**2 @ weights) * (other**2 @ weights))
    return float(np.clip(correlation, -1, 1))


def order_metrics(
    labels: Indices, predicted: Indices, groups: Indices, *, classes: int, seed: int = 0, resamples: int = RESAMPLES
) -> dict[str, Any]:
    """Score predicted classes by their distance in the order: ``mean_absolute_error``, in classes, and
    ``quadratic_kappa``, Cohen's kappa with quadratic weights, each with its ``_interval``. Arguments as for
    `evaluate`. Kappa is 1 where all labels and predictions are the same class."""
    last = classes - 1

    def terms(said: Float64Array) -> Float64Array:
        true, away = labels.astype(np.float64), said - labels
        columns = [np.ones(len(labels)), true, said, true**2, said**2, np.abs(away), away**2]
        return np.stack(columns, axis=1)

    rows = terms(predicted.astype(np.float64))
    farthest = np.where(2 * labels < last, last, 0).astype(np.float64)
    sides = {"bad": terms(farthest), "good": terms(labels.astype(np.float64))}
    intervals = sum_intervals(rows, _order_scores, groups, **sides, seed=seed, resamples=resamples)
    scores = {name: float(score[0]) for name, score in _order_scores(rows.sum(axis=0)[None]).items()}
    return scores | {f"{name}_interval": interval for name, interval in intervals.items()}


def _order_scores(sums: Float64Array) -> dict[str, Float64Array]:
    rows, true, said, true_squares, said_squares, absolute, squares = sums.T
    by_chance = (
        true_squares + said_squares - 2 * true * said / rows
    )  # the mean over all pairs of a label and a prediction
    return {
        "mean_absolute_error": absolute / rows,
        "quadratic_kappa": 1 - ratio(squares, by_chance),
    }
