"""Stage one: each distinct text once, rows in order, nothing finished lost, nothing stale reused."""

from __future__ import annotations

import json
import os
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import headstart
import numpy as np
import pytest
from extracting import SMALL_BLOCKS, datasets, flip_a_byte, interrupted_after, settings
from extracting import run_small_blocks as run
from headstart.cache.errors import (
    DamagedError,
    EncoderError,
    OutputExistsError,
    SettingsError,
    StorageError,
    TableError,
)
from headstart.cache.hashing import hash_texts
from headstart.cache.reader import block_checksum, open_any
from headstart.cache.siblings import partial_path
from headstart.cache.writer import CacheWriter
from headstart.stages.encoders.backend import Backend
from headstart.stages.encoders.encoder import Encoder, encode_sequences
from headstart.stages.encoders.session import EncoderSession
from headstart.stages.extract import extract
from headstart.stages.progress import Action, Event, Outcome, Step
from headstart.stages.settings import ExtractSettings
from headstart.stages.tables.scan import TableScan, scan_table
from headstart.stages.verify import verify
from tiny import save_tiny_encoder, tiny_rows


def test_rows_come_out_in_the_order_of_the_table(tiny: Path, tmp_path: Path, write_csv: Callable[..., Path]) -> None:
    rows = tiny_rows(50)
    cache, _ = run(write_csv(rows), tmp_path / "c.h5", tiny)
    cache.check()
    encoder = EncoderSession(settings(tiny)).encoder
    for number, (text, label) in enumerate(rows):
        alone = encode_sequences(encoder, encoder.tokenize([text])[0])["cls"][0]
        np.testing.assert_allclose(cache.features()[number], alone, atol=1e-6)
        assert cache.label_names is not None and cache.labels is not None
        assert cache.label_names[cache.labels[number]] == label


def test_each_distinct_token_sequence_is_encoded_once(
    tiny: Path, tmp_path: Path, write_csv: Callable[..., Path], encoded: list[list[int]]
) -> None:
    rows = [*tiny_rows(60), ("The GOOD film", "class0"), ("the good film", "class1")]  # alike once lower-cased
    cache, _ = run(write_csv(rows), tmp_path / "c.h5", tiny)
    assert len(encoded) == len({tuple(sequence) for sequence in encoded})
    assert cache.record["distinct_sequences"] == cache.record["sequences_encoded"] == len(encoded)
    assert cache.record["tokens_encoded"] == sum(map(len, encoded))
    assert cache.record["distinct_texts"] == len({text for text, _ in rows}) == len(encoded) + 1
    np.testing.assert_array_equal(cache.features()[-1], cache.features()[-2])


def test_one_table_gives_one_set_of_bytes(tiny: Path, tmp_path: Path, write_csv: Callable[..., Path]) -> None:
    table = write_csv(tiny_rows(50))
    run(table, tmp_path / "a.h5", tiny)
    run(table, tmp_path / "b.h5", tiny)
    assert datasets(tmp_path / "a.h5") == datasets(tmp_path / "b.h5")


def table_row(files: list[list[tuple[str, str]]], number: int) -> str:
    """The text of a row, counted from 1 over files."""
    return [row for rows in files for row in rows][number - 1][0]


@pytest.mark.parametrize("bad", [[4], [1, 2, 9], [5, 6], [10, 11, 12, 13], [17, 23]])
def test_rows_keep_their_numbers_where_others_are_left_out(
    tiny: Path, tmp_path: Path, large_table: None, bad: list[int]
) -> None:
    """The numbers count every row of all files: blank texts, rows that cannot be read, and whole files of them."""
    rows = [(f"film {number}", "x") for number in range(24)]
    files = [rows[:9], rows[9:13], rows[13:]]
    (tmp_path / "tables").mkdir()
    number = 0
    for name, part in zip("abc", files, strict=True):
        lines = ["text,label"]
        for text, label in part:
            number += 1
            broken = f" ,{label}" if number % 2 else f"{text},{label},more"
            lines.append(broken if number in bad else f"{text},{label}")
        (tmp_path / "tables" / f"{name}.csv").write_text("\n".join(lines) + "\n")
    cache, _ = run(tmp_path / "tables", tmp_path / "c.h5", tiny, skip_bad_rows=True)
    good = [number for number in range(1, 25) if number not in bad]
    assert cache.row_numbers is not None and cache.row_numbers.tolist() == good
    texts = [table_row(files, number) for number in cache.row_numbers]
    np.testing.assert_array_equal(cache.text_hashes, hash_texts(texts))
    assert cache.place(23 - len(bad)) == f"row {24 - len(bad)} (row 24 of the table)"
    assert cache.place(0) == ("row 1" if bad[0] > 1 else f"row 1 (row {good[0]} of the table)")


