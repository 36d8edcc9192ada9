"""Thirty lines without headstart, and headstart without an option: sentence-transformers, `np.save`, scikit-learn.

    .venv/bin/python bench/thirty_lines.py [vader] [news] [--cls]

It needs the extra `bench` (`make .venv/installed-bench`). The corpora are the VADER texts and news articles
(`demo/fetch.py --news`); the encoder is MiniLM, as its folder is. The thirty lines are
`SentenceTransformer(folder).encode(texts)` and `LogisticRegression(max_iter=1000)`. headstart is `extract` and
`train-head` with their defaults; `--cls` adds a line with the defaults on CLS, the vector of an encoder whose folder
says no other. Each way has the same test rows, for five seeds of the split. scikit-learn trains on all other rows.
headstart holds back a tenth of them to choose the epoch; the exact solver does without that tenth, too.

What was encoded stays in `.bench/thirty-lines`, so that the command may be stopped, and continues. "Seconds" are
those of encoding, without what an `extract` that was stopped did before, and of the head of the first seed. Those of
`train-head` include checking the cache.
"""

from __future__ import annotations

import argparse
import json
import os
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
from sklearn.linear_model import LogisticRegression

ROOT = Path(__file__).resolve().parent.parent
DATA, KEPT = ROOT / ".data", ROOT / ".bench" / "thirty-lines"
SEEDS = range(5)
PIECE = 2048  # texts that are encoded at once by sentence-transformers; what is done of them stays


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("corpora", nargs="*", default=["vader", "news"])
    parser.add_argument("--cls", action="store_true", help="also encode CLS")
    arguments = parser.parse_args()
    print(cpu_name())
    for name in arguments.corpora:
        compare(name, cls=arguments.cls)


def compare(name: str, *, cls: bool) -> None:
    kept = KEPT / name
    kept.mkdir(parents=True, exist_ok=True)
    texts, labels = (np.array(column) for column in zip(*read_rows(DATA / f"{name}.csv"), strict=True))
    theirs, seconds = sentence_features(texts.tolist(), kept)
    own = extracted(name, kept / "model.h5")
    record = own.record
    print(
        f"\n{name}: {len(texts):,} texts, {len(test_rows(own, 0)):,} of them to test on; {len(set(labels))} classes; "
    )
    print(f"the model's own vector is {record['encoder']['model']}, {own.identity.max_length} tokens\n")
    print(f"| way | encoding, s | head, s | accuracy | {' | '.join(f'split {seed}' for seed in SEEDS)} |")
    print("|---|---|---|---|" + "---|" * len(SEEDS))
    show("the thirty lines", seconds, lambda seed: sklearn_accuracy(theirs, labels, test_rows(own, seed)))
    show("headstart, no option", record["seconds"], lambda seed: our_accuracy(own, kept, split_seed=seed))
    exact: dict[str, Any] = {"solver": "exact"}
    show(
        "the same, `--solver exact`", record["seconds"], lambda seed: our_accuracy(own, kept, split_seed=seed, **exact)
    )
    if not cls:
        return
    first = extracted(name, kept / "cls.h5", features=("cls",))
    show("`--features cls`", first.record["seconds"], lambda seed: our_accuracy(first, kept, split_seed=seed))


def sentence_features(texts: list[str], kept: Path) -> tuple[Any, float]:
    """What people write: (texts, 384) float32, and the seconds that it took."""
    found = kept / "theirs.npy"
    if not found.is_file():
        from sentence_transformers import SentenceTransformer

        model = SentenceTransformer(str(DATA / "minilm"), device="cpu")
        order = sorted(range(len(texts)), key=lambda row: len(texts[row]))  # as `encode` itself sorts all texts
        for start in range(0, len(texts), PIECE):
            piece = kept / f"theirs-{start}.npz"
            if not piece.is_file():
                part = [texts[row] for row in order[start : start + PIECE]]
                vectors, took = timed(lambda part=part: model.encode(part, show_progress_bar=False))
                np.savez(piece, vectors=vectors, seconds=took)
        pieces = [np.load(kept / f"theirs-{start}.npz") for start in range(0, len(texts), PIECE)]
        features = np.concatenate([piece["vectors"] for piece in pieces])[np.argsort(order)]
        (kept / "theirs.json").write_text(json.dumps(sum(float(piece["seconds"]) for piece in pieces)))
        np.save(found, features)
    return np.load(found), float(json.loads((kept / "theirs.json").read_text()))


def extracted(name: str, path: Path, **settings: Any) -> Cache:
    """In the precision that the machine has, as by default, beside what `encode` computes in."""
    return open_cache(extract(DATA / f"{name}.csv", path, ExtractSettings(encoder=str(DATA / "minilm"), **settings)))


def sklearn_accuracy(features: Any, labels: Any, test: Any) -> float:
    train = np.setdiff1d(np.arange(len(features)), test)
    model = LogisticRegression(max_iter=1000).fit(features[train], labels[train])
    return float(model.score(features[test], labels[test]))


def our_accuracy(cache: Cache, kept: Path, **changes: Any) -> float:
    run = train_head(cache.path, kept / "run", TrainSettings(**changes), overwrite=True)
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
