"""What it costs to add 100 rows to a table: `headstart extract --update` beside the first run, as whole processes.

The rows are added to the 23,703 texts of VADER at random places: 90 texts that are new (a real one with a word of
another put in) and 10 copies of texts that it has. How many token sequences are new is counted here by the encoder's
tokenizer alone, and compared with what headstart says that it encoded.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / ".data"
NEW, COPIES = 90, 10
MAX_LENGTH = 128
Table = list[list[str]]


def main() -> None:
    arguments = parse()
    encoder = str(arguments.encoder)
    with (DATA / "vader.csv").open(encoding="utf-8", newline="") as file:
        header, *old = list(csv.reader(file))
    grown, places = add_rows(old, arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        table, first, cache = scratch / "grown.csv", scratch / "first.h5", scratch / "features.h5"
        with table.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([header, *grown])
        options = ["--encoder", encoder, "--max-length", str(MAX_LENGTH), *arguments.options]
        print("| run | rows | sequences encoded | tokens encoded | seconds, the whole process |")
        print("|---|---|---|---|---|")
        shares, found, kept = [], [], []
        for number in range(1, arguments.repeat + 1):
            first.unlink(missing_ok=True)
            first_seconds = headstart("extract", str(DATA / "vader.csv"), "--out", str(first), *options)
            show(f"first, {number}", inspect(first), first_seconds)
            shutil.copy(first, cache)
            seconds = headstart("extract", str(table), "--out", str(cache), "--update", *options)
            after = inspect(cache)
            show(f"--update, {number}", after, seconds)
            shares.append(seconds / first_seconds)
            found.append(after["record"]["sequences_encoded"])
            kept.append(rows_kept(first, cache, places))
    expected = new_sequences(encoder, old, grown)
    counted = "as it should be" if set(found) == {expected} else "WRONG"
    print(f"\nsequences that the first table lacks, by the tokenizer: {expected}; encoded: {found[-1]}, {counted}")
    same = "yes" if all(kept) else "no, WRONG"
    print(f"features of the {len(old):,} old rows are bit for bit those of the first run: {same}")
    print(f"an update takes {statistics.median(shares):.3f} of its first run's time (median of {len(shares)} pairs)")
    if "WRONG" in counted + same:
        sys.exit(1)


def add_rows(old: Table, seed: int) -> tuple[Table, list[int]]:
    """The table with the new rows in it, and where its old rows are now."""
    rng = np.random.default_rng(seed)
    known = {row[0] for row in old}
    new: Table = []
    while len(new) < NEW:
        (text, *others), (lender, *_) = (old[i] for i in rng.integers(len(old), size=2))
        words, lent = text.split(), lender.split()
        words.insert(int(rng.integers(len(words) + 1)), lent[int(rng.integers(len(lent)))])
        if (edited := " ".join(words)) not in known:
            known.add(edited)
            new.append([edited, *others])
    new += [old[i] for i in rng.integers(len(old), size=COPIES)]
    rng.shuffle(new)
    total = len(old) + len(new)
    taken = set(rng.choice(total, len(new), replace=False).tolist())
    places = [place for place in range(total) if place not in taken]
    rows, added = iter(old), iter(new)
    return [next(added) if place in taken else next(rows) for place in range(total)], places


def new_sequences(encoder: str, old: Table, grown: Table) -> int:
    """How many distinct token sequences the grown table has that the old one lacks."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(encoder)
    before, after = (
        {tuple(ids) for ids in tokenizer([row[0] for row in t], truncation=True, max_length=MAX_LENGTH)["input_ids"]}
        for t in (old, grown)
    )
    return len(after - before)


def rows_kept(first: Path, cache: Path, places: list[int]) -> bool:
    with h5py.File(first) as before, h5py.File(cache) as after:
        names = list(before["features"])
        return all(np.array_equal(before["features"][n][:], after["features"][n][:][places]) for n in names)


def headstart(*arguments: str) -> float:
    """Run a command, and say how many seconds the whole process took."""
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "headstart", *arguments, "--quiet"], check=False)
    if done.returncode:
        sys.exit(f"headstart {' '.join(arguments)} ended with {done.returncode}")
    return time.perf_counter() - started


def inspect(cache: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "headstart", "inspect", str(cache), "--json"]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


def show(name: str, cache: dict[str, Any], seconds: float) -> None:
    record = cache["record"]
    counts = (cache["rows"], record["sequences_encoded"], record["tokens_encoded"])
    print(f"| {name} | {' | '.join(f'{count:,}' for count in counts)} | {seconds:.1f} |", flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--encoder", type=Path, default=DATA / "minilm")
    parser.add_argument("--repeat", type=int, default=3, help="pairs of a first run and its update")
    parser.add_argument("--seed", type=int, default=0, help="fixes the rows that are added")
    parser.add_argument("options", nargs="*", help="passed on to headstart extract, after --")
    return parser.parse_args()


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    main()