def test_row_numbers_follow_the_table(
    tiny: Path, tmp_path: Path, write_csv: Callable[..., Path], encoded: list[list[int]]
) -> None:
    rows, bad = tiny_rows(40), ("", "class0")

    def extracted(table: list[tuple[str, str]], **options: Any) -> tuple[list[int] | None, str]:
        cache, notes = run(write_csv(table), tmp_path / "c.h5", tiny, skip_bad_rows=True, **options)
        assert cache.damaged_blocks() == []
        return (None if cache.row_numbers is None else cache.row_numbers.tolist()), notes[-1]

    assert extracted([*rows, bad, bad])[0] is None  # no other row has another number for them
    encoded.clear()
    first = [*range(1, 11), *range(12, 42)]
    assert extracted([*rows[:10], bad, *rows[10:]]) == (
        first,
        f"{tmp_path / 'c.h5'}: the numbers of its rows in the table changed; nothing to encode",
    )
    assert "is current" in extracted([*rows[:10], bad, *rows[10:]])[1]
    assert extracted([bad, *rows])[0] == list(range(2, 42))
    with pytest.raises(OutputExistsError, match="1 texts, the first in row 4;"):
        extracted([bad, *rows[:2], ("new", "class0"), *rows[3:]])
    assert extracted(rows)[0] is None and encoded == []
    assert extracted([bad, *rows, rows[0]], update=True)[0] == list(range(2, 43)) and encoded == []


def test_row_numbers_of_an_interrupted_run_are_those_of_the_table(
    tiny: Path, tmp_path: Path, write_csv: Callable[..., Path]
) -> None:
    rows, bad = tiny_rows(60), ("", "class0")
    with interrupted_after(7), pytest.raises(KeyboardInterrupt):
        run(write_csv([bad, *rows]), tmp_path / "c.h5", tiny, skip_bad_rows=True)
    cache, _ = run(write_csv([rows[0], bad, *rows[1:]]), tmp_path / "c.h5", tiny, skip_bad_rows=True)
    assert cache.record["kept_blocks"] > 0 and cache.damaged_blocks() == []
    assert cache.row_numbers is not None and cache.row_numbers.tolist() == [1, *range(3, 62)]


def test_a_row_that_is_off_is_named_by_its_number_in_the_table(
    tiny: Path, tmp_path: Path, write_csv: Callable[..., Path]
) -> None:
    table = write_csv([("", "class0"), *tiny_rows(20)])
    cache, _ = run(table, tmp_path / "c.h5", tiny, skip_bad_rows=True)
    with CacheWriter(cache.path) as writer:
        features = np.array(cache.features()[:8])
        features[3] = -features[3]
        writer.write_block(0, features={"cls": features}, **cache.row_metadata(slice(0, 8)))
    found = verify(cache.path, encoder=str(tiny), table=table, settings=settings(tiny, skip_bad_rows=True), sample=20)
    assert [finding.where for finding in found.findings] == ["row 4 (row 5 of the table)"]
    with CacheWriter(cache.path) as writer:
        numbers = np.array(cache.row_numbers)
        numbers[8] = numbers[7]
        writer._write("rows", 0, numbers)
        checksum = block_checksum(slice(8, 16), [numbers[8:16]])
        writer._write("checksums/rows", 1, np.frombuffer(checksum, np.uint8))
    assert [finding.what for finding in verify(cache.path).findings] == ["the rows' numbers in the table do not ascend"]


@pytest.mark.parametrize("batches", [1, 3, 7])
def test_an_interrupted_run_is_carried_on_to_the_same_bytes(
    tiny: Path, tmp_path: Path, write_csv: Callable[..., Path], batches: int
) -> None:
    table = write_csv(tiny_rows(60))
    run(table, tmp_path / "whole.h5", tiny)
    with interrupted_after(batches), pytest.raises(KeyboardInterrupt):
        run(table, tmp_path / "c.h5", tiny)
    assert not (tmp_path / "c.h5").exists()
    cache, notes = run(table, tmp_path / "c.h5", tiny)
    kept = cache.record["kept_blocks"]
    assert (f"{kept} of 8 blocks are done" in "".join(notes)) == (kept > 0)
    assert datasets(tmp_path / "c.h5") == datasets(tmp_path / "whole.h5")


