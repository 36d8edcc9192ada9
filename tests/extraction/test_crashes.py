"""Kills, power cuts and failing disks: nothing finished is lost, and the next run ends at the same bytes."""

from __future__ import annotations

import os
import re
import shutil
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from extracting import datasets, holding, interrupted_after
from extracting import run_small_blocks as run
from headstart.cache.reader import open_cache
from powercut import after_a_cut, carry_on_after_cuts, recorded
from processes import (
    Stuttering,
    blocks_of,
    fault_at,
    finish,
    limit_file_size,
    lose_an_interrupt,
    obey_permissions,
    open_as,
    start,
)
from tiny import tiny_rows

EIGHT = partial(blocks_of, 8)
Rows = list[tuple[str, str]]


@pytest.fixture
def table(write_csv: Callable[..., Path]) -> Path:
    """A table of 60 rows: 8 blocks of 8."""
    return write_csv(tiny_rows(60))


@pytest.fixture
def command(table: Path, tiny: Path) -> list[str | Path]:
    """What extracts it, up to the output's name."""
    return ["extract", table, "--encoder", tiny, "--batch-tokens", "64", "--precision", "float32", "--out"]


@pytest.fixture
def whole(command: list[str | Path], tmp_path: Path) -> dict[str, bytes]:
    """What an undisturbed run writes."""
    out = tmp_path / "whole.h5"
    assert finish([*command, out], tmp_path / "log", EIGHT)[0] == 0
    return datasets(out)


SYNCS = [("posix_fallocate", 1), *(("fsync", call) for call in range(1, 6)), ("replace", 1), ("replace", 2)]
CHOSEN = [(point, call, "before" if (call + number) % 2 else "after") for number, (point, call) in enumerate(SYNCS)]
CHOSEN += [("write", call, "inside") for call in (6, 10, 29, 38, 60, 87, 89, 90)]
CHOSEN += [("write", call, "after") for call in (10, 38, 39, 89)]
"""The first 10 writes are of `create_cache`; then facts and blocks; the last two are the record and its checksum."""


def test_a_kill_at_any_chosen_point_loses_no_block_and_the_next_run_ends_at_the_same_bytes(
    command: list[str | Path], whole: dict[str, bytes], tmp_path: Path
) -> None:
    """At every sync and rename; inside and after writes of each kind. `make soak` does them all."""
    for number, (point, call, when) in enumerate(CHOSEN):
        out = tmp_path / f"{number}.h5"
        code, _ = finish([*command, out], tmp_path / "log", EIGHT, partial(fault_at, point, call, when))
        assert code == -signal.SIGKILL, (point, call, when)
        kept = holding(out)
        finished = out.exists()
        code, said = finish([*command, out], tmp_path / "log", EIGHT)
        assert code == 0, (point, call, when, said)
        assert datasets(out) == whole, (point, call, when)
        if kept:
            assert f"{len(kept)} of 8 blocks are done" in said
        assert finished == ("is current" in said)
        assert not [file.name for file in tmp_path.iterdir() if file.name.startswith(f"{number}.h5.")]


def test_a_kill_amid_long_texts_in_chunks_ends_at_the_same_bytes(command: list[str | Path], tmp_path: Path) -> None:
    """A text's chunks may lie in several batches; its vector is there with all of them, or not at all.

    At most 40 writes come before those of blocks, of which each takes 6.
    """
    log, chunks = tmp_path / "log", ["--long", "chunks", "--max-length", "8", "--overlap", "1"]
    assert finish([*command, tmp_path / "whole.h5", *chunks], log, EIGHT)[0] == 0
    whole = open_cache(tmp_path / "whole.h5")
    assert (whole.lengths > 8).any() and (whole.lengths <= 8).any()
    for call, blocks in ((50, 1), (60, 3), (87, 7)):
        out = tmp_path / f"{call}.h5"
        code, _ = finish([*command, out, *chunks], log, EIGHT, partial(fault_at, "write", call, "inside"))
        assert code == -signal.SIGKILL and len(kept := holding(out)) >= blocks
        code, said = finish([*command, out, *chunks], log, EIGHT)
        assert code == 0 and f"{len(kept)} of 8 blocks are done" in said
        assert datasets(out) == datasets(whole.path)


