"""95% intervals of scores that are functions of sums over rows: the Bayesian bootstrap of `intervals`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..types import Float64Array, Indices

_TAIL = 0.025
_MAX_DRAWS = 200_000_000

Scores = Callable[[Float64Array], dict[str, Float64Array]]
"""Turns sums (n, sums) into scores by name, each (n,)."""


def sum_intervals(
    terms: Float64Array,
    scores: Scores,
    groups: Indices,
    *,
    bad: Float64Array,
    good: Float64Array,
    seed: int,
    resamples: int,
) -> dict[str, list[float]]:
    """Intervals [low, high] of scores, each of which holds the score of the rows itself.

    Each resample weights every text at random, and has one text more, which is wrong or right: without it, an interval
    of rows without an error would have no width. With more than 200,000 texts there are fewer than 1,000 resamples, but
    at least 200.

    Args:
        terms: (rows, sums) float64, what each row adds to the sums.
        scores: The scores of sums.
        groups: (rows,) int64, equal for copies of one text.
        bad: (rows, sums) float64, what each row would add if it were as wrong as can be.
        good: The same if it were right.
        seed: Seed of the resampling.
        resamples: Number of resamples.
    """
    _, first, group = np.unique(groups, return_index=True, return_inverse=True)
    texts, sizes = len(first), np.bincount(group)
    sums = np.stack([np.bincount(group, column, texts) for column in terms.T], axis=1)
    rng = np.random.default_rng(seed)
    resamples = max(min(resamples, 200), min(resamples, _MAX_DRAWS // texts))
    drawn = np.stack([rng.standard_exponential(texts) @ sums for _ in range(resamples)])
    added = rng.choice(texts, resamples, p=sizes / len(groups))  # a copied text counts as often as its rows
    weight = (rng.standard_exponential(resamples) * sizes[added])[:, None]
    sides = [scores(drawn + weight * side[first[added]]) for side in (bad, good)]
    found = scores(terms.sum(axis=0)[None])
    return {name: hold(float(found[name][0]), *(side[name] for side in sides)) for name in found}


def hold(score: float, *resampled: Float64Array) -> list[float]:
    """The widest interval that some resamples of a score say, and that holds the score."""
    low = min(float(np.quantile(values, _TAIL)) for values in resampled)
    high = max(float(np.quantile(values, 1 - _TAIL)) for values in resampled)
    return [min(low, score), max(high, score)]


def ratio(part: Float64Array, whole: Float64Array, otherwise: Float64Array | float = 0.0) -> Float64Array:
    """part / whole, and something else where the whole is 0."""
    filled = np.broadcast_to(np.asarray(otherwise, np.float64), part.shape).copy()
    result: Float64Array = np.divide(part, whole, out=filled, where=whole > 0)
    return result