def test_ctrl_c_loses_no_finished_window_and_the_next_run_does_not_tokenize_it(
    tiny: Path, tmp_path: Path, write_csv: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 16 rows each; 112 tokens in two batches."""
    table = write_csv([(f"good film {number:03}", "x") for number in range(60)])
    with interrupted_after(5), pytest.raises(KeyboardInterrupt):
        run(table, tmp_path / "c.h5", tiny)
    partial = open_any(partial_path(tmp_path / "c.h5"))
    assert partial.whole_blocks().tolist() == [True] * 4 + [False] * 4
    tokenized: list[str] = []
    original = Encoder.tokenize

    def tokenize(self: Encoder, texts: Any, pairs: Any = None) -> Any:
        tokenized.extend(texts)
        return original(self, texts, pairs)

    monkeypatch.setattr(Encoder, "tokenize", tokenize)
    run(table, tmp_path / "c.h5", tiny)
    assert tokenized == [f"good film {number:03}" for number in range(32, 60)]


def test_a_lost_block_in_the_middle_of_a_window_is_made_again_to_the_same_bytes(
    tiny: Path, tmp_path: Path, write_csv: Callable[..., Path]
) -> None:
    table = write_csv(tiny_rows(60))
    run(table, tmp_path / "whole.h5", tiny)
    run(table, tmp_path / "c.h5", tiny)
    partial = partial_path(tmp_path / "c.h5")
    (tmp_path / "c.h5").rename(partial)
    for row in (9, 41):  # torn rows in the second and the sixth of eight blocks
        flip_a_byte(partial, "features/cls", row)
    cache, _ = run(table, tmp_path / "c.h5", tiny)
    assert cache.record["kept_blocks"] == 6
    assert datasets(tmp_path / "c.h5") == datasets(tmp_path / "whole.h5")


def test_a_run_that_carries_on_encodes_the_batches_of_an_undisturbed_one(
    tiny: Path, tmp_path: Path, write_csv: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole, though a part of a batch alone is missing: the bits of a product may depend on what is beside a row."""
    batches: list[list[list[int]]] = []
    original = Backend.encode

    def encode(self: Backend, batch: Any) -> Any:
        if batch:  # a window without batches has an empty one
            batches.append([sequence.tolist() for sequence in batch])
        return original(self, batch)

    monkeypatch.setattr(Backend, "encode", encode)
    table = write_csv(tiny_rows(60))
    run(table, tmp_path / "c.h5", tiny)
    undisturbed = list(batches)
    partial = partial_path(tmp_path / "c.h5")
    for row in (9, 41):
        batches.clear()
        (tmp_path / "c.h5").rename(partial)
        flip_a_byte(partial, "features/cls", row)
        cache, _ = run(table, tmp_path / "c.h5", tiny)
        assert cache.record["kept_blocks"] == 7
        assert 0 < len(batches) < len(undisturbed) and all(batch in undisturbed for batch in batches)


def test_a_row_edited_over_a_half_written_cache_never_keeps_its_old_features(
    tiny: Path, tmp_path: Path, write_csv: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [(f"good film {i:03}", f"class{i % 2}") for i in range(60)]
    with interrupted_after(7), pytest.raises(KeyboardInterrupt):
        run(write_csv(rows), tmp_path / "c.h5", tiny)
    assert open_any(partial_path(tmp_path / "c.h5")).block_holds(1)
    rows[9] = ("good film 999", "class1")  # of the same length, in the second block
    cache, notes = run(write_csv(rows), tmp_path / "c.h5", tiny)
    assert "1 hold rows that changed, and are encoded again" in notes[0]
    cache.check()
    fresh, _ = run(write_csv(rows), tmp_path / "fresh.h5", tiny)
    np.testing.assert_allclose(cache.features(), fresh.features(), atol=1e-5)
    np.testing.assert_array_equal(cache.text_hashes, fresh.text_hashes)
    np.testing.assert_array_equal(cache.token_hashes, fresh.token_hashes)


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (60, {"max_length": 16}, r"max_length \(c.h5.headstart-partial: 128, this run: 16\)"),
        (60, {"batch_tokens": 32}, "batch_tokens"),
        (60, {"storage": "float16"}, r"storage \(c.h5.headstart-partial: float32, this run: float16\)"),
        (61, {}, "rows .*: 60, the table: 61"),
        (-60, {}, "hold others"),
    ],
)
def test_unfinished_work_on_something_else_is_named_and_kept(
    tiny: Path,
    tmp_path: Path,
    write_csv: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    rows: int,
    options: dict[str, Any],
    message: str,
) -> None:
    with interrupted_after(7), pytest.raises(KeyboardInterrupt):
        run(write_csv(tiny_rows(60)), tmp_path / "c.h5", tiny, max_length=60)
    partial = partial_path(tmp_path / "c.h5")
    before = partial.read_bytes()
    table = write_csv(tiny_rows(rows) if rows > 0 else tiny_rows(-rows, seed=1))
    with pytest.raises(OutputExistsError, match=message.replace("128", "60")):
        run(table, tmp_path / "c.h5", tiny, **{"max_length": 60, **options})
    assert partial.read_bytes() == before
    cache, _ = run(table, tmp_path / "c.h5", tiny, **{"max_length": 60, "overwrite": True, **options})
    assert cache.record["kept_blocks"] == 0


