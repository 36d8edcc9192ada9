"""A search of scikit-learn over 5 penalties and 5 folds on texts: CachedEncoder beside sentence-transformers.

    python bench/sklearn_search.py --rows 4000 --st-rows 300

Each contender is a pipeline of an encoder and LogisticRegression in GridSearchCV, on texts of the demo's table, drawn
at random. sentence-transformers is also run with the pipeline's ``memory=``, which keeps the features of whole folds.
Without it, a text is encoded about 25 times, so that contender gets fewer rows (``--st-rows``), and headstart too,
beside it.
"""

from __future__ import annotations

import argparse
import csv
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import headstart
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline

ROOT = Path(__file__).resolve().parent.parent
PENALTIES = (0.01, 0.1, 1.0, 10.0, 100.0)
_models: dict[str, Any] = {}
passes = 0
"""Texts that sentence-transformers was asked to encode."""


class Encode(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """sentence-transformers as a transformer; the model is loaded once."""

    def __init__(self, encoder: str) -> None:
        self.encoder = encoder

    def fit(self, X: Any, y: Any = None) -> Encode:  # noqa: N803
        return self

    def transform(self, X: Any) -> Any:  # noqa: N803
        global passes  # noqa: PLW0603
        passes += len(X)
        return load_model(self.encoder).encode(list(X), batch_size=32, show_progress_bar=False)


def load_model(encoder: str) -> Any:
    """Load a model of sentence-transformers, once."""
    if encoder not in _models:
        from sentence_transformers import SentenceTransformer

        _models[encoder] = SentenceTransformer(encoder, device="cpu")
    return _models[encoder]


def search(encoder: Any, texts: list[str], labels: list[str], memory: str | None = None) -> tuple[float, float]:
    """Run the search; returns seconds, and the best mean accuracy."""
    head = LogisticRegression(max_iter=1000)
    pipeline = Pipeline([("encoder", encoder), ("head", head)], memory=memory)
    started = time.perf_counter()
    found = GridSearchCV(pipeline, {"head__C": PENALTIES}, cv=5).fit(texts, labels)
    return time.perf_counter() - started, float(found.best_score_)


def main() -> None:
    """Print a line for each contender."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--st-rows", type=int, default=300)
    options = parser.parse_args()
    with (ROOT / ".data" / "vader.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    random.Random(0).shuffle(rows)
    encoder = str(ROOT / ".data" / "minilm")
    load_model(encoder).encode(["warm up"])

    def texts_of(count: int) -> tuple[list[str], list[str]]:
        return [row["text"] for row in rows[:count]], [row["label"] for row in rows[:count]]

    def show(name: str, count: int, encoded: int, seconds: float, accuracy: float) -> None:
        distinct = len(set(texts_of(count)[0]))
        line = f"{count:,} rows, {distinct:,} distinct texts, {encoded:,} encoder passes"
        print(f"{name:<40} {line}, {seconds:8.1f} s, accuracy {accuracy:.4f}", flush=True)

    with tempfile.TemporaryDirectory() as scratch:
        for count in dict.fromkeys((options.st_rows, options.rows)):
            for again in ("", ", again"):
                cache = Path(scratch) / f"cache{count}"
                known = sum(headstart.open_cache(path).rows for path in cache.glob("*/*.h5"))
                found = search(headstart.CachedEncoder(encoder, cache=cache), *texts_of(count))
                encoded = sum(headstart.open_cache(path).rows for path in cache.glob("*/*.h5")) - known
                show(f"headstart{again}", count, encoded, *found)
        for name, count, memory in (
            ("sentence-transformers", options.st_rows, None),
            ("sentence-transformers, memory=", options.st_rows, str(Path(scratch) / "small")),
            ("sentence-transformers, memory=", options.rows, str(Path(scratch) / "large")),
        ):
            before = passes
            found = search(Encode(encoder), *texts_of(count), memory=memory)
            show(name, count, passes - before, *found)


if __name__ == "__main__":
    main()
