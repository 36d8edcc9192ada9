"""How long `headstart extract` takes on few rows: what of it is start-up.

    .venv/bin/python bench/startup.py [--rows 500] [--rounds 10]

The runs alternate, each in a process of its own, from its start to its end: one that has transformers load the encoder,
as every run did and as the first on a machine does; one that loads it as an earlier run's trial says; and one with
nothing to do. The encoder's own work is no start-up; a run's record says how long that was.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from facts import cpu_name
from headstart.cache.reader import open_cache

DATA = Path(__file__).resolve().parent.parent / ".data"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=10)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        table, kept = folder / "few.csv", folder / "kept"
        with (DATA / "vader.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file))[: arguments.rows + 1]
        with table.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows(rows)
        done = folder / "done.h5"
        extract(table, done, str(kept))  # and leaves the trial's file
        seconds: dict[str, list[float]] = {}
        waited: dict[str, list[float]] = {}
        for number in range(arguments.rounds):
            for what, out, cache in (
                ("transformers loads the encoder", folder / f"a{number}.h5", ""),
                ("the encoder's trial is on record", folder / f"b{number}.h5", str(kept)),
                ("nothing to do", done, str(kept)),
            ):
                seconds.setdefault(what, []).append(extract(table, out, cache))
                of_record = 0.0 if out == done else float(open_cache(out).record["encode_seconds"])
                waited.setdefault(what, []).append(of_record)
    print(f"{cpu_name()}, {os.cpu_count()} cores; MiniLM, {arguments.rows} rows; {arguments.rounds} rounds\n")
    print("| run of extract | median, s | lowest | highest | of it encoding, median |\n|---|---|---|---|---|")
    for what, found in seconds.items():
        encoding = statistics.median(waited[what])
        print(f"| {what} | {statistics.median(found):.2f} | {min(found):.2f} | {max(found):.2f} | {encoding:.2f} |")


def extract(table: Path, out: Path, cache: str) -> float:
    """Run the command; returns its seconds."""
    command = [sys.executable, "-m", "headstart", "extract", str(table), "--encoder", str(DATA / "minilm"), "--quiet"]
    started = time.perf_counter()
    subprocess.run([*command, "--out", str(out)], env={**os.environ, "HEADSTART_CACHE": cache}, check=True)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
