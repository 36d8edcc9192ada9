"""Groups of heads, as a worker in another process trains them: from what crosses to it alone."""

from __future__ import annotations

import dataclasses
import pickle
import shutil
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from extracting import noting, settings
from headstart.cache.errors import DamagedError, SettingsError
from headstart.stages import sweep as sweeping
from headstart.stages.extract import extract
from headstart.stages.progress import Event, Report, Step
from headstart.stages.settings import Labels, SweepSettings, TrainSettings
from headstart.stages.sweep import sweep
from headstart.stages.sweeps import on_ray
from headstart.stages.sweeps.groups import Group, Progress
from tiny import tiny_rows

SETTINGS = SweepSettings(
    base=TrainSettings(solver="sgd", epochs=3, folds=3),
    values={"solver": ("auto", "exact", "sgd"), "feature": ("cls", "mean"), "dropout": (0.0, 0.3), "l2": (0.1, 1.0)},
)


@pytest.fixture
def cache(tiny: Path, tmp_path: Path) -> Path:
    rows = [*tiny_rows(200, classes=3), *((f"rare text {number}", "rare") for number in range(3))]
    table = {"text": [text for text, _ in rows], "label": [label for _, label in rows]}
    return extract(table, tmp_path / "c.h5", settings(tiny, features=("cls", "mean")))


@pytest.fixture
def backwards(monkeypatch: pytest.MonkeyPatch) -> list[on_ray.SweepWork]:
    """Groups are trained from the last to the first, by what was pickled; returns what workers were told."""
    told: list[on_ray.SweepWork] = []

    def train(
        _: Any, work: on_ray.SweepWork, groups: Sequence[Group], progress: Progress, *, report: Report
    ) -> Generator[Any, None, None]:
        told.append(pickle.loads(pickle.dumps(work)))
        do = told[-1].open()
        for group in reversed(groups):
            trained = pickle.loads(pickle.dumps(do(pickle.loads(pickle.dumps(group)))))
            for note in trained.notes:
                report(note)
            progress.finished(trained.group.cells)
            yield trained.group, trained.results

    monkeypatch.setattr(on_ray, "train_on_ray", train)
    monkeypatch.setattr(sweeping, "_ray_settings", lambda *_: object())
    return told


def test_whoever_trains_a_group_and_whenever_the_sweep_is_the_same(
    cache: Path, tmp_path: Path, backwards: list[on_ray.SweepWork], monkeypatch: pytest.MonkeyPatch
) -> None:
    notes: list[list[str]] = [[], []]
    alone = sweep(cache, tmp_path / "alone", SETTINGS, report=noting(notes[0]))
    monkeypatch.chdir(tmp_path)
    other = sweep(Path("c.h5"), tmp_path / "other", SETTINGS, ray="local", report=noting(notes[1]))
    tables = [pyarrow.parquet.read_table(folder / "sweep.parquet") for folder in (alone, other)]
    assert tables[0].equals(tables[1])
    assert (alone / "winner/head.safetensors").read_bytes() == (other / "winner/head.safetensors").read_bytes()
    assert backwards[0].cache == cache
    rare = [[note.partition(": ")[2] for note in found if "rare" in note or "texts" in note] for found in notes]
    assert rare[0] and set(rare[0]) == set(rare[1])


def test_a_worker_refuses_what_the_sweep_did_not_begin_with(
    cache: Path, tiny: Path, tmp_path: Path, backwards: list[on_ray.SweepWork]
) -> None:
    sweep(cache, tmp_path / "runs", SETTINGS, ray="local")
    (work,) = backwards
    other = {"text": ["a", "b", "c", "d"], "label": ["x", "y", "x", "y"]}
    extract(other, cache, settings(tiny, features=("cls", "mean")), overwrite=True)
    with pytest.raises(DamagedError, match=r"c\.h5 .* not what the sweep began with"):
        work.open()


def test_labels_are_named_as_other_processes_find_them(
    cache: Path, tmp_path: Path, backwards: list[on_ray.SweepWork], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = tiny_rows(200, classes=3)
    (tmp_path / "labels.csv").write_text("text,label\n" + "".join(f"{text},{label}!\n" for text, label in rows))
    monkeypatch.chdir(tmp_path)
    shutil.copy(cache, "test.h5")
    given = {"labels": Labels(table="labels.csv"), "test": "test.h5", "ray": "local"}
    exact = SweepSettings(base=TrainSettings(solver="exact", feature="cls", keep_shared=True))
    sweep("c.h5", "runs", exact, **given)
    (work,) = backwards
    assert work.labels is not None and work.labels.table == tmp_path / "labels.csv"
    assert (work.test, work.validation) == (tmp_path / "test.h5", None)
    in_memory: Any = {"text": [text for text, _ in rows], "label": [label for _, label in rows]}
    given["labels"] = dataclasses.replace(given["labels"], table=in_memory)
    with pytest.raises(SettingsError, match="labels in memory cannot be read by workers of Ray"):
        sweep("c.h5", "other", exact, **given)


def test_progress_of_workers_counts_the_heads_of_all_groups() -> None:
    steps: list[Event] = []
    cells = [(number, TrainSettings(solver="sgd", epochs=5, seed=number)) for number in range(3)]
    groups = [Group(0, tuple(cells[:2])), Group(1, tuple(cells[2:]))]
    progress = Progress(groups, steps.append)
    progress.finished(groups[0].cells)
    progress.state("2 workers at it")
    assert steps == [Step("sweeping", 10, 15, "epochs of heads", detail="1 of 3 heads left, 2 workers at it")]
