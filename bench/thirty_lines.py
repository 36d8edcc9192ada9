"""Thirty lines without headstart, and headstart, on the same rows: sentence-transformers, `np.save` and scikit-learn.

    .venv/bin/python bench/thirty_lines.py        # needs the extra `bench`: make .venv/installed-bench

MiniLM reads the VADER texts, cut at 128 tokens, in float32. Each way has the same test rows, for three seeds of the
split. scikit-learn trains on all other rows. headstart holds back a tenth of them to choose the epoch; the exact solver
does without that tenth, too. Seconds are those of the first seed. Those of `train-head` include checking the cache and
the intervals of its metrics.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
from facts import cpu_name
from headstart.cache.reader import Cache, open_cache
from headstart.stages.extract import extract
from headstart.stages.progress import silent
from headstart.stages.settings import ExtractSettings, TrainSettings
from headstart.stages.splits.divide import divide
from headstart.stages.train_head import train_head
from samples import read_rows
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from sklearn.linear_model import LogisticRegression

DATA = Path(__file__).resolve().parent.parent / ".data"
SEEDS = (0, 1, 2)
OURS: dict[str, dict[str, Any]] = {
    "headstart, defaults": {},
    "headstart, `--features mean`": {"feature": "mean"},
    "headstart, `--features mean --dropout 0`": {"feature": "mean", "dropout": 0.0},
    "headstart, `--features mean --solver exact`": {"feature": "mean", "solver": "exact"},
}


def main() -> None:
    texts, labels = (np.array(column) for column in zip(*read_rows(DATA / "vader.csv"), strict=True))
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        features, theirs = timed(lambda: sentence_features(texts, scratch / "features.npy"))
        settings = ExtractSettings(encoder=str(DATA / "minilm"), features=("cls", "mean"), precision="float32")
        path, ours = timed(lambda: extract(DATA / "vader.csv", scratch / "features.h5", settings))
        cache = open_cache(path)
        print(f"{cpu_name()}; {len(texts):,} texts, {len(test_rows(cache, 0)):,} of them to test on\n")
        print("| way | encoding, s | head, s | accuracy | split 0 | split 1 | split 2 |\n|---|---|---|---|---|---|---|")
        show("the thirty lines", theirs, lambda seed: sklearn_accuracy(features, labels, test_rows(cache, seed)))
        for way, changes in OURS.items():
            show(way, ours, lambda seed, changes=changes: our_accuracy(cache, scratch, split_seed=seed, **changes))


def sentence_features(texts: Any, file: Path) -> Any:
    """What people write: the mean over tokens, normalised, kept with `np.save`: (texts, 384) float32."""
    transformer = Transformer(str(DATA / "minilm"), max_seq_length=128)
    pooling = Pooling(transformer.get_embedding_dimension(), "mean")
    model = SentenceTransformer(modules=[transformer, pooling, Normalize()], device="cpu")
    np.save(file, model.encode(texts.tolist(), show_progress_bar=False))
    return np.load(file)


def sklearn_accuracy(features: Any, labels: Any, test: Any) -> float:
    train = np.setdiff1d(np.arange(len(features)), test)
    model = LogisticRegression(max_iter=1000).fit(features[train], labels[train])
    return float(model.score(features[test], labels[test]))


def our_accuracy(cache: Cache, scratch: Path, **changes: Any) -> float:
    run = train_head(cache.path, scratch / "run", TrainSettings(**changes), overwrite=True)
    return float(json.loads((run / "run.json").read_text(encoding="utf-8"))["metrics"]["test"]["accuracy"])


def test_rows(cache: Cache, seed: int) -> Any:
    """(test,) int64: the rows that headstart tests on with a seed of the split."""
    settings = TrainSettings(split_seed=seed)
    return np.sort(divide(cache, validation=None, test=None, settings=settings, report=silent).test.index)


def show(way: str, encoding: float, accuracy: Callable[[int], float]) -> None:
    results = [timed(lambda seed=seed: accuracy(seed)) for seed in SEEDS]
    accuracies = [found for found, _ in results]
    cells = [f"{encoding:.1f}", f"{results[0][1]:.1f}", *(f"{a:.4f}" for a in (np.mean(accuracies), *accuracies))]
    print(f"| {way} | {' | '.join(cells)} |", flush=True)


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    started = time.perf_counter()
    done = work()
    return done, time.perf_counter() - started


if __name__ == "__main__":
    main()
