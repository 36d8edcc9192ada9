"""A kill at any call leaves the old output or the new one; the next run leaves nothing else. `make soak` does all."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest
from extracting import flip_a_byte, run_small_blocks
from headstart.stages.predict import predict_table
from headstart.stages.settings import SweepSettings, TrainSettings
from headstart.stages.sweep import sweep
from headstart.stages.train_head import train_head
from kills import OUT, Replacing, kill_everywhere
from tiny import tiny_rows

NAMES = ("train-head", "sweep", "predict", "update", "repair")
EVERY = 7
"""In the suite, a run is killed before every seventh call."""


def commands(folder: Path, encoder: Path) -> dict[str, Replacing]:
    """Commands that replace outputs, by name; what they read, and the old outputs, are made in the folder."""
    for name, rows in (("table", tiny_rows(40)), ("longer", [("a new first row", "class0"), *tiny_rows(44)])):
        with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *rows])
    table, cache, run = folder / "table.csv", folder / "c.h5", folder / "run"
    run_small_blocks(table, cache, encoder)
    shutil.copy(cache, folder / "damaged.h5")
    flip_a_byte(folder / "damaged.h5", "features/cls", 9)
    train_head(cache, run, TrainSettings(solver="sgd", epochs=2))
    sweep(
        cache,
        folder / "swept",
        SweepSettings(base=TrainSettings(solver="sgd", epochs=2), values={"dropout": (0.1, 0.3)}),
    )
    predict_table(run, table, folder / "p.csv")
    written = ("--quiet", "--out", OUT)
    predicted = ("predict", run, "--input", folder / "longer.csv", "--overwrite", *written)
    updated = ("extract", folder / "longer.csv", "--encoder", encoder, "--precision", "float32", "--batch-tokens", 64)
    made = (
        ("train-head", "poetry", run, ("train-head", cache, "--solver", "sgd", "--epochs", 3, "--overwrite", *written)),
        (
            "sweep",
            "runs",
            folder / "swept",
            ("sweep", cache, "--solver", "sgd", "--epochs", 3, "--overwrite", *written),
        ),
        ("predict", "p.csv", folder / "p.csv", predicted),
        ("update", "c.h5", cache, (*updated, "--update", *written)),
        ("repair", "c.h5", folder / "damaged.h5", ("repair", OUT, table, "--quiet")),
    )
    return {name: Replacing(name, tuple(map(str, arguments)), out, old) for name, out, old, arguments in made}


@pytest.fixture(scope="module")
def made(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Replacing]:
    return commands(tmp_path_factory.mktemp("made"), tiny)


@pytest.mark.parametrize("name", NAMES)
def test_a_kill_leaves_the_old_or_the_new_and_the_next_run_nothing_else(
    made: dict[str, Replacing], tmp_path: Path, name: str
) -> None:
    killed = kill_everywhere(made[name], tmp_path, step=EVERY)
    assert killed.old


@pytest.mark.parametrize("name", ["train-head", "sweep"])
def test_without_an_exchange_of_names_the_next_run_finds_the_old_folder(
    made: dict[str, Replacing], tmp_path: Path, name: str
) -> None:
    assert kill_everywhere(made[name], tmp_path, step=EVERY, exchange=False).old
