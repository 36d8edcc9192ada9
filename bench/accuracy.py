"""How good the demo's head is: beside scikit-learn's on the same rows, and from float32 beside bfloat16 features.

Extracts the demo's texts in both precisions (into ``.data``), trains heads with `--solver sgd` on three
splits, and fits scikit-learn's LogisticRegression to convergence on the very same training rows: on the encoder's own
vector, which is the demo's, and on CLS.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
from headstart.cache.reader import Cache, open_cache
from headstart.stages.extract import extract
from headstart.stages.progress import silent
from headstart.stages.settings import ExtractSettings, Precision, TrainSettings
from headstart.stages.splits.divide import divide
from headstart.stages.train_head import train_head
from sklearn.linear_model import LogisticRegression

DATA = Path(__file__).resolve().parent.parent / ".data"
SEEDS = (0, 1, 2)
FEATURES = ("model", "cls")


def main() -> None:
    caches = {precision: extracted(precision) for precision in (Precision.FLOAT32, Precision.BFLOAT16)}
    print("| vector | split seed | headstart, float32 | headstart, bfloat16 | scikit-learn, float32 | its iterations |")
    print("|---|---|---|---|---|---|")
    for feature in FEATURES:
        rows = []
        for seed in SEEDS:
            settings = TrainSettings(solver="sgd", feature=feature, split_seed=seed)
            ours = [test_accuracy(cache, settings) for cache in caches.values()]
            theirs, iterations = sklearn_accuracy(caches[Precision.FLOAT32], settings)
            rows.append([*ours, theirs])
            print(f"| {feature} | {seed} | {ours[0]:.4f} | {ours[1]:.4f} | {theirs:.4f} | {iterations} |", flush=True)
        mean = np.mean(rows, axis=0)
        print(f"| {feature} | mean | {mean[0]:.4f} | {mean[1]:.4f} | {mean[2]:.4f} | |")
    print()
    for feature in FEATURES:
        exact, rough = (cache.features(feature)[:].astype(np.float64) for cache in caches.values())
        cosines = (exact * rough).sum(1) / np.linalg.norm(exact, axis=1) / np.linalg.norm(rough, axis=1)
        sample = np.random.default_rng(0).permutation(len(cosines))[:100]
        low, lowest = cosines[sample].min(), cosines.min()
        print(f"{feature}, bfloat16 beside float32: smallest cosine {low:.6f} of 100 texts, {lowest:.6f} of all")


def extracted(precision: Precision) -> Cache:
    settings = ExtractSettings(encoder=str(DATA / "minilm"), features=FEATURES, precision=precision)
    return open_cache(extract(DATA / "vader.csv", DATA / f"bench-{precision}.h5", settings))


def test_accuracy(cache: Cache, settings: TrainSettings) -> float:
    with tempfile.TemporaryDirectory() as folder:
        run = train_head(cache.path, Path(folder) / "run", settings)
        return float(json.loads((run / "run.json").read_text())["metrics"]["test"]["accuracy"])


def sklearn_accuracy(cache: Cache, settings: TrainSettings) -> tuple[float, int]:
    """On the same training rows (validation rows take no part in it) and the same test rows."""
    splits = divide(cache, validation=None, test=None, settings=settings, report=silent)
    model = LogisticRegression(max_iter=10_000, tol=1e-5)
    model.fit(splits.train.features[splits.train.index], splits.train.labels[splits.train.index])
    score = model.score(splits.test.features[splits.test.index], splits.test.labels[splits.test.index])
    return float(score), int(model.n_iter_.max())


if __name__ == "__main__":
    main()
