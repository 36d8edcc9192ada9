"""Rows with nearly the same features and different labels: the nearest row of another label, without all products.

Similarity is the cosine of features less their mean. Without that, all vectors of many encoders point nearly one way
(Mu and Viswanath 2018, arXiv 1702.01417), and any two texts would be near-duplicates.

Most pairs are ruled out by their leading principal components alone. Cut unit vectors x and y into components a and a
rest b: the inequality of Cauchy and Schwarz gives x y = x_a y_a + x_b y_b <= x_a y_a + |x_b| |y_b|. This bound is a
product of vectors, with one more number than there are components. So the search is exact: no pair is missed. Few
components rule out nearly all pairs, more of them nearly all others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import torch

from ..threads import ordered_map
from ..types import Features, Float64Array, Indices
from .dataset import Dataset

Tensor = torch.Tensor
_SAMPLE_ROWS = 8192
"""Rows that the principal components are measured on. Any would do: they decide the time, and not the result."""
_SHARE, _STEP = 0.5, 64
"""Share of the variance in the components that pairs are ruled out by, and what their number is a multiple of."""
_FIRST_STEP, _FIRST_LEFT, _FIRST_ROWS = 8, 2e-4, 512
"""The first components leave at most this share of the pairs, as so many rows of the sample show; the step of their
number."""
_ROWS, _COLUMNS = 512, 2048
"""Rows of a block of products. It stays in a core's cache."""
_ROUNDING = 1e-5
"""Rounding of a product in float32, at most."""


@dataclasses.dataclass(frozen=True)
class Partners:
    """For each row of a dataset, the nearest row of another label, if it is near enough."""

    partner: Indices  # (rows,) a position in the dataset; -1 for none
    similarity: Float64Array  # (rows,) cosine; 0 for none
    components: int  # by which pairs were ruled out
    first: int  # the first of them, by which all pairs were compared
    products: float  # share of the pairs that were not ruled out


def same_text_partners(labels: Indices, groups: Indices) -> Indices:
    """For each row the first row of its group that has another label: (rows,) int64, a position; -1 for none."""
    _, group = np.unique(groups, return_inverse=True)
    rows = np.arange(len(labels))
    by_label, by_last = (np.lexsort((rows, key, group)) for key in (labels, -labels))
    starts = np.flatnonzero(np.diff(group[by_label], prepend=-1))
    # Of each row's group, the first row of its lowest label, and of its highest.
    lowest, highest = by_label[starts][group], by_last[starts][group]
    other = np.where(labels != labels[lowest], lowest, highest)
    return np.where(labels[lowest] == labels[highest], -1, other)


def find_partners(
    dataset: Dataset,
    groups: Indices,
    *,
    threshold: float,
    on_rows: Callable[[int, int], None] = lambda done, total: None,
) -> Partners:
    """Find each row's nearest row of another label, from a cosine of ``threshold`` on.

    Args:
        dataset: The rows. They are read in parts; 4 bytes a row and component are kept, mostly about 300 a row.
        groups: (rows,) int64, equal for rows of the same text: their cosine is 1.
        threshold: Least cosine, above 0.
        on_rows: Called with the numbers of rows that were compared with all later labels, and that will be.
    """
    labels = dataset.targets
    keys = labels * (groups.max() + 1) + groups
    _, rows, spread = np.unique(keys, return_index=True, return_inverse=True)  # the rows to compare, sorted by label
    mean = sum((chunk.sum(axis=0, dtype=np.float64) for chunk in dataset.chunks()), np.zeros(dataset.width))
    space = _Space(dataset, (mean / len(dataset)).astype(np.float32), rows, threshold)
    ends = np.searchsorted(labels[rows], labels[rows], side="right")  # where the next label begins
    best, partner = np.zeros(len(rows)), np.full(len(rows), -1)
    starts = [
        start
        for begin, end in zip(*_runs(labels[rows]), strict=True)
        for start in range(begin, end if end < len(rows) else begin, _ROWS)  # the last label is compared already
    ]
    products = pairs = 0

    def search(start: int) -> tuple[int, int, list[_Found]]:
        end = int(ends[start])
        stop = min(start + _ROWS, end)
        found = [space.compare(start, stop, column) for column in range(end, len(rows), _COLUMNS)]
        return stop - start, (stop - start) * (len(rows) - end), found

    done = 0
    for number, compared, found in ordered_map(search, starts):
        done += number
        pairs += compared
        for one in found:
            products += one.products
            for mine, theirs in ((one.first, one.second), (one.second, one.first)):
                # Of equal similarities, the one of the first row counts: it is assigned last.
                order = np.lexsort((-theirs, one.similarity))
                place, value, other = mine[order], one.similarity[order], theirs[order]
                nearer = (value > best[place]) | ((value == best[place]) & (other < partner[place]))
                best[place[nearer]], partner[place[nearer]] = value[nearer], other[nearer]
        on_rows(done, int(np.searchsorted(labels[rows], labels.max())))
    all_partners = np.where(partner[spread] >= 0, rows[partner[spread]], -1)
    same = same_text_partners(labels, groups)
    return Partners(
        partner=np.where(same >= 0, same, all_partners),
        similarity=np.where(same >= 0, 1.0, np.minimum(best[spread], 1)),
        components=space.components,
        first=space.first,
        products=products / max(pairs, 1),
    )


