"""A joined cache: it reads as its shards do, other programs read it, and only the right shards are read."""

from __future__ import annotations

import json
import os
import resource
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from caches import PLAN, RECORD, make_cache
from extracting import flip_a_byte
from headstart.cache.errors import DamagedError, FormatError, StorageError
from headstart.cache.hashing import digest
from headstart.cache.joined import JoinedRows, ShardEntry, create_joined
from headstart.cache.layout import read_layout
from headstart.cache.reader import JoinedCache, open_any, open_cache, shard_entries
from headstart.cache.writer import CacheWriter, copy_rows, encode_document
from hypothesis import given
from hypothesis import strategies as st

ROWS = (10, 4, 7)
"""Rows of each shard, in blocks of 4."""


def join(folder: Path, counts: Sequence[int] = ROWS, **changes: Any) -> Path:
    """Make shards of so many rows and a joined cache; ``changes`` are fields of the second shard's entry."""
    (folder / "shards").mkdir(parents=True)
    entries, paths, start = [], [folder / "shards" / f"{number}.h5" for number in range(len(counts))], 0
    for path, count in zip(paths, counts, strict=True):
        shard = {"id": path.stem * 8, "number": len(entries) + 1, "first_row": start + 1}
        make_cache(path, rows=count, plan={**PLAN, "shard": shard}, row_numbers=np.arange(start, start + count) + 1)
        entries.append(ShardEntry(file=f"shards/{path.name}", rows=count, id=shard["id"]))
        start += count
    entries[1] |= changes
    first = open_cache(paths[0])
    documents = {
        "identity": first.identity.to_json().encode(),
        "plan": encode_document(PLAN),
        "label_names": encode_document(list(first.label_names or ())),
        "record": encode_document({**RECORD, "rows": sum(counts)}),
        "shards": encode_document(entries),
    }
    layouts = [read_layout(path)[0] for path in paths]
    create_joined(folder / "cache.h5", entries=entries, layouts=layouts, documents=documents)
    return folder / "cache.h5"


@given(st.data())
def test_joined_rows_read_as_one_array(data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=6))
    columns = data.draw(st.sampled_from([(), (3,)]))
    parts = [np.random.default_rng(number).random((length, *columns)) for number, length in enumerate(lengths)]
    joined, whole = JoinedRows(parts), np.concatenate(parts)
    assert (joined.shape, joined.dtype, len(joined), joined.ndim) == (whole.shape, whole.dtype, len(whole), whole.ndim)
    np.testing.assert_array_equal(joined, whole)
    span = data.draw(st.slices(len(whole)))
    np.testing.assert_array_equal(joined[span], whole[span])
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=len(whole), max_size=len(whole))), bool)
    np.testing.assert_array_equal(joined[mask], whole[mask])
    if len(whole):
        rows = np.array(data.draw(st.lists(st.integers(-len(whole), len(whole) - 1), max_size=9)), np.int64)
        np.testing.assert_array_equal(joined[rows], whole[rows])
        np.testing.assert_array_equal(joined[rows.reshape(1, -1)], whole[rows.reshape(1, -1)])
        np.testing.assert_array_equal(joined[int(len(whole) - 1)], whole[-1])
    for outside in (len(whole), -len(whole) - 1, np.array([len(whole)])):
        with pytest.raises(IndexError):
            joined[outside]


def test_a_slice_of_one_part_is_not_copied() -> None:
    parts = [np.arange(4), np.arange(4, 9)]
    assert np.shares_memory(JoinedRows(parts)[5:8], parts[1])


def test_a_joined_cache_reads_as_its_shards_do(tmp_path: Path) -> None:
    cache = open_cache(join(tmp_path))
    assert isinstance(cache, JoinedCache)
    cache.check()
    shards = [open_cache(tmp_path / "shards" / f"{number}.h5") for number in range(3)]
    assert cache.files == cache.shards and [shard.path for shard in cache.shards] == [shard.path for shard in shards]
    for name in ("text_hashes", "token_hashes", "lengths", "truncated", "labels"):
        np.testing.assert_array_equal(getattr(cache, name), np.concatenate([getattr(s, name) for s in shards]))
    np.testing.assert_array_equal(cache.features(), np.concatenate([shard.features() for shard in shards]))
    assert cache.row_numbers is None  # they are 1, 2, 3, ...
    spans = [cache.layout.block_slice(block) for block in range(cache.layout.blocks)]
    assert [(span.start, span.stop) for span in spans] == [(0, 4), (4, 8), (8, 10), (10, 14), (14, 18), (18, 21)]
    assert cache.bytes == sum(path.stat().st_size for path in tmp_path.rglob("*.h5"))
    assert cache.label_counts() == {
        name: sum((shard.label_counts() or {})[name] for shard in shards) for name in cache.label_names or ()
    }


def test_other_programs_read_it_wherever_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = join(tmp_path / "here")
    wrote = np.asarray(open_cache(path).features())
    (tmp_path / "here").rename(tmp_path / "there")
    monkeypatch.chdir("/")
    with h5py.File(tmp_path / "there" / "cache.h5") as file:
        np.testing.assert_array_equal(file["features/cls"][:], wrote)
        assert file["rows"][:].tolist() == list(range(1, 22))
    (tmp_path / "there" / "shards" / "1.h5").unlink()
    with h5py.File(tmp_path / "there" / "cache.h5") as file:  # HDF5 says nothing, so it should show
        assert np.isnan(file["features/cls"][10:14]).all() and not np.isnan(file["features/cls"][14:]).any()


