"""A table in shards: the rows of one file, each text encoded once, nothing finished lost; every command takes it."""

from __future__ import annotations

import csv
import os
import random
import shutil
import signal
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from caches import IDENTITY
from extracting import SMALL_BLOCKS, datasets, flip_a_byte, interrupted_after, run_small_blocks
from extracting import run_small_blocks as run
from extracting import settings as settings_of
from headstart.cache.errors import DamagedError, FormatError, OutputExistsError, SettingsError
from headstart.cache.hashing import hash_texts
from headstart.cache.reader import Cache, JoinedCache, open_cache
from headstart.cache.siblings import plan_path, shards_path
from headstart.stages.extract import extract
from headstart.stages.extraction import plan as planning
from headstart.stages.extraction.plan import even_counts, plan_shards
from headstart.stages.join import join
from headstart.stages.progress import Action, Event, Outcome, Step
from headstart.stages.repair import repair
from headstart.stages.tables.scan import scan_table
from headstart.stages.tables.table import open_table
from headstart.stages.verify import verify
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from processes import blocks_of, command, fault_at, finish
from tiny import tiny_rows

Rows = list[tuple[str, str]]


@pytest.fixture
def rows() -> Rows:
    """60 rows, of which 18 are copies, in all parts of the table."""
    rows = tiny_rows(42)
    rows += [*rows[3:20], rows[3]]
    random.Random(0).shuffle(rows)
    return rows


def distinct(rows: Rows) -> int:
    return len({text for text, _ in rows})


def shard_files(out: Path) -> list[Path]:
    return sorted(shards_path(out).iterdir())


def contents(out: Path) -> dict[str, dict[str, bytes]]:
    return {path.name: datasets(path) for path in shard_files(out)}


