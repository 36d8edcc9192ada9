"""What checking costs: `train-head`'s work with every row held against its checksum, and without.

    .venv/bin/python bench/checking.py [--rounds 7]

Both train the same head on MiniLM's CLS features of the 23,703 VADER texts, in this process, in alternating order; the
file is in memory either way. Below, the same for one epoch, and for opening and checking alone.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

from facts import cpu_name
from headstart.cache.reader import Cache, open_cache
from headstart.stages.extract import extract
from headstart.stages.settings import ExtractSettings, TrainSettings
from headstart.stages.train_head import train_head

DATA = Path(__file__).resolve().parent.parent / ".data"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    settings = ExtractSettings(encoder=str(DATA / "minilm"), features=("cls",), max_length=128)
    path = extract(DATA / "vader.csv", DATA / "checking.h5", settings)
    size = path.stat().st_size
    print(f"{cpu_name()}; {open_cache(path).rows:,} rows, {size / 1e6:.1f} MB; medians of {rounds} pairs\n")
    print("| what | with checks, s | without, s | with / without |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "run"
        for epochs in (TrainSettings().epochs, 1):

            def train(epochs: int = epochs) -> None:
                train_head(path, out, TrainSettings(solver="sgd", epochs=epochs))
                shutil.rmtree(out)

            pairs = [(seconds(train), without_checks(train)) for _ in range(rounds + 1)][1:]
            checked, unchecked = (statistics.median(each) for each in zip(*pairs, strict=True))
            ratio = statistics.median(a / b for a, b in pairs)
            print(f"| train-head, {epochs} epochs | {checked:.3f} | {unchecked:.3f} | {ratio:.3f} |", flush=True)
    alone = statistics.median(seconds(lambda: open_cache(path).check()) for _ in range(rounds))
    opening = statistics.median(seconds(lambda: open_cache(path)) for _ in range(rounds))
    print(f"\nopening, with the seal and the documents: {1000 * opening:.1f} ms")
    print(f"opening and checking every row: {1000 * alone:.1f} ms, {size / (alone - opening) / 1e9:.2f} GB/s")


def seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def without_checks(work: Callable[[], Any]) -> float:
    with patch.object(Cache, "check", lambda cache, on_block=None: None):
        return seconds(work)


if __name__ == "__main__":
    main()
