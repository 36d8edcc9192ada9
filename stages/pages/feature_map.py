"""Section: the features in two dimensions, the two directions in which they vary most."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..heads.dataset import Dataset, ScaledDataset, Scaler
from ..heads.spectrum import find_spectrum
from ..threads import open_threads
from ..types import Float64Array, Indices, StoredFeatures
from .figures import cloud, hover_text, label
from .html import Html, figure, join, paragraph
from .subject import Key, Section, Subject

_MOST_GROUPS = 8
_LEAST = 3
"""Rows of a group that the map shows at least, where it has as many."""


@dataclasses.dataclass(frozen=True)
class Map:
    """Rows of a cache as points."""

    feature: str
    rows: int  # of the cache
    points: Float64Array  # (rows of the map, 2)
    shares: tuple[float, float]  # of the variance, that each direction has
    labels: Sequence[Any]  # a name, a list of names, a number, or None, for each point
    keys: Sequence[Key]


def sample_rows(groups: Indices, most: int, *, seed: int = 0) -> Indices:
    """Choose rows by chance, of each group in proportion, but at least three: (about ``most``,) int64, in order.

    Args:
        groups: (rows,) int64.
        most: How many to choose.
        seed: Seed of the choice.
    """
    if len(groups) <= most:
        return np.arange(len(groups))
    rng = np.random.default_rng(seed)
    chosen = []
    for group in np.unique(groups):
        rows = np.flatnonzero(groups == group)
        count = min(len(rows), max(_LEAST, round(most * len(rows) / len(groups))))
        chosen.append(rng.choice(rows, count, replace=False))
    return np.sort(np.concatenate(chosen))


def project(features: StoredFeatures) -> tuple[Float64Array, tuple[float, float]]:
    """Project rows on the two directions of their largest variance: (rows, 2) float64, and the shares of the variance.

    Of each direction, the sign is that which makes its largest coefficient positive, so that it does not depend on the
    library.
    """
    rows, width = features.shape
    data = Dataset(features=features, labels=np.zeros(rows, np.int64), index=np.arange(rows))
    scaled = ScaledDataset(data, Scaler(np.zeros(width, np.float32), np.ones(width, np.float32)), in_memory=True)
    with open_threads() as threads:
        spectrum = find_spectrum(scaled, np.ones(rows), threads)
    directions = np.zeros((width, 2))
    found = spectrum.directions[:, :2]
    signs = np.sign(found[np.abs(found).argmax(axis=0), np.arange(found.shape[1])])
    directions[:, : found.shape[1]] = found * signs
    shares = [*(spectrum.variances[:2] / spectrum.variances.sum()).tolist(), 0.0, 0.0]
    return (features.astype(np.float64) - spectrum.mean) @ directions, (shares[0], shares[1])


def section(subject: Subject, found: Map | None, texts: Mapping[Key, str] | None) -> Section:
    """The map of a run's features."""
    if found is None:
        return Section("map", "Map of the features", Html(""))
    said = {}
    for part, name in ((subject.chosen_by, "by a head that was not trained on it"), (subject.test, "as a test row")):
        if part is not None:
            for key, prediction in zip(part.keys, part.columns["prediction"], strict=True):
                said[key] = f"predicted {label(_word(prediction))} {name}"
    hovers = []
    for key, own in zip(found.keys, found.labels, strict=True):
        parts = [f"row {key[0]:,}", *([] if own is None else [label(_word(own))]), *filter(None, [said.get(key)])]
        hovers.append("<br>".join([", ".join(parts), *filter(None, [hover_text((texts or {}).get(key, ""))])]))
    numbers = bool(found.labels) and isinstance(found.labels[0], float)
    groups, scale = (_of_numbers(found, hovers), "number") if numbers else (_of_names(found, hovers), None)
    shares = [f"{share:.1%}" for share in found.shares]
    plot = cloud(
        groups, x=f"first direction ({shares[0]} of the variance)", y=f"second direction ({shares[1]})", scale=scale
    )
    some = f"{len(found.keys):,} rows" + (
        "" if len(found.keys) == found.rows else f", chosen by chance of {found.rows:,}, of each label in proportion"
    )
    note = paragraph(
        f"Both directions together hold {sum(found.shares):.1%} of the variance of these rows; the head reads all of "
        "it. So labels that overlap here may be far apart for the head. The labels are those of the cache. Drag to "
        "zoom, double-click to zoom out; a label of the legend hides its points."
    )
    caption = f"The feature {found.feature} in its two directions of largest variance: {some}"
    return Section("map", "Map of the features", join([figure(caption, plot, height=520), note]))


def _word(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(value) or "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _of_numbers(found: Map, hovers: Sequence[str]) -> list[dict[str, Any]]:
    points = {"x": found.points[:, 0].tolist(), "y": found.points[:, 1].tolist()}
    return [{"name": "rows", **points, "text": list(hovers), "values": list(found.labels)}]


def _of_names(found: Map, hovers: Sequence[str]) -> list[dict[str, Any]]:
    """A group for each of the most frequent labels, or sets of them; the others are one."""
    names = ["rows" if own is None else _word(own) for own in found.labels]
    counts = Counter(names)
    most = sorted(counts, key=lambda name: (-counts[name], name))[:_MOST_GROUPS]
    groups = []
    for name in [*most, None]:
        rows = [row for row, own in enumerate(names) if (own not in most if name is None else own == name)]
        if rows:
            points = found.points[rows]
            shown = {"name": f"{len(counts) - len(most)} others" if name is None else name, "rest": name is None}
            texts = [hovers[row] for row in rows]
            groups.append({**shown, "x": points[:, 0].tolist(), "y": points[:, 1].tolist(), "text": texts})
    return groups