def same_rows(one: Cache, other: Cache) -> bool:
    """Whether two caches hold the same rows: features within 1e-5, all else equal."""
    for name in ("text_hashes", "token_hashes", "lengths", "truncated"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    np.testing.assert_array_equal(one.labels, other.labels)
    assert one.label_names == other.label_names and one.identity == other.identity
    for name in one.layout.widths:
        np.testing.assert_allclose(np.asarray(one.features(name)), np.asarray(other.features(name)), atol=1e-5)
    return True


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_shards_hold_the_rows_of_one_file_and_each_text_is_encoded_once(
    data: st.DataObject, tiny: Path, tmp_path_factory: pytest.TempPathFactory, encoded: list[list[int]]
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    words = st.sampled_from([text for text, _ in tiny_rows(12)])
    table = data.draw(st.lists(st.tuples(words, st.sampled_from("ab")), min_size=1, max_size=40))
    count = data.draw(st.integers(1, len(table)))
    columns = {name: [row[place] for row in table] for place, name in enumerate(("text", "label"))}
    one, _ = run(columns, folder / "one.h5", tiny)
    encoded.clear()
    cache, _ = run(columns, folder / "c.h5", tiny, shards=count)
    assert len(encoded) == distinct(table) == cache.record["sequences_encoded"]
    assert isinstance(cache, JoinedCache) and len(cache.shards) == count
    cache.check()
    assert same_rows(cache, one)
    counted = ("rows", "distinct_texts", "conflicting_texts", "distinct_sequences", "tokens", "truncated_rows")
    assert {name: cache.record[name] for name in counted} == {name: one.record[name] for name in counted}
    assert sorted(path.name for path in folder.iterdir()) == ["c.h5", "c.h5.shards", "one.h5"]
    assert len(shard_files(folder / "c.h5")) == count


def test_a_plan_says_where_each_text_is_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the hashes are compared part by part, so that memory is bounded."""
    rng = np.random.default_rng(0)
    texts = [f"text {number}" for number in rng.integers(0, 300, 400)]
    scan = scan_table(open_table(texts, text_column="text", label_column=None), lambda event: None)
    options: dict[str, Any] = {"storage": "float32", "block_rows": 8, "window_rows": 16}
    plans = []
    for part_rows in (1 << 24, 50):
        monkeypatch.setattr(planning, "_PART_ROWS", part_rows)
        plans.append(plan_shards(scan, even_counts(400, 7), identity=IDENTITY, **options))
    assert plans[0].shards == plans[1].shards
    np.testing.assert_array_equal(plans[0].holds, plans[1].holds)
    shard_of = [next(s.number for s in plans[0].shards if s.start <= row < s.stop) for row in range(400)]
    holders = {text: {shard_of[row] for row in range(400) if texts[row] == text} for text in texts}
    for shard in plans[0].shards:
        inside = range(shard.start, shard.stop)
        owners = {min(holders[texts[row]]) for row in inside if len(holders[texts[row]]) > 1}
        assert {source.number for source in plans[0].sources(shard)} == owners
        first = [row for row in inside if len(holders[texts[row]]) > 1 and texts.index(texts[row]) == row]
        assert (np.flatnonzero(plans[0].first(shard)) + shard.start).tolist() == first


def test_rows_have_their_numbers_in_the_table(tiny: Path, tmp_path: Path, write_csv: Callable[..., Path]) -> None:
    rows = tiny_rows(30)
    table = write_csv([("", "x"), *rows[:12], ("", "x"), *rows[12:], (" ", "x")])
    one, _ = run(table, tmp_path / "one.h5", tiny, skip_bad_rows=True)
    cache, _ = run(table, tmp_path / "c.h5", tiny, skip_bad_rows=True, shards=4)
    np.testing.assert_array_equal(cache.row_numbers, one.row_numbers)
    assert cache.record["skipped_rows"] == one.record["skipped_rows"] == 3
    assert cache.place(29) == one.place(29) == "row 30 (row 32 of the table)"


def test_the_runs_of_single_shards_end_at_the_same_bytes(
    rows: Rows, tiny: Path, tmp_path: Path, write_csv: Callable[..., Path], encoded: list[list[int]]
) -> None:
    """In any order, some of them twice; the last one joins them."""
    table = write_csv(rows)
    run(table, tmp_path / "a.h5", tiny, shards=5)
    encoded.clear()
    out = tmp_path / "b.h5"
    for number in (4, 1, 4, 5, 2):
        shard = f"{number}/5"
        path, _ = run_shard(table, out, tiny, shard=shard)
        assert path.parent == shards_path(out) and not out.exists() and plan_path(out).is_dir()
    run_shard(table, out, tiny, shard="3/5")
    assert len(encoded) == distinct(rows)
    assert contents(out) == contents(tmp_path / "a.h5")
    open_cache(out).check()
    assert not plan_path(out).exists()
    encoded.clear()
    assert run_shard(table, out, tiny, shard="2/5")[1][-1].action is Action.CURRENT
    assert not encoded and not plan_path(out).exists()


def run_shard(table: Path, out: Path, encoder: Path, **options: Any) -> tuple[Path, list[Outcome]]:
    """Make one shard; return its path, and what was done."""
    outcomes: list[Outcome] = []
    report: Callable[[Event], None] = lambda event: outcomes.append(event) if isinstance(event, Outcome) else None  # noqa: E731
    return extract(table, out, settings_of(encoder, **SMALL_BLOCKS), report=report, **options), outcomes


@pytest.mark.parametrize("batches", [1, 5, 9])
def test_an_interrupted_run_is_carried_on(
    batches: int, rows: Rows, tiny: Path, tmp_path: Path, write_csv: Callable[..., Path], encoded: list[list[int]]
) -> None:
    table, out = write_csv(rows), tmp_path / "b.h5"
    run(table, tmp_path / "a.h5", tiny, shards=5)
    with interrupted_after(batches), pytest.raises(KeyboardInterrupt):
        run(table, out, tiny, shards=5)
    assert not out.exists()
    whole = {path.name: path.stat().st_ino for path in shards_path(out).glob("*.h5")}
    run(table, out, tiny, shards=5)
    assert contents(out) == contents(tmp_path / "a.h5")
    kept = {path.name: path.stat().st_ino for path in shard_files(out)}
    assert all(kept[name] == inode for name, inode in whole.items() if name in kept)


KILLS = [("fsync", call, "after") for call in range(2, 30, 3)] + [
    ("replace", call, "after") for call in range(1, 12, 2)
]


def test_a_killed_run_is_carried_on_and_ends_at_the_same_bytes(
    rows: Rows, tiny: Path, tmp_path: Path, write_csv: Callable[..., Path]
) -> None:
    table, eight = write_csv(rows), partial(blocks_of, 8)
    arguments = ["extract", table, "--encoder", tiny, "--batch-tokens", "64", "--precision", "float32", "--shards", "3"]
    assert finish([*arguments, "--out", tmp_path / "whole.h5"], tmp_path / "log", eight)[0] == 0
    killed = 0
    for number, (point, call, when) in enumerate(KILLS):
        out = tmp_path / f"{number}.h5"
        code, _ = finish([*arguments, "--out", out], tmp_path / "log", eight, partial(fault_at, point, call, when))
        killed += code == -signal.SIGKILL
        code, said = finish([*arguments, "--out", out], tmp_path / "log", eight)
        assert code == 0, (point, call, said)
        assert contents(out) == contents(tmp_path / "whole.h5"), (point, call)
        open_cache(out).check()
        left = [path.name for path in (*tmp_path.iterdir(), *shards_path(out).iterdir()) if ".headstart-" in path.name]
        assert not left, (point, call)
    assert killed > 10


HARM: dict[str, Callable[[Path], Any]] = {
    "deleted": Path.unlink,
    "cut short": lambda path: os.truncate(path, path.stat().st_size - 1),
    "another": lambda path: shutil.copy(path.parent / min(path.parent.iterdir()).name, path),
}


@pytest.mark.parametrize("harm", HARM)
def test_a_lost_shard_is_made_again(
    harm: str, rows: Rows, tiny: Path, tmp_path: Path, write_csv: Callable[..., Path], encoded: list[list[int]]
) -> None:
    table, out = write_csv(rows), tmp_path / "c.h5"
    run(table, out, tiny, shards=5)
    before = contents(out)
    HARM[harm](shard_files(out)[2])
    with pytest.raises(DamagedError, match=r"run the same headstart extract again|not the shard that was joined"):
        open_cache(out)
    encoded.clear()
    cache, _ = run(table, out, tiny)
    assert contents(out) == before
    assert len(encoded) < distinct(rows)
    assert cache.record["seconds"] > cache.record["encode_seconds"]  # of all shards


def test_progress_is_that_of_the_whole_table(tiny: Path, tmp_path: Path) -> None:
    texts = [text for text, _ in tiny_rows(40)]
    events: list[Event] = []
    asked = settings_of(tiny, label_column=None)
    cache = open_cache(extract(texts, tmp_path / "c.h5", asked, shards=4, report=events.append))
    steps = [event for event in events if isinstance(event, Step) and event.phase == "encoding"]
    assert {step.total for step in steps} == {40}
    for counted in ([step.done for step in steps], [step.tokens for step in steps]):
        assert counted == sorted(counted)
    assert 0 < steps[-1].tokens <= cache.record["tokens_encoded"]  # common texts are counted on their own


def test_a_current_cache_is_left_alone(
    rows: Rows, tiny: Path, tmp_path: Path, write_csv: Callable[..., Path], encoded: list[list[int]]
) -> None:
    table, out = write_csv(rows), tmp_path / "c.h5"
    run(table, out, tiny, shards=3)
    state = [(path.name, path.stat().st_ino) for path in (out, *shard_files(out))]
    encoded.clear()
    for options in ({"shards": 3}, {}, {"update": True}):
        assert "is current" in run(table, out, tiny, **options)[1][-1]
    assert not encoded and state == [(path.name, path.stat().st_ino) for path in (out, *shard_files(out))]


def test_other_labels_are_written_without_encoding(
    rows: Rows, tiny: Path, tmp_path: Path, write_csv: Callable[..., Path], encoded: list[list[int]]
) -> None:
    out = tmp_path / "c.h5"
    before, _ = run(write_csv(rows), out, tiny, shards=3)
    features = np.array(before.features())
    encoded.clear()
    other = [(text, f"other {label}") for text, label in rows]
    cache, _ = run(write_csv(other), out, tiny)
    assert not encoded and cache.label_names == tuple(f"other {name}" for name in before.label_names or ())
    cache.check()
    np.testing.assert_array_equal(cache.features(), features)
    assert len(shard_files(out)) == 3


def test_an_update_encodes_new_texts_alone_and_the_old_cache_stays_until_the_end(
    rows: Rows, tiny: Path, tmp_path: Path, write_csv: Callable[..., Path], encoded: list[list[int]]
) -> None:
    out = tmp_path / "c.h5"
    run(write_csv(rows), out, tiny, shards=3)
    changed = [*rows[:30], ("a very fine plot", "class0"), *rows[33:]]
    with pytest.raises(OutputExistsError, match="holds something else: rows"):
        run(write_csv(changed), out, tiny)
    with interrupted_after(0), pytest.raises(KeyboardInterrupt):
        run(write_csv(changed), out, tiny, update=True)
    open_cache(out).check()  # the old one
    encoded.clear()
    cache, _ = run(write_csv(changed), out, tiny, update=True)
    assert len(encoded) == 1
    np.testing.assert_array_equal(cache.text_hashes, hash_texts(text for text, _ in changed))
    assert len(shard_files(out)) == 3
    fresh, _ = run(write_csv(changed), tmp_path / "fresh.h5", tiny)
    assert same_rows(cache, fresh)


def test_shards_of_another_table_are_not_thrown_away(
    rows: Rows, tiny: Path, tmp_path: Path, write_csv: Callable[..., Path]
) -> None:
    out = tmp_path / "c.h5"
    with interrupted_after(9), pytest.raises(KeyboardInterrupt):
        run(write_csv(rows), out, tiny, shards=5)
    assert list(shards_path(out).glob("*-????????????????.h5"))
    with pytest.raises(OutputExistsError, match="is a shard of something else; to take over"):
        run(write_csv(rows[5:]), out, tiny, shards=5)
    run(write_csv(rows[5:]), out, tiny, shards=5, update=True)


def test_a_cache_of_one_file_becomes_shards_without_encoding(
    rows: Rows, tiny: Path, tmp_path: Path, write_csv: Callable[..., Path], encoded: list[list[int]]
) -> None:
    table, out = write_csv(rows), tmp_path / "c.h5"
    run(table, out, tiny)
    one, _ = run(table, tmp_path / "one.h5", tiny)
    encoded.clear()
    cache, _ = run(table, out, tiny, shards=3)
    assert not encoded and isinstance(cache, JoinedCache) and same_rows(cache, one)


def test_joined_shards_are_reused(
    rows: Rows, tiny: Path, tmp_path: Path, write_csv: Callable[..., Path], encoded: list[list[int]]
) -> None:
    run(write_csv(rows), tmp_path / "c.h5", tiny, shards=3)
    encoded.clear()
    run(write_csv(rows), tmp_path / "one.h5", tiny, reuse=[tmp_path / "c.h5"])
    assert not encoded


def test_join_writes_the_cache_again(rows: Rows, tiny: Path, tmp_path: Path, write_csv: Callable[..., Path]) -> None:
    out = tmp_path / "c.h5"
    before, _ = run(write_csv(rows), out, tiny, shards=3)
    out.unlink()
    join(out)
    after = open_cache(out)
    assert after.rows == before.rows and same_rows(after, before)
    shard_files(out)[1].unlink()
    with pytest.raises(DamagedError, match="lacks shard 2 of 3"):
        join(out)
    shard_files(out)[-1].unlink()  # the number of shards stands in each of them
    with pytest.raises(DamagedError, match="lacks shard 2 of 3"):
        join(out)
    shutil.rmtree(shards_path(out))
    with pytest.raises(FormatError, match="holds no shards; make them with"):
        join(out)


def test_join_copies_the_cache_into_one_file(
    rows: Rows, tiny: Path, tmp_path: Path, write_csv: Callable[..., Path]
) -> None:
    table, out = write_csv(rows), tmp_path / "c.h5"
    cache, _ = run(table, out, tiny, shards=3)
    copied = join(out, copy=tmp_path / "one.h5")
    one = open_cache(copied)
    one.check()
    assert not isinstance(one, JoinedCache) and same_rows(one, cache)
    np.testing.assert_array_equal(one.features(), cache.features())
    assert "is current" in run(table, copied, tiny)[1][-1]
    with pytest.raises(OutputExistsError, match="exists already"):
        join(out, copy=copied)
    with pytest.raises(OutputExistsError, match="is what is copied"):
        join(out, copy=shard_files(out)[0], overwrite=True)
    with pytest.raises(FormatError, match="is a cache of one file already"):
        join(copied, copy=tmp_path / "two.h5")
    with pytest.raises(OutputExistsError, match="is a cache of one file; it is never overwritten here"):
        join(copied)
    flip_a_byte(shard_files(out)[1], "features/cls", 3)
    with pytest.raises(DamagedError, match="1 of 9 blocks are damaged"):
        join(out, copy=copied, overwrite=True)
    assert same_rows(open_cache(copied), one)


def test_damaged_shards_are_verified_and_repaired_one_by_one(
    rows: Rows, tiny: Path, tmp_path: Path, write_csv: Callable[..., Path], encoded: list[list[int]]
) -> None:
    table, out = write_csv(rows), tmp_path / "c.h5"
    whole, _ = run(table, out, tiny, shards=3)
    whole, files = np.array(whole.features()), shard_files(out)
    state = files[0].stat().st_ino
    flip_a_byte(files[1], "features/cls", 3)
    flip_a_byte(files[2], "labels", 9)
    assert [finding.where for finding in verify(out).findings] == [
        f"{files[1].name}, block 1, rows 1 to 8",
        f"{files[2].name}, block 2, rows 9 to 16",
    ]
    encoded.clear()
    repair(out, table)
    assert 0 < len(encoded) < distinct(rows) and files[0].stat().st_ino == state
    assert not verify(out, encoder=str(tiny), table=table).findings
    np.testing.assert_allclose(open_cache(out).features(), whole, atol=1e-6)


def test_what_cannot_be_sharded_is_refused(
    rows: Rows, tiny: Path, tmp_path: Path, write_csv: Callable[..., Path]
) -> None:
    table, out = write_csv(rows), tmp_path / "c.h5"
    for options, message in (
        ({"shards": 61}, r"`shards` is 61; it must be from 1 to 60 for 60 rows"),
        ({"shard": "0/3"}, r"`shard` is '0/3'; write its number and how many there are: 3/16"),
        ({"shard": "4/3"}, r"`shard` is '4/3'"),
        ({"shard": "1/3", "shards": 3}, "leave out one of them"),
    ):
        with pytest.raises(SettingsError, match=message):
            run_shard(table, out, tiny, **options)
    with interrupted_after(1), pytest.raises(KeyboardInterrupt):
        run(table, out, tiny)
    with pytest.raises(OutputExistsError, match="is unfinished work on one file"):
        run(table, out, tiny, shards=3)


def test_an_array_of_slurm_makes_what_is_left(
    rows: Rows, tiny: Path, tmp_path: Path, write_csv: Callable[..., Path]
) -> None:
    """Its tasks are run here, in another order, one of them twice, from another folder."""
    table, out = write_csv(rows), tmp_path / "it's c.h5"
    options = ["extract", table, "--encoder", tiny, "--precision", "float32", "--out", out]
    made = command(*options, "--shard", "2/5")
    assert made.returncode == 0, made.stderr
    for how in (("--shards", "5"), ("--shards=5",)):
        printed = command(*options[:2], *how, "--array", *options[2:])
        assert printed.returncode == 0, printed.stderr
        assert printed.stdout.startswith("#!/bin/sh\n# Makes 4 of 5 shards of ")
        assert "\n#SBATCH --array=1,3-5\n" in printed.stdout
    script = tmp_path / "array.sh"
    script.write_text(printed.stdout)
    for task in (4, 1, 4, 5, 3):
        assert not out.exists()
        variables = {**os.environ, "SLURM_ARRAY_TASK_ID": str(task)}
        subprocess.run(["sh", str(script)], check=True, capture_output=True, cwd="/", env=variables)
    cache = open_cache(out)
    cache.check()
    assert cache.record["sequences_encoded"] == distinct(rows)
    again = command(*options, "--array")
    assert again.returncode == 0 and not again.stdout
    assert "is current: all shards are made and joined; there is nothing to hand in" in again.stderr
    out.unlink()
    assert "#SBATCH --array=5\n" in command(*options, "--shards", "5", "--array").stdout  # to join them
    none = command(*options[:-1], tmp_path / "d.h5", "--array")
    assert none.returncode == 2 and "say how many shards there are, with --shards" in none.stderr


def test_every_command_takes_a_joined_cache(
    rows: Rows, tiny: Path, tmp_path: Path, write_csv: Callable[..., Path]
) -> None:
    """With what it says of the same cache in one file."""
    table, out = write_csv(tiny_rows(200)), tmp_path / "c.h5"
    run_small_blocks(table, out, tiny, shards=7)
    one = join(out, copy=tmp_path / "one.h5")

    def said(*arguments: Any) -> str:
        done = command(*arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout.replace(str(out), "CACHE").replace(str(one), "CACHE")

    for name in ("auto", "exact", "sgd"):
        options = ("--solver", name, *(("--epochs", 3) if name == "sgd" else ()))
        for cache in (out, one):
            said("train-head", cache, "--out", tmp_path / f"{name}-{cache.stem}", *options)
        weights = [(tmp_path / f"{name}-{cache.stem}" / "head.safetensors").read_bytes() for cache in (out, one)]
        assert weights[0] == weights[1], name
    said("train-head", out, "--out", tmp_path / "low", "--memory", "16MiB")
    for cache in (out, one):
        said("sweep", cache, "--out", tmp_path / f"sweep-{cache.stem}", "--l2", "1,10", "--solver", "exact")
        said("audit", cache, "--out", tmp_path / f"audit-{cache.stem}")
    tables = [(tmp_path / f"audit-{cache.stem}" / "issues.parquet").read_bytes() for cache in (out, one)]
    assert tables[0] == tables[1]
    assert "200" in said("inspect", out)
    assert "in 7 shards" in said("inspect", out)
    assert "whole" in said("verify", out)
    predicted = [tmp_path / f"{cache.stem}.csv" for cache in (out, one)]
    for cache, path in zip((out, one), predicted, strict=True):
        said("predict", tmp_path / "exact-c", "--input", table, "--out", path, "--cache", cache)
    ours, theirs = (list(csv.reader(path.read_text().splitlines())) for path in predicted)
    assert [row[:3] for row in ours] == [row[:3] for row in theirs]  # rows of one shard are multiplied together
    np.testing.assert_allclose(
        *([[float(p) for p in row[3:]] for row in rows[1:]] for rows in (ours, theirs)), atol=1e-6
    )
    said("evaluate", tmp_path / "exact-c", out, "--out", tmp_path / "evaluation")
    said("report", tmp_path / "exact-c", "--cache", out, "--out", tmp_path / "page.html")
    said("train-head", one, "--test", out, "--keep-shared", "--out", tmp_path / "tested")
