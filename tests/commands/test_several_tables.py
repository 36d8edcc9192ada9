"""Several tables in one command: a cache of each, and what they share through the encoder once."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import headstart
import numpy as np
import pytest
from extracting import SMALL_BLOCKS, Notes, datasets, interrupted_after, noting, settings
from extracting import run_small_blocks as run
from headstart.cache.errors import OutputExistsError, SettingsError, TableError
from headstart.cache.reader import Cache, open_cache
from headstart.stages.encoders.encoder import Encoder
from headstart.stages.extract import extract_tables
from processes import command_here
from tiny import tiny_rows

ROWS = tiny_rows(60)
TABLES = {"train.csv": ROWS[:40], "validation.csv": ROWS[30:50], "test.csv": [*ROWS[45:], *ROWS[:5]]}


@pytest.fixture
def tables(write_csv: Callable[..., Path]) -> list[Path]:
    """Three tables that share some of their texts."""
    return [write_csv(rows, name) for name, rows in TABLES.items()]


def several(tables: list[Path], folder: Path, tiny: Path, **options: Any) -> tuple[list[Cache], Notes]:
    notes: Notes = []
    chosen = {name: options.pop(name) for name in ("update", "reuse", "overwrite") if name in options}
    paths = extract_tables(tables, folder, settings(tiny, **SMALL_BLOCKS, **options), report=noting(notes), **chosen)
    return [open_cache(path) for path in paths], notes


def test_each_table_has_its_cache_and_what_they_share_is_encoded_once(
    tiny: Path, tmp_path: Path, tables: list[Path], encoded: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[Encoder] = []
    original = Encoder.__init__

    def load(self: Encoder, *arguments: Any, **options: Any) -> None:
        loaded.append(self)
        original(self, *arguments, **options)

    monkeypatch.setattr(Encoder, "__init__", load)
    caches, _ = several(tables, tmp_path / "new" / "caches", tiny)
    assert len(loaded) == 1
    assert [cache.path for cache in caches] == [
        tmp_path / "new" / "caches" / name for name in ("train.h5", "validation.h5", "test.h5")
    ]
    assert len(encoded) == len({tuple(sequence) for sequence in encoded}) == len({text for text, _ in ROWS})
    assert [cache.record["reused_rows"] > 0 for cache in caches] == [False, True, True]
    for table, cache in zip(tables, caches, strict=True):
        cache.check()
        alone, _ = run(table, tmp_path / f"{table.stem}.h5", tiny)
        np.testing.assert_allclose(cache.features(), alone.features(), atol=1e-5, rtol=0)
        exact = {n for n in datasets(alone.path) if "features" not in n and n != "checksums/blocks"}
        ours, theirs = datasets(cache.path), datasets(alone.path)
        assert {name: ours[name] for name in exact} == {name: theirs[name] for name in exact}


def test_a_current_cache_is_left_alone_and_still_gives_its_rows(
    tiny: Path, tmp_path: Path, tables: list[Path], encoded: list[list[int]], write_csv: Callable[..., Path]
) -> None:
    several(tables[:1], tmp_path, tiny)
    before = (tmp_path / "train.h5").read_bytes()
    encoded.clear()
    _, notes = several(tables, tmp_path, tiny)
    assert "train.h5 is current" in notes[0] and len(notes) == 1
    assert (tmp_path / "train.h5").read_bytes() == before
    assert len(encoded) == len({text for text, _ in ROWS} - {text for text, _ in TABLES["train.csv"]})
    encoded.clear()
    _, notes = several(tables, tmp_path, tiny)
    assert len(notes) == 3 and encoded == []
    grown = write_csv([*TABLES["test.csv"], ("a new day", "class0")], "test.csv")
    with pytest.raises(OutputExistsError, match=r"test.h5 holds something else"):
        several([*tables[:2], grown], tmp_path, tiny)
    _, notes = several([*tables[:2], grown], tmp_path, tiny, update=True)
    assert len(notes) == 2 and len(encoded) == 1


def test_other_caches_give_rows_to_all_of_them(
    tiny: Path, tmp_path: Path, tables: list[Path], encoded: list[list[int]], write_csv: Callable[..., Path]
) -> None:
    run(write_csv(ROWS, "all.csv"), tmp_path / "all.h5", tiny)
    encoded.clear()
    caches, _ = several(tables, tmp_path / "caches", tiny, reuse=[tmp_path / "all.h5"])
    assert encoded == []
    assert [cache.record["reused_rows"] for cache in caches] == [len(rows) for rows in TABLES.values()]


def test_an_interrupted_run_is_carried_on_to_the_same_bytes(tiny: Path, tmp_path: Path, tables: list[Path]) -> None:
    several(tables, tmp_path / "whole", tiny)
    with interrupted_after(9), pytest.raises(KeyboardInterrupt):
        several(tables, tmp_path / "caches", tiny)
    assert (tmp_path / "caches" / "train.h5").exists()
    assert not (tmp_path / "caches" / "test.h5").exists()
    several(tables, tmp_path / "caches", tiny)
    for name in ("train.h5", "validation.h5", "test.h5"):
        assert datasets(tmp_path / "caches" / name) == datasets(tmp_path / "whole" / name)
    assert len(list((tmp_path / "caches").iterdir())) == 3


def test_names_that_clash_and_a_file_in_the_folders_place_are_refused(
    tiny: Path, tmp_path: Path, tables: list[Path], write_csv: Callable[..., Path]
) -> None:
    (tmp_path / "other").mkdir()
    twin = write_csv(ROWS, "other/train.csv")
    with pytest.raises(OutputExistsError, match=r"two tables would both be written to .*train.h5; rename one"):
        several([*tables, twin], tmp_path / "caches", tiny)
    assert not (tmp_path / "caches").exists()
    with pytest.raises(OutputExistsError, match="is a file; several tables go into a folder"):
        several(tables, tables[0], tiny)
    with pytest.raises(SettingsError, match="choose one of them"):
        several(tables, tmp_path / "caches", tiny, update=True, overwrite=True)


def test_a_bad_table_leaves_the_caches_before_it(
    tiny: Path, tmp_path: Path, tables: list[Path], write_csv: Callable[..., Path]
) -> None:
    write_csv([*[("good film", "x")] * 9000, ("good film", "")], "validation.csv")
    with pytest.raises(TableError, match=r"validation.csv, row 9,001: its label"):
        several(tables, tmp_path / "caches", tiny)
    assert [path.name for path in (tmp_path / "caches").iterdir()] == ["train.h5"]


def test_a_mistake_in_the_header_of_the_last_table_is_found_before_anything_is_encoded(
    tiny: Path, tmp_path: Path, tables: list[Path], write_csv: Callable[..., Path], encoded: list[list[int]]
) -> None:
    write_csv([("good film", "x")], tables[-1].name, header=("body", "label"))
    with pytest.raises(TableError, match=rf"{tables[-1].name} has no column 'text'"):
        several(tables, tmp_path / "caches", tiny)
    assert encoded == [] and list((tmp_path / "caches").iterdir()) == []


def test_a_table_that_is_nowhere_is_said_before_anything_is_encoded(
    tiny: Path, tmp_path: Path, tables: list[Path], encoded: list[list[int]]
) -> None:
    with pytest.raises(TableError, match=r"typo.csv does not exist"):
        several([*tables, tmp_path / "typo.csv"], tmp_path / "caches", tiny)
    assert encoded == [] and list((tmp_path / "caches").iterdir()) == []


def test_a_name_keeps_its_dots(tiny: Path, tmp_path: Path, write_csv: Callable[..., Path]) -> None:
    tables = [write_csv(ROWS[:9], f"reviews.{year}.csv") for year in (2023, 2024)]
    caches, _ = several(tables, tmp_path / "caches", tiny)
    assert [cache.path.name for cache in caches] == ["reviews.2023.h5", "reviews.2024.h5"]


def test_the_command(tiny: Path, tmp_path: Path, tables: list[Path]) -> None:
    options = ["--encoder", tiny, "--precision", "float32", "--out", tmp_path / "caches"]
    done = command_here("extract", *tables, *options)
    assert done.returncode == 0, done.stderr
    shown = [line for line in done.stdout.splitlines() if not line.startswith(" ")]
    assert [Path(line).name for line in shown[:-1]] == ["train.h5", "validation.h5", "test.h5"]
    assert shown[-1].startswith("Encoder passes: ")
    assert len(re.findall(r"reused +\d+ rows were copied from other caches", done.stdout)) == 2
    again = command_here("extract", *tables, *options)
    assert again.returncode == 0 and again.stderr.count("is current") == 3
    assert re.fullmatch(r"Encoder passes: 0 done, 80 saved, [^\n]*\n", again.stdout), again.stdout


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--update", "--overwrite"], 2, "choose one of them"),
        (["--reuse", "nowhere.h5"], 2, "nowhere.h5 does not exist"),
        (["--out", "train.csv"], 2, "is a file; several tables go into a folder"),
    ],
)
def test_a_users_mistake_is_one_line(
    tiny: Path, tmp_path: Path, tables: list[Path], options: list[str], code: int, message: str
) -> None:
    given = [str(tmp_path / option) if "." in option else option for option in options]
    given = given if "--out" in given else [*given, "--out", str(tmp_path / "caches")]
    done = command_here("extract", *tables, "--encoder", tiny, *given)
    assert (done.returncode, done.stdout) == (code, "")
    assert re.fullmatch(f"headstart: .*{message}.*\n", done.stderr), done.stderr


def test_the_package_offers_it() -> None:
    assert headstart.extract_tables is extract_tables
