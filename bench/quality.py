"""Accuracy of the same head from the program's loop, as written and with its encoder in eval(), and from the cache.

What `headstart speedup` says of quality, without its rungs: MiniLM on VADER, as many rows and seeds as its defaults
say, however long that takes.
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

from headstart.stages.baseline.quality import AGREE, Training, compare_quality
from headstart.stages.encoders.files import find_encoder
from headstart.stages.progress import silent
from headstart.stages.settings import SpeedupSettings
from headstart.stages.speedup import draw_rows
from headstart.stages.tables.scan import scan_table
from headstart.stages.tables.table import open_table

DATA = Path(__file__).resolve().parent.parent / ".data"


def main() -> None:
    import torch

    settings = SpeedupSettings(encoder=str(DATA / "minilm"), device="cpu")
    table = open_table(DATA / "vader.csv", text_column="text", label_column="label")
    scan = scan_table(table, silent)
    _, draw = draw_rows(table, scan, settings)
    with tempfile.TemporaryDirectory() as scratch:
        found = compare_quality(
            draw,
            scan.label_names or (),
            find_encoder(settings.encoder),
            settings,
            scratch=Path(scratch),
            device=torch.device("cpu"),
            deadline=math.inf,
            on_step=lambda detail: None,
        )
    print(
        f"{found.train_rows:,} rows to train and choose on, {found.test_rows:,} to test on, padded to {found.length}\n"
    )
    print("| training | " + " | ".join(f"seed {seed}" for seed in settings.seeds) + " |")
    print("|---" * (1 + len(settings.seeds)) + "|")
    for training in Training:
        cells = [
            f"{each.accuracy:.4f} ({each.low:.4f} to {each.high:.4f})"
            for each in found.trained
            if each.training is training
        ]
        print(f"| {training} | {' | '.join(cells)} |")
    differences = [each.difference for each in found.trained if each.difference is not None]
    print(f"\nencoder in eval() and cache: weights differ by at most {max(differences):.1e} (bound {AGREE:.0e})")


if __name__ == "__main__":
    main()