def test_kills_at_random_one_after_another(tiny: Path, tmp_path: Path, write_csv: Callable[..., Path]) -> None:
    """`make soak` does 200 of these, over one extraction."""
    table, out = write_csv(tiny_rows(10000)), tmp_path / "c.h5"
    command = ["extract", table, "--encoder", tiny, "--precision", "float32", "--batch-tokens", "256", "--out"]
    small = partial(blocks_of, 64)
    assert finish([*command, tmp_path / "whole.h5"], tmp_path / "log", small)[0] == 0
    rng, done = np.random.default_rng(0), set[int]()
    for _ in range(8):
        process = start([*command, out], tmp_path / "log", small)
        time.sleep(rng.uniform(0.2, 0.6))
        process.kill()
        process.join()
        said = re.search(r"(\d+) of 157 blocks are done", (tmp_path / "log").read_text())
        assert said is None or int(said[1]) == len(done)
        assert out.exists() or done <= holding(out)
        done = holding(out)
    assert finish([*command, out], tmp_path / "log", small)[0] == 0
    assert datasets(out) == datasets(tmp_path / "whole.h5")


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_say_what_is_kept(
    tiny: Path, tmp_path: Path, write_csv: Callable[..., Path], sign: int
) -> None:
    table, out = write_csv(tiny_rows(10000)), tmp_path / "c.h5"
    command = ["extract", table, "--encoder", tiny, "--precision", "float32", "--batch-tokens", "64", "--out", out]
    command += ["--features", "cls"]  # of which nothing is noted
    process = start(command, tmp_path / "log", partial(blocks_of, 64))
    while not holding(out) and process.is_alive():
        time.sleep(0.02)
    os.kill(process.pid or 0, sign)
    process.join()
    assert process.exitcode == 130
    (line,) = (tmp_path / "log").read_text().splitlines()
    assert line.startswith(("headstart: interrupted", "headstart: terminated")) and "the same command continues" in line
    kept = len(holding(out))
    assert f"{kept} of 157 blocks are done" in finish(command, tmp_path / "log", partial(blocks_of, 64))[1]


@pytest.mark.parametrize("how", ["callback", "error"])
@pytest.mark.parametrize("quiet", [[], ["--quiet"]], ids=["told", "quiet"])
def test_ctrl_c_ends_the_run_where_a_library_loses_its_exception(
    tiny: Path, tmp_path: Path, write_csv: Callable[..., Path], how: str, quiet: list[str | Path]
) -> None:
    command = ["extract", write_csv(tiny_rows(1000)), "--encoder", tiny, "--precision", "float32", *quiet]
    command += ["--batch-tokens", "64", "--out", tmp_path / "c.h5"]
    code, said = finish(command, tmp_path / "log", partial(blocks_of, 64), partial(lose_an_interrupt, how))
    assert code == 130
    assert said.splitlines()[-1].startswith("headstart: interrupted; finished blocks are kept")
    assert "Traceback" not in said and "Exception" not in said
    assert not (tmp_path / "c.h5").exists()
    assert finish(command, tmp_path / "log", partial(blocks_of, 64))[0] == 0


@pytest.mark.parametrize("begun", ["nothing", "half", "half with other labels"])
def test_a_power_cut_loses_no_synced_block_and_the_next_run_ends_at_the_same_bytes(
    tiny: Path, tmp_path: Path, write_csv: Callable[..., Path], begun: str
) -> None:
    rows = tiny_rows(60)
    table, folder = write_csv(rows), tmp_path / "out"
    folder.mkdir()
    if begun != "nothing":
        other = [(text, "another") for text, _ in rows] if "labels" in begun else rows
        with interrupted_after(9), pytest.raises(KeyboardInterrupt):
            run(write_csv(other, "other.csv"), folder / "c.h5", tiny)
    run(table, tmp_path / "whole.h5", tiny)
    kept = carry_on_after_cuts(table, folder, tiny, datasets(tmp_path / "whole.h5"), cuts=8, seed=0)
    assert begun == "nothing" or kept  # most cuts of a run that begins come before its first synced block


