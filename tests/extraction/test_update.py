"""--update and --reuse: what was encoded once is not encoded again, and the old cache stands until the new one does."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from extracting import datasets, flip_a_byte, interrupted_after
from extracting import run_small_blocks as run
from headstart.cache.errors import (
    DamagedError,
    EncoderError,
    FormatError,
    IdentityError,
    OutputExistsError,
    SettingsError,
    StorageError,
)
from headstart.cache.reader import Cache, open_any
from headstart.cache.siblings import partial_path, superseded_paths
from headstart.cache.writer import CacheWriter
from headstart.stages.encoders.backend import Backend
from headstart.stages.encoders.encoder import Encoder, EncoderWork
from headstart.stages.encoders.session import EncoderSession
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from processes import blocks_of, finish, kill_at_batch
from tiny import save_tiny_encoder, tiny_rows

Table = list[tuple[str, str]]
COUNTS = (
    "rows",
    "skipped_rows",
    "distinct_texts",
    "conflicting_texts",
    "tokens",
    "truncated_rows",
    "distinct_sequences",
)
"""What a record says of the table, however its rows were come by."""


def numbered(count: int, start: int = 0) -> Table:
    """Rows of which no two are alike."""
    return [(f"good film {number:03}", f"class{number % 3}") for number in range(start, start + count)]


EDITS: dict[str, Callable[[Table], Table]] = {
    "grown": lambda rows: [*rows, *numbered(20, 500)],
    "grown in front": lambda rows: [*numbered(5, 500), *rows],
    "shrunk": lambda rows: rows[7:40],
    "reordered": lambda rows: rows[::-1],
    "edited": lambda rows: [(text + " broke", label) if at in (3, 30) else (text, label) for at, (text, label) in
                            enumerate(rows)],
    "copied": lambda rows: [*rows, *rows[10:30]],
    "replaced": lambda rows: numbered(len(rows), 500),
    "all at once": lambda rows: [*numbered(9, 500), *rows[40:20:-1], *numbered(4, 600), *rows[:10]],
}  # fmt: skip


def assert_is_update_of(cache: Cache, old: dict[str, Any], fresh: Cache, table: Table) -> None:
    """The cache is of the table's rows, in their order: the old rows bit for bit, all as an encoding of them gives."""
    cache.check()
    for name in cache.identity.features:
        np.testing.assert_allclose(cache.features(name), fresh.features(name), atol=1e-5, rtol=0)
    for name in ("text_hashes", "token_hashes", "lengths", "truncated"):
        np.testing.assert_array_equal(getattr(cache, name), getattr(fresh, name))
    assert (cache.labels is None) == (fresh.labels is None)
    assert cache.label_names == fresh.label_names == tuple(sorted({label for _, label in table}))
    assert cache.label_names is not None and cache.labels is not None
    assert [cache.label_names[number] for number in cache.labels] == [label for _, label in table]
    for number, (text, _) in enumerate(table):
        if text in old:
            np.testing.assert_array_equal(cache.features()[number], old[text])
    assert {name: cache.record[name] for name in COUNTS} == {name: fresh.record[name] for name in COUNTS}


def by_text(cache: Cache, table: Table) -> dict[str, Any]:
    features = np.array(cache.features())
    return {text: features[number] for number, (text, _) in enumerate(table)}


