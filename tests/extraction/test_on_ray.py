"""Shards on a real local Ray: the bytes of one process, whoever is killed, stopped or taken away meanwhile."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from extracting import datasets, noting
from extracting import settings as settings_of
from headstart.cache.errors import HeadstartError, SettingsError
from headstart.cache.reader import open_cache
from headstart.cache.siblings import shards_path
from headstart.stages.extract import extract
from headstart.stages.join import join
from tiny import save_tiny_encoder, tiny_rows

pytestmark = pytest.mark.apart
PARTIAL = re.compile(r"(\d{5})-[0-9a-f]{16}(?:\.common)?\.[\w-]+-(\d+)\.h5\.headstart-partial")
BLOCKS = {"block_rows": 64, "window_rows": 128, "batch_tokens": 64}
PATIENCE = 120.0


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("RAY_DEDUP_LOGS", "0")
        yield


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4,000 rows, some of them copies, which a shard takes a second for."""
    rows = tiny_rows(3900)
    path = tmp_path_factory.mktemp("table") / "t.csv"
    path.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in [*rows, *rows[:100]]))
    return path


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny encoder that is not too quick."""
    return save_tiny_encoder(tmp_path_factory.mktemp("slow"), num_hidden_layers=12)


@pytest.fixture(scope="module")
def whole(table: Path, encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    """The shards that one process makes."""
    out = tmp_path_factory.mktemp("whole") / "c.h5"
    return contents(extract(table, out, settings_of(encoder, **BLOCKS), shards=4))


def contents(out: Path) -> dict[str, dict[str, bytes]]:
    return {path.name: datasets(path) for path in sorted(shards_path(out).iterdir())}


def working(out: Path) -> int:
    """Wait until a worker writes a shard; return its process."""
    ends = time.monotonic() + PATIENCE
    while time.monotonic() < ends:
        with contextlib.suppress(OSError):
            for path in shards_path(out).iterdir():
                if match := PARTIAL.fullmatch(path.name):
                    return int(match[2])
        time.sleep(0.01)
    raise AssertionError("no worker began")


def on_ray(
    table: Path, out: Path, encoder: Path, meanwhile: Callable[[], Any] = lambda: None, **options: Any
) -> list[str]:
    """Extract with two workers, and do something meanwhile; return the notes."""
    notes: list[str] = []
    thread = threading.Thread(target=meanwhile)
    thread.start()
    given = {"ray": "local", "workers": 2, "shards": 4, **options}
    extract(table, out, settings_of(encoder, **BLOCKS), report=noting(notes), **given)
    thread.join()
    return notes


def require_same(out: Path, whole: dict[str, dict[str, bytes]]) -> None:
    assert contents(out) == whole
    open_cache(out).check()
    assert not [path.name for path in (*out.parent.iterdir(), *shards_path(out).iterdir()) if ".headstart" in path.name]


def test_two_workers_write_the_bytes_of_one_process(
    table: Path, encoder: Path, whole: dict[str, dict[str, bytes]], tmp_path: Path
) -> None:
    notes = on_ray(table, tmp_path / "c.h5", encoder)
    require_same(tmp_path / "c.h5", whole)
    assert any("2 workers on Ray, each with" in note for note in notes)
    extract(table, tmp_path / "d.h5", settings_of(encoder, **BLOCKS), shards=4)
    copies = [join(tmp_path / f"{name}.h5", copy=tmp_path / f"{name}-copy.h5") for name in "cd"]
    assert datasets(copies[0]) == datasets(copies[1])
    assert "is current" in on_ray(table, tmp_path / "c.h5", encoder)[-1]


def test_rows_are_appended_by_workers(encoder: Path, tmp_path: Path) -> None:
    """With the bytes of one process."""
    tables = [tmp_path / f"{name}.csv" for name in ("first", "more")]
    for path, rows in zip(tables, (tiny_rows(300)[:100], tiny_rows(300)[80:]), strict=True):
        path.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in rows))
    outs = [tmp_path / f"{name}.h5" for name in "ab"]
    for out in outs:
        extract(tables[0], out, settings_of(encoder, **BLOCKS), shards=2)
    extract(tables[1], outs[0], append=True, shards=3)
    extract(tables[1], outs[1], append=True, shards=3, ray="local", workers=2)
    assert open_cache(outs[1]).rows == 320
    require_same(outs[1], contents(outs[0]))


def test_a_worker_that_is_killed_in_its_shard_is_replaced(
    table: Path, encoder: Path, whole: dict[str, dict[str, bytes]], tmp_path: Path
) -> None:
    out = tmp_path / "c.h5"
    notes = on_ray(table, out, encoder, lambda: os.kill(working(out), signal.SIGKILL))
    require_same(out, whole)
    assert any("was lost" in note for note in notes)


def test_a_worker_that_stops_past_its_deadline_is_replaced(
    table: Path, encoder: Path, whole: dict[str, dict[str, bytes]], tmp_path: Path
) -> None:
    out, stopped = tmp_path / "c.h5", list[int]()

    def stop() -> None:
        stopped.append(working(out))
        os.kill(stopped[0], signal.SIGSTOP)

    try:
        notes = on_ray(table, out, encoder, stop, deadline=20.0)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(stopped[0], signal.SIGKILL)
    assert any("it took more than 20 seconds" in note for note in notes)
    assert contents(out).keys() >= whole.keys()
    assert {name: contents(out)[name] for name in whole} == whole
    open_cache(out).check()


def test_a_node_that_is_lost_leaves_its_shards_to_the_others(
    table: Path, encoder: Path, whole: dict[str, dict[str, bytes]], tmp_path: Path
) -> None:
    from ray.cluster_utils import Cluster

    out = tmp_path / "c.h5"
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]

        def remove() -> None:
            working(out)
            cluster.remove_node(nodes[0], allow_graceful=False)

        on_ray(table, out, encoder, remove, ray=cluster.address)
    finally:
        cluster.shutdown()
    require_same(out, whole)


def test_a_node_that_freezes_leaves_its_shards_to_the_others(
    table: Path, encoder: Path, whole: dict[str, dict[str, bytes]], tmp_path: Path
) -> None:
    from ray.cluster_utils import Cluster

    out, frozen = tmp_path / "c.h5", list[int]()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        raylets = [info.process.pid for node in nodes for info in node.all_processes["raylet"]]
        with driver(table, out, encoder, ray=cluster.address) as running:
            worker = working(out)
            frozen += next(pids for pids in map(tree, raylets) if worker in pids)
            for pid in frozen:
                os.kill(pid, signal.SIGSTOP)
            assert running.wait(PATIENCE) == 0
    finally:
        for pid in frozen:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        cluster.shutdown()
    assert {name: datasets(shards_path(out) / name) for name in whole} == whole
    open_cache(out).check()


def tree(pid: int) -> list[int]:
    """A process, and all that it started."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(each for child in children for each in tree(int(child)))]


