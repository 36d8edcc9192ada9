"""What Ray costs on one machine: shards made through Ray beside shards of one process, and beside one file.

    .venv/bin/python bench/on_ray.py [--rows 8000] [--shards 16] [--rounds 3]

MiniLM in float32 on the VADER texts. First all texts are encoded in one file, in shards by this process, and in shards
by two workers of Ray; the shards are copied into one file each. These two files must be the same but for times, and
their features are compared with those of the first. Then ``--rows`` of the texts are encoded in each way in turn, and
medians are shown. A time through Ray includes the start of Ray and of its workers, and their loading of the encoder.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from facts import cpu_name
from headstart.cache.reader import open_cache
from headstart.stages.extract import extract
from headstart.stages.join import join
from same_bytes import compare_caches
from shards import DATA, SETTINGS, rows_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=8000)
    parser.add_argument("--shards", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    print(f"{cpu_name()}, {os.cpu_count()} cores; Ray {version('ray')}; MiniLM in float32\n")
    shards = arguments.shards
    ways: dict[str, dict[str, Any]] = {
        "one file": {},
        f"{shards} shards, in process": {"shards": shards},
        f"{shards} shards, Ray with 1 worker": {"shards": shards, "ray": "local", "workers": 1},
        f"{shards} shards, Ray with 2 workers": {"shards": shards, "ray": "local", "workers": 2},
    }
    with tempfile.TemporaryDirectory(dir=DATA) as name:
        folder = Path(name)
        one, here, _, on_ray = ways.values()
        compare(folder, one, here, on_ray)
        few = rows_of(folder / "few.csv", 0, arguments.rows)
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(arguments.rounds):
            for way, options in ways.items():
                started = time.perf_counter()
                extract(few, folder / "few.h5", SETTINGS, overwrite=True, **{"shards": None, **options})
                seconds[way].append(time.perf_counter() - started)
                clear(folder / "few.h5")
    print(f"\n| `extract` of {arguments.rows:,} rows | median of {arguments.rounds}, s | lowest | highest | ratio |")
    print("|---|---|---|---|---|")
    usual = statistics.median(seconds["one file"])
    for way, found in seconds.items():
        median = statistics.median(found)
        print(f"| {way} | {median:.1f} | {min(found):.1f} | {max(found):.1f} | {median / usual:.2f} |")


def compare(folder: Path, one: dict[str, Any], here: dict[str, Any], on_ray: dict[str, Any]) -> None:
    """Encode all texts in three ways, and print how the files differ."""
    table = DATA / "vader.csv"
    whole = open_cache(extract(table, folder / "one.h5", SETTINGS, **one))
    copies = []
    for number, options in enumerate((here, on_ray)):
        out = folder / str(number) / "c.h5"  # under one name: a record may tell it
        out.parent.mkdir()
        extract(table, out, SETTINGS, **options)
        copies.append(join(out, copy=out.with_name("copy.h5")))
    differences = "; ".join(compare_caches(*copies)) or "none"
    largest = max(
        float(np.abs(whole.features()[rows] - open_cache(copies[1]).features()[rows]).max())
        for rows in map(whole.layout.block_slice, range(whole.layout.blocks))
    )
    print(f"| {whole.rows:,} rows, {here['shards']} shards | |\n|---|---|")
    print(f"| differences between Ray's shards and those of one process, times left out | {differences} |")
    print(f"| largest difference of a feature from that of one file | {largest:.1e} |", flush=True)


def clear(out: Path) -> None:
    """Remove a cache and its shards."""
    out.unlink()
    for path in out.with_name(f"{out.name}.shards").glob("*"):
        path.unlink()


if __name__ == "__main__":
    main()