@pytest.mark.parametrize("edit", EDITS)
def test_an_update_encodes_only_what_is_new_and_is_otherwise_a_fresh_run(
    tiny: Path, tmp_path: Path, write_csv: Callable[..., Path], encoded: list[list[int]], edit: str
) -> None:
    rows = numbered(60)
    old = by_text(run(write_csv(rows), tmp_path / "c.h5", tiny)[0], rows)
    assert len(encoded) == 60
    encoded.clear()
    table = EDITS[edit](rows)
    cache, notes = run(write_csv(table), tmp_path / "c.h5", tiny, update=True)
    new = {text for text, _ in table} - set(old)
    assert len(encoded) == len(new) == cache.record["sequences_encoded"]
    assert cache.record["tokens_encoded"] == sum(map(len, encoded))
    assert cache.record["reused_rows"] == sum(text in old for text, _ in table)
    assert cache.record["kept_blocks"] == 0 and notes == []
    fresh, _ = run(write_csv(table), tmp_path / "fresh.h5", tiny)
    assert_is_update_of(cache, old, fresh, table)
    assert fresh.record["reused_rows"] == 0
    assert sorted(path.name for path in tmp_path.glob("c.h5*")) == ["c.h5"]
    assert "is current" in run(write_csv(table), tmp_path / "c.h5", tiny, update=True)[1][0]


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, 25), min_size=1, max_size=50), st.lists(st.integers(0, 40), min_size=1, max_size=50))
def test_any_update_is_a_fresh_run(
    tiny: Path, tmp_path: Path, encoded: list[list[int]], before: list[int], after: list[int]
) -> None:
    """Of random tables with many copies, of which every third text differs from another in its case alone."""
    tables = [
        [("GOOD film" * (n % 3 == 0) + f"good film {n - n % 3}" * (n % 3 > 0), f"class{n % 2}") for n in numbers]
        for numbers in (before, after)
    ]
    columns = [{"text": [t for t, _ in table], "label": [name for _, name in table]} for table in tables]
    for path in tmp_path.glob("*.h5"):
        path.unlink()
    first, _ = run(columns[0], tmp_path / "c.h5", tiny)
    old, sequences = by_text(first, tables[0]), {digest.tobytes() for digest in first.token_hashes}
    encoded.clear()
    cache, _ = run(columns[1], tmp_path / "c.h5", tiny, update=True)
    fresh_sequences = {digest.tobytes() for digest in cache.token_hashes} - sequences
    assert len(encoded) == len(fresh_sequences)
    fresh, _ = run(columns[1], tmp_path / "fresh.h5", tiny)
    assert_is_update_of(cache, old, fresh, tables[1])


