"""Rows appended to shards: as if they had been in the table, and nothing that was there is written again."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from extracting import SMALL_BLOCKS, datasets, flip_a_byte, interrupted_after, noting, run_small_blocks
from extracting import settings as settings_of
from headstart.cache.errors import (
    DamagedError,
    FormatError,
    HeadstartError,
    IdentityError,
    OutputExistsError,
    SettingsError,
    TableError,
)
from headstart.cache.reader import Cache, JoinedCache, open_cache
from headstart.cache.siblings import shards_path
from headstart.stages.extract import extract
from headstart.stages.join import join
from headstart.stages.repair import repair
from headstart.stages.settings import ExtractSettings, Task
from headstart.stages.verify import verify
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from processes import blocks_of, command, fault_at, finish
from tiny import save_tiny_encoder, tiny_rows

Rows = Sequence[tuple[str, Any]]


def columns(rows: Rows) -> dict[str, list[Any]]:
    return {name: [row[place] for row in rows] for place, name in enumerate(("text", "label"))}


def append(table: Any, out: Path, **options: Any) -> tuple[Cache, list[str]]:
    """Append a table; return the cache, and the notes."""
    notes: list[str] = []
    arguments = ("labels", "shards", "wait", "update", "overwrite", "shard", "ray")
    chosen = {name: options.pop(name) for name in arguments if name in options}
    path = extract(table, out, ExtractSettings(**options), append=True, report=noting(notes), **chosen)
    return open_cache(path), notes


def files(out: Path) -> dict[str, tuple[int, int]]:
    """The shards, by name, with what tells that one was written."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in sorted(shards_path(out).iterdir())}


def contents(out: Path) -> dict[str, dict[str, bytes]]:
    return {path.name: datasets(path) for path in sorted(shards_path(out).iterdir())}


def require_same_rows(one: Cache, other: Cache) -> None:
    for name in ("text_hashes", "token_hashes", "lengths", "truncated"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    np.testing.assert_array_equal(one.labels, other.labels)
    np.testing.assert_array_equal(one.row_numbers, other.row_numbers)
    assert (one.label_names, one.label_kind, one.identity) == (other.label_names, other.label_kind, other.identity)
    np.testing.assert_allclose(np.asarray(one.features()), np.asarray(other.features()), atol=1e-5)
    counted = ("rows", "distinct_texts", "conflicting_texts", "distinct_sequences", "tokens", "skipped_rows")
    assert {name: one.record[name] for name in counted} == {name: other.record[name] for name in counted}


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_appended_rows_are_as_rows_of_the_table(
    data: st.DataObject, tiny: Path, tmp_path_factory: pytest.TempPathFactory, encoded: list[list[int]]
) -> None:
    folder = tmp_path_factory.mktemp("appended")
    words = st.sampled_from([text for text, _ in tiny_rows(12)])
    rows = [("one", "a"), ("two", "b"), *data.draw(st.lists(st.tuples(words, st.sampled_from("ab")), max_size=20))]
    out, count = folder / "c.h5", data.draw(st.integers(1, 2))
    run_small_blocks(columns(rows), out, tiny, shards=count)
    for new in ("three", "four"):
        more = [*data.draw(st.lists(st.tuples(words, st.sampled_from("ab")), max_size=20)), (new, "a")]
        added = data.draw(st.integers(1, min(3, len(more))))
        before, known = files(out), {text for text, _ in rows}
        encoded.clear()
        cache, _ = append(columns(more), out, shards=added)
        assert len(encoded) == len({text for text, _ in more} - known)
        assert isinstance(cache, JoinedCache) and len(cache.shards) == len(before) + added
        after = files(out)
        assert {name: after[name] for name in before} == before
        assert [path.name for path in sorted(folder.iterdir())] == ["c.h5", "c.h5.shards"]
        rows = [*rows, *more]
    cache.check()
    one, _ = run_small_blocks(columns(rows), folder / "one.h5", tiny)
    require_same_rows(cache, one)
    join(out, copy=folder / "copy.h5")
    require_same_rows(open_cache(folder / "copy.h5"), one)
    out.unlink()
    join(out)
    require_same_rows(open_cache(out), one)


def test_numbers_of_rows_go_on(tiny: Path, tmp_path: Path, write_csv: Callable[..., Path]) -> None:
    """As in a folder of both files, bad rows counted."""
    rows, folder, out = tiny_rows(30), tmp_path / "both", tmp_path / "c.h5"
    folder.mkdir()
    for name, part in (
        ("1.csv", [("", "x"), *rows[:12], ("", "x")]),
        ("2.csv", [*rows[12:20], (" ", "x"), *rows[20:]]),
    ):
        (folder / name).write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in part))
    whole, _ = run_small_blocks(folder, tmp_path / "one.h5", tiny, skip_bad_rows=True)
    run_small_blocks(folder / "1.csv", out, tiny, skip_bad_rows=True, shards=2)
    cache, _ = append(folder / "2.csv", out, skip_bad_rows=True, shards=3)
    require_same_rows(cache, whole)
    assert cache.place(12) == "row 13 (row 15 of the table)"


