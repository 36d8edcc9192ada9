"""Accuracy of the same head, trained in the program's loop and from a cache: MiniLM on VADER.

This is the comparison of `headstart speedup` alone, with its default rows and seeds and without a budget.
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

from headstart.stages.baseline.ladder import Measurement
from headstart.stages.baseline.quality import AGREE, Training, compare_quality
from headstart.stages.encoders.files import find_encoder
from headstart.stages.extract import extract
from headstart.stages.progress import silent
from headstart.stages.settings import SpeedupSettings
from headstart.stages.speedup import draw_rows
from headstart.stages.tables.scan import scan_table
from headstart.stages.tables.table import open_table
from headstart.stages.train_head import train_head

DATA = Path(__file__).resolve().parent.parent / ".data"


def main() -> None:
    import torch

    settings = SpeedupSettings(encoder=str(DATA / "minilm"), device="cpu")
    table = open_table(DATA / "vader.csv", text_column="text", label_column="label")
    scan = scan_table(table, silent)
    *_, sample = draw_rows(table, scan, settings)
    with tempfile.TemporaryDirectory() as scratch:
        measurement = Measurement(
            settings=settings,
            files=find_encoder(settings.encoder),
            device=torch.device("cpu"),
            scratch=Path(scratch),
            deadline=math.inf,
            on_step=lambda detail: None,
            extract_command=extract,
            train_command=train_head,
        )
        quality = compare_quality(measurement, sample)
    rows = f"{quality.train_rows:,} rows to train and choose the epoch on, {quality.test_rows:,} to test on"
    print(f"{rows}, padded to {quality.length} tokens\n")
    print("| training | " + " | ".join(f"seed {seed}" for seed in settings.seeds) + " |")
    print("|---" * (1 + len(settings.seeds)) + "|")
    for training in Training:
        cells = [
            f"{head.accuracy:.4f} ({head.low:.4f} to {head.high:.4f})"
            for head in quality.trained
            if head.training is training
        ]
        print(f"| {training} | {' | '.join(cells)} |")
    differences = [head.difference for head in quality.trained if head.difference is not None]
    print(f"\nencoder in eval() and cache: weights differ by at most {max(differences):.1e} (bound {AGREE:.0e})")


if __name__ == "__main__":
    main()
