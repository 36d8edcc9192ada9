"""Repair: what is damaged is encoded again, and nothing else changes."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from extracting import Notes, datasets, flip_a_byte, settings
from extracting import run_small_blocks as run
from headstart.cache.errors import DamagedError, EncoderError, FormatError, IdentityError, TableError
from headstart.cache.reader import open_cache
from headstart.cache.writer import CacheWriter
from headstart.stages.encoders.session import EncoderSession
from headstart.stages.progress import Action, Event, Note, Outcome
from headstart.stages.repair import repair
from headstart.stages.verify import verify
from processes import fault_at, finish
from tiny import save_tiny_encoder, tiny_rows


@pytest.fixture
def table(write_csv: Callable[..., Path]) -> Path:
    """60 rows: 8 blocks."""
    return write_csv(tiny_rows(60))


@pytest.fixture
def cache(table: Path, tiny: Path, tmp_path: Path) -> Path:
    """Of two features, and of texts with a prefix."""
    return run(table, tmp_path / "c.h5", tiny, features=("cls", "mean"), prefix="the ", max_length=9)[0].path


def repaired(cache: Path, table: Any, action: Action = Action.REPAIRED, **options: Any) -> Notes:
    """Repair, and return the notes; the outcome is the last event."""
    events: list[Event] = []
    assert repair(cache, table, report=events.append, **options) == cache
    outcomes = [event for event in events if isinstance(event, Outcome)]
    assert outcomes == events[-1:] and (outcomes[0].action, outcomes[0].output) == (action, cache)
    record = open_cache(cache).record
    assert outcomes[0].counts["sequences_encoded"] in (0, record["sequences_encoded"])
    return [event.text for event in events if isinstance(event, Note)]


def test_row_numbers_are_repaired_from_the_table(tiny: Path, write_csv: Callable[..., Path], tmp_path: Path) -> None:
    rows = tiny_rows(60)
    rows[3:5] = [("", "class0")] * 2
    table = write_csv(rows)
    cache = run(table, tmp_path / "c.h5", tiny, skip_bad_rows=True)[0].path
    whole = datasets(cache)
    for damage in (["rows"], ["checksums/rows", "features/cls"]):
        for name in damage:
            flip_a_byte(cache, name, 6)
        assert any("row numbers" in finding.what for finding in verify(cache).findings)
        repaired(cache, table, settings=settings(tiny, skip_bad_rows=True))
        assert datasets(cache) == whole and not verify(cache).findings
    flip_a_byte(cache, "rows", 6)
    moved = write_csv([rows[0], *rows[3:5], *rows[1:3], *rows[5:]])
    with pytest.raises(TableError, match="its damage cannot be told from other row numbers, in rows 1 to 8"):
        repair(cache, moved, settings=settings(tiny, skip_bad_rows=True))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ([("features/cls", 5)], "1 of 8 blocks are damaged"),
        ([("features/mean", 5), ("features/cls", 6), ("lengths", 17), ("hashes/tokens", 59)], "3 of 8 blocks"),
        ([("checksums/blocks", 2), ("cut", 40)], "2 of 8 blocks are damaged"),
        ([("hashes/text", 3), ("labels", 30), ("checksums/labels", 7)], "nothing to encode"),
        ([("features/cls", 5), ("labels", 5), ("hashes/text", 12)], "1 of 8 blocks are damaged"),
    ],
)
def test_a_repaired_cache_has_the_bytes_of_an_undamaged_one(
    cache: Path, table: Path, damage: list[tuple[str, int]], says: str
) -> None:
    before = datasets(cache)
    for dataset, row in damage:
        flip_a_byte(cache, dataset, row)
    assert open_cache(cache).damaged_blocks()
    (note,) = repaired(cache, table)
    assert says in note
    open_cache(cache).check()
    assert datasets(cache) == before
    assert [file.name for file in cache.parent.iterdir() if file.name.startswith("c.h5")] == ["c.h5"]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_value_that_is_not_finite_is_found_and_repaired_although_its_checksum_holds(
    cache: Path, table: Path, value: float
) -> None:
    before, opened = datasets(cache), open_cache(cache)
    with CacheWriter(cache) as writer:
        rows = slice(16, 24)
        features = {name: np.array(opened.features(name)[rows]) for name in opened.layout.widths}
        features["mean"][3, 7] = value
        writer.write_block(2, features=features, **opened.row_metadata(rows))
    with pytest.raises(DamagedError, match=r"rows 17 to 24 \(the feature 'mean' of row 20 is not finite\)"):
        open_cache(cache).check()
    repaired(cache, table)
    open_cache(cache).check()
    assert datasets(cache) == before


def test_large_values_whose_sum_overflows_are_finite(cache: Path) -> None:
    opened = open_cache(cache)
    with CacheWriter(cache) as writer:
        features = {name: np.full((8, width), 3e38, np.float32) for name, width in opened.layout.widths.items()}
        writer.write_block(2, features=features, **opened.row_metadata(slice(16, 24)))
    open_cache(cache).check()


def test_what_is_whole_is_not_encoded_again(cache: Path, table: Path, encoded: list[list[int]]) -> None:
    sequences = open_cache(cache).record["sequences_encoded"]
    encoded.clear()
    flip_a_byte(cache, "features/cls", 5)
    repaired(cache, table)
    assert 0 < len(encoded) < sequences / 2
    record = open_cache(cache).record
    assert (record["kept_blocks"], record["sequences_encoded"]) == (7, len(encoded))


def test_a_whole_cache_is_left_alone(cache: Path, table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = cache.read_bytes()
    monkeypatch.setattr(EncoderSession, "__init__", None)
    assert "is whole: all 8 blocks hold; nothing to repair" in repaired(cache, table, Action.CURRENT)[0]
    assert cache.read_bytes() == before


def test_rows_that_came_from_another_cache_agree_to_rounding(
    tiny: Path, table: Path, tmp_path: Path, write_csv: Callable[..., Path]
) -> None:
    run(write_csv(tiny_rows(60)[::-1], "reversed.csv"), tmp_path / "reversed.h5", tiny)
    cache, _ = run(table, tmp_path / "c.h5", tiny, reuse=[tmp_path / "reversed.h5"])
    assert cache.record["sequences_encoded"] == 0
    before = np.array(cache.features())
    flip_a_byte(cache.path, "features/cls", 20)
    repaired(cache.path, table)
    found = open_cache(cache.path)
    found.check()
    np.testing.assert_allclose(found.features(), before, atol=1e-5)
    np.testing.assert_array_equal(np.delete(found.features(), slice(16, 24), 0), np.delete(before, slice(16, 24), 0))


def test_another_table_is_refused(cache: Path, tiny: Path, write_csv: Callable[..., Path]) -> None:
    """Of other rows, of other labels, or with another text where the damage is, and where it is not."""
    flip_a_byte(cache, "features/cls", 20)
    before, rows = cache.read_bytes(), tiny_rows(60)
    for row in (3, 20):
        changed = [*rows[:row], ("another text", rows[row][1]), *rows[row + 1 :]]
        with pytest.raises(TableError, match=r"other texts, in rows (1 to 8|17 to 24); extracting with `update=True`"):
            repair(cache, write_csv(changed))
    other = {"class0": "class1", "class1": "class0"}
    with pytest.raises(TableError, match="other labels, in rows 1 to 8"):
        repair(cache, write_csv([(rows[0][0], other[rows[0][1]]), *rows[1:]]))
    with pytest.raises(TableError, match="has other labels; check `label_column`"):
        repair(cache, write_csv([(text, f"{label}!") for text, label in rows]))
    with pytest.raises(TableError, match="it has 59 rows, the cache 60"):
        repair(cache, write_csv(rows[:59]))
    assert cache.read_bytes() == before


def test_the_encoder_must_be_the_same(tiny: Path, table: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(tiny, moved)
    cache = run(table, tmp_path / "c.h5", moved)[0].path
    before = datasets(cache)
    flip_a_byte(cache, "features/cls", 20)
    moved.rename(tmp_path / "elsewhere")
    with pytest.raises(EncoderError, match=r"pass its folder|is not a folder"):
        repair(cache, table)
    with pytest.raises(IdentityError, match=r"made with: they differ in weights_sha256 .*`encoder`"):
        repair(cache, table, encoder=str(save_tiny_encoder(tmp_path / "other", seed=1)))
    repaired(cache, table, encoder=str(tmp_path / "elsewhere"))
    assert datasets(cache) == before


@pytest.mark.parametrize("document", ["identity", "plan", "record", "label_names"])
def test_documents_are_beyond_repair(cache: Path, table: Path, document: str) -> None:
    flip_a_byte(cache, f"checksums/{document}", 0)
    with pytest.raises(DamagedError, match=f"beyond repair, .*again with `overwrite=True`: .*{document}"):
        repair(cache, table)


def test_what_is_no_cache_is_refused_and_nothing_is_put_beside_it(table: Path, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="does not exist"):
        repair(tmp_path / "nowhere" / "c.h5", table)
    with pytest.raises(FormatError, match="not a headstart cache"):
        repair(table, table)
    assert sorted(tmp_path.iterdir()) == [table]


def test_a_kill_in_a_repair_leaves_the_cache_to_be_repaired(cache: Path, table: Path, tmp_path: Path) -> None:
    whole = datasets(cache)
    flip_a_byte(cache, "features/cls", 20)
    before, command = cache.read_bytes(), ["repair", cache, table]
    for point, call, when in [("fsync", 2, "before"), ("write", 40, "inside"), ("replace", 1, "before")]:
        code, _ = finish(command, tmp_path / "log", partial(fault_at, point, call, when))
        assert code == -signal.SIGKILL and cache.read_bytes() == before
    code, said = finish(command, tmp_path / "log")
    assert code == 0 and "1 of 8 blocks are damaged, and are encoded again" in said
    assert datasets(cache) == whole
    assert not [file for file in tmp_path.iterdir() if file.name.startswith("c.h5.")]
    code, said = finish(command, tmp_path / "log")
    assert code == 0 and "nothing to repair" in said
