"""How often the 95% intervals of the metrics hold the truth: samples are drawn from a world that is known.

    python bench/interval_coverage.py [--samples 100]

A world has four classes, of 50%, 30%, 15% and 5% of the predictions. A row's highest probability varies around p, and
its prediction is right as often as that says; a wrong row's label is any other class. In the overconfident world, the
logits are then doubled. In the third world each text has one to ten copies, and n is the number of texts. The true
scores come from 500,000 rows. The first table is exact: it sums over the outcomes, and no sample is drawn.

The other kinds of targets have a world each. Numbers are predicted with an error that is normal, or in one row of
twenty ten times as large. An ordered class of five is right with the probability p, else mostly next to the truth. A
row has each of four labels (50%, 30%, 15%, 5% of the rows) with a probability that varies around p or 1 - p.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
from headstart.stages.heads.intervals import exact_interval
from headstart.stages.heads.metrics import evaluate
from headstart.stages.heads.multi_label_metrics import evaluate_labels
from headstart.stages.heads.number_metrics import evaluate_numbers, order_metrics

SIZES, SHARES = (20, 50, 500), (0.5, 0.9, 0.99)
PRIORS = np.array([0.5, 0.3, 0.15, 0.05])
SCORES = ("accuracy", "macro_f1", "weighted_f1", "average_precision", "log_loss", "calibration_error")
NAMES = tuple("abcd")
Array = npt.NDArray[Any]


def exact_coverage(n: int, p: float) -> float:
    """The probability that the interval of a share of n independent rows holds the true share p."""
    k = np.arange(n + 1)
    held = exact_interval(k / n, np.full(n + 1, float(n)))
    logs = [math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) for i in range(n + 1)]
    chance = np.exp(np.array(logs) + k * math.log(p) + (n - k) * math.log1p(-p))
    return float(chance[(held[:, 0] <= p) & (p <= held[:, 1])].sum())


def draw(world: str, n: int, p: float, rng: np.random.Generator) -> tuple[Array, Array, Array]:
    """Draw the labels, the log probabilities and the texts of a sample."""
    share = (p - 0.25) / 0.75
    highest = 0.25 + 0.75 * rng.beta(10 * share, 10 * (1 - share), size=n)
    predicted = rng.choice(4, size=n, p=PRIORS)
    right = rng.random(n) < highest
    labels = np.where(right, predicted, (predicted + rng.integers(1, 4, n)) % 4)
    rest = np.maximum((1 - highest) / 3, 1e-12)
    logits = np.log(np.where(np.arange(4) == predicted[:, None], highest[:, None], rest[:, None]))
    logits *= 2 if world == "overconfident" else 1
    logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
    copies = rng.integers(1, 11, n) if world == "copies" else np.ones(n, int)
    text = np.repeat(np.arange(n), copies)
    return labels[text], logits[text], text


def coverage(
    world: str, n: int, p: float, *, samples: int, rows: int = 500_000, seed: int = 0
) -> tuple[dict[str, float], dict[str, float]]:
    """How often each score's interval held the truth, which is told by so many rows; and the intervals' mean width."""
    rng = np.random.default_rng(seed)
    large = draw(world, rows // 5 if world == "copies" else rows, p, rng)
    truth = evaluate(*large, names=NAMES, resamples=1)
    return _held(truth, (evaluate(*draw(world, n, p, rng), names=NAMES, seed=sample) for sample in range(samples)))


def kind_coverage(
    kind: str, n: int, p: float, *, samples: int, rows: int = 200_000, seed: int = 0
) -> tuple[dict[str, float], dict[str, float]]:
    """The same for another kind of target."""
    rng = np.random.default_rng(seed)
    truth = draw_kind(kind, rows, p, rng, resamples=1)
    return _held(truth, (draw_kind(kind, n, p, rng, seed=sample) for sample in range(samples)))


def draw_kind(kind: str, n: int, p: float, rng: np.random.Generator, **options: int) -> dict[str, Any]:
    """The scores of a sample, with their intervals."""
    groups = np.arange(n)
    if kind == "numbers":
        values = rng.normal(size=n)
        scale = np.where(rng.random(n) < 0.05, 10, 1) * (1 - p)
        return evaluate_numbers(values, values + scale * rng.normal(size=n), groups, **options)
    if kind == "order":
        labels = rng.choice(5, n, p=[0.4, 0.3, 0.15, 0.1, 0.05])
        away = np.where(rng.random(n) < p, 0, rng.choice([-2, -1, 1, 2], n, p=[0.1, 0.4, 0.4, 0.1]))
        return order_metrics(labels, np.clip(labels + away, 0, 4), groups, classes=5, **options)
    sure = rng.beta(10 * p, 10 * (1 - p), size=(n, 4)).clip(1e-6, 1 - 1e-6)
    chance = np.where(rng.random((n, 4)) < PRIORS, sure, 1 - sure)
    targets = (rng.random((n, 4)) < chance).astype(np.uint8)
    logits = np.log(chance) - np.log1p(-chance)
    found = evaluate_labels(targets, logits, groups, names=NAMES, **options)
    return found if found["average_precision"] is not None else {**found, "average_precision_interval": [0, 1]}


def _held(truth: dict[str, Any], samples: Iterable[dict[str, Any]]) -> tuple[dict[str, float], dict[str, float]]:
    """How often the intervals of samples held the true scores, and how wide they are in the mean."""
    held: dict[str, list[bool]] = {}
    width: dict[str, list[float]] = {}
    for found in samples:
        intervals = {
            name.removesuffix("_interval"): (bounds, truth[name.removesuffix("_interval")])
            for name, bounds in found.items()
            if name.endswith("_interval") and bounds is not None
        }
        if "confusion_matrix" in found:
            intervals["recall of d"] = found["per_class"]["d"]["recall_interval"], truth["per_class"]["d"]["recall"]
        for score, ((low, high), true) in intervals.items():
            held.setdefault(score, []).append(low <= true <= high)
            width.setdefault(score, []).append(high - low)
    return {score: float(np.mean(values)) for score, values in held.items()}, {
        score: float(np.mean(values)) for score, values in width.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=100, help="samples of each world, size and share")
    parser.add_argument("--worlds", default="calibrated,overconfident,copies")
    parser.add_argument("--kinds", default="labels,order,numbers")
    arguments = parser.parse_args()
    print("| share, exactly | n | p | coverage |\n|---|---|---|---|")
    for n in SIZES:
        for p in SHARES:
            print(f"| independent rows | {n} | {p} | {exact_coverage(n, p):.3f} |")
    scores = (*SCORES, "recall of d")
    print("\n| world | n | p |", " | ".join(scores), "|\n|" + "---|" * (3 + len(scores)))
    for world in filter(None, arguments.worlds.split(",")):
        for n in SIZES:
            for p in SHARES:
                held, width = coverage(world, n, p, samples=arguments.samples)
                cells = " | ".join(f"{held[score]:.3f} (±{width[score] / 2:.3f})" for score in scores)
                print(f"| {world} | {n} | {p} | {cells} |", flush=True)
    for kind in filter(None, arguments.kinds.split(",")):
        first = True
        for n in SIZES:
            for p in SHARES:
                held, width = kind_coverage(kind, n, p, samples=arguments.samples)
                if first:
                    print("\n| kind | n | p |", " | ".join(held), "|\n|" + "---|" * (3 + len(held)))
                first = False
                cells = " | ".join(f"{held[score]:.3f} (±{width[score] / 2:.3f})" for score in held)
                print(f"| {kind} | {n} | {p} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
