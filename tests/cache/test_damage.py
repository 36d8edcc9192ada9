"""Damage to a finished cache: every flipped bit is found and located, every cut is refused, and nothing crashes."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from damage import KINDS, cut_at_random, flip_in, fuzz_structure, places
from extracting import flip_a_byte, run, seal_again
from headstart import cli
from headstart.cache import reader
from headstart.cache.errors import FormatError, IdentityError, TableError
from headstart.cache.hashing import digest
from headstart.cache.layout import read_layout
from headstart.cache.writer import CacheWriter
from headstart.stages.settings import ExtractSettings
from headstart.stages.verify import verify
from tiny import save_tiny_encoder, tiny_rows

ROWS = 3000


@pytest.fixture(scope="module")
def whole(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with three blocks and labels."""
    texts, labels = zip(*tiny_rows(ROWS), strict=True)
    out = tmp_path_factory.mktemp("whole") / "cache.h5"
    run({"text": list(texts), "label": list(labels)}, out, tiny, batch_tokens=2048)
    return out


@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_bit_is_found_and_located(kind: str, whole: Path, tmp_path: Path) -> None:
    found = flip_in(whole, tmp_path / "flipped.h5", kind, 25, seed=0)
    assert (found.found, found.located) == (25, 25)


def test_a_flipped_bit_anywhere_else_is_found(whole: Path, tmp_path: Path) -> None:
    """Even a bit in the padding between datasets, where it has no effect."""
    found = flip_in(whole, tmp_path / "flipped.h5", None, 40, seed=0)
    assert found.found == 40
    covered = sum(stop - start for spans in places(whole).values() for start, stop in spans)
    assert covered == whole.stat().st_size


def test_a_cut_anywhere_is_refused(whole: Path, tmp_path: Path) -> None:
    assert cut_at_random(whole, tmp_path / "cut.h5", 60, seed=0) == 60


def test_a_structure_that_was_changed_and_sealed_again_harms_nobody(whole: Path, tmp_path: Path) -> None:
    """A file is refused with an error of headstart, or reads back unchanged. A new process opens it, so that a crash of
    the HDF5 library is noticed."""
    done = fuzz_structure(whole, tmp_path, 150, seed=0)
    assert done.refused + done.unchanged == 150 and done.refused > 0


def test_a_whole_cache_is_said_to_be_whole(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = verify(whole)
    assert found.findings == () and found.rows == ROWS
    assert command(["verify", str(whole)], capsys) == (0, "", f"{ROWS:,} rows")


def test_each_finding_is_a_line_and_the_exit_code_is_1(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "cache.h5"
    path.write_bytes(whole.read_bytes())
    flip_a_byte(path, "features/cls", 1500)
    flip_a_byte(path, "labels", 2999)
    first, second = verify(path).findings
    assert first.where == "block 2, rows 1,025 to 2,048" and "features" in first.what
    assert second.where == "block 3, rows 2,049 to 3,000" and "labels" in second.what
    code, err, out = command(["verify", str(path)], capsys, "block 2, rows 1,025 to 2,048: features")
    assert code == 1 and "headstart repair" in err and out


def test_features_that_are_not_finite_and_labels_out_of_range_are_named(whole: Path, tmp_path: Path) -> None:
    """Although their checksums match, as in a file that is made to mislead."""
    path = tmp_path / "cache.h5"
    path.write_bytes(whole.read_bytes())
    with CacheWriter(path) as writer:
        cache = verified_cache(path)
        values = np.array(cache.features()[:1024])
        values[17, 3] = np.nan
        writer.write_block(0, features={"cls": values}, **cache.row_metadata(slice(0, 1024)))
        labels = np.array(cache.labels)
        labels[5] = 2
        writer._write("labels", 0, labels)
        checksum = digest(np.array([0, 1024], "<u8"), labels[:1024])
        writer._write("checksums/labels", 0, np.frombuffer(checksum, np.uint8))
    assert [(f.where, f.what) for f in verify(path).findings] == [
        ("block 1, rows 1 to 1,024", "the feature 'cls' of row 18 is not finite"),
        ("block 1, rows 1 to 1,024", "a label is outside 0 to 1"),
    ]


def test_rows_are_encoded_again_where_there_are_an_encoder_and_a_table(
    tiny: Path, tmp_path: Path, write_csv: Callable[..., Path]
) -> None:
    rows = tiny_rows(200)
    table, out = write_csv(rows), tmp_path / "cache.h5"
    cache, _ = run(table, out, tiny)
    found = verify(out, encoder=str(tiny), table=table, settings=ExtractSettings(device="cpu"))
    assert found.findings == () and found.encoded == 64
    assert found.largest_difference is not None and found.largest_difference < 1e-5
    with CacheWriter(out) as writer:  # features of other texts, with a checksum that holds
        wrong = np.roll(np.array(cache.features()), 1, axis=0)
        writer.write_block(0, features={"cls": wrong}, **cache.row_metadata(slice(0, 200)))
    assert verify(out).findings == ()
    assert len(verify(out, encoder=str(tiny)).findings) > 50  # with the table that the cache names
    assert len(verify(out, encoder=str(tiny), table=table).findings) > 50
    with pytest.raises(TableError, match="its texts are others"):
        verify(out, encoder=str(tiny), table={"text": [text for text, _ in rows[::-1]]})
    other = save_tiny_encoder(tmp_path / "other", seed=1)
    with pytest.raises(IdentityError, match="weights_sha256"):
        verify(out, encoder=str(other))
    table.unlink()
    with pytest.raises(TableError, match=r"which is not here; give the table with `table`"):
        verify(out, encoder=str(tiny))


def test_rows_that_the_disk_cannot_give_are_damaged(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = reader._rows_of

    def failing(path: Path, array: Any, rows: slice) -> Any:
        if rows.start == 1024:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return original(path, array, rows)

    monkeypatch.setattr(reader, "_rows_of", failing)
    assert {finding.where for finding in verify(whole).findings} == {"block 2, rows 1,025 to 2,048"}


def test_what_is_no_cache_is_not_verified(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(FormatError):
        verify(tmp_path / "missing.h5")
    assert command(["verify", str(tmp_path / "missing.h5")], capsys)[0] == 2


def test_a_hidden_change_of_a_document_is_told_by_its_fields(whole: Path, tmp_path: Path) -> None:
    """A record whose nested fields have the wrong type, or that is nested too deep."""
    for content in (b'{"rows": 1}', b"[" * 10_000, b"\xff\xfe"):
        path = tmp_path / "cache.h5"
        path.write_bytes(whole.read_bytes())
        with CacheWriter(path) as writer:
            padded = content.ljust(read_layout(path)[1]["record"].nbytes, b"\0")
            writer._write("record", 0, np.frombuffer(padded, np.uint8))
            writer._write("checksums/record", 0, np.frombuffer(digest(padded), np.uint8))
        seal_again(path)
        (finding,) = verify(path).findings
        assert "record" in finding.what


def verified_cache(path: Path) -> Any:
    from headstart.cache.reader import open_cache

    return open_cache(path)


def command(arguments: list[str], capsys: pytest.CaptureFixture[str], expected: str = "rows") -> tuple[int, str, str]:
    """Run the command line; return its exit code, its stderr, and the expected part of its stdout."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["headstart", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
    out, err = capsys.readouterr()
    at = out.find(expected) if expected != "rows" else out.find(f"{ROWS:,} rows")
    return int(ended.value.code or 0), err, out[at : at + len(f"{ROWS:,} rows")] if at >= 0 else ""
