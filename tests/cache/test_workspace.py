"""What replaces an output: modes and links stay, killed runs are tidied up after, and nobody else's work is taken."""

from __future__ import annotations

import csv
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from extracting import flip_a_byte, run_small_blocks
from headstart.cache import workspace as module
from headstart.cache.errors import OutputExistsError, StorageError
from headstart.cache.workspace import MARK, exchange, replace_folder, workspace
from headstart.cache.writer import CacheWriter
from headstart.stages.predict import predict_table
from headstart.stages.repair import repair
from headstart.stages.settings import SweepSettings, TrainSettings
from headstart.stages.sweep import sweep
from headstart.stages.train_head import train_head
from tiny import tiny_rows

Call = Callable[[Path], Any]
QUICK = TrainSettings(solver="sgd", epochs=1)


@pytest.fixture(scope="module")
def made(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tables, a cache of the first, a damaged copy of it, a run and a sweep."""
    folder, rows = tmp_path_factory.mktemp("made"), tiny_rows(40)
    tables = {"table": rows, "longer": tiny_rows(44), "relabelled": [(text, f"other {label}") for text, label in rows]}
    for name, lines in tables.items():
        with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *lines])
    run_small_blocks(folder / "table.csv", folder / "c.h5", tiny)
    shutil.copy(folder / "c.h5", folder / "damaged.h5")
    flip_a_byte(folder / "damaged.h5", "features/cls", 9)
    train_head(folder / "c.h5", folder / "run", QUICK)
    sweep(folder / "c.h5", folder / "swept", SweepSettings(base=QUICK))
    return folder


def replacing(made: Path, tiny: Path) -> dict[str, tuple[str, Call]]:
    """Commands that replace an output: what they replace, and the call."""
    cache = made / "c.h5"
    return {
        "update": ("c.h5", lambda out: run_small_blocks(made / "longer.csv", out, tiny, update=True)),
        "overwrite": ("c.h5", lambda out: run_small_blocks(made / "longer.csv", out, tiny, overwrite=True)),
        "relabel": ("c.h5", lambda out: run_small_blocks(made / "relabelled.csv", out, tiny)),
        "repair": ("damaged.h5", lambda out: repair(out, made / "table.csv")),
        "predict": ("table.csv", lambda out: predict_table(made / "run", made / "longer.csv", out, overwrite=True)),
        "train-head": ("run", lambda out: train_head(cache, out, QUICK, overwrite=True)),
        "sweep": ("swept", lambda out: sweep(cache, out, SweepSettings(base=QUICK), overwrite=True)),
    }


@pytest.mark.parametrize("name", ["update", "overwrite", "relabel", "repair", "predict", "train-head", "sweep"])
def test_what_is_replaced_keeps_its_mode_and_a_link_to_it_stays(
    made: Path, tiny: Path, tmp_path: Path, name: str
) -> None:
    old, call = replacing(made, tiny)[name]
    target, link = tmp_path / "elsewhere" / old, tmp_path / f"link{Path(old).suffix}"
    target.parent.mkdir()
    (shutil.copytree if (made / old).is_dir() else shutil.copy)(made / old, target)
    link.symlink_to(Path("elsewhere") / old)
    private = {path: 0o700 if path.is_dir() else 0o600 for path in [target, *target.rglob("*")]}
    for path, mode in private.items():
        path.chmod(mode)
    before = target.stat().st_ino
    call(link)
    assert {path: stat.S_IMODE(path.stat().st_mode) for path in private} == private
    assert link.readlink() == Path("elsewhere") / old and target.stat().st_ino != before
    assert [path.name for path in tmp_path.iterdir() if path != link] == ["elsewhere"]
    assert list(target.parent.iterdir()) == [target]


def test_a_new_output_goes_where_a_link_points(made: Path, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    for name, call in (
        ("c.h5", lambda out: run_small_blocks(made / "table.csv", out, tiny)),
        ("run", lambda out: train_head(made / "c.h5", out, QUICK)),
        ("p.csv", lambda out: predict_table(made / "run", made / "table.csv", out)),
    ):
        link = tmp_path / name
        link.symlink_to(tmp_path / "elsewhere" / name)
        call(link)
        assert link.is_symlink() and (tmp_path / "elsewhere" / name).exists()
    assert len(list(tmp_path.iterdir())) == 4 and len(list((tmp_path / "elsewhere").iterdir())) == 3


def test_an_output_that_may_be_read_alone_is_updated(made: Path, tiny: Path, tmp_path: Path) -> None:
    shutil.copy(made / "c.h5", tmp_path / "c.h5")
    (tmp_path / "c.h5").chmod(0o444)
    run_small_blocks(made / "longer.csv", tmp_path / "c.h5", tiny, update=True)
    assert stat.S_IMODE((tmp_path / "c.h5").stat().st_mode) == 0o444


def test_an_owner_is_kept_where_the_system_lets_us(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "old").touch()
    (tmp_path / "new").touch()
    asked: list[tuple[int, int]] = []

    def chown(path: Path, owner: int, group: int) -> None:
        asked.append((owner, group))
        if owner != -1:
            raise PermissionError

    status = os.stat_result((0o100640, 0, 0, 1, 1234, 5678, 0, 0, 0, 0))
    original = Path.stat
    monkeypatch.setattr(Path, "stat", lambda self: status if self.name == "old" else original(self))
    monkeypatch.setattr(os, "chown", chown)
    module.keep_access(tmp_path / "old", tmp_path / "new")
    assert asked == [(1234, 5678), (-1, 5678)]
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640


def test_a_workspace_of_a_killed_run_goes_and_another_folder_stays(tmp_path: Path) -> None:
    work = tmp_path / "out.headstart-work"
    for files in ([], [MARK], [MARK, "new/run.json", "00001.json"]):
        work.mkdir()
        for file in files:
            (work / file).parent.mkdir(exist_ok=True)
            (work / file).touch()
        with workspace(tmp_path / "out") as folder:
            assert [path.name for path in folder.iterdir()] == [MARK]
        assert list(tmp_path.iterdir()) == []
    for kind in ("file", "folder", "link", "link as mark", "folder with a mark", "folder with a file for a mark"):
        if kind == "file":
            work.touch()
        elif kind == "link":
            work.symlink_to(tmp_path)
        else:
            work.mkdir()
            (work / "thesis.txt").touch()
            if kind == "link as mark":
                (work / MARK).symlink_to(work / "thesis.txt")
            elif kind == "folder with a mark":
                (work / MARK).touch()
            elif kind == "folder with a file for a mark":
                (work / "thesis.txt").rename(work / MARK).write_text("mine")
        there = sorted(tmp_path.rglob("*"))
        with pytest.raises(OutputExistsError, match=r"headstart-work(/thesis.txt)? is in the way"):
            workspace(tmp_path / "out").__enter__()
        assert sorted(tmp_path.rglob("*")) == there
        shutil.rmtree(work) if kind.startswith(("folder", "link as")) else work.unlink()


def test_what_is_put_into_a_workspace_meanwhile_stays(tmp_path: Path) -> None:
    with workspace(tmp_path / "out") as work:
        (work / "new").touch()
        (work / "thesis.txt").touch()
    assert [path.name for path in work.iterdir()] == ["thesis.txt"]


@pytest.mark.skipif(not hasattr(os, "seteuid") or os.geteuid() != 0, reason="root alone can be somebody else")
def test_a_workspace_goes_where_the_old_run_may_not_be_written(tmp_path: Path) -> None:
    for path in (tmp_path, *tmp_path.parents[:-2]):
        path.chmod(0o755)
    folder = tmp_path / "folder"
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    os.seteuid(65534)
    try:
        (folder / "out").mkdir()
        (folder / "out").chmod(0o555)
        with workspace(folder / "out") as work, pytest.raises(PermissionError):
            (work / "new").mkdir()
            (work / "new" / "run.json").touch()
            replace_folder(work / "new", folder / "out")
    finally:
        os.seteuid(0)
    assert [path.name for path in folder.iterdir()] == ["out"]


def test_an_unfinished_cache_with_two_names_is_not_written(made: Path, tiny: Path, tmp_path: Path) -> None:
    shutil.copy(made / "c.h5", tmp_path / "c.h5")
    (tmp_path / "new.h5.headstart-partial").hardlink_to(tmp_path / "c.h5")
    with pytest.raises(OutputExistsError, match=r"new\.h5\.headstart-partial has another name"):
        run_small_blocks(made / "table.csv", tmp_path / "new.h5", tiny)
    assert (tmp_path / "c.h5").read_bytes() == (made / "c.h5").read_bytes()


@pytest.mark.parametrize("length", [231, 300])
def test_a_name_that_leaves_no_room_for_work_files_is_refused(
    made: Path, tiny: Path, tmp_path: Path, length: int
) -> None:
    for name, (_, call) in replacing(made, tiny).items():
        if name != "repair":
            with pytest.raises(OutputExistsError, match="has more than 230 bytes"):
                call(tmp_path / ("o" * (length - 4) + ".csv"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("can_exchange", [True, False])
def test_an_old_folder_stays_where_the_new_one_cannot_take_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, can_exchange: bool
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").touch()
    original = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise OSError(28, "No space left on device")
        return original(self, target)

    def refuse(*_: Path) -> bool:
        if can_exchange:
            raise OSError(28, "No space left on device")
        return False

    monkeypatch.setattr(Path, "rename", rename)
    monkeypatch.setattr(module, "exchange", refuse)
    with workspace(out) as work, pytest.raises(OSError, match="No space left"):
        (work / "new").mkdir()
        replace_folder(work / "new", out)
    assert [path.name for path in out.iterdir()] == ["old"] and list(tmp_path.iterdir()) == [out]


@pytest.mark.skipif(not hasattr(os, "O_TMPFILE"), reason="Linux alone exchanges names")
def test_names_are_exchanged_in_one_step(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    assert exchange(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a" / "b").exists() and (tmp_path / "b" / "a").exists()
    with pytest.raises(FileNotFoundError):
        exchange(tmp_path / "a", tmp_path / "nowhere")


def test_what_appears_at_the_output_meanwhile_stays(
    made: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The unfinished cache stays too, so that nothing is encoded again once the file is out of the way."""
    finish, out = CacheWriter.finish, tmp_path / "c.h5"

    def appear(self: CacheWriter, record: Any, path: Path) -> None:
        out.write_text("mine")
        finish(self, record, path)

    with monkeypatch.context() as patch:
        patch.setattr(CacheWriter, "finish", appear)
        with pytest.raises(OutputExistsError, match=r"c\.h5 is in the way"):
            run_small_blocks(made / "table.csv", out, tiny)
    assert out.read_text() == "mine"
    out.unlink()
    cache, _ = run_small_blocks(made / "table.csv", out, tiny)
    assert cache.record["kept_blocks"] == cache.layout.blocks


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    refused = pytest.raises(StorageError, match=r"cannot write .*headstart-work: Permission denied")
    with refused, workspace(tmp_path / "out"):
        pass