@pytest.mark.parametrize(("most_bytes", "passes"), [(1 << 20, 1), (1, 5)])
def test_the_few_new_texts_of_many_windows_are_encoded_together(
    most_bytes: int,
    passes: int,
    tiny: Path,
    tmp_path: Path,
    write_csv: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As far as the features of so many rows fit in memory. A window is of 16 rows."""
    old, new = numbered(70), numbered(7, 500)
    run(write_csv(old), tmp_path / "c.h5", tiny)
    grown = write_csv([row for at in range(7) for row in (*old[10 * at : 10 * at + 10], new[at])])
    together: list[int] = []

    class Work(EncoderWork):
        def __init__(self, encoder: Encoder, sequences: Any, **options: Any) -> None:
            together.append(len(sequences))
            super().__init__(encoder, sequences, **options)

    monkeypatch.setattr("headstart.stages.extraction.encode_table.EncoderWork", Work)
    monkeypatch.setattr("headstart.stages.extraction.windows._JOINED_BYTES", most_bytes)
    cache, _ = run(grown, tmp_path / "c.h5", tiny, update=True)
    assert (len(together), sum(together)) == (passes, 7)
    fresh, _ = run(grown, tmp_path / "fresh.h5", tiny)
    np.testing.assert_allclose(cache.features(), fresh.features(), atol=1e-5, rtol=0)


def test_labels_follow_the_table(tiny: Path, tmp_path: Path, write_csv: Callable[..., Path]) -> None:
    rows = numbered(30)
    run(write_csv(rows), tmp_path / "c.h5", tiny)
    renamed = [(text, f"a longer name {number % 5}") for number, (text, _) in enumerate(rows)]
    cache, _ = run(write_csv([*renamed, ("plot", "zebra")]), tmp_path / "c.h5", tiny, update=True)
    assert cache.label_names == (*(f"a longer name {number}" for number in range(5)), "zebra")
    assert cache.label_counts() == {**{f"a longer name {number}": 6 for number in range(5)}, "zebra": 1}
    cache, _ = run(write_csv(rows[:9]), tmp_path / "c.h5", tiny, update=True, label_column=None)
    assert cache.labels is cache.label_names is None
    cache, _ = run(write_csv(rows[:10]), tmp_path / "c.h5", tiny, update=True)
    assert cache.label_names == ("class0", "class1", "class2")
    assert cache.record["sequences_encoded"] == 1


def test_other_labels_alone_cost_no_encoding(
    tiny: Path, tmp_path: Path, write_csv: Callable[..., Path], encoded: list[list[int]]
) -> None:
    rows = numbered(20)
    run(write_csv(rows), tmp_path / "c.h5", tiny)
    encoded.clear()
    cache, notes = run(write_csv([(text, "z") for text, _ in rows]), tmp_path / "c.h5", tiny, update=True)
    assert "the labels changed" in notes[0] and encoded == [] and cache.label_names == ("z",)


def test_without_a_cache_an_update_is_a_first_run(tiny: Path, tmp_path: Path, write_csv: Callable[..., Path]) -> None:
    table = write_csv(tiny_rows(40))
    run(table, tmp_path / "c.h5", tiny, update=True)
    run(table, tmp_path / "fresh.h5", tiny)
    assert datasets(tmp_path / "c.h5") == datasets(tmp_path / "fresh.h5")


def test_without_update_other_rows_are_refused_and_the_option_is_named(
    tiny: Path, tmp_path: Path, write_csv: Callable[..., Path]
) -> None:
    run(write_csv(numbered(20)), tmp_path / "c.h5", tiny)
    before = (tmp_path / "c.h5").read_bytes()
    with pytest.raises(OutputExistsError, match="to encode what it lacks, pass `update=True`"):
        run(write_csv(numbered(30)), tmp_path / "c.h5", tiny)
    assert (tmp_path / "c.h5").read_bytes() == before


@pytest.mark.parametrize("batches", [0, 2, 5])
def test_an_interrupted_update_leaves_the_old_cache_and_is_carried_on_to_the_same_bytes(
    tiny: Path, tmp_path: Path, write_csv: Callable[..., Path], encoded: list[list[int]], batches: int
) -> None:
    rows = numbered(40)
    grown = [*rows[::2], *numbered(50, 300), *rows[1::2]]
    for name in ("c.h5", "undisturbed.h5"):
        run(write_csv(rows), tmp_path / name, tiny)
    before = (tmp_path / "c.h5").read_bytes()
    table = write_csv(grown)
    run(table, tmp_path / "undisturbed.h5", tiny, update=True)
    encoded.clear()
    with interrupted_after(batches), pytest.raises(KeyboardInterrupt):
        run(table, tmp_path / "c.h5", tiny, update=True)
    assert (tmp_path / "c.h5").read_bytes() == before
    cache, notes = run(table, tmp_path / "c.h5", tiny, update=True)
    assert any("carrying on" in note for note in notes) == (cache.record["kept_blocks"] > 0)
    assert datasets(tmp_path / "c.h5") == datasets(tmp_path / "undisturbed.h5")
    assert len({tuple(sequence) for sequence in encoded}) == 50
    assert [path.name for path in tmp_path.glob("c.h5*")] == ["c.h5"]


@pytest.mark.parametrize("batches", [3, 30])
def test_a_killed_update_leaves_the_old_cache_and_is_carried_on_to_the_same_bytes(
    tiny: Path, tmp_path: Path, write_csv: Callable[..., Path], batches: int
) -> None:
    """The command, really killed, with SIGKILL, in the middle of its pass."""
    rows = tiny_rows(100)
    for name in ("c.h5", "undisturbed.h5"):
        run(write_csv(rows), tmp_path / name, tiny)
    before = (tmp_path / "c.h5").read_bytes()
    table = write_csv([*tiny_rows(200, seed=1), *rows[::-1]])
    command = ["extract", table, "--encoder", tiny, "--precision", "float32", "--batch-tokens", "64", "--update"]
    killed = partial(kill_at_batch, batches + 1)
    code, _ = finish([*command, "--out", tmp_path / "c.h5"], tmp_path / "log", partial(blocks_of, 8), killed)
    assert code == -signal.SIGKILL
    assert (tmp_path / "c.h5").read_bytes() == before
    whole = open_any(partial_path(tmp_path / "c.h5")).whole_blocks()
    assert not whole.all()
    cache, _ = run(table, tmp_path / "c.h5", tiny, update=True)
    assert cache.record["kept_blocks"] == whole.sum() and (batches < 30 or whole.any())
    run(table, tmp_path / "undisturbed.h5", tiny, update=True)
    assert datasets(tmp_path / "c.h5") == datasets(tmp_path / "undisturbed.h5")


def test_unfinished_work_on_other_rows_is_not_lost(
    tiny: Path, tmp_path: Path, write_csv: Callable[..., Path], encoded: list[list[int]]
) -> None:
    rows, out = numbered(60), tmp_path / "c.h5"
    with interrupted_after(5), pytest.raises(KeyboardInterrupt):
        run(write_csv(rows), out, tiny)
    partial = open_any(partial_path(out))
    done = int(np.repeat(partial.whole_blocks(), 8)[:60].sum())
    assert 0 < done < 60
    table = write_csv([*numbered(3, 500), *rows])
    with pytest.raises(OutputExistsError, match="to take its rows over, `update=True`"):
        run(table, out, tiny)
    encoded.clear()
    with interrupted_after(1), pytest.raises(KeyboardInterrupt):
        run(table, out, tiny, update=True)
    assert len(superseded_paths(out)) == 1 and not out.exists()
    cache, _ = run(table, out, tiny, update=True)
    assert cache.record["reused_rows"] <= done
    assert len({tuple(sequence) for sequence in encoded}) == 63 - done
    assert [path.name for path in tmp_path.glob("c.h5*")] == ["c.h5"]
    fresh, _ = run(table, tmp_path / "fresh.h5", tiny)
    np.testing.assert_allclose(cache.features(), fresh.features(), atol=1e-5, rtol=0)


def test_two_changes_of_the_table_lose_no_finished_block(
    tiny: Path, tmp_path: Path, write_csv: Callable[..., Path], encoded: list[list[int]]
) -> None:
    """The second change comes before the first update has taken anything over."""
    rows, out = numbered(60), tmp_path / "c.h5"
    with interrupted_after(5), pytest.raises(KeyboardInterrupt):
        run(write_csv(rows), out, tiny)
    done = int(np.repeat(open_any(partial_path(out)).whole_blocks(), 8)[:60].sum())
    with interrupted_after(0), pytest.raises(KeyboardInterrupt):
        run(write_csv([*numbered(30, 500), *rows]), out, tiny, update=True)
    encoded.clear()
    run(write_csv([*numbered(31, 500), *rows]), out, tiny, update=True)
    assert len(encoded) == 91 - done


def test_rows_that_move_by_one_are_found_where_they_stand_now(
    tiny: Path, tmp_path: Path, write_csv: Callable[..., Path], encoded: list[list[int]]
) -> None:
    """One row more at the top and one less at the end: as many rows as the unfinished cache has."""
    rows = numbered(60)
    with interrupted_after(5), pytest.raises(KeyboardInterrupt):
        run(write_csv(rows), tmp_path / "c.h5", tiny, update=True)
    partial = open_any(partial_path(tmp_path / "c.h5"))
    done = int(partial.whole_blocks().sum()) * 8
    assert done > 0
    encoded.clear()
    run(write_csv([*numbered(1, 500), *rows[:-1]]), tmp_path / "c.h5", tiny, update=True)
    assert len(encoded) == 60 - done


def test_unfinished_work_of_another_plan_gives_its_rows_to_an_update(
    tiny: Path, tmp_path: Path, write_csv: Callable[..., Path], encoded: list[list[int]]
) -> None:
    with interrupted_after(5), pytest.raises(KeyboardInterrupt):
        run(write_csv(numbered(60)), tmp_path / "c.h5", tiny)
    done = int(open_any(partial_path(tmp_path / "c.h5")).whole_blocks().sum()) * 8
    encoded.clear()
    with pytest.raises(OutputExistsError, match=r"batch_tokens .*; to take its rows over, `update=True`"):
        run(write_csv(numbered(60)), tmp_path / "c.h5", tiny, batch_tokens=32)
    run(write_csv(numbered(60)), tmp_path / "c.h5", tiny, batch_tokens=32, update=True)
    assert done > 0 and len(encoded) == 60 - done
    assert [path.name for path in tmp_path.glob("c.h5*")] == ["c.h5"]


def test_where_free_memory_chose_the_batches_unfinished_work_keeps_its_own(
    tiny: Path,
    tmp_path: Path,
    write_csv: Callable[..., Path],
    encoded: list[list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on a GPU, whose memory another program has taken in part since."""
    with interrupted_after(5), pytest.raises(KeyboardInterrupt):
        run(write_csv(numbered(60)), tmp_path / "c.h5", tiny)
    planned = open_any(partial_path(tmp_path / "c.h5")).plan
    done = int(open_any(partial_path(tmp_path / "c.h5")).whole_blocks().sum()) * 8
    encoded.clear()
    monkeypatch.setattr(EncoderSession, "any_batch_tokens", True)
    run(write_csv(numbered(60)), tmp_path / "c.h5", tiny, batch_tokens=planned["batch_tokens"] // 2)
    assert done > 0 and len(encoded) == 60 - done
    assert open_any(tmp_path / "c.h5").plan == planned


def test_a_run_whose_place_was_taken_replaces_nothing(
    tiny: Path, tmp_path: Path, write_csv: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another run on the same output has put its own unfinished file there."""
    run(write_csv(numbered(20)), tmp_path / "c.h5", tiny)
    before = (tmp_path / "c.h5").read_bytes()
    original = CacheWriter.finish

    def finish(self: CacheWriter, record: Any, path: Path) -> None:
        self.path.unlink()
        self.path.write_bytes(b"another run's")
        original(self, record, path)

    monkeypatch.setattr(CacheWriter, "finish", finish)
    with pytest.raises(StorageError, match="another run replaced"):
        run(write_csv(numbered(30)), tmp_path / "c.h5", tiny, update=True)
    assert (tmp_path / "c.h5").read_bytes() == before
    assert partial_path(tmp_path / "c.h5").read_bytes() == b"another run's"


def test_what_a_kill_left_aside_goes_with_the_next_run(
    tiny: Path, tmp_path: Path, write_csv: Callable[..., Path]
) -> None:
    table = write_csv(numbered(20))
    run(table, tmp_path / "c.h5", tiny)
    (tmp_path / "c.h5.headstart-earlier1").write_bytes((tmp_path / "c.h5").read_bytes())
    run(table, tmp_path / "c.h5", tiny)
    assert [path.name for path in tmp_path.glob("c.h5*")] == ["c.h5"]


def test_work_left_aside_does_not_stand_in_the_way_of_overwrite(
    tiny: Path, tmp_path: Path, write_csv: Callable[..., Path]
) -> None:
    rows, out = numbered(60), tmp_path / "c.h5"
    with interrupted_after(5), pytest.raises(KeyboardInterrupt):
        run(write_csv(rows), out, tiny)
    table = write_csv([*numbered(3, 500), *rows])
    with interrupted_after(1), pytest.raises(KeyboardInterrupt):
        run(table, out, tiny, update=True)
    cache, _ = run(table, out, tiny, overwrite=True, max_length=16)
    assert (cache.record["reused_rows"], cache.record["sequences_encoded"]) == (0, 63)
    assert [path.name for path in tmp_path.glob("c.h5*")] == ["c.h5"]


def test_work_of_another_identity_left_aside_is_named(
    tiny: Path, tmp_path: Path, write_csv: Callable[..., Path]
) -> None:
    table, out = write_csv(numbered(60)), tmp_path / "c.h5"
    with interrupted_after(5), pytest.raises(KeyboardInterrupt):
        run(table, out, tiny)
    partial_path(out).rename(tmp_path / "c.h5.headstart-earlier1")
    with pytest.raises(
        IdentityError, match=r"c.h5.headstart-earlier1 cannot be .*max_length.*; remove it, or pass `overwrite=True`"
    ):
        run(table, out, tiny, max_length=16)


def test_a_damaged_block_is_encoded_again_and_noted(
    tiny: Path, tmp_path: Path, write_csv: Callable[..., Path], encoded: list[list[int]]
) -> None:
    rows, out = numbered(40), tmp_path / "c.h5"
    run(write_csv(rows), out, tiny)
    flip_a_byte(out, "features/cls", 17)
    encoded.clear()
    table = [*rows, *numbered(2, 500)]
    cache, notes = run(write_csv(table), out, tiny, update=True)
    assert notes == [f"{out}: 1 of 5 blocks are damaged, and are not reused"]
    assert len(encoded) == 8 + 2
    fresh, _ = run(write_csv(table), tmp_path / "fresh.h5", tiny)
    assert_is_update_of(cache, {}, fresh, table)


@pytest.mark.parametrize("dataset", ["hashes/text", "hashes/tokens", "lengths", "cut"])
def test_a_damaged_fact_is_as_bad_as_a_damaged_feature(
    tiny: Path, tmp_path: Path, write_csv: Callable[..., Path], dataset: str
) -> None:
    rows = numbered(24)
    run(write_csv(rows), tmp_path / "a.h5", tiny)
    flip_a_byte(tmp_path / "a.h5", dataset, 9)
    cache, _ = run(write_csv(rows), tmp_path / "c.h5", tiny, reuse=[tmp_path / "a.h5"])
    fresh, _ = run(write_csv(rows), tmp_path / "fresh.h5", tiny)
    assert cache.record["sequences_encoded"] == 8
    assert_is_update_of(cache, {}, fresh, rows)


def test_a_cache_that_is_cut_short_is_not_updated(tiny: Path, tmp_path: Path, write_csv: Callable[..., Path]) -> None:
    out = tmp_path / "c.h5"
    run(write_csv(numbered(40)), out, tiny)
    out.write_bytes(out.read_bytes()[:5000])
    with pytest.raises(DamagedError, match="cut short"):
        run(write_csv(numbered(41)), out, tiny, update=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_length": 16}, r"max_length \(c.h5: 60, this run: 16\)"),
        ({"prefix": "query: "}, "prefix"),
        ({"precision": "bfloat16"}, "precision"),
        ({"storage": "float16"}, "storage"),
        ({"features": ("cls", "mean")}, r"features \(c.h5: cls, this run: cls,mean\)"),
    ],
)
def test_a_cache_of_another_identity_is_not_updated(
    tiny: Path, tmp_path: Path, write_csv: Callable[..., Path], options: dict[str, Any], message: str
) -> None:
    run(write_csv(numbered(20)), tmp_path / "c.h5", tiny, max_length=60)
    before = (tmp_path / "c.h5").read_bytes()
    with pytest.raises(OutputExistsError, match=message):
        run(write_csv(numbered(30)), tmp_path / "c.h5", tiny, update=True, **{"max_length": 60, **options})
    assert (tmp_path / "c.h5").read_bytes() == before
    assert [path.name for path in tmp_path.glob("c.h5*")] == ["c.h5"]


def test_update_and_overwrite_contradict_each_other(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="choose one of them"):
        run(["good film"], tmp_path / "c.h5", tiny, update=True, overwrite=True)


def test_rows_are_taken_from_any_cache_of_the_same_identity(
    tiny: Path, tmp_path: Path, write_csv: Callable[..., Path], encoded: list[list[int]]
) -> None:
    rows = numbered(60)
    first, _ = run(write_csv(rows[:20]), tmp_path / "a.h5", tiny)
    second, _ = run(write_csv(rows[10:40]), tmp_path / "b.h5", tiny, label_column=None)
    encoded.clear()
    reuse = [tmp_path / "a.h5", tmp_path / "b.h5"]
    cache, _ = run(write_csv(rows), tmp_path / "c.h5", tiny, reuse=reuse)
    assert (len(encoded), cache.record["reused_rows"]) == (20, 40)
    np.testing.assert_array_equal(cache.features()[:20], first.features())  # the first that has a row gives it
    np.testing.assert_array_equal(cache.features()[20:40], second.features()[10:])
    fresh, _ = run(write_csv(rows), tmp_path / "fresh.h5", tiny)
    assert_is_update_of(cache, {}, fresh, rows)


def test_nothing_is_encoded_where_a_reused_cache_holds_every_row(
    tiny: Path, tmp_path: Path, write_csv: Callable[..., Path], encoded: list[list[int]]
) -> None:
    rows = tiny_rows(50)
    whole, _ = run(write_csv(rows), tmp_path / "a.h5", tiny, label_column=None)
    encoded.clear()
    cache, _ = run(write_csv(rows), tmp_path / "c.h5", tiny, reuse=[tmp_path / "a.h5"])
    assert encoded == [] and cache.record["reused_rows"] == 50
    assert cache.record["tokens_per_second"] is None
    np.testing.assert_array_equal(cache.features(), whole.features())


def test_texts_that_differ_and_read_the_same_are_found_by_their_tokens(
    tiny: Path, tmp_path: Path, write_csv: Callable[..., Path], encoded: list[list[int]]
) -> None:
    rows = numbered(30)
    whole, _ = run(write_csv(rows), tmp_path / "a.h5", tiny)
    encoded.clear()
    shouted = [(text.upper(), label) for text, label in reversed(rows)]
    cache, _ = run(write_csv(shouted), tmp_path / "c.h5", tiny, reuse=[tmp_path / "a.h5"])
    assert encoded == [] and cache.record["reused_rows"] == 30
    np.testing.assert_array_equal(cache.features(), whole.features()[::-1])
    fresh, _ = run(write_csv(shouted), tmp_path / "fresh.h5", tiny)
    assert_is_update_of(cache, {}, fresh, shouted)


def test_a_cache_with_more_features_can_be_reused(
    tiny: Path, tmp_path: Path, write_csv: Callable[..., Path], encoded: list[list[int]]
) -> None:
    rows = numbered(30)
    whole, _ = run(write_csv(rows), tmp_path / "a.h5", tiny, features=("cls", "mean", "layer1.max"))
    encoded.clear()
    cache, _ = run(
        write_csv(rows[::-1]), tmp_path / "c.h5", tiny, features=("mean", "layer1.max"), reuse=[tmp_path / "a.h5"]
    )
    assert encoded == [] and cache.identity.features == ("layer1.max", "mean")
    for name in cache.identity.features:
        np.testing.assert_array_equal(cache.features(name), whole.features(name)[::-1])


def test_a_cache_in_float32_can_be_reused_in_float16(
    tiny: Path, tmp_path: Path, write_csv: Callable[..., Path], encoded: list[list[int]]
) -> None:
    rows = numbered(30)
    whole, _ = run(write_csv(rows), tmp_path / "a.h5", tiny)
    encoded.clear()
    cache, _ = run(write_csv(rows), tmp_path / "c.h5", tiny, storage="float16", reuse=[tmp_path / "a.h5"])
    assert encoded == []
    np.testing.assert_array_equal(cache.features(), whole.features().astype(np.float16))


def test_a_reused_feature_that_float16_cannot_hold_names_its_row(
    tiny: Path, tmp_path: Path, write_csv: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Backend.encode

    def encode(self: Backend, batch: Any) -> Any:
        long = np.array([len(sequence) == 9 for sequence in batch])
        return {"cls": np.where(long[:, None], 1e5, original(self, batch)["cls"]).astype(np.float32)}

    rows = [*numbered(20), ("the a good bad film phone very", "class0"), *numbered(5, 500)]
    with monkeypatch.context() as patch:
        patch.setattr(Backend, "encode", encode)
        run(write_csv(rows[::-1]), tmp_path / "a.h5", tiny)
    for reused in (rows, [(text.upper(), label) for text, label in rows]):  # found by its text, and by its tokens
        with pytest.raises(EncoderError, match=r"table.csv, row 21: the feature 'cls' has 100000, too large for float"):
            run(write_csv(reused), tmp_path / "c.h5", tiny, storage="float16", reuse=[tmp_path / "a.h5"])
        assert not (tmp_path / "c.h5").exists()
        partial_path(tmp_path / "c.h5").unlink()


@pytest.mark.parametrize(
    ("other_options", "options", "message"),
    [
        ({"max_length": 16}, {}, r"max_length \(.*a.h5: 16, this run: 128\)"),
        ({"prefix": "query: "}, {}, r"prefix \(.*a.h5: 'query: ', this run: ''\)"),
        ({"precision": "bfloat16"}, {}, r"precision \(.*a.h5: 'bfloat16', this run: 'float32'\)"),
        ({"storage": "float16"}, {}, r"storage \(.*a.h5: float16, this run: float32\)"),
        ({"features": ("cls",)}, {"features": ("cls", "mean", "max")}, r"features \(.*a.h5 lacks max, mean\)"),
        ({"other_weights": True}, {}, r"weights_sha256 \(.*a.h5: [0-9a-f]{12}…, this run: "),
    ],
)
def test_a_cache_of_something_else_is_not_reused_and_no_work_begins(
    tiny: Path,
    tmp_path: Path,
    write_csv: Callable[..., Path],
    other_options: dict[str, Any],
    options: dict[str, Any],
    message: str,
) -> None:
    other = save_tiny_encoder(tmp_path / "other", seed=1) if other_options.pop("other_weights", False) else tiny
    run(write_csv(numbered(10)), tmp_path / "a.h5", other, **other_options)
    with pytest.raises(IdentityError, match=message):
        run(write_csv(numbered(10)), tmp_path / "c.h5", tiny, reuse=[tmp_path / "a.h5"], **options)
    assert list(tmp_path.glob("c.h5*")) == []


def test_a_missing_or_unfinished_cache_is_not_reused(
    tiny: Path, tmp_path: Path, write_csv: Callable[..., Path]
) -> None:
    table, out = write_csv(numbered(60)), tmp_path / "c.h5"
    with pytest.raises(FormatError, match="does not exist"):
        run(table, out, tiny, reuse=[tmp_path / "nowhere.h5"])
    with interrupted_after(5), pytest.raises(KeyboardInterrupt):
        run(table, tmp_path / "a.h5", tiny)
    with pytest.raises(FormatError, match="is not finished"):
        run(table, out, tiny, reuse=[partial_path(tmp_path / "a.h5")])
    assert list(tmp_path.glob("c.h5*")) == []


def test_the_output_itself_is_not_reused(
    tiny: Path, tmp_path: Path, write_csv: Callable[..., Path], encoded: list[list[int]]
) -> None:
    """--overwrite means encoding again, whatever --reuse names; by another path it is still the same file."""
    table, out = write_csv(numbered(20)), tmp_path / "c.h5"
    run(table, out, tiny)
    encoded.clear()
    (tmp_path / "link.h5").symlink_to(out)
    for name in (out, tmp_path / "link.h5", Path(os.path.relpath(out))):
        cache, _ = run(table, out, tiny, overwrite=True, reuse=[name])
        assert cache.record["reused_rows"] == 0
    assert len(encoded) == 60
