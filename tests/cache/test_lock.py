"""Two runs with one output: the second one ends at once or waits, and a dead one blocks nobody."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from extracting import datasets, run
from headstart.cache import lock, reader
from headstart.cache.errors import BusyError, OutputExistsError, StorageError
from headstart.cache.lock import hold
from headstart.stages.sweep import sweep
from headstart.stages.train_head import train_head
from tiny import tiny_rows

HOLDER = """
import sys, time
from pathlib import Path
from typing import Any
from headstart.cache.lock import hold
with hold(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def another_process(output: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that locks an output until its stdin is closed."""
    command = [sys.executable, "-c", HOLDER, str(output)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def test_the_second_leaves_at_once_and_says_who_holds_it(tmp_path: Path) -> None:
    out = tmp_path / "out.h5"
    with another_process(out) as process:
        for wait, advice in ((False, "wait for it with `wait=True`"), (None, "try again when it has finished")):
            with pytest.raises(BusyError) as raised, hold(out, wait=wait):
                pass
            assert f"process {process.pid} on {socket.gethostname()}, since 20" in str(raised.value)
            assert str(raised.value).endswith(advice)


def test_a_lock_of_a_dead_process_holds_nobody_up(tmp_path: Path) -> None:
    out = tmp_path / "out.h5"
    with another_process(out) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert (tmp_path / "out.h5.headstart-lock").exists()
        with hold(out):
            pass
    assert not (tmp_path / "out.h5.headstart-lock").exists()


def test_waiting_is_said_once_and_ends_with_the_other_run(tmp_path: Path) -> None:
    out, notes = tmp_path / "out.h5", []
    with another_process(out) as process:
        assert process.stdin is not None
        threading.Timer(1.2, process.stdin.close).start()
        started = time.monotonic()
        with hold(out, wait=True, note=notes.append):
            assert time.monotonic() - started > 1
    (note,) = notes
    assert "waiting" in note and str(process.pid) in note


def test_only_one_of_many_is_in_at_a_time(tmp_path: Path) -> None:
    """Although each of them removes the lock file at its end."""
    inside, most, entered = 0, 0, 0

    def enter() -> None:
        nonlocal inside, most, entered
        for _ in range(20):
            with hold(tmp_path / "out.h5", wait=True):
                inside += 1
                most, entered = max(most, inside), entered + 1
                time.sleep(0.001)
                inside -= 1

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lock, "_POLL_SECONDS", 0.0005)
        threads = [threading.Thread(target=enter) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert (most, entered) == (1, 120)
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_without_locks_is_said_and_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, *, blocking: bool) -> bool:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(lock, "lock_descriptor", refuse)
    notes: list[str] = []
    with hold(tmp_path / "out.h5", note=notes.append):
        pass
    (note,) = notes
    assert "no locks" in note
    assert list(tmp_path.iterdir()) == []


def test_a_read_only_folder_is_left_to_the_run_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run may have nothing to write."""
    original = os.open

    def refuse(path: object, flags: int, *more: int) -> int:
        if str(path).endswith("-lock"):
            raise OSError(number, os.strerror(number))
        return original(path, flags, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", refuse)
    number, entered = errno.EROFS, False
    with hold(tmp_path / "out.h5"):
        entered = True
    assert entered
    number = errno.ENOSPC
    with pytest.raises(StorageError, match="No space left"), hold(tmp_path / "out.h5"):
        pass


def test_another_users_lock_is_a_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock file can be read but not written, and the folder is writable."""
    original = os.open

    def refuse(path: object, flags: int, *more: int) -> int:
        if str(path).endswith("-lock") and flags & os.O_RDWR:
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        return original(path, flags, *more)  # type: ignore[arg-type]

    out = tmp_path / "out.h5"
    with another_process(out) as process:
        monkeypatch.setattr(os, "open", refuse)
        with pytest.raises(BusyError, match=f"process {process.pid} on"), hold(out):
            pass


def test_a_lock_that_cannot_be_signed_is_a_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    with hold(tmp_path / "out.h5"), pytest.raises(BusyError, match="an unknown process"), hold(tmp_path / "out.h5"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_two_names_of_one_output_are_one(tmp_path: Path) -> None:
    (tmp_path / "link.h5").symlink_to(tmp_path / "out.h5")
    with another_process(tmp_path / "out.h5"), pytest.raises(BusyError), hold(tmp_path / "link.h5"):
        pass


def test_an_extraction_holds_its_output_and_a_reader_takes_no_notice(tiny: Path, tmp_path: Path) -> None:
    texts, labels = zip(*tiny_rows(20), strict=True)
    table, out = {"text": list(texts), "label": list(labels)}, tmp_path / "out.h5"
    cache, _ = run(table, out, tiny)
    before = datasets(out)
    with another_process(out):
        with pytest.raises(BusyError):
            run(table, out, tiny, overwrite=True)
        assert cache.features().shape == (20, 32)
        assert datasets(out) == before
    run(table, out, tiny, overwrite=True, wait=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.h5"]


def test_a_cache_that_is_replaced_while_it_is_opened_is_the_old_one_or_the_new(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never the identity of one file with the features of the other."""
    texts = [text for text, _ in tiny_rows(20)]
    run(texts, tmp_path / "c.h5", tiny)
    new, _ = run(texts, tmp_path / "new.h5", tiny, prefix="a ")
    original, left = reader.read_layout, [tmp_path / "new.h5"]

    def meanwhile(path: Path, *more: Any) -> object:
        found = original(path, *more)
        if left:
            left.pop().rename(path)
        return found

    monkeypatch.setattr(reader, "read_layout", meanwhile)
    cache = reader.open_cache(tmp_path / "c.h5")
    assert cache.identity == new.identity and cache.identity.prefix == "a "
    assert (cache.features() == new.features()).all()


@pytest.fixture
def cache(tiny: Path, tmp_path: Path) -> Path:
    texts, labels = zip(*tiny_rows(100), strict=True)
    run({"text": list(texts), "label": list(labels)}, tmp_path / "cache.h5", tiny)
    return tmp_path / "cache.h5"


def test_so_do_stage_two_and_a_sweep(cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for stage in (train_head, sweep):
        with another_process(out) as process:
            with pytest.raises(BusyError, match=f"process {process.pid} on"):
                stage(cache, out)
            threading.Timer(0.5, process.kill).start()
            stage(cache, out, overwrite=True, wait=True)
        with another_process(out), pytest.raises(OutputExistsError):  # without waiting
            stage(cache, out, wait=True)
        shutil.rmtree(out)


def test_what_another_run_made_while_it_was_waited_for_is_not_replaced(cache: Path, tmp_path: Path) -> None:
    out, notes = tmp_path / "out", []

    def finish_another(event: object) -> None:
        notes.append(event)
        train_head(cache, tmp_path / "another")
        (tmp_path / "another").rename(out)
        assert process.stdin is not None
        process.stdin.close()

    with another_process(out) as process, pytest.raises(OutputExistsError, match="exists already"):
        train_head(cache, out, wait=True, report=finish_another)
    assert len(notes) == 1


@pytest.mark.parametrize("content", [b"", b"[packages]", b'{"host": "here", "process": 1, "since": "2020"}'])
def test_a_file_that_headstart_did_not_make_is_locked_and_left_as_it_is(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "out.h5.headstart-lock"
    path.write_bytes(content)
    with hold(tmp_path / "out.h5"):
        with pytest.raises(BusyError), hold(tmp_path / "out.h5"):
            pass
        assert path.read_bytes() == content
    assert path.read_bytes() == content


def test_a_link_or_a_folder_in_the_place_of_a_lock_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    (tmp_path / "a.headstart-lock").symlink_to(tmp_path / "thesis.txt")
    (tmp_path / "b.headstart-lock").symlink_to(tmp_path / "nowhere")
    (tmp_path / "c.headstart-lock").mkdir()
    for name in "abc":
        with pytest.raises(OutputExistsError, match=f"{name}.headstart-lock is in the way"), hold(tmp_path / name):
            pass
    assert (tmp_path / "thesis.txt").read_text() == "mine" and not (tmp_path / "nowhere").exists()