def test_a_current_cache_is_left_alone_and_no_encoder_is_loaded(
    tiny: Path, tmp_path: Path, write_csv: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    table = write_csv(tiny_rows(20))
    run(table, tmp_path / "c.h5", tiny)
    before = (tmp_path / "c.h5").read_bytes()
    monkeypatch.setattr(Encoder, "__init__", refuse)
    _, notes = run(table, tmp_path / "c.h5", tiny)
    assert "is current" in notes[0]
    assert (tmp_path / "c.h5").read_bytes() == before


def refuse(*_: Any, **__: Any) -> None:
    raise AssertionError("the encoder was loaded")


def test_changed_labels_cost_no_encoding(
    tiny: Path, tmp_path: Path, write_csv: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = tiny_rows(20)
    first, _ = run(write_csv(rows), tmp_path / "c.h5", tiny)
    features = np.array(first.features())
    monkeypatch.setattr(Encoder, "__init__", refuse)
    cache, notes = run(
        write_csv([(t, f"a much longer name {i}") for i, (t, _) in enumerate(rows)]), tmp_path / "c.h5", tiny
    )
    assert "the labels changed" in notes[0]
    cache.check()
    assert cache.label_names is not None and len(cache.label_names) == 20
    np.testing.assert_array_equal(cache.features(), features)
    cache, _ = run(write_csv(rows), tmp_path / "c.h5", tiny, label_column=None)
    assert cache.label_names is cache.labels is None


def test_changed_labels_reach_an_unfinished_cache(
    tiny: Path, tmp_path: Path, write_csv: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = tiny_rows(60)
    with interrupted_after(7), pytest.raises(KeyboardInterrupt):
        run(write_csv(rows), tmp_path / "c.h5", tiny)
    table = write_csv([(text, f"another {i % 3}") for i, (text, _) in enumerate(rows)])
    cache, _ = run(table, tmp_path / "c.h5", tiny)
    assert cache.record["kept_blocks"] > 0
    run(table, tmp_path / "fresh.h5", tiny)
    assert datasets(tmp_path / "c.h5") == datasets(tmp_path / "fresh.h5")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_length": 16}, r"max_length \(c.h5: 128, this run: 16\)"),
        ({"prefix": "query: "}, "prefix"),
        ({"precision": "bfloat16"}, "precision"),
        ({"storage": "float16"}, "storage"),
    ],
)
def test_another_identity_is_never_reused_or_overwritten_silently(
    tiny: Path, tmp_path: Path, write_csv: Callable[..., Path], options: dict[str, Any], message: str
) -> None:
    table = write_csv(tiny_rows(10))
    options = {"max_length": 60, **options}
    run(table, tmp_path / "c.h5", tiny, max_length=60)
    before = (tmp_path / "c.h5").read_bytes()
    with pytest.raises(OutputExistsError, match=message.replace("128", "60")):
        run(table, tmp_path / "c.h5", tiny, **options)
    assert (tmp_path / "c.h5").read_bytes() == before
    cache, _ = run(table, tmp_path / "c.h5", tiny, overwrite=True, **options)
    assert cache.record["sequences_encoded"] > 0


def test_other_rows_and_other_weights_are_named(tiny: Path, tmp_path: Path, write_csv: Callable[..., Path]) -> None:
    rows = tiny_rows(10)
    run(write_csv(rows), tmp_path / "c.h5", tiny)
    rows[6] = ("the screen broke", rows[6][1])
    with pytest.raises(OutputExistsError, match="1 texts, the first in row 7"):
        run(write_csv(rows), tmp_path / "c.h5", tiny)
    with pytest.raises(OutputExistsError, match=r"rows .*10, the table: 9"):
        run(write_csv(rows[:9]), tmp_path / "c.h5", tiny)
    other = save_tiny_encoder(tmp_path / "other", seed=1)
    with pytest.raises(OutputExistsError, match=r"something else: weights_sha256 \(c.h5: [0-9a-f]{12}…, this run: "):
        run(write_csv(tiny_rows(10)), tmp_path / "c.h5", other)


def test_a_moved_encoder_is_the_same_encoder(tiny: Path, tmp_path: Path, write_csv: Callable[..., Path]) -> None:
    table = write_csv(tiny_rows(10))
    run(table, tmp_path / "c.h5", tiny)
    moved = tmp_path / "moved"
    moved.mkdir()
    for file in tiny.iterdir():
        os.link(file, moved / file.name)
    assert "is current" in run(table, tmp_path / "c.h5", moved)[1][0]


@pytest.mark.usefixtures("large_table")
def test_a_table_that_changes_under_the_encoder_is_refused(
    tiny: Path, tmp_path: Path, write_csv: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    table = write_csv(tiny_rows(60))
    original = Encoder.__init__

    def load_slowly(self: Encoder, *args: Any, **options: Any) -> None:
        original(self, *args, **options)
        write_csv(tiny_rows(60, seed=1))

    monkeypatch.setattr(Encoder, "__init__", load_slowly)
    with pytest.raises(TableError, match="changed while it was read"):
        run(table, tmp_path / "c.h5", tiny)
    assert not (tmp_path / "c.h5").exists()


@pytest.mark.usefixtures("large_table")
def test_a_table_that_changes_while_it_is_encoded_is_refused(
    tiny: Path, tmp_path: Path, write_csv: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by the thread that reads ahead; the windows before it are kept."""
    table, original = write_csv(tiny_rows(200)), Backend.encode

    def encode(self: Backend, batch: Any) -> Any:
        os.utime(table, ns=(1, 1))
        return original(self, batch)

    with monkeypatch.context() as patch, pytest.raises(TableError, match="changed while it was read"):
        patch.setattr(Backend, "encode", encode)
        run(table, tmp_path / "c.h5", tiny)
    assert not (tmp_path / "c.h5").exists()
    assert run(table, tmp_path / "c.h5", tiny)[0].record["kept_blocks"] > 0


def test_a_text_of_no_tokens_is_named(tiny: Path, tmp_path: Path, write_csv: Callable[..., Path]) -> None:
    """By an encoder whose tokenizer adds no special tokens; in the last window, by the thread that reads ahead."""
    folder = tmp_path / "bare"
    shutil.copytree(tiny, folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps({**tokenizer, "post_processor": None}))
    rows = [*tiny_rows(40), ("\u200b", "class0")]
    with pytest.raises(EncoderError, match=r"table.csv, row 41: the encoder's tokenizer makes no tokens of this text"):
        run(write_csv(rows), tmp_path / "c.h5", folder)


def test_a_disk_that_fails_is_told_by_the_thread_that_writes(
    tiny: Path, tmp_path: Path, write_csv: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    table, original = write_csv(tiny_rows(60)), CacheWriter.write_block

    def write_block(self: CacheWriter, block: int, **arrays: Any) -> None:
        if block == 3:
            raise StorageError("cannot write: No space left on device")
        original(self, block, **arrays)

    with monkeypatch.context() as patch, pytest.raises(StorageError, match="No space left"):
        patch.setattr(CacheWriter, "write_block", write_block)
        run(table, tmp_path / "c.h5", tiny)
    assert not (tmp_path / "c.h5").exists()
    run(table, tmp_path / "c.h5", tiny)
    run(table, tmp_path / "whole.h5", tiny)
    assert datasets(tmp_path / "c.h5") == datasets(tmp_path / "whole.h5")


@pytest.mark.parametrize(("value", "storage"), [(np.nan, "float32"), (np.inf, "float32"), (1e5, "float16")])
def test_a_feature_that_cannot_be_kept_names_its_row(
    tiny: Path,
    tmp_path: Path,
    write_csv: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    value: float,
    storage: str,
) -> None:
    original = Backend.encode

    def encode(self: Backend, batch: Any) -> Any:
        features = original(self, batch)["cls"]
        for row, sequence in enumerate(batch):
            if len(sequence) == 9:
                features[row, 3] = value
        return {"cls": features}

    monkeypatch.setattr(Backend, "encode", encode)
    rows = [("good film", "x")] * 20 + [("the a good bad film phone very", "y")] + [("plot", "x")] * 5
    with pytest.raises(EncoderError, match=r"table.csv, row 21: .*feature"):
        run(write_csv(rows), tmp_path / "c.h5", tiny, storage=storage)
    assert not (tmp_path / "c.h5").exists()


def test_float16_halves_the_features(tiny: Path, tmp_path: Path, write_csv: Callable[..., Path]) -> None:
    table = write_csv(tiny_rows(40))
    full, _ = run(table, tmp_path / "a.h5", tiny)
    half, _ = run(table, tmp_path / "b.h5", tiny, storage="float16")
    assert half.features().nbytes * 2 == full.features().nbytes
    np.testing.assert_array_equal(half.features(), full.features().astype(np.float16))


def test_the_record_counts_what_was_cut_and_what_conflicts(tiny: Path, tmp_path: Path) -> None:
    texts = ["good film " * 20, "bad", "bad", "plot"]
    cache, _ = run({"text": texts, "label": ["a", "a", "b", "a"]}, tmp_path / "c.h5", tiny, max_length=16)
    assert (cache.record["truncated_rows"], cache.record["conflicting_texts"]) == (1, 1)
    assert (cache.record["rows"], cache.record["tokens"]) == (4, 16 + 3 * 3)


def test_the_prefix_stands_before_every_text(tiny: Path, tmp_path: Path) -> None:
    prefixed, _ = run(["film"], tmp_path / "a.h5", tiny, prefix="good ")
    plain, _ = run(["good film"], tmp_path / "b.h5", tiny)
    np.testing.assert_array_equal(prefixed.features(), plain.features())
    assert prefixed.identity.prefix == "good "


def test_progress_reaches_the_end(tiny: Path, tmp_path: Path, write_csv: Callable[..., Path]) -> None:
    events: list[Event] = []
    extract(write_csv(tiny_rows(50)), tmp_path / "c.h5", settings(tiny, **SMALL_BLOCKS), report=events.append)
    encoding = [event for event in events if isinstance(event, Step) and event.phase == "encoding"]
    assert (encoding[-1].done, encoding[-1].total) == (50, 50)
    assert [step.done for step in encoding] == sorted(step.done for step in encoding)


def test_each_run_ends_with_one_outcome_that_counts_what_it_did(
    tiny: Path, tmp_path: Path, write_csv: Callable[..., Path]
) -> None:
    def outcome(rows: list[tuple[str, str]], **options: Any) -> tuple[Action, dict[str, float]]:
        events: list[Event] = []
        extract(write_csv(rows), tmp_path / "c.h5", settings(tiny, **SMALL_BLOCKS), report=events.append, **options)
        (found,) = (event for event in events if isinstance(event, Outcome))
        assert events[-1] is found and (found.command, found.output) == ("extract", tmp_path / "c.h5")
        return found.action, {name: count for name, count in found.counts.items() if count}

    rows = [(f"good film {number:03}", "x") for number in range(60)]
    with interrupted_after(5), pytest.raises(KeyboardInterrupt):
        outcome(rows)
    resumed = {"rows": 60, "kept_blocks": 4, "sequences_encoded": 28, "tokens_encoded": 28 * 7}
    assert outcome(rows) == (Action.MADE, resumed)
    assert outcome(rows) == (Action.CURRENT, {"rows": 60})
    relabelled = [(text, "y") for text, _ in rows]
    assert outcome(relabelled) == (Action.RELABELLED, {"rows": 60})
    updated = {"rows": 61, "reused_rows": 60, "sequences_encoded": 1, "tokens_encoded": 3}
    assert outcome([*relabelled, ("bad", "y")], update=True) == (Action.MADE, updated)


def test_what_the_scan_holds_in_memory_is_gone_when_rows_are_encoded(
    tiny: Path, tmp_path: Path, write_csv: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its arrays are in the file by then; of a table of many millions of rows they would fill the memory."""
    scanned: list[weakref.ref[Any]] = []
    at_work: list[bool] = []

    def scan(*arguments: Any) -> TableScan:
        found = scan_table(*arguments)
        scanned[:] = [weakref.ref(found.text_hashes), weakref.ref(found.labels)]
        return found

    def encode(self: Backend, batch: Any) -> Any:
        if partial_path(tmp_path / "c.h5").exists():  # else a sample is encoded, to prove the encoder before an update
            at_work.extend(reference() is not None for reference in scanned)
        return original(self, batch)

    original = Backend.encode
    monkeypatch.setattr("headstart.stages.extract.scan_table", scan)
    monkeypatch.setattr(Backend, "encode", encode)
    with interrupted_after(3), pytest.raises(KeyboardInterrupt):
        run(write_csv(tiny_rows(40)), tmp_path / "c.h5", tiny)
    for rows, options in ((40, {}), (50, {"update": True}), (60, {"overwrite": True})):
        run(write_csv(tiny_rows(rows)), tmp_path / "c.h5", tiny, **options)
    assert at_work and not any(at_work)


def remove(name: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).unlink()


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (remove("config.json"), "holds no config.json"),
        (remove("tokenizer.json"), "cannot be read|no fast tokenizer"),
        (remove("model.safetensors"), "holds no weights"),
        (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "allow_pickled_weights=True"),
        (
            lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-9]),
            "cannot be read",
        ),
        (lambda f: (f / "config.json").write_text("{"), "cannot be read"),
        (lambda f: change(f, '"hidden_size": 32', '"hidden_size": 64'), "do not fit its config.json"),
        (lambda f: change(f, '"num_hidden_layers": 2', '"num_hidden_layers": 3'), "do not fit its config.json"),
        (lambda f: save_tiny_encoder(f, vocab_size=20), "do not belong together"),
        (lambda f: save_tiny_encoder(f, kind="gpt2"), "as in a decoder"),
        (lambda f: change(f, '"model_type": "bert"', '"model_type": "no-such-model"'), "cannot be read"),
    ],
)
def test_an_encoder_that_cannot_be_trusted_is_refused(
    tmp_path: Path, harm: Callable[[Path], Any], message: str
) -> None:
    folder = save_tiny_encoder(tmp_path / "encoder")
    harm(folder)
    with pytest.raises(EncoderError, match=message):
        run(["good film"], tmp_path / "c.h5", folder)
    assert not list(tmp_path.glob("c.h5*"))