KINDS: dict[str, tuple[list[Any], list[Any], dict[str, Any]]] = {
    "classes": (["a", "b", "c", "c"], ["c", "a"], {}),
    "whole numbers": ([0, 1, 2, 10], ["10", "1.0"], {}),
    "several": ([["a", "b"], [], ["c"], ["a"]], [["c"], ["a", "c"]], {}),
    "numbers": ([0.5, 1.5, 2.0, -1.0], [3.0, 7.0], {}),
    "ordinal": (["low", "high", "mid", "low"], ["high", "mid"], {"task": "ordinal", "order": ("low", "mid", "high")}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_labels_are_numbered_as_the_cache_numbers_them(kind: str, tiny: Path, tmp_path: Path) -> None:
    first, second, options = KINDS[kind]
    texts = [text for text, _ in tiny_rows(6)]
    if "task" in options:
        options = {**options, "task": Task(options["task"])}
    run_small_blocks({"text": texts[:4], "label": first}, tmp_path / "c.h5", tiny, shards=2, **options)
    cache, _ = append({"text": texts[4:], "label": second}, tmp_path / "c.h5")
    both = [str(each) for each in (*first, *second)] if kind == "whole numbers" else [*first, *second]
    whole, _ = run_small_blocks({"text": texts, "label": both}, tmp_path / "one.h5", tiny, **options)
    require_same_rows(cache, whole)


def test_the_same_rows_are_not_appended_twice(tiny: Path, tmp_path: Path, encoded: list[list[int]]) -> None:
    rows, out = tiny_rows(40), tmp_path / "c.h5"
    run_small_blocks(columns(rows[:20]), out, tiny, shards=2)
    append(columns(rows[20:]), out, shards=2)
    before, said = files(out), []
    encoded.clear()
    for count in (1, 2):
        cache, said = append(columns(rows[20:]), out, shards=count)
        assert cache.rows == 40 and files(out) == before and not encoded
    assert said[-1].endswith("is current: it ends with these 20 rows already")
    relabelled = [(text, "class1") for text, _ in rows[20:]]
    cache, _ = append(columns(relabelled), out)
    assert cache.rows == 40 and not encoded and len(files(out)) == 4
    require_same_rows(cache, run_small_blocks(columns([*rows[:20], *relabelled]), tmp_path / "one.h5", tiny)[0])
    cache, _ = append(columns(rows[:20]), out)  # other rows than the last ones
    assert cache.rows == 60


@pytest.mark.parametrize("batches", [0, 1, 3])
def test_an_interrupted_run_is_carried_on(
    batches: int, tiny: Path, tmp_path: Path, write_csv: Callable[..., Path], encoded: list[list[int]]
) -> None:
    rows = tiny_rows(80)
    for name in ("a", "b"):
        run_small_blocks(columns(rows[:20]), tmp_path / f"{name}.h5", tiny, shards=2)
    more = write_csv(rows[20:])
    append(more, tmp_path / "a.h5", shards=3)
    with interrupted_after(batches), pytest.raises(KeyboardInterrupt):
        append(more, tmp_path / "b.h5", shards=3)
    assert open_cache(tmp_path / "b.h5").rows == 20
    append(more, tmp_path / "b.h5", shards=3)
    assert contents(tmp_path / "a.h5") == contents(tmp_path / "b.h5")


def test_a_killed_run_is_carried_on_and_ends_at_the_same_bytes(
    tiny: Path, tmp_path: Path, write_csv: Callable[..., Path]
) -> None:
    rows, eight = tiny_rows(60), partial(blocks_of, 8)
    table = write_csv(rows[:20])
    made = [tmp_path / f"{number}.h5" for number in range(9)]
    for out in made:
        run_small_blocks(table, out, tiny, shards=2)
    more, killed = write_csv(rows[20:], "more.csv"), 0
    arguments = ["extract", "--append", more, "--shards", "2", "--out"]
    assert finish([*arguments, made[0]], tmp_path / "log", eight)[0] == 0
    points = [("fsync", call) for call in (1, 4, 9, 14)] + [("replace", call) for call in (1, 3, 5, 7)]
    for out, (point, call) in zip(made[1:], points, strict=True):
        code, _ = finish([*arguments, out], tmp_path / "log", eight, partial(fault_at, point, call, "after"))
        killed += code == -signal.SIGKILL
        assert open_cache(out).rows in (20, 60)
        code, said = finish([*arguments, out], tmp_path / "log", eight)
        assert code == 0, (point, call, said)
        assert contents(out) == contents(made[0]), (point, call)
        open_cache(out).check()
        left = [path.name for path in (*tmp_path.iterdir(), *shards_path(out).iterdir()) if ".headstart-" in path.name]
        assert not left, (point, call)
    assert killed > 5


def test_the_whole_table_serves_the_other_commands(
    tiny: Path, tmp_path: Path, write_csv: Callable[..., Path], encoded: list[list[int]]
) -> None:
    rows, out = tiny_rows(40), tmp_path / "c.h5"
    run_small_blocks(columns(rows[:20]), out, tiny, shards=2)
    append(columns(rows[20:]), out)
    whole = write_csv(rows)
    assert not verify(out, encoder=str(tiny), table=whole).findings
    last = max(shards_path(out).iterdir())
    flip_a_byte(last, "features/cls", 3)
    assert [finding.where for finding in verify(out).findings] == [f"{last.name}, block 1, rows 1 to 8"]
    repair(out, whole)
    assert not verify(out).findings
    encoded.clear()
    extract(whole, out, settings_of(tiny, **SMALL_BLOCKS), update=True)
    assert not encoded
    require_same_rows(open_cache(out), run_small_blocks(whole, tmp_path / "one.h5", tiny)[0])


def test_a_lost_shard_is_appended_again(tiny: Path, tmp_path: Path, encoded: list[list[int]]) -> None:
    rows, out = tiny_rows(40), tmp_path / "c.h5"
    run_small_blocks(columns(rows[:20]), out, tiny, shards=2)
    append(columns(rows[20:]), out, shards=2)
    before = contents(out)
    for lost in (1, 2):  # of the two that were appended
        for path in sorted(shards_path(out).iterdir())[-lost:]:
            path.unlink()
        with pytest.raises(DamagedError, match="lacks the shard"):
            open_cache(out)
        with pytest.raises(DamagedError, match="lacks shard 4 of 4" if lost == 1 else "names 4 shards, and 2 are here"):
            join(out)
        encoded.clear()
        append(columns(rows[20:]), out, shards=2)
        assert contents(out) == before and 0 < len(encoded) <= 10 * lost
    min(shards_path(out).iterdir()).unlink()
    with pytest.raises(DamagedError, match="is missing; extract the whole table"):
        append(columns(rows[:5]), out)


def test_shards_of_an_interrupted_run_are_not_thrown_away(tiny: Path, tmp_path: Path) -> None:
    rows, out = tiny_rows(80), tmp_path / "c.h5"
    run_small_blocks(columns(rows[:20]), out, tiny, shards=2)
    with interrupted_after(8), pytest.raises(KeyboardInterrupt):
        append(columns(rows[20:]), out, shards=3)
    before = files(out)
    assert sum(name.endswith(".h5") and ".common" not in name for name in before) > 2
    with pytest.raises(OutputExistsError, match="append these first, or remove the file"):
        append(columns(rows[50:]), out)
    assert {name: state for name, state in files(out).items() if name in before} == before
    assert append(columns(rows[20:]), out, shards=3)[0].rows == 80
    assert append(columns(rows[50:]), out)[0].rows == 110


def test_a_shard_of_another_table_is_not_joined(tiny: Path, tmp_path: Path) -> None:
    """Neither by `append` nor by `join`, though its number, its rows and its labels are the same."""
    rows, outs = tiny_rows(60), [tmp_path / "a.h5", tmp_path / "b.h5"]
    for out, part in zip(outs, (rows[:20], rows[20:40]), strict=True):
        run_small_blocks(columns(part), out, tiny, shards=2)
    ours, theirs = (sorted(shards_path(out).iterdir())[1] for out in outs)
    ours.write_bytes(theirs.read_bytes())
    with pytest.raises(DamagedError, match="another shard than its name says"):
        append(columns(rows[40:]), outs[0])
    outs[0].unlink()
    with pytest.raises(DamagedError, match="another shard than its name says"):
        join(outs[0])


def test_a_setting_of_the_features_is_the_caches(tiny: Path, tmp_path: Path) -> None:
    rows, out = tiny_rows(20), tmp_path / "c.h5"
    options: dict[str, Any] = {"features": ("cls", "mean"), "max_length": 4, "storage": "float16"}
    run_small_blocks(columns(rows[:10]), out, tiny, shards=2, **options)
    cache, _ = append(columns(rows[10:]), out)
    assert cache.layout.block_rows == 8 and cache.layout.storage == "float16"
    whole, _ = run_small_blocks(columns(rows), tmp_path / "one.h5", tiny, **options)
    for name in ("cls", "mean"):
        np.testing.assert_allclose(cache.features(name)[:], whole.features(name), atol=1e-3)
    np.testing.assert_array_equal(cache.truncated[:], whole.truncated)
    with pytest.raises(SettingsError, match="`max_length` has no effect with `append=True`"):
        append(columns(rows), out, max_length=8)


def test_what_cannot_be_appended_is_refused_and_nothing_changes(tiny: Path, tmp_path: Path) -> None:
    rows, out, one = tiny_rows(20), tmp_path / "c.h5", tmp_path / "one.h5"
    other = save_tiny_encoder(tmp_path / "other", seed=1)
    run_small_blocks(columns(rows), out, tiny, shards=2)
    run_small_blocks(columns(rows), one, tiny)
    before = (files(out), out.read_bytes())
    texts = [text for text, _ in rows]
    cases: list[tuple[type[HeadstartError], str, Any, Path, dict[str, Any]]] = [
        (FormatError, "is a cache of one file, to which no rows are appended", columns(rows), one, {}),
        (FormatError, "does not exist; make it with", columns(rows), tmp_path / "none.h5", {}),
        (TableError, r"has the label 'new', and .* does not", columns([("text", "new")]), out, {}),
        (TableError, "has no labels, and .* has labels", columns(rows), out, {"label_column": None}),
        (TableError, "has no column 'label'", {"text": texts}, out, {}),
        (TableError, "lists of labels", {"text": texts, "label": [["class0"]] * 20}, out, {}),
        (IdentityError, "is not the one that", columns(rows), out, {"encoder": str(other)}),
        (IdentityError, "single texts; leave out", columns(rows), out, {"text_pair_column": "label"}),
        (SettingsError, "`update` has no effect with", columns(rows), out, {"update": True}),
        (SettingsError, "`overwrite` has no effect with", columns(rows), out, {"overwrite": True}),
        (SettingsError, "`shard` has no effect with", columns(rows), out, {"shard": "1/2"}),
        (SettingsError, "must be from 1 to 20 for 20 rows", columns(rows), out, {"shards": 21}),
    ]
    for kind, message, table, path, options in cases:
        with pytest.raises(kind, match=message):
            append(table, path, **options)
    assert (files(out), out.read_bytes()) == before


def test_the_command_line(tiny: Path, tmp_path: Path, write_csv: Callable[..., Path]) -> None:
    rows, out = tiny_rows(20), tmp_path / "c.h5"
    run_small_blocks(columns(rows), out, tiny, shards=2)
    more = write_csv(tiny_rows(30)[20:])
    done = command("extract", "--append", more, "--out", out)
    assert done.returncode == 0, done.stderr
    assert "in 3 shards" in done.stdout and "30" in done.stdout
    done = command("extract", "--append", more, "--out", out, "--overwrite")
    assert done.returncode == 2 and "--overwrite has no effect with --append" in done.stderr
    done = command("extract", more, more, "--append", "--out", tmp_path)
    assert done.returncode == 2 and "--append has no effect with several tables" in done.stderr
