"""What shards cost: an `extract` in several files beside one file, stage two on many of them, and appending rows.

    .venv/bin/python bench/shards.py [--rows 8000] [--shards 16] [--many 100] [--rounds 3]

MiniLM on the VADER texts. The extracts encode ``--rows`` of them. Stage two reads all of them: the features are copied
from one cache into ``--many`` shards, so that both hold the same numbers. Ways that are compared take turns; medians
are shown. "Many" shards hold a few hundred rows each: with larger ones a share of the cost is smaller.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from facts import cpu_name
from headstart.cache.reader import Cache, open_cache
from headstart.stages.extract import extract
from headstart.stages.settings import ExtractSettings, Precision, TrainSettings
from headstart.stages.train_head import train_head

DATA = Path(__file__).resolve().parent.parent / ".data"
SETTINGS = ExtractSettings(encoder=str(DATA / "minilm"), precision=Precision.FLOAT32)
EPOCHS = 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=8000)
    parser.add_argument("--shards", type=int, default=16)
    parser.add_argument("--many", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    print(f"{cpu_name()}, {os.cpu_count()} cores; MiniLM in float32, medians of {arguments.rounds} rounds\n")
    print("| what | one file, s | shards, s | ratio |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory(dir=DATA) as name:
        folder = Path(name)
        few = rows_of(folder / "few.csv", 0, arguments.rows)

        def extracted(shards: int | None) -> float:
            started = time.perf_counter()
            extract(few, folder / f"few{shards}.h5", SETTINGS, shards=shards, overwrite=True)
            return time.perf_counter() - started

        what = f"`extract` of {arguments.rows:,} rows, {arguments.shards} shards"
        show(what, arguments.rounds, lambda: extracted(None), lambda: extracted(arguments.shards))
        table = DATA / "vader.csv"
        one = open_cache(extract(table, folder / "one.h5", SETTINGS))
        many = open_cache(extract(table, folder / "many.h5", SETTINGS, shards=arguments.many, reuse=[one.path]))
        sizes = f"{one.rows:,} x {one.features().shape[1]}, {arguments.many} shards"
        for what, measure in (
            (f"an epoch of `--solver sgd`, {sizes}", epoch),
            (f"the same, streamed under 16 MiB, {sizes}", streamed_epoch),
            (f"`train-head` without options, {sizes}", default_head),
            (f"the same under 16 MiB, {sizes}", streamed_default_head),
            (f"4,096 rows by chance, {sizes}", gather),
        ):
            show(what, arguments.rounds, lambda m=measure: m(one), lambda m=measure: m(many))
        appended(one, folder)


def appended(whole: Cache, folder: Path) -> None:
    """Print how many bytes are written when the last of a hundred rows is appended to the others."""
    kept = whole.rows - whole.rows // 100
    base, more = (rows_of(folder / f"from{start}.csv", start, stop) for start, stop in ((0, kept), (kept, whole.rows)))
    out = extract(base, folder / "appended.h5", SETTINGS, shards=16, reuse=[whole.path])
    files = [out, *sorted(out.with_name("appended.h5.shards").iterdir())]
    before = {path: path.stat().st_mtime_ns for path in files}
    started = time.perf_counter()
    extract(more, out, append=True)
    seconds = time.perf_counter() - started
    files = [out, *sorted(out.with_name("appended.h5.shards").iterdir())]
    written = sum(path.stat().st_size for path in files if before.get(path) != path.stat().st_mtime_ns)
    held = sum(path.stat().st_size for path in files)
    print(
        f"\n`--append` of {whole.rows - kept:,} rows to {kept:,} in 16 shards: {written:,} bytes written of {held:,} "
        f"({written / held:.2%}), {seconds:.2f} s"
    )


def show(what: str, rounds: int, one: Callable[[], float], shards: Callable[[], float]) -> None:
    """Print a line; the first round is not counted."""
    found = [(one(), shards()) for _ in range(rounds + 1)][1:]
    alone, divided = (statistics.median(seconds) for seconds in zip(*found, strict=True))
    print(f"| {what} | {alone:.4g} | {divided:.4g} | {divided / alone:.2f} |", flush=True)


def rows_of(path: Path, start: int, stop: int) -> Path:
    """Write some of the table's rows as a table."""
    with (DATA / "vader.csv").open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows[start:stop]])
    return path


def epoch(cache: Cache, memory: int | None = None) -> float:
    """Seconds of an epoch, validation included."""
    settings = TrainSettings(solver="sgd", epochs=EPOCHS, patience=EPOCHS, memory=memory)
    run = train_head(cache.path, cache.path.with_name("run"), settings, overwrite=True)
    return float(json.loads((run / "run.json").read_text(encoding="utf-8"))["epoch_seconds"])


def streamed_epoch(cache: Cache) -> float:
    return epoch(cache, 16 << 20)


def default_head(cache: Cache, memory: int | None = None) -> float:
    """Seconds of the whole of `train_head`: opening and checking the cache, search, refit, test."""
    started = time.perf_counter()
    train_head(cache.path, cache.path.with_name("run"), TrainSettings(memory=memory), overwrite=True)
    return time.perf_counter() - started


def streamed_default_head(cache: Cache) -> float:
    return default_head(cache, 16 << 20)


def gather(cache: Cache) -> float:
    rows, features = np.random.default_rng(0).integers(cache.rows, size=4096), cache.features()
    started = time.perf_counter()
    features[rows]
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
