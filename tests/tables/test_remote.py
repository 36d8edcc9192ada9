"""Tables that fsspec reads: of any format, from a server that speaks S3 and from file systems of other names, with what
changes meanwhile noticed."""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import numpy as np
import pytest
from extracting import run
from fsspec.implementations.memory import MemoryFileSystem
from headstart.cache.errors import SettingsError, StorageError, TableError
from headstart.stages.predict import predict_table
from headstart.stages.progress import silent
from headstart.stages.settings import TrainSettings
from headstart.stages.tables.scan import read_windows, scan_table
from headstart.stages.tables.table import Table, open_table
from headstart.stages.train_head import train_head
from tiny import tiny_rows

CSV = b"text,label\na b,x\nc d,y\n"


@pytest.fixture
def store() -> Iterator[Any]:
    system = fsspec.filesystem("memory")
    yield system
    system.store.clear()


def opened(url: str | Path) -> Table:
    return open_table(url, text_column="text", label_column="label")


@pytest.mark.parametrize(("name", "content"), [("t.csv", CSV), ("t.csv.gz", gzip.compress(CSV, mtime=0))])
def test_a_remote_file_is_read_as_a_local_one(store: Any, name: str, content: bytes) -> None:
    store.pipe(f"/data/{name}", content)
    table = opened(f"memory://data/{name}")
    assert [batch.texts for batch in table.batches()] == [["a b", "c d"]]
    assert table.source == f"memory://data/{name}"
    assert opened(Path(f"memory://data/{name}")).source == table.source  # as the command line gives it
    (copy,) = table.files
    assert copy.exists()
    del table
    assert not copy.exists()


def test_a_table_on_s3_is_extracted_predicted_and_noticed_when_it_changes(
    bucket: Any, tiny: Path, tmp_path: Path
) -> None:
    rows = tiny_rows(40)
    content = "".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows).encode()
    bucket.pipe("reviews/new.jsonl", content)
    (tmp_path / "here.jsonl").write_bytes(content)
    there, here = (
        run(table, tmp_path / f"{name}.h5", tiny)[0]
        for name, table in (("there", "s3://reviews/new.jsonl"), ("here", tmp_path / "here.jsonl"))
    )
    np.testing.assert_array_equal(there.features("cls"), here.features("cls"))
    assert there.record["table"] == "s3://reviews/new.jsonl"
    train_head(tmp_path / "here.h5", tmp_path / "run", TrainSettings(solver="exact"))
    predict_table(tmp_path / "run", "s3://reviews/new.jsonl", tmp_path / "out.jsonl")
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 40
    table = opened("s3://reviews/new.jsonl")
    scan = scan_table(table, silent, keep_rows=0)
    bucket.pipe("reviews/new.jsonl", content[: len(content) // 2])
    with pytest.raises(TableError, match=r"s3://reviews/new.jsonl changed while it was read"):
        list(read_windows(table, scan, 10))
    with pytest.raises(TableError, match=r"s3://reviews/none.csv does not exist"):
        opened("s3://reviews/none.csv")


@pytest.mark.parametrize("scheme", ["gs", "hf"])
def test_other_stores_are_asked_by_their_own_names(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Store(MemoryFileSystem):
        protocol = scheme
        store: ClassVar[dict[str, Any]] = {}
        pseudo_dirs: ClassVar[list[str]] = [""]

        @classmethod
        def _strip_protocol(cls, path: str) -> str:
            return str(super()._strip_protocol(path.removeprefix(f"{scheme}://")))

    monkeypatch.setitem(sys.modules["fsspec.registry"]._registry, scheme, Store)
    Store().pipe("/datasets/t.csv", CSV)
    table = opened(f"{scheme}://datasets/t.csv")
    assert table.source == f"{scheme}://datasets/t.csv"
    assert [batch.texts for batch in table.batches()] == [["a b", "c d"]]


def test_messages_name_the_url(store: Any) -> None:
    store.pipe("/data/t.csv", b"text,label\na b,x\n ,y\n")
    with pytest.raises(TableError, match=r"^memory://data/t.csv, row 2: its text \('text'\) is blank"):
        list(opened("memory://data/t.csv").batches())
    store.pipe("/data/t.csv", b"text,label\na b,x,y\n")
    with pytest.raises(TableError, match=r"^memory://data/t.csv, row 1"):
        list(opened("memory://data/t.csv").batches())


def test_a_file_that_changes_is_noticed(store: Any) -> None:
    store.pipe("/data/t.csv", CSV)
    table = opened("memory://data/t.csv")
    scan = scan_table(table, silent, keep_rows=0)
    store.pipe("/data/t.csv", CSV)
    with pytest.raises(TableError, match=r"memory://data/t.csv changed while it was read"):
        list(read_windows(table, scan, 10))


def test_what_cannot_be_read_is_refused(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TableError, match=r"memory://data/none.csv does not exist"):
        opened("memory://data/none.csv")
    with pytest.raises(TableError, match=r"abc://t.csv cannot be read: Protocol not known: abc"):
        opened("abc://t.csv")
    store.pipe("/data/t.xyz", CSV)
    with pytest.raises(TableError, match="not a table by its name"):
        opened("memory://data/t.xyz")
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)  # of another test
    with pytest.raises(SettingsError, match=r"pip install 'headstart\[s3\]'"):
        opened("s3://bucket/t.csv")

    def fail(self: Any, *arguments: Any, **options: Any) -> None:
        raise OSError("the server is gone")

    store.pipe("/data/t.csv", CSV)
    monkeypatch.setattr(type(store), "get_file", fail)
    with pytest.raises(StorageError, match=r"cannot read memory://data/t.csv: the server is gone"):
        opened("memory://data/t.csv")