def test_a_power_cut_in_an_update_loses_no_synced_block(
    tiny: Path, tmp_path: Path, write_csv: Callable[..., Path]
) -> None:
    """Unfinished work on rows that moved is put aside, and taken over: it must not vanish on the way."""
    rows, rng, out = tiny_rows(60), np.random.default_rng(0), tmp_path / "out" / "c.h5"
    table = write_csv([("a new first row", "class0"), *rows], "longer.csv")
    for _ in range(8):
        shutil.rmtree(out.parent, ignore_errors=True)
        out.parent.mkdir()
        with interrupted_after(9), pytest.raises(KeyboardInterrupt):
            run(write_csv(rows), out, tiny)
        with recorded(out.parent) as events:
            run(table, out, tiny, update=True)
        after_a_cut(events[: rng.integers(1, len(events) + 1)], out.parent, rng)
        cache, _ = run(table, out, tiny, update=True)
        cache.check()
        assert cache.record["kept_blocks"] + cache.record["reused_rows"] > 0 or cache.record["tokens_encoded"] == 0


ERRORS = [("write", 10), ("write", 40), ("write", 89), ("fsync", 2), ("fsync", 4), ("replace", 1), ("replace", 2)]


def test_an_error_of_the_disk_is_one_line_and_damages_nothing(
    command: list[str | Path], whole: dict[str, bytes], tmp_path: Path
) -> None:
    for number, (point, call) in enumerate(ERRORS):
        out = tmp_path / f"{number}.h5"
        code, said = finish(
            [*command, out, "--quiet"], tmp_path / "log", EIGHT, partial(fault_at, point, call, "error")
        )
        assert code == 1, (point, call, said)
        assert re.fullmatch(r"headstart: cannot \S+ .*: Input/output error\n", said), (point, call)
        assert not out.exists()
        kept = holding(out)
        code, said = finish([*command, out], tmp_path / "log", EIGHT)
        assert code == 0 and datasets(out) == whole, (point, call, said)
        assert not kept or f"{len(kept)} of 8 blocks are done" in said


def test_writes_that_are_cut_short_are_gone_on_with(
    command: list[str | Path], whole: dict[str, bytes], tmp_path: Path
) -> None:
    assert finish([*command, tmp_path / "c.h5"], tmp_path / "log", EIGHT, partial(open_as, Stuttering))[0] == 0
    assert datasets(tmp_path / "c.h5") == whole


@pytest.mark.parametrize("size", [1000, 20000])
def test_a_limit_on_the_size_of_files_is_one_line(
    command: list[str | Path], whole: dict[str, bytes], tmp_path: Path, size: int
) -> None:
    """Of a new file, which is never begun, and of one that is carried on with."""
    out, limited = tmp_path / "c.h5", partial(limit_file_size, size)
    before = sorted(tmp_path.iterdir())
    code, said = finish([*command, out, "--quiet"], tmp_path / "log", EIGHT, limited)
    assert code == 1 and re.fullmatch(r"headstart: cannot create .* the limit for a file is .*\n", said)
    assert sorted(tmp_path.iterdir()) == before
    finish([*command, out], tmp_path / "log", EIGHT, partial(fault_at, "write", 60, "before"))
    kept = holding(out)
    code, said = finish([*command, out, "--quiet"], tmp_path / "log", EIGHT, limited)
    assert code == 1 and said.endswith(": File too large\n") and said.count("\n") == 1
    assert kept and kept <= holding(out)
    assert finish([*command, out], tmp_path / "log", EIGHT)[0] == 0
    assert datasets(out) == whole


def test_a_read_only_folder_is_one_line(command: list[str | Path], whole: dict[str, bytes], tmp_path: Path) -> None:
    """And a cache that is current there is none."""
    folder, log = tmp_path / "out", tmp_path / "log"
    folder.mkdir()
    (tmp_path / "whole.h5").rename(folder / "whole.h5")
    folder.chmod(0o555)
    code, said = finish([*command, folder / "c.h5", "--quiet"], log, EIGHT, obey_permissions)
    assert code == 1 and re.fullmatch(r"headstart: cannot .*: Permission denied\n", said), said
    code, said = finish([*command, folder / "whole.h5"], log, EIGHT, obey_permissions)
    assert code == 0 and "is current" in said
    assert [file.name for file in folder.iterdir()] == ["whole.h5"]
    folder.chmod(0o755)
