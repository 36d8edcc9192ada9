"""Compare a projection of `headstart speedup` with the real run: the frozen rung, for 3 epochs of 2,000 rows.

Each pair is a projection (the command, with a budget too small for an epoch) and a run of the same program (loaded, and
trained for 3 epochs on all rows), each in a process of its own. The order alternates.
"""

from __future__ import annotations

import argparse
import csv
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from headstart.stages.settings import Precision

DATA = Path(__file__).resolve().parent.parent / ".data"
ROWS, EPOCHS = 2000, 3
FROZEN = "frozen encoder"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--budget", default="90s")
    arguments = parser.parse_args()
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "rows.csv"
        write_rows(table)
        settings: dict[str, Any] | None = None
        for pair in range(arguments.pairs):
            took = in_a_process(table, settings) if settings and pair % 2 else None
            projected_settings, projected = project(table, arguments.budget)
            if took is None or projected_settings != settings:  # the run must be of the program that was projected
                took = in_a_process(table, projected_settings)
            settings = projected_settings
            ratios.append(projected / took)
            print(
                f"pair {pair + 1}: projected {projected:.1f} s, took {took:.1f} s, ratio {ratios[-1]:.3f}", flush=True
            )
    print(f"median ratio {statistics.median(ratios):.3f}")


def write_rows(table: Path) -> None:
    with (DATA / "vader.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    chosen = np.random.default_rng(0).permutation(len(rows))[:ROWS]
    with table.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["text", "label"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows[number] for number in chosen)


def project(table: Path, budget: str) -> tuple[dict[str, Any], float]:
    """Return the settings of the frozen rung, and the seconds that the report projects for 3 epochs of it."""
    out = table.parent / "report"
    options = ["--encoder", str(DATA / "minilm"), "--out", str(out), "--overwrite", "--quiet", "--no-quality"]
    options += ["--budget", budget, "--epochs", str(EPOCHS), "--experiments", "1"]
    subprocess.run([sys.executable, "-W", "ignore", "-m", "headstart", "speedup", str(table), *options], check=True)
    report = json.loads((out / "speedup.json").read_text())
    rung = next(rung for rung in report["rungs"] if rung["rung"] == FROZEN)
    if rung["not_run"]:
        sys.exit(f"the frozen rung was not run: {rung['not_run']}; give a larger --budget")
    (projected,) = [line["seconds"] for line in report["totals"] if line["way"] == FROZEN]
    print(f"  timed on {rung['rows']} rows, {rung['epoch']['repeats']} times", flush=True)
    return rung["settings"], projected


def in_a_process(table: Path, settings: dict[str, Any]) -> float:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(run, (table, settings))


def run(table: Path, settings: dict[str, Any]) -> float:
    """Load the program, train it for 3 epochs, and return the seconds. Importing its libraries is not counted."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # as in the processes of `speedup`
    import torch
    from headstart.stages.baseline.program import Padding, Program, ProgramSettings
    from headstart.stages.encoders.files import find_encoder

    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    names = sorted({row["label"] for row in rows})
    kinds = {"precision": Precision(settings["precision"]), "padding": Padding(settings["padding"])}
    chosen = ProgramSettings(**{**settings, **kinds})
    started = time.perf_counter()
    program = Program(
        find_encoder(str(DATA / "minilm")),
        [row["text"] for row in rows],
        [names.index(row["label"]) for row in rows],
        classes=len(names),
        max_length=128,
        device=torch.device("cpu"),
    )
    rng = np.random.default_rng(0)
    for _ in range(EPOCHS):
        program.train(chosen, program.batches(chosen, rng.permutation(len(rows))))
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
