"""Ctrl-C and SIGTERM by the hundred: ``make soak`` runs this, and it prints counts.

Commands are stopped at random instants, from their start until after their end, some of them twice. Each must end with
130 and one line that says so last, or have ended well; nothing of Python's or a library's own may be printed; and no
block that an extraction had finished may be lost. Before headstart's first line, and when Python tidies up, the signal
itself may end the process: a shell shows 130 for that, too.
"""

from __future__ import annotations

import argparse
import collections
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from extracting import holding
from processes import fresh_command
from soak import write_table
from tiny import save_tiny_encoder

SIGNALS = [signal.SIGINT, signal.SIGTERM]


def commands(folder: Path) -> dict[str, list[Any]]:
    """What is stopped, by its name; each takes some seconds."""
    encoder, table = save_tiny_encoder(folder / "encoder"), write_table(folder / "table.csv", 20_000)
    cache, run = folder / "cache.h5", folder / "run"
    extract = ["extract", table, "--encoder", encoder, "--precision", "float32", "--batch-tokens", 512]
    train = ["train-head", cache, "--overwrite", "--epochs", 100, "--patience", 0]
    for arguments in ([*extract, "--out", cache], [*train, "--out", run]):
        done = fresh_command(*arguments)
        assert done.returncode == 0, done.stderr
    return {
        "extract": [*extract, "--out", folder / "stopped.h5"],
        "train-head": [*train, "--out", folder / "stopped"],
        "sweep": ["sweep", cache, "--out", folder / "swept", "--lr", "0.1,0.01", "--folds", 3, "--overwrite"],
        "predict": ["predict", run, "--input", table, "--out", folder / "predicted.csv", "--overwrite"],
        "verify": ["verify", cache, "--encoder", encoder, "--sample", 1_000],
    }


def stop_at_random(arguments: list[Any], rng: np.random.Generator, *, longest: float) -> tuple[int, str]:
    """Run a command, stop it once or twice within so many seconds; return its exit code and what it printed."""
    command = [sys.executable, "-m", "headstart", *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    number, waits = rng.choice(SIGNALS), [rng.uniform(0, longest), rng.uniform(0, 0.1)]
    for wait in waits[: 1 + (rng.random() < 0.2)]:
        time.sleep(wait)
        process.send_signal(number)
    _, said = process.communicate(timeout=300)
    return process.returncode, said


def is_right(code: int, said: str) -> bool:
    """Whether a command that was stopped may have ended so."""
    foreign = "Traceback" in said or "Exception" in said or "terminate called" in said
    if code == 130:
        return not foreign and said.count("headstart: ") <= 1 and (not said or "headstart: " in said.splitlines()[-1])
    return code == 0 or (code in (-signal.SIGINT, -signal.SIGTERM) and (not foreign or "headstart: " not in said))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stops", type=int, default=40, help="of each command")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what is started with `&` would ignore it
    started, wrong, lost, rng = time.monotonic(), 0, 0, np.random.default_rng(options.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        extracted = folder / "stopped.h5"
        for kind, arguments in commands(folder).items():
            began = time.monotonic()
            assert fresh_command(*arguments).returncode == 0
            longest = 1.1 * (time.monotonic() - began)
            codes: collections.Counter[int] = collections.Counter()
            for _ in range(options.stops):
                extracted.unlink(missing_ok=True)  # what is finished cannot be stopped
                held = holding(extracted)
                code, said = stop_at_random(arguments, rng, longest=longest)
                lost += not (extracted.exists() or held <= holding(extracted))
                codes[code] += 1
                if not is_right(code, said):
                    wrong += 1
                    print(f"{kind} ended with {code} and said:\n{said}", flush=True)
            ended = ", ".join(f"{count} with {code}" for code, count in codes.most_common())
            print(f"{kind}: {options.stops} stops within {longest:.1f} s: ended {ended}", flush=True)
    print(f"{wrong} ended wrongly, {lost} lost blocks; {time.monotonic() - started:.0f} s in all")
    if wrong or lost:
        raise SystemExit(1)


if __name__ == "__main__":
    sys.exit(main())
