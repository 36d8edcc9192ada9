"""A cache that another program writes over, or cuts short, while it is read: one line, and no output made of it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from extracting import run_small_blocks
from headstart.cache import writer
from headstart.cache.errors import DamagedError
from headstart.stages.extraction import encode_table
from processes import finish, fresh_command, write_over
from tiny import tiny_rows

NO_LOCKS = """
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <dlfcn.h>
int flock(int descriptor, int operation) { errno = atoi(getenv("LOCK_ERRNO")); return -1; }
int fcntl(int descriptor, int command, ...) {
    va_list list; va_start(list, command); void *argument = va_arg(list, void *); va_end(list);
    if (command == F_SETLK || command == F_SETLKW || command == F_GETLK) return flock(descriptor, 0);
    return ((int (*)(int, int, ...)) dlsym(RTLD_NEXT, "fcntl"))(descriptor, command, argument);
}
"""


@pytest.fixture(scope="module")
def made(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two caches of equal length, with features of another prefix; larger than a page of memory."""
    texts, labels = zip(*tiny_rows(2000), strict=True)
    table, folder = {"text": list(texts), "label": list(labels)}, tmp_path_factory.mktemp("made")
    return tuple(run_small_blocks(table, folder / f"{p}.h5", tiny, prefix=p)[0].path for p in "ab")  # type: ignore[return-value]


@pytest.fixture
def caches(made: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """Copies of them, to write over."""
    return shutil.copy(made[0], tmp_path / "a.h5"), shutil.copy(made[1], tmp_path / "b.h5")


@pytest.mark.parametrize("command", ["train-head", "sweep"])
@pytest.mark.parametrize("how", ["cut short", "written over"])
def test_training_on_it_ends_with_one_line(caches: tuple[Path, Path], tmp_path: Path, command: str, how: str) -> None:
    cache, other = caches
    arguments = [command, cache, "--solver", "sgd", "--epochs", "2", "--quiet", "--out", tmp_path / "run"]
    changed = partial(write_over, cache, other if how == "written over" else None)
    code, said = finish(arguments, tmp_path / "log", changed)
    assert (code, said.count("\n")) == (1, 1), said
    assert re.match(r"headstart: .*(written over|cut short).* while it was read", said)
    assert not (tmp_path / "run").exists()


def test_rows_of_it_are_not_reused(
    tiny: Path, caches: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, other = caches
    table = {"text": [*[text for text, _ in tiny_rows(2000)][:50], "a new one"]}
    original = encode_table.by_cache

    def by_cache(*arguments: Any) -> Any:
        cache.write_bytes(other.read_bytes())
        return original(*arguments)

    monkeypatch.setattr(encode_table, "by_cache", by_cache)
    with pytest.raises(DamagedError, match=r"a\.h5 was written over while it was read"):
        run_small_blocks(table, tmp_path / "new.h5", tiny, prefix="a", label_column=None, reuse=[cache])
    assert not (tmp_path / "new.h5").exists()


def test_no_copy_is_made_of_it(
    tiny: Path, caches: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, other = caches
    create = writer.create_cache

    def create_cache(*arguments: Any, **options: Any) -> None:
        create(*arguments, **options)
        cache.write_bytes(other.read_bytes())

    monkeypatch.setattr(writer, "create_cache", create_cache)
    texts, labels = zip(*tiny_rows(2000), strict=True)
    with pytest.raises(DamagedError, match=r"was written over while it was read|blocks are damaged"):
        run_small_blocks({"text": list(texts), "label": [f"no {label}" for label in labels]}, cache, tiny, prefix="a")
    assert cache.read_bytes() == other.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.h5", "b.h5"]


def test_a_cache_that_is_replaced_as_a_whole_is_read_to_its_end(caches: tuple[Path, Path], tmp_path: Path) -> None:
    from headstart.cache.reader import open_cache

    cache, other = caches
    opened = open_cache(cache)
    other.replace(cache)
    opened.require_unchanged()
    os.utime(cache, ns=(0, 0))
    opened.require_unchanged()
    opened = open_cache(cache)
    shutil.copy(cache, tmp_path / "copy.h5")
    opened.require_unchanged()
    shutil.copy(tmp_path / "copy.h5", cache)
    with pytest.raises(DamagedError, match="was written over"):
        opened.require_unchanged()


@pytest.mark.skipif(shutil.which("gcc") is None, reason="a compiler makes the file system without locks")
def test_a_file_system_without_locks_is_written(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "nolock.c").write_text(NO_LOCKS)
    library = tmp_path / "nolock.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, tmp_path / "nolock.c", "-ldl"], check=True)
    (tmp_path / "t.csv").write_text("text,label\nhello,a\nworld,b\n")
    environment = {**os.environ, "LD_PRELOAD": str(library), "LOCK_ERRNO": "37"}
    out = tmp_path / "out" / "c.h5"
    out.parent.mkdir()
    done = fresh_command("extract", tmp_path / "t.csv", "--encoder", tiny, "--out", out, env=environment)
    assert done.returncode == 0, done.stderr
    assert "has no locks" in done.stderr and list(out.parent.iterdir()) == [out]
