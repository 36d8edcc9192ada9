"""The demo: a real frozen BERT reads 23,703 real texts once, and a head trains on what it read in seconds.

Every step is the command that a user would type, and is shown before it runs.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

TEXTS = (
    "What a lovely surprise, thank you so much!",
    "The battery died after two days and nobody answers my letters.",
    "The committee meets again on Tuesday.",
)


def main(folder: str) -> None:
    Path(folder).mkdir(exist_ok=True)
    cache, run = f"{folder}/vader.h5", f"{folder}/run"
    features = "model,cls"  # in one pass: the encoder's own vector, and the first token's beside it
    headstart("extract", ".data/vader.csv", "--encoder", ".data/minilm", "--features", features, "--out", cache)
    headstart("train-head", cache, "--out", run, "--overwrite")
    headstart("train-head", cache, "--features", "cls", "--out", f"{run}-cls", "--overwrite")
    headstart("predict", run, *TEXTS)
    looked = "--cache", cache, "--texts", ".data/vader.csv", "--out", f"{folder}/report.html"
    headstart("report", run, f"{run}-cls", *looked, "--overwrite")


def headstart(*arguments: str) -> None:
    """Show a command, run it, and stop the demo where it fails."""
    print(f"\n$ headstart {shlex.join(arguments)}", flush=True)
    done = subprocess.run([sys.executable, "-m", "headstart", *arguments], check=False)
    if done.returncode:
        sys.exit(done.returncode)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else ".demo")