def test_rows_are_copied_to_one_file(tmp_path: Path) -> None:
    cache = open_cache(join(tmp_path))
    copy_rows(cache, tmp_path / "one.h5", plan=PLAN)
    with CacheWriter(tmp_path / "one.h5") as writer:
        writer.finish(cache.record, tmp_path / "one.h5")
    one = open_cache(tmp_path / "one.h5")
    one.check()
    np.testing.assert_array_equal(one.features(), np.asarray(cache.features()))
    np.testing.assert_array_equal(one.labels, cache.labels)


def test_damage_in_a_shard_is_found_at_its_rows(tmp_path: Path) -> None:
    path = join(tmp_path)
    flip_a_byte(tmp_path / "shards" / "2.h5", "features/cls", 5)
    flip_a_byte(tmp_path / "shards" / "0.h5", "labels", 0)
    cache = open_cache(path)
    assert cache.damaged_blocks() == [0, 5]
    with pytest.raises(DamagedError, match=r"2 of 6 blocks are damaged, the first at rows 1 to 4 \(labels"):
        cache.check()


def another(folder: Path) -> None:
    """Put a shard of other rows in the place of the second."""
    (folder / "1.h5").unlink()
    make_cache(folder / "1.h5", rows=4, plan={**PLAN, "shard": {"id": "x" * 8}}, row_numbers=np.arange(11, 15))


def swap(folder: Path) -> None:
    (folder / "1.h5").rename(folder / "x.h5")
    (folder / "2.h5").rename(folder / "1.h5")
    (folder / "x.h5").rename(folder / "2.h5")


UNREADABLE = "has a shard that cannot be read; run the same headstart extract again"
HARM: dict[str, tuple[Callable[[Path], Any], str]] = {
    "deleted": (lambda folder: (folder / "1.h5").unlink(), "lacks the shard .*1.h5: run the same headstart extract"),
    "cut short": (lambda folder: os.truncate(folder / "1.h5", 30_000), f"{UNREADABLE} .* is cut short"),
    "swapped": (swap, "1.h5 is not the shard that was joined"),
    "another": (another, "1.h5 is not the shard that was joined"),
    "no cache": (lambda folder: (folder / "1.h5").write_text("x"), f"{UNREADABLE} .* is not a headstart cache"),
}
"""What may happen to the second shard, and what is said then."""


@pytest.mark.parametrize("harm", HARM)
def test_a_shard_that_is_not_the_right_one_is_refused(harm: str, tmp_path: Path) -> None:
    path = join(tmp_path)
    HARM[harm][0](tmp_path / "shards")
    with pytest.raises(DamagedError, match=HARM[harm][1]):
        open_cache(path)
    assert len(shard_entries(path)) == 3


@pytest.mark.parametrize("outside", ["../cache.h5", "/etc/hostname", "shards/../../x.h5"])
def test_a_shard_outside_the_folder_is_refused(outside: str, tmp_path: Path) -> None:
    with pytest.raises(DamagedError, match="lies outside the folder of the cache"):
        open_cache(join(tmp_path / "in", file=outside))


def test_a_link_to_a_shard_outside_the_folder_is_refused(tmp_path: Path) -> None:
    path = join(tmp_path / "in")
    shutil.move(tmp_path / "in" / "shards" / "1.h5", tmp_path / "1.h5")
    (tmp_path / "in" / "shards" / "1.h5").symlink_to(tmp_path / "1.h5")
    with pytest.raises(DamagedError, match="lies outside the folder of the cache"):
        open_cache(path)


def test_a_joined_cache_that_names_itself_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DamagedError, match="is joined from shards; here belongs a cache of one file"):
        open_cache(join(tmp_path, file="cache.h5"))


def test_a_list_of_shards_that_is_none_is_refused(tmp_path: Path) -> None:
    for changes, message in (({"rows": 5}, "not the shard that was joined"), ({"id": 7}, "lacks 'id', or it is of")):
        with pytest.raises(DamagedError, match=message):
            open_cache(join(tmp_path / message[:4], **changes))


def test_every_changed_byte_of_a_joined_file_is_found(tmp_path: Path) -> None:
    path = join(tmp_path)
    content, rng = path.read_bytes(), np.random.default_rng(0)
    for place in rng.integers(0, len(content), 60).tolist():
        changed = bytearray(content)
        changed[place] ^= 1
        path.write_bytes(changed)
        with pytest.raises((DamagedError, FormatError)):
            open_cache(path)


def test_what_needs_one_file_refuses_a_joined_cache(tmp_path: Path) -> None:
    path = join(tmp_path)
    for opens in (open_any, CacheWriter):
        with pytest.raises(FormatError, match="is joined from shards; here belongs a cache of one file"):
            opens(path)


def test_the_limit_of_open_files_is_raised_or_the_cache_refused(tmp_path: Path) -> None:
    """HDF5 would read fill values; and each array of each shard would keep a file open, were it mapped alone."""
    path = join(tmp_path, [1] * 60)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    open_now = len(list(Path("/dev/fd").iterdir()))
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (open_now + 20, before[1]))
        cache = open_cache(path)
        assert np.isfinite(cache.features()).all() and len(cache.features()) == 60
        assert len(list(Path("/dev/fd").iterdir())) < open_now + 64
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > open_now + 60
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_too_many_shards_for_the_system_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = join(tmp_path)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (20, 20))
    with pytest.raises(StorageError, match=r"has 3 shards, and this process may have 20 files open.*join --copy"):
        open_cache(path)


def test_the_list_of_shards_has_a_checksum(tmp_path: Path) -> None:
    path = join(tmp_path)
    with h5py.File(path) as file:
        content = file["shards"][()]
        assert json.loads(content)[1] == {"file": "shards/1.h5", "rows": 4, "id": "1" * 8}
        assert file["checksums/shards"][:].tobytes() == digest(content)
