"""Ctrl-C and SIGTERM by the hundred: ``make soak`` runs this, and it prints counts.

Commands are stopped at random instants, from their start until after their end, some of them twice. Each must end soon,
with 130 and one line that says so last, or have been at its end; nothing of Python's or a library's own may be printed;
and no block that an extraction had finished may be lost. Before headstart's first line, and when Python tidies up, the
signal itself may end the process: a shell shows 130 for that, too.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
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
    train = ["train-head", cache, "--overwrite", "--solver", "sgd", "--epochs", 100, "--patience", 0]
    for arguments in ([*extract, "--out", cache], [*train, "--out", run]):
        done = fresh_command(*arguments)
        assert done.returncode == 0, done.stderr
    return {
        "extract": [*extract, "--out", folder / "stopped.h5"],
        "train-head": [*train, "--out", folder / "stopped"],
        "sweep": [
            "sweep",
            cache,
            "--out",
            folder / "swept",
            "--solver",
            "sgd",
            "--lr",
            "0.1,0.01",
            "--folds",
            3,
            "--overwrite",
        ],
        "predict": ["predict", run, "--input", table, "--out", folder / "predicted.csv", "--overwrite"],
        "verify": ["verify", cache, "--encoder", encoder, "--sample", 1_000],
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stopped:
    """How a command ended that was stopped: its exit code, what it printed, and when the first signal came."""

    code: int
    said: str
    at: float
    seconds: float
    """From the last signal to the end."""

    def is_right(self) -> bool:
        """Whether it may end so. What came too late to stop it was not lost if it ended at once in any case."""
        foreign = any(word in self.said for word in ("Traceback", "Exception", "terminate called"))
        lines = [line for line in self.said.splitlines() if line.startswith("headstart: ")]
        match self.code:
            case 130:
                told = len(lines) == 1 and self.said.splitlines()[-1] == lines[0]
                return not foreign and self.seconds < 5 and (told or (not self.said and self.seconds < 0.5))
            case 0:
                return not foreign and not lines and self.seconds < 0.5
        return self.code in (-signal.SIGINT, -signal.SIGTERM) and (not foreign or self.at < 0.3)


def stop_at_random(arguments: list[Any], rng: np.random.Generator, *, longest: float) -> Stopped:
    """Run a command, and stop it once or twice within so many seconds."""
    command = [sys.executable, "-m", "headstart", *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    number, waits = rng.choice(SIGNALS), [rng.uniform(0, longest), rng.uniform(0, 0.1)]
    for wait in waits[: 1 + (rng.random() < 0.2)]:
        time.sleep(wait)
        process.send_signal(number)
    sent = time.monotonic()
    _, said = process.communicate(timeout=300)
    return Stopped(code=process.returncode, said=said, at=waits[0], seconds=time.monotonic() - sent)


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
                stopped = stop_at_random(arguments, rng, longest=longest)
                lost += not (extracted.exists() or held <= holding(extracted))
                codes[stopped.code] += 1
                if not stopped.is_right():
                    wrong += 1
                    print(f"{kind}: {stopped}", flush=True)
            ended = ", ".join(f"{count} with {code}" for code, count in codes.most_common())
            print(f"{kind}: {options.stops} stops within {longest:.1f} s: ended {ended}", flush=True)
    print(f"{wrong} ended wrongly, {lost} lost blocks; {time.monotonic() - started:.0f} s in all")
    if wrong or lost:
        raise SystemExit(1)


if __name__ == "__main__":
    sys.exit(main())