@dataclasses.dataclass(frozen=True)
class _Found:
    """Pairs that are near enough: for each row of a block the nearest one of another block, and the reverse."""

    first: Indices
    second: Indices
    similarity: Float64Array
    products: int  # how many pairs were not ruled out


class _Space:
    """The rows as unit vectors: their components in memory, the whole vectors read when they are needed."""

    def __init__(self, dataset: Dataset, mean: Features, rows: Indices, threshold: float) -> None:
        self._dataset, self._mean, self._rows, self._least = dataset, mean, rows, threshold
        step = -(-len(rows) // _SAMPLE_ROWS)
        sample = self._unit(np.arange(0, len(rows), step))
        variances, axes = torch.linalg.eigh(sample.T @ sample)
        shares = torch.cumsum(variances.flip(0).clamp(min=0), 0)
        self.components = min(int((shares < _SHARE * shares[-1]).sum()) // _STEP * _STEP + _STEP, dataset.width)
        axes = axes.flip(1)[:, : self.components]
        self.first = self._choose_first(sample @ axes)
        # The rest beside the first components, all components, and the rest beside them.
        self._short = torch.empty((len(rows), self.components + 2))
        for start in range(0, len(rows), _COLUMNS):
            part = self._unit(np.arange(start, min(start + _COLUMNS, len(rows)))) @ axes
            short = self._short[start : start + _COLUMNS]
            short[:, 0], short[:, 1:-1], short[:, -1] = _rest(part[:, : self.first]), part, _rest(part)

    def _choose_first(self, sample: Tensor) -> int:
        """How many components leave few pairs of a sample to the others."""
        some = sample[:: -(-len(sample) // _FIRST_ROWS)]
        for first in range(_FIRST_STEP, self.components, _FIRST_STEP):
            rows, others = (torch.column_stack([_rest(part), part]) for part in (some[:, :first], sample[:, :first]))
            near = int((rows @ others.T >= self._least - _ROUNDING).sum()) - len(some)  # each row is near to itself
            if near <= _FIRST_LEFT * len(some) * len(sample):
                return first
        return self.components

    def compare(self, start: int, stop: int, column: int) -> _Found:
        """Compare the rows from start to stop with a block of rows from a column on."""
        least = self._least - _ROUNDING
        mine, others = self._short[start:stop], self._short[column : column + _COLUMNS]
        places = torch.arange(len(mine)), torch.arange(len(others))
        for part in (slice(self.first + 1), slice(1, None)):
            bound = mine[:, part] @ others[:, part].T  # (rows, columns)
            near_rows = (bound.amax(1) >= least).nonzero()[:, 0]
            if not len(near_rows):
                none = np.empty(0, np.int64)
                return _Found(none, none, np.empty(0), 0)
            near_columns = (bound[near_rows].amax(0) >= least).nonzero()[:, 0]
            mine, others = mine[near_rows], others[near_columns]
            places = places[0][near_rows], places[1][near_columns]
        rows, columns = places[0].numpy() + start, places[1].numpy() + column
        similarity = self._unit(rows) @ self._unit(columns).T
        by_row, by_column = similarity.max(1), similarity.max(0)
        ours = np.concatenate([rows, rows[by_column.indices.numpy()]])
        theirs = np.concatenate([columns[by_row.indices.numpy()], columns])
        value = torch.cat([by_row.values, by_column.values]).numpy().astype(np.float64)
        near = value >= self._least
        return _Found(ours[near], theirs[near], value[near], similarity.numel())

    def _unit(self, places: Indices) -> Tensor:
        vectors = self._dataset.take(self._rows[places]) - self._mean
        lengths = np.sqrt((vectors**2).sum(axis=1, keepdims=True))
        return torch.from_numpy(vectors / np.maximum(lengths, np.finfo(np.float32).tiny))


def _rest(part: Tensor) -> Tensor:
    """The length of the rest of unit vectors beside a part of their components; rounding must not make it smaller."""
    return ((1 - (part**2).sum(1)).clamp(min=0) + _ROUNDING).sqrt()


def _runs(labels: Indices) -> tuple[list[int], list[int]]:
    """Where each label begins and ends among sorted labels."""
    begins = np.flatnonzero(np.diff(labels, prepend=-1))
    return begins.tolist(), [*begins[1:].tolist(), len(labels)]
