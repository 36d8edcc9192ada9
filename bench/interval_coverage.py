"""How often the 95% intervals of the metrics hold the truth: samples are drawn from a world that is known.

    python bench/interval_coverage.py [--samples 100]

A world has four classes, of 50%, 30%, 15% and 5% of the predictions. A row's highest probability varies around p, and
its prediction is right as often as that says; a wrong row's label is any other class. In the overconfident world, the
logits are then doubled. In the third world each text has one to ten copies, and n is the number of texts. The true
scores come from 500,000 rows. The first table is exact: it sums over the outcomes, and no sample is drawn.
"""

from __future__ import annotations

import argparse
import math
from typing import Any

import numpy as np
import numpy.typing as npt
from headstart.stages.heads.intervals import exact_interval
from headstart.stages.heads.metrics import evaluate

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
    held, width = dict.fromkeys((*SCORES, "recall of d"), 0.0), dict.fromkeys((*SCORES, "recall of d"), 0.0)
    for sample in range(samples):
        found = evaluate(*draw(world, n, p, rng), names=NAMES, seed=sample)
        intervals = {score: (found[f"{score}_interval"], truth[score]) for score in SCORES}
        intervals["recall of d"] = found["per_class"]["d"]["recall_interval"], truth["per_class"]["d"]["recall"]
        for score, ((low, high), true) in intervals.items():
            held[score] += (low <= true <= high) / samples
            width[score] += (high - low) / samples
    return held, width


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=100, help="samples of each world, size and share")
    parser.add_argument("--worlds", default="calibrated,overconfident,copies")
    arguments = parser.parse_args()
    print("| share, exactly | n | p | coverage |\n|---|---|---|---|")
    for n in SIZES:
        for p in SHARES:
            print(f"| independent rows | {n} | {p} | {exact_coverage(n, p):.3f} |")
    scores = (*SCORES, "recall of d")
    print("\n| world | n | p |", " | ".join(scores), "|\n|" + "---|" * (3 + len(scores)))
    for world in arguments.worlds.split(","):
        for n in SIZES:
            for p in SHARES:
                held, width = coverage(world, n, p, samples=arguments.samples)
                cells = " | ".join(f"{held[score]:.3f} (±{width[score] / 2:.3f})" for score in held)
                print(f"| {world} | {n} | {p} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
