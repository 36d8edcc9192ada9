"""How memory and time grow with the table: `headstart extract` as a process of its own, on ever longer tables.

The encoder is tiny and random, so that it is not what is measured. Two figures of memory are read of the running
process from Linux's ``/proc``, about 20 times a second: the anonymous pages (``RssAnon``: what the program itself asked
for) and the highest whole resident size so far (``VmHWM``), which also counts the table and the cache as far as they
are mapped, and the libraries; the system takes those pages back when it needs them.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import transformers

ROOT = Path(__file__).resolve().parent.parent
PERIOD = 0.05
"""Seconds between two looks at the process."""
ROWS_AT_ONCE = 50_000
sys.path.insert(0, str(ROOT / "tests"))  # where the tiny encoder is made

from tiny import WORDS, save_tiny_encoder  # noqa: E402


@dataclasses.dataclass(frozen=True)
class Peak:
    """The most that a process held, in bytes, and how long it ran, in seconds."""

    anonymous: int
    resident: int
    seconds: float
    looks: int


def main() -> None:
    arguments = parse()
    if not Path("/proc/self/status").exists():
        sys.exit("bench/growth.py reads Linux's /proc, and there is none here")
    peaks: dict[int, Peak] = {}
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as folder:
        scratch = Path(folder)
        transformers.logging.disable_progress_bar()
        encoder = save_tiny_encoder(scratch / "encoder")
        print(f"{arguments.format} tables of short texts, one in ten of them a copy; a tiny random encoder\n")
        print("| rows | peak RssAnon, MB | peak resident, MB | seconds | microseconds a row | looks |")
        print("|---|---|---|---|---|---|")
        for rows in sorted(arguments.rows):
            table = write_table(scratch / f"table.{arguments.format}", rows)
            peak = peaks[rows] = extract(table, encoder, scratch / "cache.h5", arguments.options)
            figures = (
                f"{rows:,}",
                f"{peak.anonymous / 1e6:.1f}",
                f"{peak.resident / 1e6:.1f}",
                f"{peak.seconds:.1f}",
                f"{peak.seconds / rows * 1e6:.0f}",
                f"{peak.looks:,}",
            )
            print(f"| {' | '.join(figures)} |", flush=True)
    fewest, most = min(peaks), max(peaks)
    if fewest < most:
        more = most - fewest
        anonymous = (peaks[most].anonymous - peaks[fewest].anonymous) / more
        resident = (peaks[most].resident - peaks[fewest].resident) / more
        spent = (peaks[most].seconds - peaks[fewest].seconds) / more * 1e6
        print(
            f"\nfrom {fewest:,} to {most:,} rows: {anonymous:.1f} bytes of anonymous memory a row, {resident:.1f} of "
            f"resident memory, {spent:.0f} microseconds a row"
        )


def write_table(path: Path, rows: int) -> Path:
    """Write rows of short texts and labels, the same ones whenever it is asked for; memory stays small."""
    rng = np.random.default_rng(0)
    if path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(("text", "label"))
            for start in range(0, rows, ROWS_AT_ONCE):
                texts, labels = some_rows(rng, start, min(ROWS_AT_ONCE, rows - start))
                writer.writerows(zip(texts, labels, strict=True))
        return path
    import pyarrow as pa
    import pyarrow.parquet

    schema = pa.schema([("text", pa.string()), ("label", pa.string())])
    with pyarrow.parquet.ParquetWriter(path, schema) as parquet:
        for start in range(0, rows, ROWS_AT_ONCE):
            texts, labels = some_rows(rng, start, min(ROWS_AT_ONCE, rows - start))
            parquet.write_table(pa.table({"text": texts, "label": labels}, schema))
    return path


def some_rows(rng: np.random.Generator, start: int, count: int) -> tuple[list[str], list[str]]:
    """The texts of rows ``start`` and on: a few words and the row's number, which every tenth lends from another."""
    words = np.array(WORDS)[rng.integers(len(WORDS), size=(count, 3))]  # (rows, words)
    numbers = np.arange(start, start + count)
    texts = [f"{' '.join(some)} {number}" for some, number in zip(words, numbers, strict=True)]
    for row in range(9, count, 10):
        texts[row] = texts[int(rng.integers(row))]
    return texts, [f"class{number % 3}" for number in numbers]


def extract(table: Path, encoder: Path, out: Path, options: list[str]) -> Peak:
    """Run stage one as a user would, and watch it."""
    out.unlink(missing_ok=True)
    command = [sys.executable, "-m", "headstart", "extract", str(table), "--encoder", str(encoder), "--out", str(out)]
    started, anonymous, resident, looks = time.perf_counter(), 0, 0, 0
    with subprocess.Popen([*command, "--quiet", *options]) as process:
        while process.poll() is None:
            held = memory(process.pid)
            anonymous, resident, looks = max(anonymous, held[0]), max(resident, held[1]), looks + 1
            time.sleep(PERIOD)
    if process.returncode:
        sys.exit(f"{' '.join(command)} ended with {process.returncode}")
    return Peak(anonymous, resident, time.perf_counter() - started, looks)


def memory(pid: int) -> tuple[int, int]:
    """Anonymous bytes of a process now, and the most resident ones so far; 0 where it has just ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0, 0
    found = dict(line.split(":", 1) for line in lines)
    anonymous, resident = (int(found.get(name, "0 kB").split()[0]) * 1024 for name in ("RssAnon", "VmHWM"))
    return anonymous, resident


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, nargs="+", default=[20_000, 200_000, 1_000_000])
    parser.add_argument("--format", choices=("csv", "parquet"), default="csv")
    parser.add_argument("--scratch", type=Path, help="folder for tables and caches (default: the system's)")
    parser.add_argument("options", nargs="*", help="passed on to headstart extract, after --")
    return parser.parse_args()


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    main()
