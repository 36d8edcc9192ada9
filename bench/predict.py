"""What `headstart predict` adds to the encoder: rows a second, memory, and a run that is killed and carried on.

    .venv/bin/python bench/predict.py [--rows 200000] [--fewer 20000] [--words 8] [--rounds 1]

The first words of VADER's texts are repeated, each time with another number at its end, so that all are distinct.
MiniLM encodes them. The shorter the texts, the less there is to hide reading, the head and writing behind.
The encoder's own speed is that of its tokenizer and passes alone, on the same texts in the same windows: what is left
of the command is reading, the head and writing. Each measurement is a process of its own, which loads its libraries
before the clock starts; its memory is the most it ever had.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from facts import cpu_name

DATA = Path(__file__).resolve().parent.parent / ".data"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--fewer", type=int, default=20_000)
    parser.add_argument("--words", type=int, default=8, help="words of each text")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--trained", type=int, default=2000, help="texts that the head is trained on")
    parser.add_argument("--window", type=int, default=4096, help="rows that are encoded together")
    parser.add_argument("--encode", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.encode:
        print(json.dumps({"seconds": encode(arguments.encode, arguments.window)}))
        return
    with tempfile.TemporaryDirectory() as name:
        measure(Path(name), arguments)


def measure(folder: Path, arguments: argparse.Namespace) -> None:
    run, window = train(folder, arguments.trained), arguments.window
    tables = {
        count: write(folder / f"{count}.csv", count, arguments.words) for count in (arguments.fewer, arguments.rows)
    }
    what = f"the first {arguments.words} words of VADER's texts, with numbers"
    print(f"{cpu_name()}, {os.cpu_count()} cores; MiniLM; {what}, from .csv to .csv\n")
    print("| rows | the command, s | rows/s | encoder alone, s | rows/s | command / encoder | most memory, MB |")
    print("|---|---|---|---|---|---|---|")
    memory = {}
    for count, table in tables.items():
        for _ in range(arguments.rounds):
            alone, _ = timed([__file__, "--encode", str(table), "--window", str(window)])
            seconds = json.loads(alone)["seconds"]
            out = folder / f"{count}.out.csv"
            out.unlink(missing_ok=True)
            said, memory[count] = timed(command(run, table, out, window))
            took = json.loads(said.splitlines()[-1])["seconds"]
            cells = [f"{count:,}", f"{took:.1f}", f"{count / took:,.0f}", f"{seconds:.1f}", f"{count / seconds:,.0f}"]
            print("|", " | ".join([*cells, f"{seconds / took:.3f}", f"{memory[count]:,.0f}"]), "|", flush=True)
    few, many = (memory[count] for count in tables)
    print(f"\nmemory at {arguments.rows:,} rows / at {arguments.fewer:,}: {many / few:.3f}")
    whole, broken = folder / f"{arguments.fewer}.out.csv", folder / "broken.csv"
    kept = kill(command(run, tables[arguments.fewer], broken, window), broken)
    said, _ = timed(command(run, tables[arguments.fewer], broken, window))
    same = whole.read_bytes() == broken.read_bytes()
    took = json.loads(said.splitlines()[-1])["seconds"]
    print(f"killed (SIGKILL) after {kept:,} bytes of outputs, carried on in {took:.1f} s: the same bytes: {same}")
    if not same:
        sys.exit("the bytes differ")


def train(folder: Path, count: int) -> Path:
    import headstart

    with (DATA / "vader.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))[:: 23_703 // count]
    table = {name: [row[name] for row in rows] for name in ("text", "label")}
    cache = headstart.extract(table, folder / "c.h5", headstart.ExtractSettings(encoder=str(DATA / "minilm")))
    return Path(headstart.train_head(cache, folder / "run"))


def write(table: Path, count: int, words: int) -> Path:
    with (DATA / "vader.csv").open(encoding="utf-8", newline="") as file:
        texts = [" ".join(row["text"].split()[:words]) for row in csv.DictReader(file)]
    with table.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "text"])
        writer.writerows([number, f"{texts[number % len(texts)]} {number}"] for number in range(count))
    return table


def command(run: Path, table: Path, out: Path, window: int) -> list[str]:
    code = (
        "import json, time, torch, transformers, pyarrow\n"  # what takes seconds to load is not counted
        "from headstart.stages.predict import predict_table\n"
        f"started = time.perf_counter()\n"
        f"predict_table({str(run)!r}, {str(table)!r}, {str(out)!r}, window_rows={window})\n"
        "print(json.dumps({'seconds': time.perf_counter() - started}))"
    )
    return ["-c", code]


def encode(table: Path, window: int) -> float:
    """Return the seconds that the tokenizer and the encoder take for the texts, in windows, one beside the other."""
    from headstart.stages.encoders.encoder import encode_sequences
    from headstart.stages.encoders.session import EncoderSession
    from headstart.stages.prefetch import prefetch
    from headstart.stages.settings import ExtractSettings

    with table.open(encoding="utf-8", newline="") as file:
        texts = [row["text"] for row in csv.DictReader(file)]
    encoder = EncoderSession(ExtractSettings(encoder=str(DATA / "minilm"))).encoder
    started = time.perf_counter()
    windows = (encoder.tokenize(texts[start : start + window])[0] for start in range(0, len(texts), window))
    for sequences in prefetch(windows):
        encode_sequences(encoder, sequences)
    return time.perf_counter() - started


def timed(arguments: Sequence[str]) -> tuple[str, float]:
    """Run Python to its end; return what it printed, and the most memory that it had, in MB."""
    process = subprocess.Popen([sys.executable, "-W", "ignore", *arguments], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    said = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{arguments} ended with {process.returncode}")
    return said, memory_of(usage)


def memory_of(usage: resource.struct_rusage) -> float:
    return usage.ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def kill(arguments: Sequence[str], out: Path) -> int:
    """Kill a run once it has kept two windows; return how much it has kept."""
    partial = Path(f"{out}.headstart-partial")
    process: Any = subprocess.Popen([sys.executable, "-W", "ignore", *arguments], stdout=subprocess.DEVNULL)
    size = 0
    while size == 0 or partial.stat().st_size < 2 * size:
        if process.poll() is not None:
            sys.exit("it ended before it could be killed; give more rows")
        size = size or (partial.stat().st_size if partial.exists() else 0)
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return partial.stat().st_size


if __name__ == "__main__":
    main()
