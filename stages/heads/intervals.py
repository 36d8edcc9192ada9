"""95% confidence intervals of metrics: arrays in, intervals out. They hold where a sample has no error, or little else.

A share of rows has the exact interval of Clopper and Pearson (1934): no true share is missed more often than in 5% of
samples. Other metrics have intervals from the Bayesian bootstrap (Rubin, 1981), in which each text has a random weight
of the exponential distribution. A bootstrap alone fails at the edges: where no row is wrong, none is wrong in any
resample, and the interval has no width. So each resample has one text more, which is wrong for the bound on the bad
side and right for the bound on the good side. For a share, this is Clopper and Pearson's interval, whose bounds for k
right of n are quantiles of Beta(k, n - k + 1) and Beta(k + 1, n - k).

Rows with one text are not independent: texts are weighted and counted, not rows. `bench/interval_coverage.py` prints
how often the intervals hold the truth.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..types import Float64Array, Indices, Mask
from .calibration import calibration_gaps

_TAIL = 0.025
_NORMAL_QUANTILE = 1.959963984540054
_MAX_STEPS = 100_000
_MAX_NUMBERS = 4_000_000
"""Most numbers of resamples in memory at a time."""
_MAX_DRAWS = 200_000_000
_MAX_RANKED = 500_000
_Array = npt.NDArray[Any]
"""float64; the type stubs of a weighted `np.bincount` say otherwise."""
_log_gamma = np.vectorize(math.lgamma, otypes=[np.float64])


def share_intervals(correct: Mask, classes_of_rows: Indices, groups: Indices, *, classes: int) -> Float64Array:
    """Intervals of the shares of correct rows within classes of rows: (classes, 2) float64; 0 to 1 without a row.

    Copies of a text are worth less than as many texts. The number of independent rows is Kish's effective sample size,
    which is exact if a text's rows are all correct or all wrong. It is smaller if that explains more of the variance
    between texts (Korn and Graubard, 1998), as where one frequent text is wrong and the rare ones are correct.

    Args:
        correct: (rows,) bool.
        classes_of_rows: (rows,) int64: the class in which a row is counted.
        groups: (rows,) int64, equal for copies of one text.
        classes: Number of classes.
    """
    _, group = np.unique(groups, return_inverse=True)
    pairs, text = np.unique(group * classes + classes_of_rows, return_inverse=True)
    of_class = pairs % classes  # (texts,), as sizes and hits
    sizes, hits = np.bincount(text).astype(np.float64), np.bincount(text, correct)
    rows, right, squares = (np.bincount(of_class, values, classes) for values in (sizes, hits, sizes**2))
    share = np.divide(right, rows, out=np.zeros(classes), where=rows > 0)
    trials = np.divide(rows**2, squares, out=np.zeros(classes), where=rows > 0)
    spread = np.bincount(of_class, (hits - share[of_class] * sizes) ** 2, classes)
    seen = np.divide(share * (1 - share) * rows**2, spread, out=trials.copy(), where=spread > 0)
    return exact_interval(share, np.minimum(trials, seen))


def exact_interval(share: Float64Array, trials: Float64Array) -> Float64Array:
    """Clopper and Pearson's interval of shares, (n, 2) float64. The numbers of trials need not be whole."""
    hits, misses = share * trials, (1 - share) * trials
    low = _lowest_share(np.concatenate([hits, misses]), np.concatenate([misses, hits]))
    return np.stack([low[: len(share)], 1 - low[len(share) :]], axis=1)


def _lowest_share(hits: Float64Array, misses: Float64Array) -> Float64Array:
    """Find the share below which so many hits, or more, come up in 2.5% of samples: a quantile of Beta(hits, misses
    + 1). Without hits it is 0.

    The logarithm of the distribution function is a concave function of the logarithm of the share. So Newton's method
    ends at the root from everywhere.
    """
    lowest = np.zeros(len(hits))
    some = hits > 0.004  # of fewer, the share is below the least number
    a, b = hits[some], misses[some] + 1
    if not len(a):
        return lowest
    constant = _log_gamma(a + b) - _log_gamma(a) - _log_gamma(b)
    n, z = a + b, _NORMAL_QUANTILE
    wilson = (a / n + z**2 / (2 * n) - z * np.sqrt(a * b / n**3 + (z / n) ** 2 / 4)) / (1 + z**2 / n)
    point = np.log(wilson)  # a start that is near
    for _ in range(100):
        tail, density = _beta_tail(a, b, point, constant)
        step = (math.log(_TAIL) - np.log(tail)) * tail / density
        point = np.minimum(point + step, -1e-15)
        if (np.abs(step) < 1e-12 * (1 - point)).all():
            break
    lowest[some] = np.exp(point)
    return lowest