def change(folder: Path, old: str, new: str) -> None:
    content = (folder / "config.json").read_text()
    assert old in content
    (folder / "config.json").write_text(content.replace(old, new))


def test_an_encoder_that_is_nowhere_is_one_line(tmp_path: Path) -> None:
    for name, message in [
        ("no-such-model", "is not on this machine, and the hub cannot be reached.*pass its folder: `encoder`"),
        ("./no-such-folder", "is not a folder"),
        ("what is this?", "is neither a folder nor the form of a hub id"),
    ]:
        with pytest.raises(EncoderError, match=message):
            extract(["good film"], tmp_path / "c.h5", ExtractSettings(encoder=name))


def test_pickled_weights_are_read_where_that_is_asked_for(tiny: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    folder = tmp_path / "pickled"
    folder.mkdir()
    for file in tiny.iterdir():
        if file.name != "model.safetensors":
            os.link(file, folder / file.name)
    torch.save(load_file(tiny / "model.safetensors"), folder / "pytorch_model.bin")
    pickled, _ = run(["good film"], tmp_path / "a.h5", folder, allow_pickled_weights=True)
    plain, _ = run(["good film"], tmp_path / "b.h5", tiny)
    np.testing.assert_array_equal(pickled.features(), plain.features())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_length": 129}, "reads at most 128"),
        ({"max_length": 2}, "no room for text"),
        ({"max_length": 0}, "at least 1"),
        ({"precision": "float8"}, "choose one of auto, float32"),
        ({"device": "tpu9"}, "cannot be used here"),
        ({"batch_tokens": 0}, "at least 1"),
        ({"block_rows": 0}, "at least 1"),
        ({"window_rows": 0}, "at least 1"),
        ({"block_rows": 24}, r"`window_rows` is 16; it must be a multiple of 24 \(`block_rows`\)"),
    ],
)
def test_settings_out_of_range_are_refused(tiny: Path, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        run(["good film"], tmp_path / "c.h5", tiny, **options)


def test_an_output_that_cannot_be_written_is_said_before_the_first_row(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(OutputExistsError, match="is not a folder"):
        run(["good film"], tmp_path / "nowhere" / "c.h5", tiny)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(StorageError, match="No space left on device"):
        run(["good film"], tmp_path / "c.h5", tiny)


def test_what_is_not_a_cache_is_never_overwritten(tiny: Path, tmp_path: Path, write_csv: Callable[..., Path]) -> None:
    table = write_csv(tiny_rows(10))
    before = table.read_bytes()
    for out, reason in ((table, "is the table that is read"), (tmp_path, "it is never overwritten")):
        with pytest.raises(OutputExistsError, match=reason):
            run(table, out, tiny, overwrite=True)
    assert table.read_bytes() == before


def test_a_damaged_cache_is_replaced_where_told(tiny: Path, tmp_path: Path, write_csv: Callable[..., Path]) -> None:
    table, out = write_csv(tiny_rows(20)), tmp_path / "c.h5"
    run(table, out, tiny)
    out.write_bytes(out.read_bytes()[:5000])
    with pytest.raises(DamagedError, match="cut short"):
        run(table, out, tiny)
    run(table, out, tiny, overwrite=True)[0].check()


def test_a_damaged_cache_is_not_relabelled(tiny: Path, tmp_path: Path, write_csv: Callable[..., Path]) -> None:
    rows = tiny_rows(20)
    run(write_csv(rows), tmp_path / "c.h5", tiny)
    flip_a_byte(tmp_path / "c.h5", "features/cls", 0)
    content = (tmp_path / "c.h5").read_bytes()
    with pytest.raises(DamagedError, match="1 blocks are damaged"):
        run(write_csv([(text, "z") for text, _ in rows]), tmp_path / "c.h5", tiny)
    assert (tmp_path / "c.h5").read_bytes() == content


def test_the_package_offers_the_stages() -> None:
    assert headstart.extract is extract
    assert set(headstart.__all__) <= set(dir(headstart))
    with pytest.raises(AttributeError):
        headstart.no_such_name  # noqa: B018


def test_an_interrupted_relabelling_leaves_the_cache_and_is_done_again(
    tiny: Path, tmp_path: Path, write_csv: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = tiny_rows(30)
    run(write_csv(rows), tmp_path / "c.h5", tiny)
    before = (tmp_path / "c.h5").read_bytes()
    table = write_csv([(text, "new") for text, _ in rows])
    with monkeypatch.context() as patch:
        patch.setattr(CacheWriter, "finish", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(table, tmp_path / "c.h5", tiny)
    assert (tmp_path / "c.h5").read_bytes() == before
    assert [path.name for path in tmp_path.glob("c.h5*")] == ["c.h5"]
    assert run(table, tmp_path / "c.h5", tiny)[0].label_names == ("new",)


def interrupt(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_a_damaged_unfinished_cache_is_thrown_away_only_where_told(
    tiny: Path, tmp_path: Path, write_csv: Callable[..., Path]
) -> None:
    table, partial = write_csv(tiny_rows(10)), partial_path(tmp_path / "c.h5")
    run(table, tmp_path / "c.h5", tiny)
    (tmp_path / "c.h5").rename(partial)
    damaged = partial.read_bytes()[:20_000]
    partial.write_bytes(damaged)
    with pytest.raises(OutputExistsError, match="remove it, or pass `overwrite=True`"):
        run(table, tmp_path / "c.h5", tiny)
    assert partial.read_bytes() == damaged
    run(table, tmp_path / "c.h5", tiny, overwrite=True)[0].check()


def test_an_output_of_no_use_is_refused_before_any_work(
    tiny: Path, tmp_path: Path, write_csv: Callable[..., Path]
) -> None:
    (tmp_path / "parts").mkdir()
    write_csv(tiny_rows(10), name="parts/a.csv")
    with pytest.raises(OutputExistsError, match="lies in the table's own folder"):
        run(tmp_path / "parts", tmp_path / "parts" / "c.h5", tiny)
    with pytest.raises(OutputExistsError, match="is no name for a cache"):
        run(["good film"], Path(), tiny)
    with pytest.raises(SettingsError, match="is not supported"):
        run(["good film"], tmp_path / "c.h5", tiny, device="meta")
    with pytest.raises(SettingsError, match=r"prefix` is .* it must be UTF-8"):
        run(["good film"], tmp_path / "c.h5", tiny, prefix="\udcff")