@contextlib.contextmanager
def driver(table: Path, out: Path, encoder: Path, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Extract in a process of its own, which is killed at the end."""
    code = (
        "import sys, headstart; headstart.extract(sys.argv[1], sys.argv[2], headstart.ExtractSettings("
        f"encoder=sys.argv[3], precision='float32', features=('cls',), **{BLOCKS}), shards=4, **{options})"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(table), str(out), str(encoder)]) as running:
        try:
            yield running
        finally:
            running.kill()


def test_a_driver_that_is_killed_is_run_again_and_keeps_what_is_finished(
    table: Path, encoder: Path, whole: dict[str, dict[str, bytes]], tmp_path: Path
) -> None:
    out = tmp_path / "c.h5"
    with driver(table, out, encoder, ray="local", workers=1):
        ends = time.monotonic() + PATIENCE
        while not (made := finished(out)) and time.monotonic() < ends:
            time.sleep(0.01)
    assert 0 < len(made) < 4
    on_ray(table, out, encoder)
    require_same(out, whole)
    assert {path.name: path.stat().st_ino for path in made}.items() <= finished_inodes(out).items()


def finished(out: Path) -> list[Path]:
    return sorted(shards_path(out).glob("00???-????????????????.h5")) if shards_path(out).is_dir() else []


def finished_inodes(out: Path) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in finished(out)}


def test_an_error_in_a_worker_ends_the_run(table: Path, encoder: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.csv"
    bad.write_text(table.read_text())
    out = tmp_path / "c.h5"

    def change() -> None:
        working(out)
        bad.write_text(table.read_text() + "one more,class0\n")

    with pytest.raises(HeadstartError, match=r"shard \d: .*changed while it was read"):
        on_ray(bad, out, encoder, change)
    assert not out.exists()


def test_what_ray_cannot_do_is_refused(table: Path, encoder: Path, tmp_path: Path) -> None:
    out = tmp_path / "c.h5"
    with pytest.raises(SettingsError, match="no cluster answers there"):
        on_ray(table, out, encoder, ray="127.0.0.1:1")
    with pytest.raises(SettingsError, match="say how many with `shards`"):
        on_ray(table, out, encoder, shards=None)
    with pytest.raises(SettingsError, match="a table in memory cannot be read by workers"):
        extract(["a", "b"], out, settings_of(encoder), shards=2, ray="local")


def test_workers_upload_what_they_make(
    bucket: Any, table: Path, encoder: Path, whole: dict[str, dict[str, bytes]], tmp_path: Path
) -> None:
    url = f"s3://reviews/{tmp_path.name}"
    extract(table, tmp_path / "c.h5", settings_of(encoder, **BLOCKS), shards=4, store=url, ray="local", workers=2)
    join(tmp_path / "d.h5", store=url)
    assert contents(tmp_path / "d.h5") == contents(tmp_path / "c.h5") == whole
