"""Writes ``cleanlab_labels.json``: small arrays, and what cleanlab finds in them.

Run ``pip install cleanlab==2.9.0``, then ``python tests/cleanlab_labels.py``. Where two remainders of the confident
joint are equal, cleanlab rounds the one up that the sort of the machine puts last; such arrays are left out.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np

FILE = Path(__file__).with_suffix(".json")
PRUNINGS = {"noise-rate": "prune_by_noise_rate", "class": "prune_by_class", "both": "both"}


def noisy(seed: int) -> tuple[Any, Any]:
    """Probabilities (rows, classes) and labels (rows,), some of them wrong; the last class is rare or absent."""
    rng = np.random.default_rng(seed)
    rows, classes = int(rng.integers(30, 80)), int(rng.integers(3, 6))
    true = rng.integers(classes, size=rows)
    labels = np.where(rng.random(rows) < 0.3, rng.integers(classes, size=rows), true)
    if seed % 2:
        labels[labels == classes - 1] = 0
    if seed % 4 == 1:
        labels[0] = classes - 1
    logits = rng.normal(size=(rows, classes)) + (0.5 + seed % 3) * np.eye(classes)[true]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return probabilities.round(6), labels


def found_by_cleanlab(probabilities: Any, labels: Any) -> dict[str, Any]:
    """The calibrated confident joint, the rows that each way of pruning finds, and both scores."""
    from cleanlab.count import compute_confident_joint
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_normalized_margin_for_each_label, get_self_confidence_for_each_label

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes with one row
        found = {
            name: np.flatnonzero(find_label_issues(labels, probabilities, filter_by=theirs, n_jobs=1)).tolist()
            for name, theirs in PRUNINGS.items()
        }
        return {
            "joint": compute_confident_joint(labels, probabilities).tolist(),
            "found": found,
            "self-confidence": get_self_confidence_for_each_label(labels, probabilities).tolist(),
            "normalized-margin": get_normalized_margin_for_each_label(labels, probabilities).round(9).tolist(),
        }


def has_tie(probabilities: Any, labels: Any) -> bool:
    """Whether two classes have the same remainder in a row of the joint that must be rounded up or down."""
    from cleanlab.count import compute_confident_joint

    joint = compute_confident_joint(labels, probabilities, calibrate=False)
    scaled = joint / joint.sum(axis=1, keepdims=True) * np.bincount(labels, minlength=len(joint))[:, None]
    off = np.abs(np.round(scaled).sum(axis=1) - scaled.sum(axis=1)) > 0.5
    halves = np.isclose(np.abs(scaled - np.trunc(scaled)), 0.5)
    remainders = np.sort((scaled - np.round(scaled)).round(9), axis=1)
    return bool(halves.any() or (np.diff(remainders, axis=1)[off] == 0).any())


if __name__ == "__main__":
    cases = []
    for seed in range(100):
        probabilities, labels = noisy(seed)
        if not has_tie(probabilities, labels) and len(cases) < 6:
            arrays = {"probabilities": probabilities.tolist(), "labels": labels.tolist()}
            cases.append({"seed": seed, **arrays, **found_by_cleanlab(probabilities, labels)})
    FILE.write_text("[\n" + ",\n".join(map(json.dumps, cases)) + "\n]\n")
