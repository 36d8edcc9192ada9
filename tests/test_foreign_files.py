"""No command removes, changes or writes through a file that headstart did not make, beside its output or inside it."""

from __future__ import annotations

import csv
import functools
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from extracting import flip_a_byte, run_small_blocks
from headstart.cache.errors import HeadstartError
from headstart.stages import speedup as measuring
from headstart.stages.predict import predict_table
from headstart.stages.repair import repair
from headstart.stages.settings import SpeedupSettings, SweepSettings, TrainSettings
from headstart.stages.sweep import sweep
from headstart.stages.train_head import train_head
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tiny import tiny_rows

OURS = ["{}.headstart-" + word for word in ("partial", "work", "lock", "earlier1", "earlier2")]
OLD = ["{}." + word for word in ("partial", "new", "lock", "earlier1", "relabelled", "repaired", "partial.new", "old")]
LIKE = [".{}.old", "{}.headstart-new", "{}.headstart-partial.headstart-work", "{}~", ".{}.swp", ".{}.headstart-work"]
INSIDE = ["notes.txt", "run.json.bak", "new", "old", "groups", "plan.json", "made-by-headstart", "winner", "events.out"]
EPOCHS = TrainSettings(solver="sgd", epochs=2, test_fraction=0.2)
Command = Callable[[Path], Any]


@pytest.fixture(scope="module")
def made(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tables, a cache of the first, a damaged copy of it, a run and a sweep."""
    folder = tmp_path_factory.mktemp("made")
    for name, count in (("table.csv", 30), ("longer.csv", 36)):
        with (folder / name).open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *tiny_rows(count)])
    run_small_blocks(folder / "table.csv", folder / "c.h5", tiny)
    shutil.copy(folder / "c.h5", folder / "damaged.h5")
    flip_a_byte(folder / "damaged.h5", "features/cls", 9)
    train_head(folder / "c.h5", folder / "run", EPOCHS)
    sweep(folder / "c.h5", folder / "swept", SweepSettings(base=EPOCHS, values={"learning_rate": (0.1, 0.01)}))
    return folder


def commands(made: Path, tiny: Path, overwrite: bool) -> dict[str, tuple[str, str | None, Command]]:
    """What is run: the output's name, what lies there before, and the call."""
    cache, swept = made / "c.h5", SweepSettings(base=EPOCHS, values={"learning_rate": (0.1, 0.01)})
    measured = SpeedupSettings(encoder=str(tiny))
    extract = functools.partial(run_small_blocks, encoder=tiny)
    there = ("run", "swept") if overwrite else (None, None)
    return {
        "extract": ("c.h5", None, lambda out: extract(made / "table.csv", out, overwrite=overwrite)),
        "update": ("c.h5", "c.h5", lambda out: extract(made / "longer.csv", out, update=True)),
        "overwrite": ("c.h5", "c.h5", lambda out: extract(made / "longer.csv", out, overwrite=True)),
        "repair": ("c.h5", "damaged.h5", lambda out: repair(out, made / "table.csv")),
        "train-head": ("poetry", there[0], lambda out: train_head(cache, out, EPOCHS, overwrite=overwrite)),
        "sweep": ("runs", there[1], lambda out: sweep(cache, out, swept, overwrite=overwrite)),
        "predict": (
            "p.csv",
            "table.csv" if overwrite else None,
            lambda out: predict_table(made / "run", made / "longer.csv", out, overwrite=overwrite),
        ),
        "speedup": ("report", None, lambda out: measuring.speedup(made / "table.csv", out, measured)),
    }


def seen(path: Path) -> Any:
    """What a path is: a link's target and content, a folder's contents, or a file's bytes."""
    if path.is_symlink():
        return "link", path.readlink(), path.read_bytes() if path.is_file() else None
    if path.is_dir():
        return {child.name: seen(child) for child in path.iterdir()}
    return path.read_bytes() if path.exists() else None


def plant(path: Path, kind: str, content: bytes, victim: Path) -> None:
    """Make something of a user's."""
    if kind == "link":
        path.symlink_to(victim)
    elif kind == "dangling link":
        path.symlink_to(victim.with_name("nowhere"))
    elif kind == "folder":
        path.mkdir()
        (path / "new").write_bytes(content)
    else:
        path.write_bytes(content)


names = st.one_of(
    st.sampled_from(OURS),
    st.sampled_from(OLD + LIKE),
    st.text("abcdefghijklmnop.-_{}~", min_size=1, max_size=9).filter(lambda name: name not in (".", "..")),
)
kinds = st.sampled_from(["file", "link", "dangling link", "folder"])
contents = st.one_of(
    st.binary(max_size=40), st.sampled_from([b'{"format": "headstart-run"}', b"[]", b'{"settings": 1}'])
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    command=st.sampled_from(["extract", "update", "overwrite", "repair", "train-head", "sweep", "predict", "speedup"]),
    overwrite=st.booleans(),
    beside=st.lists(st.tuples(names, kinds, contents), max_size=2, unique_by=lambda drawn: drawn[0]),
    inside=st.lists(st.tuples(st.sampled_from(INSIDE), kinds, contents), max_size=1),
)
@example("train-head", False, [("{}.lock", "file", b"poetry's")], [])
@example("predict", False, [("{}.partial", "link", b"")], [])
@example("predict", True, [("{}.headstart-work", "link", b"")], [])
@example("sweep", True, [("{}.partial", "folder", b"mine"), (".{}.old", "folder", b"mine")], [])
@example("train-head", True, [], [("notes.txt", "file", b"mine")])
def test_what_headstart_did_not_make_survives_every_command(
    made: Path,
    tiny: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    overwrite: bool,
    beside: list[tuple[str, str, bytes]],
    inside: list[tuple[str, str, bytes]],
) -> None:
    monkeypatch.setattr(measuring, "_measure", lambda *_: {})
    monkeypatch.setattr(measuring, "markdown", lambda _: "")
    monkeypatch.setattr(measuring, "draw", lambda *_: False)
    output, before, call = commands(made, tiny, overwrite)[command]
    with tempfile.TemporaryDirectory() as name:
        folder, elsewhere = Path(name, "here"), Path(name, "elsewhere")
        folder.mkdir()
        elsewhere.mkdir()
        victim, out = elsewhere / "thesis.txt", folder / output
        victim.write_text("mine")
        if before is not None:
            (shutil.copytree if (made / before).is_dir() else shutil.copy)(made / before, out)
        planted = {folder / spelling.replace("{}", output): drawn for spelling, *drawn in beside}
        if out.is_dir():
            planted |= {out / name: drawn for name, *drawn in inside if not (out / name).exists()}
        planted = {path: drawn for path, drawn in planted.items() if path != out and path.name not in ("", ".", "..")}
        for path, (kind, content) in planted.items():
            plant(path, kind, content, victim)
        theirs = {path: seen(path) for path in planted}
        was = seen(out)
        try:
            call(out)
            refused = False
        except HeadstartError as error:
            refused = True
            assert any(str(path) in str(error) for path in planted), error
            assert seen(out) == was or command == "extract"
        assert {path: seen(path) for path in planted} == theirs
        assert victim.read_text() == "mine" and [path.name for path in elsewhere.iterdir()] == ["thesis.txt"]
        foreign_work = any(path.name in [our.format(output) for our in OURS] for path in planted)
        in_the_way = foreign_work or any(path.parent == out for path in planted)
        assert in_the_way or not refused
        if not refused:
            assert set(folder.iterdir()) == {out, *(path for path in planted if path.parent == folder)}
