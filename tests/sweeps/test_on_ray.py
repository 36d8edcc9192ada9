"""Sweeps on a real local Ray: what one process finds, whoever is killed or stopped meanwhile."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import torch
from extracting import noting
from headstart.cache.errors import HeadstartError, SettingsError
from headstart.cache.siblings import partial_path
from headstart.stages.extract import extract
from headstart.stages.progress import Event, Note, Step
from headstart.stages.settings import ExtractSettings, SweepSettings, TrainSettings
from headstart.stages.sweep import sweep
from tiny import tiny_rows

pytestmark = pytest.mark.apart
EPOCHS = 200
SETTINGS = SweepSettings(
    base=TrainSettings(solver="sgd", feature="cls", epochs=EPOCHS, patience=EPOCHS),
    values={"feature": ("cls", "mean"), "batch_size": (32, 64), "learning_rate": (0.1, 0.003)},
    seeds=(0, 3),
)
"""Eight groups of two heads, a second or so each."""
PATIENCE = 120.0


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """In each worker, as here: the last bits of a head of SGD depend on the number of threads."""
    if torch.get_num_threads() > 1:
        pytest.skip("these are compared bit by bit; set OMP_NUM_THREADS=1, as make test-report does")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def cache(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = tiny_rows(600, classes=3)
    table = {"text": [text for text, _ in rows], "label": [label for _, label in rows]}
    settings = ExtractSettings(encoder=str(tiny), precision="float32", features=("cls", "mean"))
    return extract(table, tmp_path_factory.mktemp("swept") / "c.h5", settings)


@pytest.fixture(scope="module")
def alone(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sweep that one process makes."""
    return sweep(cache, tmp_path_factory.mktemp("alone") / "runs", SETTINGS)


def on_ray(cache: Path, out: Path, meanwhile: Callable[[], Any] = lambda: None, **options: Any) -> list[str]:
    """Sweep with two workers, and do something meanwhile; return the notes."""
    notes: list[str] = []
    thread = threading.Thread(target=meanwhile)
    thread.start()
    try:
        sweep(cache, out, SETTINGS, **{"ray": "local", "workers": 2, "report": noting(notes), **options})
    finally:
        thread.join()
    return notes


def busy() -> int:
    """Wait until a worker of this process trains; return its process."""
    ends = time.monotonic() + PATIENCE
    while time.monotonic() < ends:
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if b"_Actor.do" in (path / "cmdline").read_bytes() and os.getpid() in ancestors(int(path.name)):
                    return int(path.name)
        time.sleep(0.01)
    raise AssertionError("no worker began")


def ancestors(process: int) -> Iterator[int]:
    while process > 1:
        process = int(Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1])
        yield process


def groups(out: Path) -> list[Path]:
    """The files of groups that are finished."""
    return sorted((partial_path(out) / "groups").glob("*.json"))


def require_same(out: Path, alone: Path) -> None:
    """The rows of the table, in their order; the ranking; the winner."""
    tables = [pyarrow.parquet.read_table(folder / "sweep.parquet") for folder in (out, alone)]
    assert tables[0].equals(tables[1])
    found, wanted = (json.loads((folder / "sweep.json").read_text(encoding="utf-8")) for folder in (out, alone))
    for name in ("ranking", "winner", "heads", "diverged", "settings", "encoder_passes"):
        assert found[name] == wanted[name]
    winners = [(folder / "winner" / "head.safetensors").read_bytes() for folder in (out, alone)]
    assert winners[0] == winners[1]
    assert [path.name for path in out.parent.iterdir() if ".headstart" in path.name] == []


def test_two_workers_find_what_one_process_finds(cache: Path, alone: Path, tmp_path: Path) -> None:
    events: list[Event] = []
    on_ray(cache, tmp_path / "runs", report=events.append)
    require_same(tmp_path / "runs", alone)
    steps = [event for event in events if isinstance(event, Step) and event.phase == "sweeping"]
    done = [step.done for step in steps]
    assert done == sorted(done) and done[-1] == steps[-1].total == 16 * EPOCHS
    assert any("workers at it" in step.detail for step in steps)  # how many at once is a matter of chance
    assert any(isinstance(event, Note) and event.text.startswith("2 workers on Ray, each with") for event in events)
    assert steps[-1].detail.startswith("0 of 16 heads left")


def test_searches_and_penalties_are_found_alike(cache: Path, tmp_path: Path) -> None:
    settings = SweepSettings(base=TrainSettings(folds=2), values={"solver": ("auto", "exact"), "feature": ("mean",)})
    folders = [sweep(cache, tmp_path / "alone", settings), tmp_path / "runs"]
    sweep(cache, folders[1], settings, ray="local", workers=2)
    require_same(folders[1], folders[0])


def test_a_worker_that_is_killed_in_its_group_is_replaced(cache: Path, alone: Path, tmp_path: Path) -> None:
    notes = on_ray(cache, tmp_path / "runs", lambda: os.kill(busy(), signal.SIGKILL))
    require_same(tmp_path / "runs", alone)
    assert any("of the heads was lost" in note for note in notes)


def test_a_worker_that_stops_past_its_deadline_is_replaced(cache: Path, alone: Path, tmp_path: Path) -> None:
    stopped: list[int] = []

    def stop() -> None:
        stopped.append(busy())
        os.kill(stopped[0], signal.SIGSTOP)

    try:
        notes = on_ray(cache, tmp_path / "runs", stop, deadline=20.0)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(stopped[0], signal.SIGKILL)
    require_same(tmp_path / "runs", alone)
    assert any("it took more than 20 seconds" in note for note in notes)


def test_a_driver_that_is_killed_is_run_again_and_keeps_what_is_finished(
    cache: Path, alone: Path, tmp_path: Path
) -> None:
    out = tmp_path / "runs"
    code = (
        "import sys, headstart; headstart.sweep(sys.argv[1], sys.argv[2], solver='sgd', feature=['cls', 'mean'], "
        f"batch_size=[32, 64], learning_rate=[0.1, 0.003], seeds=[0, 3], epochs={EPOCHS}, patience={EPOCHS}, "
        "ray='local', workers=1)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(cache), str(out)]) as driver:
        ends = time.monotonic() + PATIENCE
        while len(made := groups(out)) < 2 and time.monotonic() < ends:
            time.sleep(0.01)
        driver.kill()
    made = groups(out)
    assert 2 <= len(made) < 8
    notes = on_ray(cache, out)
    require_same(out, alone)
    assert f"carried on: {2 * len(made)} of 16 heads were finished already" in notes


def test_an_error_in_a_worker_ends_the_run(cache: Path, tiny: Path, tmp_path: Path) -> None:
    """A cache that takes the place of the one that the sweep began with is no more trained on."""
    own, out = tmp_path / "c.h5", tmp_path / "runs"
    own.write_bytes(cache.read_bytes())
    rows = tiny_rows(600, classes=3, seed=5)
    table = {"text": [text for text, _ in rows], "label": [label for _, label in rows]}
    settings = ExtractSettings(encoder=str(tiny), precision="float32", features=("cls", "mean"))
    other = extract(table, tmp_path / "other.h5", settings)

    def replace() -> None:
        ends = time.monotonic() + PATIENCE
        while not partial_path(out).exists() and time.monotonic() < ends:
            time.sleep(0.001)
        other.rename(own)

    with pytest.raises(HeadstartError, match=r"group \d of the heads: .* not what the sweep began with"):
        on_ray(own, out, replace)
    assert not out.exists()


def test_what_ray_cannot_do_is_refused(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no cluster answers there"):
        on_ray(cache, tmp_path / "runs", ray="127.0.0.1:1")