def _beta_tail(
    a: Float64Array, b: Float64Array, point: Float64Array, constant: Float64Array
) -> tuple[Float64Array, Float64Array]:
    """The distribution function of Beta(a, b) at exp(point), and its derivative by the point.

    The continued fraction is that of Press et al. (Numerical Recipes, 2007, chapter 6.4), by Lentz's method.
    ``constant`` is -log B(a, b).
    """
    x = np.exp(point)
    power = np.exp(constant + a * point + b * np.log1p(-x))  # x^a (1 - x)^b / B(a, b)
    swapped = x > (a + 1) / (a + b + 2)
    p, q, at = np.where(swapped, b, a), np.where(swapped, a, b), np.where(swapped, 1 - x, x)
    c, d = np.ones(len(a)), 1 / (1 - (p + q) * at / (p + 1))
    fraction = d.copy()
    for m in range(1, _MAX_STEPS):
        even = m * (q - m) * at / ((p + 2 * m - 1) * (p + 2 * m))
        odd = -(p + m) * (p + q + m) * at / ((p + 2 * m) * (p + 2 * m + 1))
        for term in (even, odd):
            c, d = 1 + term / c, 1 / (1 + term * d)
            fraction *= c * d
        if (np.abs(c * d - 1) < 1e-14).all():
            break
    tail = power * fraction / p
    return np.where(swapped, 1 - tail, tail), power / (1 - x)


