"""Sums over the rows of a training set, and the directions in which its features vary: arrays in, arrays out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch

from ..threads import WorkerThreads
from ..types import Features, Float64Array, Indices

_SPAN_ROWS = 2048


class Rows(Protocol):
    """Rows of features, such as a `ScaledDataset`."""

    width: int

    def __len__(self) -> int: ...

    def take(self, positions: Indices | slice) -> Features:
        """The rows at these positions: (positions, width) float32."""


def sum_over_rows(
    rows: Rows,
    work: Callable[[slice, torch.Tensor], Sequence[torch.Tensor]],
    threads: WorkerThreads,
    *,
    span_rows: int = _SPAN_ROWS,
) -> list[Float64Array]:
    """Call ``work`` with each span of rows and its features (rows, width) float32, in threads, and add up each of the
    tensors that it returns, in float64. The sums do not depend on the number of threads."""

    def sum_share(starts: Sequence[int]) -> list[torch.Tensor]:
        totals: list[torch.Tensor] = []
        for start in starts:
            span = slice(start, min(start + span_rows, len(rows)))
            terms = [term.to(torch.float64) for term in work(span, torch.from_numpy(rows.take(span)))]
            totals = [total.add_(term) for total, term in zip(totals, terms, strict=True)] if totals else terms
        return totals

    shares = threads.map_shares(sum_share, range(0, len(rows), span_rows))
    return [sum(others, first).numpy() for first, *others in zip(*shares, strict=True)]


@dataclasses.dataclass(frozen=True)
class Spectrum:
    """The weighted covariance of features, times the sum of the weights: directions x diag(variances) x directions^T.

    Directions without variance are left out.
    """

    mean: Float64Array  # (width,), the weighted mean of the features
    variances: Float64Array  # (rank,), descending, all above 0
    directions: Float64Array  # (width, rank), orthonormal columns


def find_spectrum(rows: Rows, weights: Float64Array, threads: WorkerThreads) -> Spectrum:
    """Find the spectrum by the eigenvectors of the covariance, or of the rows' Gram matrix where that is smaller.

    Sums are in float64. ``weights`` are (rows,), above 0.
    """
    total = weights.sum()
    (mean,) = sum_over_rows(
        rows, lambda span, x: [torch.mv(x.T.to(torch.float64), torch.from_numpy(weights[span]))], threads
    )
    mean /= total
    center, root = torch.from_numpy(mean), torch.from_numpy(np.sqrt(weights))

    def centered(span: slice, features: torch.Tensor) -> torch.Tensor:
        return (features.to(torch.float64) - center) * root[span, None]

    if len(rows) > rows.width:

        def outer(span: slice, features: torch.Tensor) -> list[torch.Tensor]:
            part = centered(span, features)
            return [torch.mm(part.T, part)]

        (square,) = sum_over_rows(rows, outer, threads)
        variances, directions = torch.linalg.eigh(torch.from_numpy(square))
    else:
        whole = centered(slice(None), torch.from_numpy(rows.take(slice(None))))
        variances, vectors = torch.linalg.eigh(torch.mm(whole, whole.T))
        directions = torch.mm(whole.T, vectors) / variances.clamp(min=1e-300).sqrt()
    least = np.finfo(np.float64).eps * max(len(rows), rows.width) * max(float(variances[-1]), 0.0)
    some = int((variances > least).sum())
    return Spectrum(
        mean=mean,
        variances=variances[len(variances) - some :].flip(0).numpy(),
        directions=np.ascontiguousarray(directions[:, directions.shape[1] - some :].flip(1).numpy()),
    )