def f1_intervals(
    labels: Indices, predicted: Indices, groups: Indices, *, classes: int, seed: int, resamples: int
) -> dict[str, Float64Array]:
    """Intervals [low, high] of ``macro_f1`` and ``weighted_f1``, with one text more of a random class in each resample.

    Texts with the same labels and predictions count the same in each score. So the weight of all texts of each kind is
    drawn, from a gamma distribution, and the cost does not grow with the rows.
    """
    cells, kinds, counts = _group_kinds(labels, predicted, groups)
    kind_rows = np.bincount(kinds, cells[:, 2])
    share = counts * kind_rows / len(labels)
    used = np.union1d(labels, predicted)
    rng = np.random.default_rng(seed)
    scores = []
    chunk = max(1, _MAX_NUMBERS // (len(cells) + classes))
    for start in range(0, resamples, chunk):
        n = min(chunk, resamples - start)
        weights = rng.standard_gamma(counts, (n, len(counts)))[:, kinds] * cells[:, 2]  # (n, cells)
        support, said = (_sum_columns(weights, cells[:, column], classes) for column in (0, 1))
        right = cells[:, 0] == cells[:, 1]
        correct = _sum_columns(weights[:, right], cells[right, 0], classes)
        more = rng.standard_exponential(n) * kind_rows[rng.choice(len(counts), n, p=share)]
        rows, label = np.arange(n), rng.choice(used, n)
        support[rows, label] += more
        for hits, wrong in ((0, rng.integers(1, classes, n)), (more, 0)):
            all_correct, all_said = correct.copy(), said.copy()
            all_correct[rows, label] += hits
            all_said[rows, (label + wrong) % classes] += more
            f1 = 2 * all_correct[:, used] / (support + all_said)[:, used]
            scores.append([f1.mean(axis=1), (f1 * support[:, used]).sum(axis=1) / support.sum(axis=1)])
    bad, good = (np.concatenate(scores[side::2], axis=1) for side in (0, 1))
    bounds = np.stack([np.quantile(bad, _TAIL, axis=1), np.quantile(good, 1 - _TAIL, axis=1)], axis=1)
    return dict(zip(("macro_f1", "weighted_f1"), bounds, strict=True))


def average_precision_interval(
    scores: npt.NDArray[np.floating[Any]],
    has_class: Callable[[int], Mask],
    groups: Indices,
    *,
    seed: int,
    resamples: int,
) -> Float64Array | None:
    """The interval [low, high] of the macro average precision, with one text more of a random class in each resample.

    On the bad side, the text that is added has the lowest score of its own class and the highest of the others; on the
    good side it is the other way round. With many rows and classes there are fewer than 1,000 resamples, but at least
    200. Where rows times classes are more than 500,000, resamples would take long: there the score is taken as linear
    in the texts' weights, around those of the rows, and each class is read once.

    Args:
        scores: (rows, classes) floating; in each column the rows of its class should have the highest.
        has_class: Which rows are of a class, (rows,) bool.
        groups: (rows,) int64, equal for copies of one text.
        seed: Seed of the resampling.
        resamples: Number of resamples.

    Returns:
        (2,) float64; None if no class has a row.
    """
    rows, classes = scores.shape
    used = [label for label in range(classes) if has_class(label).any()]
    if not used:
        return None
    _, group = np.unique(groups, return_inverse=True)
    sizes, rng = np.bincount(group), np.random.default_rng(seed)
    rankings = (_Ranking(has_class(label), scores[:, label], group) for label in used)
    if rows * classes > _MAX_RANKED:
        bad, good = _linear_bounds(rankings, sizes, rng, resamples)
    else:
        resamples = max(min(resamples, 200), min(resamples, _MAX_DRAWS // (50 * rows * classes)))
        bad, good = _resampled_bounds(list(rankings), sizes, rng, resamples)
    return np.array([np.quantile(bad, _TAIL), np.quantile(good, 1 - _TAIL)])


def _resampled_bounds(
    rankings: Sequence[_Ranking], sizes: Indices, rng: np.random.Generator, resamples: int
) -> Float64Array:
    """Macro average precisions of resamples on the bad and on the good side: (2, resamples) float64."""
    bounds, rows, texts = [], int(sizes.sum()), len(sizes)
    chunk = max(1, _MAX_NUMBERS // (10 * rows))
    for start in range(0, resamples, chunk):
        n = min(chunk, resamples - start)
        weights = rng.standard_exponential((n, texts))
        more = rng.standard_exponential(n) * sizes[rng.choice(texts, n, p=sizes / rows)]
        own = rng.integers(len(rankings), size=n)
        of_classes = [ranking.bounds(weights, more, own == number) for number, ranking in enumerate(rankings)]
        bounds.append(np.mean(of_classes, axis=0))
    return np.concatenate(bounds, axis=1)


def _linear_bounds(
    rankings: Iterable[_Ranking], sizes: Indices, rng: np.random.Generator, resamples: int
) -> Float64Array:
    """The same to the first order in the weights. Sums over so many texts are normal, with the variance that weights of
    the exponential distribution give them: the infinitesimal jackknife (Jaeckel 1972; Efron 1982, chapter 6)."""
    influence, found = np.zeros(len(sizes)), []
    for ranking in rankings:
        precision, effects, top = ranking.linear()
        influence += np.bincount(ranking.text, effects, len(sizes))
        found.append((precision, len(ranking.hits), top))
    precisions, hits, tops = np.array(found).T
    classes = len(found)
    drawn = precisions.sum() + math.sqrt(float((influence**2).sum())) * rng.standard_normal(resamples)
    more = rng.standard_exponential(resamples) * sizes[rng.choice(len(sizes), resamples, p=sizes / sizes.sum())]
    own = rng.integers(classes, size=resamples)
    share = more / (hits[own] + more)  # of the added text in its class
    # It stands above all rows of the other classes, which lose no more than all that they have.
    others = np.minimum(more * tops.sum(), precisions.sum()) - np.minimum(more * tops[own], precisions[own])
    bad = drawn - share * precisions[own] - others
    good = drawn + share * (1 - precisions[own])
    return np.clip(np.stack([bad, good]) / classes, 0, 1)


class _Ranking:
    """The rows in the order of a class's scores, from the highest."""

    def __init__(self, of_class: Mask, scores: npt.NDArray[np.floating[Any]], group: Indices) -> None:
        order = np.argsort(-scores, kind="stable")
        ranked, self.hits = scores[order], np.flatnonzero(of_class[order])
        self.text = group[order]
        # Rows with equal scores share the rank of the last of them.
        self._ends = np.searchsorted(-ranked, -ranked[self.hits], side="right") - 1
        self._hit_ends = np.searchsorted(-ranked[self.hits], -ranked[self.hits], side="right") - 1

    def linear(self) -> tuple[float, Float64Array, float]:
        """The average precision; its derivatives by the rows' weights, (rows,) float64 in the order of the ranks; and
        how much it falls for each weight of a row of another class that is added above all."""
        above, correct, hits = self._ends + 1.0, self._hit_ends + 1.0, len(self.hits)
        precision = float((correct / above).mean())
        falls = np.bincount(self._ends, correct / above**2, len(self.text))[::-1].cumsum()[::-1] / hits
        rises = np.bincount(self._hit_ends, 1 / above, hits)[::-1].cumsum()[::-1]
        effects = -falls
        effects[self.hits] += (correct / above + rises - precision) / hits
        return precision, effects, float(falls[0])

    def bounds(self, weights: Float64Array, more: Float64Array, is_own: Mask) -> Float64Array:
        """The average precision with one text more on the bad side, and on the good side: (2, n) float64.

        Args:
            weights: (n, texts) float64.
            more: (n,) float64, the weight of the text that is added.
            is_own: (n,) bool, whether that text is of this class.
        """
        of_rows = np.take(weights, self.text, axis=1)
        hits, sums = np.take(of_rows, self.hits, axis=1), np.cumsum(of_rows, axis=1)
        above, correct = np.take(sums, self._ends, axis=1), np.cumsum(hits, axis=1)
        total, own, other = correct[:, -1], np.where(is_own, more, 0), np.where(is_own, 0, more)
        correct = np.take(correct, self._hit_ends, axis=1)
        bad = (hits * correct / (above + other[:, None])).sum(axis=1) + own * (total + own) / (sums[:, -1] + more)
        good = (hits * (correct + own[:, None]) / (above + own[:, None])).sum(axis=1) + own
        return np.stack([bad, good]) / (total + own)


def loss_intervals(
    log_probabilities: Float64Array,
    gaps: Float64Array,
    losses: Float64Array,
    groups: Indices,
    *,
    seed: int,
    resamples: int,
) -> dict[str, Float64Array]:
    """Intervals [low, high] of ``log_loss`` and ``calibration_error``.

    The calibration error of a resample is larger than the error of the rows, because absolute values do not average
    out. So its quantile is the upper bound, but says nothing of the lower bound. There the triangle inequality helps:
    the error of all texts of the world is no further from the error of the rows than the norm of the difference of
    their gaps, and resamples show how large such norms are.

    The text that is added is one of the sample. If it is wrong, its label is the class with the second highest
    probability. With more than 200,000 texts there are fewer than 1,000 resamples, but at least 200.

    Args:
        log_probabilities: (rows, classes) float64.
        gaps: (rows, bins) float64, from `calibration_gaps`.
        losses: (rows,) float64.
        groups: (rows,) int64, equal for copies of one text.
        seed: Seed of the resampling.
        resamples: Number of resamples.
    """
    _, first, group = np.unique(groups, return_index=True, return_inverse=True)
    texts = len(first)
    sums, bins = np.zeros((texts, gaps.shape[1] + 2)), gaps.shape[1]
    for columns, values in ((slice(bins), gaps), (bins, losses), (bins + 1, 1)):  # no copy of them side by side
        np.add.at(sums[:, columns], group, values)
    rng = np.random.default_rng(seed)
    resamples = max(min(resamples, 200), min(resamples, _MAX_DRAWS // texts))
    drawn = np.stack([rng.standard_exponential(texts) @ sums for _ in range(resamples)])
    added = rng.choice(texts, resamples, p=sums[:, -1] / len(losses))  # a copied text counts as often as its rows
    size = (rng.standard_exponential(resamples) * sums[added, -1])[:, None]
    said = log_probabilities[first[added]]
    second, highest = np.partition(said, -2, axis=1)[:, -2:].T
    bad, good = (
        (drawn[:, :-1] + size * np.column_stack([calibration_gaps(correct, said), -own])) / (drawn[:, -1:] + size)
        for correct, own in ((np.zeros(resamples, bool), second), (np.ones(resamples, bool), highest))
    )
    low, high = np.quantile(good[:, -1], _TAIL), np.quantile(bad[:, -1], 1 - _TAIL)
    mean = gaps.mean(axis=0)
    both = [side[:, :-1] for side in (bad, good)]
    away = max(np.quantile(np.abs(side - mean).sum(axis=1), 1 - _TAIL) for side in both)
    upper = max(np.quantile(np.abs(side).sum(axis=1), 1 - _TAIL) for side in both)
    error = np.abs(mean).sum()
    return {
        "log_loss": np.array([low, high]),
        "calibration_error": np.clip([error - away, max(error, upper)], 0, 1),
    }


def _sum_columns(weights: Float64Array, keys: Indices, classes: int) -> Float64Array:
    """Sum the columns with the same key: (n, columns) to (n, classes)."""
    sums = np.zeros((len(weights), classes))
    if len(keys):
        order = np.argsort(keys, kind="stable")
        present, starts = np.unique(keys[order], return_index=True)
        sums[:, present] = np.add.reduceat(weights[:, order], starts, axis=1)
    return sums


def _group_kinds(labels: Indices, predicted: Indices, groups: Indices) -> tuple[Indices, Indices, Indices]:
    """Sort groups into kinds: groups whose rows have the same labels and predictions.

    Returns:
        Cells (cells, 3): a label, a prediction, and the number of rows in the group that have both; kinds (cells,):
        each cell's kind of group; counts (kinds,): the groups of each kind.
    """
    pairs, rows = np.unique(np.stack([groups, labels, predicted], axis=1), axis=0, return_counts=True)
    # Most groups have one cell. A group with several cells is a kind of its own, and is told apart by its number.
    _, first, group, sizes = np.unique(pairs[:, 0], return_index=True, return_inverse=True, return_counts=True)
    own_kind = np.where(sizes[group] == 1, -1, group)
    stacked = np.stack([pairs[:, 1], pairs[:, 2], rows, own_kind], axis=1)
    cells, cell = np.unique(stacked, axis=0, return_inverse=True)
    key = np.where(cells[:, 3] < 0, -1 - np.arange(len(cells)), cells[:, 3])
    _, kinds = np.unique(key, return_inverse=True)
    counts = np.bincount(kinds[cell.reshape(-1)[first]], minlength=kinds.max() + 1)
    return cells[:, :3], kinds, counts
